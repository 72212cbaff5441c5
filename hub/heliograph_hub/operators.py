"""What an operator may ask of the hub from elsewhere: roles, what each may do, and tokens that say a role for a while.

Rule 1: the hub's socket is its owner's, who may do everything. Over the network counts a token, for `TOKEN_LIFE_S`, and
    only what `ROUTES` lists for its role; what isn't listed is the owner's alone.
Rule 2: no role can both sign and approve. (The keys are what counts with nodes; this keeps people apart as well.)
Rule 3: a token is kept as its hash, in memory: the hub's next start knows none.

Time and randomness come as arguments.
"""

from base64 import urlsafe_b64encode
from typing import Final, Literal, get_args

from heliograph.blob import sha256
from heliograph.errors import ConfigError, RefusedError

Role = Literal["viewer", "releaser", "approver", "operator", "security"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
TOKEN_LIFE_S: Final = 15 * 60
MAX_TOKENS: Final = 256

Allowed = frozenset[str]
_ALL: Final = frozenset(ROLES)
_OPERATOR: Final = frozenset({"operator"})
_SECURITY: Final = frozenset({"security"})
_STOP: Final = frozenset({"approver", "security"})
DUTIES: Final[dict[str, Allowed]] = {"sign": frozenset({"releaser"}), "approve": frozenset({"approver"})}
"""Who may bring signatures of a duty, and ask for what is to be signed."""
_DUTY: Final = frozenset({"releaser", "approver"})

ROUTES: Final[dict[tuple[str, str], Allowed]] = {
    ("GET", "/v1/hub"): _ALL,
    ("GET", "/v1/keys"): _ALL,
    ("GET", "/v1/keys/due"): _ALL,
    ("GET", "/v1/keys/log"): _ALL,
    ("GET", "/v1/keys/requests"): _ALL,
    ("GET", "/v1/releases"): _ALL,
    ("GET", "/v1/releases/{model}/{version}"): _ALL,
    ("GET", "/v1/denials"): _ALL,
    ("GET", "/v1/documents/{kind}"): _ALL,
    ("GET", "/v1/documents/{kind}/{scope}"): _ALL,
    ("GET", "/v1/documents/{kind}/{scope}/{number:int}"): _ALL,
    ("GET", "/v1/convergence/{ring}"): _ALL,
    ("GET", "/v1/rollouts/{model}/{version}"): _ALL,
    ("GET", "/v1/fleet"): _ALL,
    ("GET", "/v1/fleet/tokens"): _ALL,
    ("GET", "/v1/fleet/drift"): _ALL,
    ("GET", "/v1/fleet/stale"): _ALL,
    ("GET", "/v1/fleet/{site}/{node}"): _ALL,
    ("GET", "/v1/fleet/{site}/{node}/records/{lane}"): _ALL,
    ("GET", "/v1/fleet/{site}/{node}/timeline"): _ALL,
    ("POST", "/v1/keys/rotations"): _SECURITY,
    ("POST", "/v1/keys/rotations/drop"): _SECURITY,
    ("POST", "/v1/keys/signatures"): _SECURITY,
    ("POST", "/v1/releases"): frozenset({"releaser"}),
    ("POST", "/v1/releases/{model}/rekey"): frozenset({"operator", "security"}),
    ("POST", "/v1/releases/{model}/{version}/requests"): _DUTY,
    ("POST", "/v1/candidates/{candidate}"): _DUTY,
    ("POST", "/v1/denials"): _STOP,
    ("POST", "/v1/denials/requests"): _STOP,
    ("POST", "/v1/documents"): _OPERATOR,
    ("POST", "/v1/documents/requests"): _OPERATOR,
    ("POST", "/v1/rollouts"): _OPERATOR,
    ("POST", "/v1/rollouts/{model}/{version}/promote"): _OPERATOR,
    ("POST", "/v1/rollouts/{model}/{version}/abort"): _OPERATOR,
    ("POST", "/v1/rollouts/{model}/{version}/return"): _OPERATOR,
    ("POST", "/v1/rollouts/{model}/{version}/pause"): _OPERATOR,
    ("POST", "/v1/rollouts/{model}/{version}/resume"): _OPERATOR,
    ("POST", "/v1/rollouts/{model}/{version}/requests"): _OPERATOR,
    ("POST", "/v1/rollouts/{model}/{version}/signatures"): _OPERATOR,
    ("POST", "/v1/fleet/tokens"): _OPERATOR,
    ("POST", "/v1/fleet/tokens/revoke"): frozenset({"operator", "security"}),
    ("POST", "/v1/fleet/assignments"): _OPERATOR,
    ("POST", "/v1/fleet/labels"): _OPERATOR,
    ("POST", "/v1/fleet/requests"): _OPERATOR,
    ("POST", "/v1/fleet/signatures"): _OPERATOR,
    ("POST", "/v1/fleet/{site}/{node}/pins"): _OPERATOR,
    ("POST", "/v1/fleet/{site}/{node}/relay"): _OPERATOR,
    ("POST", "/v1/fleet/{site}/{node}/commands"): _OPERATOR,
    ("POST", "/v1/fleet/{site}/{node}/remove"): frozenset({"operator", "security"}),
}
"""Which roles may use each route of the API; what is asked of a duty is looked at as well (`DUTIES`)."""


class Tokens:
    """The tokens that count now."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Role, int]] = {}

    def add(self, role: str, now: int, entropy: bytes) -> tuple[str, int]:
        """A new token for a role, and when it ends.

        Args:
            role: one of `ROLES`.
            now: seconds since 1970.
            entropy: 32 random bytes.

        Raises:
            ConfigError: no such role.
            RefusedError: too many tokens count already.
        """
        found = next((one for one in ROLES if one == role), None)
        if found is None:
            raise ConfigError(f"no role {role[:40]!r}: roles are {', '.join(ROLES)}")
        self._known = {digest: kept for digest, kept in self._known.items() if kept[1] > now}
        if len(self._known) >= MAX_TOKENS:
            raise RefusedError(f"{MAX_TOKENS} tokens count already: wait until some have ended")
        token = urlsafe_b64encode(entropy).decode().rstrip("=")
        self._known[sha256(token.encode())] = found, now + TOKEN_LIFE_S
        return token, now + TOKEN_LIFE_S

    def role(self, token: str, now: int) -> Role | None:
        """The role that a token says; None if it says none, or not any more."""
        role, ends = self._known.get(sha256(token.encode()), (None, 0))
        return role if now < ends else None

"""[IO] Writes down who did what: every request that changed something, once it has succeeded.

Rule 1: a row tells what the action read and checked, nothing else that the request brought: nobody puts another's key
    or another's release into the log by adding a field, and no odd field keeps an act out of it.
Rule 2: what was signed is told from the bytes that were signed.
"""

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from starlette.requests import Request

from heliograph.errors import shown
from heliograph_hub.api.messages import Action, Answer, now
from heliograph_hub.duties import payload_words

if TYPE_CHECKING:
    from heliograph_hub.service import Service

MAX_VALUE = 120
"""Characters of one field."""


class Told(NamedTuple):
    """What the log tells of one route beside its path.

    Attributes:
        asked: fields of the request that its action reads; none of them is secret.
        answered: fields of the answer.
        signed_by: the field whose key ids signed, as the action has checked.
        signed: the field that holds what they signed.
    """

    asked: tuple[str, ...] = ()
    answered: tuple[str, ...] = ()
    signed_by: str = ""
    signed: str = ""


TOLD: Final[dict[str, Told | None]] = {
    "/v1/tokens": Told(("role",)),
    "/v1/keys/rotations": Told(("role", "remove", "threshold"), ("added",)),
    "/v1/keys/rotations/drop": Told(),
    "/v1/keys/signatures": Told(("kind",), ("name",), "signatures"),
    "/v1/releases": Told((), ("release", "digest")),
    "/v1/releases/{model}/rekey": Told(),
    "/v1/releases/{model}/{version}/requests": None,
    "/v1/candidates/{candidate}": Told((), (), "keyid"),
    "/v1/denials": Told(("type",), (), "signatures", "payload"),
    "/v1/denials/requests": None,
    "/v1/documents": Told(("kind",), (), "signatures", "payload"),
    "/v1/documents/requests": None,
    "/v1/rollouts": Told(("release",)),
    "/v1/rollouts/{model}/{version}/promote": Told(("to",)),
    "/v1/rollouts/{model}/{version}/abort": Told(("ring",)),
    "/v1/rollouts/{model}/{version}/return": Told(("ring",)),
    "/v1/rollouts/{model}/{version}/pause": Told(("let_running",)),
    "/v1/rollouts/{model}/{version}/resume": Told(),
    "/v1/rollouts/{model}/{version}/requests": None,
    "/v1/rollouts/{model}/{version}/signatures": Told((), (), "signatures", "payload"),
    "/v1/fleet/tokens": Told(("site", "node", "protected")),
    "/v1/fleet/tokens/revoke": Told(("site", "node")),
    "/v1/fleet/assignments": Told(("site", "ring")),
    "/v1/fleet/labels": Told(("site", "node", "labels")),
    "/v1/fleet/requests": None,
    "/v1/fleet/signatures": Told((), (), "signatures", "payload"),
    "/v1/fleet/{site}/{node}/pins": Told(("release", "clear")),
    "/v1/fleet/{site}/{node}/relay": Told(("relay",)),
    "/v1/fleet/{site}/{node}/commands": Told(("kind", "model")),
    "/v1/fleet/{site}/{node}/remove": Told(),
}
"""Of each route that takes something; None: it only gives out what is to be signed."""


def logged(service: "Service", method: str, path: str, action: Action) -> Action:
    """The same action; what it did is in the log before it answers."""
    told = TOLD[path] if method == "POST" else None
    if told is None:
        return action

    async def noted(request: Request, body: dict[str, Any]) -> Answer:
        answer = await action(request, body)
        words = [_word(field, body.get(field)) for field in told.asked]
        words += [_word(field, answer[field]) for field in told.answered]
        words += [payload_words(bytes.fromhex(body[told.signed]))] if told.signed else []
        what = " ".join([shown(request.url.path.removeprefix("/v1/")), *filter(None, words)])
        who = getattr(request.state, "role", "owner")
        service.duties.note(now(), who, what, keyids_in(body, told.signed_by) if told.signed_by else ())
        return answer

    return noted


def keyids_in(body: dict[str, Any], field: str) -> list[bytes]:
    """Whose signatures a request brought in this field; the action has checked them."""
    named = [body[field]] if isinstance(body[field], str) else list(body[field])
    return [bytes.fromhex(keyid) for keyid in named]


def _word(field: str, value: Any) -> str:
    """`field=value`; nothing for what is left out or none of the kinds that are told."""
    match value:
        case None | False | "" | [] | dict():
            return ""
        case list():
            text = ",".join(str(one) for one in value)
        case _:
            text = str(value)
    return f"{field}={shown(text)[:MAX_VALUE]}"

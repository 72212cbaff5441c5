"""What a release is served with: the numbers of its tuple, and the config that its programs read.

Pure. The number of a config says which document it is; 0 is none, and then every field is at its default. A
number that a stolen key used can be its successor's again, with another content: `digest` tells them apart.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from heliograph.policy import Config
from heliograph.statement import parse
from heliograph_site.serving.inference import RequestError

CONFIG_HEADER: Final = "heliograph-config"
POLICY_HEADER: Final = "heliograph-policy"
FIELDS: Final = ("generation", "thresholds", "flags", "pre", "post")
"""Of a config, what programs are given."""
MAX_CONTENT_BYTES: Final = 256 * 1024
_DEFAULTS: Final[Mapping[str, Any]] = {"generation": None, "thresholds": {}, "flags": {}, "pre": {}, "post": {}}


@dataclass(frozen=True, slots=True)
class Tuned:
    """The numbers of config and policy that a release serves with, and what the config says."""

    config: int = 0
    policy: int = 0
    content: Mapping[str, Any] = field(default_factory=lambda: dict(_DEFAULTS))

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """As every answer carries them."""
        return (CONFIG_HEADER, str(self.config)), (POLICY_HEADER, str(self.policy))

    @property
    def digest(self) -> str:
        """32 hex digits of numbers and content together, as the server's status has them."""
        whole = json.dumps([self.config, self.policy, dict(self.content)], sort_keys=True)
        return hashlib.sha256(whole.encode()).hexdigest()[:32]

    def row(self) -> dict[str, Any]:
        """As the control socket takes it."""
        return {"config": self.config, "policy": self.policy, "content": dict(self.content)}


def tuned(config: int, policy: int, document: Config | None) -> Tuned:
    """What a pointer with these numbers serves with; `document` is the config that is held under its number."""
    if document is None:
        return Tuned(config, policy)
    said = document.model_dump(mode="json", include=set(FIELDS))
    return Tuned(config, policy, {name: said[name] for name in FIELDS})


def opened(statement: bytes) -> Config:
    """The config in a statement out of the journal, where only verified ones are kept.

    Raises:
        IntegrityError: it isn't one.
    """
    return Config.decode(parse(statement).payload)


def parse_tuned(body: Mapping[str, Any]) -> Tuned:
    """What a caller of the control socket states; without any of it, no documents.

    Raises:
        RequestError: not of this form, or too large.
    """
    config, policy = body.get("config", 0), body.get("policy", 0)
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in (config, policy)):
        raise RequestError("config or policy is not the number of a document")
    content = body.get("content", dict(_DEFAULTS))
    if not isinstance(content, dict) or set(content) != set(FIELDS):
        raise RequestError(f"content does not hold {', '.join(FIELDS)}")
    if len(json.dumps(content)) > MAX_CONTENT_BYTES:
        raise RequestError(f"content has more than {MAX_CONTENT_BYTES} bytes")
    return Tuned(config, policy, content)

"""What the commands of machines stand on: the server process, the rest of the agent, and how often they look.

`tasks` performs them against these; tests and the simulator put others in their place.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from heliograph.documents import Lane, Offer
from heliograph.economy import Wait
from heliograph.manifest import Manifest
from heliograph.policy import Policy
from heliograph.trust import Target
from heliograph_site.happenings import (
    Answer,
)
from heliograph_site.serving.tuned import Tuned


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the agent looks, in seconds. Tests shorten them."""

    poll_s: float = 1.0  # the server, while something is proven or waited for
    watch_s: float = 5.0  # the server, at rest
    metric_s: float = 60.0  # a metric record per model
    report_s: float = 1.0  # `reported` at most this often
    retry_s: float = 30.0  # disk too full, and other things of this machine


class Server(Protocol):
    """The server process, as the agent steers it."""

    async def check(self, model: str, release: bytes, files: Any = None, timeout_s: float = 60.0) -> dict[str, Any]:
        """Loads the release and compares its golden outputs."""

    async def serve(
        self, model: str, release: bytes, timeout_s: float = 60.0, tuned: Tuned | None = None
    ) -> dict[str, Any]:
        """Makes the release the one that answers, with its config."""

    async def tune(self, model: str, release: bytes, tuned: Tuned) -> None:
        """Has the release, which answers, answer with this config."""

    async def drop(self, model: str, release: bytes) -> dict[str, Any]:
        """Ends a spare worker."""

    async def stop(self, model: str, release: bytes | None = None) -> None:
        """Has nothing of the model answer any more, if this release is what answers; None: whatever does."""

    async def status(self) -> dict[str, Any]:
        """What is served."""


class Surroundings(Protocol):
    """What the commands need of the agent."""

    def target(self, model: str, release: bytes) -> Target | None:
        """The manifest's entry in the trusted metadata."""

    async def ask(self, model: str, release: bytes) -> Offer | None:
        """One ask, once there is a link, and its offer; None if none came in time.

        Raises:
            TransportError: the link went away meanwhile.
        """

    def note(self, model: str, waiting: str, *, is_news: bool = True) -> None:
        """What the model waits for; empty: nothing. Mere progress is no news for the hub."""

    def named(self, release: bytes, manifest: Manifest) -> None:
        """The manifest of a release is known."""

    def collect(self) -> None:
        """Drops from the disk what no model needs."""

    def why_not_yet(self, model: str, release: bytes) -> str | None:
        """What forbids activating the release now; None if every duty vouches for it and freshness is proven."""

    def why_unfit(self, model: str) -> str | None:
        """Which documents the target waits for; None if what is held would do."""

    def tuned(self, model: str) -> Tuned:
        """What the active release is to answer with, at this moment."""

    def why_unsure(self) -> str | None:
        """What is missing to know what is denied: until it is here, nothing new is started."""

    def is_recipe_denied(self, recipe: bytes) -> bool:
        """Whether a way by this recipe is not to be used."""

    def policy_of(self, model: str) -> Policy:
        """The policy in force for the model."""

    def why_not_fetch(self) -> Wait | None:
        """What fetching waits for by policy; None: nothing."""

    def why_not_activate(self, model: str, version: str, activated_at: int | None) -> Wait | None:
        """What a new release waits for by policy before it is activated; None: nothing."""

    def took_for(self, release: bytes) -> int:
        """Bytes of content that came for the release so far."""

    async def tell(self, model: str, answer: Answer) -> None:
        """Says something on the way, before the command's last answer."""

    def record(self, lane: Lane, kind: str, body: dict[str, Any]) -> None:
        """Keeps for the hub what happened."""

    def now(self) -> int:
        """The estimated time."""


@dataclass(frozen=True, slots=True)
class Switched:
    """What a switch to this release cost."""

    release: bytes
    duration_ms: float
    failed: int

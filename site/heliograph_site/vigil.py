"""What the mere passing of time makes of a node: too long without the hub's word, or further behind than policy allows.

`heliograph.rules` judges; here stands what it is asked with, and who is told: an incident when either begins, and one
when it ends. What a machine is to do off line is a level (`stand_in`), undone when the hub is heard.

Rule: time is the node's estimate. What began is on disk, so that a restart tells nothing twice.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from heliograph import rules
from heliograph.documents import Lane
from heliograph.policy import OfflineAction, Policy
from heliograph.trust import DUTIES
from heliograph.wire import pack, unpack
from heliograph_site.belief import Belief
from heliograph_site.estimate import Estimate
from heliograph_site.happenings import StandIn
from heliograph_site.journal import Journal
from heliograph_site.memory import Aside, Memory

STANDS_IN: Mapping[OfflineAction, Aside] = {"serve": "", "fall-back": "fallback", "stop": "stopped"}
OFFLINE, STALE, CLOCK = "offline", "stale", "clock-suspect"


def begun_from(journal: Journal) -> dict[str, str]:
    """What has begun and not ended, as last written: `offline MODEL`, `stale MODEL` or `clock-suspect` to why."""
    return dict(unpack(journal.state("vigil") or pack({})).get("begun", {}))


class Vigil:
    """Looks at every model's clock.

    Args:
        policy_of: the policy in force for a model.
        record: keeps for the hub what happened.
        why_suspect: why the wall clock is ignored, if it is.
    """

    def __init__(
        self,
        journal: Journal,
        time: Estimate,
        belief: Belief,
        policy_of: Callable[[str], Policy],
        record: Callable[[Lane, str, dict[str, Any]], None],
        why_suspect: Callable[[], str] = lambda: "",
    ) -> None:
        """Reads the journal: what has begun, and when each directive came."""
        self._journal, self._time, self._belief = journal, time, belief
        self._policy_of, self._record, self._why_suspect = policy_of, record, why_suspect
        self._begun = begun_from(journal)
        self._came: dict[str, list[Any]] = dict(unpack(journal.state("vigil") or pack({})).get("came", {}))

    @property
    def clock(self) -> str:
        """Why the wall clock was ignored when that was last looked at; empty: it may be right."""
        return self._begun.get(CLOCK, "")

    def offline(self, model: str) -> rules.Offline | None:
        """What the model does for want of the hub's word."""
        return rules.offline_action(self._policy_of(model), model, self._time.heard_at, self._time.now())

    def stand_in(self, model: str) -> StandIn:
        """What is to stand in for the model's committed release."""
        offline = self.offline(model)
        if offline is None:
            return StandIn("", "the hub is heard")
        return StandIn(STANDS_IN[offline.action], offline.reason)

    def flag(self, model: str) -> str:
        """What people must know of a model that has been alone for too long; empty if it hasn't."""
        offline = self.offline(model)
        return f"off line for too long: {offline.reason}" if offline is not None else ""

    def stale(self, memory: Memory) -> tuple[str, ...]:
        """How the model is further behind than policy allows, in words."""
        active = self._version(memory)
        trusted = self._belief.trusted
        known = [
            target.version
            for target in trusted.releases(memory.model)
            if len(target.listed_by) == len(DUTIES) and not self._belief.denials.is_denied(target.sha256, ())
        ]
        directed, came_at = self._directed(memory.model)
        return rules.staleness(
            self._policy_of(memory.model),
            memory.model,
            active=active,
            known=known,
            directed=directed,
            directed_at=came_at,
            now=self._time.now(),
        )

    def look(self, memories: Iterable[Memory]) -> bool:
        """Tells what has begun and what has ended since the last look; whether anything has."""
        before = dict(self._begun), dict(self._came)
        self._tell(CLOCK, "", self._why_suspect())
        for memory in memories:
            self._note_directive(memory.model)
            self._tell(OFFLINE, memory.model, self.flag(memory.model))
            self._tell(STALE, memory.model, "; ".join(self.stale(memory)))
        if (self._begun, self._came) == before:
            return False
        self._journal.save_state("vigil", pack({"begun": self._begun, "came": self._came}))
        return True

    def _tell(self, kind: str, model: str, reason: str) -> None:
        key = f"{kind} {model}".rstrip()
        was, about = self._begun.get(key), {"model": model} if model else {}
        if bool(was) == bool(reason):
            return
        if reason:
            self._begun[key] = reason
            self._record("incident", f"{kind}-begun", {**about, "reason": reason[:400]})
        else:
            del self._begun[key]
            self._record("incident", f"{kind}-ended", {**about, "reason": str(was)[:400]})

    def _note_directive(self, model: str) -> None:
        """Remembers when the newest directive of the model came."""
        number = self._belief.directive_number(model)
        now, known = self._time.now(), self._came.get(model, [None, 0])
        # It came later than now: under a time that a stolen key signed.
        if number and self._time.is_signed and (known[0] != number or known[1] > now):
            self._came[model] = [number, now]

    def _directed(self, model: str) -> tuple[str | None, int | None]:
        """The version that the newest directive installs, as far as it is listed, and when it came."""
        target = self._belief.directed(model)
        if target is None or model not in self._came:
            return None, None
        return target, int(self._came[model][1])

    def _version(self, memory: Memory) -> str | None:
        name = self._journal.release_name(memory.active.release) if memory.active is not None else None
        return name.rpartition("@")[2] if name else None

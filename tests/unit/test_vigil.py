"""What time makes of a node: told once when it begins and once when it ends, over restarts; what stands in."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from heliograph.deny import DenySet
from heliograph.policy import OfflineAction, Policy, Staleness
from heliograph_site.happenings import StandIn
from heliograph_site.journal import Journal
from heliograph_site.memory import Memory, Pointer
from heliograph_site.vigil import Vigil, begun_from

MODEL, A = "digits", b"a" * 32
DAY = 86400


@dataclass
class Target:
    version: str
    sha256: bytes = A
    listed_by: tuple[str, ...] = ("sign-digits", "approve-digits")


@dataclass
class Trusted:
    listed: tuple[Target, ...] = (Target("1.0.0"),)

    def releases(self, model: str) -> tuple[Target, ...]:
        return self.listed


@dataclass
class Node:
    """What a vigil looks at."""

    folder: Path
    heard_at: int = 1000
    time: int = 1000
    number: int = 1
    directs: str | None = "1.0.0"
    trusted: Trusted = field(default_factory=Trusted)
    denials: DenySet = field(default_factory=DenySet)
    rules: dict[str, Any] = field(default_factory=dict)
    told: list[tuple[str, str]] = field(default_factory=list)
    is_signed: bool = True
    why_suspect: str = ""

    def now(self) -> int:
        return self.time

    def directive_number(self, model: str) -> int:
        return self.number

    def directed(self, model: str) -> str | None:
        return self.directs

    def policy(self, model: str) -> Policy:
        return Policy(realm="lab", ring="canary", number=3, at=0, **self.rules)

    def record(self, lane: str, kind: str, body: dict[str, Any]) -> None:
        assert lane == "incident"
        self.told.append((kind, body["reason"]))

    def start(self) -> tuple[Vigil, Callable[[], bool]]:
        journal = Journal(self.folder / "journal.sqlite")
        journal.name_release(A, MODEL, "1.0.0")
        around: Any = self
        vigil = Vigil(journal, around, around, self.policy, around.record, lambda: self.why_suspect)
        memory = Memory(MODEL, active=Pointer(A, 1))
        return vigil, lambda: vigil.look([memory])


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize(("action", "aside"), [("serve", ""), ("fall-back", "fallback"), ("stop", "stopped")])
def test_policy_max_offline_s_is_counted_from_the_hubs_last_word(node: Node, action: OfflineAction, aside: str) -> None:
    node.rules = {"max_offline_s": DAY, "at_max_offline": action}
    vigil, look = node.start()
    node.time += DAY
    look()
    assert (vigil.flag(MODEL), vigil.stand_in(MODEL).aside, node.told) == ("", "", [])
    node.time += 1
    reason = "86401 s without the hub's word, policy 3 allows 86400 s"
    assert vigil.stand_in(MODEL) == StandIn(aside, reason)  # type: ignore[arg-type]
    assert look() and not look(), "told once"
    assert node.told == [("offline-begun", f"off line for too long: {reason}")]
    again, look = node.start()
    assert not look() and len(node.told) == 1, "a restart tells nothing twice"
    node.heard_at = node.time
    assert look() and again.stand_in(MODEL).aside == ""
    assert [kind for kind, _ in node.told] == ["offline-begun", "offline-ended"]


def test_policy_staleness_counts_from_when_the_directive_came_and_knows_only_admissible_releases(node: Node) -> None:
    node.rules = {"staleness": Staleness(within_s=DAY, max_minor_behind=1)}
    node.directs, node.trusted = "1.1.0", Trusted((Target("1.0.0"), Target("1.1.0")))
    vigil, look = node.start()
    memory = Memory(MODEL, active=Pointer(A, 1))
    assert look() and vigil.stale(memory) == (), "it has just come"
    node.time += DAY + 1
    _, look = node.start()
    assert look()
    assert node.told == [("stale-begun", "1.1.0 was directed 86401 s ago and does not serve, policy 3 allows 86400 s")]
    node.number, node.directs = 2, "1.0.0"
    assert look() and node.told[-1][0] == "stale-ended"
    node.trusted = Trusted((Target("1.1.0"), Target("1.2.0"), Target("1.3.0", listed_by=("sign-digits",))))
    assert look()
    assert node.told[-1] == ("stale-begun", "1.0.0 is 2 minor versions behind 1.2.0, policy 3 allows 1")
    with Journal(node.folder / "journal.sqlite", read_only=True) as journal:
        assert list(begun_from(journal)) == ["stale digits"], "and `node status` reads it"


def test_a_wall_clock_that_is_wrong_is_told_once_when_that_begins_and_once_when_it_ends(node: Node) -> None:
    vigil, look = node.start()
    look()
    assert node.told == [] and vigil.clock == ""
    for node.why_suspect in ("86400 s behind", "86399 s behind"):
        look()
    assert node.told == [("clock-suspect-begun", "86400 s behind")] and vigil.clock == "86400 s behind"
    with Journal(node.folder / "journal.sqlite", read_only=True) as journal:
        assert begun_from(journal) == {"clock-suspect": "86400 s behind"}
    vigil, look = node.start()
    look()
    assert len(node.told) == 1, "a restart tells nothing twice"
    node.why_suspect = ""
    assert look() and vigil.clock == ""
    assert [kind for kind, _ in node.told] == ["clock-suspect-begun", "clock-suspect-ended"]


def test_before_any_signature_tells_the_time_nothing_is_said_of_when_a_directive_came(node: Node) -> None:
    node.is_signed, node.rules, node.directs = False, {"staleness": Staleness(within_s=DAY)}, "1.1.0"
    node.trusted = Trusted((Target("1.0.0"), Target("1.1.0")))
    _, look = node.start()
    look()
    node.is_signed, node.time, node.heard_at = True, 400 * DAY, 400 * DAY
    look()
    assert node.told == [], "it came under no time at all, so it came now"


def test_when_a_directive_came_is_judged_anew_once_the_time_that_said_so_is_a_thiefs(node: Node) -> None:
    node.rules = {"staleness": Staleness(within_s=DAY)}
    node.directs, node.trusted = "1.1.0", Trusted((Target("1.0.0"), Target("1.1.0")))
    honest, node.time = node.time, node.time + 365 * DAY
    _, look = node.start()
    assert look()
    node.time = honest
    assert look(), "it came now, not next year"
    node.time += DAY + 1
    assert look() and [kind for kind, _ in node.told if kind.startswith("stale")] == ["stale-begun"]

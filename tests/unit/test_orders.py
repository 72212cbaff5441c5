"""Orders: each number once, whatever is killed; refused in words where the fallback rule or policy forbids."""

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from heliograph.deadlines import Deadlines
from heliograph.documents import Assignment, Command
from heliograph.errors import RefusedError
from heliograph.policy import Authority, Policy
from heliograph.wire import pack
from heliograph_site.happenings import Directed, Happening, StandIn
from heliograph_site.journal import Journal
from heliograph_site.machine import classify, step
from heliograph_site.memory import Memory, Pointer, Target
from heliograph_site.orders import Orders
from heliograph_site.surroundings import Pace, Switched
from waits import turns

MODEL, A, B, C = "digits", b"a" * 32, b"b" * 32, b"c" * 32
KEY = b"k" * 32


class Node:
    """A node whose machine takes what orders deliver; nothing is served."""

    def __init__(self, folder: Path, *commands: Command, pins: dict[str, str] | None = None) -> None:
        self.journal = Journal(folder / "journal.sqlite")
        rest = Memory(MODEL, "idle", 5, active=Pointer(B, 9, 2), fallback=Pointer(A, 1, 1, "proven"))
        self.memories = {MODEL: rest}
        self.switched: dict[str, Switched] = {}
        self.authority: Authority = "hybrid"
        self.delivered: list[Happening] = []
        self.outcomes: list[tuple[str, int, str, str]] = []
        self.collected = self.told = 0
        self.assigned = Assignment(
            realm="lab", site="shop", node="till", key=KEY, number=1, ring="canary", commands=commands, pins=pins or {}
        )
        self.assigned_by = (KEY,)
        self.orders = Orders(self, self.deliver, Deadlines(), Pace(poll_s=0.001))

    def may_assign(self, keyids: Collection[bytes]) -> bool:
        return KEY in keyids

    def policy_of(self, model: str) -> Policy:
        return Policy(realm="lab", ring="canary", number=7, at=0, authority=self.authority)

    def record(self, lane: str, kind: str, body: dict[str, Any]) -> None:
        assert (lane, kind) == ("audit", "ordered")
        self.outcomes.append((body["by"], body["number"], body["command"], body["outcome"]))

    def collect(self) -> None:
        self.collected += 1

    async def tell_all(self) -> None:
        self.told += 1

    async def derive(self) -> None:
        pass

    async def deliver(self, model: str, happening: Happening) -> bool:
        self.delivered.append(happening)
        event = classify(self.memories[model], happening)
        if event is None:
            return False
        self.memories[model], _ = step(self.memories[model], event)
        return True

    def obey(self) -> list[tuple[str, int, str, str]]:
        """Runs until every command has its outcome."""

        async def run() -> None:
            task = asyncio.ensure_future(self.orders.run())
            await turns(1000)
            task.cancel()
            await asyncio.wait({task})

        asyncio.run(run())
        return self.outcomes


def ordered(*kinds: str, first: int = 1) -> Iterable[Command]:
    return [Command(number=number, kind=kind, model=MODEL) for number, kind in enumerate(kinds, first)]


def test_every_command_is_carried_out_once_in_the_order_of_their_numbers_over_restarts(tmp_path: Path) -> None:
    commands = tuple(reversed(list(ordered("report", "forget", "rollback", "abort", "dance"))))
    node = Node(tmp_path, *commands)
    assert node.obey() == [
        ("hub", 1, "report", "reported"),
        ("hub", 2, "forget", "dropped what no release here needs"),
        ("hub", 3, "rollback", f"rolled back from {B.hex()[:16]} to {A.hex()[:16]}"),
        ("hub", 4, "abort", "refused: nothing of digits is on its way"),
        ("hub", 5, "dance", "refused: 'dance' is no command that this version knows"),
    ]
    assert (node.orders.done, node.collected) == (5, 1)
    again = Node(tmp_path, *commands, *ordered("report", first=6))
    assert again.obey() == [("hub", 6, "report", "reported")]


def test_a_command_that_a_kill_cut_short_is_told_and_not_repeated(tmp_path: Path) -> None:
    node = Node(tmp_path, *ordered("rollback"))

    async def die(model: str, happening: Happening) -> bool:
        raise KeyboardInterrupt

    node.orders._deliver = die
    with pytest.raises(KeyboardInterrupt):
        node.obey()
    again = Node(tmp_path, *ordered("rollback"))
    [(_, number, kind, outcome)] = again.obey()
    assert (number, kind) == (1, "rollback") and outcome.startswith("interrupted by a restart: give it again")
    assert again.delivered == []


@pytest.mark.parametrize("kind", ["rollback", "drill"])
def test_what_the_fallback_rule_does_not_allow_is_refused_in_words(tmp_path: Path, kind: str) -> None:
    node = Node(tmp_path, *ordered(kind))
    node.memories[MODEL] = Memory(MODEL, "idle", 5, active=Pointer(B, 9, 2))
    assert node.obey()[0][3] == "refused: digits has nothing to fall back to, by the fallback rule"
    assert node.delivered == []


def test_a_drill_whose_fallback_never_serves_fails_and_what_is_committed_is_asked_for_again(tmp_path: Path) -> None:
    node = Node(tmp_path, *ordered("drill"))
    node.journal.save_state("doing", pack(None))

    async def never(model: str, release: bytes, before: object) -> None:
        return None

    node.orders._switched_to = never  # type: ignore[method-assign]
    kinds: list[str] = []
    node.record = lambda lane, kind, body: kinds.append(f"{lane} {kind}")  # type: ignore[method-assign]
    node.obey()
    assert kinds == ["audit drill", "incident drill-failed", "audit ordered"]
    assert node.memories[MODEL].aside == "fallback" and not node.orders.is_drilling(MODEL)


def test_a_site_with_the_authority_for_it_does_a_drill_and_is_told_what_it_took(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.authority = "local"

    async def soon(model: str, release: bytes, before: object) -> Switched:
        return Switched(release, 0.5, 0)

    node.orders._switched_to = soon  # type: ignore[method-assign]
    bodies: list[tuple[str, dict[str, Any]]] = []
    node.record = lambda lane, kind, body: bodies.append((f"{lane} {kind}", body))  # type: ignore[method-assign]
    outcome = asyncio.run(node.orders.by_site("drill", MODEL, "before the season"))
    assert outcome == "back in 0.5 ms, forward in 0.5 ms, 0 requests failed"
    assert [kind for kind, _ in bodies] == ["audit drill", "audit ordered"]
    assert (bodies[0][1]["number"], bodies[0][1]["passed"]) == (0, True), "no command's: the site's own"
    assert node.delivered == [StandIn("fallback", "a drill"), StandIn("", "the drill is over")]


def test_a_drill_is_refused_in_words_where_the_documents_held_leave_the_fallback_out(tmp_path: Path) -> None:
    node = Node(tmp_path, *ordered("drill"))

    async def nothing_follows(model: str, happening: Happening) -> bool:
        return False

    node.orders._deliver = nothing_follows
    assert node.obey()[0][3] == (
        "refused: the fallback of digits fits no policy and config in force: it can't stand in"
    )
    assert not node.orders.is_drilling(MODEL)


@pytest.mark.parametrize(
    ("authority", "action", "says"),
    [
        ("central", "rollback", "rollback by the site is not allowed: authority of digits is central (policy 7)"),
        ("central", "hold", "hold by the site is not allowed: authority of digits is central (policy 7)"),
        ("hybrid", "rollback", ""),
        ("hybrid", "hold", ""),
        ("local", "rollback", ""),
        ("local", "fly", "'fly' is nothing that a site can do: rollback, hold, resume or drill"),
        ("central", "drill", "drill by the site is not allowed: authority of digits is central (policy 7)"),
        ("hybrid", "drill", "drill by the site is not allowed: authority of digits is hybrid (policy 7)"),
    ],
)
def test_policy_authority_says_what_a_site_may_do(tmp_path: Path, authority: Authority, action: str, says: str) -> None:
    node = Node(tmp_path)
    node.authority = authority
    try:
        asyncio.run(node.orders.by_site(action, MODEL, "because"))
    except RefusedError as error:
        assert str(error) == says
        assert node.delivered == [] and node.orders.holds == {}
    else:
        assert says == ""
    [(by, number, command, outcome)] = node.outcomes
    assert (by, number, command) == ("site", 0, action), "told, refused or not"
    assert outcome.startswith("refused: ") is bool(says)


def test_what_a_site_holds_and_pins_begin_nothing_new(tmp_path: Path) -> None:
    node = Node(tmp_path, pins={MODEL: "1.0.0"})
    new = Directed("install", Target(C, 3, f"{MODEL}/1.1.0"))
    pinned = Directed("install", Target(C, 3, f"{MODEL}/1.0.0"))
    assert node.orders.why_restricted(MODEL, pinned) is None
    assert node.orders.why_restricted(MODEL, Directed("return", new.target)) is None, "going back is never held up"
    assert node.orders.why_restricted(MODEL, new) == (
        "pinned to digits@1.0.0 by its assignment, the directive names 1.1.0"
    )
    asyncio.run(node.orders.by_site("hold", MODEL, "stocktaking"))
    again = Node(tmp_path, pins={MODEL: "1.0.0"})
    assert again.orders.why_restricted(MODEL, pinned) == "held by the site: stocktaking", "over restarts too"
    asyncio.run(again.orders.by_site("resume", MODEL, ""))
    assert again.orders.why_restricted(MODEL, pinned) is None
    with pytest.raises(RefusedError, match="digits is not held by the site"):
        asyncio.run(again.orders.by_site("resume", MODEL, ""))


def test_what_a_site_holds_goes_on_once_policy_takes_the_authority_from_it(tmp_path: Path) -> None:
    node = Node(tmp_path)
    new = Directed("install", Target(C, 3, f"{MODEL}/1.1.0"))
    asyncio.run(node.orders.by_site("hold", MODEL, "stocktaking"))
    assert node.orders.why_restricted(MODEL, new) == "held by the site: stocktaking"
    node.authority = "central"
    assert node.orders.why_restricted(MODEL, new) is None, "or nobody could let it go on"
    with pytest.raises(RefusedError, match="hold by the site is not allowed"):
        asyncio.run(node.orders.by_site("resume", MODEL, ""))
    node.authority = "hybrid"
    assert node.orders.why_restricted(MODEL, new) == "held by the site: stocktaking", "the site's wish still stands"


def test_an_assignment_whose_signatures_count_no_more_says_what_the_node_is_and_orders_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path, *ordered("rollback", "report"))
    node.assigned_by = ()
    assert node.obey() == [] and node.delivered == []
    node.assigned_by = (KEY,)
    assert [number for _, number, _, _ in node.obey()] == [1, 2]


@pytest.mark.parametrize("kind", ["rollback", "drill"])
def test_what_has_stepped_aside_already_does_not_do_so_again(tmp_path: Path, kind: str) -> None:
    node = Node(tmp_path, *ordered(kind))
    node.memories[MODEL] = replace(node.memories[MODEL], aside="fallback", reason="off line")
    assert node.obey()[0][3] == "refused: digits has stepped aside already: off line"
    assert node.delivered == []

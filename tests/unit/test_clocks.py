"""Wrong clocks against sets of every age, through a real agent: nothing expired is taken, and nothing stops serving.

True time is the test's own. The hub is honest here; what a stolen key signs stands in test_stolen_keys.py.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from heliograph import trust
from heliograph.documents import Assignment, Heads, Reply
from heliograph.errors import HeliographError, TrustError
from heliograph.policy import Policy
from heliograph.protocol import topic
from heliograph.signing import PrivateKey
from heliograph_hub import ceremony
from heliograph_site.agent import Agent
from heliograph_site.estimate import SAVE_EVERY_S
from heliograph_site.folder import NodeFile
from heliograph_site.identity import keep_in
from heliograph_site.joining import put_in_place
from heliograph_site.journal import JOURNAL_FILE, Held, Journal, Paper
from heliograph_site.memory import Memory, Pointer
from heliograph_site.status import status
from heliograph_site.vigil import CLOCK
from realms import DAY, MODEL, NOW, Realm

KEY = PrivateKey.generate(b"k" * 32)
NAMES: dict[str, Any] = {"realm": "demo", "site": "shop", "node": "till", "key": KEY.keyid}
Y2040 = 2_208_988_800
YEAR = 365 * DAY
SERVED = b"s" * 32

Wall = Callable[[int], float]
CLOCKS: dict[str, Wall | None] = {
    "right": lambda true: true,
    "1970": lambda true: true - NOW,
    "a year behind": lambda true: true - YEAR,
    "a day behind": lambda true: true - DAY,
    "a day ahead": lambda true: true + DAY,
    "2040": lambda true: Y2040 + true - NOW,
    "jumps ahead in mid-flight": lambda true: true + (20 * DAY if true > NOW + 1800 else 0),
    "jumps back in mid-flight": lambda true: true - (20 * DAY if true > NOW + 1800 else 0),
    "none": None,
}
KEEPS_TIME = ("right", "a day behind", "a day ahead", "jumps ahead in mid-flight")
"""Clocks by which a node sees that it was without power for nine days."""


@dataclass
class Node:
    """A node that serves a release and was told to install the next; its policy stops it after 30 days alone."""

    folder: Path
    realm: Realm
    clock: str
    true: float = NOW
    boottime_s: float = 50_000.0
    release: bytes = b""
    agent: Agent = field(init=False)
    directive: Held = field(init=False)

    def __post_init__(self) -> None:
        self.release = self.realm.list_release("1.1.0", b"next")
        first = trust.with_set(self.realm.bootstrap(), self.realm.publish().pack(), NOW)
        assignment = self.realm.sign("assign", "assignment", Assignment(**NAMES, number=1, ring="canary"))
        file = NodeFile(realm="demo", site="shop", node="till", host="127.0.0.1", port=1, root="0" * 64)
        put_in_place(self.folder, file.encode(), keep_in("file", KEY), first, Held("assignment", "", 1, assignment))
        policy = Policy(realm="demo", ring="canary", number=1, at=NOW, at_max_offline="stop")
        signed = self.realm.sign("policy", "policy", policy)
        with Journal(self.folder / JOURNAL_FILE) as journal:
            journal.shelve(Paper("policy", "canary", 1, signed, NOW))
            journal.save(Memory(MODEL, active=Pointer(SERVED, 1, policy=1, verdict="proven"), policy=1))
        self.start()
        self.hear()
        self.direct(expires=self.now() + 900 * DAY)

    def now(self) -> int:
        return int(self.true)

    def start(self) -> None:
        wall = CLOCKS[self.clock]
        reads = None if wall is None else lambda: wall(self.now())
        self.agent = Agent(self.folder, clock=lambda: self.boottime_s, wall=reads)

    def stop(self) -> None:
        self.agent.journal.close()
        self.agent.outbox.close()

    def goes_on(self, seconds: float) -> None:
        self.true += seconds
        self.boottime_s += seconds

    def loses_power(self, seconds: float) -> None:
        self.stop()
        self.true += seconds
        self.boottime_s = 5.0
        self.start()

    def take(self, name: str, payload: bytes, **names: Any) -> None:
        full = topic(name).build("demo", **names)
        asyncio.run(self.agent._hearing.on_document(full, payload))

    def see(self, *names: str, at: int | None = None) -> None:
        """What the hub retains, signed now or then, and whether the node takes it or not."""
        self.realm.now = self.now() if at is None else at
        files = self.realm.publish()
        for name in names or ("set", "head"):
            try:
                self.take(name, files.timestamp if name == "head" else files.pack())
            except HeliographError:
                pass

    def hear(self, after_s: float = 0.0) -> None:
        """Asks the hub, and has its answer so much later."""
        nonce = self.now().to_bytes(16, "big")
        self.agent.hello(nonce)
        self.agent._link.nonce = nonce
        reply = Reply(**NAMES, nonce=nonce, at=self.now(), heads=Heads())
        signed = self.realm.sign("timestamp", "reply", reply)
        self.goes_on(after_s)
        self.take("reply", signed, site="shop", node="till")

    def direct(self, number: int = 1, **changes: Any) -> None:
        directive = self.realm.directive(self.release, number=number, **changes)
        statement = self.realm.sign("ring-canary", "directive", directive)
        self.directive = Held("directive", MODEL, number, statement)

    @property
    def accepts(self) -> bool:
        """Whether it would activate the directed release now."""
        return self.why_not() == ""

    def why_not(self) -> str:
        self.agent._belief._directives = {MODEL: self.directive}  # held only while asked: no machine begins anything
        try:
            return self.agent._belief.why_not_yet(MODEL, self.release) or ""
        finally:
            self.agent._belief._directives = {}

    @property
    def serves(self) -> bool:
        """Whether nothing is to stand in for what it serves."""
        self.agent._vigil.look(self.agent.memories.values())
        return self.agent._stands_in(MODEL).aside == ""


# --- sets of every age ------------------------------------------------------------------------------------------------


def fresh(node: Node) -> str:
    node.goes_on(DAY)
    node.hear()
    node.see()
    return "accepts"


def fresh_without_a_reply(node: Node) -> str:
    """A hub that can't answer, or a broker that swallows its answers: retained sets alone."""
    node.stop()
    node.start()
    node.goes_on(DAY)
    node.see()
    # A clock that is 20 days ahead, and not contradicted, makes it wait for the hub's answer.
    return "waits" if node.clock == "jumps ahead in mid-flight" else "accepts"


def expired(node: Node) -> str:
    """Nine days later comes what was signed a day after the last, and was never shown."""
    node.goes_on(9 * DAY)
    node.see(at=NOW + DAY)
    return "waits"


def expired_after_nine_days_without_power(node: Node) -> str:
    """The documented bound: what no clock measured doesn't count, until the hub answers."""
    node.loses_power(9 * DAY)
    node.see(at=NOW + DAY)
    return "waits" if node.clock in KEEPS_TIME else "accepts"


def expired_after_nine_days_without_power_and_the_hubs_answer(node: Node) -> str:
    node.loses_power(9 * DAY)
    node.see(at=NOW + DAY)
    node.hear()
    return "waits"


def withheld(node: Node) -> str:
    """The set it has was fresh once; no other is let through."""
    node.goes_on(8 * DAY)
    return "waits"


def withheld_while_heads_come(node: Node) -> str:
    """The set is withheld, and what says that there is another isn't."""
    node.loses_power(8 * DAY)
    node.see("head")
    return "waits"


def replayed(node: Node) -> str:
    """After a newer set an older one comes again."""
    older = node.realm.publish().pack()
    node.goes_on(DAY)
    node.see()
    with pytest.raises(TrustError):
        node.take("set", older)
    node.goes_on(6 * DAY + 3600)
    with pytest.raises(TrustError):
        node.take("set", older)
    return "accepts" if node.clock not in ("a day ahead", "jumps ahead in mid-flight") else "either"


def replayed_until_it_expired(node: Node) -> str:
    older = node.realm.publish().pack()
    node.goes_on(DAY)
    node.see()
    node.goes_on(7 * DAY)
    with pytest.raises(TrustError):
        node.take("set", older)
    return "waits"


def root_rotated(node: Node) -> str:
    """Two years later root has expired; it says who is next all the same."""
    for _ in range(26):
        node.goes_on(30 * DAY - 60)
        node.hear()
    node.see()
    assert not node.accepts, "root has expired"
    node.realm.now = node.now()
    node.take("root", node.realm.rotate("timestamp", "snapshot"), number=2)
    node.hear()
    node.see()
    return "accepts"


def root_rotated_while_it_had_no_power(node: Node) -> str:
    node.loses_power(3 * YEAR)
    node.realm.now = node.now()
    node.take("root", node.realm.rotate("timestamp", "snapshot"), number=2)
    node.hear()
    node.see()
    node.direct(2, expires=node.now() + DAY)
    return "accepts"


SETS = (
    fresh,
    fresh_without_a_reply,
    expired,
    expired_after_nine_days_without_power,
    expired_after_nine_days_without_power_and_the_hubs_answer,
    withheld,
    withheld_while_heads_come,
    replayed,
    replayed_until_it_expired,
    root_rotated,
    root_rotated_while_it_had_no_power,
)


@pytest.mark.parametrize("scenario", SETS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("clock", CLOCKS)
def test_no_clock_makes_a_node_take_what_expired_or_stop_serving(
    tmp_path: Path, seed: int, clock: str, scenario: Callable[[Node], str]
) -> None:
    node = Node(tmp_path / "till", Realm(seed), clock)
    expected = scenario(node)
    assert node.serves, "nothing stops by a clock"
    assert node.agent.now() <= node.true, "an honest hub's node is never ahead of time"
    assert expected == "either" or node.accepts is (expected == "accepts"), node.why_not()
    node.goes_on(600)
    node.loses_power(5 * DAY)
    assert node.serves, "nor by one that begins anew"
    assert node.agent.now() <= node.true
    node.stop()


# --- what else the rules say ------------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path, seed: int) -> Node:
    return Node(tmp_path / "till", Realm(seed), "none")


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_wrong_clock_is_reported_once_and_shown(tmp_path: Path, seed: int, clock: str) -> None:
    node = Node(tmp_path / "till", Realm(seed), clock)
    for _ in range(3):
        node.goes_on(3600)
        node.hear()
        assert node.serves
    wrong = clock not in ("right", "none")
    batch = node.agent.outbox.batch("incident", 9999)
    told = [kind for _, kind, _, _ in batch.rows if kind.startswith(CLOCK)] if batch else []
    assert told == [f"{CLOCK}-begun"] * wrong
    assert bool(node.agent._reporter._reported().clock) is wrong
    node.stop()
    assert ("it is ignored" in status(node.folder)["trust"]["clock"]) is wrong


def test_a_reply_that_was_held_back_does_not_make_a_right_clock_look_wrong(tmp_path: Path, seed: int) -> None:
    node = Node(tmp_path / "till", Realm(seed), "right")
    node.loses_power(20 * DAY)
    node.hear(after_s=8 * DAY)  # so that what was signed meanwhile would pass for fresh
    assert node.agent._why_suspect() == ""
    assert node.agent._time.latest(30 * DAY) == node.now()
    node.stop()


def test_not_before_is_judged_by_what_was_signed_however_late_the_wall_clock_says_it_is(
    tmp_path: Path, seed: int
) -> None:
    node = Node(tmp_path / "till", Realm(seed), "a day ahead")
    node.stop()
    node.start()  # nothing contradicts the clock yet
    node.direct(2, not_before=NOW + 3600, expires=NOW + 30 * DAY)
    assert node.agent._time.latest(30 * DAY) > NOW + 3600
    assert "may be installed from" in node.why_not()
    node.goes_on(3601)
    assert node.accepts
    node.stop()


def test_a_head_tells_the_time_and_that_the_hub_was_there(node: Node) -> None:
    node.loses_power(60 * DAY)
    node.see("head")
    assert node.agent.now() == node.now()
    assert node.serves, "it was signed just now"
    node.stop()


def test_an_old_head_and_a_forged_one_tell_no_time(node: Node) -> None:
    before = node.agent.now()
    node.see("head", at=NOW - DAY)
    assert node.agent.now() == before
    node.realm.now = NOW + 5 * DAY
    with pytest.raises(TrustError):
        node.take("head", node.realm.publish(signers={"timestamp": []}).timestamp)
    assert node.agent.now() == before
    node.stop()


def test_after_max_offline_by_what_was_measured_policy_decides_whatever_the_wall_clock_says(
    tmp_path: Path, seed: int
) -> None:
    for clock in CLOCKS:
        node = Node(tmp_path / clock, Realm(seed), clock)
        node.stop()
        node.start()  # with the hub's answer goes what contradicts a clock
        node.goes_on(30 * DAY - 60)
        assert node.serves, clock
        node.goes_on(120)
        assert not node.serves, clock
        node.hear()
        assert node.serves, clock
        node.stop()


def test_the_estimate_is_on_disk_every_ten_minutes_and_a_power_cut_loses_no_more(node: Node) -> None:
    node.agent._time.save()
    saved = node.agent.now()
    node.goes_on(SAVE_EVERY_S - 1)
    node.agent._time.save_if_due()
    with Journal(node.folder / JOURNAL_FILE, read_only=True) as journal:
        assert journal.time_marks()[0].at == saved, "no more writes than needed"
    node.goes_on(1)
    node.agent._time.save_if_due()
    with Journal(node.folder / JOURNAL_FILE, read_only=True) as journal:
        assert journal.time_marks()[0].at == saved + SAVE_EVERY_S
    node.goes_on(SAVE_EVERY_S - 1)
    node.loses_power(DAY)
    assert node.agent.now() == saved + SAVE_EVERY_S, "powered-off time doesn't count"
    node.stop()


def test_an_agent_killed_and_started_again_in_one_boot_loses_no_time(node: Node) -> None:
    node.goes_on(SAVE_EVERY_S - 1)
    before = node.agent.now()
    node.stop()
    node.goes_on(DAY)
    node.start()
    assert node.agent.now() == before + DAY
    node.stop()


def test_the_time_of_a_set_that_is_held_counts_if_what_was_stored_of_the_time_is_lost(node: Node) -> None:
    node.goes_on(DAY)
    node.see()
    with node.agent.journal._db.atomic():
        node.agent.journal._conn.execute("DELETE FROM state WHERE key IN ('time', 'times')")
    node.loses_power(DAY)
    assert node.agent.now() == NOW + DAY
    node.stop()


# --- a hub with a wrong clock -----------------------------------------------------------------------------------------


def test_nodes_survive_a_hub_that_was_two_months_ahead_and_forget_it_after_a_rotation(node: Node) -> None:
    node.true += 60 * DAY  # as the hub sees it
    node.hear()
    node.see()
    assert node.accepts and node.serves, "with nothing to compare it with, this is the time"
    node.true -= 60 * DAY
    node.goes_on(8 * DAY)
    node.hear()
    node.see()
    assert not node.accepts, "what is signed now has expired, by what was signed then"
    assert node.serves, "which stops nothing"
    assert node.agent._belief.denials is not None
    node.realm.now = node.now()
    node.take("root", node.realm.rotate("timestamp", "snapshot"), number=2)
    node.hear()
    node.see()
    assert node.accepts and node.serves
    assert node.agent.now() == node.now()
    node.stop()


def test_a_hub_that_says_2040_moves_no_node_beyond_what_is_signed_offline(node: Node) -> None:
    node.true = Y2040
    node.hear()
    node.see("head")
    assert node.agent.now() == NOW + ceremony.LIFE_S["targets"]
    assert node.serves and not node.accepts
    node.true = NOW + DAY
    node.realm.now = node.now()
    node.take("root", node.realm.rotate("timestamp", "snapshot"), number=2)
    node.hear()
    node.see()
    assert node.agent.now() == node.now() and node.accepts and node.serves
    node.stop()


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_of_wrong_clocks_names_tests_that_exist_and_says_what_does_not_count() -> None:
    root = Path(__file__).parents[2]
    section = (root / "shared" / "THREATS.md").read_text("utf-8").partition("## Wrong clocks")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
    files = [root / "tests" / name for name in re.findall(r"`(\w+/test_\w+\.py)`", section)]
    there = set(re.findall(r"^def (test_\w+)", "\n".join(file.read_text() for file in files), re.MULTILINE))
    assert len(rows) >= 6
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row[-1])
        assert named and set(named) <= there, row[0]
    for place in ("shared/THREATS.md", "shared/FORMATS.md", "shared/ARCHITECTURE.md", "README.md"):
        words = " ".join((root / place).read_text("utf-8").split())
        assert "ithout a real-time clock, powered-off time doesn't count towards the freeze bound" in words, place

"""What each single stolen key can and can't do, and what its rotation leaves of it: rows of shared/THREATS.md."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.realms import DAY, MODEL, NOW, Realm

from heliograph import trust
from heliograph.blob import sha256
from heliograph.deadlines import DEADLINES
from heliograph.deny import DenySet, encode_list, list_digest
from heliograph.documents import Assignment, Command, Denials, Deny, DenyKey, Document, Heads, Offer
from heliograph.errors import HeliographError, IntegrityError, TrustError
from heliograph.policy import Config, Policy
from heliograph.protocol import topic
from heliograph.signing import PrivateKey, sign_statement
from heliograph.trust import DUTIES, state_from_bytes, state_to_bytes, with_set
from heliograph.wire import pack
from heliograph_site.belief import Belief
from heliograph_site.estimate import Estimate
from heliograph_site.happenings import Directed, Happening
from heliograph_site.journal import Journal
from heliograph_site.memory import Memory, Pointer
from heliograph_site.orders import Orders
from heliograph_site.reckoning import BUILT_AT
from heliograph_site.surroundings import Pace
from waits import turns

THREATS = Path(__file__).parents[2] / "shared" / "THREATS.md"
KEY = b"n" * 32
PLACE = {"site": "shop", "node": "till"}
RING = {"ring": "canary"}
EVIL = b"evil"
Y2040 = 2_208_988_800
HUGE = (1 << 63) - 1


class Node:
    """A node of ring canary that was directed to install an approved release; nothing is under way yet."""

    def __init__(self, folder: Path, seed: int = 7) -> None:
        self.realm = Realm(seed)
        self.release = self.realm.list_release("1.0.0", b"good")
        self.journal = Journal(folder / "j")
        self.boottime_s = 1000.0
        trusted = with_set(self.realm.bootstrap(), self.realm.publish().pack(), NOW)
        self.journal.save_trusted(state_to_bytes(trusted))
        self.time = Estimate(self.journal, lambda: self.boottime_s)
        self.open()
        self.see()
        self.assign(1)
        self.direct(1)

    def open(self) -> None:
        """As after a restart of the agent."""
        self.time = Estimate(self.journal, lambda: self.boottime_s)
        self.belief = Belief(self.journal, (self.realm.name, "shop", "till"), KEY, self.time.now)

    def see(self) -> None:
        """What the agent does with the time after each document."""
        self.time.judge(*self.belief.trusted.role_keys("timestamp"))
        self.time.saw(self.belief.trusted.at, self.belief.trusted.told_by)
        self.time.heard(self.belief.trusted.at)
        self.belief.rules.restamp()

    def take(self, name: str, names: dict[str, str], payload: bytes) -> None:
        self.belief.take(topic(name), names, payload)
        self.see()

    def publish(self, *rotated: str, **changes: Any) -> None:
        """A set of the realm's own, after a rotation of these roles by root if there are any."""
        tops = [role for role in rotated if role in ("timestamp", "snapshot", "targets", "root")]
        for role in rotated:
            if role not in tops:
                self.realm.keys[role] = [self.realm.new_key() for _ in self.realm.keys[role]]
        if tops:
            root = self.realm.rotate(*tops)
            self.take("root", {"number": str(len(self.realm.roots))}, root)
        self.take("set", {}, self.realm.publish(**changes).pack())

    def thief(self, role: str) -> PrivateKey:
        return self.realm.keys[role][0]

    def assignment(self, number: int, **changes: Any) -> Assignment:
        fields: dict[str, Any] = {"realm": self.realm.name, **PLACE, "key": KEY, "ring": "canary"}
        return Assignment(**fields | {"number": number} | changes)

    def assign(self, number: int, **changes: Any) -> None:
        self.take("assigned", PLACE, self.realm.sign("assign", "assignment", self.assignment(number, **changes)))

    def direct(self, number: int, **changes: Any) -> None:
        document = self.realm.directive(self.release, number=number, **changes)
        self.take("desired", RING, pack([self.realm.sign("ring-canary", "directive", document)]))

    def policy(self, number: int, *keys: PrivateKey) -> None:
        document = Policy(realm=self.realm.name, ring="canary", number=number, at=self.time.now())
        self.take("policy", RING, signed(document, "policy", *(keys or self.realm.signers("policy"))))

    def config(self, number: int, *keys: PrivateKey) -> None:
        document = Config(realm=self.realm.name, model=MODEL, number=number, at=self.time.now())
        self.take("config", {"model": MODEL}, signed(document, "config", *(keys or self.realm.keys[f"config-{MODEL}"])))

    def wants(self) -> bytes | None:
        """What the machine is told to install."""
        happening, _ = self.belief.wanted(MODEL, Memory(MODEL))
        return happening.target.release if isinstance(happening, Directed) and happening.target.path else None

    def refuses(self, name: str, names: dict[str, str], payload: bytes) -> bool:
        try:
            self.take(name, names, payload)
        except HeliographError:
            return True
        return False

    def activates_nothing_unapproved(self) -> bool:
        """Even if a directive of the ring's own key names the evil bytes."""
        highest = self.belief.directive_number(MODEL)
        for digest in (sha256(EVIL), sha256(b"evil manifest")):
            order = self.realm.directive(digest, number=min(highest + 1, HUGE))
            self.refuses("desired", RING, pack([self.realm.sign("ring-canary", "directive", order)]))
            if self.wants() == digest or self.belief.why_not_yet(MODEL, digest) is None:
                return False
            highest = self.belief.directive_number(MODEL)
        return True


def signed(document: Document, type_: str, *keys: PrivateKey) -> bytes:
    return sign_statement(type_, document.encode(), keys)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    assert made.wants() == made.release, "what every duty vouches for is wanted"
    yield made
    made.journal.close()


# --- what one key can do ----------------------------------------------------------------------------------------------


def test_a_stolen_sign_key_lists_what_nobody_approves(node: Node) -> None:
    node.realm.list_release("6.6.6", EVIL, f"sign-{MODEL}")
    node.publish()  # the hub publishes what is validly signed
    assert node.activates_nothing_unapproved()


def test_a_stolen_sign_key_that_replaces_a_release_only_stops_it(node: Node) -> None:
    node.realm.list_release("1.0.0", EVIL, f"sign-{MODEL}")
    node.publish()
    assert node.activates_nothing_unapproved()
    assert node.wants() is None, "the approved bytes are signed no more: nothing new, until it is put right"


def test_one_stolen_approve_key_approves_nothing(node: Node) -> None:
    node.realm.list_release("6.6.6", EVIL)
    files = node.realm.publish(signers={f"approve-{MODEL}": [node.thief(f"approve-{MODEL}")]})
    assert node.refuses("set", {}, files.pack())
    assert node.activates_nothing_unapproved()


@pytest.mark.parametrize("ring", ["canary", "early", "general"])
def test_a_stolen_ring_key_directs_only_approved_releases_in_its_own_ring(node: Node, ring: str) -> None:
    order = node.realm.directive(sha256(EVIL), number=HUGE, ring=ring)
    refused = node.refuses("desired", RING, pack([signed(order, "directive", node.thief(f"ring-{ring}"))]))
    assert refused == (ring != "canary")
    assert node.wants() == (None if ring == "canary" else node.release)
    assert node.activates_nothing_unapproved()


def test_one_stolen_key_of_ring_protected_directs_and_assigns_nothing(node: Node) -> None:
    key = node.thief("ring-protected")
    assert node.refuses("assigned", PLACE, signed(node.assignment(2), "assignment", key))
    assert node.refuses("assigned", PLACE, signed(node.assignment(2, ring="protected"), "assignment", key))
    order = node.realm.directive(node.release, ring="protected")
    with pytest.raises(TrustError, match="needs 2"):
        node.belief.open(topic("desired"), {"ring": "protected"}, signed(order, "directive", key))
    assert node.activates_nothing_unapproved()


def test_a_stolen_assign_key_moves_nodes_but_not_into_protected(node: Node) -> None:
    key = node.thief("assign")
    assert node.refuses("assigned", PLACE, signed(node.assignment(2, ring="protected"), "assignment", key))
    assert not node.refuses("assigned", PLACE, signed(node.assignment(2, ring="early"), "assignment", key))
    assert node.belief.ring == "early" and node.wants() is None
    assert node.activates_nothing_unapproved()


def test_a_stolen_config_key_configures_its_model_and_nothing_else(node: Node) -> None:
    node.config(HUGE, node.thief(f"config-{MODEL}"))
    other = Config(realm=node.realm.name, model="tones", number=1, at=NOW)
    assert node.refuses("config", {"model": "tones"}, signed(other, "config", node.thief(f"config-{MODEL}")))
    assert node.activates_nothing_unapproved()


def test_a_stolen_policy_key_admits_no_release(node: Node) -> None:
    node.policy(HUGE, node.thief("policy"))
    assert node.belief.numbers().policy == HUGE
    assert node.activates_nothing_unapproved()


def test_a_stolen_timestamp_key_freezes_but_lists_nothing(node: Node) -> None:
    node.realm.list_release("6.6.6", EVIL)
    thief = node.thief("timestamp")
    roles = ("snapshot", "targets", *node.realm.listed)
    for forged in roles:
        files = node.realm.publish(signers={forged: [thief]})
        assert node.refuses("set", {}, files.pack())
    for role in node.realm.listed:
        del node.realm.listed[role][f"{MODEL}/6.6.6"]
    node.realm.heads = Heads(deny=Denials(count=1, digest=b"?" * 32))
    node.publish()  # signed by the thief: names a denial that nobody has
    assert node.belief.why_not_yet(MODEL, node.release) == "the 1 denials that the newest timestamp names"
    assert node.activates_nothing_unapproved()


def test_a_stolen_snapshot_key_needs_the_timestamp_key(node: Node) -> None:
    node.realm.list_release("6.6.6", EVIL, f"sign-{MODEL}")
    files = node.realm.publish(signers={"timestamp": [node.thief("snapshot")]})
    assert node.refuses("set", {}, files.pack())
    genuine = node.realm.publish()
    mixed = trust.pack_set(genuine.timestamp, files.snapshot, genuine.targets, genuine.delegated)
    assert node.refuses("set", {}, mixed)
    assert node.activates_nothing_unapproved()


def test_a_stolen_recipes_key_offers_bytes_that_the_manifest_refuses(node: Node) -> None:
    fields: dict[str, Any] = {"model": MODEL, "release": node.release, "run": b"r" * 8, "n": 1, "expires": NOW + 60}
    offer = Offer(realm=node.realm.name, key=KEY, **fields | PLACE)
    assert node.belief.open(topic("offer"), PLACE, signed(offer, "offer", node.thief("recipes"))) == offer
    target = node.belief.trusted.target(MODEL, node.release)
    assert target is not None
    with pytest.raises(IntegrityError):
        target.open_manifest(b"evil manifest")
    assert node.activates_nothing_unapproved()


def test_a_stolen_deny_key_stops_what_is_new_and_takes_no_last_release(node: Node) -> None:
    denial = Deny(realm=node.realm.name, releases=(node.release,), reason="theft", at=NOW)
    held = DenySet().with_statement(signed(denial, "deny", node.thief("deny")), node.belief.trusted)
    assert held.is_denied(node.release) is not None
    assert not held.is_final(node.release, ()), "a node with nothing else serves on until a second key says so"
    assert node.activates_nothing_unapproved()


def test_one_stolen_deny_key_of_keys_denies_nothing(node: Node) -> None:
    denial = DenyKey(realm=node.realm.name, keys=(node.thief(f"sign-{MODEL}").keyid,), reason="theft", at=NOW)
    with pytest.raises(TrustError, match="needs 2"):
        DenySet().with_statement(signed(denial, "deny-key", node.thief("deny-key")), node.belief.trusted)
    assert node.activates_nothing_unapproved()


def test_one_stolen_root_key_makes_no_root(node: Node) -> None:
    thief = node.thief("root")
    before = dict(node.realm.keys)
    root = node.realm.rotate("root", "targets", "timestamp", signers=[thief])
    assert node.refuses("root", {"number": "2"}, root)
    node.realm.keys = before
    assert node.activates_nothing_unapproved()


def test_one_stolen_targets_key_delegates_nobody(node: Node) -> None:
    node.realm.list_release("6.6.6", EVIL)
    thief = node.thief("targets")
    for duty in DUTIES:
        node.realm.keys[f"{duty}-{MODEL}"] = [thief, *(node.realm.new_key() for _ in range(2))]
    files = node.realm.publish(signers={"targets": [thief]})
    assert node.refuses("set", {}, files.pack())
    assert node.activates_nothing_unapproved()


# --- what is left of it after its rotation ----------------------------------------------------------------------------


def test_a_stolen_timestamp_key_that_signed_the_year_2040_costs_nothing_after_its_rotation(node: Node) -> None:
    stamp = node.realm.publish(edit={"timestamp": lambda signed: signed.unrecognized_fields["custom"].update(at=Y2040)})
    node.take("set", {}, stamp.pack())
    poisoned = node.time.now()
    assert poisoned == NOW + 400 * DAY, "no farther than the expiry of targets"
    assert node.wants() is None and node.refuses("set", {}, node.realm.publish().pack()), "all has expired for it"
    node.policy(1)
    node.boottime_s += 60
    node.publish("timestamp")
    assert node.time.now() == NOW and node.time.heard_at == NOW
    assert node.wants() == node.release and node.belief.why_not_yet(MODEL, node.release) is None
    assert all(paper.came <= NOW for paper in node.journal.papers()), "what came meanwhile came now"
    node.open()
    assert (node.time.now(), node.time.heard_at) == (NOW, NOW), "nor is anything left on the disk"


def test_a_rotation_that_a_power_cut_met_half_way_lets_go_of_the_time_all_the_same(node: Node) -> None:
    node.time.saw(NOW + 300 * DAY, node.belief.trusted.told_by)
    node.time.heard(NOW + 300 * DAY)
    root = node.realm.rotate("timestamp")
    node.belief.take(topic("root"), {"number": "2"}, root)  # on disk; the power goes before the time is judged
    node.open()
    assert node.time.now() == NOW + 300 * DAY
    assert node.time.judge(*node.belief.trusted.role_keys("timestamp"))
    node.open()  # another cut
    assert node.time.now() < NOW and node.time.heard_at <= node.time.now()
    node.take("set", {}, node.realm.publish().pack())
    assert (node.time.now(), node.time.heard_at) == (NOW, NOW)


def test_the_time_falls_to_what_other_keys_signed_where_a_role_has_several(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        seconds = 100.0
        time = Estimate(journal, lambda: seconds)
        time.saw(NOW, [b"a" * 32])
        time.saw(Y2040, [b"b" * 32])
        seconds += 50
        time.save()
        time = Estimate(journal, lambda: seconds)
        assert time.now() == Y2040 + 50
        assert time.judge(1, [b"a" * 32]) and time.now() == NOW + 50
        assert not time.judge(1, [b"a" * 32]), "again changes nothing"
        assert time.judge(2, [b"a" * 32]) and time.now() == BUILT_AT, "a higher threshold lets go as well"


def test_a_time_from_before_signers_were_written_down_is_taken_for_theirs_who_are_heard_first(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        time = Estimate(journal, lambda: 0.0)
        time.saw(NOW)
        assert not time.judge(1, []) and time.now() == NOW
        time.saw(NOW - 5, [b"a" * 32])
        assert time.now() == NOW, "it doesn't fall"
        assert time.judge(1, [b"b" * 32]) and time.now() == BUILT_AT


def test_a_stolen_timestamp_key_that_named_huge_numbers_holds_nothing_back_after_its_rotation(node: Node) -> None:
    node.realm.heads = Heads(policy={"canary": HUGE}, config={MODEL: HUGE}, deny=Denials(count=9, digest=b"?" * 32))
    node.publish()
    node.policy(1)
    assert node.belief.numbers().policy == 0, "below what the timestamp names: not taken"
    node.realm.heads = Heads()
    node.publish("timestamp")
    node.policy(1)
    node.config(1)
    assert (node.belief.numbers().policy, node.belief.numbers().config) == (1, {MODEL: 1})
    assert node.wants() == node.release and node.belief.why_not_yet(MODEL, node.release) is None


def test_a_stolen_ring_key_that_signed_the_highest_number_is_overruled_after_its_rotation(node: Node) -> None:
    hold = node.realm.directive(node.release, number=HUGE, action="hold")
    node.take("desired", RING, pack([signed(hold, "directive", node.thief("ring-canary"))]))
    assert node.belief.numbers().directives == {MODEL: HUGE}
    node.direct(2)
    assert node.belief.directive_number(MODEL) == HUGE, "until then it stands"
    node.publish("ring-canary")
    assert node.belief.numbers().directives == {}, "the hub is told that none is held, and sends its own"
    node.direct(1)
    assert node.belief.numbers().directives == {MODEL: 1} and node.wants() == node.release
    node.open()
    assert node.wants() == node.release


def test_attack_a_stolen_ring_key_that_signs_times_of_no_calendar_stops_no_node(node: Node) -> None:
    last = (1 << 40) - 1
    never = node.realm.directive(node.release, number=9, not_before=last, expires=last)
    node.take("desired", RING, pack([signed(never, "directive", node.thief("ring-canary"))]))
    assert node.wants() is None and "may be installed from second" in node.belief.why_not_yet(MODEL, node.release)
    node.open()
    assert node.wants() is None, "nor when it starts again"


@pytest.mark.parametrize("kind", ["policy", "config"])
def test_a_stolen_key_that_used_up_a_documents_numbers_is_overruled_after_its_rotation(node: Node, kind: str) -> None:
    role = "policy" if kind == "policy" else f"config-{MODEL}"
    give = node.policy if kind == "policy" else node.config

    def held() -> int:
        numbers = node.belief.numbers()
        return numbers.policy if kind == "policy" else numbers.config.get(MODEL, 0)

    give(HUGE, node.thief(role))
    give(3)
    assert held() == HUGE
    if kind == "policy":  # and it is in force
        node.journal.save(Memory(MODEL, active=Pointer(node.release, NOW, policy=HUGE), policy=HUGE))
    node.boottime_s += 10
    node.publish(role)
    assert held() == 0
    for number in (4, 5):
        node.boottime_s += 10
        give(number)
        assert held() == number
    numbers = {paper.number for paper in node.journal.papers()}
    assert {4, 5} <= numbers, "an honest one isn't dropped for being below the thief's"
    node.open()
    assert held() == 5


def test_a_stolen_assign_key_that_used_up_the_numbers_is_overruled_after_its_rotation(node: Node) -> None:
    node.take("assigned", PLACE, signed(node.assignment(HUGE, ring="early"), "assignment", node.thief("assign")))
    assert node.refuses("assigned", PLACE, b"") and node.belief.ring == "early"
    node.publish("assign")
    assert node.belief.numbers().assignment == 0 and node.belief.ring == "early", "what it is stays, until it is told"
    node.assign(2)
    assert (node.belief.numbers().assignment, node.belief.ring) == (2, "canary")


class Site:
    """As much of an agent as orders need."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.journal = node.journal
        self.memories: Mapping[str, Memory] = {}
        self.switched: Mapping[str, Any] = {}
        self.told = asyncio.Event()
        self.recorded: list[dict[str, Any]] = []

    @property
    def assigned(self) -> Assignment | None:
        return self._node.belief.assignment

    @property
    def assigned_by(self) -> tuple[bytes, ...]:
        return self._node.belief.assigned_by

    def may_assign(self, keyids: Any) -> bool:
        return self._node.belief.may_assign(keyids)

    def policy_of(self, model: str) -> Policy:
        raise AssertionError("nothing here asks")

    def record(self, lane: Any, kind: str, body: dict[str, Any]) -> None:
        self.recorded.append(body)

    def collect(self) -> None:
        return None

    async def tell_all(self) -> None:
        self.told.set()

    async def derive(self) -> None:
        return None


def test_a_stolen_assign_key_that_used_up_the_numbers_of_commands_is_overruled_after_its_rotation(node: Node) -> None:
    asyncio.run(_orders_are_overruled(node))


async def _orders_are_overruled(node: Node) -> None:
    def command(number: int) -> dict[str, Any]:
        return {"commands": (Command(number=number, kind="forget"),)}

    async def deliver(model: str, happening: Happening) -> bool:
        raise AssertionError("nothing here reaches a machine")

    site = Site(node)
    orders = Orders(site, deliver, DEADLINES, Pace())
    async with asyncio.TaskGroup() as group:
        running = group.create_task(orders.run())

        async def carried_out() -> None:
            orders.look()
            await asyncio.wait_for(site.told.wait(), 5)
            site.told.clear()

        stolen = node.assignment(2, **command(HUGE))
        node.take("assigned", PLACE, signed(stolen, "assignment", node.thief("assign")))
        await carried_out()
        assert orders.done == HUGE
        node.publish("assign")
        orders.look()
        await turns(10)  # the thief's is still what the node is
        assert orders.done == 0
        node.assign(3, **command(7))
        await carried_out()
        assert orders.done == 7
        assert [body["number"] for body in site.recorded] == [HUGE, 7], "and the thief's isn't carried out again"
        running.cancel()
    assert Orders(site, deliver, DEADLINES, Pace()).done == 7


def test_a_stolen_deny_key_goes_on_denying_nothing_after_its_rotation(node: Node) -> None:
    stolen = node.thief("deny")
    node.publish("deny")
    denial = Deny(realm=node.realm.name, releases=(node.release,), reason="theft", at=NOW)
    with pytest.raises(TrustError, match="signed by 0 keys"):
        DenySet().with_statement(signed(denial, "deny", stolen), node.belief.trusted)
    payload, _ = encode_list([signed(denial, "deny", stolen)])
    node.take("deny", {}, payload)
    assert node.belief.denials.count == 0 and node.belief.why_not_yet(MODEL, node.release) is None


def test_denials_signed_again_after_a_rotation_are_taken_by_who_never_saw_them(node: Node) -> None:
    denial = Deny(realm=node.realm.name, releases=(node.release,), reason="wrong", at=NOW)
    old = node.realm.sign("deny", "deny", denial)
    held = DenySet().with_statement(old, node.belief.trusted)
    node.publish("deny")
    assert held.with_trusted(node.belief.trusted).is_denied(node.release), "once in force, always in force"
    again = node.realm.sign("deny", "deny", denial)
    node.realm.heads = Heads(deny=Denials(count=1, digest=list_digest([sha256(denial.encode())])))
    node.publish()
    assert node.belief.why_unsure() is not None
    fresh = DenySet().with_list(encode_list([again])[0], node.belief.trusted, node.realm.heads.deny)
    assert fresh.is_denied(node.release) and fresh.holds_all(node.realm.heads.deny)
    unsigned = DenySet().with_list(encode_list([old])[0], node.belief.trusted, node.realm.heads.deny)
    assert unsigned.is_denied(node.release) is None and unsigned.forbids(node.release), "kept since the list has it"
    assert DenySet().with_list(encode_list([old])[0], node.belief.trusted, Denials()).denials == {}, "else not"


def test_stolen_keys_of_a_duty_count_no_more_for_what_is_new_after_their_rotation(node: Node) -> None:
    stolen = {duty: list(node.realm.keys[f"{duty}-{MODEL}"]) for duty in DUTIES}
    node.publish(*(f"{duty}-{MODEL}" for duty in DUTIES))
    assert node.wants() == node.release, "what is approved stays approved: its files are signed by the new keys"
    node.realm.list_release("6.6.6", EVIL)
    files = node.realm.publish(signers={f"{duty}-{MODEL}": keys for duty, keys in stolen.items()})
    assert node.refuses("set", {}, files.pack())


def test_ten_missed_rotations_of_every_top_role_are_walked_one_by_one(node: Node) -> None:
    roots = [node.realm.rotate("root", "targets", "snapshot", "timestamp") for _ in range(10)]
    state = node.journal.trusted()
    assert state is not None and state_from_bytes(state).versions["root"] == 1
    assert node.refuses("root", {"number": "11"}, roots[-1]), "none is left out"
    for number, root in enumerate(roots, start=2):
        node.take("root", {"number": str(number)}, root)
    node.publish()
    assert node.belief.trusted.versions["root"] == 11 and node.wants() == node.release


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_of_stolen_keys_names_a_test_for_each_role_that_has_keys() -> None:
    text = THREATS.read_text("utf-8")
    section = text.partition("## Stolen keys")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
    named = [re.findall(r"`(\w+)`", row[-1]) for row in rows]
    assert all(named), "each row names its test"
    ours = {name for name in globals() if name.startswith("test_")} - {
        "test_the_table_of_stolen_keys_names_a_test_for_each_role_that_has_keys"
    }
    told = {name for names in named for name in names}
    assert ours <= told, "and each test here stands in the table"
    others = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert all(f"\ndef {name}(" in others for name in told - ours), "what it names besides is there"
    roles = {role for row in rows for role in re.findall(r"`([a-z-]+(?:<[a-z]+>)?)`", row[0])}
    held = {role.replace(MODEL, "<model>") for role in Realm(1).keys}
    assert roles == held

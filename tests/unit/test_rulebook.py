"""Policies and configs as a node holds them: which count, which are held back or declined, and what machines hear."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.realms import MODEL, NOW, Realm

from golden import MANIFEST
from heliograph.documents import Assignment, Heads, Numbers
from heliograph.errors import TrustError
from heliograph.manifest import Compatible, Manifest, Span
from heliograph.names import Ring
from heliograph.policy import Config, Policy
from heliograph.protocol import topic
from heliograph.signing import sign_statement
from heliograph.trust import state_to_bytes, with_set
from heliograph.wire import pack, unpack
from heliograph_site.belief import Belief
from heliograph_site.happenings import Matched, Passed
from heliograph_site.journal import Journal
from heliograph_site.memory import Memory, Pointer, Target
from heliograph_site.rulebook import MAX_PAPERS

KEY = b"n" * 32
OLD, NEW = b"o" * 32, b"e" * 32


class Node:
    """A node in ring canary, on which OLD serves, and which may come to run NEW."""

    def __init__(self, folder: Path) -> None:
        self.realm, self.now = Realm(7), NOW
        self.folder = folder
        self.manifests = {OLD: _manifest("1.0.0"), NEW: _manifest("1.1.0")}
        self.journal = Journal(folder / "j")
        trusted = with_set(self.realm.bootstrap(), self.realm.publish().pack(), NOW)
        self.journal.save_trusted(state_to_bytes(trusted))
        self.memory = Memory(MODEL, active=Pointer(OLD, NOW, 1, "proven"))
        self.journal.save(self.memory)
        self.belief = self.start()
        self.assign("canary", 1)

    def start(self) -> Belief:
        names = (self.realm.name, "shop", "till")
        self.belief = Belief(self.journal, names, KEY, lambda: self.now, manifests=self.manifests.get)
        return self.belief

    def assign(self, ring: Ring, number: int) -> None:
        document = Assignment(realm=self.realm.name, site="shop", node="till", key=KEY, number=number, ring=ring)
        payload = self.realm.sign("assign", "assignment", document)
        self.belief.take(topic("assigned"), {"site": "shop", "node": "till"}, payload)

    def policy(self, number: int, ring: Ring = "canary", **fields: Any) -> bytes:
        document = Policy(realm=self.realm.name, ring=ring, number=number, at=NOW, **fields)
        return self.realm.sign("policy", "policy", document)

    def config(self, number: int, **fields: Any) -> bytes:
        document = Config(realm=self.realm.name, model=MODEL, number=number, at=NOW, **fields)
        return self.realm.sign(f"config-{MODEL}", "config", document)

    def hear(self, *payloads: bytes, ring: Ring = "canary", is_answer: bool = False) -> list[bool]:
        """Whether each was news."""
        news = []
        for payload in payloads:
            kind = unpack(payload)[1]
            names: dict[str, str] = {"ring": ring} if kind == "policy" else {"model": MODEL}
            news.append(self.belief.take(topic(kind), names, payload, is_answer=is_answer).models)
        return news

    def heads(self, policy: int = 0, config: int = 0) -> None:
        """The newest timestamp names these numbers."""
        self.realm.heads = Heads(policy={"canary": policy} if policy else {}, config={MODEL: config} if config else {})
        self.republish()

    def republish(self) -> bool:
        return self.belief.take(topic("set"), {}, self.realm.publish().pack()).hello

    def match(self) -> Matched:
        found = self.belief.rules.match(self.memory)
        assert found is not None
        return found

    def follow(self) -> Matched:
        """Takes over what is matched, as its machine would."""
        found = self.match()
        assert self.memory.active is not None and found.release == self.memory.active.release
        active = replace(self.memory.active, config=found.config, policy=found.policy)
        self.memory = replace(self.memory, active=active, policy=found.policy, ring=found.ring)
        self.journal.save(self.memory)
        self.belief.rules.leave_ring()
        return found

    def in_early(self, number: int, **fields: Any) -> None:
        """Canary's policy 7 is in force; the node moves to early, of which this is the newest, and held."""
        self.hear(self.policy(7, max_offline_s=7))
        self.follow()
        self.realm.heads = Heads(policy={"canary": 7, "early": number})
        self.republish()
        self.assign("early", 2)
        self.hear(self.policy(number, "early", hold_max_s=600, models={MODEL: {"floor": "2.0.0"}}), ring="early")

    @property
    def numbers(self) -> tuple[int, int]:
        held = self.belief.numbers()
        return held.policy, held.config.get(MODEL, 0)


def _manifest(version: str, config: Span | None = None, policy: Span | None = None) -> Manifest:
    spans = Compatible(config=config or Span(), policy=policy or Span())
    return MANIFEST.model_copy(update={"model": MODEL, "version": version, "compatible": spans, "fail_mode": "safe"})


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_the_newest_of_each_is_in_force_where_it_fits_and_held_over_a_restart(node: Node) -> None:
    assert node.hear(node.policy(1), node.policy(2), node.config(4)) == [True, True, True]
    assert (node.match().policy, node.match().config) == (2, 4)
    assert node.numbers == (2, 4)
    node.start()
    assert (node.match().policy, node.match().config) == (2, 4)
    assert node.hear(node.policy(2), node.policy(1), node.config(3)) == [False] * 3, "nothing older, nothing twice"


def test_what_is_not_for_this_ring_model_or_realm_is_refused_before_it_is_kept(node: Node) -> None:
    with pytest.raises(TrustError, match="for ring early, not for ring canary"):
        node.hear(node.policy(1, "early"))
    unsigned = node.realm.sign("deny", "policy", Policy(realm=node.realm.name, ring="canary", number=1, at=NOW))
    with pytest.raises(TrustError, match="'policy' is signed by 0 keys"):
        node.hear(unsigned)
    foreign = Policy(realm="other", ring="canary", number=1, at=NOW)
    with pytest.raises(TrustError, match="for realm other"):
        node.hear(node.realm.sign("policy", "policy", foreign))
    assert node.hear(node.policy(9, "early"), ring="early") == [False], "retained for another ring"
    assert node.numbers == (0, 0) and node.journal.papers() == ()


def test_a_document_that_this_agent_can_not_obey_is_held_declined_and_not_in_force(node: Node) -> None:
    node.hear(node.policy(1))
    plain = Policy(realm=node.realm.name, ring="canary", number=2, at=NOW).model_dump(mode="python")
    newer = pack({**plain, "crit": ["thrift"], "thrift": 3})
    node.hear(sign_statement("policy", newer, node.realm.signers("policy")))
    node.hear(node.config(5, min_agent="999.0"))
    assert node.numbers == (2, 5), "held, so that it isn't sent again and again"
    assert (node.match().policy, node.match().config) == (1, 0)
    told = {(declined.document, declined.number): declined.reason for declined in node.belief.rules.declined()}
    assert "thrift" in told["policy", 2] and "agent 999.0" in told[f"config/{MODEL}", 5]


def test_a_policy_that_nothing_fits_is_held_back_for_its_time_and_then_forced(node: Node) -> None:
    node.manifests[OLD] = _manifest("1.0.0", policy=Span(max=2))
    node.start()
    node.hear(node.policy(2), node.policy(3, hold_max_s=600, fail_mode="closed"))
    assert node.follow().policy == 2
    held = [found for found in node.belief.rules.candidates([node.memory]) if found.document == "policy"]
    assert [(found.number, found.until) for found in held] == [(3, NOW + 600)]
    assert "policy" in held[0].reason and "2 or older" in held[0].reason
    node.now += 599
    assert (node.match().policy, node.match().fit) == (2, "fits")
    node.now += 1
    forced = node.match()
    assert (forced.policy, forced.fit, forced.fail_mode) == (3, "stopped", "closed")


def test_nothing_below_what_the_newest_timestamp_names_is_taken_unless_it_was_asked_for(node: Node) -> None:
    node.heads(policy=5)
    assert node.hear(node.policy(4)) == [False]
    assert node.hear(node.policy(5)) == [True]
    node.belief.rules.asked(Numbers(policy=3))
    assert node.hear(node.policy(4)) == [False]
    assert node.hear(node.policy(3)) == [True]


def test_the_node_says_hello_when_the_timestamp_names_more_than_it_has(node: Node) -> None:
    node.hear(node.policy(1))
    node.realm.heads = Heads(policy={"canary": 1}, config={MODEL: 1})
    assert node.republish()
    node.hear(node.config(1))
    assert not node.republish()


def test_an_older_config_that_would_fit_what_comes_is_asked_for(node: Node) -> None:
    node.manifests[NEW] = _manifest("1.1.0", config=Span(min=2, max=4))
    node.start()
    node.hear(node.config(7))
    coming = replace(node.memory, phase="checking", target=Target(NEW, 2))
    lacks = node.belief.rules.lacks([coming])
    assert lacks.config == {MODEL: 4}
    why = node.belief.rules.why_unfit(coming)
    assert why is not None and "4 or older" in why
    node.belief.rules.asked(lacks)
    node.hear(node.config(3), is_answer=True)
    assert node.belief.rules.why_unfit(coming) is None
    assert node.belief.rules.lacks([coming]) == Numbers(), "3 is the newest up to 4"


def test_an_older_document_that_a_broker_repeats_does_not_pass_for_the_answer_that_was_asked_for(node: Node) -> None:
    node.manifests[NEW] = _manifest("1.1.0", config=Span(min=2, max=4))
    node.start()
    node.hear(node.config(7))
    coming = replace(node.memory, phase="checking", target=Target(NEW, 2))
    node.belief.rules.asked(node.belief.rules.lacks([coming]))
    node.hear(node.config(2))
    assert node.belief.rules.lacks([coming]).config == {MODEL: 4}, "whether 3 or 4 was published, nobody has said"
    node.hear(node.config(2), is_answer=True)
    assert node.belief.rules.lacks([coming]) == Numbers()


def test_what_passed_is_activated_with_the_newest_that_fits_it_or_waits_in_words(node: Node) -> None:
    node.manifests[NEW] = _manifest("1.1.0", config=Span(max=4), policy=Span(min=2))
    node.start()
    node.hear(node.config(4), node.config(5), node.policy(1))
    node.follow()
    passed = Passed(5, NOW, "safe")
    coming = replace(node.memory, phase="activating", target=Target(NEW, 2))
    waits = node.belief.rules.heard(coming, passed).waits_for
    assert "policy is 1" in waits and "2 or newer" in waits
    node.hear(node.policy(2))
    node.follow()
    coming = replace(node.memory, phase="activating", target=Target(NEW, 2))
    heard = node.belief.rules.heard(coming, passed)
    assert (heard.waits_for, heard.config, heard.policy) == ("", 4, 2)


def test_a_floor_keeps_a_release_from_being_activated_and_from_serving_unflagged(node: Node) -> None:
    node.hear(node.policy(1, hold_max_s=0, models={MODEL: {"floor": "1.0.5"}}))
    found = node.match()
    assert (found.fit, found.policy) == ("flagged", 1)
    assert "floor" in found.reason and "1.0.5" in found.reason
    coming = replace(node.memory, phase="checking", target=Target(NEW, 2))
    assert node.belief.rules.why_unfit(coming) is None
    node.manifests[NEW] = _manifest("1.0.4")
    node.start()
    assert "1.0.5" in str(node.belief.rules.why_unfit(coming))


def test_when_signatures_count_no_more_the_number_falls_and_the_content_stays_until_another_comes(node: Node) -> None:
    node.hear(node.policy(1), node.config(1))
    stolen = 10**15
    node.hear(node.policy(stolen, max_offline_s=7), node.config(stolen, flags={"on": True}))
    node.follow()
    node.realm.keys["policy"] = [node.realm.new_key()]
    node.realm.keys[f"config-{MODEL}"] = [node.realm.new_key()]
    node.republish()
    assert node.numbers == (0, 0), "nothing held verifies"
    assert (node.match().policy, node.match().config) == (stolen, stolen), "its content stays in force"
    assert node.belief.rules.policy(stolen).max_offline_s == 7
    node.now += 1
    assert node.hear(node.policy(6), node.config(8)) == [True, True], "a lower number does"
    assert (node.follow().policy, node.match().config) == (6, 8)
    assert node.numbers == (6, 8)


def test_in_another_ring_its_own_policy_counts_and_until_it_is_here_nothing_changes(node: Node) -> None:
    node.hear(node.policy(7, max_offline_s=7))
    node.follow()
    node.realm.heads = Heads(policy={"canary": 7, "early": 2})
    node.republish()
    node.assign("early", 2)
    assert (node.match().policy, node.match().fit) == (7, "fits"), "what it came with stays in force"
    assert node.belief.rules.policy(7).max_offline_s == 7
    coming = replace(node.memory, phase="activating", target=Target(NEW, 2))
    assert node.belief.rules.heard(coming, Passed(5, NOW)).waits_for == "the policy of ring early"
    node.hear(node.policy(2, "early"), ring="early")
    assert node.follow().policy == 2
    assert {paper.scope for paper in node.journal.papers()} == {"early"}


def test_in_another_ring_whose_policy_needs_a_newer_agent_the_former_rings_stays_in_force(node: Node) -> None:
    node.hear(node.policy(7, models={MODEL: {"floor": "1.0.0"}}))
    node.follow()
    node.realm.heads = Heads(policy={"canary": 7, "early": 2})
    node.republish()
    node.assign("early", 2)
    node.hear(node.policy(2, "early", min_agent="99"), ring="early")
    for _ in range(2):
        assert (node.match().policy, node.match().fit) == (7, "fits"), "not number 0, which has no floor"
        [declined] = node.belief.rules.declined()
        assert (declined.document, declined.number) == ("policy", 2)
        coming = replace(node.memory, phase="activating", target=Target(NEW, 2))
        assert node.belief.rules.heard(coming, Passed(5, NOW)).waits_for == "the policy of ring early"
        node.start()
    assert node.numbers[0] == 2, "the hub need not send it again"
    node.hear(node.policy(3, "early"), ring="early")
    assert node.follow().policy == 3
    assert {paper.scope for paper in node.journal.papers()} == {"early"}


def test_a_new_rings_policy_that_nothing_fits_is_held_back_under_the_former_rings(node: Node) -> None:
    node.in_early(3)
    for _ in range(2):
        found = node.follow()
        assert (found.policy, found.ring, found.fit) == (7, "canary", "fits"), "not number 0, which has no floor"
        assert node.belief.rules.node_policy([node.memory]).max_offline_s == 7
        [held] = node.belief.rules.candidates([node.memory])
        assert (held.document, held.number, held.until) == ("policy", 3, NOW + 600)
        coming = replace(node.memory, phase="activating", target=Target(NEW, 2))
        assert node.belief.rules.heard(coming, Passed(5, NOW)).waits_for == "the policy of ring early"
        assert node.belief.rules.why_unfit(coming) == "the policy of ring early"
        node.start()
    node.now += 600
    forced = node.follow()
    assert (forced.policy, forced.ring, forced.fit) == (3, "early", "flagged"), "its time has come"
    assert {paper.scope for paper in node.journal.papers()} == {"early"}


def test_a_release_that_fits_a_new_rings_policy_is_activated_with_it_before_its_time(node: Node) -> None:
    node.manifests[NEW] = _manifest("2.0.0")
    node.in_early(3)
    node.start()
    coming = replace(node.memory, phase="activating", target=Target(NEW, 2))
    assert node.belief.rules.why_unfit(coming) is None
    heard = node.belief.rules.heard(coming, Passed(5, NOW))
    assert (heard.waits_for, heard.policy, heard.ring) == ("", 3, "early")
    node.memory = Memory(MODEL, "proving", active=Pointer(NEW, NOW, 2, policy=3), policy=3, ring="early")
    node.journal.save(node.memory)
    node.belief.rules.leave_ring()
    assert (node.match().policy, node.match().ring) == (3, "early")
    assert {paper.scope for paper in node.journal.papers()} == {"early"}


def test_back_in_a_ring_before_the_other_rings_policy_was_in_force_nothing_has_changed(node: Node) -> None:
    node.in_early(3)
    node.follow()
    node.assign("canary", 3)
    assert (node.follow().policy, node.match().ring) == (7, "canary")
    assert {paper.scope for paper in node.journal.papers()} == {"canary"}
    assert node.numbers[0] == 7, "the hub need not send it again"


@pytest.mark.parametrize("ring", ["canary", ""])
def test_a_new_rings_policy_of_the_same_number_is_held_back_where_it_is_known_whose_is_in_force(
    node: Node, ring: str
) -> None:
    node.in_early(7)
    node.memory = replace(node.memory, ring=ring)
    found = node.match()
    if ring:
        assert (found.policy, found.ring, found.fit) == (7, "canary", "fits")
    else:  # as an agent wrote it that didn't say
        assert (found.policy, found.ring, found.fit) == (7, "early", "flagged")


def test_in_a_ring_without_a_policy_number_0_is_in_force_at_once(node: Node) -> None:
    node.hear(node.policy(7))
    node.follow()
    node.assign("early", 2)
    assert (node.follow().policy, node.match().ring) == (0, "")
    assert node.journal.papers() == ()


def test_in_a_first_ring_whose_policy_needs_a_newer_agent_number_0_is_in_force(node: Node) -> None:
    node.heads(policy=2)
    node.hear(node.policy(2, min_agent="99"))
    assert (node.match().policy, node.match().fit) == (0, "fits")


def test_so_many_are_held_and_never_without_what_a_machine_needs(node: Node) -> None:
    node.hear(node.config(1))
    node.follow()
    node.memory = replace(node.memory, fallback=Pointer(NEW, 1, config=1))
    node.journal.save(node.memory)
    node.hear(*(node.config(number) for number in range(2, 3 * MAX_PAPERS)))
    held = {paper.number for paper in node.journal.papers()}
    assert 1 in held and 3 * MAX_PAPERS - 1 in held
    assert len(held) <= MAX_PAPERS + 3
    assert node.belief.rules.config(MODEL, 1).number == 1


def test_what_counts_for_the_node_is_the_newest_in_force_or_with_nothing_active_the_newest_held(node: Node) -> None:
    node.hear(node.policy(1), node.policy(2))
    assert node.belief.rules.node_policy_number([Memory(MODEL)]) == 2
    node.manifests[OLD] = _manifest("1.0.0", policy=Span(max=1))
    node.start()
    node.follow()
    assert node.belief.rules.node_policy_number([node.memory]) == 1, "2 is held back"


def test_what_follows_a_policy_that_counts_no_more_is_in_force_at_once_whatever_fits_it(node: Node) -> None:
    node.hear(node.policy(9))
    node.follow()
    node.realm.keys["policy"] = [node.realm.new_key()]
    node.republish()
    node.now += 1
    node.hear(node.policy(3, hold_max_s=3600, models={MODEL: {"floor": "2.0.0"}}))
    assert (node.match().policy, node.match().fit) == (3, "flagged"), "what it would be held back for is nobody's"


def test_no_config_is_passed_over_for_a_number_that_was_a_thiefs(node: Node) -> None:
    active = Pointer(OLD, NOW, 1, "proven", config=1, passed_over=10**15)
    node.memory = Memory(MODEL, active=active)
    node.journal.save(node.memory)
    node.hear(node.config(1), node.config(3))
    assert node.match().config == 3


def test_until_a_new_rings_policy_is_here_no_older_one_is_asked_for(node: Node) -> None:
    node.manifests[OLD] = _manifest("1.0.0", policy=Span(min=2, max=4))
    node.start()
    node.hear(node.policy(7))
    assert node.belief.rules.lacks([node.memory]).policy == 6
    node.realm.heads = Heads(policy={"canary": 7, "early": 2})
    node.republish()
    node.assign("early", 2)
    assert node.belief.rules.lacks([node.memory]) == Numbers(), "6 would be of another ring"


def test_what_came_under_a_thiefs_time_came_now_in_the_same_order_and_is_held_back_from_now_on(node: Node) -> None:
    node.manifests[OLD] = _manifest("1.0.0", policy=Span(max=1))
    node.start()
    honest, node.now = node.now, node.now + 10**8
    node.hear(node.policy(1))
    node.follow()
    node.hear(node.policy(2))
    node.now += 5
    node.hear(node.policy(3))
    node.now = honest
    node.belief.rules.restamp()
    came = {paper.number: paper.came for paper in node.journal.papers()}
    assert came == {1: honest - 2, 2: honest - 1, 3: honest}
    assert node.match().policy == 1
    node.now += 3600
    assert node.match().policy == 3, "not in three years"

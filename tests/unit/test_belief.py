"""What a node believes of denials: nothing new while one that is named is missing, and nothing that one names."""

from pathlib import Path

import pytest
from tests.realms import MODEL, NOW, Realm

from golden import MANIFEST
from heliograph.blob import sha256
from heliograph.deny import DenySet, encode_list, list_digest
from heliograph.documents import Assignment, Denials, Deny, DenyKey, Heads
from heliograph.errors import TrustError
from heliograph.manifest import Compatible, Span
from heliograph.names import Ring
from heliograph.protocol import topic
from heliograph.signing import sign_statement
from heliograph.statement import Statement, encode, parse
from heliograph.trust import state_to_bytes, with_set
from heliograph.wire import pack
from heliograph_site.belief import Belief, News
from heliograph_site.happenings import Directed, Withdrawn
from heliograph_site.journal import Journal
from heliograph_site.machine import classify
from heliograph_site.memory import Memory, Target

KEY = b"n" * 32
NODE = {"site": "shop", "node": "till"}
OTHER = b"o" * 32


class Node:
    """A node of a realm with one release, directed to its ring."""

    def __init__(self, folder: Path) -> None:
        self.realm = Realm(7)
        self.release = self.realm.list_release("1.0.0", b"manifest")
        trusted = with_set(self.realm.bootstrap(), self.realm.publish().pack(), NOW)
        self.journal = Journal(folder / "j")
        self.journal.save_trusted(state_to_bytes(trusted))
        self.belief = Belief(self.journal, (self.realm.name, "shop", "till"), KEY, lambda: NOW)
        assignment = Assignment(realm=self.realm.name, site="shop", node="till", key=KEY, number=1, ring="canary")
        self.belief.take(topic("assigned"), NODE, self.realm.sign("assign", "assignment", assignment))
        directive = self.realm.sign("ring-canary", "directive", self.realm.directive(self.release))
        self.belief.take(topic("desired"), {"ring": "canary"}, pack([directive]))

    def deny(self, *releases: bytes) -> bytes:
        """A denial of these releases, signed."""
        return self.realm.sign("deny", "deny", Deny(realm=self.realm.name, releases=releases, reason="wrong", at=NOW))

    def name(self, *statements: bytes) -> News:
        """Takes a set whose timestamp names the list of these denials."""
        held = DenySet.recall(statements, self.belief.trusted)
        self.realm.heads = Heads(deny=Denials(count=len(statements), digest=list_digest(held.denials)))
        return self.belief.take(topic("set"), {}, self.realm.publish().pack())

    def hear(self, payload: bytes) -> News:
        """Takes a list of denials, as the agent does."""
        news = self.belief.take(topic("deny"), {}, payload)
        if news.denials is not None:
            self.journal.save(denials=news.denials.to_bytes())
            self.belief.holds(news.denials)
        return news


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_what_is_directed_comes_with_the_keys_that_signed_and_approved_it(node: Node) -> None:
    vouchers = {key.keyid for duty in ("sign", "approve") for key in node.realm.signers(f"{duty}-{MODEL}")}
    happening, _ = node.belief.wanted(MODEL, Memory(MODEL))
    assert isinstance(happening, Directed)
    assert (happening.target.path, set(happening.target.vouchers)) == (f"{MODEL}/1.0.0", vouchers)
    assert node.belief.why_not_yet(MODEL, node.release) is None


def test_nothing_is_activated_before_every_denial_that_is_named_is_held(node: Node) -> None:
    denial = node.deny(OTHER)
    assert node.name(denial).hello, "and the hub is asked"
    missing = "the 1 denials that the newest timestamp names"
    assert node.belief.why_unsure() == missing
    assert node.belief.why_not_yet(MODEL, node.release) == missing
    node.hear(encode_list([denial])[0])
    assert node.belief.why_unsure() is None
    assert node.belief.why_not_yet(MODEL, node.release) is None


def test_denials_are_held_after_a_restart_and_count_from_when_they_are_saved(node: Node) -> None:
    payload = encode_list([node.deny(OTHER)])[0]
    news = node.belief.take(topic("deny"), {}, payload)
    assert news.denials is not None and node.belief.denials.count == 0
    node.hear(payload)
    again = Belief(node.journal, (node.realm.name, "shop", "till"), KEY, lambda: NOW)
    assert again.denials == node.belief.denials and again.denials.is_denied(OTHER)
    assert node.hear(payload) == News(), "a repetition is no news"


def test_a_denied_release_is_not_wanted_and_stops_where_it_is_on_its_way(node: Node) -> None:
    node.hear(encode_list([node.deny(node.release)])[0])
    assert node.belief.wanted(MODEL, Memory(MODEL)) == (None, "denied: wrong")
    under_way = Memory(MODEL, "fetching", 2, Target(node.release, 1))
    assert node.belief.wanted(MODEL, under_way)[0] == Withdrawn("denied: wrong")
    assert node.belief.why_not_yet(MODEL, node.release) == "denied: wrong"


@pytest.mark.parametrize("role", ["ring-canary", f"sign-{MODEL}"])
def test_nothing_is_activated_on_the_word_of_a_denied_key(node: Node, role: str) -> None:
    key = node.realm.signers(role)[0].keyid
    document = DenyKey(realm=node.realm.name, keys=(key,), reason="stolen", at=NOW)
    node.hear(encode_list([node.realm.sign("deny-key", "deny-key", document)])[0])
    happening, why = node.belief.wanted(MODEL, Memory(MODEL))
    assert happening is None
    assert why == ("denied: a key that directs it" if role == "ring-canary" else "denied: stolen")


def test_nothing_is_activated_that_a_named_denial_names_even_if_it_does_not_verify(node: Node) -> None:
    denial = node.deny(node.release)
    node.name(denial)
    read = parse(denial)
    garbled = encode(Statement(read.type, read.payload, tuple((keyid, bytes(64)) for keyid, _ in read.signatures)))
    node.hear(encode_list([garbled])[0])
    assert node.belief.why_unsure() is None and node.belief.denials.is_denied(node.release) is None
    assert node.belief.wanted(MODEL, Memory(MODEL)) == (None, "denied: wrong")
    assert node.belief.why_not_yet(MODEL, node.release) == "denied: wrong"


def test_of_two_directives_of_one_number_the_first_stays(node: Node) -> None:
    hold = node.realm.directive(node.release, action="hold")
    assert (
        node.belief.take(
            topic("desired"), {"ring": "canary"}, pack([node.realm.sign("ring-canary", "directive", hold)])
        )
        == News()
    )
    happening, _ = node.belief.wanted(MODEL, Memory(MODEL))
    assert isinstance(happening, Directed) and happening.action == "install"


def test_what_a_list_has_no_room_for_is_asked_for_by_name(node: Node) -> None:
    statements = [node.deny(bytes([n]) * 32) for n in range(12)]
    payload, older = encode_list(statements, 2000)
    assert older is not None
    node.name(*statements)
    news = node.hear(payload)
    assert news.older is not None and news.older.sha256 == sha256(older)
    assert node.belief.why_unsure() is not None
    whole = node.belief.with_older(older)
    assert whole.denials is not None and whole.older is None
    node.belief.holds(whole.denials)
    assert node.belief.why_unsure() is None and node.belief.denials.count == 12


def test_a_list_that_came_before_the_timestamp_that_names_it_is_not_asked_for_again(node: Node) -> None:
    denial = node.deny(OTHER)
    node.hear(encode_list([denial])[0])
    assert not node.name(denial).hello
    assert node.belief.why_unsure() is None


# --- what this node is ------------------------------------------------------------------------------------------------


def assignment(node: Node, number: int, ring: Ring) -> bytes:
    """What the node is to be, unsigned."""
    return Assignment(realm=node.realm.name, site="shop", node="till", key=KEY, number=number, ring=ring).encode()


def told(belief: Belief, node: Node, number: int, ring: Ring, role: str, keys: int) -> News:
    """What an assignment that so many keys of a role signed is to the node."""
    signed = sign_statement("assignment", assignment(node, number, ring), node.realm.keys[role][:keys])
    return belief.take(topic("assigned"), NODE, signed)


def reopened(node: Node, *, for_protected: bool = False) -> Belief:
    """The same after a restart."""
    return Belief(node.journal, (node.realm.name, "shop", "till"), KEY, lambda: NOW, for_protected=for_protected)


def test_who_stole_the_hubs_keys_takes_no_node_into_protected_or_out_of_it_even_after_a_restart(node: Node) -> None:
    for role, keys in (("assign", 1), ("ring-protected", 1)):
        with pytest.raises(TrustError, match="it needs"):
            told(node.belief, node, 2, "protected", role, keys)
    assert told(node.belief, node, 2, "protected", "ring-protected", 2).ring
    for belief in (node.belief, reopened(node)):
        assert (belief.ring, belief.is_protected) == ("protected", True)
        for ring in ("general", "protected"):
            for role, keys in (("assign", 1), ("ring-protected", 1)):
                with pytest.raises(TrustError, match="ring-protected, it needs 2"):
                    told(belief, node, 3, ring, role, keys)
    assert told(belief, node, 3, "general", "ring-protected", 2).ring
    assert (belief.ring, belief.is_protected) == ("general", False)
    assert told(reopened(node), node, 4, "early", "assign", 1).ring, "out of protected the hub's key is enough again"


def test_a_node_in_protected_stays_there_when_the_keys_that_put_it_there_are_replaced(node: Node) -> None:
    told(node.belief, node, 7, "protected", "ring-protected", 2)
    node.realm.rotate("ring-protected")
    node.journal.save_trusted(state_to_bytes(with_set(node.belief.trusted, node.realm.publish().pack(), NOW)))
    belief = reopened(node)
    assert (belief.ring, belief.is_protected) == ("protected", True), "content stays in force"
    assert belief.numbers().assignment == 0, "its number does not"
    with pytest.raises(TrustError, match="ring-protected, it needs 2"):
        told(belief, node, 8, "general", "assign", 1)
    assert told(belief, node, 2, "protected", "ring-protected", 2).assigned
    assert belief.numbers().assignment == 2


def test_a_node_enrolled_for_protected_is_so_before_and_after_every_assignment(node: Node) -> None:
    belief = reopened(node, for_protected=True)
    assert belief.numbers().assignment == 0, "the one key's assignment held counts for nothing"
    for ring in ("general", "protected"):
        with pytest.raises(TrustError, match="ring-protected, it needs 2"):
            told(belief, node, 2, ring, "assign", 1)
    assert told(belief, node, 2, "general", "ring-protected", 2).assigned
    again = reopened(node, for_protected=True)
    with pytest.raises(TrustError, match="ring-protected, it needs 2"):
        told(again, node, 3, "early", "assign", 1)


def test_an_assignment_that_was_replaced_is_not_taken_again(node: Node) -> None:
    told(node.belief, node, 2, "early", "assign", 1)
    for number in (1, 2):
        assert told(node.belief, node, number, "general", "assign", 1) == News()
    assert node.belief.ring == "early"


def test_in_a_ring_that_has_no_directive_what_is_under_way_is_stopped(node: Node) -> None:
    told(node.belief, node, 2, "early", "assign", 1)
    for belief in (node.belief, reopened(node)):
        memory = Memory(MODEL, "fetching", 3, Target(node.release, 1))
        happening, waiting = belief.wanted(MODEL, memory)
        assert happening is not None and waiting == ""
        assert isinstance(classify(memory, happening), Withdrawn)
        assert classify(Memory(MODEL), happening) is None, "and what rests goes on resting"


def test_what_comes_and_fits_no_document_any_more_is_checked_anew_and_waits_there(node: Node) -> None:
    needs = Compatible(config=Span(min=5))
    manifest = MANIFEST.model_copy(update={"model": MODEL, "version": "1.0.0", "compatible": needs})
    names = (node.realm.name, "shop", "till")
    belief = Belief(node.journal, names, KEY, lambda: NOW, manifests={node.release: manifest}.get)
    for phase in ("fetching", "staging"):
        happening, waiting = belief.wanted(MODEL, Memory(MODEL, phase, 3, Target(node.release, 1)))
        why = "documents that fit: config/digits is 0, compatible.config.min of digits@1.0.0 wants 5 or newer"
        assert (happening, waiting) == (Withdrawn(why), why)
    for phase in ("checking", "activating"):
        happening, _ = belief.wanted(MODEL, Memory(MODEL, phase, 3, Target(node.release, 1)))
        assert isinstance(happening, Directed), "there it waits by itself"


def test_a_new_ring_and_the_end_of_the_old_ones_directives_are_one_transaction(node: Node) -> None:
    assignment = Assignment(realm=node.realm.name, site="shop", node="till", key=KEY, number=2, ring="early")
    written: list[str] = []
    node.journal._conn.set_trace_callback(written.append)
    node.belief.take(topic("assigned"), NODE, node.realm.sign("assign", "assignment", assignment))
    node.journal._conn.set_trace_callback(None)
    begun = [line.split()[0] for line in written if line.startswith(("BEGIN", "COMMIT", "DELETE FROM doc", "INSERT"))]
    assert begun[:4] == ["BEGIN", "DELETE", "INSERT", "COMMIT"], "a kill in between would leave the old ring's work"
    assert node.journal.held("directive") == () and node.belief.wanted(MODEL, Memory(MODEL)) == (
        Directed("", Target(b"", 0)), "",
    )  # fmt: skip

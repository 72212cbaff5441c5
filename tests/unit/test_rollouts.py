"""Rollouts as stored: stops are told at once, protected waits for its signatures, what ends soon is signed again."""

import pytest

from heliograph.documents import Directive
from heliograph.errors import IntegrityError, NotFoundError, RefusedError, TrustError
from heliograph.names import Digest
from heliograph.protocol import topic
from heliograph.statement import parse, signed_bytes
from heliograph.vouching import open_document
from heliograph.wire import unpack
from heliograph_hub.assignment import MAX_AHEAD
from heliograph_hub.authority import Authority
from heliograph_hub.database import Database
from heliograph_hub.desired import Desired
from heliograph_hub.founding import init_realm
from heliograph_hub.keys import load_key
from heliograph_hub.ledger import Ledger
from heliograph_hub.registry import Release
from heliograph_hub.rollout import DIRECTIVE_LIFE_S, ONLINE_RINGS, RENEW_BEFORE_S, Worded, in_force
from heliograph_hub.rollouts import MAX_SAID, Rollouts

NOW = 1_795_000_000
ONE = Release("digits", "1.0.0", Digest(b"\1" * 32), 9, NOW)
TWO = Release("digits", "2.0.0", Digest(b"\2" * 32), 9, NOW)


class Hub:
    """A realm, its rows, and its keys."""

    def __init__(self, folder):
        init_realm(folder, "dev", NOW)
        self.authority = Authority(folder)
        self.database = Database(folder / "hub.sqlite")
        self.desired = Desired(self.database)
        self.rollouts = Rollouts(self.desired, Ledger(self.database, lambda *_: None), self.authority)
        self.folder = folder

    def key(self, name):
        return load_key(self.folder / "keys" / f"{name}.key")

    def sign(self, payload, *names):
        keys = [self.key(name) for name in names]
        return {key.keyid: key.sign(signed_bytes("directive", payload)) for key in keys}

    def released(self, release=ONE, rings=ONLINE_RINGS, number=1):
        """As if its rollout were here: releases are signed and approved elsewhere."""
        for ring in ONLINE_RINGS:
            document = Directive(
                realm="dev", ring=ring, model="digits", release=release.digest, number=number, action="install",
                expires=NOW + DIRECTIVE_LIFE_S,
            )  # fmt: skip
            statement = self.authority.sign_statement(f"ring-{ring}", "directive", document)
            self.desired.add([(Worded(document, ring in rings), statement)], NOW)

    def told(self):
        """(ring, number, action, release) as a node of each ring opens them."""
        found = []
        for ring, payload in self.desired.lists().items():
            for statement in unpack(payload):
                document = open_document(
                    self.authority.set, statement, topic("desired"), {"ring": ring}, site="s", node="n", key=b"k" * 32
                )
                assert isinstance(document, Directive)
                found.append((ring, document.number, document.action, document.release))
        return sorted(found)


@pytest.fixture
def hub(tmp_path):
    made = Hub(tmp_path)
    yield made
    made.database.close()


def test_an_abort_is_told_to_every_ring_under_signatures_that_a_node_believes(hub):
    hub.released(rings=("canary",))
    assert hub.told() == [("canary", 1, "install", ONE.digest)]
    hub.rollouts.stop(ONE, "hold", None, NOW)
    assert hub.told() == [(ring, 2, "hold", ONE.digest) for ring in ONLINE_RINGS]
    hub.rollouts.stop(ONE, "hold", None, NOW)
    assert {number for _, number, _, _ in hub.told()} == {2}, "the second time changes nothing"
    with pytest.raises(RefusedError, match="aborted in ring canary"):
        hub.rollouts.promote(ONE, None, NOW)


def test_protected_is_told_when_the_last_signature_comes_and_not_before(hub):
    hub.released()
    asked = hub.rollouts.word(ONE, "install", NOW)
    assert (asked.have, asked.need, asked.row.number) == (0, 2, 1)
    assert hub.rollouts.word(ONE, "install", NOW + 99).payload == asked.payload, "everybody signs the same bytes"
    first = hub.rollouts.add_signatures(ONE.name, asked.payload, hub.sign(asked.payload, "ring-protected-1"), NOW)
    assert first.have == 1 and "protected" not in {ring for ring, *_ in hub.told()}
    again = hub.rollouts.add_signatures(ONE.name, asked.payload, hub.sign(asked.payload, "ring-protected-1"), NOW)
    assert again.have == 1, "the same key twice is one signature"
    done = hub.rollouts.add_signatures(ONE.name, asked.payload, hub.sign(asked.payload, "ring-protected-2"), NOW)
    assert done.have == 2 and ("protected", 1, "install", ONE.digest) in hub.told()
    assert hub.rollouts.offline(ONE) is None
    with pytest.raises(RefusedError, match="already"):
        hub.rollouts.word(ONE, "install", NOW)


def test_only_protecteds_keys_over_these_bytes_count(hub):
    hub.released()
    payload = hub.rollouts.word(ONE, "install", NOW).payload
    with pytest.raises(TrustError, match="not one of the keys of ring-protected"):
        hub.rollouts.add_signatures(ONE.name, payload, hub.sign(payload, "ring-canary"), NOW)
    wrong = {hub.key("ring-protected-1").keyid: b"\0" * 64}
    with pytest.raises(TrustError, match="does not fit"):
        hub.rollouts.add_signatures(ONE.name, payload, wrong, NOW)
    other = Directive.decode(payload).model_copy(update={"expires": NOW + 10 * DIRECTIVE_LIFE_S}).encode()
    with pytest.raises(NotFoundError, match="worded no such directive"):
        hub.rollouts.add_signatures(ONE.name, other, hub.sign(other, "ring-protected-1", "ring-protected-2"), NOW)
    with pytest.raises(IntegrityError):
        hub.rollouts.add_signatures(ONE.name, b"\0", {}, NOW)
    assert hub.rollouts.offline(ONE).have == 0


def test_what_was_signed_for_protected_before_an_abort_is_void_and_the_hold_can_be_signed(hub):
    hub.released()
    asked = hub.rollouts.word(ONE, "install", NOW)
    hub.rollouts.stop(ONE, "hold", None, NOW)
    both = hub.sign(asked.payload, "ring-protected-1", "ring-protected-2")
    with pytest.raises(RefusedError, match="directive 1 of ring protected is void: number 2 follows it"):
        hub.rollouts.add_signatures(ONE.name, asked.payload, both, NOW)
    hold = hub.rollouts.offline(ONE)
    assert (hold.row.action, hold.row.number, hold.have) == ("hold", 2, 0)
    both = hub.sign(hold.payload, "ring-protected-1", "ring-protected-2")
    hub.rollouts.add_signatures(ONE.name, hold.payload, both, NOW)
    assert ("protected", 2, "hold", ONE.digest) in hub.told()


def test_protected_is_not_told_while_its_rollout_is_paused_or_superseded(hub):
    hub.released()
    asked = hub.rollouts.word(ONE, "install", NOW)
    both = hub.sign(asked.payload, "ring-protected-1", "ring-protected-2")
    hub.rollouts.pause(ONE, lets_running=True, now=NOW)
    with pytest.raises(RefusedError, match="paused"):
        hub.rollouts.add_signatures(ONE.name, asked.payload, both, NOW)
    assert hub.rollouts.resume(ONE)
    hub.released(TWO, rings=("canary",), number=2)
    with pytest.raises(RefusedError, match="not the newest rollout"):
        hub.rollouts.add_signatures(ONE.name, asked.payload, both, NOW)


def test_a_directive_is_renewed_a_month_before_its_end_and_told_under_the_next_number(hub):
    hub.released(rings=("canary",))
    assert hub.rollouts.renew(NOW + DIRECTIVE_LIFE_S - RENEW_BEFORE_S) == ()
    late = NOW + DIRECTIVE_LIFE_S - RENEW_BEFORE_S + 1
    hub.rollouts.renew(late)
    assert hub.told() == [("canary", 2, "install", ONE.digest)]
    rows = {(row.ring, row.number): row for row in hub.desired.rows()}
    assert not rows["early", 2].released and hub.desired.ends(rows["early", 2]) == late + DIRECTIVE_LIFE_S
    assert hub.rollouts.renew(late) == ()
    assert in_force(rows.values())["canary"]["digits"].number == 2


def test_what_waits_for_signatures_is_stored_without_any(hub):
    hub.released()
    asked = hub.rollouts.word(ONE, "install", NOW)
    assert parse(hub.desired.statement(asked.row)).signatures == ()


def test_a_hub_with_an_older_copy_signs_numbers_behind_those_that_nodes_have(hub):
    hub.released(rings=("canary",))
    for said in (7, 4, 2 + MAX_AHEAD):
        hub.rollouts.heard("canary", {"digits": said, "gone": 3})
    hub.rollouts.heard("early", {"digits": 1})
    worded = hub.rollouts.stop(ONE, "hold", None, NOW)
    assert [(w.directive.ring, w.directive.number) for w in worded] == [("canary", 8), ("early", 2), ("general", 2)]
    assert [(ring, number, action) for ring, number, action, _ in hub.told()] == [
        ("canary", 8, "hold"), ("early", 2, "hold"), ("general", 2, "hold"),
    ]  # fmt: skip
    hub.rollouts.heard("canary", {"digits": 8})
    assert hub.rollouts.stop(ONE, "return", "canary", NOW)[0].directive.number == 9, "numbers go on one by one"


def test_of_models_that_are_unknown_here_only_so_many_numbers_are_remembered(hub):
    hub.rollouts.heard("general", {f"m-{n}": 1 for n in range(MAX_SAID + 7)})
    assert len(hub.rollouts._said) == MAX_SAID

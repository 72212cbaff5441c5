"""The hub's policies and configs: numbered for ever, signed by their role, announced as long as that counts."""

import random

import pytest
import sqlalchemy as sa
from tuf.api.metadata import Targets

from heliograph import vouching
from heliograph.documents import Heads
from heliograph.errors import IntegrityError, NotFoundError, RefusedError, TrustError
from heliograph.metadata import load
from heliograph.policy import MAX_DOCUMENT_BYTES, Config, Policy
from heliograph.protocol import parse_topic
from heliograph.signing import sign_statement
from heliograph.statement import signed_bytes
from heliograph_hub import ceremony
from heliograph_hub.assignment import MAX_AHEAD
from heliograph_hub.authority import Authority
from heliograph_hub.control import Control, check_scope
from heliograph_hub.database import Database, documents
from heliograph_hub.founding import init_realm
from heliograph_hub.keys import load_key

NOW = 1_795_000_000
GENERAL = "heliograph/v1/demo/policy/general"


def policy(**fields):
    return Policy(**({"realm": "demo", "ring": "general", "number": 0, "at": 0} | fields))


def config(**fields):
    return Config(**({"realm": "demo", "model": "digits", "number": 0, "at": 0} | fields))


class Hub:
    """A realm with one model on disk, and its documents; `again` opens them anew as after a restart."""

    def __init__(self, folder):
        self.folder = folder
        self.rng = random.Random(7)
        init_realm(folder / "realm", "demo", NOW, entropy=self.rng.randbytes)
        self.authority = Authority(folder / "realm")
        self.authority.add_model("digits", NOW, entropy=self.rng.randbytes)
        self.open()

    def open(self):
        self.database = Database(self.folder / "hub.sqlite")
        self.control = Control(self.database, self.authority)

    def again(self):
        self.database.close()
        self.authority = Authority(self.folder / "realm")
        self.open()

    def key(self, name):
        return load_key(self.folder / "realm" / "keys" / f"{name}.key")

    def set(self, document, *names, now=NOW, reported=0):
        stored = self.control.draft(document, now, reported)
        signatures = self.signed(stored.kind, stored.payload, *(names or [self.role(stored)]))
        return self.control.add(stored.kind, stored.payload, signatures, now, reported)

    def signed(self, kind, payload, *names):
        return {key.keyid: key.sign(signed_bytes(kind, payload)) for key in map(self.key, names)}

    def role(self, stored):
        return "policy" if stored.kind == "policy" else f"config-{stored.scope}"

    def announce(self):
        """What a hub does after each commit; a node that holds the set reads each document."""
        numbers, configs = self.control.heads()
        self.authority.publish_set(NOW, Heads(policy=numbers, config=configs))
        out = {}
        for full, payload in self.control.announced().items():
            row, names = parse_topic(full, "demo")
            out[full] = vouching.open_document(self.authority.set, payload, row, names)
        return out

    def staff(self, role, names, threshold):
        """The targets keys delegate a role anew."""
        held = load(Targets, self.authority.set.targets, "targets").signed
        targets = ceremony.make_targets(held.version + 1, NOW)
        targets.signed.delegations = held.delegations
        keys = [self.authority.keys.make(name, self.rng.randbytes).public for name in names]
        ceremony.delegate(targets.signed, role, keys, threshold, [])
        signed = ceremony.sign(targets, [self.key("targets-1"), self.key("targets-2")])
        files = self.authority._files() | {"targets": (targets.signed.version, signed)}
        self.authority._publish(files, self.authority.set.heads, NOW)


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path)
    yield hub
    hub.database.close()


def test_numbers_grow_per_ring_and_model_and_what_is_announced_outlives_a_restart(hub):
    first = hub.set(policy(hold_max_s=1))
    assert (first.name, first.have, first.need, first.published_at) == ("policy/general 1", 1, 1, NOW)
    assert hub.set(policy(hold_max_s=2), now=NOW + 9).number == 2
    assert hub.set(policy(ring="early")).number == 1
    assert hub.set(config(flags={"fast": True})).name == "config/digits 1"
    for _ in range(2):
        told = hub.announce()
        assert {full: document.number for full, document in told.items()} == {
            GENERAL: 2,
            "heliograph/v1/demo/policy/early": 1,
            "heliograph/v1/demo/config/digits": 1,
        }
        assert told[GENERAL].hold_max_s == 2 and told[GENERAL].at == NOW + 9
        heads = hub.authority.set.heads
        assert (heads.policy, heads.config) == ({"general": 2, "early": 1}, {"digits": 1})
        before = hub.control.announced()
        hub.again()
        assert hub.control.announced() == before
    assert hub.set(policy(hold_max_s=3)).number == 3


def test_the_same_content_again_is_the_same_document(hub):
    first = hub.set(policy(hold_max_s=1))
    again = hub.control.draft(policy(hold_max_s=1, at=5, number=7), NOW + 60)
    assert (again.number, again.payload, again.counts) == (1, first.payload, True)
    assert hub.set(policy(hold_max_s=1), now=NOW + 60).document == first.document
    hub.set(policy(hold_max_s=2))
    assert hub.control.draft(policy(hold_max_s=1), NOW).number == 3, "going back is something new"
    assert [stored.number for stored in hub.control.all("policy", "general")] == [1, 2]


def test_two_signatures_come_one_after_the_other_and_nothing_is_announced_before(hub):
    hub.staff("policy", ["policy-1", "policy-2", "policy-3"], 2)
    waiting = hub.set(policy(hold_max_s=1), "policy-1")
    assert (waiting.have, waiting.need, waiting.published_at, waiting.counts) == (1, 2, None, False)
    assert hub.announce() == {} and hub.control.heads() == ({}, {})
    hub.again()
    assert hub.set(policy(hold_max_s=1), "policy-1").have == 1, "the same key counts once"
    done = hub.set(policy(hold_max_s=1), "policy-3", now=NOW + 60)
    assert (done.number, done.have, done.published_at, done.document.at) == (1, 2, NOW + 60, NOW)
    assert hub.announce()[GENERAL].number == 1
    for name in ("policy-1", "policy-2", "policy-3"):
        hub.authority.keys.path(name).unlink()
    hub.again()
    with pytest.raises(RefusedError, match=r"0 keys of role policy are in .*, it needs 2: .* name the keys with --key"):
        hub.control.sign_here("policy", done.payload)


def test_a_document_that_waits_for_signatures_keeps_its_number_from_all_others(hub):
    hub.staff("policy", ["policy-1", "policy-2"], 2)
    waiting = hub.set(policy(hold_max_s=1), "policy-1")
    newer = hub.set(policy(hold_max_s=2), "policy-1", "policy-2")
    assert (waiting.number, newer.number) == (1, 2)
    assert hub.control.draft(policy(hold_max_s=1), NOW).number == 3, "what was overtaken is not taken up again"
    late = hub.signed("policy", waiting.payload, "policy-2")
    with pytest.raises(RefusedError, match=r"policy/general 1 is not newer than 2, which is published"):
        hub.control.add("policy", waiting.payload, late, NOW)
    other = policy(number=2, hold_max_s=9).encode()
    with pytest.raises(RefusedError, match=r"policy/general 2 is taken by other content: set the file again"):
        hub.control.add("policy", other, hub.signed("policy", other, "policy-1"), NOW)


@pytest.mark.parametrize(
    ("document", "signer", "error", "words"),
    [
        (policy(number=1), "assign", TrustError, r"is not one of the keys of policy"),
        (config(number=1), "policy", TrustError, r"is not one of the keys of config-digits"),
        (policy(number=1, realm="other"), "policy", TrustError, r"policy is of realm other, this hub is of demo"),
        (policy(number=2), "policy", RefusedError, r"policy/general 2 leaves numbers out: the next one is 1"),
        (policy(number=0), "policy", RefusedError, r"policy/general 0 is not newer than 0"),
        (config(number=1, model="faces"), "policy", NotFoundError, r"no keys for config/faces in this realm"),
        (
            policy(number=1, telemetry={"redact": ("x" * 400,) * 200}),
            "policy",
            RefusedError,
            r"exceeds 49152: say less",
        ),
    ],
)
def test_what_may_not_be_is_refused_in_words_and_leaves_nothing(hub, document, signer, error, words):
    kind = "policy" if isinstance(document, Policy) else "config"
    payload = document.encode()
    assert (len(payload) > MAX_DOCUMENT_BYTES) == ("exceeds" in words)
    with pytest.raises(error, match=words):
        hub.control.add(kind, payload, hub.signed(kind, payload, signer), NOW)
    assert hub.control.all() == [] and hub.announce() == {}


def test_a_signature_over_other_bytes_or_another_kind_is_refused(hub):
    payload = policy(number=1).encode()
    for signatures in (hub.signed("policy", payload + b"x", "policy"), hub.signed("config", payload, "policy")):
        with pytest.raises(TrustError, match=r"does not fit policy/general 1"):
            hub.control.add("policy", payload, signatures, NOW)
    with pytest.raises(IntegrityError, match="policy"):
        hub.control.add("policy", b"\x80", {}, NOW)
    with pytest.raises(RefusedError, match="no kind of document"):
        hub.control.add("directive", payload, {}, NOW)
    assert hub.control.all() == []


def test_a_document_by_a_wrong_key_is_never_announced_even_from_the_database(hub):
    hub.set(policy(hold_max_s=1))
    forged = sign_statement("policy", policy(number=2, hold_max_s=2).encode(), [hub.key("assign")])
    row = {"kind": "policy", "scope": "general", "number": 2, "made_at": NOW, "published_at": NOW}
    with hub.database.write() as connection:
        connection.execute(sa.insert(documents).values(statement=forged, **row))
    hub.again()
    assert hub.announce()[GENERAL].number == 1
    assert hub.authority.set.heads.policy == {"general": 1}
    assert [(stored.number, stored.counts) for stored in hub.control.all()] == [(1, True), (2, False)]
    assert hub.set(policy(hold_max_s=3)).number == 3


def test_when_the_keys_change_the_newest_that_still_counts_is_announced_until_it_is_signed_again(hub):
    hub.set(policy(hold_max_s=1))
    hub.staff("policy", ["policy", "policy-b"], 1)
    assert hub.set(policy(hold_max_s=2), "policy-b").number == 2
    hub.announce()
    hub.staff("policy", ["policy"], 1)
    assert hub.announce()[GENERAL].number == 1, "policy-b counts no more"
    assert hub.authority.set.heads.policy == {"general": 2}, "what the timestamp names never falls"
    again = hub.set(policy(hold_max_s=2), now=NOW + 60)
    assert (again.number, again.document.at) == (2, NOW)
    assert hub.announce()[GENERAL].number == 2


def test_a_hub_brought_back_from_an_older_copy_takes_no_number_twice_and_says_what_is_missing(hub):
    hub.set(policy(hold_max_s=1))
    hub.set(policy(hold_max_s=2))
    hub.set(config(generation=1))
    hub.announce()
    hub.database.close()
    (hub.folder / "hub.sqlite").unlink()
    hub.again()
    assert hub.control.lost() == [
        "policy/general: the timestamp names 2, the database has 0",
        "config/digits: the timestamp names 1, the database has 0",
    ]
    assert hub.announce() == {} and hub.authority.set.heads.policy == {"general": 2}
    old = policy(number=2, hold_max_s=9).encode()
    with pytest.raises(RefusedError, match=r"policy/general 2 is not newer than 2"):
        hub.control.add("policy", old, hub.signed("policy", old, "policy"), NOW)
    assert hub.set(policy(hold_max_s=2)).number == 3
    assert hub.control.lost() == ["config/digits: the timestamp names 1, the database has 0"]


def test_numbers_that_nodes_reported_are_passed_over_but_one_node_can_not_use_them_up(hub):
    assert hub.set(policy(hold_max_s=1), reported=41).number == 42
    assert hub.set(policy(hold_max_s=2), reported=42 + MAX_AHEAD).number == 43 + MAX_AHEAD
    assert hub.set(policy(hold_max_s=3), reported=1 << 62).number == 44 + MAX_AHEAD


def test_an_older_document_is_found_by_number_only_while_it_counts(hub):
    hub.staff("policy", ["policy-1", "policy-2"], 2)
    hub.set(policy(hold_max_s=1), "policy-1", "policy-2")
    hub.set(policy(hold_max_s=2), "policy-1")
    hub.set(policy(hold_max_s=3), "policy-1", "policy-2")
    found = {number: hub.control.at_most("policy", "general", number) for number in range(5)}
    assert {number: stored and stored.number for number, stored in found.items()} == {
        0: None, 1: 1, 2: 1, 3: 3, 4: 3
    }  # fmt: skip
    assert hub.control.at_most("policy", "early", 9) is None
    assert hub.control.find("policy", "general", 2).have == 1
    with pytest.raises(NotFoundError, match="no policy/general 7"):
        hub.control.find("policy", "general", 7)


@pytest.mark.parametrize(
    ("kind", "scope", "words"),
    [("directive", "general", "no documents of kind 'directive'"), ("policy", "moon", "no ring 'moon': rings are")],
)
def test_a_scope_that_does_not_exist_is_named(kind, scope, words):
    with pytest.raises(NotFoundError, match=words):
        check_scope(kind, scope)
    assert check_scope("policy", "protected") == "protected" and check_scope("config", "digits") == "digits"

"""The hub's denials: who may, from when on, for good, in which list; and what is not offered any more."""

import random
from functools import partial

import pytest

from heliograph.blob import sha256
from heliograph.deny import MAX_LIST_BYTES, DenySet, older_blob
from heliograph.documents import Deny, DenyKey, Heads
from heliograph.errors import IntegrityError, RefusedError, TrustError
from heliograph.objects import ObjectStore
from heliograph.statement import signed_bytes
from heliograph_hub.authority import Authority
from heliograph_hub.database import Database
from heliograph_hub.denial import MAX_ANNOUNCED_BYTES, Denials, why
from heliograph_hub.founding import init_realm
from heliograph_hub.keys import load_key

NOW = 1_795_000_000
BAD, WORSE, GOOD, RECIPE = (sha256(name) for name in (b"bad", b"worse", b"good", b"recipe"))


class Hub:
    """A realm with one model on disk, and its denials; `again` opens them anew as after a restart."""

    def __init__(self, folder):
        self.folder = folder
        self.rng = random.Random(7)
        init_realm(folder / "realm", "demo", NOW, entropy=self.rng.randbytes)
        self.authority = Authority(folder / "realm")
        self.authority.add_model("digits", NOW, entropy=self.rng.randbytes)
        self.open()

    def open(self):
        self.database = Database(self.folder / "hub.sqlite")
        self.objects = ObjectStore(self.folder / "objects")
        self.denials = Denials(self.database, self.objects, self.authority)

    def again(self):
        self.database.close()
        self.authority = Authority(self.folder / "realm")
        self.open()

    def key(self, name):
        return load_key(self.folder / "realm" / "keys" / f"{name}.key")

    def deny(self, document, *names, now=NOW):
        standing = self.denials.request(document)
        message = signed_bytes(standing.type, standing.payload)
        signatures = {key.keyid: key.sign(message) for key in map(self.key, names)}
        return self.denials.add(standing.type, standing.payload, signatures, now)

    def publish(self, version, digest, *approvers):
        for role, names in (("sign-digits", ["sign-digits"]), ("approve-digits", approvers)):
            asked = self.authority.request_signature(role, "digits", version, 100, digest, NOW)
            for name in names:
                key = self.key(name)
                self.authority.add_signature(asked.candidate, key.keyid, key.sign(asked.data), NOW)
        self.denials.note_vouchers(["digits"])

    def node(self):
        """What a node makes of what is announced."""
        heads = Heads(deny=self.denials.head)
        self.authority.publish_set(NOW, heads)
        payload = self.denials.announced()
        named = older_blob(payload)
        older = self.objects.read(named.sha256) if named else None
        held = DenySet().with_list(payload, self.authority.set, self.authority.set.heads.deny, older)
        assert held.holds_all(self.authority.set.heads.deny)
        return held


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path)
    yield hub
    hub.database.close()


of_release = partial(Deny, realm="demo", at=NOW)
of_key = partial(DenyKey, realm="demo", at=NOW)


def test_a_release_denied_by_one_key_is_in_force_announced_and_there_after_a_restart(hub):
    assert hub.denials.announced() is None and hub.denials.head == Heads().deny
    standing = hub.deny(of_release(releases=(BAD,), reason="wrong labels"), "deny-1")
    assert (standing.have, standing.need, standing.in_force_at, standing.is_final) == (1, 1, NOW, False)
    for _ in range(2):
        found = hub.denials.denial("digits", BAD)
        assert why(found) == "by its digest: wrong labels"
        assert hub.denials.denial("digits", GOOD) is None
        assert hub.node().is_denied(BAD) is not None
        assert not hub.denials.is_final("digits", BAD)
        before = hub.denials.announced()
        hub.again()
        assert hub.denials.announced() == before


def test_a_second_signature_later_joins_the_same_statement_and_makes_it_final(hub):
    first = hub.deny(of_release(releases=(BAD,), reason="one"), "deny-1")
    second = hub.deny(of_release(releases=(BAD,), reason="two", at=NOW + 9), "deny-2", now=NOW + 9)
    assert second.payload == first.payload and second.is_final and second.in_force_at == NOW
    assert hub.denials.head.count == 1
    for _ in range(2):
        assert hub.denials.is_final("digits", BAD) and hub.node().is_final(BAD)
        hub.again()


def test_a_key_is_denied_by_two_signatures_together_or_one_after_the_other(hub):
    stolen = hub.key("sign-digits").keyid
    hub.publish("1.0.0", GOOD, "approve-digits-1", "approve-digits-2")
    hub.publish("1.1.0", BAD, "approve-digits-2", "approve-digits-3")
    waiting = hub.deny(of_key(keys=(stolen,), keep=(GOOD,)), "deny-key-1")
    assert (waiting.have, waiting.need, waiting.in_force_at) == (1, 2, None)
    assert hub.denials.announced() is None and hub.denials.denial("digits", BAD) is None
    hub.again()
    done = hub.deny(of_key(keys=(stolen,), keep=(GOOD,), at=NOW + 5), "deny-key-3", now=NOW + 5)
    assert (done.have, done.in_force_at, done.is_final) == (2, NOW + 5, True)
    assert why(hub.denials.denial("digits", BAD)) == "with a key that vouched for it"
    assert hub.denials.denial("digits", GOOD) is None
    assert hub.denials.is_final("digits", BAD) and hub.denials.held.is_key_denied(stolen)


def test_what_an_approver_vouched_for_is_remembered_when_the_next_release_is_approved_by_others(hub):
    hub.publish("1.0.0", BAD, "approve-digits-1", "approve-digits-2")
    hub.publish("1.1.0", GOOD, "approve-digits-2", "approve-digits-3")
    assert hub.key("approve-digits-1").keyid not in hub.authority.set.signers("approve-digits")
    hub.again()
    hub.deny(of_key(keys=(hub.key("approve-digits-1").keyid,)), "deny-key-1", "deny-key-2")
    assert hub.denials.denial("digits", BAD) is not None
    assert hub.denials.denial("digits", GOOD) is None


def test_an_approver_vouches_for_all_that_a_file_it_signed_lists_unless_it_is_kept(hub):
    hub.publish("1.0.0", GOOD, "approve-digits-1", "approve-digits-2")
    hub.publish("1.1.0", BAD, "approve-digits-2", "approve-digits-3")  # a node may install 1.0.0 under this file
    hub.again()
    third = hub.key("approve-digits-3").keyid
    hub.deny(of_key(keys=(third,)), "deny-key-1", "deny-key-2")
    assert hub.denials.denial("digits", GOOD) is not None and hub.denials.denial("digits", BAD) is not None


def test_what_a_denial_of_a_key_keeps_stays_good(hub):
    hub.publish("1.0.0", GOOD, "approve-digits-1", "approve-digits-2")
    hub.publish("1.1.0", BAD, "approve-digits-2", "approve-digits-3")
    third = hub.key("approve-digits-3").keyid
    hub.deny(of_key(keys=(third,), keep=(GOOD,)), "deny-key-1", "deny-key-2")
    assert hub.denials.denial("digits", GOOD) is None and hub.denials.denial("digits", BAD) is not None


@pytest.mark.parametrize("name", ["deny-key-1", "sign-digits", "timestamp", "root-1", "ring-canary"])
def test_attack_a_key_of_another_role_denies_a_release(hub, name):
    with pytest.raises(TrustError, match="is not one of the keys of deny"):
        hub.deny(of_release(releases=(GOOD,)), name)
    assert hub.denials.standings() == []


def test_a_denial_of_another_realm_a_wrong_signature_or_no_denial_is_refused_and_nothing_is_stored(hub):
    key = hub.key("deny-1")
    other = Deny(realm="other", releases=(GOOD,), at=NOW).encode()
    mine = of_release(releases=(GOOD,)).encode()
    with pytest.raises(TrustError, match="of realm other"):
        hub.denials.add("deny", other, {key.keyid: key.sign(signed_bytes("deny", other))}, NOW)
    with pytest.raises(TrustError, match="does not fit the denial"):
        hub.denials.add("deny", mine, {key.keyid: key.sign(signed_bytes("deny-key", mine))}, NOW)
    with pytest.raises(RefusedError, match="is no denial"):
        hub.denials.add("directive", mine, {}, NOW)
    with pytest.raises(IntegrityError):
        hub.denials.add("deny", b"\xc1", {key.keyid: key.sign(signed_bytes("deny", b"\xc1"))}, NOW)
    with pytest.raises(RefusedError, match="give a shorter reason"):
        hub.denials.request(of_release(releases=tuple(sha256(b"%d" % n) for n in range(20))))
    assert hub.denials.standings() == [] and hub.denials.announced() is None


def test_the_list_is_newest_first_and_what_has_no_room_is_a_blob_that_is_served(hub):
    for number in range(240):
        hub.deny(of_release(releases=(sha256(b"%d" % number),), reason="x" * 60), "deny-1", now=NOW + number)
    payload = hub.denials.announced()
    assert len(payload) <= MAX_ANNOUNCED_BYTES < MAX_LIST_BYTES
    named = older_blob(payload)
    assert hub.objects.size(named.sha256) == named.length
    with hub.database.read() as connection:
        row = connection.exec_driver_sql("SELECT length, kind FROM blobs WHERE digest = ?", (named.sha256,)).one()
    assert tuple(row) == (named.length, "denials")
    part = DenySet().with_list(payload, hub.authority.set, hub.denials.head)
    assert part.is_denied(sha256(b"239")) is not None and part.is_denied(sha256(b"0")) is None
    assert hub.node().count == 240


def test_a_denied_recipe_is_named_by_its_digest(hub):
    hub.deny(of_release(releases=(RECIPE,)), "deny-2")
    assert hub.denials.is_recipe_denied(RECIPE) and not hub.denials.is_recipe_denied(GOOD)

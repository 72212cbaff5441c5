"""Confidential releases at the hub: who gets which key, what is offered and sent, what is refused, what goes when."""

import json
import stat

import pytest
import sqlalchemy as sa

from fleets import NODE_KEY, NOW, OTHER_KEY, request
from heliograph import sealing
from heliograph.blob import LEAF_BYTES, sha256
from heliograph.delta import recipe as recipes_format
from heliograph.documents import SealRef, Want
from heliograph.errors import IntegrityError, NotFoundError, RefusedError
from heliograph.manifest import Manifest
from heliograph.objects import ObjectStore
from heliograph.sealing import leaf_key, open_range, seal_range
from heliograph.sender import Sender
from heliograph.statement import MAX_STATEMENT_BYTES
from heliograph_hub.bundle import MAX_CONFIDENTIAL_FILES
from heliograph_hub.database import epochs as epochs_table
from heliograph_hub.distribution import Distribution
from heliograph_hub.epochs import MAX_FILE_BYTES, MAX_KEYS
from heliograph_hub.registry import FULL
from heliograph_hub.seals import KEEP_S, Seals, Task
from limits import no_room_beyond
from offering import HANDLE, NEW, OLD, Realm

DAY = 86_400


@pytest.fixture
def realm(tmp_path):
    realm = Realm(tmp_path)
    yield realm
    realm.hub.database.close()


# --- offers -----------------------------------------------------------------------------------------------------------


def test_a_confidential_release_is_offered_sealed_and_opens_with_the_nodes_own_key_at_the_stated_cost(realm):
    release = realm.add("1.0.0", OLD)
    first = realm.ask(release)
    assert (first.ways, first.grant, first.never) == ((), None, False) and first.later_s is not None
    assert "of the ways to digits@1.0.0 are being sealed" in first.reason
    offer = realm.offer(release)
    files = realm.registry.manifest(release).files
    assert [(way.kind, way.blob) for way in offer.ways] == [("full", f.sha256) for f in files]
    for way in offer.ways:
        plain, sent = realm.opened(offer, way)
        assert set(plain) == {way.blob} and sent == way.bytes
    with pytest.raises(IntegrityError):
        realm.opened(offer, offer.ways[0], OTHER_KEY)


def test_a_delta_to_it_is_a_sealed_recipe_and_a_sealed_patch(realm):
    old, new = realm.add("1.0.0", OLD), realm.add("1.1.0", NEW)
    offer = realm.offer(new, held=old)
    delta, full = offer.ways
    assert (delta.kind, full.kind) == ("delta", "full") and delta.bytes < full.bytes / 50
    plain, sent = realm.opened(offer, delta)
    assert sent == delta.bytes
    recipe = recipes_format.parse(plain[delta.recipe.sha256])
    assert len(plain[delta.recipe.sha256]) == delta.recipe.length and set(plain) == {
        delta.recipe.sha256,
        recipe.patch_sha256,
    }
    recipe.check_is_for(sha256(OLD), sha256(NEW), len(NEW))


def test_a_sealed_way_costs_less_than_a_hundredth_more_than_the_plain_one(realm):
    old, new = realm.add("1.0.0", OLD), realm.add("1.1.0", NEW)
    files = {file.sha256: file.length for file in realm.registry.manifest(new).files}
    offer = realm.offer(new, held=old)
    full = next(way for way in offer.ways if way.kind == "full")
    plain = files[full.blob] + 16 * -(-files[full.blob] // LEAF_BYTES)
    assert plain < full.bytes < 1.01 * plain


def test_a_delta_whose_patch_is_empty_has_a_seal_of_the_recipe_alone(realm):
    old, new = realm.add("1.0.0", OLD), realm.add("1.1.0", OLD[:-LEAF_BYTES], golden=b"2")
    offer = realm.offer(new, held=old)
    delta = next(way for way in offer.ways if way.blob == sha256(OLD[:-LEAF_BYTES]) and way.kind == "delta")
    plain, sent = realm.opened(offer, delta)
    assert set(plain) == {delta.recipe.sha256} and sent == delta.bytes


def test_a_public_release_is_offered_as_ever_and_never_with_a_key(realm):
    release = realm.add("1.0.0", OLD, confidential=False)
    offer = realm.ask(release)
    assert offer.grant is None and offer.ways and all(way.seal is None for way in offer.ways)
    assert realm.begun == [] and not (realm.folder / "keys").exists()


def test_the_ways_of_the_largest_confidential_bundle_fit_an_offer(realm):
    release = realm.add("1.0.0", OLD)
    offer = realm.offer(release)
    longest = offer.ways[0].model_copy(update={"bytes": 1 << 40, "seal": SealRef(length=1 << 20, sha256=bytes(32))})
    largest = offer.model_copy(update={"ways": (longest,) * MAX_CONFIDENTIAL_FILES})
    assert len(largest.encode()) < MAX_STATEMENT_BYTES - 1024
    with pytest.raises(RefusedError, match=f"more than {MAX_CONFIDENTIAL_FILES} files"):
        realm.add("1.1.0", OLD, extra=[b"%d" % number for number in range(MAX_CONFIDENTIAL_FILES - 2)])


def test_what_cannot_be_sealed_is_said_and_nothing_is_sent_plain_instead(realm):
    release = realm.add("1.0.0", OLD)
    realm.registry.objects.path(sha256(OLD)).write_bytes(b"rotten")
    realm.ask(release)
    assert any("can't be sealed" in line for line in realm.work())
    offer = realm.ask(release)
    assert (offer.ways, offer.grant) == ((), None) and "1 files of digits@1.0.0 can't be sealed" in offer.reason
    realm.registry.add(realm.folder / "1.0.0", NOW)
    realm.seals.request_release(release, NOW)
    realm.work()
    assert len(realm.ask(release).ways) == 3, "added again, it is sealed"


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_plain_bytes_of_a_confidential_release_are_sent_to_nobody_and_its_manifest_is(realm):
    """Attack: a node, or who has a node's certificate, asks by digest for what is only offered sealed."""
    old, new = realm.add("1.0.0", OLD), realm.add("1.1.0", NEW)
    realm.offer(new, held=old)
    (delta,) = realm.registry.deltas_to(sha256(NEW))
    for secret in (sha256(OLD), sha256(NEW), delta.recipe, delta.patch):
        with pytest.raises(RefusedError, match="is confidential: only what is sealed of it is sent"):
            realm.distribution.take("lab", "pi-1", Want(handle=HANDLE, blob=secret, ranges=((0, 1),)), 0.0)
    assert realm.distribution.next(0.0) is None
    assert realm.distribution.take("lab", "pi-1", Want(handle=HANDLE, blob=new.digest, ranges=((0, 1),)), 0.0) == 1


def test_a_file_that_a_public_release_has_too_is_sent_plain_and_that_is_told(realm):
    secret = realm.add("1.0.0", OLD)
    assert realm.registry.shared(secret) == []
    public = realm.add("1.1.0", NEW, confidential=False)
    shared = {name: other.name for name, other in realm.registry.shared(secret)}
    assert shared == {"in.json": "digits@1.1.0", "out.json": "digits@1.1.0"}
    assert {name: other.name for name, other in realm.registry.shared(public)} == dict.fromkeys(shared, "digits@1.0.0")
    golden = realm.registry.manifest(secret).file("in.json")
    assert realm.distribution.take("lab", "pi-1", Want(handle=HANDLE, blob=golden.sha256, ranges=((0, 1),)), 0.0) == 1
    assert all(way.seal is not None for way in realm.offer(secret).ways)


def test_a_public_release_has_no_recipe_from_a_secret_base(realm):
    secret, public = realm.add("1.0.0", OLD), realm.add("1.1.0", NEW, confidential=False)
    later = realm.add("1.2.0", OLD + NEW)
    assert realm.registry.pairs(public, [sha256(OLD)]) == []
    assert realm.registry.pairs(later, [sha256(OLD), sha256(NEW)]) != []
    assert secret.confidential and not public.confidential


def test_attack_the_way_from_a_secret_file_to_one_that_became_public_tells_nobody_of_the_first(realm):
    """A recipe's patch and its public target give back the base."""
    old, new = realm.add("1.0.0", OLD), realm.add("1.1.0", NEW)
    realm.offer(new, held=old)
    public = realm.add("1.2.0", NEW, confidential=False)
    assert [(way.kind, way.seal) for way in realm.ask(public, held=old).ways] == [("full", None)]
    (delta,) = realm.registry.deltas_to(sha256(NEW))
    for secret in (delta.recipe, delta.patch):
        with pytest.raises(RefusedError, match="is confidential"):
            realm.distribution.take("lab", "pi-1", Want(handle=HANDLE, blob=secret, ranges=((0, 1),)), 0.0)
    assert [(way.kind, way.seal is None) for way in realm.offer(new, held=old).ways] == [
        ("delta", False),
        ("full", False),
    ]


def test_a_public_release_keeps_its_deltas_from_public_files_beside_confidential_ones(realm):
    old, new = realm.add("1.0.0", OLD, confidential=False), realm.add("1.1.0", NEW, confidential=False)
    realm.recipes.request(realm.registry.pairs(new, [sha256(OLD)]), 0.0)
    realm.work()
    realm.add("1.2.0", OLD + NEW)
    delta, full = realm.ask(new, held=old).ways
    assert (delta.kind, delta.seal, full.kind) == ("delta", None, "full")
    want = Want(handle=HANDLE, blob=delta.recipe.sha256, ranges=((0, 1),))
    assert realm.distribution.take("lab", "pi-1", want, 0.0) == 1


def test_what_belongs_to_a_release_whose_manifest_has_rotted_is_taken_for_secret(realm):
    release = realm.add("1.0.0", OLD)
    path = realm.registry.objects.path(release.digest)
    path.write_bytes(b"rotten")
    with pytest.raises(RefusedError, match="is confidential"):
        realm.distribution.take("lab", "pi-1", Want(handle=HANDLE, blob=sha256(OLD), ranges=((0, 1),)), 0.0)


def test_sealed_blobs_belong_to_the_release_whose_plain_bytes_they_are(realm):
    """Else no pause, policy or budget would hold them back."""
    old, new = realm.add("1.0.0", OLD), realm.add("1.1.0", NEW)
    offer = realm.offer(new, held=old)
    for way in offer.ways:
        seal = sealing.parse(realm.registry.objects.read(way.seal.sha256))
        for digest in (way.seal.sha256, *(blob.sealed for blob in seal.blobs)):
            assert realm.registry.owners(digest) == (new.digest,)


# --- epochs -----------------------------------------------------------------------------------------------------------


def test_keys_are_in_a_file_for_the_owner_alone_and_nowhere_else(realm):
    realm.offer(realm.add("1.0.0", OLD))
    epoch = realm.epochs.newest("digits", NOW)
    path = realm.folder / "keys" / "epochs" / "digits.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert json.loads(path.read_bytes()) == {"format": 1, "model": "digits", "keys": {"1": epoch.key.hex()}}
    everything = [p for p in realm.folder.rglob("*") if p.is_file() and p != path]
    assert all(epoch.key not in p.read_bytes() and epoch.key.hex().encode() not in p.read_bytes() for p in everything)
    assert repr(epoch) == "Epoch(digits, 1)" and "digits" in repr(realm.begun)
    assert realm.open_epochs().newest("digits", NOW).key == epoch.key


def test_a_node_that_was_removed_or_replaced_is_not_granted_what_is_sealed_from_then_on(realm):
    """Attack: a removed node opens the next release with all it ever got."""
    release = realm.add("1.0.0", OLD)
    before = realm.offer(release)
    epoch_key = NODE_KEY.open_box(before.grant.box)
    gone = realm.hub.fleet.node("lab", "pi-1")
    realm.hub.enrolment.remove("lab", "pi-1", NOW + 1)
    with pytest.raises(RefusedError, match="nothing is granted"):
        realm.epochs.grant(realm.epochs.newest("digits", NOW + 1), "lab", "pi-1", gone.keyid)
    realm.seals.request_release(release, NOW + 1)
    realm.work()
    with pytest.raises(RefusedError, match="nothing is granted"):
        realm.ask(release, now=NOW + 1, node=gone)  # was on its way when the node was removed
    realm.hub.enrolment.add_token("lab", "pi-1", b"2" * 32, NOW + 2, DAY)
    realm.hub.enrolment.enroll("lab", "pi-1", request(key=OTHER_KEY, token=b"2" * 32), NOW + 2)
    new = realm.add("1.1.0", NEW)
    offer = realm.offer(new, now=NOW + 3)
    assert offer.grant.epoch == 2 and OTHER_KEY.open_box(offer.grant.box) != epoch_key
    way = next(way for way in offer.ways if way.blob == sha256(NEW))
    seal = sealing.parse(realm.unpaged(way.seal))
    sealed, _ = realm.fetch(seal.blobs[0].sealed, seal.blobs[0].length, seal.blobs[0].pages)
    with pytest.raises(IntegrityError):
        open_range(leaf_key(epoch_key, sha256(NEW)), 0, sealed)
    with pytest.raises(IntegrityError):
        NODE_KEY.open_box(offer.grant.box)


def test_hardware_that_is_swapped_begins_an_epoch_even_if_the_hub_was_killed_in_between(realm):
    assert realm.epochs.newest("digits", NOW).number == 1
    realm.hub.enrolment.add_token("lab", "pi-1", b"2" * 32, NOW, DAY)
    realm.hub.enrolment.enroll("lab", "pi-1", request(key=OTHER_KEY, token=b"2" * 32), NOW)
    again = realm.open_epochs()
    assert [again.newest("digits", NOW).number for _ in range(3)] == [2, 2, 2]
    assert realm.begun == [(NOW, "digits", 1, "the first"), (NOW, "digits", 2, "a node's key has ended")]


def test_an_epoch_begins_when_somebody_asks_and_models_have_their_own(realm):
    first = realm.epochs.newest("digits", NOW)
    other = realm.epochs.newest("faces", NOW)
    second = realm.epochs.begin("digits", NOW)
    assert (first.number, second.number, other.number) == (1, 2, 1)
    assert len({first.key, second.key, other.key}) == 3
    assert (realm.epochs.newest("digits", NOW), realm.epochs.newest("faces", NOW)) == (second, other)
    assert (realm.epochs.number("digits"), realm.epochs.number("cats")) == (2, None)


def test_a_number_never_stands_for_two_keys_whichever_of_file_and_database_was_restored(realm):
    path = realm.folder / "keys" / "epochs" / "digits.json"
    first = realm.epochs.newest("digits", NOW)
    older = path.read_bytes()
    seen = {1: first.key}
    for lose in (
        path.unlink,
        lambda: path.write_bytes(older),
        lambda: _forget_rows(realm),
        lambda: path.write_bytes(older.replace(first.key.hex().encode(), b"ab" * 32)),
    ):
        epoch = realm.epochs.newest("digits", NOW)
        assert seen.setdefault(epoch.number, epoch.key) == epoch.key
        lose()
        after = realm.epochs.newest("digits", NOW)
        assert after.number not in seen
        seen[after.number] = after.key
    assert len(set(seen.values())) == len(seen) == 5


def test_an_epoch_begins_however_many_there_were(realm):
    path = realm.folder / "keys" / "epochs" / "digits.json"
    path.parent.mkdir(parents=True)
    keys = {str(number): bytes(32).hex() for number in range(2**31 - 2 - MAX_KEYS, 2**31 - 2)}
    path.write_text(json.dumps({"format": 1, "model": "digits", "keys": keys}, indent=1))
    assert realm.epochs.newest("digits", NOW).number == 2**31 - 2
    newest = realm.epochs.begin("digits", NOW)
    assert newest.number == 2**31 - 1 and path.stat().st_size < MAX_FILE_BYTES / 2
    assert realm.open_epochs().newest("digits", NOW).key == newest.key
    assert len(json.loads(path.read_text())["keys"]) == MAX_KEYS


def _forget_rows(realm):
    with realm.hub.database.write() as connection:
        connection.execute(sa.delete(epochs_table).where(epochs_table.c.epoch > 1))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "no file of epoch keys"),
        (b'{"format": 2, "model": "digits", "keys": {}}', "has format 2, this version reads 1"),
        (b'{"format": 1, "model": "faces", "keys": {}}', "no file of digits's epoch keys"),
        (b'{"format": 1, "model": "digits", "keys": {"1": "00"}}', "no file of digits's epoch keys"),
        (b'{"format": 1, "model": "digits", "keys": {"x": "zz"}}', "no file of digits's epoch keys"),
    ],
)
def test_a_damaged_file_of_keys_is_told_and_never_overwritten(realm, content, words):
    release = realm.add("1.0.0", OLD)
    realm.epochs.newest("digits", NOW)
    path = realm.folder / "keys" / "epochs" / "digits.json"
    path.write_bytes(content)
    with pytest.raises(RefusedError, match=words):
        realm.seals.request_release(release, NOW)
    offer = realm.ask(release)
    assert (offer.ways, offer.grant, offer.never) == ((), None, False) and "has no key" in offer.reason
    assert path.read_bytes() == content


class Rotting(ObjectStore):
    """A disk on which a byte of one object turns right after it was found whole."""

    victim = sha256(OLD)

    def verify(self, digest):
        was_whole = super().verify(digest)
        if digest == self.victim:
            with self.path(digest).open("r+b") as file:
                file.seek(100_000)
                file.write(b"?")
        return was_whole


def test_nothing_but_the_file_is_ever_sealed_by_its_key(realm):
    """A second plaintext under the same key and nonces would give away both."""
    release = realm.add("1.0.0", OLD)
    seals = Seals(realm.hub.database, Rotting(realm.folder / "objects"), realm.registry, realm.epochs)
    seals.request([Task("digits", FULL, sha256(OLD))])
    objects = set(realm.registry.objects.list())
    assert release.confidential and "changed while it was sealed" in seals.make(seals.take(), NOW)
    assert set(realm.registry.objects.list()) == objects


def test_a_full_disk_stops_sealing_alone_and_is_told(realm):
    """The hub goes on: denials must go out."""
    release = realm.add("1.0.0", OLD)
    realm.epochs.newest("digits", NOW)
    with no_room_beyond(len(OLD)):
        realm.ask(release)
        assert any("can't be sealed" in line and "File too large" in line for line in realm.work())
        offer = realm.ask(release)
    assert (offer.ways, offer.grant, offer.never) == ((), None, False) and "1 files of digits@1.0.0" in offer.reason
    realm.seals.request_release(release, NOW)
    assert all(way.seal is not None for way in realm.offer(release).ways)


def test_a_full_disk_takes_no_key_and_nothing_is_sealed_by_one_that_is_not_kept(realm):
    release = realm.add("1.0.0", OLD)
    with no_room_beyond(0):
        with pytest.raises(RefusedError, match=r"digits\.json can't be written: File too large"):
            realm.seals.request_release(release, NOW)
        offer = realm.ask(release)
    assert (offer.ways, offer.grant, offer.never) == ((), None, False) and "has no key" in offer.reason
    assert realm.begun == [] and realm.offer(release).grant.epoch == 1


# --- what goes --------------------------------------------------------------------------------------------------------


def test_what_is_sealed_under_an_older_epoch_is_sent_for_a_fortnight_more_and_then_goes(realm):
    release = realm.add("1.0.0", OLD)
    old = realm.offer(release)
    held = sum(1 for _ in realm.registry.objects.list())
    realm.epochs.begin("digits", NOW)
    new = realm.offer(release)
    assert {way.seal.sha256 for way in old.ways}.isdisjoint(way.seal.sha256 for way in new.ways)
    assert realm.seals.drop_old(NOW + KEEP_S - 1) == 0
    realm.opened(old, old.ways[0])
    assert realm.seals.drop_old(NOW + KEEP_S) == 6, "three sealed files and their seals"
    assert sum(1 for _ in realm.registry.objects.list()) == held
    again = Distribution(realm.registry, Sender())
    with pytest.raises(NotFoundError):
        again.take("lab", "pi-1", Want(handle=HANDLE, blob=old.ways[0].seal.sha256, ranges=((0, 1),)), 0.0)
    assert realm.offer(release).ways == new.ways
    realm.opened(new, new.ways[0])
    assert realm.seals.drop_old(NOW + 100 * KEEP_S) == 0, "the newest stays"


def test_an_empty_file_is_sealed_to_nothing_and_its_plain_object_outlives_every_epoch(realm):
    release = realm.add("1.0.0", OLD, extra=[b""])
    offer = realm.offer(release)
    empty = next(way for way in offer.ways if way.blob == sha256(b""))
    assert sealing.parse(realm.unpaged(empty.seal)).blobs[0].length == 0 and empty.bytes == empty.seal.length
    realm.epochs.begin("digits", NOW)
    realm.seals.drop_old(NOW + KEEP_S)
    assert realm.registry.objects.has(sha256(b""))
    assert realm.offer(release).grant.epoch == 2


def test_a_hub_seals_as_the_nodes_do(realm):
    """A node that rebuilt a file seals it to the very same blob, which it can pass on."""
    release = realm.add("1.0.0", OLD)
    offer = realm.offer(release)
    way = next(way for way in offer.ways if way.blob == sha256(OLD))
    (blob,) = sealing.parse(realm.unpaged(way.seal)).blobs
    key = leaf_key(NODE_KEY.open_box(offer.grant.box), sha256(OLD))
    assert realm.registry.objects.read(blob.sealed) == seal_range(key, 0, OLD)


def test_the_manifest_says_that_it_is_confidential_and_the_release_does(realm):
    release = realm.add("1.0.0", OLD)
    manifest = realm.registry.manifest(release)
    assert isinstance(manifest, Manifest) and manifest.confidential and "confidential" in manifest.crit
    assert realm.registry.find("digits", "1.0.0").confidential
    assert not realm.add("1.1.0", NEW, confidential=False).confidential

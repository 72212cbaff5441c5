"""What a node believes when nobody attacks; the attacks are in test_trust_attacks.py."""

import random

import pytest

from golden import DOCUMENTS, FOLDER, MANIFEST
from heliograph import statement as envelope
from heliograph import trust, vouching
from heliograph.blob import sha256
from heliograph.documents import LANES, Denials, Heads, LaneReceipt, Receipt, Reply
from heliograph.errors import IntegrityError, TrustError
from heliograph.protocol import topic
from heliograph.signing import PrivateKey, sign_statement
from heliograph.wire import compress, pack, unpack
from heliograph_hub import ceremony
from realms import DAY, MODEL, NOW, Realm

HEADS = Heads(
    deny=Denials(count=2, digest=b"d" * 32),
    policy={"canary": 3},
    config={MODEL: 4},
    directives={"canary": sha256(b"canary"), "protected": sha256(b"protected")},
)


def test_a_root_alone_is_believed_for_its_realm_and_nothing_else(realm: Realm) -> None:
    held = realm.bootstrap()
    assert (held.realm, held.kind, held.versions) == ("demo", "development", {"root": 1})
    assert (held.is_complete, held.is_fresh(NOW), held.at, held.heads) == (False, False, 0, Heads())
    assert held.models == ()
    with pytest.raises(TrustError, match="wait for the set"):
        held.role_keys("assign")
    with pytest.raises(TrustError, match="no complete set"):
        vouching.admit(held, realm.sign("ring-canary", "directive", realm.directive(b"r" * 32)), "canary", NOW)


def test_a_set_brings_models_releases_heads_and_freshness(realm: Realm) -> None:
    realm.heads = HEADS
    two, one = realm.list_release("1.10.0", b"two"), realm.list_release("1.9.0", b"one", length=77)
    held = trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW + 5)
    assert held.models == (MODEL,)
    assert [target.sha256 for target in held.releases(MODEL)] == [one, two]
    assert held.heads == HEADS
    assert (held.at, held.fresh_until) == (NOW, NOW + 7 * DAY)
    assert held.is_fresh(NOW + 7 * DAY - 1)
    assert held.expired(NOW) == ()
    assert set(held.expired(NOW + 200 * DAY)) == {"timestamp", "snapshot", f"sign-{MODEL}", f"approve-{MODEL}"}
    target = held.target(MODEL, one)
    assert target is not None
    assert (target.path, target.version, target.length) == (f"{MODEL}/1.9.0", "1.9.0", 77)
    assert target.listed_by == {f"sign-{MODEL}", f"approve-{MODEL}"}
    assert held.target("faces", one) is None
    threshold, keys = held.role_keys(f"approve-{MODEL}")
    assert (threshold, keys) == (2, {key.keyid: key.public.raw for key in realm.keys[f"approve-{MODEL}"]})


def test_an_admitted_release_names_everybody_who_vouched_for_it(realm: Realm) -> None:
    release = realm.list_release("1.0.0", b"one")
    held = trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW)
    admitted = vouching.admit(held, realm.sign("ring-canary", "directive", realm.directive(release)), "canary", NOW)
    vouchers = [f"sign-{MODEL}", f"approve-{MODEL}", "ring-canary"]
    assert set(admitted.keyids) == {key.keyid for role in vouchers for key in realm.signers(role)}
    assert (admitted.target.sha256, admitted.directive.number) == (release, 1)


def test_the_same_set_again_changes_nothing_even_when_expired(realm: Realm) -> None:
    packed = realm.publish().pack()
    held = trust.with_set(realm.bootstrap(), packed, NOW)
    assert trust.with_set(held, packed, NOW + 300 * DAY) is held
    assert trust.with_root(held, realm.roots[0]) is held


def test_a_refused_set_leaves_the_held_one_as_it_was(realm: Realm) -> None:
    release = realm.list_release("1.0.0", b"one")
    held = trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW)
    before = trust.state_to_bytes(held)
    with pytest.raises(TrustError):
        trust.with_set(held, realm.publish(signers={"targets": []}).pack(), NOW)
    assert trust.state_to_bytes(held) == before
    assert held.target(MODEL, release) is not None


def test_a_head_tells_whether_a_newer_set_exists(realm: Realm) -> None:
    first, second = realm.publish(), realm.publish()
    empty = realm.bootstrap()
    assert trust.with_head(empty, first.timestamp, NOW)
    held = trust.with_set(empty, first.pack(), NOW)
    assert not trust.with_head(held, first.timestamp, NOW)
    assert trust.with_head(held, second.timestamp, NOW)
    newest = trust.with_set(held, second.pack(), NOW)
    assert not trust.with_head(newest, first.timestamp, NOW)


@pytest.mark.parametrize("round_", range(25))
def test_any_order_with_repeats_of_sets_and_roots_ends_in_the_same_set(seed: int, round_: int) -> None:
    rng = random.Random(f"{seed} {round_}")
    realm = SHUFFLED.setdefault(seed, shuffled(seed))
    messages = [("root", root) for root in realm[0].roots[1:]] + [("set", packed) for packed in realm[1]]
    deck = messages * 3
    rng.shuffle(deck)
    held = realm[0].bootstrap()
    # Retained messages come again on every connect: the newest root chain and set always arrive at last.
    for kind, data in [*deck, *messages]:
        try:
            held = trust.with_root(held, data) if kind == "root" else trust.with_set(held, data, NOW)
        except (TrustError, IntegrityError):
            continue
    assert trust.state_to_bytes(held) == realm[2]


SHUFFLED: dict[int, tuple[Realm, list[bytes], bytes]] = {}


def shuffled(seed: int) -> tuple[Realm, list[bytes], bytes]:
    realm, sets = Realm(seed), []
    held = realm.bootstrap()
    for number, rotated in enumerate(([], ["timestamp"], ["root", "snapshot"], ["targets"])):
        if rotated:
            held = trust.with_root(held, realm.rotate(*rotated))
        for step in range(2):
            realm.list_release(f"1.{number}.{step}", b"%d %d" % (number, step))
            sets.append(realm.publish().pack())
            held = trust.with_set(held, sets[-1], NOW)
    return realm, sets, trust.state_to_bytes(held)


def test_the_state_survives_its_row_at_every_stage(realm: Realm) -> None:
    realm.heads = HEADS
    realm.list_release("1.0.0", b"one")
    stages = [realm.bootstrap()]
    stages.append(trust.with_set(stages[-1], realm.publish().pack(), NOW))
    stages.append(trust.with_root(stages[-1], realm.rotate("timestamp", "snapshot")))
    stages.append(trust.with_root(stages[-2], realm.rotate("targets", version=2)))
    for stage in stages:
        restored = trust.state_from_bytes(trust.state_to_bytes(stage))
        assert restored == stage
        assert restored.versions == stage.versions
        assert restored.heads == stage.heads
        assert restored.releases(MODEL) == stage.releases(MODEL)


def test_the_state_of_a_newer_version_is_refused_with_what_to_do(realm: Realm) -> None:
    row = unpack(trust.state_to_bytes(realm.bootstrap()))
    with pytest.raises(IntegrityError, match="format 2, this version reads 1: run the newer heliograph"):
        trust.state_from_bytes(pack([2, *row[1:]]))


def test_a_set_of_a_newer_format_is_refused_by_its_number(realm: Realm) -> None:
    with pytest.raises(IntegrityError, match="format 2, this version reads 1"):
        trust.with_set(realm.bootstrap(), compress(pack({"format": 2})), NOW)


def test_a_model_whose_duties_have_no_files_yet_is_no_obstacle(realm: Realm) -> None:
    """In a realm with offline keys a model is delegated before anybody has signed a file for it."""
    realm.listed.clear()
    held = trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW)
    assert held.models == (MODEL,)
    assert held.releases(MODEL) == ()


def test_a_manifest_must_be_the_release_it_is_listed_as(realm: Realm) -> None:
    data = MANIFEST.encode()
    wrong = realm.list_release("9.9.9", data, length=len(data))
    held = trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW)
    target = held.target(MODEL, wrong)
    assert target is not None
    with pytest.raises(IntegrityError, match=r"is listed as digits/9.9.9"):
        target.open_manifest(data)
    with pytest.raises(IntegrityError):
        target.open_manifest(data + b" ")
    realm.list_release(MANIFEST.version, data, length=len(data))
    renewed = trust.with_set(held, realm.publish().pack(), NOW)
    right = next(t for t in renewed.releases(MANIFEST.model) if t.version == MANIFEST.version)
    assert right.open_manifest(data) == MANIFEST


def test_what_a_node_signed_is_opened_for_that_node_only(seed: int) -> None:
    document = DOCUMENTS["reported"]
    key = PrivateKey.generate(random.Random(seed).randbytes(32))
    data = sign_statement("reported", document.encode(), [key])
    names = {"site": document.site, "node": document.node}
    row, public = topic("reported"), key.public.raw
    assert vouching.open_own(data, row, names, realm="demo", public_key=public) == document
    with pytest.raises(TrustError, match="names another site"):
        vouching.open_own(data, row, names | {"site": "depot"}, realm="demo", public_key=public)
    with pytest.raises(TrustError, match="names another realm"):
        vouching.open_own(data, row, names, realm="other", public_key=public)
    with pytest.raises(TrustError, match="not a statement that nodes sign"):
        vouching.open_own(sign_statement("offer", b"", [key]), topic("offer"), names, realm="demo", public_key=public)
    with pytest.raises(TrustError, match="came on topic"):
        vouching.open_own(data, topic("records"), names, realm="demo", public_key=public)


def test_a_reader_that_does_not_say_who_it_is_reads_nothing_meant_for_one_node(realm: Realm) -> None:
    held = trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW)
    receipt = Receipt(realm="demo", site="shop", node="till", key=b"k" * 32, run=b"r" * 8, lane="audit", next=1)
    data = realm.sign("recipes", "receipt", receipt)
    row, names = topic("receipt"), {"site": "shop", "node": "till"}
    assert vouching.open_document(held, data, row, names, site="shop", node="till", key=b"k" * 32) == receipt
    with pytest.raises(TrustError, match="is for node shop/till"):
        vouching.open_document(held, data, row, names)


def test_verify_gives_the_payload_of_a_role(realm: Realm) -> None:
    held = trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW)
    statement = envelope.parse(sign_statement("deny-key", b"payload", realm.keys["deny-key"][1:]))
    assert vouching.verify(held, statement, "deny-key") == b"payload"


def test_twenty_releases_of_a_model_stay_a_small_message(realm: Realm) -> None:
    for number in range(20):
        realm.list_release(f"1.{number}.0", b"%d" % number)
    realm.heads = HEADS
    files = realm.publish()
    assert len(files.timestamp) <= 1024
    assert len(files.pack()) <= 5 * 1024
    for number in range(2000):
        realm.list_release(f"2.{number}.0", b"%d!" % number)
    with pytest.raises(IntegrityError, match="exceeds 57344"):
        realm.publish().pack()


def test_golden_files_are_still_read() -> None:
    """Bytes that were stored or sent once; made by `Realm(1)` with release 1.0.0 of content `one`."""
    root, packed, row, key = (
        (FOLDER / name).read_bytes() for name in ("root.json", "set.zst", "trust-state.bin", "key.json")
    )
    held = trust.with_set(trust.bootstrap(root, sha256(root)), packed, NOW)
    assert held.target(MODEL, sha256(b"one")).listed_by == {f"sign-{MODEL}", f"approve-{MODEL}"}
    assert held.heads == HEADS
    assert trust.state_from_bytes(row) == held
    assert trust.state_to_bytes(held) == row
    private = PrivateKey.from_json(key, "key.json")
    assert private.keyid in held.role_keys("timestamp")[1]
    assert private.to_json() == key


def test_the_largest_set_fits_into_a_signed_reply(realm: Realm) -> None:
    """A node that no retained message reaches gets it by hello alone."""
    acked = tuple(LaneReceipt(run=bytes([at] * 8), lane=lane, next=1 << 40) for at in range(5) for lane in LANES)
    heads = HEADS.model_copy(update={"config": {f"model-{at}": at for at in range(10)}})
    reply = Reply(
        realm="demo",
        site="s" * 40,
        node="n" * 40,
        key=bytes(32),
        nonce=bytes(16),
        at=NOW,
        heads=heads,
        acked=acked,
        documents=(("tuf/set", random.Random(1).randbytes(trust.MAX_SET_BYTES)),),
    )
    data = sign_statement("reply", reply.encode(), realm.keys["timestamp"])
    assert envelope.parse(data).payload == reply.encode()


def test_a_signed_time_counts_only_as_far_as_what_was_signed_offline(realm: Realm) -> None:
    held = trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW)
    assert held.within(NOW + 5) == NOW + 5
    year_2040 = 2_208_988_800
    assert held.within(year_2040) == NOW + ceremony.LIFE_S["targets"] < year_2040

"""Attacks on roots, sets and the stored state, by whoever holds the broker, the link, the disk, or some of the keys."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuf.api.metadata import Metadata

from heliograph import statement as envelope
from heliograph import trust, vouching
from heliograph.blob import sha256
from heliograph.errors import IntegrityError, TrustError
from heliograph.protocol import topic
from heliograph.signing import PrivateKey
from heliograph.trust import TrustedSet
from heliograph.wire import compress, decompress, pack
from heliograph_hub import ceremony
from realms import DAY, MODEL, NOW, Files, Realm

SIGN, APPROVE = f"sign-{MODEL}", f"approve-{MODEL}"


def thief(realm: Realm) -> PrivateKey:
    return realm.new_key()


# --- signatures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", SIGN, APPROVE])
def test_a_set_with_an_unsigned_file_is_refused(realm: Realm, held: TrustedSet, role: str) -> None:
    with pytest.raises(TrustError, match="signed by 0 of its keys"):
        trust.with_set(held, realm.publish(signers={role: []}).pack(), NOW)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", SIGN, APPROVE])
def test_a_set_with_a_file_signed_by_other_keys_is_refused(realm: Realm, held: TrustedSet, role: str) -> None:
    others = [thief(realm), realm.keys["assign"][0], realm.keys["root"][0]]
    with pytest.raises(TrustError, match="signed by 0 of its keys"):
        trust.with_set(held, realm.publish(signers={role: others}).pack(), NOW)


@pytest.mark.parametrize("role", ["targets", APPROVE])
def test_threshold_minus_one_is_not_enough(realm: Realm, held: TrustedSet, role: str) -> None:
    files = realm.publish(signers={role: [realm.keys[role][0]]})
    with pytest.raises(TrustError, match="signed by 1 of its keys, it needs 2"):
        trust.with_set(held, files.pack(), NOW)


def test_one_key_signing_twice_counts_once(realm: Realm, held: TrustedSet) -> None:
    def repeat(data: bytes) -> bytes:
        content = json.loads(data)
        content["signatures"] *= 2
        return json.dumps(content).encode()

    files = relist(realm, lambda f: f.delegated.update({APPROVE: repeat(f.delegated[APPROVE])}), APPROVE, 1)
    with pytest.raises((TrustError, IntegrityError)):
        trust.with_set(held, files.pack(), NOW)


def test_one_key_under_two_key_ids_is_refused(realm: Realm, held: TrustedSet) -> None:
    """The delegation names one public key twice: by its digest and by an invented id, so one signature would be two."""
    key = realm.keys[APPROVE][0]

    def alias(signed: Any) -> None:
        twin = key.public.tuf_key()
        twin.keyid = "ab" * 32
        signed.delegations.keys[twin.keyid] = twin
        signed.delegations.roles[APPROVE].keyids = [key.keyid.hex(), twin.keyid]

    with pytest.raises(IntegrityError, match="digest of its key"):
        trust.with_set(held, realm.publish(edit={"targets": alias}).pack(), NOW)


@pytest.mark.parametrize("field", ["extra", "upper"])
def test_one_key_spelled_in_two_ways_is_refused(realm: Realm, held: TrustedSet, field: str) -> None:
    key = realm.keys[APPROVE][0]

    def respell(signed: Any) -> None:
        twin = signed.delegations.keys[key.keyid.hex()]
        public = twin.keyval["public"]
        twin.keyval = {"public": public, "x": "1"} if field == "extra" else {"public": public.upper()}

    with pytest.raises(IntegrityError, match="one public value of 64"):
        trust.with_set(held, realm.publish(edit={"targets": respell}).pack(), NOW)


@pytest.mark.parametrize("keytype", ["rsa", "ecdsa", "eddsa"])
def test_a_key_of_another_kind_is_refused_before_it_verifies_anything(realm: Realm, keytype: str) -> None:
    scheme = {"rsa": "rsassa-pss-sha256", "ecdsa": "ecdsa-sha2-nistp256", "eddsa": "pgp+eddsa-ed25519"}[keytype]
    content = json.loads(realm.roots[0])
    some = next(iter(content["signed"]["keys"].values()))
    some.update({"keytype": keytype, "scheme": scheme})
    data = json.dumps(content).encode()
    with pytest.raises(IntegrityError):
        trust.bootstrap(data, sha256(data))


# --- rollback, freeze, mix-and-match ------------------------------------------------------------------------------


def test_an_older_set_replayed_is_refused(realm: Realm, held: TrustedSet) -> None:
    old = realm.publish()
    newer = trust.with_set(held, realm.publish().pack(), NOW)
    with pytest.raises(TrustError, match="timestamp of version 2 is older than the held version 3"):
        trust.with_set(newer, old.pack(), NOW)


@pytest.mark.parametrize("role", ["snapshot", "targets", SIGN, APPROVE])
def test_a_newer_timestamp_over_an_older_file_is_refused(realm: Realm, role: str) -> None:
    realm.versions = dict.fromkeys(realm.versions, 5)
    held = trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW)
    realm.versions[role] = 3
    bumped = tuple(name for name in realm.versions if name != role)
    with pytest.raises(TrustError, match=r"of version 3 is older than the held version 6"):
        trust.with_set(held, realm.publish(bump=bumped).pack(), NOW)


def test_a_snapshot_that_forgets_a_role_is_refused(realm: Realm, held: TrustedSet) -> None:
    files = realm.publish(edit={"snapshot": lambda signed: signed.meta.pop(f"{APPROVE}.json")})
    del files.delegated[APPROVE]
    with pytest.raises(TrustError, match="no longer lists"):
        trust.with_set(held, files.pack(), NOW)


@pytest.mark.parametrize("part", ["timestamp", "snapshot", "targets", SIGN, APPROVE])
def test_files_of_two_genuine_sets_can_not_be_mixed(realm: Realm, held: TrustedSet, part: str) -> None:
    first = realm.publish()
    realm.list_release("1.1.0", b"two")
    second = realm.publish()
    if part in second.delegated:
        second.delegated[part] = first.delegated[part]
    else:
        setattr(second, part, getattr(first, part))
    with pytest.raises((TrustError, IntegrityError)):
        trust.with_set(held, second.pack(), NOW)


@pytest.mark.parametrize("part", ["snapshot", "targets", SIGN, APPROVE])
def test_two_genuine_files_of_one_version_can_not_be_exchanged(realm: Realm, held: TrustedSet, part: str) -> None:
    first = realm.publish()
    realm.now += 1
    second = realm.publish(bump=())
    if part in second.delegated:
        second.delegated[part] = first.delegated[part]
    else:
        setattr(second, part, getattr(first, part))
    with pytest.raises(IntegrityError, match=f"'{part}' metadata of .* is not the one that was signed for"):
        trust.with_set(held, second.pack(), NOW + 1)


@pytest.mark.parametrize("role", ["snapshot", "targets", SIGN, APPROVE])
def test_a_file_of_another_version_than_is_stated_of_it_is_refused(realm: Realm, held: TrustedSet, role: str) -> None:
    def misstate(signed: Any) -> None:
        meta = signed.snapshot_meta if role == "snapshot" else signed.meta[f"{role}.json"]
        meta.version = 9

    stater = "timestamp" if role == "snapshot" else "snapshot"
    with pytest.raises(TrustError, match="has version 2, 9 was signed for"):
        trust.with_set(held, realm.publish(edit={stater: misstate}).pack(), NOW)


@pytest.mark.parametrize("part", [SIGN, APPROVE])
def test_a_partial_set_is_refused(realm: Realm, held: TrustedSet, part: str) -> None:
    files = realm.publish()
    del files.delegated[part]
    with pytest.raises(TrustError, match="set is not whole"):
        trust.with_set(held, files.pack(), NOW)


def test_a_file_that_nobody_listed_is_refused(realm: Realm, held: TrustedSet) -> None:
    files = realm.publish()
    files.delegated["assign"] = files.delegated[SIGN]
    with pytest.raises(TrustError, match="set is not whole"):
        trust.with_set(held, files.pack(), NOW)


def test_freeze_an_expired_set_brings_nothing_new(realm: Realm) -> None:
    release = realm.list_release("1.0.0", b"one")
    packed = realm.publish().pack()
    with pytest.raises(TrustError, match=r"timestamp 1 expired at .* nothing new is installed"):
        trust.with_set(realm.bootstrap(), packed, NOW + 7 * DAY)
    held = trust.with_set(realm.bootstrap(), packed, NOW + 7 * DAY - 1)
    assert not held.is_fresh(NOW + 7 * DAY)
    order = realm.sign("ring-canary", "directive", realm.directive(release, expires=NOW + 30 * DAY))
    with pytest.raises(TrustError, match=r"timestamp expired at .* nothing new is installed"):
        vouching.admit(held, order, "canary", NOW + 7 * DAY)
    assert held.target(MODEL, release) is not None


def test_freeze_a_withheld_set_is_noticed_by_its_head(realm: Realm, held: TrustedSet) -> None:
    assert trust.with_head(held, realm.publish().timestamp, NOW)
    with pytest.raises(TrustError, match="expired"):
        trust.with_head(held, realm.publish().timestamp, NOW + 8 * DAY)


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_an_expired_file_under_a_fresh_timestamp_is_refused(realm: Realm, held: TrustedSet, role: str) -> None:
    def expire(signed: Any) -> None:
        signed.expires = signed.expires.replace(year=2020)

    with pytest.raises(TrustError, match=f"{role} 2 expired at"):
        trust.with_set(held, realm.publish(edit={role: expire}).pack(), NOW)


def test_a_stolen_timestamp_key_can_not_run_versions_out_of_numbers(realm: Realm, held: TrustedSet) -> None:
    realm.versions["timestamp"] = trust_max() + 1
    with pytest.raises(IntegrityError, match="out of bounds"):
        trust.with_set(held, realm.publish(bump=()).pack(), NOW)


def test_a_stolen_timestamp_key_can_not_sign_time_beyond_the_offline_expiries(realm: Realm) -> None:
    def leap(signed: Any) -> None:
        signed.unrecognized_fields["custom"]["at"] = NOW + 10_000 * DAY
        signed.expires = signed.expires.replace(year=2080)

    held = trust.with_set(realm.bootstrap(), realm.publish(edit={"timestamp": leap}).pack(), NOW)
    assert held.at == NOW + ceremony.LIFE_S["targets"]


def test_two_timestamps_of_one_version_are_an_alarm(realm: Realm, held: TrustedSet) -> None:
    realm.now += 1
    with pytest.raises(TrustError, match="a second timestamp of version 1"):
        trust.with_set(held, realm.publish(bump=()).pack(), NOW + 1)


def test_fast_forward_by_a_stolen_timestamp_key_ends_with_its_rotation(realm: Realm, held: TrustedSet) -> None:
    realm.versions["timestamp"] = trust_max() - 1
    pushed = trust.with_set(held, realm.publish().pack(), NOW)
    realm.versions["timestamp"] = 2
    recovered = trust.with_root(pushed, realm.rotate("timestamp"))
    assert not recovered.is_complete
    new = trust.with_set(recovered, realm.publish().pack(), NOW)
    assert new.versions["timestamp"] == 3


# --- root ---------------------------------------------------------------------------------------------------------


def test_another_root_than_the_pinned_one_is_refused(realm: Realm, seed: int) -> None:
    with pytest.raises(IntegrityError, match="is not the one of SHA-256"):
        trust.bootstrap(Realm(seed, name="other").roots[0], sha256(realm.roots[0]))


@pytest.mark.parametrize("count", [0, 1])
def test_a_first_root_below_its_own_threshold_is_refused(realm: Realm, count: int) -> None:
    data = realm.rotate(signers=realm.keys["root"][:count], version=1)
    with pytest.raises(TrustError, match=f"signed by {count} of its keys"):
        trust.bootstrap(data, sha256(data))


def test_ten_rotations_missed_are_walked_one_by_one(realm: Realm, held: TrustedSet) -> None:
    for _ in range(10):
        realm.rotate("root", "timestamp")
    packed = realm.publish().pack()
    with pytest.raises(TrustError):
        trust.with_set(held, packed, NOW)
    for root in realm.roots[1:]:
        held = trust.with_root(held, root)
    assert trust.with_set(held, packed, NOW).versions["root"] == 11


def test_a_root_that_skips_a_version_is_refused(realm: Realm, held: TrustedSet) -> None:
    realm.rotate()
    third = realm.rotate()
    with pytest.raises(TrustError, match="root version 3 does not follow 1"):
        trust.with_root(held, third)


def test_an_older_root_replayed_is_refused(realm: Realm, held: TrustedSet) -> None:
    second = trust.with_root(held, realm.rotate())
    with pytest.raises(TrustError, match="root version 1 does not follow 2"):
        trust.with_root(second, realm.roots[0])


def test_a_root_needs_the_old_and_the_new_threshold(realm: Realm, held: TrustedSet) -> None:
    old = realm.signers("root")
    realm.rotate("root")
    new = realm.signers("root")
    for signers in (old, new, [old[0], *new], [*old, new[0]]):
        bad = realm.rotate(signers=signers, version=2)
        with pytest.raises(TrustError, match=r"signed by [01] of its keys, it needs 2"):
            trust.with_root(held, bad)
    assert trust.with_root(held, realm.rotate(signers=[*old, *new], version=2)).versions["root"] == 2


@pytest.mark.parametrize(("field", "value"), [("realm", "other"), ("kind", "production")])
def test_a_root_of_another_realm_or_kind_is_no_successor(
    realm: Realm, held: TrustedSet, field: str, value: str
) -> None:
    bad = realm.rotate(edit=lambda signed: signed.unrecognized_fields["custom"].update({field: value}))
    with pytest.raises(TrustError, match=value):
        trust.with_root(held, bad)


def test_an_expired_root_still_authenticates_the_next_but_takes_no_set(realm: Realm, held: TrustedSet) -> None:
    later = NOW + ceremony.LIFE_S["root"]
    realm.now = later
    packed = realm.publish().pack()
    with pytest.raises(TrustError, match="root 1 expired at"):
        trust.with_set(held, packed, later)
    assert trust.with_set(trust.with_root(held, realm.rotate()), packed, later).is_fresh(later)


def test_a_set_of_another_realm_is_refused(realm: Realm, held: TrustedSet, seed: int) -> None:
    other = Realm(seed, name="other")
    other.list_release("9.0.0", b"other")
    with pytest.raises(TrustError, match="'timestamp' metadata is signed by 0 of its keys"):
        trust.with_set(held, other.publish().pack(), NOW)


def test_after_the_targets_keys_are_rotated_the_old_targets_delegate_nobody(realm: Realm, held: TrustedSet) -> None:
    order = realm.sign("ring-canary", "directive", realm.directive(sha256(b"one")))
    rotated = trust.with_root(held, realm.rotate("targets"))
    with pytest.raises(TrustError):
        vouching.verify(rotated, envelope.parse(order), "ring-canary")
    assert not rotated.is_complete
    again = trust.with_set(rotated, realm.publish().pack(), NOW)
    assert vouching.admit(again, order, "canary", NOW).target.version == "1.0.0"


# --- bombs and noise ----------------------------------------------------------------------------------------------


def test_bombs_are_refused_before_they_go_off(realm: Realm, held: TrustedSet) -> None:
    deep = b'{"signed":' + b"[" * 200_000
    files = realm.publish()
    bombs = {
        "zeros": compress(bytes(64 << 20)),
        "empty maps": compress(b"\xdd\x00\x3f\xff\xff" + b"\x80" * 0x3FFFFF),
        "wide maps": compress(pack({str(n): {} for n in range(4000)})),
        "deep json": Files(deep[:60_000], deep, deep, {}).pack(),
        "deep msgpack": compress(b"\x91" * 1_000_000 + b"\xc0"),
        "large file": compress(
            pack({"format": 1, "timestamp": b" " * (65 << 10), "snapshot": b"", "targets": b"", "delegated": {}})
        ),
        "many bytes": files.pack() + bytes(60 << 10),
        "huge number": Files(files.timestamp.replace(b'"version":2', b'"version":' + b"9" * 5000), b"", b"", {}).pack(),
        "surrogate": Files(files.timestamp.replace(b"1.0.31", b"1.0.\\ud800"), b"", b"", {}).pack(),
    }
    for bomb in bombs.values():
        with pytest.raises(IntegrityError):
            trust.with_set(held, bomb, NOW)


def test_random_damage_to_a_set_is_always_an_error_of_ours(seed: int) -> None:
    realm, rng = Realm(seed), random.Random(seed)
    realm.list_release("1.0.0", b"one")
    held = trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW)
    files = realm.publish()
    genuine = files.pack()
    plain = decompress(genuine, max_bytes=1 << 20)
    good = trust.with_set(held, genuine, NOW)
    taken = 0
    for _ in range(1500):
        data = bytearray(rng.choice((genuine, plain)))
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            place = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[place] ^= 1 << rng.randrange(8)
                case 1:
                    del data[place : place + rng.randrange(1, 40)]
                case _:
                    data[place:place] = rng.randbytes(rng.randrange(1, 9))
        packed = bytes(data) if data[:4] == genuine[:4] else compress(bytes(data))
        try:
            result = trust.with_set(held, packed, NOW)
        except (TrustError, IntegrityError):
            continue
        taken += 1
        # Only what no signature covers may differ: white space, the order of fields, unsigned extras.
        assert result.versions == good.versions
        assert result.releases(MODEL) == good.releases(MODEL)
    assert taken < 150


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["targets", "sha256", "2027-01-01T00:00:00Z", "00" * 32, "1.0.31", "ed25519", "*" * 50, MODEL]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


PLAIN = st.recursive(
    st.none() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats() | st.text(max_size=8) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in [(*path, key), *places(item, (*path, key))]]


FUZZ = Realm(7)
FUZZ.list_release("1.0.0", b"one")
FUZZ_HELD = trust.with_set(FUZZ.bootstrap(), FUZZ.publish().pack(), NOW)
FUZZ_FILES = FUZZ.publish()
FUZZ_ROLES = ("timestamp", "snapshot", "targets", SIGN, APPROVE)


@settings(max_examples=900, suppress_health_check=[HealthCheck.too_slow], database=None)
@given(role=st.sampled_from([*FUZZ_ROLES, "root"]), where=st.integers(0, 10**6), value=JSON, remove=st.booleans())
def test_hostile_content_signed_by_the_right_keys_is_always_an_error_of_ours(
    role: str, where: int, value: Any, remove: bool
) -> None:
    """The signer itself is hostile: one value anywhere in one file is another, and all digests and signatures fit."""
    source = FUZZ.roots[0] if role == "root" else getattr(FUZZ_FILES, role, None) or FUZZ_FILES.delegated[role]
    content = json.loads(source)
    found = [place for place in places(content) if place[0] == "signed"]
    *above, last = found[where % len(found)]
    spot = content
    for key in above:
        spot = spot[key]
    if remove:
        del spot[last]
    else:
        spot[last] = value
    data = json.dumps(content).encode()
    try:
        data = resign(role, data)
        if role == "root":
            trust.bootstrap(data, sha256(data)).realm  # noqa: B018 - reading it is the test
            return
        held = trust.with_set(FUZZ_HELD, refit(role, data).pack(), NOW)
    except (TrustError, IntegrityError):
        return
    for target in held.releases(MODEL):
        assert len(target.sha256) == 32
    assert held.heads is not None
    assert held.at >= 0
    order = FUZZ.sign("ring-canary", "directive", FUZZ.directive(sha256(b"one")))
    try:
        vouching.admit(held, order, "canary", NOW)
    except (TrustError, IntegrityError):
        pass
    assert trust.state_from_bytes(trust.state_to_bytes(held)) == held


def resign(role: str, data: bytes) -> bytes:
    """The file signed again by its role, as far as it can be parsed at all."""
    try:
        metadata = Metadata.from_bytes(data)
        metadata.signatures.clear()
        return ceremony.sign(metadata, FUZZ.signers(role))
    except Exception:  # noqa: BLE001 - tuf can't hold it, so no signer could have made it by tuf: send it as it is
        return data


def refit(role: str, data: bytes) -> Files:
    """The set around one changed file, with digests that fit, signed."""
    files = Files(FUZZ_FILES.timestamp, FUZZ_FILES.snapshot, FUZZ_FILES.targets, dict(FUZZ_FILES.delegated))
    if role in files.delegated:
        files.delegated[role] = data
    else:
        setattr(files, role, data)
    if role in ("timestamp",):
        return files
    if role != "snapshot":
        current = {"targets": (2, files.targets)} | {name: (2, content) for name, content in files.delegated.items()}
        files.snapshot = ceremony.sign(ceremony.make_snapshot(2, current, NOW), FUZZ.signers("snapshot"))
    stamp = ceremony.make_timestamp(2, (2, files.snapshot), FUZZ.heads, NOW)
    files.timestamp = ceremony.sign(stamp, FUZZ.signers("timestamp"))
    return files


def relist(realm: Realm, change: Callable[[Files], None], role: str, signatures: int) -> Files:
    """A set in which `role`'s file has so many signatures, then `change`, with digests that fit."""
    files = realm.publish(signers={role: realm.keys[role][:signatures]})
    change(files)
    numbers = {"targets": (realm.versions["targets"], files.targets)}
    numbers |= {name: (realm.versions[name], data) for name, data in files.delegated.items()}
    number = realm.versions["snapshot"]
    files.snapshot = ceremony.sign(ceremony.make_snapshot(number, numbers, NOW), realm.signers("snapshot"))
    stamp = ceremony.make_timestamp(realm.versions["timestamp"], (number, files.snapshot), realm.heads, NOW)
    files.timestamp = ceremony.sign(stamp, realm.signers("timestamp"))
    return files


def trust_max() -> int:
    return (1 << 31) - 1


@settings(max_examples=400, database=None)
@given(st.binary(max_size=200) | st.builds(pack, PLAIN))
def test_noise_in_place_of_any_input_is_always_an_error_of_ours(noise: bytes) -> None:
    for attempt in (
        lambda: trust.with_set(FUZZ_HELD, noise, NOW),
        lambda: trust.with_set(FUZZ_HELD, compress(noise), NOW),
        lambda: trust.with_root(FUZZ_HELD, noise),
        lambda: trust.with_head(FUZZ_HELD, noise, NOW),
        lambda: trust.bootstrap(noise, sha256(noise)),
        lambda: vouching.admit(FUZZ_HELD, noise, "canary", NOW),
        lambda: vouching.open_own(noise, topic("reported"), {}, realm="demo", public_key=b"k" * 32),
        lambda: trust.state_from_bytes(noise),
    ):
        with pytest.raises((TrustError, IntegrityError)):
            attempt()


def test_every_flipped_bit_of_the_stored_state_is_found(held: TrustedSet) -> None:
    row = trust.state_to_bytes(held)
    for place in range(len(row)):
        damaged = bytearray(row)
        damaged[place] ^= 1 << (place % 8)
        with pytest.raises(IntegrityError):
            trust.state_from_bytes(bytes(damaged))


def test_a_stored_state_rewritten_by_a_local_attacker_still_needs_the_realms_signatures(
    realm: Realm, held: TrustedSet
) -> None:
    evil = realm.publish(signers={APPROVE: [thief(realm), thief(realm)]})
    stored = replace(held, delegated=evil.delegated)
    with pytest.raises(TrustError, match="signed by 0 of its keys"):
        trust.state_from_bytes(trust.state_to_bytes(stored))

"""Sealing: what libsodium itself makes of the same bytes; what was touched, moved or of another key doesn't open."""

import hashlib
import random
from pathlib import Path

import msgpack
import nacl.bindings as sodium
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from heliograph import sealing
from heliograph.blob import LEAF_BYTES, describe, sha256
from heliograph.errors import ConfigError, IntegrityError, TrustError
from heliograph.names import NAME_PATTERN, Digest
from heliograph.sealing import (
    PLAIN_LEAF_BYTES,
    Seal,
    SealedBlob,
    Sealer,
    describe_sealed,
    grant_box,
    leaf_key,
    open_leaf,
    open_range,
    open_span,
    seal_leaf,
    seal_range,
    sealed_length,
)
from heliograph.signing import PrivateKey

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "seal.zst"
EPOCH_KEY = bytes(range(32))
KEY = leaf_key(EPOCH_KEY, Digest(bytes(32)))
SEAL = Seal(
    "digits",
    3,
    (
        SealedBlob(Digest(bytes([1]) * 32), 700, Digest(bytes([2]) * 32), (bytes([3]) * 16,)),
        SealedBlob(Digest(bytes([4]) * 32), (1 << 20) - 4096, Digest(bytes([5]) * 32), (bytes([6]) * 16,)),
        SealedBlob(Digest(bytes([7]) * 32), 1 << 20, Digest(bytes([8]) * 32), (bytes([9]) * 16, bytes([10]) * 16)),
    ),
)
"""A recipe's length, the most that one page covers, and just more."""

LENGTHS = st.one_of(st.integers(0, 3 * PLAIN_LEAF_BYTES + 2), st.sampled_from([PLAIN_LEAF_BYTES, 2 * PLAIN_LEAF_BYTES]))


def noise(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def test_the_aead_is_that_of_the_published_test_vector() -> None:
    """Source: draft-irtf-cfrg-xchacha-03, A.3.1; there with additional data and a nonce that is no leaf's index."""
    text = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    sealed = sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(
        text,
        bytes.fromhex("50515253c0c1c2c3c4c5c6c7"),
        bytes.fromhex("404142434445464748494a4b4c4d4e4f5051525354555657"),
        bytes(range(0x80, 0xA0)),
    )
    assert sealed.hex().startswith("bd6d179d3e83d43b9576579493c0e939") and sealed.hex().endswith(
        "c0875924c1c7987947deafd8780acf49"
    )


def test_a_leaf_is_what_libsodium_makes_of_the_stated_key_and_nonce() -> None:
    plain = noise(100)
    key = hashlib.blake2b(b"heliograph/leaf-key.v1\0" + sha256(plain), digest_size=32, key=EPOCH_KEY).digest()
    assert leaf_key(EPOCH_KEY, sha256(plain)) == key
    nonce = bytes(22) + b"\x01\x02"
    assert seal_leaf(key, 258, plain) == sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(plain, None, nonce, key)


def test_a_sealed_leaf_has_fixed_bytes() -> None:
    """What earlier nodes have on disk must open for ever."""
    assert leaf_key(EPOCH_KEY, sha256(b"")).hex() == KNOWN_KEY
    assert seal_leaf(bytes.fromhex(KNOWN_KEY), 7, b"heliograph").hex() == KNOWN_LEAF


KNOWN_KEY = "b5adbc504486408609c154db4bd528b277051a4e0af1a07615cb7b2fe55ae962"
KNOWN_LEAF = "f390e815040d2cb0204d6fa30925daa5bd94d0d5869d1083bf50"


@given(LENGTHS)
def test_blobs_of_any_length_open_to_what_was_sealed(length: int) -> None:
    plain = noise(length)
    blob, sealed = describe_sealed(KEY, plain)
    assert len(sealed) == sealed_length(length) == blob.length
    assert open_range(KEY, 0, sealed) == plain
    assert (blob.plain, blob.plain_length) == (sha256(plain), length) and (blob.sealed, blob.pages) == describe(sealed)
    for at in range(0, len(sealed), LEAF_BYTES):
        assert sealed[at : at + LEAF_BYTES] == seal_leaf(
            KEY, at // LEAF_BYTES, plain[at // LEAF_BYTES * PLAIN_LEAF_BYTES :][:PLAIN_LEAF_BYTES]
        )


@given(LENGTHS, st.integers(1, 2 * PLAIN_LEAF_BYTES))
def test_pieces_of_any_size_are_sealed_to_the_same_blob(length: int, piece: int) -> None:
    plain = noise(length)
    sealer = Sealer(KEY)
    pieces = [sealer.feed(plain[at : at + piece]) for at in range(0, length, piece)]
    assert b"".join(pieces) + sealer.finish() == seal_range(KEY, 0, plain)
    assert all(len(made) % LEAF_BYTES == 0 for made in pieces)


@given(LENGTHS, st.data())
def test_any_span_opens_and_only_its_leaves_are_read(length: int, data: st.DataObject) -> None:
    plain = noise(length)
    sealed = seal_range(KEY, 0, plain)
    offset = data.draw(st.integers(0, length))
    wanted = data.draw(st.integers(0, length - offset))
    read: list[tuple[int, int]] = []

    def reading(at: int, count: int) -> bytes:
        read.append((at, count))
        return sealed[at : at + count]

    assert open_span(KEY, length, offset, wanted, reading) == plain[offset : offset + wanted]
    assert sum(count for _, count in read) <= sealed_length(wanted) + 2 * LEAF_BYTES
    with pytest.raises(IntegrityError, match="wanted"):
        open_span(KEY, length, offset, length - offset + 1, reading)


def test_a_span_of_a_file_that_ends_early_is_refused() -> None:
    with pytest.raises(IntegrityError, match="gave 5 bytes"):
        open_span(KEY, 9000, 100, 5000, lambda at, count: bytes(5))


@given(st.integers(0, 2 * PLAIN_LEAF_BYTES), st.data())
def test_a_leaf_with_any_bit_flipped_does_not_open(length: int, data: st.DataObject) -> None:
    sealed = bytearray(seal_range(KEY, 0, noise(length + 1)))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(IntegrityError, match=f"leaf {bit // 8 // LEAF_BYTES} doesn't open"):
        open_range(KEY, 0, bytes(sealed))


def test_a_leaf_opens_with_its_own_key_at_its_own_place_only() -> None:
    sealed = seal_leaf(KEY, 3, b"bytes")
    assert open_leaf(KEY, 3, sealed) == b"bytes"
    others = [leaf_key(EPOCH_KEY, sha256(b"other")), leaf_key(bytes(32), Digest(bytes(32))), KEY[:-1], b""]
    for key, index in [*((other, 3) for other in others), (KEY, 2), (KEY, 4), (KEY, 3 << 8)]:
        with pytest.raises(IntegrityError, match="doesn't open"):
            open_leaf(key, index, sealed)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 4097, 5000])
def test_what_has_no_leafs_length_is_refused_unopened(length: int) -> None:
    with pytest.raises(IntegrityError, match=f"has {length} bytes, expected 17 to 4096"):
        open_leaf(KEY, 0, bytes(length))


def test_two_blobs_two_epochs_and_two_places_never_share_a_sealed_leaf() -> None:
    keys = [leaf_key(epoch, sha256(blob)) for epoch in (bytes(32), EPOCH_KEY) for blob in (b"one", b"two")]
    assert len({seal_leaf(key, index, bytes(64)) for key in keys for index in range(4)}) == 16


# --- grants -------------------------------------------------------------------------------------------------------


def test_a_grant_opens_with_its_nodes_key_alone(seed: int) -> None:
    chance = random.Random(seed)
    key, other = PrivateKey.generate(chance.randbytes(32)), PrivateKey.generate(chance.randbytes(32))
    box = grant_box(EPOCH_KEY, key.public.raw, chance.randbytes(32))
    assert len(box) == sealing.GRANT_BOX_BYTES == 80 and EPOCH_KEY not in box
    assert key.open_box(box) == EPOCH_KEY
    flipped = bytes([*box[:50], box[50] ^ 1, *box[51:]])
    for opener, data in [(other, box), (key, flipped), (key, box[:-1]), (key, box + b"x"), (key, b"")]:
        with pytest.raises(IntegrityError, match=r"doesn't open with key [0-9a-f]{16}$"):
            opener.open_box(data)


def test_a_grant_is_libsodiums_sealed_box(seed: int) -> None:
    chance = random.Random(seed)
    key = PrivateKey.generate(chance.randbytes(32))
    made_by_libsodium = sodium.crypto_box_seal(EPOCH_KEY, sodium.crypto_sign_ed25519_pk_to_curve25519(key.public.raw))
    assert key.open_box(made_by_libsodium) == EPOCH_KEY


def test_nothing_is_granted_to_what_is_no_public_key() -> None:
    for public in (bytes(32), b"\xff" * 32, b"short"):
        with pytest.raises(TrustError, match="nothing can be sealed"):
            grant_box(EPOCH_KEY, public, bytes(32))


# --- the seal -----------------------------------------------------------------------------------------------------


def unpacked(data: bytes) -> list[object]:
    value = msgpack.unpackb(zstandard.ZstdDecompressor().decompress(data))
    assert isinstance(value, list)
    return value


def test_the_golden_seal_reads_as_it_was_written_and_is_written_as_it_reads() -> None:
    assert sealing.parse(GOLDEN.read_bytes()) == SEAL
    assert unpacked(sealing.encode(SEAL)) == unpacked(GOLDEN.read_bytes())


def test_a_seal_names_the_sealed_blob_of_plain_bytes() -> None:
    assert SEAL.blob(Digest(bytes([4]) * 32), (1 << 20) - 4096) == SEAL.blobs[1]
    with pytest.raises(IntegrityError, match="says 700 bytes"):
        SEAL.blob(Digest(bytes([1]) * 32), 701)
    with pytest.raises(IntegrityError, match="no sealed blob"):
        SEAL.blob(Digest(bytes(32)), 700)


ONE = [bytes([1]) * 32, 700, bytes([2]) * 32, bytes([3]) * 16]
HOSTILE: dict[str, tuple[object, str]] = {
    "no list": ({}, "not a list"),
    "a later format": ([2, b"digits", 3, [ONE]], "format 2 is not 1"),
    "more parts": ([1, b"digits", 3, [ONE], 0], "5 parts"),
    "no name": ([1, b"Digits\n", 3, [ONE]], "no model's name"),
    "a long name": ([1, b"d" * 41, 3, [ONE]], "seal model"),
    "epoch 0": ([1, b"digits", 0, [ONE]], "seal epoch"),
    "an endless epoch": ([1, b"digits", 1 << 31, [ONE]], "seal epoch"),
    "no blobs": ([1, b"digits", 3, []], "sealed blobs"),
    "too many blobs": ([1, b"digits", 3, [ONE] * 9], "sealed blobs"),
    "one blob twice": ([1, b"digits", 3, [ONE, ONE]], "twice"),
    "a short digest": ([1, b"digits", 3, [[b"x" * 31, *ONE[1:]]]], "plain digest"),
    "a huge length": ([1, b"digits", 3, [[ONE[0], 1 << 60, *ONE[2:]]]], "plain length"),
    "a negative length": ([1, b"digits", 3, [[ONE[0], -1, *ONE[2:]]]], "plain length"),
    "a page too few": ([1, b"digits", 3, [[*ONE[:3], b""]]], "pages"),
    "a page too many": ([1, b"digits", 3, [[*ONE[:3], bytes(32)]]], "pages"),
    "pages of a terabyte": ([1, b"digits", 3, [[ONE[0], 1 << 40, *ONE[2:]]]], "pages"),
    "text for bytes": ([1, b"digits", 3, [["x" * 32, *ONE[1:]]]], "plain digest"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_seal_is_refused(what: str) -> None:
    value, message = HOSTILE[what]
    with pytest.raises(IntegrityError, match=message):
        sealing.parse(zstandard.ZstdCompressor().compress(msgpack.packb(value)))


def test_a_seal_is_refused_by_its_size_before_it_is_unpacked() -> None:
    with pytest.raises(IntegrityError, match="seal of 1048577 bytes"):
        sealing.parse(bytes(sealing.MAX_SEAL_BYTES + 1))
    with pytest.raises(IntegrityError, match="states 16777216 bytes"):
        sealing.parse(zstandard.ZstdCompressor().compress(bytes(1 << 24)))


@given(st.binary(max_size=200), st.booleans())
def test_noise_is_no_seal(data: bytes, is_framed: bool) -> None:
    with pytest.raises(IntegrityError):
        sealing.parse(zstandard.ZstdCompressor().compress(data) if is_framed else data)


def test_a_blob_with_more_pages_than_a_seal_holds_is_refused_when_it_is_made() -> None:
    joined = noise(1 << 20)
    pages = tuple(joined[at : at + 16] for at in range(0, 1 << 20, 16))
    large = SealedBlob(Digest(bytes(32)), 4080 << 24, Digest(bytes(32)), pages)
    with pytest.raises(ConfigError, match="too large to be sealed"):
        sealing.encode(Seal("digits", 1, (large, SEAL.blobs[2])))


def test_models_have_the_names_that_manifests_give_them() -> None:
    assert f"^{sealing._NAME.pattern.decode()}$" == NAME_PATTERN

"""Confidential blobs: sealed leaf by leaf, so that whoever carries one can check every leaf of it and read none.

A *sealed blob* is an ordinary blob to the road, to relays and to the object store. The plain bytes are cut into leaves
of 4080 bytes; each is sealed by XChaCha20-Poly1305 to one leaf of 4096 bytes (the last may be short), and these are
joined. It has a digest, a length and pages of its own, so fetching, resuming and relaying work as for any blob.

The *leaf key* of a blob is derived from the *epoch key* of its model and from the plain bytes' digest; the nonce is the
leaf's index. One key never meets two plaintexts under one nonce, and the same bytes under the same epoch key are the
same sealed blob, whoever seals them: a node that rebuilt a blob from a delta can serve it to others.

An epoch key travels sealed to one node's key (`grant_box`, opened by `PrivateKey.open_box`). A *seal* is the document
that says which sealed blob stands for which plain one; its digest and length stand in the signed offer.

Formats in FORMATS.md. Loaded where a patch is applied too, so it must not load pydantic.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_box,
    crypto_box_seed_keypair,
    crypto_sign_ed25519_pk_to_curve25519,
)
from nacl.exceptions import CryptoError

from heliograph.blob import LEAF_BYTES, MAX_UNPAGED_BYTES, SHORT_DIGEST_BYTES, Digest, describe, page_count, sha256
from heliograph.errors import ConfigError, IntegrityError, TrustError
from heliograph.wire import Reader, compress, decompress, pack

SEAL_FORMAT = 1
TAG_BYTES = 16
PLAIN_LEAF_BYTES = LEAF_BYTES - TAG_BYTES
"""Plain bytes in one leaf of a sealed blob: 4080."""
EPOCH_KEY_BYTES = 32
GRANT_BOX_BYTES = 80
"""An ephemeral public key, the epoch key, a tag."""
MAX_SEAL_BYTES = MAX_UNPAGED_BYTES
MAX_UNPACKED_BYTES = MAX_SEAL_BYTES + 4096
MAX_BLOBS = 8
MAX_BLOB_BYTES = 1 << 40
MAX_EPOCH = (1 << 31) - 1
_LEAF_KEY = b"heliograph/leaf-key.v1\0"
"""What the leaf key is for, hashed before the digest."""
_NAME = re.compile(rb"[a-z0-9-]{1,40}")

ReadSealed = Callable[[int, int], bytes]
"""(offset, length) -> that range of the sealed blob."""


def sealed_length(plain_length: int) -> int:
    """Length of the sealed blob of `plain_length` bytes: 16 bytes more a leaf."""
    return plain_length + TAG_BYTES * -(-plain_length // PLAIN_LEAF_BYTES)


def leaf_key(epoch_key: bytes, plain: Digest) -> bytes:
    """The key, 32 bytes, of all leaves of the blob whose plain bytes have this digest; a secret."""
    assert len(epoch_key) == EPOCH_KEY_BYTES and len(plain) == 32, "an epoch key and a digest have 32 bytes"
    return hashlib.blake2b(_LEAF_KEY + plain, digest_size=32, key=epoch_key).digest()


def seal_leaf(key: bytes, index: int, data: bytes) -> bytes:
    """The sealed leaf `index` of the blob with this leaf key: `data`, 1 to 4080 bytes, and 16 more."""
    assert 0 < len(data) <= PLAIN_LEAF_BYTES, f"a leaf has 1 to {PLAIN_LEAF_BYTES} plain bytes, not {len(data)}"
    return crypto_aead_xchacha20poly1305_ietf_encrypt(data, None, _nonce(index), key)


def open_leaf(key: bytes, index: int, data: bytes) -> bytes:
    """The plain bytes of sealed leaf `index`.

    Raises:
        IntegrityError: another leaf, another key, or not a sealed leaf at all.
    """
    if not TAG_BYTES < len(data) <= LEAF_BYTES:
        raise IntegrityError(f"sealed leaf {index} has {len(data)} bytes, expected {TAG_BYTES + 1} to {LEAF_BYTES}")
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(data, None, _nonce(index), key)
    except CryptoError:
        raise IntegrityError(f"sealed leaf {index} doesn't open with this key") from None


def seal_range(key: bytes, first: int, data: bytes | memoryview) -> bytes:
    """Sealed leaves from index `first`: of plain bytes that begin at that leaf; only the blob's last may be short."""
    view = memoryview(data)
    return b"".join(
        seal_leaf(key, first + at // PLAIN_LEAF_BYTES, bytes(view[at : at + PLAIN_LEAF_BYTES]))
        for at in range(0, len(view), PLAIN_LEAF_BYTES)
    )


def open_range(key: bytes, first: int, data: bytes | memoryview) -> bytes:
    """The plain bytes of a run of whole sealed leaves that begins with leaf `first`.

    Raises:
        IntegrityError: a leaf doesn't open.
    """
    view = memoryview(data)
    return b"".join(
        open_leaf(key, first + at // LEAF_BYTES, bytes(view[at : at + LEAF_BYTES]))
        for at in range(0, len(view), LEAF_BYTES)
    )


def open_span(key: bytes, plain_length: int, offset: int, length: int, read: ReadSealed) -> bytes:
    """`length` plain bytes from `offset` of a blob of `plain_length` plain bytes, reading only the leaves they lie in.

    Memory is bounded by what is asked for and two leaves.

    Raises:
        IntegrityError: the span leaves the blob, or a leaf doesn't open.
    """
    if offset < 0 or length < 0 or offset + length > plain_length:
        raise IntegrityError(f"wanted {length} bytes from {offset} of a blob of {plain_length}")
    if length == 0:
        return b""
    first, last = offset // PLAIN_LEAF_BYTES, (offset + length - 1) // PLAIN_LEAF_BYTES
    start, end = first * LEAF_BYTES, min((last + 1) * LEAF_BYTES, sealed_length(plain_length))
    data = read(start, end - start)
    if len(data) != end - start:
        raise IntegrityError(f"sealed blob gave {len(data)} bytes from {start}, expected {end - start}")
    skip = offset - first * PLAIN_LEAF_BYTES
    return open_range(key, first, data)[skip : skip + length]


class Sealer:
    """Seals a blob from a stream of pieces of any size; memory is bounded by a piece and one leaf."""

    def __init__(self, key: bytes) -> None:
        """`key` is the blob's leaf key."""
        self._key = key
        self._next = 0
        self._pending = bytearray()

    def feed(self, data: bytes | memoryview) -> bytes:
        """Takes the next plain bytes; returns the sealed leaves that are complete, possibly none."""
        self._pending += data
        whole = len(self._pending) // PLAIN_LEAF_BYTES * PLAIN_LEAF_BYTES
        out = seal_range(self._key, self._next, bytes(self._pending[:whole]))
        del self._pending[:whole]
        self._next += whole // PLAIN_LEAF_BYTES
        return out

    def finish(self) -> bytes:
        """The last, short leaf; empty if there is none. Call once."""
        out = seal_range(self._key, self._next, bytes(self._pending))
        self._pending.clear()
        return out


def grant_box(epoch_key: bytes, public_key: bytes, ephemeral: bytes) -> bytes:
    """The epoch key for the holder of one Ed25519 key alone: a libsodium sealed box of 80 bytes.

    `public_key` is the node's, raw; `ephemeral` is 32 bytes of entropy, never used twice and then forgotten.

    Raises:
        TrustError: the public key is no point that anything can be sealed to.
    """
    assert len(epoch_key) == EPOCH_KEY_BYTES, "an epoch key has 32 bytes"
    try:
        recipient = crypto_sign_ed25519_pk_to_curve25519(public_key)
    except (CryptoError, RuntimeError, TypeError, ValueError) as error:
        raise TrustError(f"nothing can be sealed to public key {public_key.hex()[:16]}") from error
    public, private = crypto_box_seed_keypair(ephemeral)
    nonce = hashlib.blake2b(public + recipient, digest_size=24).digest()
    return public + crypto_box(epoch_key, nonce, recipient, private)


@dataclass(frozen=True, slots=True)
class SealedBlob:
    """Which sealed blob stands for a plain one."""

    plain: Digest
    plain_length: int
    sealed: Digest
    pages: tuple[bytes, ...]
    """Page digests of the sealed blob."""

    @property
    def length(self) -> int:
        """Bytes of the sealed blob."""
        return sealed_length(self.plain_length)


@dataclass(frozen=True, slots=True)
class Seal:
    """Which sealed blobs a way fetches, and under which epoch of which model; trusted once it comes out of `parse`.

    One blob for a full way: the file. For a delta the recipe and, unless it is empty, the patch.
    """

    model: str
    epoch: int
    blobs: tuple[SealedBlob, ...]

    def blob(self, plain: Digest, plain_length: int) -> SealedBlob:
        """The sealed blob of these plain bytes.

        Raises:
            IntegrityError: the seal has none, or one of another length.
        """
        for blob in self.blobs:
            if blob.plain == plain:
                if blob.plain_length != plain_length:
                    raise IntegrityError(
                        f"seal says {blob.plain_length} bytes of {plain.hex()}, expected {plain_length}"
                    )
                return blob
        raise IntegrityError(f"seal has no sealed blob of {plain.hex()}")


def describe_sealed(key: bytes, data: bytes) -> tuple[SealedBlob, bytes]:
    """What a seal says of plain bytes that are in memory, and their sealed blob. `key` is their leaf key."""
    sealed = seal_range(key, 0, data)
    digest, pages = describe(sealed)
    return SealedBlob(sha256(data), len(data), digest, pages), sealed


def encode(seal: Seal) -> bytes:
    """The seal's bytes: a zstd frame around msgpack arrays; the same seal gives the same arrays.

    Raises:
        ConfigError: the blobs have more pages than a seal holds.
    """
    plain = pack(
        [
            SEAL_FORMAT,
            seal.model.encode(),
            seal.epoch,
            [[blob.plain, blob.plain_length, blob.sealed, b"".join(blob.pages)] for blob in seal.blobs],
        ]
    )
    data = compress(plain)
    if len(plain) > MAX_UNPACKED_BYTES or len(data) > MAX_SEAL_BYTES:
        longest = max(blob.plain_length for blob in seal.blobs)
        raise ConfigError(f"a blob of {longest} bytes is too large to be sealed: ship smaller files")
    return data


def parse(data: bytes, *, max_bytes: int = MAX_SEAL_BYTES) -> Seal:
    """The seal in `data`, which should be what the offer names; every length and count is checked.

    Raises:
        IntegrityError: not a seal, or one of another format.
    """
    if len(data) > max_bytes:
        raise IntegrityError(f"seal of {len(data)} bytes exceeds {max_bytes}")
    reader = Reader(decompress(data, max_bytes=MAX_UNPACKED_BYTES))
    # The format number stands first so that a later format may change everything behind it.
    parts = reader.array("seal", 1, 64)
    version = reader.integer("seal format", 0, 1 << 31)
    if version != SEAL_FORMAT:
        raise IntegrityError(f"seal format {version} is not {SEAL_FORMAT}, the one this version reads")
    if parts != 4:
        raise IntegrityError(f"seal has {parts} parts, expected 4")
    model = reader.data("seal model", 1, 40)
    if _NAME.fullmatch(model) is None:
        raise IntegrityError("seal is for something that is no model's name")
    epoch = reader.integer("seal epoch", 1, MAX_EPOCH)
    blobs = tuple(_blob(reader, f"sealed blob {index}") for index in range(reader.array("sealed blobs", 1, MAX_BLOBS)))
    reader.finish()
    if len({blob.plain for blob in blobs}) != len(blobs):
        raise IntegrityError("seal names the same plain bytes twice")
    return Seal(model.decode(), epoch, blobs)


def _blob(reader: Reader, what: str) -> SealedBlob:
    reader.array(what, 4, 4)
    plain = Digest(reader.data(f"{what} plain digest", 32, 32))
    length = reader.integer(f"{what} plain length", 0, MAX_BLOB_BYTES)
    sealed = Digest(reader.data(f"{what} digest", 32, 32))
    pages_bytes = page_count(sealed_length(length)) * SHORT_DIGEST_BYTES
    pages = reader.data(f"{what} pages", pages_bytes, pages_bytes)
    return SealedBlob(
        plain,
        length,
        sealed,
        tuple(pages[at : at + SHORT_DIGEST_BYTES] for at in range(0, len(pages), SHORT_DIGEST_BYTES)),
    )


def _nonce(index: int) -> bytes:
    return index.to_bytes(24, "big")

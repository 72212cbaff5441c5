"""The geometry of a blob: bytes named by SHA-256, cut into leaves and pages so that every leaf is verified on arrival.

A *leaf* is 4 KiB with a 16-byte truncated SHA-256. A *page* is the leaf digests of one MiB, joined (at most 4 KiB).
The document that names a blob carries one 16-byte page digest per MiB. No proofs, no tree: fetch a page, check it
against the document, then check each leaf against the page.

Small signed objects (manifests, recipes) are blobs without pages, at most 1 MiB, verified whole before they are parsed.
"""

import hashlib
from typing import NewType

from heliograph.errors import IntegrityError

Digest = NewType("Digest", bytes)
"""SHA-256 of an object, 32 raw bytes. Stands here because applying a delta needs it and must not load pydantic."""
LEAF_BYTES = 4096
LEAVES_PER_PAGE = 256
PAGE_SPAN_BYTES = LEAF_BYTES * LEAVES_PER_PAGE
"""Bytes of the blob that one page covers: 1 MiB."""
SHORT_DIGEST_BYTES = 16
MAX_UNPAGED_BYTES = 1 << 20
"""Largest manifest or recipe."""


def sha256(data: bytes | memoryview) -> Digest:
    """SHA-256 of `data`, 32 bytes."""
    return Digest(hashlib.sha256(data).digest())


def short_digest(data: bytes | bytearray | memoryview) -> bytes:
    """The first 16 bytes of SHA-256: names leaves, pages and segments inside a document that is itself signed."""
    return hashlib.sha256(data).digest()[:SHORT_DIGEST_BYTES]


def leaf_count(length: int) -> int:
    """Leaves in a blob of `length` bytes; the last may be short."""
    return -(-length // LEAF_BYTES)


def page_count(length: int) -> int:
    """Pages in a blob of `length` bytes."""
    return -(-length // PAGE_SPAN_BYTES)


def page_of(span: bytes | memoryview) -> bytes:
    """The page (joined leaf digests) of one MiB of a blob, or of its shorter last span."""
    view = memoryview(span)
    return b"".join(short_digest(view[at : at + LEAF_BYTES]) for at in range(0, len(view), LEAF_BYTES))


class Pager:
    """Computes digest, length and page digests of a blob from a stream; memory is bounded by one MiB."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self._pending = bytearray()
        self._pages: list[bytes] = []
        self.length = 0

    def feed(self, data: bytes | memoryview) -> None:
        """Takes the next bytes of the blob, of any size."""
        self._sha.update(data)
        self.length += len(data)
        self._pending += data
        while len(self._pending) >= PAGE_SPAN_BYTES:
            self._pages.append(short_digest(page_of(memoryview(self._pending)[:PAGE_SPAN_BYTES].tobytes())))
            del self._pending[:PAGE_SPAN_BYTES]

    def finish(self) -> tuple[Digest, tuple[bytes, ...]]:
        """Returns the blob's digest and its page digests. Call once."""
        if self._pending:
            self._pages.append(short_digest(page_of(bytes(self._pending))))
            self._pending.clear()
        return Digest(self._sha.digest()), tuple(self._pages)


def describe(data: bytes) -> tuple[Digest, tuple[bytes, ...]]:
    """Digest and page digests of bytes that are in memory already."""
    pager = Pager()
    pager.feed(data)
    return pager.finish()


def check_page(page: bytes, index: int, length: int, page_digests: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Verifies page `index` of a blob of `length` bytes and returns its leaf digests.

    Raises:
        IntegrityError: the page is not the one its document names, or has the wrong number of leaves.
    """
    if not 0 <= index < len(page_digests) or short_digest(page) != page_digests[index]:
        raise IntegrityError(f"page {index} does not match the digest its document names")
    span = min(PAGE_SPAN_BYTES, length - index * PAGE_SPAN_BYTES)
    if len(page) != leaf_count(span) * SHORT_DIGEST_BYTES:
        raise IntegrityError(f"page {index} holds {len(page)} bytes, expected {leaf_count(span) * SHORT_DIGEST_BYTES}")
    return tuple(page[at : at + SHORT_DIGEST_BYTES] for at in range(0, len(page), SHORT_DIGEST_BYTES))

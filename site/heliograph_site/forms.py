"""[IO] In which form the blobs of one way come over the link and lie on the disk: plain, or sealed.

A public release comes as it is. Of a confidential one, only ways with a *seal* are gone: that document says which
sealed blobs stand for the file, or for the recipe and its patch, and the offer's grant opens them. Nothing is fetched
by a seal that isn't of this model and of the grant's epoch.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from heliograph.documents import Grant
from heliograph.errors import IntegrityError
from heliograph.manifest import File, Manifest
from heliograph.names import Digest
from heliograph.sealing import Seal, open_range, parse
from heliograph_site.slots import Slots


@dataclass(frozen=True, slots=True)
class Leg:
    """One blob as it comes: its own digest, length and page digests, and what opens it.

    Attributes:
        key: leaf key, a secret; empty: the plain bytes come.
    """

    blob: Digest
    length: int
    pages: tuple[bytes, ...]
    key: bytes = field(default=b"", repr=False)

    def opened(self, data: bytes) -> bytes:
        """The plain bytes of a small one that is in memory; the caller knows their digest.

        Raises:
            IntegrityError: a leaf doesn't open.
        """
        return open_range(self.key, 0, data) if self.key else data


class Form(Protocol):
    """How the blobs of one way come."""

    def leg(self, plain: Digest, length: int, pages: tuple[bytes, ...]) -> Leg:
        """How the blob of these plain bytes comes. `pages`: of the plain bytes.

        Raises:
            IntegrityError: the seal doesn't name it.
        """

    def key(self, plain: Digest) -> bytes:
        """The key by which what is made here is sealed, a secret; empty: it isn't."""

    def settle(self, slots: Slots, file: File, path: Path, *, is_fetched: bool) -> None:
        """Moves the finished file at `path` where it belongs. Slow.

        Raises:
            IntegrityError: it isn't what the manifest names; it is gone then.
        """


class PlainForm:
    """Everything comes, and lies here, as it is."""

    def leg(self, plain: Digest, length: int, pages: tuple[bytes, ...]) -> Leg:
        """The blob itself."""
        return Leg(plain, length, pages)

    def key(self, plain: Digest) -> bytes:
        """None."""
        return b""

    def settle(self, slots: Slots, file: File, path: Path, *, is_fetched: bool) -> None:
        """As the protocol says."""
        slots.settle(file.sha256, path)


class SealedForm:
    """Everything comes, and lies here, sealed."""

    def __init__(self, slots: Slots, manifest: Manifest, seal: bytes, grant: Grant) -> None:
        """`seal` is the verified document that the way names.

        Raises:
            IntegrityError: it is none, or not for this model, or the grant is for another epoch.
        """
        self._slots = slots
        self._grant = grant
        self._seal: Seal = parse(seal)
        if not self._seal.model == grant.model == manifest.model:
            raise IntegrityError(f"seal is of {self._seal.model}, grant of {grant.model}, wanted is {manifest.model}")
        if self._seal.epoch != grant.epoch:
            raise IntegrityError(f"seal is of epoch {self._seal.epoch} of {grant.model}, grant of {grant.epoch}")

    def leg(self, plain: Digest, length: int, pages: tuple[bytes, ...]) -> Leg:
        """The sealed blob that stands for it.

        Raises:
            IntegrityError: the seal doesn't name it, or the grant isn't for this node's key.
        """
        blob = self._seal.blob(plain, length)
        return Leg(blob.sealed, blob.length, blob.pages, self.key(plain))

    def key(self, plain: Digest) -> bytes:
        """As the protocol says.

        Raises:
            IntegrityError: the grant isn't for this node's key.
        """
        return self._slots.holdings.key_of(plain, self._grant)

    def settle(self, slots: Slots, file: File, path: Path, *, is_fetched: bool) -> None:
        """As the protocol says; what was fetched has the digest that the seal says."""
        digest = Digest(file.sha256)
        sealed = self._seal.blob(digest, file.length).sealed if is_fetched else None
        slots.settle_sealed(file, path, self._grant, sealed)

"""What stands on the node's disk: whole images, where `holdings` finds them, and half-done ones in `DIR/incoming`.

Files on their way are named by the digest of the bundle file that they will become, so that what no release needs can
be told by name: `<hex>.part` and `.pages` (a full image and its pages), `<hex>.patch`, `.patch-pages`, `.recipe` (a
delta), `<hex>.out` (what the delta has rebuilt so far) and `<hex>.seal` (which sealed blobs all these are).

Rule 1: nothing half done is believed: after a restart, leaves and segments count only if they verify again.
Rule 2: a file enters the object store only when its whole SHA-256 is right. That of a confidential release is sealed in
    every one of these files.
Rule 3: what the active, fallback or target release of any model needs is never removed.

Durability: partial files are flushed every few MiB; after a power cut at most that much is fetched again.
Source: FORMATS.md, "incoming".
"""

import os
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from heliograph.blob import LEAVES_PER_PAGE, SHORT_DIGEST_BYTES, page_count, sha256
from heliograph.documents import Grant
from heliograph.errors import IntegrityError, NotFoundError
from heliograph.manifest import File, Manifest
from heliograph.names import Digest
from heliograph.objects import reserve, write_durably
from heliograph.sealing import sealed_length
from heliograph.transfer import MAX_SMALL_BYTES, Arrival, BlobFetch
from heliograph_site.holdings import Holdings, OpenBox, no_key

INCOMING_DIR = "incoming"
SYNC_BYTES = 4 << 20
"""Partial files are flushed to the disk after so many new bytes."""
SPARE_BYTES = 16 << 20
"""Free space that a fetch leaves to the rest of the system."""
_INDEX_BYTES = 4


class PartialBlob:
    """A blob with pages on its way into a file; survives a kill at any point.

    Attributes:
        fetch: what is held, for the fetcher.
        unsynced_bytes: written since the last `sync`.
        failure: what the disk said when it took no more; the part is to be opened anew then.
    """

    def __init__(self, path: Path, pages_path: Path, fetch: BlobFetch) -> None:
        self.path = path
        self.fetch = fetch
        self.unsynced_bytes = 0
        self.failure: OSError | None = None
        self._pages_path = pages_path
        self._closing = Lock()
        self._file: BinaryIO | None = None
        self._pages: BinaryIO | None = None

    def open(self) -> int:
        """Opens or makes the files and returns how many leaves verify already. Reads all that is there: slow.

        Raises:
            OSError: the disk has no room for all of it.
        """
        pages, whole = _read_pages(self._pages_path, page_count(self.fetch.length))
        self._file = open(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0)  # noqa: PTH123, SIM115 - a descriptor, closed by close()
        reserve(self._file.fileno(), self.fetch.length)
        self._pages = self._pages_path.open("ab", buffering=0)
        os.ftruncate(self._pages.fileno(), whole)
        return self.fetch.restore(pages, self.read)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the partial file, as they are."""
        assert self._file is not None, "open first"
        return os.pread(self._file.fileno(), length, offset)

    def take(self, arrival: Arrival) -> None:
        """Writes what a chunk brought; verified by the fetch before it came here. A full disk is kept as `failure`."""
        assert self._file is not None and self._pages is not None, "open first"
        try:
            for index, page in self.fetch.pages_to_keep():
                self._pages.write(index.to_bytes(_INDEX_BYTES, "big") + len(page).to_bytes(_INDEX_BYTES, "big") + page)
                self.unsynced_bytes += len(page)
            for offset, data in arrival.runs:
                write_all(self._file.fileno(), offset, data)
                self.unsynced_bytes += len(data)
        except OSError as error:
            self.failure = error

    def sync(self) -> None:
        """Everything taken so far is on disk when this returns."""
        with self._closing:
            if self._file is not None and self._pages is not None:
                self.unsynced_bytes = 0
                os.fsync(self._file.fileno())
                os.fsync(self._pages.fileno())

    def close(self) -> None:
        """Closes the files; what they hold can be resumed. Idempotent."""
        with self._closing:
            for file in (self._file, self._pages):
                if file is not None:
                    file.close()
            self._file = self._pages = None


class Slots:
    """Images of a node: what is whole, what is missing, what may go."""

    def __init__(self, folder: Path, open_box: OpenBox = no_key) -> None:
        """`open_box`: by the node's key; without, no confidential file counts as held."""
        self.holdings = Holdings(folder, open_box)
        self.store = self.holdings.store
        self.incoming = folder / INCOMING_DIR
        self.incoming.mkdir(parents=True, exist_ok=True)

    def manifest(self, release: bytes) -> Manifest | None:
        """The manifest of a release, if it is held and whole."""
        digest = Digest(release)
        try:
            data = self.store.read(digest)
            return Manifest.parse(data, digest, len(data))
        except (NotFoundError, IntegrityError):
            return None

    def missing(self, manifest: Manifest) -> list[File]:
        """Files of the release that aren't held, each content once."""
        missing = {file.sha256: file for file in manifest.files if not self.holdings.has(Digest(file.sha256))}
        return list(missing.values())

    def holds(self, release: bytes) -> bool:
        """Whether manifest and all files of the release are held."""
        manifest = self.manifest(release)
        return manifest is not None and not self.missing(manifest)

    def verify(self, manifest: Manifest) -> None:
        """Reads the whole image back. Slow; memory is bounded.

        Raises:
            IntegrityError: a file is missing or has rotted (it is moved away and will be fetched again).
        """
        for file in manifest.files:
            if not self.holdings.verify(Digest(file.sha256), file.length):
                raise IntegrityError(f"{file.name} of {manifest.release} is not what its digest says")

    def bases(self, releases: Iterable[bytes], limit: int = 64) -> tuple[bytes, ...]:
        """Digests of files held by these releases, in their order, each once."""
        found: dict[bytes, None] = {}
        for release in releases:
            manifest = self.manifest(release)
            for file in manifest.files if manifest else ():
                if self.holdings.has(Digest(file.sha256)):
                    found[file.sha256] = None
        return tuple(found)[:limit]

    def free_bytes(self) -> int:
        """What may still be written here."""
        stat = os.statvfs(self.incoming)
        return stat.f_bavail * stat.f_frsize

    def lacking_bytes(self, manifest: Manifest) -> int:
        """How many bytes are too few on the disk to fetch and rebuild this release beside all that is kept; 0: fits.

        Assumes the worst: a patch as large as its target.
        """
        length = sealed_length if manifest.confidential else int
        needed = sum(2 * length(file.length) - self._taken(file) for file in self.missing(manifest))
        return max(0, needed + SPARE_BYTES - self.free_bytes())

    def path(self, target: bytes, suffix: str) -> Path:
        """Where a half-done file of this kind lies."""
        return self.incoming / f"{target.hex()}.{suffix}"

    def keep(self, target: bytes, suffix: str, data: bytes) -> None:
        """Keeps a small verified blob, as it came, for a restart."""
        write_durably(self.path(target, suffix), data)

    def kept(self, target: bytes, suffix: str, digest: bytes) -> bytes | None:
        """The small blob kept so for this target, if it is the one of this digest."""
        try:
            with self.path(target, suffix).open("rb") as file:
                data = file.read(MAX_SMALL_BYTES + 1)
        except FileNotFoundError:
            return None
        return data if sha256(data) == digest else None

    def settle(self, target: bytes, path: Path) -> None:
        """Moves a finished file into the store and drops what it was made from. Reads it whole: slow.

        Raises:
            IntegrityError: its content isn't `target`; it is gone then.
        """
        try:
            self.store.adopt(path, Digest(target))
        finally:
            self.drop(target)

    def settle_sealed(self, file: File, path: Path, grant: Grant, sealed: Digest | None = None) -> None:
        """The same with the sealed blob of a file. `sealed` is its digest, where that is known.

        Raises:
            IntegrityError: a leaf doesn't open, or what it opens to isn't the file; it is gone then.
            OSError: the disk took no sidecar; all is as it was.
        """
        try:
            self.holdings.take(path, Digest(file.sha256), file.length, grant, sealed)
        except IntegrityError:
            self.drop(file.sha256)
            raise
        self.drop(file.sha256)

    def drop(self, target: bytes) -> None:
        """Removes everything half done of this file."""
        for path in self.incoming.glob(f"{target.hex()}.*"):
            path.unlink(missing_ok=True)

    def collect(self, releases: Iterable[bytes], coming: Iterable[bytes] = ()) -> int:
        """Removes every object and half-done file that none of these releases needs; returns how many that were.

        Nothing is removed while the manifest of one of `releases` can't be read: nobody knows then which files are its.
        Those `coming` may have none yet.
        """
        kept: set[bytes] = set()
        held = dict.fromkeys(releases)
        for release in (*held, *coming):
            kept.add(release)
            manifest = self.manifest(release)
            if manifest is not None:
                kept.update(file.sha256 for file in manifest.files)
            elif release in held:
                return 0
        gone = self.holdings.collect(Digest(digest) for digest in kept)
        stems = {digest.hex() for digest in kept}
        half = [path for path in self.incoming.iterdir() if path.name.split(".")[0] not in stems]
        for path in half:
            path.unlink(missing_ok=True)
        return gone + len(half)

    def _taken(self, file: File) -> int:
        """Bytes of the disk that its half-done files take already."""
        taken = 0
        for path in self.incoming.glob(f"{file.sha256.hex()}.*"):
            try:
                taken += path.stat().st_blocks * 512
            except FileNotFoundError:
                pass
        return min(taken, 2 * file.length)


def _read_pages(path: Path, count: int) -> tuple[dict[int, bytes], int]:
    """Pages as far as they are whole, to be verified by whoever uses them, and where a torn last one begins.

    A file longer than `count` pages are, each kept twice, is nothing that was written here.
    """
    limit = 2 * count * (2 * _INDEX_BYTES + LEAVES_PER_PAGE * SHORT_DIGEST_BYTES)
    pages: dict[int, bytes] = {}
    at = 0
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return pages, at
    if len(data) > limit:
        return pages, at
    while at + 2 * _INDEX_BYTES <= len(data):
        start = at + 2 * _INDEX_BYTES
        index = int.from_bytes(data[at : at + _INDEX_BYTES], "big")
        end = start + int.from_bytes(data[at + _INDEX_BYTES : start], "big")
        if end > len(data):
            break
        pages[index] = data[start:end]
        at = end
    return pages, at


def write_all(fd: int, offset: int, data: bytes | bytearray) -> None:
    """Writes all of it at `offset` of an open file."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written

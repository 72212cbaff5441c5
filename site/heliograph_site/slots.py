"""What stands on the node's disk: whole images in the object store, and half-done ones in `DIR/incoming`.

Files on their way are named by the digest of the bundle file that they will become, so that what no release needs can
be told by name: `<hex>.part` and `.pages` (a full image and its pages), `<hex>.patch`, `.patch-pages`, `.recipe` (a
delta) and `<hex>.out` (what the delta has rebuilt so far).

Rule 1: nothing half done is believed: after a restart, leaves and segments count only if they verify again.
Rule 2: a file enters the object store only when its whole SHA-256 is right.
Rule 3: what the active, fallback or target release of any model needs is never removed.

Durability: partial files are flushed every few MiB; after a power cut at most that much is fetched again.
Source: FORMATS.md, "incoming".
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Protocol

from heliograph.blob import LEAVES_PER_PAGE, MAX_UNPAGED_BYTES, SHORT_DIGEST_BYTES, page_count, sha256, short_digest
from heliograph.delta.apart import Apart
from heliograph.delta.recipe import Recipe, Segment
from heliograph.errors import IntegrityError, NotFoundError
from heliograph.manifest import File, Manifest
from heliograph.names import Digest
from heliograph.objects import ObjectStore, write_durably
from heliograph.transfer import Arrival, BlobFetch

OBJECTS_DIR = "objects"
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
        """Opens or makes the files and returns how many leaves verify already. Reads all that is there: slow."""
        pages, whole = _read_pages(self._pages_path, page_count(self.fetch.length))
        self._file = open(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0)  # noqa: PTH123, SIM115 - a descriptor, closed by close()
        os.ftruncate(self._file.fileno(), self.fetch.length)
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
                _write_all(self._file.fileno(), offset, data)
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


class Segments(Protocol):
    """Joins one base and one patch."""

    def rebuild(self, segment: Segment) -> bytes | bytearray:
        """The segment, verified."""

    def close(self) -> None:
        """Nothing more is wanted."""


class Rebuild:
    """One bundle file being rebuilt from a base in the store and a patch that may still be on its way.

    Segments are rebuilt in any order, one at a time in memory, and verified before they are written. Codecs meet patch
    bytes in a child of bounded memory and CPU time, one for all segments.
    """

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        store: ObjectStore,
        join: Callable[[int, int | None], Segments] = Apart,
    ) -> None:
        """`join` makes, of descriptors of the base and of the patch, what rebuilds segments."""
        self.path = path
        self._join = join
        self._joined: Segments | None = None
        self._inputs: list[int] = []
        self._recipe = recipe
        self._store = store
        self._offsets: list[int] = []
        at = 0
        for segment in recipe.segments:
            self._offsets.append(at)
            at += segment.length
        self._todo = set(range(len(recipe.segments)))
        self._fd = -1

    @property
    def is_complete(self) -> bool:
        """Every segment is written."""
        return not self._todo

    def open(self) -> None:
        """Opens or makes the file and finds out which segments stand there already. Reads all of it: slow."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._fd, self._recipe.target_length)
        for index in sorted(self._todo):
            segment = self._recipe.segments[index]
            if short_digest(os.pread(self._fd, segment.length, self._offsets[index])) == segment.digest16:
                self._todo.discard(index)

    def ready(self, patch: BlobFetch | None) -> list[int]:
        """Segments that can be rebuilt from what is held of the patch."""
        return [
            index
            for index in sorted(self._todo)
            if patch is None or patch.has_range(*self._recipe.segments[index].patch)
        ]

    def make(self, index: int, patch: PartialBlob | None) -> None:
        """Rebuilds one segment and writes it. For a thread: it computes and waits for the disk.

        Raises:
            IntegrityError: base or patch don't give the segment that the recipe promises.
        """
        if self._joined is None:
            self._joined = self._opened(patch)
        out = self._joined.rebuild(self._recipe.segments[index])
        _write_all(self._fd, self._offsets[index], out)
        self._todo.discard(index)

    def close(self) -> None:
        """Closes the file; what it holds can be resumed. Idempotent."""
        if self._joined is not None:
            self._joined.close()
        self._joined = None
        while self._inputs:
            os.close(self._inputs.pop())
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _opened(self, patch: PartialBlob | None) -> Segments:
        try:
            for path in (self._store.path(self._recipe.base), *([patch.path] if patch is not None else [])):
                self._inputs.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except (NotFoundError, FileNotFoundError) as error:
            raise IntegrityError(f"base {self._recipe.base.hex()[:12]} is gone: {error}") from error
        return self._join(self._inputs[0], self._inputs[1] if patch is not None else None)


class Slots:
    """Images of a node: what is whole, what is missing, what may go."""

    def __init__(self, folder: Path) -> None:
        self.store = ObjectStore(folder / OBJECTS_DIR)
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
        """Files of the release that the store lacks, each content once."""
        missing = {file.sha256: file for file in manifest.files if not self.store.has(Digest(file.sha256))}
        return list(missing.values())

    def holds(self, release: bytes) -> bool:
        """Whether manifest and all files of the release are in the store."""
        manifest = self.manifest(release)
        return manifest is not None and not self.missing(manifest)

    def verify(self, manifest: Manifest) -> None:
        """Reads the whole image back. Slow; memory is bounded.

        Raises:
            IntegrityError: a file is missing or has rotted (it is moved away and will be fetched again).
        """
        for file in manifest.files:
            digest = Digest(file.sha256)
            if not self.store.verify(digest) or self.store.size(digest) != file.length:
                raise IntegrityError(f"{file.name} of {manifest.release} is not what its digest says")

    def bases(self, releases: Iterable[bytes], limit: int = 64) -> tuple[bytes, ...]:
        """Digests of files held by these releases, in their order, each once."""
        found: dict[bytes, None] = {}
        for release in releases:
            manifest = self.manifest(release)
            for file in manifest.files if manifest else ():
                if self.store.has(Digest(file.sha256)):
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
        needed = sum(2 * file.length - self._taken(file) for file in self.missing(manifest))
        return max(0, needed + SPARE_BYTES - self.free_bytes())

    def path(self, target: bytes, suffix: str) -> Path:
        """Where a half-done file of this kind lies."""
        return self.incoming / f"{target.hex()}.{suffix}"

    def keep_recipe(self, target: bytes, data: bytes) -> None:
        """Keeps a verified recipe for a restart."""
        write_durably(self.path(target, "recipe"), data)

    def kept_recipe(self, target: bytes, digest: bytes) -> bytes | None:
        """The recipe kept for this target, if it is the one of this digest."""
        try:
            with self.path(target, "recipe").open("rb") as file:
                data = file.read(MAX_UNPAGED_BYTES + 1)
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
        gone = [digest for digest in self.store.list() if digest not in kept]
        for digest in gone:
            self.store.delete(digest)
        stems = {digest.hex() for digest in kept}
        half = [path for path in self.incoming.iterdir() if path.name.split(".")[0] not in stems]
        for path in half:
            path.unlink(missing_ok=True)
        return len(gone) + len(half)

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


def _write_all(fd: int, offset: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written

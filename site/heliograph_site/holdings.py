"""[IO] The files of releases on a node's disk, found by the digest of their plain bytes, however they lie there.

A file of a public release is an object under its own digest. One of a confidential release lies there as a sealed blob,
under the digest of that; its *sidecar*, `DIR/seals/<hex of the plain digest>`, says which one it is and holds the grant
that opens it. Rules:

1. Whoever reads a file of a release finds it here: agent, server, deltas. Nobody else knows how it lies on the disk.
2. No plain byte of a sealed file is ever written. It is opened into memory; its leaf key leaves the process only
   through a pipe to the one that reads it.
3. A sidecar is written before the object that it names gets its name, and counts only when both are there: a kill
   between the two costs nothing, and no object is left that nothing names.
4. What this node's key doesn't open counts as absent: after a change of the key it is fetched again.

Source: FORMATS.md, "Sidecar".
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from heliograph.blob import LEAF_BYTES, Digest, sha256
from heliograph.documents import Grant
from heliograph.errors import IntegrityError, NotFoundError
from heliograph.objects import MAX_READ_BYTES, ObjectStore, sync_directory, write_durably
from heliograph.sealing import (
    EPOCH_KEY_BYTES,
    GRANT_BOX_BYTES,
    MAX_BLOB_BYTES,
    MAX_EPOCH,
    leaf_key,
    open_range,
    sealed_length,
)
from heliograph.source import Source, read_exactly
from heliograph.wire import Reader, pack

OBJECTS_DIR = "objects"
SEALS_DIR = "seals"
SIDECAR_FORMAT = 1
MAX_SIDECAR_BYTES = 256
RUN_LEAVES = 64
"""Leaves that are checked at once."""

OpenBox = Callable[[bytes], bytes]
"""What the node's key opens (IntegrityError: it was sealed to another)."""


def no_key(box: bytes) -> bytes:
    """Where nothing sealed is read.

    Raises:
        IntegrityError: always.
    """
    raise IntegrityError(f"no key is here that opens a box of {len(box)} bytes")


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Which sealed blob holds a file, and the grant that opens it."""

    model: str
    epoch: int
    box: bytes
    length: int
    """Of the plain bytes."""
    sealed: Digest

    def encode(self) -> bytes:
        """The sidecar's bytes."""
        return pack([SIDECAR_FORMAT, self.model.encode(), self.epoch, self.box, self.length, self.sealed])

    @classmethod
    def parse(cls, data: bytes) -> "Sidecar":
        """Reads what was written here; it is unsigned: what it names is believed only when it opens and fits.

        Raises:
            IntegrityError: not a sidecar, or one of another format.
        """
        if len(data) > MAX_SIDECAR_BYTES:
            raise IntegrityError(f"sidecar has more than {MAX_SIDECAR_BYTES} bytes")
        reader = Reader(data)
        parts = reader.array("sidecar", 1, 64)
        version = reader.integer("sidecar format", 0, 1 << 31)
        if version != SIDECAR_FORMAT or parts != 6:
            raise IntegrityError(f"sidecar of format {version} with {parts} parts: this version reads format 1 with 6")
        model = reader.data("sidecar model", 1, 40)
        if not model.isascii():
            raise IntegrityError("sidecar is of something that is no model's name")
        epoch = reader.integer("sidecar epoch", 1, MAX_EPOCH)
        box = reader.data("sidecar box", GRANT_BOX_BYTES, GRANT_BOX_BYTES)
        length = reader.integer("sidecar length", 0, MAX_BLOB_BYTES)
        sealed = Digest(reader.data("sidecar digest", 32, 32))
        reader.finish()
        return cls(model.decode(), epoch, box, length, sealed)


@dataclass(frozen=True, slots=True)
class Holding:
    """A file as it lies on the disk.

    Attributes:
        path: of the object.
        length: of the plain bytes.
        key: leaf key of the sealed blob, a secret; empty: the plain bytes lie there.
    """

    path: Path
    length: int
    key: bytes = field(default=b"", repr=False)

    def open(self) -> Source:
        """The file, to be read; its descriptor is the caller's to close.

        Raises:
            NotFoundError: it is gone.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundError(f"{self.path} is gone") from None
        return Source(fd, 0, self.key, self.length)


class Holdings:
    """Every file that the node holds; several processes may look at one folder, one writes."""

    def __init__(self, folder: Path, open_box: OpenBox = no_key) -> None:
        self.store = ObjectStore(folder / OBJECTS_DIR)
        self._seals = folder / SEALS_DIR
        self._open_box = open_box
        self._known: dict[Digest, tuple[tuple[int, int, int], Sidecar, bytes]] = {}

    def clean(self) -> None:
        """Removes what a power cut left half written. Only while nobody else writes here."""
        self.store.clean()
        for path in self._seals.glob(".*.part"):
            path.unlink(missing_ok=True)

    def find(self, file: Digest) -> Holding | None:
        """Where the file lies; None: it isn't held. Its content isn't looked at.

        May take a moment: the first look at a sidecar opens its box.
        """
        found = self._sealed(file)
        if found is not None:
            sidecar, key = found
            try:
                return Holding(self.store.path(sidecar.sealed), sidecar.length, key)
            except NotFoundError:
                pass
        try:
            path = self.store.path(file)
            return Holding(path, path.stat().st_size)
        except (NotFoundError, FileNotFoundError):
            return None

    def has(self, file: Digest) -> bool:
        """Whether the file is held."""
        return self.find(file) is not None

    def read(self, file: Digest, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """The plain bytes, verified; at most `max_bytes` are read.

        Raises:
            NotFoundError: not held.
            IntegrityError: its content has rotted, or is too long: it counts as not held from now on.
        """
        holding = self.find(file)
        if holding is None or not holding.key:
            return self.store.read(file, max_bytes=max_bytes)
        try:
            source = holding.open()
            try:
                data = source.read(0, min(holding.length, max_bytes + 1))
            finally:
                os.close(source.fd)
            if len(data) <= max_bytes and sha256(data) == file:
                return data
        except IntegrityError:
            pass
        self._move_away(file)
        raise IntegrityError(f"file {file.hex()} has rotted on disk and was moved away: fetch it again")

    def verify(self, file: Digest, length: int) -> bool:
        """Whether the file is held, whole and so long; what has rotted counts as not held from now on.

        Slow; memory is bounded.
        """
        holding = self.find(file)
        if holding is None or not holding.key:
            return self.store.verify(file) and self.store.size(file) == length
        try:
            check_sealed(holding, file)
        except IntegrityError:
            self._move_away(file)
            return False
        return holding.length == length

    def key_of(self, file: Digest, grant: Grant) -> bytes:
        """The leaf key of the sealed blob of this file, recipe or patch; a secret.

        Raises:
            IntegrityError: the grant isn't for this node's key.
        """
        return _leaf_key(self._open_box, grant.box, file)

    def take(self, path: Path, file: Digest, length: int, grant: Grant, sealed: Digest | None = None) -> None:
        """Moves the finished sealed blob at `path` (same file system) into the store; on disk when this returns.

        Reads it twice: slow. `sealed` is its own digest, where that is known.

        Raises:
            IntegrityError: it isn't the sealed blob of this file; it is gone then.
        """
        try:
            found = check_sealed(Holding(path, length, self.key_of(file, grant)), file)
            if sealed is not None and found != sealed:
                raise IntegrityError(f"{path.name} is {found.hex()}, expected {sealed.hex()}")
        except IntegrityError:
            path.unlink(missing_ok=True)
            raise
        if not self._seals.is_dir():
            self._seals.mkdir(exist_ok=True)
            sync_directory(self._seals.parent)
        sidecar = Sidecar(grant.model, grant.epoch, grant.box, length, found)
        write_durably(self._sidecar(file), sidecar.encode(), mode=0o600)
        self.store.adopt(path, found)

    def collect(self, kept: Iterable[Digest]) -> int:
        """Removes every object and sidecar but those of these manifests and files; returns how many that were.

        What another thread takes meanwhile stays: its sidecar is there before its object, which is listed first.
        """
        objects = list(self.store.list())
        wanted = set(kept)
        names = set(wanted)
        sidecars = 0
        for path in self._seals.glob("[0-9a-f]*"):  # others are being written
            file = Digest(bytes.fromhex(path.name)) if _is_name(path.name) else None
            found = self._sealed(file) if file is not None and file in wanted else None
            if found is not None:
                names.add(found[0].sealed)
            else:
                path.unlink(missing_ok=True)
                sidecars += 1
        gone = [digest for digest in objects if digest not in names]
        for digest in gone:
            self.store.delete(digest)
        return len(gone) + sidecars

    def _sealed(self, file: Digest) -> tuple[Sidecar, bytes] | None:
        """The file's sidecar and leaf key; None: it has none that counts."""
        try:
            with open(f"{self._seals}/{file.hex()}", "rb") as opened:  # noqa: PTH123 - asked after every step
                stat = os.fstat(opened.fileno())
                stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
                known = self._known.get(file)
                if known is None or known[0] != stamp:
                    known = (stamp, *self._read(opened.read(MAX_SIDECAR_BYTES + 1), file))
                    self._known[file] = known
        except FileNotFoundError:
            self._known.pop(file, None)
            return None
        except IntegrityError:
            return None
        return known[1], known[2]

    def _read(self, data: bytes, file: Digest) -> tuple[Sidecar, bytes]:
        sidecar = Sidecar.parse(data)
        return sidecar, _leaf_key(self._open_box, sidecar.box, file)

    def _move_away(self, file: Digest) -> None:
        found = self._sealed(file)
        self._sidecar(file).unlink(missing_ok=True)
        if found is not None:
            self.store.verify(found[0].sealed)

    def _sidecar(self, file: Digest) -> Path:
        return self._seals / file.hex()


def check_sealed(holding: Holding, file: Digest) -> Digest:
    """Opens every leaf of a sealed blob and returns its own digest. Slow; memory is bounded by a run of leaves.

    Raises:
        IntegrityError: a leaf doesn't open, or its plain bytes are not the file; the object is gone.
    """
    plain, sealed = hashlib.sha256(), hashlib.sha256()
    length = sealed_length(holding.length)
    try:
        with holding.path.open("rb") as opened:
            if os.fstat(opened.fileno()).st_size != length:
                raise IntegrityError(f"sealed blob {holding.path.name} has another length than {length}")
            for at in range(0, length, RUN_LEAVES * LEAF_BYTES):
                data = read_exactly(opened.fileno(), at, min(RUN_LEAVES * LEAF_BYTES, length - at))
                sealed.update(data)
                plain.update(open_range(holding.key, at // LEAF_BYTES, data))
    except FileNotFoundError:
        raise IntegrityError(f"sealed blob {holding.path.name} is gone") from None
    if plain.digest() != file:
        raise IntegrityError(f"sealed blob {holding.path.name} opens to {plain.hexdigest()}, expected {file.hex()}")
    return Digest(sealed.digest())


def _leaf_key(open_box: OpenBox, box: bytes, file: Digest) -> bytes:
    epoch_key = open_box(box)
    if len(epoch_key) != EPOCH_KEY_BYTES:
        raise IntegrityError(f"a grant holds {len(epoch_key)} bytes, an epoch key has {EPOCH_KEY_BYTES}")
    return leaf_key(epoch_key, file)


def _is_name(name: str) -> bool:
    return len(name) == 64 and not set(name) - set("0123456789abcdef")

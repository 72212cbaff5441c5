"""[IO] The object store: files named by their SHA-256, written durably, verified when read.

Layout: `ROOT/ab/abcdef…` (hex), temporary files beside them with a leading dot, and `ROOT/rotten/` for files whose
content no longer fits their name. Rules:

1. A name appears only once the content is whole, verified and on disk.
2. What reads back wrong is moved away, so that it counts as absent and is fetched again.
3. Several processes may use one store; names are only ever added by rename.
"""

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from heliograph.blob import Digest, sha256
from heliograph.errors import IntegrityError, NotFoundError
from heliograph.source import read_exactly

COPY_BYTES = 1 << 20
"""Files are hashed and copied in runs of this size."""
MAX_READ_BYTES = 16 << 20
"""Longest object that is read whole: manifests, recipes and golden files. Larger ones are read in runs."""
_TEMPORARY = ".part"


def sync_directory(path: Path) -> None:
    """Makes renames and removals in `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def replacing(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends; on disk when it has.

    If the block raises anything, Ctrl-C included, nothing is left and `path` is as it was. `mode` is subject to the
    umask.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}{_TEMPORARY}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            yield file
            file.flush()
            os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Puts `data` at `path`, replacing what is there; on disk when this returns, all or nothing."""
    with replacing(path, mode) as file:
        file.write(data)


def reserve(fd: int, length: int) -> None:
    """Gives an open file this length, and room on the disk for all of it; what stands in it stays.

    Raises:
        OSError: there is no room for it; the file is as long as it was.
    """
    before = os.fstat(fd).st_size
    try:
        if length and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, length)
    except OSError as error:
        os.ftruncate(fd, before)
        if error.errno not in (
            errno.EOPNOTSUPP,
            errno.EINVAL,
        ):  # a file system that can't: found out when it is written
            raise
    os.ftruncate(fd, length)


def digest_of_file(path: Path) -> Digest:
    """SHA-256 of a file of any size; memory is bounded."""
    sha = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while data := file.read(COPY_BYTES):
            sha.update(data)
    return Digest(sha.digest())


class ObjectStore:
    """Content-addressed files under `root`, which is made if it isn't there."""

    def __init__(self, root: Path) -> None:
        self.root, self._folder = root, str(root)
        root.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> Digest:
        """Stores `data` and returns its name; on disk when this returns. Idempotent."""
        digest = sha256(data)
        if not self._is_held(digest, len(data)):
            write_durably(self._made(digest), data)
        return digest

    def put_file(self, path: Path) -> Digest:
        """Stores a copy of the file at `path`, of any size; on disk when this returns. Idempotent."""
        with path.open("rb", buffering=0) as source:
            return self.put_pieces(iter(lambda: source.read(COPY_BYTES), b""))

    def put_pieces(self, pieces: Iterable[bytes]) -> Digest:
        """Stores the pieces, joined, of any length; on disk when this returns. Idempotent."""
        sha = hashlib.sha256()
        temporary = self.root / f".{secrets.token_hex(8)}{_TEMPORARY}"
        try:
            with temporary.open("xb") as file:
                for data in pieces:
                    sha.update(data)
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
                length = file.tell()
            digest = Digest(sha.digest())
            if not self._is_held(digest, length):
                self._take(temporary, digest)
        finally:
            temporary.unlink(missing_ok=True)
        return digest

    def adopt(self, path: Path, digest: Digest) -> None:
        """Moves the finished file at `path` (same file system) into the store; on disk when this returns.

        Raises:
            IntegrityError: its content is not `digest`; the file is gone then.
        """
        got = digest_of_file(path)
        if got != digest:
            path.unlink()
            raise IntegrityError(f"{path.name} is {got.hex()}, expected {digest.hex()}")
        with path.open("rb") as file:
            os.fsync(file.fileno())
        self._take(path, digest)

    def has(self, digest: Digest) -> bool:
        """Whether an object of this name is held; its content isn't looked at."""
        try:
            return stat.S_ISREG(os.stat(self._name(digest)).st_mode)  # noqa: PTH116 - asked after every step
        except (FileNotFoundError, NotADirectoryError):
            return False

    def path(self, digest: Digest) -> Path:
        """Where the object lies.

        Raises:
            NotFoundError: not held.
        """
        if not self.has(digest):
            raise self._missing(digest)
        return self._place(digest)

    def size(self, digest: Digest) -> int:
        """The object's length in bytes.

        Raises:
            NotFoundError: not held.
        """
        return self.path(digest).stat().st_size

    def came_at(self, digest: Digest) -> int:
        """When the object was put, seconds since 1970 by the clock of then.

        Raises:
            NotFoundError: not held.
        """
        return int(self.path(digest).stat().st_mtime)

    def read(self, digest: Digest, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """The object, verified; at most `max_bytes` are read.

        Raises:
            NotFoundError: not held.
            IntegrityError: its content has rotted, or is too long: it is moved away and counts as not held from now on.
        """
        try:
            with open(self._name(digest), "rb", buffering=0) as file:  # noqa: PTH123 - as `has`
                data = file.read(max_bytes + 1)
        except FileNotFoundError:
            raise self._missing(digest) from None
        if len(data) > max_bytes or sha256(data) != digest:
            self._move_away(digest)
            raise IntegrityError(f"object {digest.hex()} has rotted on disk and was moved away: fetch it again")
        return data

    def read_range(self, digest: Digest, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, not verified: the caller checks them against a leaf or segment digest.

        Raises:
            NotFoundError: not held.
            IntegrityError: the object ends before.
        """
        try:
            fd = os.open(self._place(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._missing(digest) from None
        try:
            return read_exactly(fd, offset, length)
        finally:
            os.close(fd)

    def verify(self, digest: Digest) -> bool:
        """Whether the object is held and whole; a rotten one is moved away. Memory is bounded."""
        try:
            is_whole = digest_of_file(self._place(digest)) == digest
        except FileNotFoundError:
            return False
        if not is_whole:
            self._move_away(digest)
        return is_whole

    def list(self) -> Iterator[Digest]:
        """Names of all objects held, in order."""
        with os.scandir(self.root) as entries:
            folders = sorted(entry.name for entry in entries if len(entry.name) == 2 and entry.is_dir())
        for folder in folders:
            for name in sorted(os.listdir(self.root / folder)):  # noqa: PTH208 - names, without a path for each
                if len(name) == 64 and name.startswith(folder):
                    try:
                        yield Digest(bytes.fromhex(name))
                    except ValueError:
                        continue  # somebody else's

    def delete(self, digest: Digest) -> None:
        """Removes the object; nothing happens if it isn't held."""
        self._place(digest).unlink(missing_ok=True)

    def clean(self) -> None:
        """Removes temporary files that a power cut left. Only while nobody else writes to the store."""
        for path in (*self.root.glob(f".*{_TEMPORARY}"), *self.root.glob(f"??/.*{_TEMPORARY}")):
            path.unlink(missing_ok=True)

    def _place(self, digest: Digest) -> Path:
        return Path(self._name(digest))

    def _name(self, digest: Digest) -> str:
        name = digest.hex()
        assert len(name) == 64, "a digest is 32 bytes"
        return f"{self._folder}/{name[:2]}/{name}"

    def _made(self, digest: Digest) -> Path:
        path = self._place(digest)
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            sync_directory(self.root)
        return path

    def _is_held(self, digest: Digest, length: int) -> bool:
        try:
            return self._place(digest).stat().st_size == length
        except FileNotFoundError:
            return False

    def _take(self, path: Path, digest: Digest) -> None:
        target = self._made(digest)
        path.replace(target)
        sync_directory(target.parent)

    def _move_away(self, digest: Digest) -> None:
        rotten = self.root / "rotten"
        rotten.mkdir(exist_ok=True)
        try:
            self._place(digest).replace(rotten / digest.hex())
        except FileNotFoundError:
            pass  # another process moved it first

    def _missing(self, digest: Digest) -> NotFoundError:
        return NotFoundError(f"object {digest.hex()} is not in {self.root}")

"""[IO] The delta file: a recipe and its patch in one unsigned file, every byte covered by a digest checked first.

Layout in FORMATS.md: a header (magic, version, length of the recipe, short digest of these and the recipe), the recipe,
the patch. Files of version 1 are read for ever. Rules:

1. No recipe is believed before its digest fits, and it is parsed as hostile all the same; no patch before that fits the
   digest that its recipe names.
2. The base is checked before the first byte is written; each segment by its digest as it is rebuilt; the whole by the
   target's digest before it gets its name.
3. An output appears whole or not at all. A file that stood there stays as it was on any failure. Where the file system
   knows files without a name, being killed leaves nothing either.
4. Applying reads with pread, never a whole file: memory depends on the segment, not on the image. Codecs run in a child
   with bounded memory and CPU time (`heliograph.delta.apart`).
"""

import hashlib
import os
import secrets
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO

from heliograph.blob import SHORT_DIGEST_BYTES, Digest, short_digest
from heliograph.delta import mixture as mixtures
from heliograph.delta import recipe as recipes
from heliograph.delta.apart import Apart
from heliograph.delta.dtypes import Dtype
from heliograph.delta.recipe import COPY, DICT, EDITS, MIXED, ON_ELEMENTS, OPS, SHUFFLE, TUPLES, Recipe, Segment
from heliograph.errors import ConfigError, IntegrityError, NotFoundError
from heliograph.objects import COPY_BYTES, replacing, reserve, sync_directory
from heliograph.source import Source, read_exactly

MAGIC = b"heliodlt"
VERSION = 2
_LEADING = struct.Struct(">8sBI")
"""Magic, version, recipe length."""
HEADER_BYTES = _LEADING.size + SHORT_DIGEST_BYTES
_FIRST = struct.Struct(">8sIIQ32s")
"""The header of version 1: magic, version, recipe length, patch length, SHA-256 over all the rest."""

Progress = Callable[[int, int], None]
"""(bytes of the new file done, bytes of the new file)."""
Facts = dict[str, object]
"""What a command prints with --json."""


@dataclass(frozen=True, slots=True)
class _File:
    """An open input."""

    path: Path
    fd: int
    length: int


def make_file(old: Path, new: Path, patch: Path, progress: Progress | None = None) -> Facts:
    """Writes the delta file that makes `new` from `old`; on disk when this returns.

    Raises:
        NotFoundError, ConfigError: a path can't be read or was written to meanwhile, or `patch` can't be written or is
            an input.
    """
    from heliograph.delta import diff  # applying must not pay for what making needs

    with ExitStack() as stack:
        old_file, new_file = (stack.enter_context(_opened(path)) for path in (old, new))
        _check_output(patch, old_file, new_file)
        before = [_state(file) for file in (old_file, new_file)]
        try:
            recipe, patch_bytes = diff.make(
                stack.enter_context(_mapped(old_file)), stack.enter_context(_mapped(new_file)), progress
            )
        except IntegrityError:
            _check_unchanged(before, old_file, new_file)  # or what is wrong would be told of the delta
            raise
        _check_unchanged(before, old_file, new_file)
        recipe, patch_bytes = recipes.with_patch(recipe, patch_bytes)
        encoded = recipes.encode(recipe)
        leading = _LEADING.pack(MAGIC, VERSION, len(encoded))
        with _writing(patch), _replacing(patch) as file:
            for part in (leading, short_digest(leading + encoded), encoded, patch_bytes):
                file.write(part)
    within_bytes = sum(len(segment.within) for segment in recipe.segments)
    return {
        "old_bytes": recipe.base_length,
        "new_bytes": recipe.target_length,
        "patch_bytes": HEADER_BYTES + len(encoded) + len(patch_bytes),
        "segments": recipe.op_counts(),
        "recipe_bytes": len(encoded),
        "container_bytes": HEADER_BYTES + len(encoded) - within_bytes,
    }


def apply_file(old: Path, patch: Path, new: Path, progress: Progress | None = None) -> Facts:
    """Rebuilds `new` from `old` and a delta file; on disk when this returns.

    Raises:
        IntegrityError: the delta file is damaged or hostile, or `old` is not the file it was made from.
        NotFoundError, ConfigError: a path can't be read, or `new` can't be written or is an input.
    """
    with _opened(old) as old_file, _opened(patch) as patch_file:
        _check_output(new, old_file, patch_file)
        recipe, _, _ = _read_recipe(patch_file)
        if old_file.length != recipe.base_length or _digest(old_file) != recipe.base:
            raise IntegrityError(
                f"{old} is not the file this delta starts from: that has {recipe.base_length} bytes "
                f"and SHA-256 {recipe.base.hex()}"
            )
        sha = hashlib.sha256()
        done = 0
        child_bytes = 0
        with _writing(new), _replacing(new) as file:
            reserve(file.fileno(), recipe.target_length)  # a full disk is found here
            apart = Apart(Source(old_file.fd), Source(patch_file.fd, patch_file.length - recipe.patch_length))
            try:
                for segment in recipe.segments:
                    out = apart.rebuild(segment)
                    sha.update(out)
                    file.write(out)
                    done += len(out)
                    del out  # or it would stand beside the next segment
                    if progress is not None:
                        progress(done, recipe.target_length)
                child_bytes = apart.peak_rss_bytes()
            finally:
                apart.close()
            if sha.digest() != recipe.target:
                raise IntegrityError(f"what {patch} makes is {sha.hexdigest()}, not the {recipe.target.hex()} it names")
    return {
        "old_bytes": recipe.base_length,
        "new_bytes": recipe.target_length,
        "patch_bytes": patch_file.length,
        "segments": recipe.op_counts(),
        "sha256": recipe.target.hex(),
        "peak_rss_bytes": peak_rss_bytes(),
        "child_peak_rss_bytes": child_bytes,
    }


def show_file(patch: Path) -> Facts:
    """What a delta file holds, after the same checks as for applying it.

    Raises:
        IntegrityError: it is damaged or hostile.
        NotFoundError, ConfigError: it can't be read.
    """
    with _opened(patch) as file:
        recipe, encoded, version = _read_recipe(file)
    empty = {"segments": 0, "new_bytes": 0, "patch_bytes": 0}
    ops: dict[str, dict[str, int]] = {name: dict(empty) for name in recipe.op_counts()}
    parts: list[Facts] = []
    at = 0
    for segment in recipe.segments:
        name = OPS[segment.op].name
        row = ops[name]
        row["segments"] += 1
        row["new_bytes"] += segment.length
        row["patch_bytes"] += segment.patch_bytes
        parts.append(
            {
                "new_at": at,
                "new_bytes": segment.length,
                "op": name,
                "patch_bytes": segment.patch_bytes,
                "old": [list(span) for span in segment.old],
                "why": why(segment),
            }
        )
        at += segment.length
    return {
        "format": version,
        "old_bytes": recipe.base_length,
        "old_sha256": recipe.base.hex(),
        "new_bytes": recipe.target_length,
        "new_sha256": recipe.target.hex(),
        "patch_bytes": file.length,
        "recipe_bytes": len(encoded),
        "segments": recipe.op_counts(),
        "ops": ops,
        "parts": parts,
    }


@contextmanager
def parts(delta: Path) -> Iterator[tuple[Recipe, bytes, Iterator[bytes]]]:
    """The recipe of a delta file, parsed and as it is encoded, and its patch in pieces, after the checks for applying.

    Raises:
        IntegrityError: it is damaged or hostile.
        NotFoundError, ConfigError: it can't be read.
    """
    with _opened(delta) as file:
        recipe, encoded, _ = _read_recipe(file)
        yield recipe, encoded, _runs(file, file.length - recipe.patch_length)


def peak_rss_bytes() -> int | None:
    """The most memory this process has had resident since it began; None where the kernel doesn't say (not Linux)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else None


def _read_recipe(file: _File) -> tuple[Recipe, bytes, int]:
    """The recipe of a delta file, all of whose bytes have been checked; as it is encoded; and the file's version."""
    head = read_exactly(file.fd, 0, min(file.length, _FIRST.size))
    if len(head) < HEADER_BYTES:
        raise IntegrityError(f"{file.path} is not a whole delta file: it has {file.length} bytes")
    magic, version, length = _LEADING.unpack_from(head)
    if magic != MAGIC:
        raise IntegrityError(f"{file.path} is not a delta file: make one with heliograph delta make")
    if version == 0:  # the first byte of version 1
        recipe, encoded = _read_first(file, head)
        return recipe, encoded, 1
    if version != VERSION:
        raise IntegrityError(f"{file.path} is a delta file of version {version}, this program reads 1 and {VERSION}")
    if length > min(file.length - HEADER_BYTES, recipes.MAX_RECIPE_BYTES):
        raise IntegrityError(f"{file.path} is damaged: it has {file.length} bytes, its header says recipe {length}")
    encoded = read_exactly(file.fd, HEADER_BYTES, length)
    if short_digest(head[: _LEADING.size] + encoded) != head[_LEADING.size : HEADER_BYTES]:
        raise IntegrityError(f"{file.path} is damaged: its bytes don't match its digest; fetch or make it again")
    recipe = recipes.parse(encoded)
    _check_lengths(file, HEADER_BYTES, length, recipe.patch_length)
    sha = hashlib.sha256()
    for data in _runs(file, HEADER_BYTES + length):
        sha.update(data)
    if sha.digest() != recipe.patch_sha256:
        raise IntegrityError(f"{file.path} is damaged: its patch doesn't match its digest; fetch or make it again")
    return recipe, encoded, version


def _read_first(file: _File, head: bytes) -> tuple[Recipe, bytes]:
    """The recipe of a delta file of version 1, checked likewise."""
    if len(head) < _FIRST.size:
        raise IntegrityError(f"{file.path} is not a whole delta file: it has {file.length} bytes")
    _, version, length, patch_length, sha256 = _FIRST.unpack(head)
    if version != 1:
        raise IntegrityError(f"{file.path} is a delta file of version {version}, this program reads 1 and {VERSION}")
    _check_lengths(file, _FIRST.size, min(length, recipes.MAX_RECIPE_BYTES), patch_length)
    sha = hashlib.sha256(head[: _FIRST.size - len(sha256)])
    for data in _runs(file, _FIRST.size):
        sha.update(data)
    if sha.digest() != sha256:
        raise IntegrityError(f"{file.path} is damaged: its bytes don't match its digest; fetch or make it again")
    encoded = read_exactly(file.fd, _FIRST.size, length)
    recipe = recipes.parse(encoded)
    if recipe.patch_length != patch_length:
        raise IntegrityError(f"{file.path} has {patch_length} patch bytes, its recipe wants {recipe.patch_length}")
    return recipe, encoded


def _check_lengths(file: _File, header: int, recipe: int, patch: int) -> None:
    """Raises IntegrityError unless the file is as long as its parts."""
    if file.length != header + recipe + patch:
        raise IntegrityError(
            f"{file.path} is damaged: it has {file.length} bytes, {header} and recipe {recipe}, patch {patch} expected"
        )


def why(segment: Segment) -> str:
    """What made the segment's operation the smallest, for a person."""
    if segment.op == COPY:
        return "unchanged"
    if segment.op == DICT:
        return "much of it stands in the old bytes"
    if segment.op in (TUPLES, EDITS):
        return "moved and edited bytes"
    if segment.op == SHUFFLE:
        return f"nothing old helps; elements of {Dtype(segment.params[0]).name.lower()}"
    if segment.op == MIXED:
        types = " and ".join(dtype.name.lower() for dtype in mixtures.parse(segment.params, segment.length).types)
        return f"elements of {types} near the old ones"
    if segment.op in ON_ELEMENTS:
        return f"elements of {Dtype(segment.params[0]).name.lower()} near the old ones"
    return "nothing old helps"


def _digest(file: _File) -> Digest:
    sha = hashlib.sha256()
    for data in _runs(file, 0):
        sha.update(data)
    return Digest(sha.digest())


def _runs(file: _File, start: int) -> Iterator[bytes]:
    for at in range(start, file.length, COPY_BYTES):
        yield read_exactly(file.fd, at, min(COPY_BYTES, file.length - at))


@contextmanager
def _opened(path: Path) -> Iterator[_File]:
    """An input, which must be a regular file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not make us wait
    except FileNotFoundError:
        raise NotFoundError(f"{path} is not there") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise ConfigError(f"{path} is not a regular file")
        yield _File(path, fd, facts.st_size)
    finally:
        os.close(fd)


@contextmanager
def _mapped(file: _File) -> Iterator[bytes | mmap]:
    if file.length == 0:
        yield b""  # nothing to map
        return
    mapped = mmap(file.fd, file.length, access=ACCESS_READ)
    try:
        yield mapped
    finally:
        with suppress(BufferError):  # an error's traceback holds views of it, which must not hide that error
            mapped.close()


def _state(file: _File) -> tuple[int, int]:
    """What is another once somebody wrote to the file: its length, and when it was changed in nanoseconds."""
    facts = os.fstat(file.fd)
    return facts.st_size, facts.st_mtime_ns


def _check_unchanged(before: list[tuple[int, int]], *inputs: _File) -> None:
    """Raises ConfigError if an input isn't what it was: a delta of it would fit neither the one nor the other."""
    for state, file in zip(before, inputs, strict=True):
        if _state(file) != state:
            raise ConfigError(f"{file.path} changed while it was read: make the delta again when nobody writes to it")


def _check_output(path: Path, *inputs: _File) -> None:
    """Raises ConfigError unless a new file may take this place."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise ConfigError(f"{path} can't be written: there is no folder {path.parent}") from None
        return
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}") from error
    if not stat.S_ISREG(facts.st_mode):
        raise ConfigError(f"{path} can't be written: it is there and is not a regular file")
    for file in inputs:
        if os.path.samestat(facts, os.fstat(file.fd)):
            raise ConfigError(f"{path} is the same file as the input {file.path}: name another")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}") from error


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """As `replacing`, but the file has a name only when it is whole, if the file system knows such files."""
    fd = _nameless(path.parent)
    if fd is None:
        with replacing(path, 0o666) as file:
            yield file
        return
    temporary = path.parent / f".{secrets.token_hex(8)}.part"
    with open(fd, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
        yield file
        file.flush()
        os.fsync(fd)
        try:
            # No link replaces a file, so it gets another name first. The descriptor given has its link followed.
            os.link(f"/proc/self/fd/{fd}", temporary, src_dir_fd=fd, follow_symlinks=True)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync_directory(path.parent)


def _nameless(folder: Path) -> int | None:
    """A new file for writing that goes with its descriptor unless it is linked; None if that can't be had."""
    try:
        fd = os.open(folder, os.O_WRONLY | getattr(os, "O_TMPFILE", 0) | os.O_CLOEXEC, 0o666)
    except OSError:
        return None
    if Path(f"/proc/self/fd/{fd}").exists():
        return fd
    os.close(fd)
    return None

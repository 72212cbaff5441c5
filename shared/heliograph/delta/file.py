"""[IO] The delta file: a recipe and its patch in one unsigned file, every byte covered by a digest checked first.

Layout in FORMATS.md: a header of 56 bytes (magic, version, two lengths, SHA-256 over all the rest), the recipe, the
patch. Rules:

1. Nothing of a delta file is believed before its digest fits; then its recipe is parsed as hostile all the same.
2. The base is checked before the first byte is written; each segment by its digest as it is rebuilt; the whole by the
   target's digest before it gets its name.
3. An output appears whole or not at all. A file that stood there stays as it was on any failure.
4. Applying reads with pread, never a whole file: memory depends on the segment, not on the image. Codecs run in a child
   with bounded memory and CPU time (`heliograph.delta.apart`).
"""

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path

from heliograph.blob import Digest
from heliograph.delta import recipe as recipes
from heliograph.delta.apart import Apart
from heliograph.delta.recipe import OPS, Recipe
from heliograph.errors import ConfigError, IntegrityError, NotFoundError
from heliograph.objects import COPY_BYTES, replacing, reserve
from heliograph.source import Source, read_exactly

MAGIC = b"heliodlt"
VERSION = 1
_LEADING = struct.Struct(">8sIIQ")
"""Magic, version, recipe length, patch length."""
HEADER_BYTES = _LEADING.size + 32

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
        NotFoundError, ConfigError: a path can't be read, or `patch` can't be written or is an input.
    """
    from heliograph.delta import diff  # applying must not pay for what making needs

    with ExitStack() as stack:
        old_file, new_file = (stack.enter_context(_opened(path)) for path in (old, new))
        _check_output(patch, old_file, new_file)
        recipe, patch_bytes = diff.make(
            stack.enter_context(_mapped(old_file)), stack.enter_context(_mapped(new_file)), progress
        )
        encoded = recipes.encode(recipe)
        leading = _LEADING.pack(MAGIC, VERSION, len(encoded), len(patch_bytes))
        sha = hashlib.sha256(leading)
        sha.update(encoded)
        sha.update(patch_bytes)
        with _writing(patch), replacing(patch, 0o666) as file:
            for part in (leading, sha.digest(), encoded, patch_bytes):
                file.write(part)
    return {
        "old_bytes": recipe.base_length,
        "new_bytes": recipe.target_length,
        "patch_bytes": HEADER_BYTES + len(encoded) + len(patch_bytes),
        "segments": recipe.op_counts(),
        "recipe_bytes": len(encoded),
    }


def apply_file(old: Path, patch: Path, new: Path, progress: Progress | None = None) -> Facts:
    """Rebuilds `new` from `old` and a delta file; on disk when this returns.

    Raises:
        IntegrityError: the delta file is damaged or hostile, or `old` is not the file it was made from.
        NotFoundError, ConfigError: a path can't be read, or `new` can't be written or is an input.
    """
    with _opened(old) as old_file, _opened(patch) as patch_file:
        _check_output(new, old_file, patch_file)
        recipe, recipe_length = _read_recipe(patch_file)
        if old_file.length != recipe.base_length or _digest(old_file) != recipe.base:
            raise IntegrityError(
                f"{old} is not the file this delta starts from: that has {recipe.base_length} bytes "
                f"and SHA-256 {recipe.base.hex()}"
            )
        sha = hashlib.sha256()
        done = 0
        child_bytes = 0
        with _writing(new), replacing(new, 0o666) as file:
            reserve(file.fileno(), recipe.target_length)  # a full disk is found here
            apart = Apart(Source(old_file.fd), Source(patch_file.fd, HEADER_BYTES + recipe_length))
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
        recipe, recipe_length = _read_recipe(file)
    empty = {"segments": 0, "new_bytes": 0, "patch_bytes": 0}
    ops: dict[str, dict[str, int]] = {name: dict(empty) for name in recipe.op_counts()}
    parts: list[Facts] = []
    at = 0
    for segment in recipe.segments:
        name = OPS[segment.op].name
        row = ops[name]
        row["segments"] += 1
        row["new_bytes"] += segment.length
        row["patch_bytes"] += segment.patch[1]
        parts.append(
            {
                "new_at": at,
                "new_bytes": segment.length,
                "op": name,
                "patch_bytes": segment.patch[1],
                "old": [list(span) for span in segment.old],
                "why": recipes.why(segment),
            }
        )
        at += segment.length
    return {
        "format": recipes.RECIPE_FORMAT,
        "old_bytes": recipe.base_length,
        "old_sha256": recipe.base.hex(),
        "new_bytes": recipe.target_length,
        "new_sha256": recipe.target.hex(),
        "patch_bytes": file.length,
        "recipe_bytes": recipe_length,
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
        recipe, length = _read_recipe(file)
        yield recipe, read_exactly(file.fd, HEADER_BYTES, length), _runs(file, HEADER_BYTES + length)


def peak_rss_bytes() -> int | None:
    """The most memory this process has had resident since it began; None where the kernel doesn't say (not Linux)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    lines = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else None


def _read_recipe(file: _File) -> tuple[Recipe, int]:
    """The recipe of a delta file, all of whose bytes have been checked, and its encoded length."""
    if file.length < HEADER_BYTES:
        raise IntegrityError(f"{file.path} is not a whole delta file: it has {file.length} bytes")
    header = read_exactly(file.fd, 0, HEADER_BYTES)
    magic, version, recipe_length, patch_length = _LEADING.unpack_from(header)
    if magic != MAGIC:
        raise IntegrityError(f"{file.path} is not a delta file: make one with heliograph delta make")
    if version != VERSION:
        raise IntegrityError(f"{file.path} is a delta file of version {version}, this program reads {VERSION}")
    if file.length != HEADER_BYTES + recipe_length + patch_length or recipe_length > recipes.MAX_RECIPE_BYTES:
        raise IntegrityError(
            f"{file.path} is damaged: it has {file.length} bytes, its header says recipe {recipe_length}, "
            f"patch {patch_length}"
        )
    sha = hashlib.sha256(header[: _LEADING.size])
    for data in _runs(file, HEADER_BYTES):
        sha.update(data)
    if sha.digest() != header[_LEADING.size :]:
        raise IntegrityError(f"{file.path} is damaged: its bytes don't match its digest; fetch or make it again")
    recipe = recipes.parse(read_exactly(file.fd, HEADER_BYTES, recipe_length))
    if recipe.patch_length != patch_length:
        raise IntegrityError(f"{file.path} has {patch_length} patch bytes, its recipe wants {recipe.patch_length}")
    return recipe, recipe_length


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
    with mmap(file.fd, file.length, access=ACCESS_READ) as mapped:
        yield mapped


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

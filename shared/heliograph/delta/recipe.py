"""The recipe: how to rebuild one blob (the *target*) from another (the *base*) and a patch. Format in FORMATS.md.

A recipe may be hostile even when its digest fits. Rules, all checked by `parse` before anything of the stated size is
allocated:

1. At most 1 MiB encoded, at most `MAX_UNPACKED_BYTES` unpacked, at most `MAX_SEGMENTS` segments.
2. Segments tile the target: each has 1 to 4 MiB (`MAX_SEGMENT_BYTES`), their lengths sum to the target's.
3. Old ranges lie inside the base; one segment reads at most `max_old_bytes` of it, so that time is bounded like memory.
4. Patch ranges tile the patch, in order, without gap or overlap; one for each segment, possibly empty.
5. Each operation's own shape (how many ranges, how long, which parameters) holds. An operation this version doesn't
   know raises `UnknownOpError`: the reader takes the next offer.

What it does not do: rebuild (`heliograph.delta.patch`), or decide whether base and target are the wanted ones; for
that there is `Recipe.check_is_for`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from heliograph.blob import MAX_UNPAGED_BYTES, SHORT_DIGEST_BYTES, Digest, page_count
from heliograph.delta.dtypes import Dtype
from heliograph.delta.packing import is_packing
from heliograph.errors import ConfigError, IntegrityError
from heliograph.wire import Reader, compress, decompress, pack

RECIPE_FORMAT = 1
MAX_RECIPE_BYTES = MAX_UNPAGED_BYTES
MAX_UNPACKED_BYTES = 2 << 20
MAX_SEGMENTS = 16384
MAX_SEGMENT_BYTES = 4 << 20
MAX_OLD_RANGES = 16
MAX_OLD_BYTES = 8 << 20
"""What any segment may read of the base, over all its ranges."""
MAX_PATCH_BYTES = MAX_SEGMENT_BYTES + (64 << 10)
"""What one segment may read of the patch: incompressible bytes and their frame."""
MAX_PARAMS_BYTES = 4096
MAX_BLOB_BYTES = 1 << 40
MAX_LANES_LOG2 = 12
MAX_CODED = 1 << 22
"""Elements of a segment of `sub+rans`."""
MAX_STEPS = 1 << 16
"""Of the coder of `sub+rans`, each of which takes some 40 microseconds."""
_DTYPES = frozenset(Dtype)

COPY = 1
DICT = 2
FULL = 3
SUB = 4
SUB_RANS = 5
XOR = 6
SHUFFLE = 7
TUPLES = 8
XZ = 9
ON_ELEMENTS = frozenset({SUB, SUB_RANS, XOR, SHUFFLE})
"""Operations that need numpy."""


class UnknownOpError(IntegrityError):
    """The recipe is well formed so far but names an operation that this version lacks: take the next offer."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the target, rebuilt and verified alone."""

    length: int
    op: int
    old: tuple[tuple[int, int], ...]
    """(offset, length) in the base."""
    patch: tuple[int, int]
    """(offset, length) in the patch; length 0 for operations that need none."""
    digest16: bytes
    """Short digest of what must come out."""
    params: bytes = b""
    """Parameters in the operation's own encoding."""


def max_old_bytes(length: int) -> int:
    """What a segment of `length` bytes may read of the base: a small one must not cost as much as a large one."""
    return min(MAX_OLD_BYTES, (64 << 10) + 16 * length)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to rebuild `target` from `base` and a patch; trusted once it comes out of `parse`."""

    base: Digest
    base_length: int
    target: Digest
    target_length: int
    patch_length: int
    patch_sha256: Digest
    patch_pages: tuple[bytes, ...]
    segments: tuple[Segment, ...]

    def check_is_for(self, base: Digest, target: Digest, target_length: int) -> None:
        """Raises IntegrityError unless this recipe rebuilds that target from that base."""
        if self.base != base:
            raise IntegrityError(f"recipe is for base {self.base.hex()}, not {base.hex()}")
        if self.target != target or self.target_length != target_length:
            raise IntegrityError(
                f"recipe makes {self.target_length} bytes {self.target.hex()}, "
                f"expected {target_length} bytes {target.hex()}"
            )

    def op_counts(self) -> dict[str, int]:
        """How many segments each operation that occurs has, by its name, in the order of the registry."""
        counts = dict.fromkeys(sorted({segment.op for segment in self.segments}), 0)
        for segment in self.segments:
            counts[segment.op] += 1
        return {OPS[number].name: count for number, count in counts.items()}


@dataclass(frozen=True, slots=True)
class Op:
    """An operation's name and the shape its segments must have."""

    name: str
    is_shaped: Callable[[Segment], bool]


def _is_copy(segment: Segment) -> bool:
    return (
        len(segment.old) == 1
        and segment.old[0][1] == segment.length
        and segment.patch[1] == 0
        and segment.params == b""
    )


def _is_dict(segment: Segment) -> bool:
    return len(segment.old) == 1 and segment.patch[1] > 0 and segment.params == b""


def _is_full(segment: Segment) -> bool:
    return segment.old == () and segment.patch[1] > 0 and segment.params == b""


def _is_aligned(segment: Segment, params: int) -> bool:
    """Old ranges as long together as the segment, patch bytes, and so many parameters: the first is a dtype."""
    return (
        len(segment.old) > 0
        and sum(length for _, length in segment.old) == segment.length
        and segment.patch[1] > 0
        and len(segment.params) == params
        and segment.params[0] in _DTYPES
    )


def _is_sub_or_xor(segment: Segment) -> bool:
    return _is_aligned(segment, 1)


def _is_sub_rans(segment: Segment) -> bool:
    return (
        _is_aligned(segment, 2)
        and segment.params[1] <= MAX_LANES_LOG2
        and 1 <= Dtype(segment.params[0]).count(segment.length) <= min(MAX_CODED, MAX_STEPS << segment.params[1])
    )


def _is_shuffle(segment: Segment) -> bool:
    return (
        segment.old == ()
        and segment.patch[1] > 0
        and len(segment.params) == 2
        and segment.params[0] in _DTYPES
        and is_packing(segment.params[1])
    )


def _is_tuples(segment: Segment) -> bool:
    return (
        len(segment.old) > 0
        and segment.patch[1] > 0
        and len(segment.params) in (1, 2)
        and all(is_packing(number) for number in segment.params)
    )


OPS: dict[int, Op] = {
    COPY: Op("copy", _is_copy),
    DICT: Op("dict", _is_dict),
    FULL: Op("full", _is_full),
    SUB: Op("sub", _is_sub_or_xor),
    SUB_RANS: Op("sub+rans", _is_sub_rans),
    XOR: Op("xor", _is_sub_or_xor),
    SHUFFLE: Op("shuffle", _is_shuffle),
    TUPLES: Op("tuples", _is_tuples),
    XZ: Op("xz", _is_full),
}
"""The registry of FORMATS.md: numbers are never used again for something else."""


def why(segment: Segment) -> str:
    """What made the segment's operation the smallest, for a person."""
    if segment.op == COPY:
        return "unchanged"
    if segment.op == DICT:
        return "much of it stands in the old bytes"
    if segment.op == TUPLES:
        return "moved and edited bytes"
    if segment.op == SHUFFLE:
        return f"nothing old helps; elements of {Dtype(segment.params[0]).name.lower()}"
    if segment.op in ON_ELEMENTS:
        return f"elements of {Dtype(segment.params[0]).name.lower()} near the old ones"
    return "nothing old helps"


def encode(recipe: Recipe) -> bytes:
    """The recipe's bytes: a zstd frame around msgpack arrays; the same recipe gives the same arrays.

    Raises:
        ConfigError: too many segments or too large a target for a recipe; ship the target in full.
    """
    segments = [
        [s.length, s.op, [list(span) for span in s.old], list(s.patch), s.digest16, s.params] for s in recipe.segments
    ]
    plain = pack(
        [
            RECIPE_FORMAT,
            [recipe.base, recipe.base_length],
            [recipe.target, recipe.target_length],
            [recipe.patch_length, recipe.patch_sha256, b"".join(recipe.patch_pages)],
            segments,
        ]
    )
    data = compress(plain, level=19)
    if len(segments) > MAX_SEGMENTS or len(plain) > MAX_UNPACKED_BYTES or len(data) > MAX_RECIPE_BYTES:
        raise ConfigError(
            f"a recipe for {recipe.target_length} bytes needs {len(segments)} segments in {len(data)} bytes, "
            f"more than {MAX_SEGMENTS} in {MAX_RECIPE_BYTES}: ship the target in full"
        )
    return data


def parse(data: bytes, *, max_bytes: int = MAX_RECIPE_BYTES) -> Recipe:
    """The recipe in `data`, every range, length and count checked by the module's rules.

    Raises:
        IntegrityError: not a recipe, of another format, or it breaks a rule.
        UnknownOpError: it names an operation that this version lacks.
    """
    if len(data) > max_bytes:
        raise IntegrityError(f"recipe of {len(data)} bytes exceeds {max_bytes}")
    reader = Reader(decompress(data, max_bytes=MAX_UNPACKED_BYTES))
    # The format number stands first so that a later format may change everything behind it.
    parts = reader.array("recipe", 1, 64)
    version = reader.integer("recipe format", 0, 1 << 31)
    if version != RECIPE_FORMAT:
        raise IntegrityError(f"recipe format {version} is not {RECIPE_FORMAT}, the one this version reads")
    if parts != 5:
        raise IntegrityError(f"recipe has {parts} parts, expected 5")
    base, base_length = _blob(reader, "recipe base")
    target, target_length = _blob(reader, "recipe target")
    reader.array("recipe patch", 3, 3)
    patch_length = reader.integer("patch length", 0, MAX_BLOB_BYTES)
    patch_sha256 = Digest(reader.data("patch digest", 32, 32))
    pages_bytes = page_count(patch_length) * SHORT_DIGEST_BYTES
    pages = reader.data("patch pages", pages_bytes, pages_bytes)
    segments = _segments(reader, base_length, target_length, patch_length)
    reader.finish()
    return Recipe(
        base,
        base_length,
        target,
        target_length,
        patch_length,
        patch_sha256,
        tuple(pages[at : at + SHORT_DIGEST_BYTES] for at in range(0, len(pages), SHORT_DIGEST_BYTES)),
        segments,
    )


def _blob(reader: Reader, what: str) -> tuple[Digest, int]:
    reader.array(what, 2, 2)
    return Digest(reader.data(f"{what} digest", 32, 32)), reader.integer(f"{what} length", 0, MAX_BLOB_BYTES)


def _segments(reader: Reader, base_length: int, target_length: int, patch_length: int) -> tuple[Segment, ...]:
    count = reader.array("segments", 0, MAX_SEGMENTS)
    segments: list[Segment] = []
    made = used = 0
    for index in range(count):
        segment = _segment(reader, index, base_length)
        made += segment.length
        offset, length = segment.patch
        if made > target_length:
            raise IntegrityError(f"segment {index} goes beyond the target's {target_length} bytes")
        if offset != used or used + length > patch_length:
            raise IntegrityError(
                f"segment {index} uses {length} patch bytes from {offset}, expected from {used}, at most {patch_length}"
            )
        used += length
        segments.append(segment)
    if made != target_length:
        raise IntegrityError(f"segments make {made} bytes, the target has {target_length}")
    if used != patch_length:
        raise IntegrityError(f"segments use {used} bytes of a patch of {patch_length}")
    return tuple(segments)


def _segment(reader: Reader, index: int, base_length: int) -> Segment:
    what = f"segment {index}"
    reader.array(what, 6, 6)
    length = reader.integer(f"{what} length", 1, MAX_SEGMENT_BYTES)
    number = reader.integer(f"{what} operation", 0, 1 << 31)
    old: list[tuple[int, int]] = []
    for _ in range(reader.array(f"{what} old ranges", 0, MAX_OLD_RANGES)):
        reader.array(f"{what} old range", 2, 2)
        at = reader.integer(f"{what} old offset", 0, base_length)
        old.append((at, reader.integer(f"{what} old length", 1, min(MAX_OLD_BYTES, base_length - at))))
    if sum(size for _, size in old) > max_old_bytes(length):
        raise IntegrityError(f"{what} of {length} bytes reads more than {max_old_bytes(length)} bytes of the base")
    reader.array(f"{what} patch range", 2, 2)
    at = reader.integer(f"{what} patch offset", 0, MAX_BLOB_BYTES)
    patch = (at, reader.integer(f"{what} patch length", 0, MAX_PATCH_BYTES))
    digest16 = reader.data(f"{what} digest", SHORT_DIGEST_BYTES, SHORT_DIGEST_BYTES)
    segment = Segment(length, number, tuple(old), patch, digest16, reader.data(f"{what} params", 0, MAX_PARAMS_BYTES))
    op = OPS.get(number)
    if op is None:
        raise UnknownOpError(f"{what} needs operation {number}, which this version lacks")
    if not op.is_shaped(segment):
        raise IntegrityError(f"{what} has ranges or parameters that {op.name} can't have")
    return segment

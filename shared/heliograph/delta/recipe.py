"""The recipe: how to rebuild one blob (the *target*) from another (the *base*) and a patch. Formats in FORMATS.md.

A recipe may be hostile even when its digest fits. Rules, all checked by `parse` before anything of the stated size is
allocated:

1. At most 1 MiB encoded, at most `MAX_UNPACKED_BYTES` unpacked, at most `MAX_SEGMENTS` segments.
2. Segments tile the target: each has 1 to 4 MiB (`MAX_SEGMENT_BYTES`), their lengths sum to the target's.
3. Old ranges lie inside the base; one segment reads at most `max_old_bytes` of it, so that time is bounded like memory.
4. Patch ranges tile the patch, in order, without gap or overlap; one for each segment, possibly empty.
5. Each operation's own shape (how many ranges, how long, which parameters) holds. An operation this version doesn't
   know raises `UnknownOpError`: the reader takes the next offer.

It is written in format 2, which costs a segment some 26 bytes, 16 of them its digest; format 1 is read for ever. A
patch smaller than a leaf stands in the recipe (`with_patch`), and needs no blob, digests and request of its own.

What it does not do: rebuild (`heliograph.delta.patch`), or decide whether base and target are the wanted ones; for
that there is `Recipe.check_is_for`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from heliograph.blob import (
    LEAF_BYTES,
    MAX_UNPAGED_BYTES,
    SHORT_DIGEST_BYTES,
    Digest,
    describe,
    page_count,
)
from heliograph.delta import mixture as mixtures
from heliograph.delta.dtypes import Dtype
from heliograph.delta.mixture import MAX_LANES_LOG2
from heliograph.delta.numbers import Numbers, put
from heliograph.delta.packing import is_packing
from heliograph.errors import ConfigError, IntegrityError
from heliograph.wire import Reader, decompress

RECIPE_FORMAT = 2
_FIRST = 1
MAX_WITHIN_BYTES = LEAF_BYTES
"""A patch of at most so many bytes stands in its recipe."""
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
MAX_CODED = 1 << 22
"""Elements of a segment of `sub+rans`."""
MAX_STEPS = 1 << 16
"""Of the coder of `sub+rans`, each of which takes some 40 microseconds."""
_DTYPES = frozenset(Dtype)
_ZSTD = b"\x28\xb5\x2f\xfd"
"""How a recipe of format 1 begins."""
_PATCH, _PARAMS = 32, 64
"""Of a segment's form, above the number of its old ranges: it has patch bytes; it has parameters."""

COPY = 1
DICT = 2
FULL = 3
SUB = 4
SUB_RANS = 5
XOR = 6
SHUFFLE = 7
TUPLES = 8
XZ = 9
EDITS = 10
MIXED = 11
ON_ELEMENTS = frozenset({SUB, SUB_RANS, XOR, SHUFFLE, MIXED})
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
    within: bytes = b""
    """The patch bytes of a segment whose recipe has them; its patch range is empty then."""

    @property
    def patch_bytes(self) -> int:
        """How many patch bytes it needs, wherever they stand."""
        return self.patch[1] + len(self.within)


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
        and segment.patch_bytes == 0
        and segment.params == b""
    )


def _is_dict(segment: Segment) -> bool:
    return len(segment.old) == 1 and segment.patch_bytes > 0 and segment.params == b""


def _is_full(segment: Segment) -> bool:
    return segment.old == () and segment.patch_bytes > 0 and segment.params == b""


def _is_aligned(segment: Segment, params: int) -> bool:
    """Old ranges as long together as the segment, patch bytes, and so many parameters: the first is a dtype."""
    return (
        len(segment.old) > 0
        and sum(length for _, length in segment.old) == segment.length
        and segment.patch_bytes > 0
        and len(segment.params) == params
        and segment.params[0] in _DTYPES
    )


def _is_sub_or_xor(segment: Segment) -> bool:
    return _is_aligned(segment, 1)


def _is_sub_rans(segment: Segment) -> bool:
    return _is_aligned(segment, 2) and _is_coded(Dtype(segment.params[0]), segment.length, segment.params[1])


def _is_shuffle(segment: Segment) -> bool:
    return (
        segment.old == ()
        and segment.patch_bytes > 0
        and len(segment.params) == 2
        and segment.params[0] in _DTYPES
        and is_packing(segment.params[1])
    )


def _is_tuples(segment: Segment) -> bool:
    return (
        len(segment.old) > 0
        and segment.patch_bytes > 0
        and len(segment.params) in (1, 2)
        and all(is_packing(number) for number in segment.params)
    )


def _is_edits(segment: Segment) -> bool:
    """The width of words, packing, and maybe packing of the bytes to add."""
    return (
        len(segment.old) > 0
        and segment.patch_bytes > 0
        and len(segment.params) in (2, 3)
        and segment.params[0] in (1, 2, 4)
        and all(is_packing(number) for number in segment.params[1:])
    )


def _is_mixed(segment: Segment) -> bool:
    if not segment.patch_bytes or sum(length for _, length in segment.old) != segment.length:
        return False
    try:
        mixture = mixtures.parse(segment.params, segment.length)
    except IntegrityError:
        return False
    sizes = mixture.sizes().items()
    return all(_is_coded(dtype, size, lanes) for (dtype, size), lanes in zip(sizes, mixture.lanes, strict=True))


def _is_coded(dtype: Dtype, length: int, lanes_log2: int) -> bool:
    return lanes_log2 <= MAX_LANES_LOG2 and 1 <= dtype.count(length) <= min(MAX_CODED, MAX_STEPS << lanes_log2)


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
    EDITS: Op("edits", _is_edits),
    MIXED: Op("mixed", _is_mixed),
}
"""The registry of FORMATS.md: numbers are never used again for something else."""


def with_patch(recipe: Recipe, patch: bytes) -> tuple[Recipe, bytes]:
    """The recipe with a small patch in it, and no patch; or both as they are."""
    if not 0 < len(patch) <= MAX_WITHIN_BYTES:
        return recipe, patch
    segments = tuple(
        replace(segment, patch=(0, 0), within=patch[segment.patch[0] : sum(segment.patch)])
        for segment in recipe.segments
    )
    sha256, pages = describe(b"")
    return replace(recipe, patch_length=0, patch_sha256=sha256, patch_pages=pages, segments=segments), b""


# --- format 2 ---------------------------------------------------------------------------------------------------------


def encode(recipe: Recipe) -> bytes:
    """The recipe's bytes, in format 2; the same recipe gives the same bytes.

    Raises:
        ConfigError: too many segments or too large a target for a recipe; ship the target in full.
    """
    out = bytearray([RECIPE_FORMAT])
    out += recipe.base
    put(out, recipe.base_length)
    out += recipe.target
    put(out, 2 * len(recipe.segments) + (recipe.patch_length > 0))
    at = 0
    for segment in recipe.segments:
        at = _put_segment(out, segment, at, is_alone=len(recipe.segments) == 1)
    if recipe.patch_length:
        out += recipe.patch_sha256 + b"".join(recipe.patch_pages)
    out += b"".join([segment.within for segment in recipe.segments])
    if len(recipe.segments) > MAX_SEGMENTS or len(out) > MAX_RECIPE_BYTES:
        raise ConfigError(
            f"a recipe for {recipe.target_length} bytes needs {len(recipe.segments)} segments in {len(out)} bytes, "
            f"more than {MAX_SEGMENTS} in {MAX_RECIPE_BYTES}: ship the target in full"
        )
    return bytes(out)


def _put_segment(out: bytearray, segment: Segment, at: int, *, is_alone: bool) -> int:
    """Where its last old range ends, from which the next one is counted; `at` is where the one before ended."""
    is_filled = len(segment.old) > 0 and sum(size for _, size in segment.old) == segment.length
    form = len(segment.old) | (_PATCH if segment.patch_bytes else 0) | (_PARAMS if segment.params else 0)
    put(out, 2 * segment.op + is_filled)
    put(out, form)
    put(out, segment.length)
    for index, (start, size) in enumerate(segment.old):
        put(out, (abs(start - at) << 1) | (start < at))
        if not is_filled or index < len(segment.old) - 1:
            put(out, size)
        at = start + size
    if segment.patch_bytes:
        put(out, segment.patch_bytes)
    if segment.params:
        put(out, len(segment.params))
        out += segment.params
    if not is_alone:
        out += segment.digest16
    return at


def parse(data: bytes, *, max_bytes: int = MAX_RECIPE_BYTES) -> Recipe:
    """The recipe in `data`, every range, length and count checked by the module's rules.

    Raises:
        IntegrityError: not a recipe, of another format, or it breaks a rule.
        UnknownOpError: it names an operation that this version lacks.
    """
    if len(data) > max_bytes:
        raise IntegrityError(f"recipe of {len(data)} bytes exceeds {max_bytes}")
    if data[:4] == _ZSTD:
        return _parse_first(data)
    reader = Numbers(data)
    version = reader.number("recipe format", 0, 1 << 31)
    if version != RECIPE_FORMAT:
        raise IntegrityError(f"recipe format {version} is not {RECIPE_FORMAT}, the newest this version reads")
    base = Digest(reader.data("recipe base digest", 32))
    base_length = reader.number("recipe base length", 0, MAX_BLOB_BYTES)
    target = Digest(reader.data("recipe target digest", 32))
    segments: list[Segment] = []
    made = used = at = 0
    number = reader.number("segments", 0, 2 * MAX_SEGMENTS + 1)
    count, is_apart = number >> 1, number & 1
    for index in range(count):
        alone = target[:SHORT_DIGEST_BYTES] if count == 1 else None
        segment, at = _compact_segment(reader, index, base_length, at, alone)
        made += segment.length
        size = segment.patch[1]
        if is_apart:
            segment = replace(segment, patch=(used, size))
        used += size
        segments.append(segment)
    sha256, pages = describe(b"")
    if is_apart:
        sha256 = Digest(reader.data("patch digest", 32))
        pages = _pages(reader.data("patch pages", page_count(used) * SHORT_DIGEST_BYTES))
    elif used > MAX_WITHIN_BYTES:
        raise IntegrityError(f"a recipe has {used} patch bytes in itself, at most {MAX_WITHIN_BYTES}")
    else:
        for index, segment in enumerate(segments):
            if size := segment.patch[1]:
                within = reader.data(f"segment {index} patch bytes", size)
                segments[index] = replace(segment, patch=(0, 0), within=within)
        used = 0
    for index, segment in enumerate(segments):
        _check_shape(segment, f"segment {index}")
    reader.finish()
    return Recipe(base, base_length, target, made, used, sha256, pages, tuple(segments))


def _compact_segment(
    reader: Numbers, index: int, base_length: int, at: int, alone: bytes | None
) -> tuple[Segment, int]:
    """The segment, its patch range from 0, and where its last old range ends; `at` is where the one before ended.

    `alone`: its digest, where the recipe doesn't say it.
    """
    what = f"segment {index}"
    number, is_filled = divmod(reader.number(f"{what} operation", 0, 1 << 31), 2)
    form = reader.number(f"{what} form", 0, _PARAMS | _PATCH | MAX_OLD_RANGES)
    ranges = form & (_PATCH - 1)
    if ranges > MAX_OLD_RANGES or (is_filled and not ranges):
        raise IntegrityError(f"{what} has a form that can't be: {form}")
    length = reader.number(f"{what} length", 1, MAX_SEGMENT_BYTES)
    old: list[tuple[int, int]] = []
    for left in range(ranges - 1, -1, -1):
        step = reader.number(f"{what} old offset", 0, 2 * MAX_BLOB_BYTES + 1)
        at += -(step >> 1) if step & 1 else step >> 1
        if not 0 <= at <= base_length:
            raise IntegrityError(f"{what} old offset: {at} is not from 0 to {base_length}")
        most = min(MAX_OLD_BYTES, base_length - at)
        if left or not is_filled:
            size = reader.number(f"{what} old length", 1, most)
        else:
            size = length - sum(size for _, size in old)
        if not 1 <= size <= most:
            raise IntegrityError(f"{what} old length: {size} is not from 1 to {most}")
        old.append((at, size))
        at += size
    if sum(size for _, size in old) > max_old_bytes(length):
        raise IntegrityError(f"{what} of {length} bytes reads more than {max_old_bytes(length)} bytes of the base")
    size = reader.number(f"{what} patch length", 1, MAX_PATCH_BYTES) if form & _PATCH else 0
    params = b""
    if form & _PARAMS:
        params = reader.data(f"{what} params", reader.number(f"{what} params", 1, MAX_PARAMS_BYTES))
    digest16 = alone or reader.data(f"{what} digest", SHORT_DIGEST_BYTES)
    if number not in OPS:
        raise UnknownOpError(f"{what} needs operation {number}, which this version lacks")
    return Segment(length, number, tuple(old), (0, size), digest16, params), at


def _pages(joined: bytes) -> tuple[bytes, ...]:
    return tuple(joined[at : at + SHORT_DIGEST_BYTES] for at in range(0, len(joined), SHORT_DIGEST_BYTES))


def _check_shape(segment: Segment, what: str) -> None:
    """Raises IntegrityError unless the segment is shaped as its operation, which is known, wants it."""
    op = OPS[segment.op]
    if not op.is_shaped(segment):
        raise IntegrityError(f"{what} has ranges or parameters that {op.name} can't have")


# --- format 1 ---------------------------------------------------------------------------------------------------------


def _parse_first(data: bytes) -> Recipe:
    reader = Reader(decompress(data, max_bytes=MAX_UNPACKED_BYTES))
    # The format number stands first so that a later format may change everything behind it.
    parts = reader.array("recipe", 1, 64)
    version = reader.integer("recipe format", 0, 1 << 31)
    if version != _FIRST:
        raise IntegrityError(f"recipe format {version} is not {_FIRST}, as these arrays have")
    if parts != 5:
        raise IntegrityError(f"recipe has {parts} parts, expected 5")
    base, base_length = _blob(reader, "recipe base")
    target, target_length = _blob(reader, "recipe target")
    reader.array("recipe patch", 3, 3)
    patch_length = reader.integer("patch length", 0, MAX_BLOB_BYTES)
    patch_sha256 = Digest(reader.data("patch digest", 32, 32))
    pages_bytes = page_count(patch_length) * SHORT_DIGEST_BYTES
    pages = _pages(reader.data("patch pages", pages_bytes, pages_bytes))
    segments = _segments(reader, base_length, target_length, patch_length)
    reader.finish()
    return Recipe(base, base_length, target, target_length, patch_length, patch_sha256, pages, segments)


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
    if number not in OPS:
        raise UnknownOpError(f"{what} needs operation {number}, which this version lacks")
    _check_shape(segment, what)
    return segment

"""Tries what may make one segment smallest; pure, and deterministic.

A cheap look first: the size by zstd's fastest level of what each operation would pack. The coder needs no guess, it is
quicker than any packing that is worth having. Then the best of the cheap ones are packed well, and the smallest wins.
It is rebuilt and compared before it is given: a delta that doesn't give its bytes back must not leave this process.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zstandard

from heliograph.blob import short_digest
from heliograph.delta import edits, numeric, rans
from heliograph.delta.dtypes import Dtype
from heliograph.delta.edits import Edit
from heliograph.delta.packing import Packing, lzma_packed
from heliograph.delta.patch import dictionary, rebuild_segment
from heliograph.delta.recipe import DICT, FULL, SHUFFLE, SUB, SUB_RANS, TUPLES, XOR, XZ, Segment
from heliograph.wire import compress

Range = tuple[int, int]
LEVEL = 19
QUICK_LEVEL = 1
_HOPEFUL = 1.06
"""What is this much larger by the quick look may still win when packed well."""
_SMALL_BYTES = 4096
_WORTH_LZMA = 0.97


@dataclass(frozen=True, slots=True)
class Made:
    """One way to make a segment: all that its recipe entry says, and its patch bytes."""

    op: int
    old: tuple[Range, ...]
    params: bytes
    patch: bytes

    @property
    def cost(self) -> int:
        """Bytes on the link; an old range costs a few in the recipe."""
        return len(self.patch) + len(self.params) + 6 * len(self.old)


ReadOld = Callable[[int, int], bytes]


def checked(made: Made, new: bytes, read_old: ReadOld) -> tuple[Segment, bytes]:
    """The segment, its patch offset not known yet, after it gave `new` back.

    Raises:
        AssertionError: it didn't.
    """
    segment = Segment(len(new), made.op, made.old, (0, len(made.patch)), short_digest(new), made.params)
    if rebuild_segment(segment, read_old, made.patch) != new:
        raise AssertionError(f"operation {made.op} gave back other bytes than it took")
    return segment, made.patch


def best(ways: Sequence[Made]) -> Made:
    """The smallest; of equal ones the first."""
    return min(ways, key=lambda made: made.cost)


def of_elements(new: bytes, old: tuple[Range, ...], read_old: ReadOld, dtype: Dtype) -> list[Made]:
    """Ways to make `new` from as many old bytes, element by element, and without them."""
    before = b"".join([read_old(*span) for span in old])
    number = bytes([dtype])
    ways = [*coded(new, before, old, dtype)] if len(new) >= dtype.item_bytes else []
    plains = [
        (SUB, old, number, numeric.sub_plain(before, new, dtype)),
        (XOR, old, number, numeric.xor_plain(before, new, dtype)),
        (SHUFFLE, (), number + bytes([Packing.ZSTD]), numeric.shuffle_plain(new, dtype)),
        (FULL, (), b"", new),
    ]
    if dtype.item_bytes == 1:
        del plains[2]  # the same as full
    quick = [len(compress(plain, QUICK_LEVEL)) for _, _, _, plain in plains]
    target = min([made.cost for made in ways] + quick)
    for (op, spans, params, plain), size in zip(plains, quick, strict=True):
        if size <= target * _HOPEFUL or len(new) <= _SMALL_BYTES:
            ways.append(Made(op, spans, params, compress(plain, LEVEL)))
    return ways + harder(new, dtype, best(ways))


def coded(new: bytes, before: bytes, old: tuple[Range, ...], dtype: Dtype) -> list[Made]:
    """The coder's way, with as many lanes as suit what comes out."""
    count = 2 * len(new) if dtype == Dtype.I4 else len(new) // dtype.item_bytes
    lanes = rans.lanes_log2_for(count, len(new) // 4)
    patch = numeric.rans_patch(before, new, dtype, lanes)
    fitting = rans.lanes_log2_for(count, len(patch))
    if fitting != lanes:
        lanes, patch = fitting, numeric.rans_patch(before, new, dtype, fitting)
    return [Made(SUB_RANS, old, bytes([dtype, lanes]), patch)]


def alone(new: bytes, dtype: Dtype | None) -> list[Made]:
    """Ways to make `new` without anything old."""
    ways = [Made(FULL, (), b"", compress(new, LEVEL))]
    widths = [dtype] if dtype is not None else [Dtype.U16, Dtype.U32]
    for guess in widths:
        if guess.item_bytes == 1 or len(new) < _SMALL_BYTES:
            continue
        plain = numeric.shuffle_plain(new, guess)
        if len(compress(plain, QUICK_LEVEL)) <= best(ways).cost * _HOPEFUL:
            ways.append(Made(SHUFFLE, (), bytes([guess, Packing.ZSTD]), compress(plain, LEVEL)))
    return ways


def harder(new: bytes, dtype: Dtype | None, winner: Made) -> list[Made]:
    """LZMA for the ways without anything old, when one of these wins and isn't hopeless."""
    if len(new) < _SMALL_BYTES or winner.cost > _WORTH_LZMA * len(new):
        return []
    if winner.op == SHUFFLE:
        packed = lzma_packed(numeric.shuffle_plain(new, Dtype(winner.params[0])))
        return [Made(SHUFFLE, (), bytes([winner.params[0], Packing.LZMA]), packed)]
    if winner.op == FULL:
        return [Made(XZ, (), b"", lzma_packed(new))]
    return []


def by_dictionary(new: bytes, window: Range, read_old: ReadOld) -> list[Made]:
    """zstd with a window of the old blob as dictionary."""
    content = read_old(*window)
    if not content:
        return []
    level = zstandard.ZstdCompressionParameters.from_level(
        LEVEL,
        source_size=len(new),
        dict_size=len(content),
        window_log=max(10, (len(new) + len(content)).bit_length()),
    )
    codec = zstandard.ZstdCompressor(compression_params=level, dict_data=dictionary(content))
    return [Made(DICT, (window,), b"", codec.compress(new))]


def by_edits(new: bytes, found: Sequence[Edit], old: tuple[Range, ...], read_old: ReadOld) -> list[Made]:
    """Control tuples that make `new` from old ranges taken one behind the other."""
    if len(found) > edits.max_edits(len(new)):
        return []
    content = b"".join([read_old(*span) for span in old])
    plain = edits.encoded(list(found), content, new)
    if len(plain) > edits.max_plain_bytes(len(new)):
        return []
    return [
        Made(TUPLES, old, bytes([packing]), pack(plain))
        for packing, pack in ((Packing.ZSTD, lambda data: compress(data, LEVEL)), (Packing.LZMA, lzma_packed))
    ]

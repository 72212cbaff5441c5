"""Tries what may make one segment smallest; pure, and deterministic.

A cheap look first: the size by zstd's fastest level of what each operation would pack. The coder needs no guess, it is
quicker than any packing that is worth having. Then the best of the cheap ones are packed well, and the smallest wins.
It is rebuilt and compared before it is given: a delta that doesn't give its bytes back must not leave this process.
"""

import bz2
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import zstandard

from heliograph.blob import short_digest
from heliograph.delta import edits, numeric, rans
from heliograph.delta.blocks import mixture_of
from heliograph.delta.dtypes import Dtype
from heliograph.delta.edits import Edit
from heliograph.delta.mixture import encode
from heliograph.delta.packing import Packing, lzma_packed
from heliograph.delta.patch import APART_BYTES, dictionary, rebuild_segment
from heliograph.delta.recipe import DICT, EDITS, FULL, MIXED, SHUFFLE, SUB, SUB_RANS, TUPLES, XOR, XZ, Segment
from heliograph.delta.runs import pruned, runs_of
from heliograph.wire import compress

Range = tuple[int, int]
LEVEL = 19
QUICK_LEVEL = 1
_QUICK_HASH_LOG = 20
_CHOOSING_LEVEL = 6
_HOPEFUL = 1.03
"""What is this much larger by the quick look may still win when packed well."""
_SMALL_BYTES = 4096
_LEAST_LZMA_BYTES = 256
_LONG_BYTES = 64 << 10
_SAMPLE_BYTES = 256 << 10
_HOPELESS = 1.1
_FEW_OTHERS = 0.02
"""Where fewer of the bytes are of other types, these may cost less as of the main one."""
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


def of_elements(
    new: bytes,
    old: tuple[Range, ...],
    read_old: ReadOld,
    dtype: Dtype,
    pieces: Sequence[tuple[Dtype, int]] = (),
) -> list[Made]:
    """Ways to make `new` from as many old bytes, element by element, and without them.

    Args:
        new: the segment.
        old: ranges of the old blob, as long together.
        read_old: reads them.
        dtype: what most of the elements are.
        pieces: what they are piece by piece, with their bytes.
    """
    before = b"".join([read_old(*span) for span in old])
    number = bytes([dtype])
    ways = mixed(new, before, old, pieces)
    of_others = sum(length for of, length in pieces if of != dtype)
    if len(new) >= dtype.item_bytes and (not ways or of_others < len(new) * _FEW_OTHERS):
        ways += coded(new, before, old, dtype)
    if not any(made.op == MIXED for made in ways) and dtype == Dtype.U8 and len(new) >= _SMALL_BYTES:
        # Blocks of quantised weights: a scale of 16 bits before each. As pairs of bytes they may be better told apart.
        ways += coded(new, before, old, Dtype.F16)
        plain = edits.encoded([Edit(0, len(new), 0)], before, new)
        ways.append(Made(TUPLES, old, bytes([Packing.BZIP2]), bz2.compress(plain)))
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
    count = dtype.count(len(new))
    lanes = rans.lanes_log2_for(count, len(new) // 4)
    patch = numeric.rans_patch(before, new, dtype, lanes)
    fitting = rans.lanes_log2_for(count, len(patch))
    if fitting != lanes:
        lanes, patch = fitting, numeric.rans_patch(before, new, dtype, fitting)
    return [Made(SUB_RANS, old, bytes([dtype, lanes]), patch)]


def mixed(new: bytes, before: bytes, old: tuple[Range, ...], pieces: Sequence[tuple[Dtype, int]]) -> list[Made]:
    """The coder's way with each type by itself, if there are some."""
    found = mixture_of(pieces, new)
    if found is None:
        return []
    lanes = []
    for dtype in found.types:
        after, there = (bytes(numeric.gathered(data, found, dtype)) for data in (new, before))
        (made,) = coded(after, there, (), dtype)
        lanes.append(made.params[1])
    found = replace(found, lanes=tuple(lanes))
    return [Made(MIXED, old, encode(found), numeric.mixed_patch(before, new, found))]


def alone(new: bytes, dtype: Dtype | None) -> list[Made]:
    """Ways to make `new` without anything old."""
    quick = compress(new, QUICK_LEVEL)
    is_noise = len(quick) >= len(new) >= _SMALL_BYTES
    ways = [Made(FULL, (), b"", quick if is_noise else compress(new, LEVEL))]
    for guess in [dtype] if dtype is not None else [Dtype.U16, Dtype.U32]:
        if guess.item_bytes == 1 or len(new) < _SMALL_BYTES:
            continue
        plain = numeric.shuffle_plain(new, guess)
        if len(compress(plain, QUICK_LEVEL)) <= best(ways).cost * _HOPEFUL and not is_noise:
            ways.append(Made(SHUFFLE, (), bytes([guess, Packing.ZSTD]), compress(plain, LEVEL)))
    return ways


def of_bytes(new: bytes, old: tuple[Range, ...], read_old: ReadOld, cost: int) -> list[Made]:
    """xor of bytes of no known type, where a quick look says that it may cost less than so much."""
    plain = numeric.xor_plain(b"".join([read_old(*span) for span in old]), new, Dtype.U8)
    if len(compress(plain, QUICK_LEVEL)) > cost * _HOPEFUL:
        return []
    return [Made(XOR, old, bytes([Dtype.U8]), compress(plain, LEVEL))]


def harder(new: bytes, dtype: Dtype | None, winner: Made) -> list[Made]:
    """LZMA for the ways without anything old, when one of these wins and isn't hopeless."""
    if len(new) < _LEAST_LZMA_BYTES or winner.cost > _WORTH_LZMA * len(new):
        return []
    if winner.op == SHUFFLE:
        packed = lzma_packed(numeric.shuffle_plain(new, Dtype(winner.params[0])))
        return [Made(SHUFFLE, (), bytes([winner.params[0], Packing.LZMA]), packed)]
    if winner.op == FULL:
        return [Made(XZ, (), b"", lzma_packed(new))]
    return []


def quick_dictionary(new: bytes, window: Range, read_old: ReadOld) -> int:
    """What a quick look says that zstd with a window of the old blob as dictionary would cost."""
    content = read_old(*window)
    return len(_with(content, new, QUICK_LEVEL)) if content else len(new)


def by_dictionary(new: bytes, window: Range, read_old: ReadOld, cost: int) -> list[Made]:
    """zstd with a window of the old blob as dictionary, where a quick look says that it may cost less than so much."""
    content = read_old(*window)
    if not content or len(_with(content, new, QUICK_LEVEL)) > cost * _HOPEFUL:
        return []
    return [Made(DICT, (window,), b"", _with(content, new, LEVEL))]


def _with(content: bytes, new: bytes, level: int) -> bytes:
    reach = max(10, (len(new) + len(content)).bit_length())
    # The fastest level would forget all but the end of a long dictionary.
    table = {"hash_log": min(reach, _QUICK_HASH_LOG)} if level == QUICK_LEVEL else {}
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(new), dict_size=len(content), window_log=reach, **table
    )
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary(content)).compress(new)


def by_edits(new: bytes, found: Sequence[Edit], old: tuple[Range, ...], read_old: ReadOld) -> list[Made]:
    """Control tuples that make `new` from old ranges taken one behind the other."""
    content = b"".join([read_old(*span) for span in old])
    ways = {
        (width, is_pruned): edits.run_streams(runs_of(some, content, new, width), content, new, width)
        for is_pruned, some in ((False, list(found)), (True, pruned(found, content, new)))
        for width in edits.WIDTHS
    }
    fitting = {
        key: streams
        for key, streams in ways.items()
        if edits.first_number(streams[0]) <= edits.max_edits(len(new))
        and sum(map(len, streams)) <= edits.max_plain_bytes(len(new))
    }
    if not fitting:
        return []
    quick = {key: len(compress(b"".join(streams), _CHOOSING_LEVEL)) for key, streams in fitting.items()}
    width, is_pruned = min(quick, key=lambda key: (quick[key], key))
    return _edits_packed(fitting[width, is_pruned], old, width)


def _edits_packed(streams: tuple[bytes, bytes, bytes], old: tuple[Range, ...], width: int) -> list[Made]:
    numbers, adds, takes = streams
    plain = numbers + adds + takes
    ways = []
    if not adds or len(plain) < _LONG_BYTES:
        ways += [Made(EDITS, old, bytes([width, packing]), pack(plain)) for packing, pack in _packings(plain)]
    if adds:
        (first, head), (second, apart) = (
            min(((packing, pack(part)) for packing, pack in _packings(part)), key=lambda packed: len(packed[1]))
            for part in (numbers + takes, adds)
        )
        patch = len(head).to_bytes(APART_BYTES, "little") + head + apart
        ways.append(Made(EDITS, old, bytes([width, first, second]), patch))
    return ways


def _packings(part: bytes) -> "tuple[tuple[Packing, Callable[[bytes], bytes]], ...]":
    """What may pack so many bytes best: of long ones zstd at its slowest takes as long as LZMA and doesn't win, and
    LZMA isn't tried where bzip2 packs a sample much better."""
    if len(part) < _LONG_BYTES:
        return _PACKINGS
    sample = part[(len(part) - _SAMPLE_BYTES) // 2 :][:_SAMPLE_BYTES]
    if len(part) > 4 * _SAMPLE_BYTES and len(lzma_packed(sample)) > _HOPELESS * len(bz2.compress(sample)):
        return _PACKINGS[2:]
    return _PACKINGS[1:]


_PACKINGS: tuple[tuple[Packing, Callable[[bytes], bytes]], ...] = (
    (Packing.ZSTD, lambda data: compress(data, LEVEL)),
    (Packing.LZMA, lzma_packed),
    (Packing.BZIP2, bz2.compress),
)


def edits_of(old: bytes, new: bytes, lengths: Sequence[int]) -> list[list[Edit]]:
    """Control tuples for each of the parts that `new` is made of, of these lengths; none where bsdiff4 is missing."""
    try:
        import bsdiff4
    except ImportError:
        return []
    found: list[list[Edit]] = [[]]
    left = list(reversed(lengths))
    at = 0

    def put(edit: Edit) -> None:
        while edit.add + edit.take:
            fitting = min(edit.add, left[-1])
            taken = min(edit.take, left[-1] - fitting) if fitting == edit.add else 0
            found[-1].append(Edit(edit.old, fitting, taken))
            left[-1] -= fitting + taken
            edit = Edit(edit.old + fitting, edit.add - fitting, edit.take - taken)
            if left[-1] == 0:
                left.pop()
                found.append([])

    patch = bsdiff4.diff(old, new)
    control = bz2.decompress(patch[32 : 32 + _signed(patch[8:16])])
    for index in range(0, len(control), 24):
        add, take, seek = (_signed(control[index + n : index + n + 8]) for n in (0, 8, 16))
        put(Edit(at, add, take))
        at += add + seek
    return found[: len(lengths)]


def _signed(number: bytes) -> int:
    """A number of BSDIFF40: 63 bits of size, and the sign."""
    value = int.from_bytes(number, "little")
    return (1 << 63) - value if value >> 63 else value

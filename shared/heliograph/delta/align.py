"""Says where in an old blob the like of each part of a new one stands; reads both, and is deterministic.

In order:

1. *Tensors* of the two tables (`heliograph.delta.tensors`) that have one type: by name where their samples are alike;
   then, of one length, the most alike (renamed and permuted ones); then by name though they aren't alike; then small
   ones by the order of those of one shape.
2. *Resized* tensors, by name, or by shapes that differ in one axis and samples that are alike: by their leading rows;
   rows put in or taken out in between are found by likeness; where rows became longer or shorter, by runs, if these
   have 1 KiB and more.
3. *The rest* by content (`heliograph.delta.shifts`): unknown formats as a whole, code, tensors without their like, and
   of what stands between tensors all that is large. Of 64 KiB and more of no known type the type is guessed, where
   a cheap test of the differences says that it pays (`heliograph.delta.guess`).

Memory beyond both buffers: 64 MiB for anchors or samples, 1 KiB a tensor, and 200 bytes a span, of which there is at
most one for each 64 KiB besides those of tensors and their rows.
"""

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import prod

from heliograph.delta.buffer import Buffer
from heliograph.delta.dtypes import Dtype
from heliograph.delta.guess import LEAST_BYTES, Guess, guessed
from heliograph.delta.likeness import ALIKE, LEAST_ELEMENTS, best_pairs, likeness, row_runs, sample
from heliograph.delta.shifts import BLOCK_BYTES, Piece, Region, pieces
from heliograph.delta.tensors import Tensor, tables

MIN_RUN_BYTES = 1 << 10
"""Runs of rows that became longer or shorter are aligned from this size on: a smaller one isn't worth naming."""
MAX_RUNS = 1 << 14
"""Of one tensor."""
GUESS_BYTES = 4 << 20
"""One guess at a type is for so many bytes."""
_MAX_GUESSES = 2048
_CRUMB_BYTES = 16
_MAX_POOL = 1 << 11
_MAX_TRIES = 256
_CANDIDATES = 4


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the new blob and its like in the old one; the spans of a blob tile it in order.

    Attributes:
        new: where it begins in the new blob.
        length: bytes, at least 1; whole elements of `dtype`.
        old: where its like begins in the old blob, as long as this and within it: element i belongs to element i.
            None: nothing like it was found.
        dtype: what the elements are; None: bytes of no known type.
    """

    new: int
    length: int
    old: int | None
    dtype: Dtype | None


def aligned(old: Buffer, new: Buffer) -> list[Span]:
    """The spans of `new`, in order and without gap."""
    olds, news = tables(old), tables(new)
    spans: list[Span] = []
    for index, other in sorted(_pairs(old, new, olds, news).items()):
        spans += _of_pair(old, new, olds[other], news[index])
    return _joined(_with_rest(old, new, spans, news))


# --- which tensor belongs to which ------------------------------------------------------------------------------------


def _pairs(old: Buffer, new: Buffer, olds: Sequence[Tensor], news: Sequence[Tensor]) -> dict[int, int]:
    """New tensor to old one."""
    pairs: dict[int, int] = {}
    named: dict[int, int] = {}
    for key in (_by_full_name, _by_name):
        waiting = _queues(olds, set(range(len(olds))) - set(pairs.values()) - set(named.values()), key)
        for index, tensor in enumerate(news):
            queue = waiting.get(key(tensor))
            if index in pairs or index in named or not queue:
                continue
            other = queue.popleft()
            is_alike = tensor.length == olds[other].length and _is_alike(old, new, olds[other], tensor)
            (pairs if is_alike else named)[index] = other
    free = set(range(len(olds))) - set(pairs.values())

    def take(index: int, other: int) -> None:
        pairs[index] = other
        free.discard(other)

    groups: dict[Hashable, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, tensors, left in ((0, news, _left(news, pairs)), (1, olds, sorted(free))):
        for index in left:
            if _is_large(tensors[index]):
                groups[_kind(tensors[index]), tensors[index].length][side].append(index)
    for wanted, offered in groups.values():
        for one, other in _most_alike(old, new, olds, news, wanted[:_MAX_POOL], offered[:_MAX_POOL]):
            take(one, other)
    for index, other in named.items():
        if index not in pairs and other in free:
            take(index, other)
    waiting = _queues(olds, free, _by_shape)
    for index in _left(news, pairs):
        if not _is_large(news[index]) and (queue := waiting.get(_by_shape(news[index]))):
            take(index, queue.popleft())
    for index, other in _resized(old, new, olds, news, _left(news, pairs), sorted(free)):
        take(index, other)
    return pairs


def _left(news: Sequence[Tensor], pairs: dict[int, int]) -> list[int]:
    return [index for index in range(len(news)) if index not in pairs]


def _kind(tensor: Tensor) -> Hashable:
    return tensor.dtype, tensor.kind


def _by_full_name(tensor: Tensor) -> Hashable:
    return tensor.member, tensor.name, _kind(tensor)


def _by_name(tensor: Tensor) -> Hashable:
    return tensor.name, _kind(tensor)


def _by_shape(tensor: Tensor) -> Hashable:
    return tensor.shape, _kind(tensor)


def _queues(
    tensors: Sequence[Tensor], chosen: set[int], key: Callable[[Tensor], Hashable]
) -> dict[Hashable, deque[int]]:
    """Numbers of the chosen tensors by their key, in order."""
    out: dict[Hashable, deque[int]] = defaultdict(deque)
    for index in sorted(chosen):
        out[key(tensors[index])].append(index)
    return out


def _is_large(tensor: Tensor) -> bool:
    return tensor.length >= LEAST_ELEMENTS * tensor.dtype.item_bytes


def _is_alike(old: Buffer, new: Buffer, one: Tensor, other: Tensor) -> bool:
    """Whether samples of tensors of one length agree; those of few elements, or of one value, count as alike."""
    if not _is_large(other):
        return True
    theirs = sample(old, one.offset, one.length, one.dtype)
    ours = sample(new, other.offset, other.length, other.dtype)
    return not theirs.any() or not ours.any() or likeness(theirs, ours) >= ALIKE


def _most_alike(
    old: Buffer, new: Buffer, olds: Sequence[Tensor], news: Sequence[Tensor], wanted: list[int], offered: list[int]
) -> Iterator[tuple[int, int]]:
    """Pairs of one group."""
    if not wanted or not offered:
        return
    ours = [sample(new, news[index].offset, news[index].length, news[index].dtype) for index in wanted]
    theirs = [sample(old, olds[index].offset, olds[index].length, olds[index].dtype) for index in offered]
    for one, other in best_pairs(ours, theirs):
        yield wanted[one], offered[other]


def _resized(
    old: Buffer, new: Buffer, olds: Sequence[Tensor], news: Sequence[Tensor], left: list[int], free: list[int]
) -> Iterator[tuple[int, int]]:
    """Pairs whose shapes differ in one axis, and which are alike as far as both go; gives up after 256 that aren't, as
    each may cost a walk through an old tensor."""
    shaped: dict[Hashable, list[int]] = defaultdict(list)
    for index in free:
        for key in _but_one_axis(olds[index]):
            shaped[key].append(index)
    tries = _MAX_TRIES
    for index in left:
        tensor = news[index]
        candidates = [other for key in _but_one_axis(tensor) for other in shaped[key][:_CANDIDATES]]
        for other in candidates[: min(_CANDIDATES, tries)]:
            if _of_resized(old, new, olds[other], tensor, is_sure=False):
                for key in _but_one_axis(olds[other]):
                    shaped[key].remove(other)
                yield index, other
                break
            tries -= 1


def _but_one_axis(tensor: Tensor) -> list[Hashable]:
    """Keys that tensors share whose shapes differ in one axis; none for small tensors and vectors."""
    if not _is_large(tensor) or len(tensor.shape) < 2:
        return []
    shape = tensor.shape
    return [(_kind(tensor), axis, shape[:axis], shape[axis + 1 :]) for axis in range(len(shape))]


# --- which bytes of them ----------------------------------------------------------------------------------------------


def _of_pair(old: Buffer, new: Buffer, one: Tensor, other: Tensor) -> list[Span]:
    """The spans of a new tensor, given its old one, where they have their like."""
    if one.length != other.length or one.shape[1:] != other.shape[1:]:
        if one.length == other.length:
            return [Span(other.offset, other.length, one.offset, other.dtype)]  # the same elements in another shape
        return _of_resized(old, new, one, other, is_sure=True)
    if len(one.shape) > 1 and not _is_alike(old, new, one, other) and (runs := _of_rows(old, new, one, other)):
        return runs
    return [Span(other.offset, other.length, one.offset, other.dtype)]


def _of_resized(old: Buffer, new: Buffer, one: Tensor, other: Tensor, *, is_sure: bool) -> list[Span]:
    """The same for tensors of different sizes; if nobody is sure that they belong together, only what is alike."""
    if not one.shape or len(one.shape) != len(other.shape):
        return []
    if one.shape[1:] != other.shape[1:]:
        return _of_runs(old, new, one, other)
    both = min(one.length, other.length)
    leading = [Span(other.offset, both, one.offset, other.dtype)]
    parts = [(at * both // 4, (at + 1) * both // 4) for at in range(4)]
    item = other.dtype.item_bytes
    if all(_is_like(old, new, leading[0], low // item * item, (high - low) // item * item) for low, high in parts):
        return leading
    return _of_rows(old, new, one, other) or (leading if is_sure else [])


def _is_like(old: Buffer, new: Buffer, span: Span, at: int, length: int) -> bool:
    """Whether a part of a span is alike; one of few elements is taken at its word."""
    assert span.old is not None and span.dtype is not None, "of a pair of tensors"
    if length < LEAST_ELEMENTS * span.dtype.item_bytes:
        return True
    theirs = sample(old, span.old + at, length, span.dtype)
    return likeness(theirs, sample(new, span.new + at, length, span.dtype)) >= ALIKE


def _of_rows(old: Buffer, new: Buffer, one: Tensor, other: Tensor) -> list[Span]:
    """Runs of rows, where some were put in or taken out; rows have one length."""
    size = other.length // other.shape[0]
    runs = row_runs(old, one.offset, one.shape[0], new, other.offset, other.shape[0], size, other.dtype)
    return [
        Span(other.offset + row * size, rows * size, one.offset + there * size, other.dtype)
        for row, there, rows in runs
        if rows * size >= MIN_RUN_BYTES
    ]


def _of_runs(old: Buffer, new: Buffer, one: Tensor, other: Tensor) -> list[Span]:
    """The part that both tensors have, run by run, where an inner axis has another size; nothing if it isn't alike."""
    item = other.dtype.item_bytes
    axis = max(index for index in range(len(one.shape)) if one.shape[index] != other.shape[index])
    inner = prod(other.shape[axis + 1 :]) * item
    length = min(one.shape[axis], other.shape[axis]) * inner
    outer = [min(sizes) for sizes in zip(one.shape[:axis], other.shape[:axis], strict=True)]
    if length < MIN_RUN_BYTES or prod(outer) > MAX_RUNS:
        return []
    steps = [[prod(tensor.shape[at + 1 :]) * item for at in range(axis)] for tensor in (one, other)]
    spans = []
    for place in product(*map(range, outer)):
        there, here = (sum(at * step for at, step in zip(place, sizes, strict=True)) for sizes in steps)
        spans.append(Span(other.offset + here, length, one.offset + there, other.dtype))
    looked = spans[:: max(1, len(spans) // 8)]
    alike = sum(_is_like(old, new, span, 0, length) for span in looked)
    return spans if 2 * alike > len(looked) else []


# --- the rest ---------------------------------------------------------------------------------------------------------


def _with_rest(old: Buffer, new: Buffer, spans: list[Span], news: Sequence[Tensor]) -> list[Span]:
    """The spans, and others for all that they don't cover."""
    found: list[Piece] = []
    regions: list[Region] = []
    edges = [Span(0, 0, 0, None), *spans, Span(len(new), 0, len(old), None)]
    for before, after in pairwise(edges):
        start, end = before.new + before.length, after.new
        shifts = [span.old - span.new for span in (before, after) if span.old is not None]
        if spans and end - start < BLOCK_BYTES:
            inside = [shift for shift in shifts if 0 <= start + shift <= len(old) - (end - start)]
            found.append(Piece(start, end, inside[0] if inside else None))
        elif start < end:
            regions.append(Region(start, end, tuple(shifts)))
    starts = [tensor.offset for tensor in news]
    # What stands there in the old blob is the like of a header or of padding, but not of a tensor that has none.
    rest = [
        part if part.dtype is None else replace(part, old=None) for gap in found for part in _typed(gap, news, starts)
    ]
    guesses = _MAX_GUESSES
    for tiles in pieces(old, new, regions):
        parts: list[Span] = []
        for piece in tiles:
            for part in _typed(piece, news, starts):
                if part.dtype is None and part.old is not None and part.length >= LEAST_BYTES and guesses > 0:
                    guesses -= -(-part.length // GUESS_BYTES)
                    parts += _guessed(old, new, part)
                else:
                    parts.append(part)
        rest += _without_crumbs(parts, len(old))
    return sorted([*spans, *rest], key=lambda span: span.new)


def _typed(piece: Piece, news: Sequence[Tensor], starts: list[int]) -> Iterator[Span]:
    """The spans of a piece: whole elements of the new tensors in it, and what stands between these."""
    at = piece.start
    index = max(0, bisect_right(starts, at) - 1)
    while at < piece.end and index < len(news) and news[index].offset < piece.end:
        tensor = news[index]
        index += 1
        item = tensor.dtype.item_bytes
        low = max(tensor.offset, at + (tensor.offset - at) % item)
        high = min(tensor.offset + tensor.length, piece.end)
        high -= (high - low) % item
        if high - low < MIN_RUN_BYTES:
            continue
        if at < low:
            yield _span(at, low, piece.shift, None)
        yield _span(low, high, piece.shift, tensor.dtype)
        at = high
    if at < piece.end:
        yield _span(at, piece.end, piece.shift, None)


def _span(start: int, end: int, shift: int | None, dtype: Dtype | None) -> Span:
    return Span(start, end - start, None if shift is None else start + shift, dtype)


def _guessed(old: Buffer, new: Buffer, span: Span) -> list[Span]:
    """A span of no known type, as spans of those that pay."""
    assert span.old is not None, "it has its like"
    shift, end = span.old - span.new, span.new + span.length
    runs: list[tuple[int, Guess | None]] = []
    for at in range(span.new, end, GUESS_BYTES):
        guess = guessed(old, at + shift, new, at, min(GUESS_BYTES, end - at))
        if not runs or runs[-1][1] != guess:
            runs.append((at, guess))
    out = []
    for (start, guess), (stop, _) in pairwise([*runs, (end, None)]):
        if guess is None:
            out.append(_span(start, stop, shift, None))
            continue
        low = start + guess.phase
        high = stop - (stop - low) % guess.dtype.item_bytes
        parts = ((start, low, None), (low, high, guess.dtype), (high, stop, None))
        out += [_span(begin, finish, shift, dtype) for begin, finish, dtype in parts if begin < finish]
    return out


def _without_crumbs(spans: list[Span], old_length: int) -> list[Span]:
    """The same with the few bytes between two runs of one type as elements of the first, where they could be: a piece's
    edge is only nearly known, and may have fallen between an element's bytes."""
    out: list[Span] = []
    for span in spans:
        if span.dtype is not None and span.old is not None:
            whole = len(out)
            while whole and out[whole - 1].dtype is None and span.new - out[whole - 1].new <= _CRUMB_BYTES:
                whole -= 1
            crumbs = span.new - out[whole].new if whole < len(out) else 0
            last = out[whole - 1] if whole and crumbs else span
            room = 0 if last.old is None or last.dtype != span.dtype else old_length - last.old - last.length
            if 0 < crumbs <= room and crumbs % span.dtype.item_bytes == 0:
                out[whole - 1 :] = [replace(last, length=last.length + crumbs)]
        out.append(span)
    return out


def _joined(spans: list[Span]) -> list[Span]:
    """The same with neighbours as one that have no known type, and their like, or none, in one place."""
    out: list[Span] = []
    for span in spans:
        if out and out[-1].dtype is None and span.dtype is None:
            last = out[-1]
            together = (last.old is None) if span.old is None else (last.old == span.old - last.length)
            if together:
                out[-1] = replace(last, length=last.length + span.length)
                continue
        out.append(span)
    return [span for span in out if span.length]

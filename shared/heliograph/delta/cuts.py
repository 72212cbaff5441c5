"""Cuts the spans of a new blob into parts, each of which becomes one segment; pure, and deterministic.

Nothing here chooses an operation: a part says which old bytes it has element by element, if any, and where its like
stands otherwise. Rules:

1. What is unchanged and long becomes copies, found to the byte wherever spans begin and end; among elements, to the
   element.
2. Elements of one type go together, from up to 16 old ranges. Few others between them, whatever they are, go with
   them: a segment costs more than what they lose. Parts of elements begin and end between elements.
3. No part exceeds 4 MiB.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from heliograph.delta.align import Span
from heliograph.delta.buffer import Buffer
from heliograph.delta.dtypes import Dtype
from heliograph.delta.mixture import MAX_MIXED_BYTES
from heliograph.delta.recipe import MAX_OLD_RANGES, MAX_SEGMENT_BYTES

Range = tuple[int, int]
"""(offset, length)."""

BLOCK_BYTES = 4096
LEAST_RUN_BYTES = 32 << 10
"""A shorter run costs less in another segment than as one of its own."""
LEAST_TYPED_RUN_BYTES = 128 << 10
"""The same among elements, where what is unchanged costs next to nothing."""
SMALL_BYTES = 2560
"""Fewer bytes than this go with neighbours of another type."""
SMALL_TYPED_BYTES = 16 << 10
"""The same where both have a type and a like, so that each is coded by itself in a mixture."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the new blob that becomes one segment.

    Attributes:
        new: where it begins.
        length: bytes, 1 to 4 MiB.
        old: ranges as long together as the part, whose bytes belong to its own one by one; none if some have no like.
        dtype: what the elements are; None: bytes of no known type.
        place: where in the old blob the like of its first byte stands, or would if there were one.
        is_copy: whether it is unchanged.
        pieces: what its elements are, piece by piece with their bytes, if they aren't all of one type.
    """

    new: int
    length: int
    old: tuple[Range, ...]
    dtype: Dtype | None
    place: int
    is_copy: bool = False
    pieces: tuple[tuple[Dtype, int], ...] = ()


def cut(old: Buffer, new: Buffer, spans: Sequence[Span]) -> Iterator[Part]:
    """The parts of `new`, in order and without gap."""
    group = _Group(len(old))
    for span, is_copy in _split(spans, list(_runs(old, new, spans))):
        if is_copy:
            yield from group.close()
            assert span.old is not None, "copies have an old place"
            for at, length in pieces(span.length, MAX_SEGMENT_BYTES):
                yield Part(span.new + at, length, ((span.old + at, length),), None, span.old + at, is_copy=True)
            group.follow(span)
            continue
        for at, length in pieces(span.length, _most(span.dtype), _item(span.dtype)):
            there = None if span.old is None else span.old + at
            piece = Span(span.new + at, length, there, span.dtype)
            is_same = there is not None and length < LEAST_TYPED_RUN_BYTES and _is_same(old, new, piece)
            if not group.takes(piece, is_same):
                yield from group.close()
            group.add(piece, is_same)
    yield from group.close()


def _is_same(old: Buffer, new: Buffer, piece: Span) -> bool:
    return piece.old is not None and (
        old[piece.old : piece.old + piece.length] == new[piece.new : piece.new + piece.length]
    )


def pieces(length: int, most: int, item: int = 1) -> Iterator[Range]:
    """(offset, length) of nearly equal pieces of at most `most` bytes, in whole items; there is at least one."""
    items = length // item
    count = -(-items // (most // item))
    for index in range(count):
        at, end = items * index // count * item, items * (index + 1) // count * item
        yield at, (end if index < count - 1 else length) - at


def split(part: Part) -> list[Part]:
    """The part in several, each of one type but for small pieces; itself alone if it is so."""
    groups: list[tuple[Dtype, list[tuple[Dtype, int]]]] = []
    for dtype, length in part.pieces:
        main, pieces = groups[-1] if groups else (dtype, [])
        held = sum(size for _, size in pieces)
        if pieces and (dtype == main or length < SMALL_BYTES):
            pieces.append((dtype, length))
        elif pieces and held < SMALL_BYTES and held % dtype.item_bytes == 0:
            groups[-1] = dtype, [*pieces, (dtype, length)]
        else:
            groups.append((dtype, [(dtype, length)]))
    if len(groups) < 2:
        return [part]
    out: list[Part] = []
    at = 0
    for main, pieces in groups:
        length = sum(size for _, size in pieces)
        old = tuple(_within(part.old, at, length))
        out.append(Part(part.new + at, length, old, main, old[0][0] if old else part.place + at, False, tuple(pieces)))
        at += length
    return out


def _within(ranges: Sequence[Range], begin: int, length: int) -> Iterator[Range]:
    """What of ranges, taken one behind the other, stands in so many bytes from there on."""
    for start, size in ranges:
        low, high = max(begin, 0), min(begin + length, size)
        if low < high:
            yield start + low, high - low
        begin -= size


# --- what is unchanged ------------------------------------------------------------------------------------------------


def _runs(old: Buffer, new: Buffer, spans: Sequence[Span]) -> Iterator[Span]:
    """Long unchanged runs, in order and without overlap."""
    starts = [span.new for span in spans]
    done = 0
    for span in spans:
        if span.old is None:
            continue
        shift = span.old - span.new
        least = LEAST_RUN_BYTES if span.dtype is None else LEAST_TYPED_RUN_BYTES
        least = min(max(least, len(new) >> 11), len(new))
        at, end = max(span.new, done), span.new + span.length
        while at < end:
            size = min(BLOCK_BYTES, end - at)
            if old[at + shift : at + shift + size] != new[at : at + size]:
                at += size
                continue
            back = _common(new, at, old, at + shift, min(at - done, at + shift), forward=False)
            most = min(len(new) - at, len(old) - at - shift)
            ahead = _common(new, at, old, at + shift, most, forward=True)
            start = _rounded(spans, starts, at - back, up=True)
            stop = _rounded(spans, starts, at + ahead, up=False)
            if stop - start >= least:
                yield Span(start, stop - start, start + shift, None)
                done = stop
            at = max(at + size, stop)


def _rounded(spans: Sequence[Span], starts: Sequence[int], at: int, *, up: bool) -> int:
    """The nearest place at or after `at`, or at or before it, that isn't inside an element."""
    span = spans[bisect_right(starts, at) - 1]
    over = 0 if span.dtype is None or at >= span.new + span.length else (at - span.new) % span.dtype.item_bytes
    if over == 0 or span.dtype is None:
        return at
    return at - over + (span.dtype.item_bytes if up else 0)


def _common(one: Buffer, at: int, two: Buffer, there: int, most: int, *, forward: bool) -> int:
    """How many bytes agree from `one[at]` and `two[there]` on, or before them; at most `most`."""
    agreed, size = 0, 256
    while agreed < most:
        size = min(size, most - agreed)
        if forward:
            same = one[at + agreed : at + agreed + size] == two[there + agreed : there + agreed + size]
        else:
            same = one[at - agreed - size : at - agreed] == two[there - agreed - size : there - agreed]
        if same:
            agreed += size
            size = min(size * 2, 1 << 20)
        elif size == 1:
            break
        else:
            # The first difference is within `size`: look at half of it, never wider again.
            most = agreed + size
            size //= 2
    return agreed


def _split(spans: Sequence[Span], runs: Sequence[Span]) -> Iterator[tuple[Span, bool]]:
    """What is left of the spans, and the runs between (True)."""
    runs = list(reversed(runs))
    for span in spans:
        at, end = span.new, span.new + span.length
        while at < end:
            if runs and runs[-1].new < end:
                run = runs[-1]
                if at < run.new:
                    yield _sliced(span, at, run.new), False
                if run.new >= span.new:
                    yield run, True
                at = run.new + run.length
                if at > end:
                    break  # the next span is within this run too
                runs.pop()
            else:
                yield _sliced(span, at, end), False
                at = end
        while runs and runs[-1].new + runs[-1].length <= end:
            runs.pop()


def _sliced(span: Span, start: int, end: int) -> Span:
    there = None if span.old is None else span.old + start - span.new
    return Span(start, end - start, there, span.dtype)


# --- what goes together -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Group:
    """Neighbouring pieces that will be one part."""

    base_length: int
    new: int = 0
    length: int = 0
    dtype: Dtype | None = None
    is_loose: bool = False
    """Whether some of it, not small, has no like."""
    is_same: bool = True
    """Whether all of it is unchanged."""
    shift: int = 0
    ranges: list[Range] = field(default_factory=list)
    pieces: list[tuple[Dtype | None, int]] = field(default_factory=list)
    _place: int = 0
    _largest: int = -1

    def follow(self, span: Span) -> None:
        """Remembers at which shift the last content was found."""
        if span.old is not None:
            self.shift = span.old - span.new

    def takes(self, piece: Span, is_same: bool) -> bool:
        """Whether the piece may join what is here."""
        if self.length == 0:
            return True
        if (
            self.length + piece.length > min(_most(self.dtype), _most(piece.dtype))
            or len(self.ranges) == MAX_OLD_RANGES
        ):
            return False
        if self.length + piece.length > MAX_MIXED_BYTES and self._loses_by(piece):
            return False
        if piece.dtype == self.dtype and (piece.dtype is None or (piece.old is None) == self.is_loose):
            return True
        if self._is_led_by(piece, is_same):
            return self.length % _item(piece.dtype) == 0
        return (is_same or piece.length < self._small_bytes(piece)) and piece.length % _item(self.dtype) == 0

    def _is_led_by(self, piece: Span, is_same: bool) -> bool:
        """Whether the piece says what the elements are of it and of what is here."""
        return not is_same and (self.is_same or (self.length < self._small_bytes(piece) <= piece.length))

    def _loses_by(self, piece: Span) -> bool:
        """Whether it matters that this and the piece can't be a mixture, being too long: some elements are bytes, or
        not small."""
        pieces = [*self.pieces, (piece.dtype, piece.length)]
        main = self.dtype if self.length >= piece.length else piece.dtype
        others = [length for dtype, length in pieces if dtype not in (None, main)]
        return len(others) > 0 and (_item(main) == 1 or max(others) >= SMALL_BYTES)

    def _typed(self) -> tuple[tuple[Dtype, int], ...]:
        """The pieces, those of no type as of the main one, where its elements fit them."""
        main = self.dtype or Dtype.U8
        return tuple(
            (dtype or (Dtype.U8 if length % main.item_bytes else main), length) for dtype, length in self.pieces
        )

    def _small_bytes(self, piece: Span) -> int:
        """Fewer bytes than this, here or of the piece, go with the others whatever their type."""
        is_typed = self.dtype is not None and piece.dtype is not None
        may_mix = is_typed and piece.old is not None and not self.is_loose
        return SMALL_TYPED_BYTES if may_mix and self.length + piece.length <= MAX_MIXED_BYTES else SMALL_BYTES

    def add(self, piece: Span, is_same: bool) -> None:
        """Has the piece join; the larger one says what the elements are, or the one that changed."""
        self.follow(piece)
        there = piece.old
        if there is None:
            there = max(0, min(piece.new + self.shift, self.base_length - piece.length))
        if self.length == 0:
            self.new, self._place = piece.new, there
        if self.length == 0 or self._is_led_by(piece, is_same):
            self.dtype, self.is_loose = piece.dtype, piece.old is None
        elif self.dtype is None:
            self.is_loose |= piece.old is None
        self.is_same &= is_same
        self.pieces.append((piece.dtype, piece.length))
        if piece.old is not None and piece.length > self._largest:
            self._place, self._largest = there - self.length, piece.length
        last = self.ranges[-1] if self.ranges else (-1, 0)
        if sum(last) == there:
            self.ranges[-1] = (last[0], last[1] + piece.length)
        else:
            self.ranges.append((there, piece.length))
        self.length += piece.length

    def close(self) -> Iterator[Part]:
        """The part, if there is one; then begins anew."""
        if self.length:
            has_like = not self.is_loose and all(at + length <= self.base_length for at, length in self.ranges)
            is_copy = self.is_same and len(self.ranges) == 1
            old = tuple(self.ranges) if has_like else ()
            yield Part(self.new, self.length, old, self.dtype, self._place, is_copy, self._typed())
        self.length, self.dtype, self.is_loose, self.is_same = 0, None, False, True
        self.ranges.clear()
        self.pieces.clear()
        self._place, self._largest = 0, -1


def _item(dtype: Dtype | None) -> int:
    return 1 if dtype is None else dtype.item_bytes


def _most(dtype: Dtype | None) -> int:
    """Bytes of a part: the coder takes so many elements, and bytes may be blocks, which are mixtures."""
    return MAX_MIXED_BYTES if dtype in (Dtype.I4, Dtype.U8) else MAX_SEGMENT_BYTES

"""Control tuples over neighbouring parts, where they cost less than what each part was made of; pure, deterministic.

Parts follow tensors and shifts of content. Where these mislead (another build of a graph, code, chunks moved in between
tensors) elements are paid for that stand elsewhere in the old blob, byte by byte. So for each stretch of the new blob,
as long as sorting allows, and if anything shows that there are such bytes:

1. *Edits*: bsdiff4 finds them for the whole stretch, in all of the old blob or 32 MiB of it.
2. Neighbours that one segment could hold are a group. The smallest is taken of each part in its best way, runs of those
   parts that tuples suit as one segment, and all the group as one.
3. *Few changes*: parts that cost little, and copies among them, become one segment of tuples where they stand, if that
   is smaller: a segment costs as much as many changed bytes.

Memory: 17 bytes for each byte of the old blob that bsdiff4 is given, and as many for each of the new one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from heliograph.blob import SHORT_DIGEST_BYTES
from heliograph.delta import edits, trial
from heliograph.delta.buffer import Buffer
from heliograph.delta.cuts import Part, Range
from heliograph.delta.edits import Edit
from heliograph.delta.recipe import (
    COPY,
    EDITS,
    MAX_OLD_RANGES,
    MAX_SEGMENT_BYTES,
    MAX_WITHIN_BYTES,
    max_old_bytes,
)
from heliograph.delta.trial import Made
from heliograph.wire import compress

SORTED_BYTES = 32 << 20
"""The most of an old blob, and of a new one, that bsdiff4 is given at once."""
_SEGMENT_COST = 24
"""What a segment costs in the recipe, most of it its digest."""
_LONG_COPY_BYTES = 512 << 10
_HOPEFUL = 1.5
"""What a quick look says may be so much more than what packing well makes of it."""
_LIKE = 0.95
"""What a window of the old blob as dictionary must save for a sign that bytes stand there that weren't found."""
_LEAST_COST = 200
_NEARLY_NOTHING = 400
"""What costs less than this part of its bytes has nothing to save."""
_FEW_CHANGES_LOG2 = 8
"""What costs less than this part (its log2) of its bytes, or fits a recipe, may be made of tuples where it stands."""
_FEW = 20
"""Parts that make up less than this part of the cost aren't worth a look at all the others."""


@dataclass(frozen=True, slots=True)
class Done:
    """A part, or a run of them, and what it is made of."""

    part: Part
    made: Made
    found: tuple[Edit, ...] = ()
    """The tuples it is made of."""


def stretches(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """The parts in stretches of up to `SORTED_BYTES`."""
    stretch: list[Part] = []
    length = 0
    for part in parts:
        if stretch and length + part.length > SORTED_BYTES:
            yield stretch
            stretch, length = [], 0
        stretch.append(part)
        length += part.length
    if stretch:
        yield stretch


def merged(old: Buffer, new: Buffer, stretch: Sequence[Done], window: Callable[[Part], Range]) -> list[Done]:
    """The stretch, with runs of it made of tuples where that is smaller."""
    misled = [index for index, done in enumerate(stretch) if _is_misled(old, new, done, window)]
    found = _found(old, new, stretch, misled, window)
    way = list(stretch)
    if found:
        merger = _Merger(old, new, stretch, found)
        way = [done for group in merger.groups() for done in merger.smallest(group)]
    there = {index: _where_it_stands(done) for index, done in enumerate(way)}
    return _Merger(old, new, way, there).with_few_changes()


def _where_it_stands(done: Done) -> Sequence[Edit]:
    """Tuples for a part over the old bytes of which it was made; what has no like is taken."""
    return done.found or [Edit(at, length, 0) for at, length in done.part.old] or [Edit(0, 0, done.part.length)]


def _is_misled(old: Buffer, new: Buffer, done: Done, window: Callable[[Part], Range]) -> bool:
    """Whether a quick look says that the old blob may have more of a part than it was made of."""
    if done.made.op == COPY or done.made.cost <= max(_LEAST_COST, done.part.length // _NEARLY_NOTHING):
        return False
    if done.made.op == EDITS or (done.part.dtype is None and done.part.old):
        return True
    text = new[done.part.new : done.part.new + done.part.length]
    promised = trial.quick_dictionary(text, window(done.part), lambda at, n: old[at : at + n])
    fresh = len(compress(text, trial.QUICK_LEVEL))
    return promised < _LIKE * min(done.made.cost, fresh)


def _found(
    old: Buffer, new: Buffer, stretch: Sequence[Done], misled: Sequence[int], window: Callable[[Part], Range]
) -> dict[int, list[Edit]]:
    """Edits for each part of a stretch, by its number; of those alone that were misled, if they cost little of it."""
    whole = sum(done.made.cost for done in stretch)
    if sum(stretch[index].made.cost for index in misled) * _FEW < whole:
        looks = [([index], window(stretch[index].part)) for index in misled]
    else:
        looks = [(list(range(len(stretch))), _about(old, stretch))] if misled else []
    found: dict[int, list[Edit]] = {}
    for numbers, (start, length) in looks:
        parts = [stretch[number].part for number in numbers]
        text = new[parts[0].new : parts[-1].new + parts[-1].length]
        each = trial.edits_of(old[start : start + length], text, [part.length for part in parts])
        for number, edits_of_part in zip(numbers, each, strict=False):
            found[number] = [replace(edit, old=edit.old + start) for edit in edits_of_part]
    return found


def _about(old: Buffer, stretch: Sequence[Done]) -> Range:
    """The old bytes that are searched: those about the places of the stretch, if all are too many."""
    length = min(len(old), SORTED_BYTES)
    places = sorted(done.part.place for done in stretch)
    middle = places[len(places) // 2]
    return max(0, min(middle - length // 2, len(old) - length)), length


class _Merger:
    """Makes tuples of the parts of one stretch."""

    def __init__(self, old: Buffer, new: Buffer, stretch: Sequence[Done], found: Mapping[int, Sequence[Edit]]) -> None:
        self._old = old
        self._new = new
        self._stretch = stretch
        self._found = found

    def groups(self) -> Iterator[range]:
        """Neighbours that one segment could hold; long copies stand alone."""
        first, length = 0, 0
        for index, done in enumerate(self._stretch):
            is_long = done.made.op == COPY and done.part.length >= _LONG_COPY_BYTES
            if index > first and (is_long or length + done.part.length > MAX_SEGMENT_BYTES):
                yield range(first, index)
                first, length = index, 0
            length += done.part.length
            if is_long:
                yield range(index, index + 1)
                first, length = index + 1, 0
        if first < len(self._stretch):
            yield range(first, len(self._stretch))

    def smallest(self, group: range) -> list[Done]:
        """The best of: each part in its best way, runs of those that tuples suit, all as one segment of tuples."""
        as_they_are = [self._stretch[index] for index in group]
        if not any(index in self._found and self._stretch[index].made.op != COPY for index in group):
            return as_they_are
        by_index = dict(zip(group, as_they_are, strict=True))
        suited = set()
        for index, done in by_index.items():
            if done.made.op in (COPY, EDITS):
                suited.add(index)
            elif index in self._found and self._promise(index) <= _HOPEFUL * (done.made.cost + _SEGMENT_COST):
                one = self._tuples(index, index)
                if one is not None and one.made.cost <= done.made.cost + _SEGMENT_COST:
                    suited.add(index)
                if one is not None and one.made.cost < done.made.cost:
                    by_index[index] = one
        runs: list[Done] = []
        run: list[int] = []
        for index in group:
            if index in suited:
                run.append(index)
                continue
            runs += self._run(run, by_index)
            runs.append(by_index[index])
            run = []
        runs += self._run(run, by_index)
        ways = [runs]
        if len(suited) < len(group) and all(index in self._found for index in group):
            ways.append(self._run(list(group), by_index))
        return min(ways, key=total)

    def with_few_changes(self) -> list[Done]:
        """All the stretch, runs of copies and of parts that cost little as one segment where that is smaller."""
        out: list[Done] = []
        first = length = 0
        for index, done in enumerate(self._stretch):
            if not self._has_few_changes(index):
                out += self._joined(first, index)
                out.append(done)
                first, length = index + 1, 0
                continue
            if length + done.part.length > MAX_SEGMENT_BYTES:
                out += self._joined(first, index)
                first, length = index, 0
            length += done.part.length
        return out + self._joined(first, len(self._stretch))

    def _has_few_changes(self, index: int) -> bool:
        """Whether a part costs little, and not much less than tuples would."""
        done = self._stretch[index]
        if done.made.op == COPY:
            return True
        if done.made.cost > max(MAX_WITHIN_BYTES, done.part.length >> _FEW_CHANGES_LOG2):
            return False
        if not done.found and not done.part.old:
            return done.part.length <= done.made.cost + _SEGMENT_COST
        one = self._tuples(index, index)
        return one is not None and one.made.cost <= done.made.cost + 2 * _SEGMENT_COST

    def _joined(self, first: int, end: int) -> list[Done]:
        """The parts from one number up to another as one, or as they are."""
        as_they_are = list(self._stretch[first:end])
        if all(done.made.op == COPY for done in as_they_are):
            return as_they_are
        one = self._tuples(first, end - 1)
        if one is None:
            return as_they_are
        # A segment that is all of a blob needs no digest.
        saved = SHORT_DIGEST_BYTES if one.part.length == len(self._new) and end - first > 1 else 0
        return [one] if total([one]) - saved < total(as_they_are) else as_they_are

    def _run(self, run: Sequence[int], by_index: Mapping[int, Done]) -> list[Done]:
        """A run as one segment of tuples, without the copies at its ends, or as it is."""
        as_it_is = [by_index[index] for index in run]
        inner = [index for index in run if by_index[index].made.op != COPY]
        if not inner or inner[0] == inner[-1] or any(index not in self._found for index in run):
            return as_it_is
        one = self._tuples(inner[0], inner[-1])
        if one is None:
            return as_it_is
        before, after = run[: run.index(inner[0])], run[run.index(inner[-1]) + 1 :]
        as_one = [*(by_index[index] for index in before), one, *(by_index[index] for index in after)]
        return min(as_it_is, as_one, key=total)

    def _tuples(self, first: int, last: int) -> Done | None:
        """The parts from one number to another as a segment of tuples."""
        begin, end = self._stretch[first].part, self._stretch[last].part
        length = end.new + end.length - begin.new
        found = [edit for index in range(first, last + 1) for edit in self._found[index]]
        spans = ranges(found, max_old_bytes(length))
        text = self._new[begin.new : begin.new + length]
        ways = trial.by_edits(text, within(found, spans), spans, self._read) if spans else []
        part = Part(begin.new, length, (), None, begin.place)
        return Done(part, trial.best(ways), tuple(found)) if ways else None

    def _promise(self, index: int) -> int:
        """What a quick look says that tuples of a part would cost."""
        part, found = self._stretch[index].part, self._found[index]
        low = min((edit.old for edit in found), default=0)
        there = self._old[low : max((edit.old + edit.add for edit in found), default=low)]
        near = [replace(edit, old=edit.old - low) for edit in found]
        return len(
            compress(edits.encoded(near, there, self._new[part.new : part.new + part.length]), trial.QUICK_LEVEL)
        )

    def _read(self, at: int, length: int) -> bytes:
        return self._old[at : at + length]


def total(way: Sequence[Done]) -> int:
    """What these cost together, their segments in the recipe included."""
    return sum(done.made.cost + _SEGMENT_COST for done in way)


def ranges(found: Sequence[Edit], most: int) -> tuple[Range, ...]:
    """The old bytes that edits add to, in at most 16 ranges of together at most so many bytes; the densest stay."""
    spans: list[list[int]] = []
    for at, end in sorted((edit.old, edit.old + edit.add) for edit in found if edit.add):
        if spans and at <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], end)
        else:
            spans.append([at, end])
    by_gap = sorted(range(1, len(spans)), key=lambda index: (spans[index - 1][1] - spans[index][0], index))
    kept = set(by_gap[: MAX_OLD_RANGES - 1])
    merged: list[list[int]] = []
    for index, (at, end) in enumerate(spans):
        if index == 0 or index in kept:
            merged.append([at, end])
        else:
            merged[-1][1] = end
    out: list[Range] = []
    for at, end in sorted(merged, key=lambda span: (span[0] - span[1], span)):
        length = min(end - at, most - sum(size for _, size in out))
        if length > 0:
            out.append((at, length))
    return tuple(sorted(out))


def within(found: Sequence[Edit], spans: Sequence[Range]) -> list[Edit]:
    """The edits over ranges taken one behind the other; what stands in none of them is taken instead."""
    out: list[Edit] = []
    for edit in found:
        before = 0
        for at, length in spans:
            if at <= edit.old and edit.old + edit.add <= at + length:
                out.append(Edit(before + edit.old - at, edit.add, edit.take))
                break
            before += length
        else:
            last = out.pop() if out else Edit(0, 0, 0)
            out.append(replace(last, take=last.take + edit.add + edit.take))
    return out

"""Finds where the like of unknown bytes stands in an old blob: unchanged or changed a little, wherever it moved to.

A *shift* is an old offset minus a new one. What stands at one shift is a *piece*. In order, each step only for what
the one before left open:

1. Blocks of 64 KiB are tried, by samples, at the shifts that cost nothing to guess: counted from the front, from the
   end, and those of neighbours. A shift holds when more bytes agree there than at wrong shifts nearby.
2. *Anchors* are windows chosen by a hash of their content, so that they are chosen again wherever the content went;
   pairs of equal windows vote for shifts. Windows of 32 bytes in a row find what is unchanged; of every eighth
   byte, floats of any width whose exponents stayed while all else changed; of 8 bytes, integers of which most stayed.
3. A piece's edge is where most bytes agree of those that could, to within a block of what the steps above say.

Time is linear. Memory beyond the two buffers, which may be mmaps: at most 64 MiB, whatever their size (2^18 anchors of
each blob, work on 2^18 bytes at once).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from heliograph.delta.buffer import Buffer

BLOCK_BYTES = 64 << 10
SMALL_BYTES = 4 << 10
"""Less than this between two pieces goes with one of them."""
_BRIDGE_BYTES = 1 << 20
"""Less than this between pieces of one shift is of that shift: as many bytes stand there in both blobs."""
_END_BYTES = 16 << 10
"""The same at an end, where the old blob has as much."""
_CHUNK_BYTES = 1 << 18
_MAX_ANCHORS = 1 << 18
_LEAST_GAIN = 0.05
_LEAST_VOTED_BYTES = 1 << 10
_FAR_BYTES = 256 << 10
"""Votes farther apart say nothing of what stands between them."""
_SAMPLES, _SAMPLE_BYTES = 8, 256
_WINDOWS = ((1, 32), (8, 16), (1, 8))
"""Distance of the bytes of a window, and how many there are: a power of two."""
_MULTIPLIER, _MIXER = 0x2C9277B5, 0x9E3779B1
# A fixed permutation of large odd numbers: what a byte counts in the hash.
_WEIGHTS = (np.arange(1, 257, dtype=np.uint64) * np.uint64(0xD6E8FEB86659FD93) >> np.uint64(29)).astype(np.uint32)

_Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Piece:
    """`new[start:end]` belongs to `old[start + shift:end + shift]`; None: to nothing that was found."""

    start: int
    end: int
    shift: int | None


@dataclass(frozen=True, slots=True)
class Region:
    """A range of the new blob, and shifts worth trying there, such as those of what stands beside it."""

    start: int
    end: int
    hints: tuple[int, ...] = ()


def pieces(old: Buffer, new: Buffer, regions: Sequence[Region]) -> list[list[Piece]]:
    """For each region, the pieces that tile it, in order. Regions are in order, and don't meet."""
    if not len(old):
        return [[Piece(region.start, region.end, None)] for region in regions]
    return _Finder(old, new, regions).found()


class _Finder:
    def __init__(self, old: Buffer, new: Buffer, regions: Sequence[Region]) -> None:
        self._old: _Bytes = np.frombuffer(old, np.uint8)
        self._new: _Bytes = np.frombuffer(new, np.uint8)
        self._regions = regions
        self._starts = [region.start for region in regions]

    def found(self) -> list[list[Piece]]:
        """See `pieces`."""
        parts = self._tried([Piece(region.start, region.end, None) for region in self._regions])
        for stride, count in _WINDOWS:
            least = SMALL_BYTES if (stride, count) == _WINDOWS[0] else max(BLOCK_BYTES, len(self._old) >> 8)
            if sum(part.end - part.start for part in parts if part.shift is None) < least:
                continue
            parts = self._tried(_merged(self._anchored(parts, stride, count)))
        out: list[list[Piece]] = [[] for _ in self._regions]
        for part in parts:
            out[self._region(part)].append(part)
        return [self._cut(part) for part in out]

    def _region(self, part: Piece) -> int:
        """Number of the region that a part stands in."""
        return bisect_right(self._starts, part.start) - 1

    # --- trying shifts ------------------------------------------------------------------------------------------------

    def _tried(self, parts: list[Piece]) -> list[Piece]:
        """Open parts, block by block, at the shifts of their neighbours and those of the hints."""
        out: list[Piece] = []
        following: list[int | None] = [None] * len(parts)
        for index in range(len(parts) - 2, -1, -1):
            nearest = parts[index + 1].shift
            following[index] = following[index + 1] if nearest is None else nearest
        before: int | None = None
        for part, after in zip(parts, following, strict=True):
            if part.shift is not None:
                out.append(part)
                before = part.shift
                continue
            if before is not None and before == after and part.end - part.start < BLOCK_BYTES:
                out.append(replace(part, shift=before))  # as many bytes in both: nothing was put in or taken out
                continue
            hints = (*self._regions[self._region(part)].hints, 0, len(self._old) - len(self._new))
            for at in range(part.start, part.end, BLOCK_BYTES):
                end = min(at + BLOCK_BYTES, part.end)
                shifts = dict.fromkeys(shift for shift in (before, after, *hints) if shift is not None)
                gains = {shift: self._gain(at, end, shift) for shift in shifts}
                best = max(gains, key=lambda shift: gains[shift])  # the first of equals
                out.append(Piece(at, end, best if gains[best] > _LEAST_GAIN else None))
                before = out[-1].shift if out[-1].shift is not None else before
        return _merged(out)

    def _gain(self, start: int, end: int, shift: int) -> float:
        """How many more bytes agree at a shift than at wrong ones, of those that could: 1 if all do."""
        old, new = self._old, self._new
        size = min(_SAMPLE_BYTES, end - start)
        right = wrong = whole = 0.0
        for index in range(_SAMPLES):
            at = start + (end - start - size) * index // (_SAMPLES - 1)
            there = at + shift
            if not 0 <= there <= len(old) - size:
                return 0.0
            text = new[at : at + size]
            right += np.count_nonzero(text == old[there : there + size])
            whole += size
            # Wrong by multiples of 64, so that it isn't the elements' width that makes the difference.
            others = [other for other in (there - 4736, there + 2368) if 0 <= other <= len(old) - size]
            wrong += sum(np.count_nonzero(text == old[at : at + size]) for at in others) / max(1, len(others))
        return max((right - wrong) / max(whole - wrong, 1.0), right / whole - 0.9)  # of zeros nearly all agree anywhere

    # --- anchors ------------------------------------------------------------------------------------------------------

    def _anchored(self, parts: list[Piece], stride: int, count: int) -> list[Piece]:
        """The parts, the open ones divided where anchors agree on shifts."""
        old, new, reach = self._old, self._new, stride * (count - 1) + 1
        bits = max(4, (len(old) // _MAX_ANCHORS).bit_length())
        places, keys = _anchors(old, 0, len(old), stride, count, bits)
        keys, first = np.unique(keys, return_index=True)
        places = places[first]
        out: list[Piece] = []
        for part in parts:
            if part.shift is not None or part.end - part.start < reach or not len(keys):
                out.append(part)
                continue
            theirs, wanted = _anchors(new, part.start, part.end, stride, count, bits)
            index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            is_known = keys[index] == wanted
            at, there = theirs[is_known], places[index[is_known]]
            is_same = _agree(old, there, new, at, stride, count)
            done = part.start
            for piece in self._voted(at[is_same], there[is_same] - at[is_same], reach):
                begin, end = max(piece.start, done), min(piece.end, part.end)
                if begin >= end:
                    continue
                if begin > done:
                    out.append(Piece(done, begin, None))
                out.append(Piece(begin, end, piece.shift))
                done = end
            if done < part.end:
                out.append(Piece(done, part.end, None))
        return out

    def _voted(self, at: NDArray[np.int64], shifts: NDArray[np.int64], reach: int) -> list[Piece]:
        """Pieces from places and the shifts they vote for: at least three votes in all, two in a row."""
        _, inverse, votes = np.unique(shifts, return_inverse=True, return_counts=True)
        is_heard = votes[inverse] >= 3
        at, shifts = at[is_heard], shifts[is_heard]
        if not len(at):
            return []
        is_turn = (np.diff(shifts, prepend=shifts[0] - 1) != 0) | (np.diff(at, prepend=at[0]) > _FAR_BYTES)
        turns = np.flatnonzero(is_turn)
        ends = np.append(turns[1:], len(shifts)) - 1
        found: list[tuple[Piece, int]] = []
        for turn, last in zip(turns.tolist(), ends.tolist(), strict=True):
            piece = Piece(int(at[turn]), int(at[last]) + reach, int(shifts[turn]))
            # Content that repeats in the old blob votes for its first place, though it went on at the shift before.
            if found and piece.start - found[-1][0].end <= _FAR_BYTES and self._goes_on(found[-1][0], piece):
                before, count = found[-1]
                found[-1] = replace(before, end=piece.end), count + last - turn + 1
            else:
                found.append((piece, last - turn + 1))
        strong = [piece for piece, count in found if count >= 2 and self._is_strong(piece)]
        joined: list[Piece] = []
        for piece in strong:
            if joined and joined[-1].shift == piece.shift and piece.start - joined[-1].end <= _FAR_BYTES:
                joined[-1] = replace(joined[-1], end=piece.end)
            else:
                joined.append(piece)
        return joined

    def _is_strong(self, piece: Piece) -> bool:
        """Whether more agrees of a piece than the windows that voted for it."""
        assert piece.shift is not None, "voted for"
        size = piece.end - piece.start
        return size >= _LEAST_VOTED_BYTES and self._gain(piece.start, piece.end, piece.shift) > _LEAST_GAIN

    def _goes_on(self, before: Piece, piece: Piece) -> bool:
        """Whether a piece agrees at the shift of the one before it, as well."""
        if before.shift == piece.shift:
            return True
        assert before.shift is not None, "voted for"
        size = min(piece.end - piece.start, _SAMPLE_BYTES)
        for at in (piece.start, piece.end - size):
            there = at + before.shift
            if not 0 <= there <= len(self._old) - size:
                return False
            if not np.array_equal(self._new[at : at + size], self._old[there : there + size]):
                return False
        return True

    # --- cuts ---------------------------------------------------------------------------------------------------------

    def _cut(self, parts: list[Piece]) -> list[Piece]:
        """The parts with their edges where the bytes that agree end."""
        for index, part in enumerate(parts[1:-1], 1):
            is_bridge = part.shift is None and parts[index - 1].shift == parts[index + 1].shift
            if is_bridge and part.end - part.start < _BRIDGE_BYTES:
                parts[index] = replace(part, shift=parts[index - 1].shift)
        closed = [part for part in _merged(parts) if part.shift is not None]
        if not closed:
            return parts
        out: list[Piece] = []
        at = parts[0].start
        for index, part in enumerate(closed):
            if out:
                last = out.pop()
                end, start = self._edges(last, part)
                out += [replace(last, end=end), Piece(end, start, None)]
            else:
                start = self._edge(part, at, is_end=False)
                start = at if start - at < _END_BYTES and self._is_inside(at, start, part.shift) else start
                out.append(Piece(at, start, None))
            end = part.end
            if index == len(closed) - 1:
                at = parts[-1].end
                end = self._edge(part, at, is_end=True)
                end = at if at - end < _END_BYTES and self._is_inside(end, at, part.shift) else end
            out.append(Piece(start, end, part.shift))
        out.append(Piece(out[-1].end, parts[-1].end, None))
        return _merged(untangled(out, parts[0].start))

    def _edges(self, last: Piece, part: Piece) -> tuple[int, int]:
        """Where one piece ends and the next begins."""
        end, start = self._edge(last, part.end, is_end=True), self._edge(part, last.start, is_end=False)
        if start - end >= SMALL_BYTES:
            return end, start
        assert last.shift is not None and part.shift is not None, "closed"
        cut = max(min(start, end), -part.shift)
        return (cut, cut) if cut + last.shift <= len(self._old) else (end, max(start, end))

    def _edge(self, piece: Piece, limit: int, *, is_end: bool) -> int:
        """How far a piece goes towards `limit`, or, within a block, falls short of its edge there: so far that most
        bytes agree of those that could."""
        assert piece.shift is not None, "closed"
        if is_end:
            low, high = max(piece.start, piece.end - BLOCK_BYTES), min(limit, piece.end + BLOCK_BYTES)
            high = min(high, len(self._old) - piece.shift)
        else:
            low, high = max(limit, piece.start - BLOCK_BYTES), min(piece.end, piece.start + BLOCK_BYTES)
            low = max(low, -piece.shift)
        equal = self._new[low:high] == self._old[low + piece.shift : high + piece.shift]
        score = np.cumsum(np.append(0.0, (equal if is_end else equal[::-1]) - self._level(piece, is_end=is_end)))
        reach = int(np.argmax(score))
        return low + reach if is_end else high - reach

    def _level(self, piece: Piece, *, is_end: bool) -> float:
        """What share of bytes must agree near a piece's edge: halfway between what agrees within it, and beside."""
        assert piece.shift is not None, "closed"
        size = min(4 * BLOCK_BYTES, piece.end - piece.start)
        low, high = piece.start + size // 4, piece.start + size - size // 4
        if is_end:
            low, high = piece.end - (high - piece.start), piece.end - (low - piece.start)
        text, there = self._new[low:high], low + piece.shift
        like = self._old[there : there + len(text)]
        agreed = np.count_nonzero(text == like) / len(text) if len(text) else 1.0  # a piece of no bytes yet
        there += -4736 if there >= 4736 else 4736
        beside = self._old[there : there + len(text)]
        other = np.count_nonzero(text[: len(beside)] == beside) / max(1, len(beside))
        return float(min((agreed + other) / 2, 0.9 * agreed))

    def _is_inside(self, start: int, end: int, shift: int | None) -> bool:
        return start == end or (shift is not None and start + shift >= 0 and end + shift <= len(self._old))


def untangled(parts: Sequence[Piece], start: int) -> list[Piece]:
    """The parts without what one before has: both edges of a short one are only nearly known, and may have crossed."""
    out = []
    for part in parts:
        if max(part.start, start) < part.end:
            out.append(replace(part, start=max(part.start, start)))
            start = part.end
    return out


def _merged(parts: list[Piece]) -> list[Piece]:
    """The same with neighbours of one shift as one."""
    out: list[Piece] = []
    for part in parts:
        if out and out[-1].shift == part.shift and out[-1].end == part.start:
            out[-1] = replace(out[-1], end=part.end)
        else:
            out.append(part)
    return out


def _anchors(
    data: _Bytes, start: int, end: int, stride: int, count: int, bits: int
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Places and hashes of the windows within a range whose mixed hash begins with so many zero bits."""
    places: list[NDArray[np.int64]] = []
    keys: list[NDArray[np.uint32]] = []
    reach = stride * (count - 1)
    for at in range(start, end - reach, _CHUNK_BYTES):
        hashed: NDArray[np.uint32] = _WEIGHTS[data[at : min(at + _CHUNK_BYTES + reach, end)]]
        span, multiplier = 1, _MULTIPLIER
        while span < count:
            size = len(hashed) - span * stride
            later = hashed[span * stride :]
            hashed = hashed[:size] * np.uint32(multiplier)
            hashed += later
            span, multiplier = 2 * span, multiplier * multiplier & 0xFFFFFFFF
        chosen = np.flatnonzero(hashed * np.uint32(_MIXER) < np.uint32(1 << (32 - bits)))
        key = hashed[chosen]
        if len(chosen) > 1:  # what repeats itself soon, as zeros do, says nothing: the first of it is enough
            is_new = np.append(True, (key[1:] != key[:-1]) | (np.diff(chosen) > 16))
            chosen, key = chosen[is_new], key[is_new]
        most = _CHUNK_BYTES >> (bits - 2)
        places.append(chosen[:most] + at)
        keys.append(key[:most])
    if not places:
        return np.empty(0, np.int64), np.empty(0, np.uint32)
    return np.concatenate(places), np.concatenate(keys)


def _agree(
    old: _Bytes, there: NDArray[np.int64], new: _Bytes, at: NDArray[np.int64], stride: int, count: int
) -> NDArray[np.bool_]:
    """Which of the windows are the same."""
    window = np.arange(count) * stride
    out = np.empty(len(at), np.bool_)
    for first in range(0, len(at), 1 << 14):
        part = slice(first, first + (1 << 14))
        one, two = old[there[part, None] + window], new[at[part, None] + window]
        out[part] = (one == two).all(axis=1)
    return out

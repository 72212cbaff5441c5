"""Decodes the lanes of the rANS coder side by side: the tokens of a coded stream. Pure but for numpy, and exact.

Steps are many and lanes are few, so what costs is how often numpy is called, not how much it then does. Hence: every
operand is an array as long as the lanes (numpy takes longer to look at a number than to add 256 of them); what a slot
leads to is found by one look-up, its place; and few lanes that take a word do so one by one.
"""

from collections.abc import Iterator

import numpy as np

from heliograph.delta.contexts import LEAN_AT, Array, Shape, Tables, stretches, weights
from heliograph.delta.elements import Bytes
from heliograph.errors import IntegrityError

LOW = 1 << 16
"""A lane's state is at least this between steps, and below 2^32."""
_STRETCH_TOKENS = 1 << 16
"""That are held at once before they are counted."""
_FEW = 12
"""So many lanes take words faster one by one."""
_FEW_LANES = 4
"""So many do everything faster one by one."""


def decoded(words: Array, state: Array, depths: Bytes | None, shape: Shape) -> tuple[Bytes, Array]:
    """Tokens, lane after lane, and how often each comes; `state`, int64, becomes what the lanes end with.

    Raises:
        IntegrityError: these are not all the words that so many tokens take.
    """
    tables = Tables(shape, is_decoding=True)
    lanes: _Few | _Many = (_Few if shape.lanes <= _FEW_LANES else _Many)(words, state, shape)
    out = np.empty(shape.count, np.uint8)
    tokens, deep = _by_lane(out, shape), [] if depths is None else _by_lane(depths, shape)
    mask = np.uint16((1 << shape.token_log2) - 1)
    for first, end, some in _even(shape):
        below = np.empty((end - first, some), np.uint8)
        for each, of_lanes in _each(deep, some):
            below[:, of_lanes] = each[:, first:end].T
        places = lanes.run(tables, first, below)
        tables.count(places, end)
        places &= mask
        found = np.ascontiguousarray(places.astype(np.uint8).T)
        for each, of_lanes in _each(tokens, some):
            each[:, first:end] = found[of_lanes]
    if lanes.at != len(words):
        raise IntegrityError(f"a coded stream uses {lanes.at} of its {len(words)} words")
    return out, tables.tokens()


def _by_lane(values: Bytes, shape: Shape) -> list[Bytes]:
    """Rows of the lanes that last to the last step, and of the others, which are a step shorter."""
    longer = shape.lasting * shape.steps
    parts = [values[:longer].reshape(shape.lasting, shape.steps)]
    if shape.lasting < shape.lanes:
        parts.append(values[longer:].reshape(shape.lanes - shape.lasting, shape.steps - 1))
    return parts


def _each(parts: list[Bytes], some: int) -> Iterator[tuple[Bytes, slice]]:
    """The parts that the first so many lanes are in, and which lanes these are."""
    at = 0
    for part in parts:
        if at < some:
            yield part, slice(at, at + len(part))
        at += len(part)


def _even(shape: Shape) -> Iterator[tuple[int, int, int]]:
    """Stretches of steps, and how many lanes take part in them."""
    for first, end in stretches(shape.steps, max(1, _STRETCH_TOKENS // shape.lanes)):
        is_last = end == shape.steps and shape.lasting < shape.lanes
        if first < end - is_last:
            yield first, end - is_last, shape.lanes
        if is_last:
            yield end - 1, end, shape.lasting


class _Lanes:
    """What the lanes remember.

    Attributes:
        at: words that were taken.
    """

    def __init__(self, words: Array, state: Array, shape: Shape) -> None:
        self._words, self._state, self._shape = words, state, shape
        self.at = 0
        self._bits, self._most = shape.table_log2, shape.memory_shift
        added, levels = weights(shape.width_bits, shape.is_float)
        places = np.arange(shape.levels * shape.kinds << shape.token_log2)
        self._added = added.take(places & ((1 << shape.token_log2) - 1), axis=0)
        self._levels = levels << self._bits
        # For integers two of each lane: how large, and which way. The second is told from the first by where it stands.
        self._memory = np.zeros((shape.lanes, 1 if shape.is_float else 2), np.int64)
        if not shape.is_float:
            self._memory[:, 1] = LEAN_AT

    def _lacking(self) -> IntegrityError:
        return IntegrityError(f"a coded stream needs more than its {len(self._words)} words")


class _Few(_Lanes):
    """Does one lane after the other, without numpy."""

    def run(self, tables: Tables, first: int, depths: Bytes) -> Array:
        """Does the steps from `first` on, as many as there are depths, for as many lanes; the tables hold in all.

        Returns:
            the places of the tokens, step by step.
        """
        steps, count = depths.shape
        places = np.empty(depths.shape, np.uint16)
        next_words = self._words[self.at : self.at + places.size].astype(np.int64)
        views = (tables.slots, tables.ranges, self._levels, self._added, next_words, places)
        slots, ranges, levels, added, words, out = (each.reshape(-1).data for each in views)
        state, memory, deep = self._state.tolist(), self._memory.tolist(), depths.tolist()
        bits, mask, most, last = self._bits, (1 << self._bits) - 1, self._most, len(levels) - 1
        is_float = self._shape.is_float
        at = done = 0
        for step in range(steps):
            shift = min(most, (first + step).bit_length())
            for lane in range(count):
                of_lane, now = memory[lane], state[lane]
                if is_float:
                    depth = deep[step][lane]
                    looked = of_lane[0] + (depth << 8)
                    key = levels[min(max(looked, 0), last)] + (min(depth, 3) << bits)
                else:
                    key = levels[of_lane[0]] + levels[of_lane[1]]
                slot = now & mask
                out[done] = place = slots[key + slot]
                done += 1
                now = (now >> bits) * ranges[2 * place] + slot - ranges[2 * place + 1]
                if now < LOW:
                    if at == len(words):
                        raise self._lacking()
                    now = now << 16 | words[at]
                    at += 1
                state[lane] = now
                if is_float:
                    of_lane[0] += (added[place] - looked) >> shift
                else:
                    of_lane[0] += (added[2 * place] - of_lane[0]) >> shift
                    of_lane[1] += (added[2 * place + 1] - of_lane[1]) >> shift
        self._state[:], self._memory[:] = state, memory
        self.at += at
        return places


class _Many(_Lanes):
    """Does a step of all lanes at once."""

    def run(self, tables: Tables, first: int, depths: Bytes) -> Array:
        """Does the same."""
        _, count = depths.shape
        shape, added, levels, most = self._shape, self._added, self._levels, self._most
        slots, ranges = tables.slots, tables.ranges
        state, memory = self._state[:count].view(np.uint64), self._memory[:count]
        is_float = shape.is_float
        if is_float:
            deep = depths.astype(np.int64)[:, :, None]
            kinds = np.minimum(deep[:, :, 0], 3) << self._bits
            deep <<= 8
        places = np.empty(depths.shape, np.uint16)
        key, slot, place = (np.empty(count, np.int64) for _ in range(3))
        found = np.empty((count, 2), np.int64)
        slot_, (frequency, start) = slot.view(np.uint64), found.view(np.uint64).T
        looked, gain = np.empty_like(memory), np.empty_like(memory)
        keys, left, right = key[:, None], looked[:, 0], looked[:, -1]
        is_low = np.empty(count, bool)
        bits, mask, low, word_bits = (
            np.full(count, number, np.uint64) for number in (self._bits, (1 << self._bits) - 1, LOW, 16)
        )
        shift = np.full(memory.shape, min(most, first.bit_length()))
        words = self._words[self.at : self.at + places.size].astype(np.uint64)
        words_, state_ = words.data, state.data
        at, ramp = 0, (1 << most) - first
        and_, add, subtract, multiply = np.bitwise_and, np.add, np.subtract, np.multiply
        right_shift, less, copyto = np.right_shift, np.less, np.copyto
        for step, row in enumerate(places):
            if is_float:
                add(memory, deep[step], looked)
                levels.take(looked, None, keys, "clip")
                add(key, kinds[step], key)
            else:
                levels.take(memory, None, looked, "clip")
                add(left, right, key)
            and_(state, mask, slot_)
            add(key, slot, key)
            slots.take(key, None, row, "clip")
            copyto(place, row)
            right_shift(state, bits, state)
            ranges.take(place, 0, found, "clip")
            multiply(state, frequency, state)
            add(state, slot_, state)
            subtract(state, start, state)
            less(state, low, is_low)
            (lows,) = is_low.nonzero()
            taken = len(lows)
            if taken:
                if at + taken > len(words):
                    raise self._lacking()
                if taken <= _FEW:
                    for lane in lows.tolist():
                        state_[lane] = state_[lane] << 16 | words_[at]
                        at += 1
                else:
                    lowest = state[lows]
                    np.left_shift(lowest, word_bits[:taken], lowest)
                    np.bitwise_or(lowest, words[at : at + taken], lowest)
                    state[lows] = lowest
                    at += taken
            if step <= ramp:
                shift.fill(min(most, (first + step).bit_length()))
            added.take(place, 0, gain, "clip")
            subtract(gain, looked if is_float else memory, gain)
            right_shift(gain, shift, gain)
            add(memory, gain, memory)
        self.at += at
        return places

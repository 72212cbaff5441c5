"""Codes small unsigned integers by an interleaved rANS coder whose tables both sides learn as they go.

Pure but for numpy, exact (integers alone), layout and arithmetic in FORMATS.md. The integers are folded residuals. How
it goes:

1. *Tokens*: an integer below 16 is its own token; a larger one has a token that says its length, its two bits below the
   first, and its last bit (the sign); its other bits are *rest*, taken as they are.
2. *Lanes*: the integers are cut into as many contiguous runs as there are lanes; step t takes the t-th of every lane at
   once, so that numpy does a step for all lanes. Lanes differ in length by at most one.
3. *Contexts*: a lane remembers how large its last residuals were (a running mean; for floats of their logarithm, told
   in units of the largest old value) and, for integers, which way they went; context is that memory against the old
   element's depth. So the context tells how large a residual is to be expected here.
4. *Tables*: token counts of each context, seen so far, make its frequencies; they are made anew after 1, 2, 4, ...
   steps and then at every eighth of all. No table stands in the patch.

Whatever words it is given, decoding takes steps and memory that follow from the count of integers alone, and gives so
many integers or an IntegrityError.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from heliograph.delta.elements import MAX_DEPTH, Bytes
from heliograph.errors import IntegrityError

Array: TypeAlias = NDArray[Any]

_MOST_STEPS_LOG2 = 14
_SPARE = 16
_STRETCH = 64
"""Steps whose contexts are held at once."""
_RUN = 1 << 14
"""Integers that are made of tokens at once."""
_DIRECT = 16
_LOW = 1 << 16
"""A lane's state is at least this between steps, and below 2^32."""
_LEVELS = 32
_LEANINGS = 7
_INT_LEVELS = 16
_MEMORY_SHIFT = {True: 4, False: 5}
_LEAN_AT = 8192 + 1024
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Shape:
    """What both sides know before the first word.

    Attributes:
        count: integers, at least 1.
        width_bits: below 2 to the power of this each.
        lanes_log2: 0 to 12.
        is_float: whether there are depths.
    """

    count: int
    width_bits: int
    lanes_log2: int
    is_float: bool

    @property
    def lanes(self) -> int:
        """How many lanes have anything to do."""
        return min(1 << self.lanes_log2, self.count)

    @property
    def steps(self) -> int:
        """Of the longest lane."""
        return -(-self.count // self.lanes)

    @property
    def lasting(self) -> int:
        """How many lanes take part in the last step."""
        return self.count - (self.steps - 1) * self.lanes

    @property
    def table_log2(self) -> int:
        """Frequencies of a context sum to 2 to the power of this."""
        return min(15, max(11, self.count.bit_length() - 4))

    @property
    def detail_bits(self) -> int:
        """Bits below the first that a token tells: a byte must hold any token."""
        return 2 if self.width_bits <= 32 else 1


def lanes_log2_for(count: int, cost_bytes: int) -> int:
    """Lanes that cost little (two or three bytes each) and leave numpy enough to do in a step."""
    lanes_log2 = max(0, (count - 1).bit_length() - _MOST_STEPS_LOG2)
    while lanes_log2 < 10 and (4 << lanes_log2) * 128 <= cost_bytes and (8 << lanes_log2) <= count:
        lanes_log2 += 1
    return lanes_log2


def encode(values: Array, depths: Bytes | None, shape: Shape, behind: bytes = b"") -> bytes:
    """The stream that `opened` gives these integers for, and what comes `behind` them.

    What is behind costs less there than after the stream: the lanes' states have room for two bytes each.
    """
    tokens, rest_bits = _tokens(values, shape)
    rest = _packed(values, rest_bits) + behind
    by_step = _by_step(tokens, shape)
    deep = None if depths is None else _by_step(depths, shape)
    frequencies = np.empty((shape.steps, shape.lanes), np.uint16)
    starts = np.empty((shape.steps, shape.lanes), np.uint16)
    model = _Model(shape, is_decoding=False)
    for first, end in _stretches(shape.steps):
        places = np.empty((end - first, shape.lanes), np.int64)
        model.begin(None if deep is None else deep[first:end])
        for step in range(first, end):
            model.look(step - first)
            np.add(model.context, by_step[step], out=places[step - first])
            model.learn(step - first, by_step[step])
        frequencies[first:end] = model.frequencies.take(places)
        starts[first:end] = model.starts.take(places)
        if end < shape.steps:
            model.count(places, end)
    bits = shape.table_log2
    carried = np.frombuffer(rest[: 2 * shape.lanes].ljust(2 * shape.lanes, b"\0"), "<u2")
    state = carried.astype(np.uint64) + np.uint64(_LOW)
    words: list[Array] = []
    for step in range(shape.steps - 1, -1, -1):
        some = state[: shape.lasting] if step == shape.steps - 1 else state
        frequency = frequencies[step, : len(some)].astype(np.uint64)
        full = np.flatnonzero(some >= frequency << np.uint64(32 - bits))
        if len(full):
            words.append(some[full].astype("<u2"))
            some[full] >>= np.uint64(16)
        quotient, remainder = np.divmod(some, frequency)
        some[:] = (quotient << np.uint64(bits)) + remainder + starts[step, : len(some)]
    stream = np.concatenate(words[::-1]) if words else np.empty(0, "<u2")
    head = np.array([len(stream)], "<u4").tobytes() + state.astype("<u4").tobytes()
    return head + stream.tobytes() + rest[2 * shape.lanes :]


def check_end(stream: memoryview, behind: bytes, shape: Shape) -> None:
    """Raises IntegrityError if something comes behind the integers but what the lanes' states lacked."""
    words = int.from_bytes(stream[:4], "little")
    if any(behind) or (behind and len(stream) > 4 + 4 * shape.lanes + 2 * words):
        raise IntegrityError(f"a coded stream has {len(behind)} bytes of rest more than expected")


def opened(stream: memoryview, depths: Bytes | None, shape: Shape) -> tuple[Iterator[Array], bytes]:
    """The integers of a stream, in order and in runs, wholly checked before the first comes; and what comes behind
    them, with zeros behind it if it is short.

    Raises:
        IntegrityError: the stream is not one of this shape.
    """
    head = 4 + 4 * shape.lanes
    if len(stream) < head:
        raise IntegrityError(f"a coded stream of {len(stream)} bytes is shorter than its {shape.lanes} lanes")
    words = int.from_bytes(stream[:4], "little")
    if head + 2 * words > len(stream):
        raise IntegrityError(f"a coded stream of {len(stream)} bytes can't hold {words} words")
    state = np.frombuffer(stream, "<u4", shape.lanes, 4).astype(np.int64)
    tokens = _decoded(np.frombuffer(stream, "<u2", words, head), state, depths, shape)
    if not ((state >= _LOW) & (state < 2 * _LOW)).all():
        raise IntegrityError("a coded stream doesn't end where it should")
    carried = (state - _LOW).astype("<u2").view(np.uint8)
    more = np.frombuffer(stream, np.uint8)[head + 2 * words :]
    return _values(tokens, np.concatenate([carried, more, np.zeros(_SPARE, np.uint8)]), shape)


def _decoded(words: Array, state: Array, depths: Bytes | None, shape: Shape) -> Bytes:
    """Tokens, lane after lane; `state` becomes what the lanes end with."""
    deep = None if depths is None else _by_step(depths, shape)
    tokens = np.zeros((shape.steps, shape.lanes), np.uint8)
    by_step = tokens
    model = _Model(shape, is_decoding=True)
    bits = shape.table_log2
    mask = (1 << bits) - 1
    at = 0
    slot, key, found = (np.empty(shape.lanes, np.int64) for _ in range(3))
    small = np.empty(shape.lanes, bool)
    all_places = places = np.empty((_STRETCH, shape.lanes), np.int64)
    for first, end in _stretches(shape.steps):
        symbols, frequencies, starts = model.symbols, model.frequencies, model.starts
        model.begin(None if deep is None else deep[first:end])
        for step in range(first, end):
            if step == shape.steps - 1 and shape.lasting < shape.lanes:
                few = shape.lasting
                state, slot, key, found, small = (x[:few] for x in (state, slot, key, found, small))
                by_step, places = by_step[:, :few], places[:, :few]
                model.only(few)
            model.look(step - first)
            np.bitwise_and(state, mask, out=slot)
            np.left_shift(model.context, bits - 8, out=key)
            np.add(key, slot, out=key)
            token, place = by_step[step], places[step - first]
            symbols.take(key, out=token, mode="clip")
            np.add(model.context, token, out=place)
            np.right_shift(state, bits, out=state)
            frequencies.take(place, out=found, mode="clip")
            np.multiply(state, found, out=state)
            starts.take(place, out=found, mode="clip")
            np.subtract(slot, found, out=slot)
            np.add(state, slot, out=state)
            np.less(state, _LOW, out=small)
            low = small.nonzero()[0]
            if len(low):
                if at + len(low) > len(words):
                    raise IntegrityError(f"a coded stream needs more than its {len(words)} words")
                state[low] = (state[low] << 16) | words[at : at + len(low)]
                at += len(low)
            model.learn(step - first, token)
        del symbols  # or they would stand beside the next ones
        if end < shape.steps:
            model.count(all_places[: end - first], end)
    if at != len(words):
        raise IntegrityError(f"a coded stream uses {at} of its {len(words)} words")
    return _by_lane(tokens, shape)


class _Model:
    """What the lanes remember, and the tables made of what was counted.

    Contexts stand as 256 times their number, so that adding a token gives its place in the tables.
    """

    def __init__(self, shape: Shape, *, is_decoding: bool) -> None:
        lanes = shape.lanes
        self._is_decoding = is_decoding
        self._ends = {end for _, end in _refreshes(shape.steps)}
        self._shape = shape
        self._counts = np.zeros((_LEVELS * 4 if shape.is_float else _INT_LEVELS * _LEANINGS, 256), np.int64)
        self._weights, self._levels = _weights(shape)
        self._seen = 0
        # For integers two rows: how large, and which way. The second is told from the first by where it stands.
        self._memory = np.zeros((1 if shape.is_float else 2, lanes), np.int64)
        if not shape.is_float:
            self._memory[1] = _LEAN_AT
        self._looked = np.zeros_like(self._memory)
        self._deep = np.empty((0, lanes), np.int64)
        self._kind = np.empty((0, lanes), np.int64)
        self.context = np.zeros(lanes, np.int64)
        self.frequencies = np.empty(0, np.int64)
        self.starts = np.empty(0, np.int64)
        self.symbols = np.empty(0, np.uint8)
        """Slot of each context to its token, for decoding."""
        self._make()

    def begin(self, depths: Bytes | None) -> None:
        """Goes on to steps whose old elements have these depths."""
        if depths is not None:
            self._deep = depths.astype(np.int64) << 8
            self._kind = np.minimum(depths, 3).astype(np.int64) << 8

    def only(self, lanes: int) -> None:
        """Goes on with the first lanes alone."""
        self._memory, self._looked = self._memory[:, :lanes], self._looked[:, :lanes]
        self._deep, self._kind, self.context = self._deep[:, :lanes], self._kind[:, :lanes], self.context[:lanes]

    def look(self, step: int) -> None:
        """Sets `context` for the next element of each lane; `step` counts from `begin`."""
        looked = self._looked
        if self._shape.is_float:
            np.add(self._memory, self._deep[step], out=looked)
            np.right_shift(looked, 4, out=looked)
            self._levels.take(looked[0], out=self.context, mode="clip")
            np.add(self.context, self._kind[step], out=self.context)
        else:
            self._levels.take(self._memory, out=looked, mode="clip")
            np.add(looked[0], looked[1], out=self.context)

    def learn(self, step: int, tokens: Bytes) -> None:
        """Has each lane remember its token."""
        looked, memory = self._looked, self._memory
        shift = min(_MEMORY_SHIFT[self._shape.is_float], self._seen.bit_length())
        for weights, row in zip(self._weights, looked, strict=True):
            weights.take(tokens, out=row, mode="clip")
        if self._shape.is_float:
            np.subtract(looked, self._deep[step], out=looked)
        np.subtract(looked, memory, out=looked)
        np.right_shift(looked, shift, out=looked)
        np.add(memory, looked, out=memory)
        self._seen += 1

    def count(self, places: Array, end: int) -> None:
        """Counts tokens by where they stand in the tables; makes the tables anew if a run of steps ends here."""
        self._counts += np.bincount(places.reshape(-1), minlength=self._counts.size).reshape(self._counts.shape)
        if end in self._ends:
            self._make()

    def _make(self) -> None:
        """Frequencies by the counts of a context, a little of those of its level, and a trace for every token."""
        whole, limit = 1 << self._shape.table_log2, token_limit(self._shape)
        kinds = 4 if self._shape.is_float else _LEANINGS
        level = self._counts.reshape(-1, kinds, 256).sum(axis=1)
        level = (level << 8) // (level.sum(axis=1, keepdims=True) + 1)
        weights = (self._counts << 5) + np.repeat(level, kinds, axis=0)
        weights[:, :limit] += np.maximum(16 >> (np.arange(limit) >> 3), 1)
        table = weights * (whole - limit) // weights.sum(axis=1, keepdims=True)
        table[:, :limit] += 1
        table[np.arange(len(table)), table.argmax(axis=1)] += whole - table.sum(axis=1)
        self.frequencies = table.reshape(-1)
        self.starts = (np.cumsum(table, axis=1) - table).reshape(-1)
        self.symbols = np.empty(0, np.uint8)  # before there are new ones
        if self._is_decoding:
            self.symbols = np.repeat(np.tile(np.arange(256, dtype=np.uint8), len(table)), self.frequencies)


def token_limit(shape: Shape) -> int:
    """How many tokens there are."""
    if shape.width_bits <= 4:
        return _DIRECT
    return _DIRECT + ((shape.width_bits - 4) << (shape.detail_bits + 1))


def _lengths(shape: Shape) -> tuple[Array, Array, Array]:
    """For each of 256 tokens: how many bits of rest it has, its smallest integer, and its last bit."""
    tokens = np.arange(256, dtype=np.int64)
    above = np.maximum(tokens - _DIRECT, 0)
    detail = shape.detail_bits
    length = (above >> (detail + 1)) + 4
    is_direct = tokens < _DIRECT
    rest = np.where(is_direct, 0, length - detail - 1)
    lead = (1 << detail) | ((above >> 1) & ((1 << detail) - 1))
    return rest, np.where(is_direct, tokens, lead << np.minimum(length - detail, 62)), tokens & 1


def _weights(shape: Shape) -> tuple[tuple[Array, ...], Array]:
    """For each row of memory, what a token adds to it; and 256 times the first context by what memory says."""
    _, least, last = _lengths(shape)
    size = ((least >> 1) & _LARGEST) + (least & 1)
    if shape.is_float:
        # 16ths of a power of two, times 16. A level is half a power of two, or one where elements are wider.
        weights = np.array([_log16(1 + 2 * min(int(x), 1 << 60)) << 4 for x in size], np.int64)
        step = 8 if shape.width_bits <= 16 else 16
        return (weights,), np.minimum(np.arange((_LEVELS + 1) * step) // step, _LEVELS - 1) * 4 << 8
    # A level is a third of a power of two of one and twice the mean size; a leaning is half of one, up to three halves.
    levels = [
        min(3 * (_log16(256 + 2 * mean) - 128) >> 4, _INT_LEVELS - 1) * _LEANINGS for mean in range(_LEAN_AT - 1024)
    ]
    leanings = [min(max((mean + 64) >> 7, -3), 3) + 3 for mean in range(-1024, 1025)]
    lean = np.minimum(size, 4) * np.where(last == 1, -256, 256) + _LEAN_AT
    return (np.minimum(size, 31) << 8, lean), np.array(levels + leanings, np.int64) << 8


def _log16(value: int) -> int:
    """16 times the logarithm to base 2, straight between powers of two."""
    whole = value.bit_length() - 1
    return 16 * whole + ((value << 4) >> whole) - 16


def _refreshes(steps: int) -> Iterator[tuple[int, int]]:
    """Runs of steps coded by the same tables."""
    first, end = 0, 1
    while first < steps:
        yield first, min(end, steps)
        first, end = end, min(2 * end, end + max(1, steps >> 3))


def _stretches(steps: int) -> Iterator[tuple[int, int]]:
    """The same runs, in pieces that take little memory."""
    for first, end in _refreshes(steps):
        for at in range(first, end, _STRETCH):
            yield at, min(at + _STRETCH, end)


def _tokens(values: Array, shape: Shape) -> tuple[Bytes, Bytes]:
    """Token and count of rest bits of each integer."""
    tokens = np.empty(len(values), np.uint8)
    rest = np.empty(len(values), np.uint8)
    of_token, _, _ = _lengths(shape)
    detail = shape.detail_bits
    for at in range(0, len(values), 1 << 16):
        part = values[at : at + (1 << 16)].astype(np.uint64)
        length = np.zeros(len(part), np.uint64)  # of the integer in bits, less one
        left = part.copy()
        for shift in (32, 16, 8, 4, 2, 1):
            is_above = left >> np.uint64(shift) > 0
            length[is_above] += np.uint64(shift)
            left[is_above] >>= np.uint64(shift)
        is_direct = part < _DIRECT
        length = np.maximum(length, np.uint64(4))
        told = (part >> (length - np.uint64(detail))) & np.uint64((1 << detail) - 1)
        above = ((length - np.uint64(4)) << np.uint64(detail + 1)) + (told << np.uint64(1)) + (part & np.uint64(1))
        token = np.where(is_direct, part, above + np.uint64(_DIRECT)).astype(np.uint8)
        tokens[at : at + len(part)] = token
        rest[at : at + len(part)] = of_token.take(token)
    return tokens, rest


def _packed(values: Array, rest: Bytes) -> bytes:
    """The bits of rest of all integers (without the last bit, which the token tells), first bit lowest."""
    bits = bytearray()
    left = np.empty(0, np.uint8)
    for at in range(0, len(values), 1 << 14):
        some = np.flatnonzero(rest[at : at + (1 << 14)]) + at
        if len(some) == 0:
            continue
        wide = int(rest[some].max())
        part = (values[some].astype(np.uint64) >> np.uint64(1)).astype("<u8")
        each = np.unpackbits(part.view(np.uint8).reshape(-1, 8), axis=1, count=wide, bitorder="little")
        new = each[np.arange(wide) < rest[some][:, None]]
        left = np.concatenate([left, new])
        whole = len(left) & ~7
        bits += np.packbits(left[:whole], bitorder="little").tobytes()
        left = left[whole:]
    return bytes(bits + np.packbits(left, bitorder="little").tobytes())


def _values(tokens: Bytes, rest: Bytes, shape: Shape) -> tuple[Iterator[Array], bytes]:
    """Integers from tokens and bits of rest, in runs, and the bytes behind these bits and zeros to a byte."""
    of_token, least, last = _lengths(shape)
    counts = np.zeros(256, np.int64)
    for at in range(0, len(tokens), _RUN):  # it takes eight bytes for each
        counts += np.bincount(tokens[at : at + _RUN], minlength=256)
    if counts[token_limit(shape) :].any():
        raise IntegrityError("a coded stream has a token that can't be")
    needed = -(-int((counts * of_token).sum()) // 8)
    length = len(rest) - _SPARE
    if length < needed:
        raise IntegrityError(f"a coded stream has {length} bytes of rest, expected {needed}")
    behind = rest[needed:length].tobytes()
    return _joined(tokens, rest, of_token, least | last, shape.width_bits), behind


def _joined(tokens: Bytes, rest: Bytes, of_token: Array, least: Array, width_bits: int) -> Iterator[Array]:
    windows: Array = np.ndarray((len(rest) - 8,), "<u8", rest, strides=(1,))  # the eight bytes from each byte on
    at = 0
    for first in range(0, len(tokens), _RUN):
        part = tokens[first : first + _RUN]
        bits = of_token.take(part)
        values = least.take(part)
        ends = np.cumsum(bits) + at
        starts = ends - bits
        some = np.flatnonzero(bits)
        if len(some):
            begin, count = starts[some], bits[some]
            low = np.minimum(count, 32)
            found = _bits(windows, begin, low)
            if width_bits > 32:
                found |= _bits(windows, begin + low, count - low) << 32
            values[some] |= found << 1
        at = int(ends[-1])
        yield values


def _bits(windows: Array, begin: Array, count: Array) -> Array:
    """So many bits, at most 32, from each place on."""
    there = windows[begin >> 3].astype(np.int64) >> (begin & 7)
    found: Array = there & ((np.int64(1) << count) - 1)
    return found


def _by_step(values: Bytes, shape: Shape) -> Bytes:
    """Lane after lane becomes step after step; what is missing of the last step is zero."""
    out = np.zeros((shape.steps, shape.lanes), np.uint8)
    longer = shape.lasting * shape.steps
    out[:, : shape.lasting] = values[:longer].reshape(shape.lasting, shape.steps).T
    if shape.lasting < shape.lanes:
        out[:-1, shape.lasting :] = values[longer:].reshape(shape.lanes - shape.lasting, shape.steps - 1).T
    return out


def _by_lane(values: Bytes, shape: Shape) -> Bytes:
    """The inverse of `_by_step`."""
    longer = shape.lasting * shape.steps
    out = np.empty(shape.count, np.uint8)
    out[:longer].reshape(shape.lasting, shape.steps)[:] = values[:, : shape.lasting].T
    if shape.lasting < shape.lanes:
        out[longer:].reshape(shape.lanes - shape.lasting, shape.steps - 1)[:] = values[:-1, shape.lasting :].T
    return out


assert MAX_DEPTH < 1 << 7, "depths fit the memory's scale"

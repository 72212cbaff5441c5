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

import numpy as np

from heliograph.delta.contexts import DIRECT, LEAN_AT, Array, Shape, Tables, lengths, stretches, weights
from heliograph.delta.elements import Bytes
from heliograph.delta.lanes import LOW, decoded
from heliograph.errors import IntegrityError

_MOST_STEPS_LOG2 = 14
_ENOUGH_STEPS = 256
"""Fewer steps save next to no time, and lanes cost bytes."""
_SPARE = 16
_STRETCH = 64
"""Steps whose contexts the encoder holds at once."""
_RUN = 1 << 16
"""Integers that are made of tokens at once."""


def lanes_log2_for(count: int, cost_bytes: int) -> int:
    """Lanes that cost little (two or three bytes each) and leave numpy enough to do in a step."""
    lanes_log2 = max(0, (count - 1).bit_length() - _MOST_STEPS_LOG2)
    while lanes_log2 < 10 and (4 << lanes_log2) * 128 <= cost_bytes and count >> lanes_log2 > _ENOUGH_STEPS:
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
    model = _Model(shape)
    for first, end in stretches(shape.steps, _STRETCH):
        places = np.empty((end - first, shape.lanes), np.int64)
        model.begin(None if deep is None else deep[first:end])
        for step in range(first, end):
            model.look(step - first)
            np.add(model.context, by_step[step], out=places[step - first])
            model.learn(by_step[step])
        ranges = model.tables.ranges.take(places, axis=0)
        frequencies[first:end], starts[first:end] = ranges[:, :, 0], ranges[:, :, 1]
        if end < shape.steps:
            model.tables.count(places, end)
    bits = shape.table_log2
    carried = np.frombuffer(rest[: 2 * shape.lanes].ljust(2 * shape.lanes, b"\0"), "<u2")
    state = carried.astype(np.uint64) + np.uint64(LOW)
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
    tokens, counts = decoded(np.frombuffer(stream, "<u2", words, head), state, depths, shape)
    if not ((state >= LOW) & (state < 2 * LOW)).all():
        raise IntegrityError("a coded stream doesn't end where it should")
    carried = (state - LOW).astype("<u2").view(np.uint8)
    more = np.frombuffer(stream, np.uint8)[head + 2 * words :]
    return _values(tokens, counts, np.concatenate([carried, more, np.zeros(_SPARE, np.uint8)]), shape)


class _Model:
    """What the lanes remember, for encoding, and the tables made of what was counted.

    Contexts stand as the first of their places, so that adding a token gives its place in the tables.
    """

    def __init__(self, shape: Shape) -> None:
        lanes = shape.lanes
        self._shape = shape
        self.tables = Tables(shape, is_decoding=False)
        self._weights, levels = weights(shape.width_bits, shape.is_float)
        self._levels = levels << shape.token_log2
        self._seen = 0
        # For integers two of each lane: how large, and which way. The second is told from the first by where it stands.
        self._memory = np.zeros((lanes, 1 if shape.is_float else 2), np.int64)
        if not shape.is_float:
            self._memory[:, 1] = LEAN_AT
        self._looked = np.zeros_like(self._memory)
        self._deep = np.empty((0, lanes, 1), np.int64)
        self._kind = np.empty((0, lanes), np.int64)
        self.context = np.zeros(lanes, np.int64)

    def begin(self, depths: Bytes | None) -> None:
        """Goes on to steps whose old elements have these depths."""
        if depths is not None:
            self._deep = depths.astype(np.int64)[:, :, None] << 8
            self._kind = np.minimum(depths, 3).astype(np.int64) << self._shape.token_log2

    def look(self, step: int) -> None:
        """Sets `context` for the next element of each lane; `step` counts from `begin`."""
        looked = self._looked
        if self._shape.is_float:
            np.add(self._memory, self._deep[step], out=looked)
            self._levels.take(looked[:, 0], out=self.context, mode="clip")
            np.add(self.context, self._kind[step], out=self.context)
        else:
            self._levels.take(self._memory, out=looked, mode="clip")
            np.add(looked[:, 0], looked[:, 1], out=self.context)

    def learn(self, tokens: Bytes) -> None:
        """Has each lane remember its token, after a look."""
        memory = self._memory
        shift = min(self._shape.memory_shift, self._seen.bit_length())
        gain = self._weights.take(tokens, axis=0)
        np.subtract(gain, self._looked if self._shape.is_float else memory, out=gain)
        np.right_shift(gain, shift, out=gain)
        np.add(memory, gain, out=memory)
        self._seen += 1


def _tokens(values: Array, shape: Shape) -> tuple[Bytes, Bytes]:
    """Token and count of rest bits of each integer."""
    tokens = np.empty(len(values), np.uint8)
    rest = np.empty(len(values), np.uint8)
    of_token, _, _ = lengths(shape)
    detail = shape.detail_bits
    for at in range(0, len(values), 1 << 16):
        part = values[at : at + (1 << 16)].astype(np.uint64)
        length = np.zeros(len(part), np.uint64)  # of the integer in bits, less one
        left = part.copy()
        for shift in (32, 16, 8, 4, 2, 1):
            is_above = left >> np.uint64(shift) > 0
            length[is_above] += np.uint64(shift)
            left[is_above] >>= np.uint64(shift)
        is_direct = part < DIRECT
        length = np.maximum(length, np.uint64(4))
        told = (part >> (length - np.uint64(detail))) & np.uint64((1 << detail) - 1)
        above = ((length - np.uint64(4)) << np.uint64(detail + 1)) + (told << np.uint64(1)) + (part & np.uint64(1))
        token = np.where(is_direct, part, above + np.uint64(DIRECT)).astype(np.uint8)
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


def _values(tokens: Bytes, counts: Array, rest: Bytes, shape: Shape) -> tuple[Iterator[Array], bytes]:
    """Integers from tokens, of which there are so many each, and bits of rest; in runs. And the bytes behind these bits
    and zeros to a byte."""
    of_token, least, last = lengths(shape)
    needed = -(-int((counts * of_token[: len(counts)]).sum()) // 8)
    length = len(rest) - _SPARE
    if length < needed:
        raise IntegrityError(f"a coded stream has {length} bytes of rest, expected {needed}")
    behind = rest[needed:length].tobytes()
    return _joined(tokens, rest, of_token, least | last, shape.width_bits), behind


def _joined(tokens: Bytes, rest: Bytes, of_token: Array, least: Array, width_bits: int) -> Iterator[Array]:
    windows: Array = np.ndarray((len(rest) - 8,), "<u8", rest, strides=(1,))  # the eight bytes from each byte on
    width = max(8, 1 << (width_bits - 1).bit_length())
    narrow = least.astype(f"<u{width >> 3}")  # tokens that can't be have none to be cut
    at = 0
    for first in range(0, len(tokens), _RUN):
        part = tokens[first : first + _RUN]
        if width_bits <= 4:
            yield part
            continue
        some = np.flatnonzero(part >= DIRECT)
        values = narrow.take(part)
        if len(some):
            large = part[some]
            count = of_token.take(large)
            ends = np.cumsum(count) + at
            begin = ends - count
            low = np.minimum(count, 32)
            found = _bits(windows, begin, low)
            if width_bits > 32:
                found |= _bits(windows, begin + low, count - low) << 32
            values[some] |= (found << 1).astype(values.dtype)
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

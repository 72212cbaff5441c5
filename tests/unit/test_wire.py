import tracemalloc

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from heliograph.errors import IntegrityError
from heliograph.wire import MAX_MESSAGE_BYTES, compress, decompress, pack, unpack

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.binary(), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
def test_what_is_packed_unpacks_to_the_same_value(value: object) -> None:
    assert unpack(pack(value)) == value


@given(st.binary(max_size=300))
def test_any_bytes_give_a_value_or_our_error(data: bytes) -> None:
    try:
        unpack(data)
    except IntegrityError as error:
        assert str(error)


def test_text_and_bytes_stay_apart() -> None:
    assert unpack(pack(["a", b"a"])) == ["a", b"a"]


def test_a_message_over_its_bound_is_refused_before_it_is_read() -> None:
    data = pack(b"x" * MAX_MESSAGE_BYTES)
    with pytest.raises(IntegrityError, match=f"exceeds {MAX_MESSAGE_BYTES}"):
        unpack(data)
    assert unpack(data, max_bytes=len(data)) == b"x" * MAX_MESSAGE_BYTES


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x92\x01",
        b"\x01\x01",
        b"\xc1",
        b"\x81\x90\x01",
        b"\xa1\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
    ],
    ids=["empty", "cut", "two-values", "reserved-byte", "list-as-key", "not-utf8", "array-of-4-billion", "4-gigabytes"],
)
def test_what_is_not_exactly_one_value_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        unpack(data)


def test_a_message_of_nothing_but_empty_maps_costs_bounded_memory() -> None:
    count = MAX_MESSAGE_BYTES - 3
    bomb = b"\xdc" + count.to_bytes(2, "big") + b"\x80" * count
    tracemalloc.start()
    try:
        unpack(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 80 * MAX_MESSAGE_BYTES


def test_a_message_nested_as_deep_as_it_is_long_is_refused_or_read_but_never_crashes() -> None:
    with pytest.raises(IntegrityError):
        unpack(b"\x91" * (MAX_MESSAGE_BYTES - 1) + b"\x01")


@given(st.binary(max_size=2000))
def test_what_is_compressed_comes_back(data: bytes) -> None:
    assert decompress(compress(data), max_bytes=len(data)) == data


def test_a_frame_that_states_more_than_allowed_is_refused_unread() -> None:
    bomb = compress(bytes(50_000_000))
    assert len(bomb) < 10_000
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match="states 50000000 bytes"):
            decompress(bomb, max_bytes=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def _lying_frame() -> bytes:
    """A frame whose header states 1 byte where 100,000 follow."""
    params = zstandard.ZstdCompressionParameters(format=zstandard.FORMAT_ZSTD1, write_content_size=True)
    honest = zstandard.ZstdCompressor(compression_params=params).compress(b"ab" * 50_000)
    header = bytearray(honest)
    assert header[4] & 0b1110_0000 == 0b1010_0000  # single segment, 4-byte content size at offset 5
    header[5:9] = (1).to_bytes(4, "little")
    return bytes(header)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a frame at all",
        compress(b"a" * 1000)[:-3],
        compress(b"a") + compress(b"b"),
        compress(b"a") + b"x",
        zstandard.ZstdCompressor(write_content_size=False).compress(b"abc"),
        _lying_frame(),
    ],
    ids=["empty", "garbage", "cut", "two-frames", "tail", "no-size", "lying-size"],
)
def test_what_is_not_one_honest_frame_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        decompress(data, max_bytes=1 << 20)


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_decompress_within_the_bound_or_give_our_error(data: bytes, bound: int) -> None:
    for attempt in (data, b"\x28\xb5\x2f\xfd" + data):
        try:
            assert len(decompress(attempt, max_bytes=bound)) <= bound
        except IntegrityError as error:
            assert str(error)


def test_our_msgpack_is_plain_msgpack() -> None:
    assert msgpack.unpackb(pack({"a": [1, b"\x00", None]})) == {"a": [1, b"\x00", None]}

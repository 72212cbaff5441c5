import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden import STATEMENT, stored
from heliograph.errors import HeliographError, IntegrityError
from heliograph.statement import MAX_STATEMENT_BYTES, Statement, encode, parse, signed_bytes
from heliograph.wire import pack

KEY, SIG = bytes(range(32)), bytes(64)


def test_the_golden_envelope_reads_as_it_was_written() -> None:
    assert parse(stored("statement")) == STATEMENT
    assert encode(STATEMENT) == stored("statement")


def test_what_is_signed_is_the_dsse_encoding_with_type_and_version() -> None:
    assert signed_bytes("offer", b"\x80") == b"DSSEv1 19 heliograph/offer.v1 1 \x80"


def test_no_two_pairs_of_type_and_payload_sign_the_same_bytes() -> None:
    assert signed_bytes("offer", b"x") != signed_bytes("offe", b"rx")
    assert signed_bytes("a", b"1 b") != signed_bytes("a", b"1 c")
    assert signed_bytes("receipt", b"x") != signed_bytes("offer", b"x")


def test_an_envelope_without_signatures_is_an_envelope() -> None:
    assert parse(pack([1, "offer", b"", []])) == Statement("offer", b"", ())


@pytest.mark.parametrize(
    ("envelope", "says"),
    [
        ([2, "offer", b"", []], "version 2"),
        ([0, "offer", b"", []], "version 0"),
        ([True, "offer", b"", []], "not a statement"),
        ([1.0, "offer", b"", []], "not a statement"),
        ([1, b"offer", b"", []], "not a statement"),
        ([1, "offer", "text", []], "not a statement"),
        ([1, "offer", b"", {}], "not a statement"),
        ([1, "offer", b""], "not a statement"),
        ([1, "offer", b"", [], None], "not a statement"),
        ([1, "o" * 41, b"", []], "not a statement"),
        ([1, "offer", b"", [[KEY, SIG]] * 17], "not a statement"),
        ([1, "offer", b"", [[KEY, SIG], [KEY, SIG]]], "names a key twice"),
        ([1, "offer", b"", [[KEY[:31], SIG]]], "malformed signature"),
        ([1, "offer", b"", [[KEY, SIG + b"x"]]], "malformed signature"),
        ([1, "offer", b"", [[KEY.hex(), SIG]]], "malformed signature"),
        ([1, "offer", b"", [[KEY]]], "malformed signature"),
        ([1, "offer", b"", [KEY]], "malformed signature"),
        ({"type": "offer"}, "not a statement"),
        ([], "not a statement"),
        (1, "not a statement"),
    ],
)
def test_a_malformed_envelope_is_refused_and_says_how(envelope: object, says: str) -> None:
    with pytest.raises(IntegrityError, match=says):
        parse(pack(envelope))


def test_a_type_from_outside_cannot_break_a_log_line() -> None:
    with pytest.raises(IntegrityError) as caught:
        parse(pack([1, "a\nERROR: all is lost", b"", [1]]))
    assert "\n" not in str(caught.value)


def test_sixteen_signatures_pass_and_an_envelope_over_the_bound_is_neither_read_nor_written() -> None:
    pairs = tuple((bytes([n]) * 32, SIG) for n in range(16))
    assert len(parse(encode(Statement("offer", b"", pairs))).signatures) == 16
    large = Statement("offer", bytes(MAX_STATEMENT_BYTES), ())
    with pytest.raises(IntegrityError, match="exceeds 61440"):
        encode(large)
    with pytest.raises(IntegrityError, match="exceeds 61440"):
        parse(pack([1, "offer", bytes(MAX_STATEMENT_BYTES), []]))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_statement_or_our_error(data: bytes) -> None:
    _read(data)


@given(st.integers(0, len(stored("statement")) - 1), st.binary(min_size=1, max_size=4))
def test_a_damaged_envelope_is_another_statement_or_our_error(at: int, damage: bytes) -> None:
    data = stored("statement")
    _read(data[:at])
    _read(data[:at] + damage + data[at + len(damage) :])


def _read(data: bytes) -> None:
    try:
        assert isinstance(parse(data), Statement)
    except HeliographError as error:
        assert str(error)

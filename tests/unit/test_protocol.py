import re
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden import DOCUMENTS, STATEMENT, stored
from heliograph.errors import HeliographError, IntegrityError
from heliograph.names import NAME_PATTERN, RINGS
from heliograph.protocol import (
    BY_NAME,
    DENIALS,
    PREFIX,
    STATEMENTS,
    TOPICS,
    Payload,
    Topic,
    below_realm,
    parse_topic,
    topic,
)
from heliograph.statement import parse
from heliograph.wire import unpack

each_row = pytest.mark.parametrize("row", TOPICS, ids=[row.name for row in TOPICS])
NAMES = {"site": "shop-7", "node": "till-1", "ring": "canary", "model": "digits", "number": "3"}
LONG = dict.fromkeys(NAMES, "x" * 40) | {"number": "9" * 9}
RESERVED: set[str] = set()


def _names_of(row: Topic, names: dict[str, str]) -> dict[str, str]:
    return {name: names[name] for name in re.findall(r"\{(\w+)\}", row.pattern)}


@each_row
def test_a_topic_taken_apart_gives_what_it_was_built_from(row: Topic) -> None:
    for names in (NAMES, LONG):
        assert parse_topic(row.build("demo", **_names_of(row, names)), "demo") == (row, _names_of(row, names))


@given(st.data())
def test_building_and_matching_are_inverses_for_all_names(data: st.DataObject) -> None:
    row = data.draw(st.sampled_from(TOPICS))
    name = st.from_regex(NAME_PATTERN, fullmatch=True).map(lambda text: text.rstrip("\n")).filter(bool)
    realm = data.draw(name)
    number = st.integers(1, 999_999_999).map(str)
    names = {key: data.draw(number if key == "number" else name) for key in _names_of(row, NAMES)}
    full = row.build(realm, **names)
    assert parse_topic(full, realm) == (row, names)
    assert parse_topic(full, realm + "x") is None
    assert below_realm(full) == full.removeprefix(f"{PREFIX}/{realm}/")


@pytest.mark.parametrize("number", ["abc", "1-2", "", "1" * 10, "१"])
def test_a_root_without_a_number_is_no_topic(number: str) -> None:
    assert parse_topic(f"{PREFIX}/demo/tuf/root/{number}", "demo") is None


def test_no_topic_belongs_to_two_rows() -> None:
    for row in TOPICS:
        below = row.pattern.format(**_names_of(row, NAMES))
        assert [other.name for other in TOPICS if other.match(below) is not None] == [row.name]
    assert len(BY_NAME) == len(TOPICS)
    assert all(topic(row.name) is row for row in TOPICS)


@each_row
def test_a_topic_stays_in_the_portable_subset(row: Topic) -> None:
    longest = row.build("r" * 40, **_names_of(row, LONG))
    assert longest.count("/") <= 7
    assert len(longest) <= 200
    assert row.qos in (0, 1)
    assert row.payload in get_args(Payload)
    # A retained message is a hint to many; what is for one node is asked for.
    assert row.retain == (row.reader == "node")


@each_row
def test_a_filter_covers_the_topic_and_leaves_given_names_fixed(row: Topic) -> None:
    full = row.build("demo", **_names_of(row, NAMES))
    assert _covers(row.filter("demo"), full)
    assert row.filter("demo", **NAMES) == full
    if "{site}" in row.pattern:
        assert not _covers(row.filter("demo", site="other"), full)


def _covers(topic_filter: str, full: str) -> bool:
    parts, given_parts = topic_filter.split("/"), full.split("/")
    return len(parts) == len(given_parts) and all(p in ("+", g) for p, g in zip(parts, given_parts, strict=True))


@pytest.mark.parametrize(
    "full",
    [
        "heliograph/v1/demo/node/shop/till/up/hello/x",
        "heliograph/v1/demo/node/shop/till/up/dance",
        "heliograph/v1/demo/node/Shop/till/up/hello",
        "heliograph/v1/demo/node//till/up/hello",
        "heliograph/v1/demo/node/shop/till/up/hello\n",
        "heliograph/v1/demo/desired/+",
        "heliograph/v1/demo/desired/#",
        "heliograph/v1/demo/desired/" + "x" * 41,
        "heliograph/v1/other/desired/canary",
        "heliograph/v2/demo/desired/canary",
        "$SYS/broker/version",
        "",
    ],
)
def test_a_topic_of_no_row_is_none(full: str) -> None:
    assert parse_topic(full, "demo") is None


@pytest.mark.parametrize("full", ["", "heliograph/v1/demo", "heliograph/v2/demo/x", "x/heliograph/v1/demo/y"])
def test_what_is_below_a_realm_is_only_told_of_our_topics(full: str) -> None:
    with pytest.raises(IntegrityError):
        below_realm(full)


@given(st.text(max_size=80))
def test_any_text_is_a_topic_or_none_or_our_error(text: str) -> None:
    parse_topic(PREFIX + "/demo/" + text, "demo")
    try:
        below_realm(text)
    except HeliographError as error:
        assert str(error)


@each_row
def test_every_row_says_who_sends_what_to_whom(row: Topic) -> None:
    assert (row.sender, row.reader) in {("hub", "node"), ("hub", "own"), ("own", "hub"), ("new", "hub")}
    own = "{site}/{node}" in row.pattern
    assert own == ("own" in (row.sender, row.reader) or row.sender == "new")
    match row.payload:
        case "bytes":
            assert row.statement is None
            assert row.document is None
        case "message":
            assert row.statement is None
            assert row.document is not None
        case "statement" | "statements":
            assert row.statement in STATEMENTS


def test_every_statement_type_has_a_signer_and_a_topic_or_is_reserved() -> None:
    documented = {row.statement for row in TOPICS if row.statement and row.document}
    assert set(STATEMENTS) - documented - set(DENIALS) == RESERVED
    assert not documented & set(DENIALS)
    for role in STATEMENTS.values():
        assert re.fullmatch(r"[a-z-]+(-\{(ring|model)\})?|ring-\{ring\}", role)


def test_what_a_node_says_is_signed_by_its_own_key_and_what_the_hub_says_never_is() -> None:
    for row in TOPICS:
        if row.statement:
            assert (STATEMENTS[row.statement] == "own") == (row.sender in ("own", "new"))


def test_the_role_of_a_ring_is_named_after_it() -> None:
    assert [STATEMENTS["directive"].format(ring=ring) for ring in RINGS] == [
        "ring-canary", "ring-early", "ring-general", "ring-protected",
    ]  # fmt: skip


def test_every_reserved_type_is_refused_by_having_no_document() -> None:
    for row in TOPICS:
        if row.statement in RESERVED:
            assert row.document is None


def test_a_desired_list_is_a_list_of_envelopes_of_the_rows_type() -> None:
    envelopes = unpack(stored("desired"))
    assert [parse(envelope) for envelope in envelopes] == [STATEMENT]
    row = topic("desired")
    assert STATEMENT.type == row.statement
    assert row.document is not None
    assert row.document.decode(STATEMENT.payload) == DOCUMENTS["directive"]

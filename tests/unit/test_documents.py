"""Every document and message against its golden file, older and newer forms of itself, and hostile bytes."""

import tracemalloc
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden import DOCUMENTS, EARLIER, file_bytes, stored
from heliograph import documents as doc
from heliograph.documents import Document, Part
from heliograph.errors import HeliographError, IntegrityError
from heliograph.protocol import DENIALS, TOPICS
from heliograph.wire import MAX_MESSAGE_BYTES, pack, unpack

each_document = pytest.mark.parametrize("name", DOCUMENTS)


@each_document
def test_golden_bytes_decode_to_the_expected_value_and_encode_to_the_same_bytes(name: str) -> None:
    expected = DOCUMENTS[name]
    read = type(expected).decode(stored(name))
    assert read == expected
    assert read.encode() == stored(name)


@pytest.mark.parametrize("stem", EARLIER)
def test_golden_bytes_of_an_earlier_version_are_read_with_the_defaults_of_what_came_since(stem: str) -> None:
    expected = EARLIER[stem]
    assert type(expected).decode(file_bytes(stem)) == expected
    assert expected.encode() != file_bytes(stem), "this version writes what it knows"


def test_every_document_of_the_topic_table_has_a_golden_file() -> None:
    golden = {type(document) for document in DOCUMENTS.values()}
    assert {row.document for row in TOPICS if row.document} | set(DENIALS.values()) == golden


@each_document
def test_an_older_form_without_the_optional_fields_loads_with_their_defaults(name: str) -> None:
    model = type(DOCUMENTS[name])
    value = unpack(stored(name))
    optional = [field for field, info in model.model_fields.items() if not info.is_required()]
    if model is doc.Chunk:
        optional = ["page"] if value["page"] is None else ["offset"]
    read = model.decode(pack({key: item for key, item in value.items() if key not in optional}))
    for field in optional:
        assert getattr(read, field) == model.model_fields[field].default


@each_document
def test_a_field_this_version_does_not_know_is_ignored_from_the_hub_and_refused_from_a_node(name: str) -> None:
    model = type(DOCUMENTS[name])
    newer = pack(unpack(stored(name)) | {"zz-new": 1})
    if issubclass(model, Part):
        assert model.decode(newer) == DOCUMENTS[name]
    else:
        with pytest.raises(IntegrityError, match="zz-new"):
            model.decode(newer)


def test_what_the_hub_signs_may_grow_and_what_a_node_sends_may_not() -> None:
    for row in TOPICS:
        if row.document is not None and row.name != "chunk":
            assert issubclass(row.document, doc.Broadcast) == (row.sender == "hub"), row.name


def _models_within(annotation: Any) -> set[type[Document]]:
    if isinstance(annotation, type) and issubclass(annotation, Document):
        fields = annotation.model_fields.values()
        return {annotation}.union(*(_models_within(field.annotation) for field in fields))
    return set().union(*(_models_within(inner) for inner in get_args(annotation)))


def test_every_part_of_what_the_hub_signs_may_grow_too() -> None:
    signed = [row.document for row in TOPICS if row.document and issubclass(row.document, doc.Broadcast)]
    within = set().union(*map(_models_within, signed))
    assert within > {doc.Way, doc.Heads, doc.Command}
    assert {model.__name__ for model in within if not issubclass(model, Part)} == set()


def test_a_critical_field_this_version_lacks_is_refused_and_named() -> None:
    value = unpack(stored("directive"))
    with pytest.raises(IntegrityError, match=r"^directive 7 needs blackout, which agent [0-9.]+ lacks$"):
        doc.Directive.decode(pack(value | {"blackout": 1, "crit": ["blackout"]}))
    assert doc.Directive.decode(pack(value | {"crit": ["paced", "number"]})).crit == ("paced", "number")


@pytest.mark.parametrize("crit", [[["a"]], [{}], [None], [1], "paced", 5, {}, [b"paced"]])
def test_a_crit_that_is_no_list_of_known_names_is_refused(crit: object) -> None:
    with pytest.raises(IntegrityError):
        doc.Directive.decode(pack(unpack(stored("directive")) | {"crit": crit}))


@each_document
def test_no_field_takes_a_number_with_a_fraction(name: str) -> None:
    value = unpack(stored(name))
    for field in value:
        with pytest.raises(IntegrityError, match=field):
            type(DOCUMENTS[name]).decode(pack(value | {field: 1.5}))


BOUNDS: list[tuple[str, dict[str, object]]] = [
    ("directive", {"number": -1}),
    ("directive", {"number": 1 << 63}),
    ("directive", {"expires": 1 << 40}),
    ("directive", {"release": b"x" * 31}),
    ("directive", {"release": b"x" * 33}),
    ("directive", {"release": "x" * 32}),
    ("directive", {"ring": "test"}),
    ("directive", {"realm": "Demo"}),
    ("directive", {"model": "../digits"}),
    ("directive", {"action": "destroy"}),
    ("assigned", {"key": b"x" * 31}),
    ("assigned", {"labels": {"a": "x" * 401}}),
    ("assigned", {"pins": {"Digits": "1.0.0"}}),
    ("assigned", {"commands": [{"number": 1, "kind": "format disk"}]}),
    ("offer", {"run": b"x" * 9}),
    ("offer", {"ways": [{"kind": "delta", "blob": b"x" * 32, "bytes": 1}]}),
    ("offer", {"ways": [{"kind": "full", "blob": b"x" * 32, "bytes": 1, "base": b"x" * 32,
                         "recipe": {"length": 1, "sha256": b"x" * 32}}]}),
    ("offer", {"ways": [{"kind": "delta", "blob": b"x" * 32, "bytes": 1, "base": b"x" * 32,
                         "recipe": {"length": (1 << 20) + 1, "sha256": b"x" * 32}}]}),
    ("offer", {"ways": [{"kind": "full", "blob": b"x" * 32, "bytes": -1}]}),
    ("receipt", {"lane": "gossip"}),
    ("reply", {"nonce": b"x" * 15}),
    ("reply", {"heads": {"policy": {"test": 1}}}),
    ("reply", {"documents": [["desired/canary"]]}),
    ("chunk", {"offset": 1}),
    ("chunk", {"offset": -4096}),
    ("chunk", {"offset": 1 << 62}),
    ("chunk", {"page": 0}),
    ("chunk", {"offset": None}),
    ("chunk", {"handle": b"abc"}),
    ("want", {"ranges": [[0, 0]]}),
    ("want", {"ranges": [[0, 257]]}),
    ("want", {"ranges": [[-1, 1]]}),
    ("want", {"ranges": [[0, 1, 2]]}),
    ("want", {"answer": "up"}),
    ("reported", {"estimate": -1}),
    ("reported", {"models": {"digits": {"phase": "dancing"}}}),
    ("reported", {"models": {"digits": {"phase": "idle", "verdict": "maybe"}}}),
    ("records", {"rows": [[0, "latency", 1, {}]]}),
    ("records", {"rows": [[1, "latency", 1, []]]}),
    ("records", {"rows": [[1, "x" * 401, 1, {}]]}),
    ("records", {"first": -1}),
    ("enroll", {"token": b"x" * 31}),
    ("enroll", {"csr": b"x"}),
    ("hello", {"schemas": {"statement": -1}}),
    ("ask", {"bases": [b"short"]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), BOUNDS, ids=[f"{name}-{change}"[:60] for name, change in BOUNDS])
def test_a_value_out_of_bounds_is_refused(name: str, change: dict[str, object]) -> None:
    with pytest.raises(IntegrityError, match=next(iter(change)) + "|whole|a chunk has|a delta names"):
        type(DOCUMENTS[name]).decode(pack(unpack(stored(name)) | change))


@pytest.mark.parametrize("missing", ["run", "nonce", "numbers", "tuf"])
def test_a_message_without_a_required_field_is_refused_and_the_field_named(missing: str) -> None:
    value = unpack(stored("hello"))
    del value[missing]
    with pytest.raises(IntegrityError, match=missing):
        doc.Hello.decode(pack(value))


@pytest.mark.parametrize("depth", [20, 500, 1000])
def test_a_deeply_nested_record_is_refused_and_never_exhausts_the_stack(depth: int) -> None:
    value = unpack(stored("records")) | {"rows": []}
    head = pack(value)
    assert head.endswith(b"\x90")
    row = b"\x94\x01\xa1k\x01\x81\xa1a" + b"\x91" * depth + b"\xc0"
    with pytest.raises(IntegrityError, match="nested deeper than 16"):
        doc.Records.decode(head[:-1] + b"\x91" + row)


@pytest.mark.parametrize(
    "odd", [b"\xd6\xff\x00\x00\x00\x01", b"\xd4\x05\x00", b"\x81\xc4\x01a\x01"], ids=["time", "ext", "bin-key"]
)
def test_a_record_body_holds_plain_values_only(odd: bytes) -> None:
    head = pack(unpack(stored("records")) | {"rows": []})
    with pytest.raises(IntegrityError):
        doc.Records.decode(head[:-1] + b"\x91\x94\x01\xa1k\x01\x81\xa1a" + odd)


def test_what_a_peer_sent_stays_on_one_short_line_of_the_message() -> None:
    value = unpack(stored("hello"))
    for hostile in (value | {"a\nERROR: " * 5000: 1}, value | {"agent": "x\n" * 300}):
        with pytest.raises(IntegrityError) as caught:
            doc.Hello.decode(pack(hostile))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [None, 1, "text", [], [1, 2], b"bytes"])
@each_document
def test_a_message_that_is_no_map_is_refused(name: str, value: object) -> None:
    with pytest.raises(IntegrityError, match="not a map"):
        type(DOCUMENTS[name]).decode(pack(value))


def test_attack_words_of_a_peer_clear_no_terminal_and_hide_nothing_on_it() -> None:
    refused = {"realm": "r", "site": "s", "node": "n", "key": bytes(32), "nonce": bytes(16)}
    hostile = "token\x1b[2J\x9b8m used\r\n\x07\x7f – naïve 日本"
    assert doc.Refused.decode(pack(refused | {"reason": hostile})).reason == "token [2J 8m used     – naïve 日本"


def test_a_message_over_its_bound_is_refused_before_it_is_parsed() -> None:
    large = doc.Chunk(handle=b"abcd", offset=0, bytes=bytes(MAX_MESSAGE_BYTES)).encode()
    with pytest.raises(IntegrityError, match="exceeds"):
        doc.Chunk.decode(large)


def test_a_record_of_nothing_but_empty_maps_costs_bounded_memory() -> None:
    head = pack(unpack(stored("records")) | {"rows": []})
    count = MAX_MESSAGE_BYTES - len(head) - 16
    bomb = head[:-1] + b"\x91\x94\x01\xa1k\x01\x81\xa1a\xdc" + count.to_bytes(2, "big") + b"\x80" * count
    assert len(bomb) <= MAX_MESSAGE_BYTES
    tracemalloc.start()
    try:
        doc.Records.decode(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200 * MAX_MESSAGE_BYTES


def _read(model: type[Document], data: bytes) -> None:
    try:
        assert isinstance(model.decode(data), model)
    except HeliographError as error:
        assert str(error)


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@each_document
@settings(max_examples=60)
@given(data=st.data())
def test_a_hostile_message_is_a_document_or_our_error(name: str, data: st.DataObject) -> None:
    model, golden = type(DOCUMENTS[name]), stored(name)
    at = data.draw(st.integers(0, len(golden) - 1))
    damage = data.draw(st.binary(min_size=1, max_size=4))
    _read(model, golden[:at])
    _read(model, golden[:at] + damage + golden[at + len(damage) :])
    _read(model, golden[:at] + damage + golden[at:])
    _read(model, damage)
    field = data.draw(st.sampled_from(sorted(model.model_fields)))
    _read(model, pack(unpack(golden) | {field: data.draw(ODD)}))

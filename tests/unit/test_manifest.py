import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden import CONFIDENTIAL, MANIFEST, file_bytes, stored
from heliograph import manifest as man
from heliograph.blob import MAX_UNPAGED_BYTES, sha256
from heliograph.errors import HeliographError, IntegrityError
from heliograph.fields import table_in
from heliograph.manifest import Manifest, is_safe_file_name, manifest_digest
from heliograph.wire import pack, unpack

GOLDEN = stored("manifest")


def _changed(**change: Any) -> bytes:
    return pack(unpack(GOLDEN) | change)


def test_golden_bytes_decode_to_the_expected_release_and_encode_to_the_same_bytes() -> None:
    read = Manifest.parse(GOLDEN, sha256(GOLDEN), len(GOLDEN))
    assert read == MANIFEST
    assert read.encode() == GOLDEN
    assert manifest_digest(read) == sha256(GOLDEN)
    assert read.release == "digits@1.4.0"
    assert read.file("model.tflite").length == (1 << 20) + 1


def test_a_manifest_is_canonical_whatever_the_order_its_fields_were_given_in() -> None:
    value = unpack(GOLDEN)
    backwards = {key: value[key] for key in reversed(value)}
    assert Manifest.decode(pack(backwards)).encode() == GOLDEN

    def keys_are_sorted(item: Any) -> bool:
        if isinstance(item, dict):
            return list(item) == sorted(item) and all(map(keys_are_sorted, item.values()))
        return all(map(keys_are_sorted, item)) if isinstance(item, list) else True

    assert keys_are_sorted(value)


def test_a_confidential_release_says_so_in_bytes_that_an_agent_which_cannot_open_it_refuses() -> None:
    data = file_bytes("manifest-2")
    assert Manifest.parse(data, sha256(data), len(data)) == CONFIDENTIAL and CONFIDENTIAL.encode() == data
    value = unpack(data)
    assert (value["confidential"], value["crit"]) == (True, ["confidential"])
    assert "confidential" not in unpack(GOLDEN)
    with pytest.raises(IntegrityError, match="names confidential in crit"):
        Manifest.decode(_changed(confidential=True))


@pytest.mark.parametrize(
    ("data", "digest", "length"),
    [
        (GOLDEN + b"\x00", sha256(GOLDEN), len(GOLDEN)),
        (GOLDEN, sha256(GOLDEN), len(GOLDEN) + 1),
        (GOLDEN, sha256(b""), len(GOLDEN)),
        (bytes(MAX_UNPAGED_BYTES + 1), sha256(bytes(MAX_UNPAGED_BYTES + 1)), MAX_UNPAGED_BYTES + 1),
    ],
    ids=["other-bytes", "other-length", "other-digest", "too-large"],
)
def test_bytes_that_are_not_the_signed_ones_are_refused_before_they_are_parsed(
    data: bytes, digest: bytes, length: int
) -> None:
    with pytest.raises(IntegrityError, match="is not the signed one"):
        Manifest.parse(data, digest, length)


def test_a_newer_manifest_loads_unless_it_names_the_new_field_critical() -> None:
    assert Manifest.decode(_changed(battery=1)) == MANIFEST
    with pytest.raises(IntegrityError, match="needs battery"):
        Manifest.decode(_changed(battery=1, crit=["battery"]))
    assert Manifest.decode(_changed(crit=["schema", "golden"])).crit == ("schema", "golden")


def test_a_manifest_of_required_fields_alone_loads_with_the_agreed_defaults() -> None:
    value = unpack(GOLDEN)
    bare = {key: value[key] for key in ("model", "version", "files", "variants", "golden")}
    read = Manifest.decode(pack(bare))
    assert (read.format, read.fail_mode, read.min_agent, read.soak) == (1, "safe", "0", man.Soak(min_s=60, max_s=3600))
    assert read.compatible == man.Compatible(config=man.Span(min=0, max=None), policy=man.Span(min=0, max=None))
    assert read.evaluation is None


FILE = unpack(GOLDEN)["files"][0]
VARIANT = unpack(GOLDEN)["variants"][0]
OTHERS = unpack(GOLDEN)["files"][1:]
GOLDEN_FILES = {"inputs": "golden/inputs.json", "outputs": "golden/outputs.json"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "format"),
        ({"version": "1.4"}, "version"),
        ({"version": "1.4.0-rc1"}, "version"),
        ({"model": "Digits"}, "model"),
        ({"files": []}, "files"),
        ({"variants": []}, "variants"),
        ({"files": [FILE | {"pages": [bytes(16)]}, *OTHERS]}, "has 1 page digests"),
        ({"files": [FILE | {"length": 1 << 41}, *OTHERS]}, "length"),
        ({"files": [FILE, FILE | {"name": "Model.tflite"}, *OTHERS]}, "collides"),
        ({"files": [FILE, FILE, *OTHERS]}, "collides"),
        ({"files": [FILE | {"name": "../model.tflite"}, *OTHERS]}, "name"),
        ({"files": OTHERS}, "model.tflite is named but is not among the files"),
        ({"variants": [VARIANT | {"files": []}]}, "names no files"),
        ({"variants": [VARIANT | {"runtime": "pickle"}]}, "runtime"),
        ({"golden": {"inputs": "golden/inputs.json", "outputs": "no.json"}}, "no.json is named"),
        ({"golden": GOLDEN_FILES | {"tolerance": -1.0}}, "tolerance"),
        ({"golden": GOLDEN_FILES | {"tolerance": float("nan")}}, "tolerance"),
        ({"gates": [{"name": "p95-ms", "limit": float("inf")}]}, "limit"),
        ({"evaluation": {"data": "eval.npz", "floor": 0.5}}, "eval.npz is named"),
        ({"soak": {"min_s": 10, "max_s": 5}}, "exceeds soak.max_s"),
        ({"fail_mode": "open"}, "fail_mode"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_manifest_that_contradicts_itself_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(IntegrityError, match=says):
        Manifest.decode(_changed(**change))


@pytest.mark.parametrize("name", ["model.tflite", "a/b/c/d", "A-1_x.Y", "x" * 64])
def test_a_plain_file_name_is_safe(name: str) -> None:
    assert is_safe_file_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/../b", "/x", "x/", "a//b", ".hidden", "a/.b", "a b", "a\\b", "a\x00", "é", "x\n", "-x",
     "a/b/c/d/e", "x" * 65, "C:x", "a\r"],
)  # fmt: skip
def test_a_file_name_that_could_lead_elsewhere_is_unsafe_for_bundle_and_manifest_alike(name: str) -> None:
    assert not is_safe_file_name(name)
    with pytest.raises(IntegrityError):
        Manifest.decode(_changed(files=[*unpack(GOLDEN)["files"], FILE | {"name": name}]))


@given(st.integers(0, len(GOLDEN) - 1), st.binary(min_size=1, max_size=4))
def test_a_damaged_manifest_is_another_manifest_or_our_error(at: int, damage: bytes) -> None:
    for data in (GOLDEN[:at], GOLDEN[:at] + damage + GOLDEN[at + len(damage) :], damage):
        try:
            assert isinstance(Manifest.decode(data), Manifest)
        except HeliographError as error:
            assert str(error)


def test_release_toml_is_explained_field_by_field_from_the_models() -> None:
    rows = man.explain()
    fields = {row[0] for row in rows}
    expected: set[str] = set()

    def walk(model: Any, prefix: str) -> None:
        for name, field in model.model_fields.items():
            if name in {"format", "length", "sha256", "pages"}:
                continue
            inner = table_in(field.annotation)
            many = "tuple" in str(field.annotation)
            shown = prefix + (field.alias or name) + ("[]" if many and inner else "")
            expected.add(shown)
            if inner:
                walk(inner, shown + ".")

    walk(Manifest, "")
    assert fields == expected
    assert fields >= {"model", "version", "files[].name", "golden.inputs", "schema.generations", "soak.max_s"}
    assert all(len(row) == 4 and row[3] and row[1] for row in rows)
    required = {row[0] for row in rows if row[2] == "required"}
    assert {"model", "version", "golden", "golden.inputs", "golden.outputs"} <= required


def test_a_manifest_value_cannot_be_changed() -> None:
    with pytest.raises((dataclasses.FrozenInstanceError, ValueError)):
        MANIFEST.version = "2.0.0"

"""Hardware fit and the node's small files."""

import base64
from dataclasses import replace
from pathlib import Path

import pytest

from heliograph.documents import Hardware
from heliograph.errors import ConfigError
from heliograph.manifest import File, Golden, Manifest, Variant
from heliograph.wire import pack
from heliograph_site.folder import JOIN_PREFIX, JoinString, read_node_file
from heliograph_site.hardware import detect, why_unfit

HERE = Hardware(arch="aarch64", memory_bytes=1 << 30, runtimes={"tflite": "2.14.0"})
STRING = JoinString("10.0.0.1", 1883, "lab", "shop-1", "till-2", b"t" * 32, b"r" * 32)


def manifest(variant: Variant, min_agent: str = "0") -> Manifest:
    file = File(name="m", length=0, sha256=bytes(32), pages=())
    return Manifest(
        model="digits",
        version="1.0.0",
        files=(file,),
        variants=(variant,),
        golden=Golden(inputs="m", outputs="m"),
        min_agent=min_agent,
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arch": ("x86_64",)}, "is for x86_64, this is aarch64"),
        ({"runtime": "onnx"}, "needs runtime onnx, which isn't installed"),
        ({"min_runtime": "2.15"}, "needs tflite 2.15, here is 2.14.0"),
        ({"accelerator": "npu"}, "needs accelerator npu"),
        ({"memory_bytes": 1 << 31}, "needs 2147483648 bytes of memory"),
    ],
)
def test_what_does_not_fit_is_declined_with_the_reason(change: dict[str, object], says: str) -> None:
    plain = Variant(name="plain", files=("m",), min_runtime="2.9")
    assert why_unfit(manifest(plain), HERE) is None
    reason = why_unfit(manifest(plain.model_copy(update=change)), HERE)
    assert reason is not None and says in reason


def test_a_release_for_a_newer_agent_is_declined() -> None:
    reason = why_unfit(manifest(Variant(name="plain", files=("m",)), min_agent="99.0"), HERE)
    assert reason is not None and reason.startswith("digits@1.0.0 needs agent 99.0")


def test_this_machine_is_described_without_loading_a_runtime() -> None:
    found = detect()
    assert found.arch and found.memory_bytes > 1 << 20


def test_a_join_string_comes_back_as_it_was_printed() -> None:
    assert JoinString.parse(f"  {STRING.encode()}\n") == STRING
    assert "=" not in STRING.encode()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a join string"),
        ("heliograph2:AAAA", "not a join string: it begins with 'heliograph1:'"),
        (STRING.encode()[:-5], "damaged: copy all"),
        (JOIN_PREFIX + "!!!", "damaged: copy all"),
        (JOIN_PREFIX + base64.urlsafe_b64encode(pack([2, "x"])).decode(), "is of version 2, this version reads 1"),
        (replace(STRING, site="Shop 1").encode(), "doesn't hold: site"),
        (replace(STRING, port=70000).encode(), "doesn't hold: port"),
        (replace(STRING, token=b"short").encode(), "damaged: copy all"),
    ],
)
def test_a_bad_join_string_is_refused_in_one_sentence(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as failure:
        JoinString.parse(text)
    assert says in str(failure.value) and "\n" not in str(failure.value)


def test_node_toml_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path
    file = STRING.node_file(8080)
    (folder / "node.toml").write_bytes(file.encode())
    assert read_node_file(folder) == file
    (folder / "node.toml").write_bytes(file.encode() + b"speed = 3\n")
    with pytest.raises(ConfigError, match=r"node\.toml: speed: Extra inputs"):
        read_node_file(folder)
    (folder / "node.toml").write_bytes(b"format = [")
    with pytest.raises(ConfigError, match="can't be read"):
        read_node_file(folder)
    with pytest.raises(ConfigError, match="is not a node's folder: run `heliograph node join` first"):
        read_node_file(folder / "nowhere")

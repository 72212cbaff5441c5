"""Every pair that the delta bench knows: those of models.toml, and those it makes itself."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("fine-tune", "re-quantised", "retrained", "public release", "synthetic")
DTYPES = ("", "f32", "bf16", "f16", "int8", "int4")


class CatalogueError(Exception):
    """models.toml says something that can't be."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where one file comes from: a member of a wheel, or a file of this project.

    Attributes:
        package: `name==version`; empty for a file of this project.
        member: path within the wheel, or the file's name in tests/data/digits.
        sha256: hex digest that the bytes must have.
    """

    package: str
    member: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two files, the second to be made from the first.

    Attributes:
        name: lower-case words joined by hyphens.
        kind: one of `KINDS`.
        source: where it comes from, in words.
        dtype: of most elements, one of `DTYPES`; empty where the file is no model or nobody says.
        files: old and new, for a pair that is downloaded.
        recipe: what makes it: ("form", FORM, OLD, NEW) or ("synthetic", MEGABYTES, SEED).
        big: measured only when asked for.
    """

    name: str
    kind: str
    source: str
    dtype: str = ""
    files: tuple[Source, Source] | None = None
    recipe: tuple[str, ...] = ()
    big: bool = False


_TRAINED = {
    "head": "classification head alone, 40 steps",
    "full": "all layers, 40 steps at 2e-5",
    "long": "all layers, continued for 200 steps at 5e-5",
    "lora": "rank 8 on query and value, 40 steps, merged",
}
_FORMS = {
    "f32": ("f32", "float32 safetensors"),
    "bf16": ("bf16", "bfloat16 safetensors"),
    "f16": ("f16", "float16 safetensors"),
    "int8": ("int8", "int8 safetensors, a scale a row"),
    "onnx": ("int8", "ONNX, int8 initializers"),
    "gguf-f16": ("f16", "GGUF F16"),
    "gguf-q8_0": ("int8", "GGUF Q8_0"),
    "gguf-q4_0": ("int4", "GGUF Q4_0"),
    "tar": ("bf16", "tar of config, vocabulary and bfloat16 weights"),
    "renamed": ("bf16", "bfloat16 safetensors, tensors renamed and in another order"),
    "resized": ("f16", "float16 safetensors, four more classes and 64 more inner units"),
}
_MADE = {
    "f32": ("head", "full", "long", "lora"), "bf16": ("full", "long", "lora"), "f16": ("full", "long"),
    "int8": ("head", "full", "long", "lora"), "onnx": ("full",), "gguf-f16": ("full",), "gguf-q8_0": ("full",),
    "gguf-q4_0": ("full",), "tar": ("full",), "renamed": ("full",), "resized": ("full",),
}  # fmt: skip


def made() -> list[Pair]:
    """The pairs the bench makes itself."""
    pairs = [
        Pair(
            name=f"minilm-{form.replace('_', '')}-{variant}",
            kind="fine-tune",
            source=f"MiniLM, two layers, {_FORMS[form][1]}; {_TRAINED[variant]}",
            dtype=_FORMS[form][0],
            recipe=("form", form, "base", variant),
        )
        for form, variants in _MADE.items()
        for variant in variants
    ]
    pairs += [
        Pair("minilm-int8-requantised", "re-quantised", "MiniLM, two layers, int8; the same weights, scales that clip",
             "int8", recipe=("form", "requantised", "base", "base")),
        Pair("scratch-f32", "retrained", "one MiniLM layer, float32; trained twice from random weights",
             "f32", recipe=("form", "f32", "scratch-a", "scratch-b")),
        Pair("scratch-int8", "retrained", "one MiniLM layer, int8; trained twice from random weights",
             "int8", recipe=("form", "int8", "scratch-a", "scratch-b")),
    ]  # fmt: skip
    for name, megabytes in (("image-20m", 20), ("image-200m", 200), ("image-1g", 1000)):
        text = f"{megabytes} MB of bfloat16 matrices, a third unchanged, a tensor inserted"
        recipe = ("synthetic", str(megabytes), str(megabytes))
        pairs.append(Pair(name, "synthetic", text, "bf16", recipe=recipe, big=megabytes > 100))
    return pairs


def parse(text: str) -> tuple[list[Pair], dict[str, Source]]:
    """The pairs of models.toml, and what else it names: {"minilm.old": Source, ...}.

    Raises:
        CatalogueError: a table lacks something, or has what nobody knows.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogueError(f"models.toml is no TOML: {error}") from error
    pairs: list[Pair] = []
    others: dict[str, Source] = {}
    for name, table in tables.items():
        files = {key: _source(name, key, value) for key, value in table.items() if isinstance(value, dict)}
        kind = table.get("kind")
        if kind == "base":
            others |= {f"{name}.{key}": source for key, source in files.items()}
            continue
        if kind not in KINDS or table.get("dtype", "") not in DTYPES:
            raise CatalogueError(f"models.toml: [{name}] has no kind or dtype known here")
        if files.keys() != {"old", "new"} or not table.get("source"):
            raise CatalogueError(f"models.toml: [{name}] must have old, new and source")
        pairs.append(Pair(name, kind, table["source"], table.get("dtype", ""), files=(files["old"], files["new"])))
    return pairs, others


def _source(pair: str, key: str, table: Mapping[str, Any]) -> Source:
    known = {"file", "package", "member", "sha256", "bytes", "licence"}
    if table.keys() - known:
        raise CatalogueError(f"models.toml: [{pair}] {key} has {', '.join(sorted(table.keys() - known))}")
    digest = str(table.get("sha256", ""))
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise CatalogueError(f"models.toml: [{pair}] {key} has no SHA-256")
    if "file" in table:
        if "/" in table["file"] or "package" in table:
            raise CatalogueError(f"models.toml: [{pair}] {key}: a file is a plain name, without a package")
        return Source("", table["file"], digest)
    name, exact, version = str(table.get("package", "")).partition("==")
    if not (name and exact and version and table.get("member")):
        raise CatalogueError(f"models.toml: [{pair}] {key} must name package==version and member")
    return Source(table["package"], table["member"], digest)


def pairs(models: Path) -> list[Pair]:
    """All of them, the smaller kinds of work first."""
    return [*parse(models.read_text(encoding="utf-8"))[0], *made()]

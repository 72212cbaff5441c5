"""Turns a folder with a `release.toml` into a manifest, or says in one sentence what is missing or wrong.

The same files give the same manifest, byte for byte: no clock, no folder order, no file times enter it. Nothing here
runs a model or believes one: golden files are read as JSON, everything else is bytes.

Rule 1: a folder is taken as it stands or refused: no link is followed, no name is changed, no file is skipped silently.
Rule 2: the folder may change while it is read; what counts is what was hashed, and the store checks that again.
"""

import difflib
import json
import math
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from heliograph.blob import MAX_UNPAGED_BYTES, Pager
from heliograph.documents import Document
from heliograph.errors import ConfigError, RefusedError
from heliograph.fields import table_in
from heliograph.manifest import (
    COMPUTED,
    FILE_NAME_PATTERN,
    GATES,
    MEASURED_ONCE,
    Golden,
    Manifest,
    is_safe_file_name,
)
from heliograph.names import NAME_PATTERN
from heliograph.toml import MAX_TOML_BYTES, parse_toml

RELEASE_FILE = "release.toml"
MODEL_SUFFIXES = {".tflite": "tflite", ".onnx": "onnx"}
MAX_FILES = 500
"""So that one signed offer can name a way for each."""
MAX_CONFIDENTIAL_FILES = 350
"""The same, where each way names a seal too."""
MAX_GOLDEN_BYTES = 16 << 20
MAX_GOLDEN_CONTAINERS = 1 << 18
"""Lists and objects in one golden file, so that 16 MiB of brackets don't become a gigabyte of lists."""
MAX_RANK = 16
_READ_BYTES = 1 << 20
_LEGAL = {
    FILE_NAME_PATTERN: (
        "no name for a bundle file",
        "use letters, digits, '.', '_', '-', no dot in front, and at most 4 parts with '/' between",
    ),
    NAME_PATTERN: ("not a name", "use 1 to 40 of a-z, 0-9 and '-'"),
}
"""What a person is told in place of a pattern: what the text is, and what would do."""
_DATATYPES = frozenset(
    ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"]
)  # Source: Open Inference Protocol v2, "Tensor Data Types"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A manifest and where the bytes of its files stand."""

    manifest: Manifest
    paths: dict[str, Path]


def pack(folder: Path) -> Bundle:
    """Reads the folder and its files whole (streaming) and returns its manifest.

    Raises:
        ConfigError: the folder or `release.toml` can't be read, or names a field there isn't.
        RefusedError: the bundle is missing something, unsafe or inconsistent.
    """
    table = _read_release_file(folder)
    _check_fields(table, Manifest, "", folder)
    _check_numbers(table, "")
    for field in ("model", "version", "golden"):
        if field not in table:
            raise RefusedError(f"{folder / RELEASE_FILE} has no {field}: add it (heliograph release add --explain)")
    names = _listed(table["files"], folder) if "files" in table else _found(folder)
    if not names:
        raise RefusedError(f"{folder} holds no files besides {RELEASE_FILE}: put the model and its golden files there")
    if len(names) > MAX_FILES:
        raise RefusedError(f"{folder} holds {len(names)} files, a bundle may hold {MAX_FILES}: join small ones")
    paths = {name: _safe_path(folder, name) for name in sorted(names)}
    table["files"] = [_described(name, path) for name, path in paths.items()]
    if "variants" not in table:
        table["variants"] = [_only_variant(sorted(names), folder)]
    if table.get("confidential") is True and isinstance(table.get("crit", []), list):
        table["crit"] = list(dict.fromkeys([*table.get("crit", []), "confidential"]))
    manifest = _parse(table, folder)
    if manifest.confidential and len({file.sha256 for file in manifest.files}) > MAX_CONFIDENTIAL_FILES:
        raise RefusedError(
            f"{folder} holds more than {MAX_CONFIDENTIAL_FILES} files, the most that are sealed for one release: "
            "join small ones"
        )
    _check_files(manifest, folder)
    _check_gates(manifest, folder)
    check_golden(manifest.golden, _bounded(paths[manifest.golden.inputs]), _bounded(paths[manifest.golden.outputs]))
    if len(manifest.encode()) > MAX_UNPAGED_BYTES:
        raise RefusedError(
            f"the manifest of {manifest.release} would exceed {MAX_UNPAGED_BYTES} bytes: use fewer files"
        )
    return Bundle(manifest, paths)


def check_golden(golden: Golden, inputs: bytes, outputs: bytes) -> None:
    """Checks that both files are Open Inference Protocol v2 JSON and pair up.

    Raises:
        RefusedError: naming the file, the item and what is wrong with it.
    """
    requests = _items(golden.inputs, inputs, "requests")
    responses = _items(golden.outputs, outputs, "responses")
    if len(requests) != len(responses):
        raise RefusedError(
            f"{golden.inputs} has {len(requests)} requests and {golden.outputs} has {len(responses)} responses: "
            "each request needs its response"
        )
    for name, items, key in ((golden.inputs, requests, "inputs"), (golden.outputs, responses, "outputs")):
        for index, item in enumerate(items):
            where = f"{name}: {key[:-1]} tensors of item {index}"
            tensors = item.get(key) if isinstance(item, dict) else None
            if not isinstance(tensors, list) or not tensors:
                raise RefusedError(f"{name}: item {index} has no list of {key}")
            for tensor in tensors:
                problem = _problem_with(tensor)
                if problem:
                    raise RefusedError(f"{where}: {problem}")


# --- release.toml ---------------------------------------------------------------------------------------------------


def _read_release_file(folder: Path) -> dict[str, Any]:
    path = folder / RELEASE_FILE
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder: name the one that holds {RELEASE_FILE}")
    if folder.joinpath(RELEASE_FILE).is_symlink():
        raise RefusedError(f"{path} is a link: a bundle holds no links, copy the file itself")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TOML_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing: write it (heliograph release add --explain lists its fields)") from error
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    return parse_toml(data, str(path))


def _check_fields(table: dict[str, Any], model: type[Document], prefix: str, folder: Path) -> None:
    """Refuses names that no model has, with the nearest one that exists."""
    fields = {(f.alias or n): f for n, f in model.model_fields.items() if n not in COMPUTED}
    for name, value in table.items():
        if name not in fields:
            where = f"in [{prefix[:-1]}] of " if prefix else "in "
            computed = f"; {name} is computed, leave it out" if name in COMPUTED else ""
            near = difflib.get_close_matches(name, fields, 1)
            hint = computed or (f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(fields)}")
            raise ConfigError(f"unknown field {name!r} {where}{folder / RELEASE_FILE}{hint}")
        inner = table_in(fields[name].annotation)
        if inner is not None:
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    _check_fields(item, inner, f"{prefix}{name}.", folder)


def _check_numbers(value: Any, where: str) -> None:
    """TOML has `nan` and `inf`; no limit or tolerance may be either."""
    if isinstance(value, float) and not math.isfinite(value):
        raise RefusedError(f"{where} is {value}: write a finite number")
    if isinstance(value, dict):
        for name, item in value.items():
            _check_numbers(item, f"{where}.{name}".lstrip("."))
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_numbers(item, f"{where}[{index}]")


def _parse(table: dict[str, Any], folder: Path) -> Manifest:
    try:
        return Manifest.model_validate(_tuples(table))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"]).lstrip(".")
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if where == "version":
            message = "write major.minor.patch, such as 1.0.0"
        elif first["type"] == "string_pattern_mismatch" and first["ctx"]["pattern"] in _LEGAL:
            what, legal = _LEGAL[first["ctx"]["pattern"]]
            message = f"{first['input']!r:.200} is {what}: {legal}"
        raise RefusedError(f"{folder / RELEASE_FILE}: {where + ': ' if where else ''}{message}") from error


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


# --- files ----------------------------------------------------------------------------------------------------------


def _listed(files: Any, folder: Path) -> list[str]:
    """Names from `files = ["a"]` or `[[files]] name = "a"`."""
    path = folder / RELEASE_FILE
    if not isinstance(files, list):
        raise RefusedError(f"{path}: files is not a list: write the names, or leave it out to take every file")
    names: list[Any] = [item.get("name") if isinstance(item, dict) else item for item in files]
    for name in names:
        if not isinstance(name, str):
            raise RefusedError(f"{path}: files holds {name!r}, which is not a name")
        if name == RELEASE_FILE:
            raise RefusedError(f"{path}: files names {RELEASE_FILE} itself: leave it out")
        if names.count(name) > 1:
            raise RefusedError(f"{path}: files names {name} twice")
    return names


def _found(folder: Path) -> list[str]:
    """Every file below the folder but release.toml; links and odd things are left for `_safe_path` to refuse."""
    names = []
    waiting = [folder]
    while waiting:
        for path in waiting.pop().iterdir():
            if path.is_dir() and not path.is_symlink():
                waiting.append(path)
            elif path != folder / RELEASE_FILE:
                names.append(path.relative_to(folder).as_posix())
    return names


def _safe_path(folder: Path, name: str) -> Path:
    if not is_safe_file_name(name):
        what, legal = _LEGAL[FILE_NAME_PATTERN]
        raise RefusedError(f"{folder}: {name!r:.200} is {what}: {legal}")
    path = folder
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise RefusedError(f"{path} is a link: a bundle holds no links, copy the file itself")
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise RefusedError(f"{name} is named in {folder / RELEASE_FILE} but is not in the folder") from error
    if not stat.S_ISREG(mode):
        raise RefusedError(f"{path} is not a regular file: a bundle holds only those")
    return path


def _described(name: str, path: Path) -> dict[str, Any]:
    pager = Pager()
    try:
        with path.open("rb") as file:
            while data := file.read(_READ_BYTES):
                pager.feed(data)
    except OSError as error:
        raise RefusedError(f"{path} can't be read: {error.strerror}") from error
    digest, pages = pager.finish()
    return {"name": name, "length": pager.length, "sha256": digest, "pages": list(pages)}


def _only_variant(names: list[str], folder: Path) -> dict[str, Any]:
    models = [name for name in names if Path(name).suffix in MODEL_SUFFIXES]
    if not models:
        raise RefusedError(
            f"{folder} holds no model file ({', '.join(MODEL_SUFFIXES)}): add it, or name one in [[variants]]"
        )
    if len(models) > 1:
        raise RefusedError(
            f"{folder} holds {len(models)} model files ({', '.join(models)}): say in [[variants]] which form has which"
        )
    return {"name": "default", "files": models, "runtime": MODEL_SUFFIXES[Path(models[0]).suffix]}


def _check_files(manifest: Manifest, folder: Path) -> None:
    loaded = {name for variant in manifest.variants for name in variant.files}
    golden = {manifest.golden.inputs, manifest.golden.outputs}
    evaluation = {manifest.evaluation.data} if manifest.evaluation else set()
    for name in sorted(loaded | golden | evaluation):
        if manifest.file(name).length == 0:
            raise RefusedError(f"{folder / name} is empty: a model, golden or evaluation file can't be")
    if manifest.golden.inputs == manifest.golden.outputs:
        raise RefusedError(f"golden.inputs and golden.outputs are both {manifest.golden.inputs}: they are two files")
    names = [variant.name for variant in manifest.variants]
    for name in names:
        if names.count(name) > 1:
            raise RefusedError(f"two variants are called {name}: give each its own name")


def _check_gates(manifest: Manifest, folder: Path) -> None:
    where = folder / RELEASE_FILE
    names = [gate.name for gate in manifest.gates]
    for gate in manifest.gates:
        if names.count(gate.name) > 1:
            raise RefusedError(f"{where}: gate {gate.name} stands twice: keep one limit")
        if gate.min_samples < 1:
            raise RefusedError(f"{where}: gate {gate.name} has min_samples 0: it would judge without a measurement")
        if gate.name not in GATES:
            near = difflib.get_close_matches(gate.name, GATES, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(GATES)}"
            raise RefusedError(f"{where}: gate {gate.name} is none that a node can judge; {hint}")
        if gate.limit < 0 or (gate.name == "error-share" and gate.limit > 1):
            raise RefusedError(f"{where}: gate {gate.name} has limit {gate.limit:g}: it is {GATES[gate.name]}")
        if gate.name in MEASURED_ONCE and gate.min_samples > 1:
            raise RefusedError(f"{where}: gate {gate.name} is measured once: its min_samples can only be 1")
    if manifest.soak.max_s < 1:
        raise RefusedError(f"{where}: soak.max_s is 0: probation needs time, at least 1 second")
    for name in manifest.crit:
        if name not in Manifest.model_fields:
            raise RefusedError(f"{where}: crit names {name}, which is no field: no agent would run the release")
    for name in ("config", "policy"):
        span = getattr(manifest.compatible, name)
        if span.max is not None and span.min > span.max:
            raise RefusedError(f"{where}: compatible.{name}.min {span.min} exceeds its max {span.max}")


# --- golden files ---------------------------------------------------------------------------------------------------


def _bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_GOLDEN_BYTES + 1)
    if len(data) > MAX_GOLDEN_BYTES:
        raise RefusedError(f"{path} exceeds {MAX_GOLDEN_BYTES} bytes: keep fewer golden inputs")
    return data


def _items(name: str, data: bytes, key: str) -> list[Any]:
    if data.count(b"[") + data.count(b"{") > MAX_GOLDEN_CONTAINERS:
        raise RefusedError(f"{name} nests more than {MAX_GOLDEN_CONTAINERS} lists and objects: keep fewer or flat ones")
    try:
        value = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"{name} is not JSON: {str(error)[:200].lower()}") from error
    if not isinstance(value, dict) or not isinstance(value.get(key), list):
        raise RefusedError(f'{name} is not a golden file: it must be {{"{key}": [...]}}')
    if not value[key]:
        raise RefusedError(f"{name} has no {key}: at least one golden input must be checked")
    return list(value[key])


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _problem_with(tensor: Any) -> str | None:
    """What keeps one tensor from being Open Inference Protocol v2 with its data in the JSON."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        return "one has no name"
    name, shape, data = tensor["name"][:80], tensor.get("shape"), tensor.get("data")
    if tensor.get("datatype") not in _DATATYPES:
        return f"{name} has datatype {str(tensor.get('datatype'))[:40]!r}, known are {', '.join(sorted(_DATATYPES))}"
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        return f"{name} has no shape of whole numbers"
    if not isinstance(data, list):
        return f"{name} has no data"
    values = list(_flat(data))
    if len(shape) > MAX_RANK or any(size > len(data) * MAX_GOLDEN_BYTES for size in shape):
        return f"{name} has a shape of more sizes, or larger ones, than it has values for"
    if len(values) != math.prod(shape):
        return f"{name} of shape {shape} needs {math.prod(shape)} values and has {len(values)}"
    allowed: tuple[type, ...] = {"BYTES": (str,), "BOOL": (bool, int)}.get(tensor["datatype"], (int, float))
    odd = next((value for value in values if type(value) not in allowed), None)
    return None if odd is None else f"{name} holds {str(odd)[:40]!r}, which is no {tensor['datatype']}"


def _flat(data: list[Any]) -> Iterator[Any]:
    """The values of a list nested to any depth, without recursion: the nesting is the file's choice."""
    waiting = [iter(data)]
    while waiting:
        for item in waiting[-1]:
            if isinstance(item, list):
                waiting.append(iter(item))
                break
            yield item
        else:
            waiting.pop()

"""Release folders for the digits models: what `heliograph release add` is given in tests and in the demo.

Golden outputs are made by running the interpreter here, once per folder; the same model gives the same folder. Their
tolerance is 2: tflite-runtime 2.14 and ai-edge-litert 2.3 differ by so much over the held-out set.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tflite_runtime.interpreter import Interpreter

DATA = Path(__file__).resolve().parent / "data" / "digits"
BASE = DATA / "digits_base_int8.tflite"
HEAD = DATA / "digits_head_int8.tflite"
SLOW = DATA / "digits_slow_int8.tflite"
GOLDEN_REQUESTS = 4
SMALLEST_LAYER = 4096


def images(count: int = 297, data_dir: Path = DATA) -> Any:
    """The first images of the held-out set, as the models take them: int8 [count, 16, 16, 1]."""
    with np.load(data_dir / "digits_eval.npz") as data:
        pixels = data["images"][:count]
    return np.clip(np.round(pixels * 255.0) - 128, -128, 127).astype(np.int8).reshape(-1, 16, 16, 1)


def labels(count: int = 297) -> list[int]:
    """What those images show."""
    with np.load(DATA / "digits_eval.npz") as data:
        return [int(label) for label in data["labels"][:count]]


def run_directly(model: bytes, batch: Any) -> Any:
    """Logits int8 [n, 10] of images int8 [n, 16, 16, 1], by the interpreter in this process, one by one."""
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    given, gives = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    rows = []
    for image in batch:
        interpreter.set_tensor(given, image[np.newaxis])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(gives)[0].copy())
    return np.stack(rows)


def sample_request(data_dir: Path = DATA, index: int = 0) -> dict[str, Any]:
    """An infer request in JSON for one held-out image."""
    return _request(images(index + 1, data_dir)[index])


def digits_bundle(folder: Path, version: str, model: Path = BASE, *, soak_max_s: int = 5) -> Path:
    """Writes the release folder `digits@version` of a model file, and returns it.

    Without traffic its probation ends, unproven, after `soak_max_s`.
    """
    content = model.read_bytes()
    _write(folder, version, content, golden_of=content, soak_max_s=soak_max_s)
    return folder


def wrong_bundle(folder: Path, version: str, model: Path = HEAD) -> Path:
    """Writes a release folder in perfect order whose model gives other outputs than its golden file says.

    The golden outputs are those of `model`; the model in the folder has the weights of one layer inverted.
    """
    content = model.read_bytes()
    _write(folder, version, altered(content), golden_of=content)
    return folder


def slow_bundle(folder: Path, version: str, limit_ms: float = 60.0, min_samples: int = 20) -> Path:
    """Writes a release folder whose golden outputs are right and whose every answer takes some 24 times as long.

    Its own p95 gate says `limit_ms`.
    """
    content = SLOW.read_bytes()
    _write(folder, version, content, golden_of=content, soak_max_s=60)
    with (folder / "release.toml").open("a") as file:
        file.write(f'\n[[gates]]\nname = "p95-ms"\nlimit = {limit_ms}\nmin_samples = {min_samples}\n')
    return folder


def paired_bundle(folder: Path, version: str, model: Path = BASE, *, config: int, generation: int) -> Path:
    """Writes a release folder that serves with config number `config` or newer, on features of this generation only."""
    content = model.read_bytes()
    _write(folder, version, content, golden_of=content, soak_max_s=60)
    file = folder / "release.toml"
    text = file.read_text().replace("generations = [1]", f"generations = [{generation}]")
    file.write_text(f"{text}\n[compatible]\nconfig = {{ min = {config} }}\n")
    return folder


def altered(model: bytes) -> bytes:
    """The model with the weights of its last large layer inverted: it loads, runs, and answers wrongly."""
    begin, end = _last_weights(model)
    return model[:begin] + bytes(weight ^ 0x7F for weight in model[begin:end]) + model[end:]


def _last_weights(model: bytes) -> tuple[int, int]:
    """Where a large int8 tensor near the end of the network lies in the file."""
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    for detail in reversed(interpreter.get_tensor_details()):
        if detail["dtype"] is np.int8 and np.prod(detail["shape"]) >= SMALLEST_LAYER:
            try:
                weights = interpreter.get_tensor(detail["index"]).tobytes()
            except ValueError:  # not a constant
                continue
            found = model.find(weights)
            if found >= 0 and len(set(weights)) > 64:  # buffers of activations read as zeros
                return found, found + len(weights)
    raise AssertionError("the model has no int8 weights to alter")


def _write(folder: Path, version: str, content: bytes, golden_of: bytes, soak_max_s: int = 5) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "golden").mkdir(parents=True)
    batch = images(GOLDEN_REQUESTS)
    requests = [_request(image) for image in batch]
    responses = [_response(version, logits) for logits in run_directly(golden_of, batch)]
    (folder / "model.tflite").write_bytes(content)
    (folder / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(10)))
    (folder / "golden" / "inputs.json").write_text(json.dumps({"requests": requests}))
    (folder / "golden" / "outputs.json").write_text(json.dumps({"responses": responses}))
    (folder / "release.toml").write_text(
        f"""\
model = "digits"
version = "{version}"
fail_mode = "safe"

[[variants]]
name = "int8"
files = ["model.tflite", "labels.txt"]
runtime = "tflite"
min_runtime = "2.14"

[schema]
feature = "digits-16x16"
generations = [1]

[provenance]
dataset = "UCI Optical Recognition of Handwritten Digits (CC BY 4.0)"

[golden]
inputs = "golden/inputs.json"
outputs = "golden/outputs.json"
tolerance = 2.0

[soak]
min_s = 1
max_s = {soak_max_s}
"""
    )


def _request(image: Any) -> dict[str, Any]:
    data = [int(value) for value in image.reshape(-1)]
    return {"inputs": [{"name": "keras_tensor", "datatype": "INT8", "shape": [1, 16, 16, 1], "data": data}]}


def _response(version: str, logits: Any) -> dict[str, Any]:
    data = [int(value) for value in logits]
    outputs = [{"name": "output_0", "datatype": "INT8", "shape": [1, 10], "data": data}]
    return {"model_name": "digits", "model_version": version, "outputs": outputs}

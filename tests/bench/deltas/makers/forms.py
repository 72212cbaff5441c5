"""Writes pairs of model files from trained weights; runs in the throw-away environment, needs numpy, gguf and onnx.

    python forms.py FORM OLD_WEIGHTS NEW_WEIGHTS WEIGHTS_FOLDER MINILM_FOLDER OUT_FOLDER

`old` and `new` appear in `OUT_FOLDER`, and `layout.json`: where each tensor stands, as
[name, offset, length, dtype, shape]; what belongs together has the same name in both.
"""

import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safe

Array = safe.Array
Tensors = dict[str, Array]
Layout = list[list[Any]]
Writer = Callable[[Path, Tensors], Layout]


def f32(path: Path, tensors: Tensors) -> Layout:
    """As trained."""
    return safe.write(path, tensors)


def bf16(path: Path, tensors: Tensors) -> Layout:
    """Rounded to bfloat16."""
    return safe.write(path, {name: safe.bfloat16(array) for name, array in tensors.items()}, bf16=True)


def f16(path: Path, tensors: Tensors) -> Layout:
    """Rounded to half precision."""
    return safe.write(path, {name: array.astype(np.float16) for name, array in tensors.items()})


def quantised(tensors: Tensors, share: float = 1.0) -> Tensors:
    """Matrices as int8 with a float32 scale a row, from its largest value or a quantile; vectors as they are."""
    out: Tensors = {}
    for name, array in tensors.items():
        if array.ndim != 2:
            out[name] = array
            continue
        largest = np.quantile(np.abs(array), share, axis=1) if share < 1 else np.abs(array).max(axis=1)
        scale = (largest / 127).astype(np.float32)
        out[name] = np.clip(np.rint(array / scale[:, None]), -127, 127).astype(np.int8)
        out[name + "_scale"] = scale
    return out


def int8(path: Path, tensors: Tensors) -> Layout:
    """Quantised a row."""
    return safe.write(path, quantised(tensors))


def clipped(path: Path, tensors: Tensors) -> Layout:
    """Quantised a row, with scales that clip one value in 500."""
    return safe.write(path, quantised(tensors, 0.998))


def renamed(path: Path, tensors: Tensors) -> Layout:
    """Another framework's names, in another order."""
    names = {name: "model." + name.replace("encoder.layer", "layers").replace(".dense.", ".") for name in tensors}
    order = sorted(tensors, key=lambda name: names[name][::-1])
    layout = bf16(path, {names[name]: tensors[name] for name in order})
    return [[name, *row[1:]] for name, row in zip(order, layout, strict=True)]


def resized(path: Path, tensors: Tensors) -> Layout:
    """Four more classes and 64 more inner units in the first layer."""
    rng = np.random.Generator(np.random.PCG64(12))
    more = {
        "classifier.weight": (4, 0), "classifier.bias": (4,), "encoder.layer.0.intermediate.dense.weight": (64, 0),
        "encoder.layer.0.intermediate.dense.bias": (64,), "encoder.layer.0.output.dense.weight": (0, 64),
    }  # fmt: skip
    grown = dict(tensors)
    for name, extra in more.items():
        array = rng.normal(0, 0.02, [have + plus for have, plus in zip(tensors[name].shape, extra, strict=True)])
        array[tuple(slice(have) for have in tensors[name].shape)] = tensors[name]
        grown[name] = array.astype(np.float32)
    return f16(path, grown)


def gguf(path: Path, tensors: Tensors, kind: str) -> Layout:
    """llama.cpp's format: matrices as `kind`, vectors as float32."""
    import gguf as lib

    writer = lib.GGUFWriter(path, "bert")
    writer.add_name("minilm, two layers")
    writer.add_block_count(2)
    types = {"f16": lib.GGMLQuantizationType.F16, "q8_0": lib.GGMLQuantizationType.Q8_0,
             "q4_0": lib.GGMLQuantizationType.Q4_0}  # fmt: skip
    for name, array in tensors.items():
        if array.ndim == 2:
            writer.add_tensor(name, lib.quants.quantize(array, types[kind]), raw_dtype=types[kind])
        else:
            writer.add_tensor(name, array)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return [
        [row.name, int(row.data_offset), int(row.n_bytes), row.tensor_type.name.lower(), row.shape.tolist()[::-1]]
        for row in lib.GGUFReader(path).tensors
    ]


def onnx(path: Path, tensors: Tensors) -> Layout:
    """A graph of DequantizeLinear and MatMul nodes with int8 initializers."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, initializers = [], []
    for name, array in quantised(tensors).items():
        initializers.append(numpy_helper.from_array(array, name))
        if array.dtype == np.int8:
            nodes.append(helper.make_node("DequantizeLinear", [name, name + "_scale"], [name + "_f"], axis=0))
            nodes.append(helper.make_node("MatMul", ["x", name + "_f"], [name + "_y"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 384])]
    graph = helper.make_graph(nodes, "layers", inputs, [], initializers)
    data = helper.make_model(graph, producer_name="bench", ir_version=10).SerializeToString(deterministic=True)
    path.write_bytes(data)
    layout: Layout = []
    at = 0
    for tensor in initializers:
        at = data.index(tensor.raw_data, at)
        kind = "i8" if tensor.data_type == TensorProto.INT8 else "f32"
        layout.append([tensor.name, at, len(tensor.raw_data), kind, list(tensor.dims)])
        at += len(tensor.raw_data)
    return layout


def bundle(path: Path, tensors: Tensors, minilm: Path, note: str) -> Layout:
    """A tar of configuration, vocabulary and bfloat16 weights."""
    inner = path.with_suffix(".inner")
    layout = bf16(inner, tensors)
    files = {
        "config.json": json.dumps(
            {**json.loads((minilm / "config.json").read_text()), "note": note}, indent=1
        ).encode(),
        "vocab.txt": (minilm / "vocab.txt").read_bytes(),
        "model.safetensors": inner.read_bytes(),
    }
    inner.unlink()
    start = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            start = tar.offset + 512
            tar.addfile(entry, io.BytesIO(data))
    return [[name, start + at, *rest] for name, at, *rest in layout]


FORMS: dict[str, tuple[Writer, Writer]] = {
    "f32": (f32, f32),
    "bf16": (bf16, bf16),
    "f16": (f16, f16),
    "int8": (int8, int8),
    "requantised": (int8, clipped),
    "renamed": (bf16, renamed),
    "resized": (f16, resized),
    "onnx": (onnx, onnx),
    **{
        f"gguf-{kind}": (lambda path, tensors, kind=kind: gguf(path, tensors, kind),) * 2  # type: ignore[misc]
        for kind in ("f16", "q8_0", "q4_0")
    },
}


def main() -> None:
    """Writes one pair: FORM OLD_WEIGHTS NEW_WEIGHTS MINILM_FOLDER OUT_FOLDER."""
    form, old, new = sys.argv[1:4]
    weights, minilm, out = map(Path, sys.argv[4:7])
    layouts = {}
    for side, (name, writer) in enumerate(zip((old, new), FORMS.get(form, (f32, f32)), strict=True)):
        path = out / ("old", "new")[side]
        tensors = dict(np.load(weights / f"{name}.npz"))
        if form == "tar":
            layouts[path.name] = bundle(path, tensors, minilm, "base" if side == 0 else "fine-tuned further, 40 steps")
        else:
            layouts[path.name] = writer(path, tensors)
    (out / "layout.json").write_text(json.dumps(layouts))


if __name__ == "__main__":
    main()

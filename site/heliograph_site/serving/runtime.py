"""Model runtimes: the only module that imports one, and numpy. Lives in forkserver and workers, never in the gateway.

One adapter drives tflite-runtime and ai-edge-litert, which share an interface. Which one is found out by constructing
an interpreter: tflite-runtime imports under numpy 2 and fails only then.
"""

import struct
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import numpy as np

from heliograph.errors import RefusedError
from heliograph_site.serving.inference import Tensor, TensorSpec, values_of

_CANDIDATES: Final = (
    ("tflite-runtime", "tflite_runtime.interpreter"),
    ("ai-edge-litert", "ai_edge_litert.interpreter"),
)
_NAMES: Final = {
    np.dtype(np.bool_): "BOOL", np.dtype(np.int8): "INT8", np.dtype(np.int16): "INT16", np.dtype(np.int32): "INT32",
    np.dtype(np.int64): "INT64", np.dtype(np.uint8): "UINT8", np.dtype(np.uint16): "UINT16",
    np.dtype(np.uint32): "UINT32", np.dtype(np.uint64): "UINT64", np.dtype(np.float16): "FP16",
    np.dtype(np.float32): "FP32", np.dtype(np.float64): "FP64", np.dtype(np.bytes_): "BYTES",
}  # fmt: skip
_DTYPES: Final = {name: dtype for dtype, name in _NAMES.items()}


class UnrunnableError(RefusedError):
    """No runtime on this node runs the model, or the model failed on these inputs."""


def preload() -> list[str]:
    """Imports every runtime there is, so that forked workers share its pages; returns their names."""
    return [name for name, _ in _installed()]


class TfliteModel:
    """A TFLite model, loaded and ready. One thread at a time."""

    def __init__(self, content: bytes, threads: int = 1) -> None:
        """Loads the model from memory; `content` is kept, the runtime reads from it.

        Raises:
            UnrunnableError: the runtime refuses it. (A hostile file may also crash the process: run this in a worker.)
        """
        self.runtime, self._interpreter = _construct(content, threads)
        names_in, names_out = _signature_names(self._interpreter)
        details_in = self._interpreter.get_input_details()
        details_out = self._interpreter.get_output_details()
        self.inputs = tuple(_spec(detail, names_in) for detail in details_in)
        self.outputs = tuple(_spec(detail, names_out) for detail in details_out)
        self._in = [int(detail["index"]) for detail in details_in]
        self._out = [int(detail["index"]) for detail in details_out]
        self._shapes = [tuple(int(size) for size in detail["shape"]) for detail in details_in]
        self._dtypes = [_DTYPES[spec.datatype] for spec in self.inputs]

    def run(self, inputs: Sequence[tuple[tuple[int, ...], memoryview]]) -> list[tuple[tuple[int, ...], bytes]]:
        """Outputs (shape, raw bytes) for inputs (shape, raw bytes), both in the model's order.

        Raises:
            UnrunnableError: the runtime failed on them.
        """
        interpreter = self._interpreter
        try:
            for at, (shape, _) in enumerate(inputs):
                if shape != self._shapes[at]:
                    interpreter.resize_tensor_input(self._in[at], list(shape))
            if any(shape != held for (shape, _), held in zip(inputs, self._shapes, strict=True)):
                interpreter.allocate_tensors()
                self._shapes = [shape for shape, _ in inputs]
            for at, (shape, data) in enumerate(inputs):
                interpreter.set_tensor(self._in[at], self._array(at, shape, data))
            interpreter.invoke()
            return [_raw(interpreter.get_tensor(index)) for index in self._out]
        except (ValueError, RuntimeError) as error:
            raise UnrunnableError(f"the runtime failed: {_sentence(error)}") from error

    def _array(self, at: int, shape: tuple[int, ...], data: memoryview) -> Any:
        spec = self.inputs[at]
        if spec.datatype == "BYTES":
            return np.array(values_of(Tensor(spec.name, "BYTES", shape, data)), dtype=np.object_).reshape(shape)
        return np.frombuffer(data, dtype=self._dtypes[at]).reshape(shape)


def _installed() -> list[tuple[str, Any]]:
    found = []
    for name, module in _CANDIDATES:
        try:
            found.append((name, import_module(module)))
        except ImportError:
            continue
    return found


def _construct(content: bytes, threads: int) -> tuple[str, Any]:
    reasons = []
    for name, module in _installed():
        try:
            interpreter = module.Interpreter(model_content=content, num_threads=threads)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError, ImportError, AttributeError, SystemError) as error:
            reasons.append(f"{name}: {_sentence(error)}")
            continue
        try:
            return f"{name} {version(name)}", interpreter
        except PackageNotFoundError:
            return name, interpreter
    raise UnrunnableError("; ".join(reasons) or "no model runtime is installed: install heliograph[site]")


def _signature_names(interpreter: Any) -> tuple[dict[int, str], dict[int, str]]:
    """Tensor index to the signature's own name, where there is exactly one signature; it outlives a conversion."""
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        return {}, {}
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    return (
        {int(detail["index"]): name for name, detail in runner.get_input_details().items()},
        {int(detail["index"]): name for name, detail in runner.get_output_details().items()},
    )


def _spec(detail: Any, names: dict[int, str]) -> TensorSpec:
    datatype = _NAMES.get(np.dtype(detail["dtype"]))
    if datatype is None:
        raise UnrunnableError(f"tensor {detail['name']} has type {detail['dtype']}, which the protocol can't carry")
    open_shape = detail.get("shape_signature")
    shape = open_shape if open_shape is not None and len(open_shape) == len(detail["shape"]) else detail["shape"]
    return TensorSpec(names.get(int(detail["index"]), detail["name"]), datatype, tuple(int(size) for size in shape))


def _raw(array: Any) -> tuple[tuple[int, ...], bytes]:
    if array.dtype.kind in "OS":
        parts = [struct.pack("<I", len(item)) + item for item in array.reshape(-1).tolist()]
        return tuple(array.shape), b"".join(parts)
    return tuple(array.shape), array.tobytes()


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

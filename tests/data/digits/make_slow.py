"""Makes `digits_slow_int8.tflite`: the head model with its convolutions done many times over.

The weights, the inputs and the outputs are those of `digits_head_int8.tflite`; only the list of operators is longer, so
a delta against it is small and golden outputs pass. Nothing in the product knows of it. Run once, with two packages in
a throw-away environment:

    pip install ai-edge-litert flatbuffers
    python tests/data/digits/make_slow.py
"""

import hashlib
from pathlib import Path

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

FOLDER = Path(__file__).resolve().parent
TIMES = 40
"""How often every operator but the last stands in the list."""


def slowed(model: bytes, times: int) -> bytes:
    """The model with all operators before the last one listed `times` times, in order: each round computes the same."""
    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    graph = tree.subgraphs[0]
    *before, last = graph.operators
    graph.operators = [*before * times, last]
    builder = flatbuffers.Builder(len(model) + 65536)
    builder.Finish(tree.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def main() -> None:
    """Writes the file beside the one it is made of."""
    content = slowed((FOLDER / "digits_head_int8.tflite").read_bytes(), TIMES)
    (FOLDER / "digits_slow_int8.tflite").write_bytes(content)
    print(f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()

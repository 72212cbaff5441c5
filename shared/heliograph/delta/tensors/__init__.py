"""Which tensors a blob holds, and where: tflite, safetensors, ONNX, GGUF, and tar and zip bundles of these.

Parsers read headers only, whatever the blob's size. What is odd, damaged, hostile or unknown just has no tensors: a
delta is exact without them, and only larger.
"""

from collections.abc import Callable, Iterator

from heliograph.delta.buffer import Buffer
from heliograph.delta.tensors import gguf, onnx, safetensors, tflite
from heliograph.delta.tensors.bundle import Member, tar_members, zip_members
from heliograph.delta.tensors.table import MAX_TENSORS, OddError, Tensor, View, in_order, of_member

__all__ = ["Tensor", "tables"]

_FORMATS: tuple[Callable[[View], list[Tensor | None]], ...] = (
    tflite.tensors, safetensors.tensors, gguf.tensors, onnx.tensors,
)  # fmt: skip
_BUNDLES: tuple[Callable[[View], Iterator[Member]], ...] = (tar_members, zip_members)


def tables(data: Buffer) -> tuple[Tensor, ...]:
    """The tensors of a blob, by their place in it; none overlaps another. Never fails: odd bytes hold none.

    Bundles are looked into one level deep. At most 2^16 tensors, else none.
    """
    whole = View(data)
    found = list(_plain(whole))
    for members in () if found else _BUNDLES:
        try:
            for name, at, size in members(whole):
                found += of_member(_plain(whole.part(at, size)), name)
                if len(found) > MAX_TENSORS:
                    return ()
        except OddError:
            continue  # what stood before the damage still is where it is
    return in_order(found)


def _plain(view: View) -> tuple[Tensor, ...]:
    """The tensors of one file that is no bundle."""
    for tensors in _FORMATS:
        try:
            return in_order(tensors(view))
        except OddError:
            pass
    return ()

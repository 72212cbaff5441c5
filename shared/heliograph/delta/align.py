"""Says where in an old blob the like of each part of a new one stands; pure over buffers, and deterministic."""

from dataclasses import dataclass

from heliograph.delta.anchors import Buffer
from heliograph.delta.dtypes import Dtype


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the new blob and its like in the old one; the spans of a blob tile it in order.

    Attributes:
        new: where it begins in the new blob.
        length: bytes, at least 1; whole elements of `dtype`.
        old: where its like begins in the old blob, as long as this and within it: element i belongs to element i.
            None: nothing like it was found.
        dtype: what the elements are; None: bytes of no known type.
    """

    new: int
    length: int
    old: int | None
    dtype: Dtype | None


def aligned(old: Buffer, new: Buffer) -> list[Span]:
    """The spans of `new`, in order and without gap."""
    both = min(len(old), len(new))
    spans = [Span(0, both, 0, None), Span(both, len(new) - both, None, None)]
    return [span for span in spans if span.length]

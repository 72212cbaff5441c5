"""Makes of control tuples what `edits` packs best; pure but for numpy, and deterministic.

1. Tuples that hardly fit (short ones, whose bytes mostly differ) are given up: their bytes are taken as they are.
2. What is unchanged and not short is copied, so that neither packing nor adding sees it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from heliograph.delta.edits import Edit, Run

LEAST_COPY_BYTES = 256
"""Fewer unchanged bytes than this are added to: zeros cost less than the numbers of a tuple."""
_LEAST_ADD_BYTES = 12
_SHORT_BYTES = 1024
_FITTING = 0.15
"""Which part of a short tuple's bytes may differ."""


def pruned(found: Sequence[Edit], old: bytes, new: bytes) -> list[Edit]:
    """The tuples without those that cost more than they save; `new` is what they make."""
    out: list[Edit] = []
    at = 0
    for edit in found:
        differing = int(np.count_nonzero(_differs(edit, old, new, at)))
        at += edit.add + edit.take
        if edit.add < _LEAST_ADD_BYTES or (edit.add < _SHORT_BYTES and differing > _FITTING * edit.add):
            last = out.pop() if out else Edit(0, 0, 0)
            out.append(replace(last, take=last.take + edit.add + edit.take))
        else:
            out.append(edit)
    return out


def runs_of(found: Sequence[Edit], old: bytes, new: bytes, width: int) -> list[Run]:
    """The tuples, parted so that unchanged bytes are copied; what is added to begins and ends between words."""
    out: list[Run] = []
    at = 0
    for edit in found:
        places = np.flatnonzero(_differs(edit, old, new, at))
        gaps = np.flatnonzero(np.diff(places) > LEAST_COPY_BYTES)
        begins = places[np.concatenate([[0], gaps + 1])].tolist() if len(places) else []
        ends = places[np.concatenate([gaps, [len(places) - 1]])].tolist() if len(places) else []
        done = 0
        for begin, end in zip(begins, ends, strict=True):
            begin = max(done, begin - (at + begin) % width)
            end = min(edit.add, end + 1 + -(at + end + 1) % width)
            if begin < LEAST_COPY_BYTES and not done:
                begin = 0  # one number less
            out.append(Run(edit.old + done, begin - done, end - begin, 0))
            done = end
        if done and done == edit.add:
            out[-1] = replace(out[-1], take=edit.take)
        elif edit.add or edit.take:
            out.append(Run(edit.old + done, edit.add - done, 0, edit.take))
        at += edit.add + edit.take
    return out


def _differs(edit: Edit, old: bytes, new: bytes, at: int) -> NDArray[np.bool_]:
    """Of each byte that the tuple adds to, whether it changes."""
    before = np.frombuffer(old, np.uint8, edit.add, edit.old) if edit.add else np.empty(0, np.uint8)
    after = np.frombuffer(new, np.uint8, edit.add, at) if edit.add else np.empty(0, np.uint8)
    return np.not_equal(before, after)

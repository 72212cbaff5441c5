"""Rebuilds a file as a node does, its patch coming leaf by leaf; in a process of its own.

    python -P segments.py OLD DELTA NEW

Prints JSON: `patch_bytes`; `segments` that need any of them; `first_bytes` had come when the first of these stood
(nothing more comes until all stands that can); `late` were made only when the last leaf had come; `start_cpu_s` of
children; and by operation the new bytes and the CPU seconds that they took, here and in the child: decoding, checking
on both sides, the pipe between, and the write.
"""

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from heliograph.blob import LEAF_BYTES, PAGE_SPAN_BYTES, Digest, page_of
from heliograph.delta.apart import Apart
from heliograph.delta.file import parts
from heliograph.delta.recipe import OPS, Recipe, Segment
from heliograph.documents import Chunk
from heliograph.source import Source
from heliograph.transfer import Arrival, BlobFetch
from heliograph_site.holdings import Holding, Holdings
from heliograph_site.rebuilding import Rebuild
from heliograph_site.slots import PartialBlob

HANDLE = b"hndl"


class Base(Holdings):
    """The old file, where it stands."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, digest: Digest) -> Holding | None:
        """It, whatever is asked for; what is rebuilt from another doesn't verify."""
        return Holding(self._path, self._path.stat().st_size)


class Metered:
    """Rebuilds segments in a child and counts CPU; the first segment of each child twice, to tell what its start takes.

    Attributes:
        start_s: what starts of children took.
        took_s: the last segment, here and there.
        here_s: all that was computed here, in this process.
    """

    def __init__(self, base: Source, patch: Source | None) -> None:
        self._apart = Apart(base, patch)
        self._child = 0
        self.start_s = self.took_s = self.here_s = 0.0

    def rebuild(self, segment: Segment) -> bytes | bytearray:
        """The segment, verified."""
        here, there = time.process_time(), _cpu_s(self._child)
        out = self._apart.rebuild(segment)
        child = _child()
        if child != self._child:
            self._child = child
            first_s = time.process_time() - here + _cpu_s(child)
            before, there = time.process_time(), _cpu_s(child)
            out = self._apart.rebuild(segment)
            self.took_s = time.process_time() - before + _cpu_s(child) - there
            self.start_s += max(0.0, first_s - self.took_s)
        else:
            self.took_s = time.process_time() - here + _cpu_s(child) - there
        self.here_s += time.process_time() - here
        return out

    def close(self) -> None:
        """Ends the child."""
        self._apart.close()


def _child() -> int:
    """The process that this one has; 0: none."""
    me = os.getpid()
    return int((Path(f"/proc/{me}/task/{me}/children").read_text().split() or ["0"])[0])


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, by the clock that the kernel keeps for it."""
    return time.clock_gettime(~pid << 3 | 2) if pid else 0.0


def main() -> None:
    """Rebuilds one file."""
    old, delta, new = map(Path, sys.argv[1:4])
    with parts(delta) as (recipe, _encoded, _patch):
        pass
    sent = Source(os.open(delta, os.O_RDONLY | os.O_CLOEXEC), delta.stat().st_size - recipe.patch_length)
    patch = None
    if recipe.patch_length:
        fetch = BlobFetch(recipe.patch_sha256, recipe.patch_length, recipe.patch_pages, HANDLE)
        patch = PartialBlob(new.with_name(f"{new.name}.patch"), new.with_name(f"{new.name}.pages"), fetch)
        patch.open()
    metered: list[Metered] = []

    def join(*sources: Source | None) -> Metered:
        base, of_patch = sources
        assert base is not None, "there is one"
        metered.append(Metered(base, of_patch))
        return metered[0]

    rebuild = Rebuild(new, recipe, Base(old), join)
    rebuild.open()
    facts = _rebuilt(rebuild, recipe, patch, sent, metered)
    rebuild.close()
    if patch is not None:
        patch.close()
    print(json.dumps(facts))


def _rebuilt(
    rebuild: Rebuild, recipe: Recipe, patch: PartialBlob | None, sent: Source, metered: list[Metered]
) -> dict[str, object]:
    """What is printed."""
    ops: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    # What needs nothing of the patch stands when nothing has come, wherever its empty range is.
    ends = sorted(sum(segment.patch) if segment.patch[1] else 0 for segment in recipe.segments)
    stood = first = patched = late = 0
    for come in _arrivals(recipe, patch, sent):
        if stood == len(ends) or ends[stood] > come:
            continue
        for index in rebuild.ready(patch):
            segment = recipe.segments[index]
            begun, before = time.process_time(), metered[0].here_s if metered else 0.0
            rebuild.make(index, patch)
            written_s = time.process_time() - begun - (metered[0].here_s - before)
            row = ops[OPS[segment.op].name]
            row[0] += segment.length
            row[1] += metered[0].took_s + max(0.0, written_s)
            stood += 1
            if segment.patch[1]:
                first = first or come
                patched += 1
                late += come == recipe.patch_length
    assert rebuild.is_complete, "the whole patch has come"
    return {
        "patch_bytes": recipe.patch_length,
        "first_bytes": first,
        "segments": patched,
        "late": late,
        "start_cpu_s": round(sum(one.start_s for one in metered), 3),
        "ops": {name: [int(size), round(cpu_s, 4)] for name, (size, cpu_s) in ops.items()},
    }


def _arrivals(recipe: Recipe, patch: PartialBlob | None, sent: Source) -> Iterator[int]:
    """Gives the patch what is sent; yields how much has come, from nothing on."""
    yield 0
    if patch is None:
        return
    length = recipe.patch_length
    for page, at in enumerate(range(0, length, PAGE_SPAN_BYTES)):
        data = page_of(sent.read(at, min(PAGE_SPAN_BYTES, length - at)))
        patch.take(Arrival(patch.fetch, patch.fetch.accept(Chunk(handle=HANDLE, page=page, bytes=data))))
    for at in range(0, length, LEAF_BYTES):
        data = sent.read(at, min(LEAF_BYTES, length - at))
        patch.take(Arrival(patch.fetch, patch.fetch.accept(Chunk(handle=HANDLE, offset=at, bytes=data))))
        yield at + len(data)


if __name__ == "__main__":
    main()

"""What a node's disk keeps: a journal in memory that survives what the node doesn't, and half-done files that tear.

`Journal` stands for `heliograph_site.journal.Journal`, whose transactions are tested elsewhere; a save is whole or not
at all. Objects and half-done files are real ones; `tear` does to those what a power cut does to unsynced pages.
"""

from pathlib import Path
from random import Random

from heliograph.delta.patch import rebuild_segment
from heliograph.delta.recipe import Segment
from heliograph.source import Source
from heliograph_site.journal import Held, Paper
from heliograph_site.memory import Memory
from heliograph_site.outbox import Outbox


class Joined:
    """Stands for `heliograph.delta.apart.Apart`: what a child would do, done here."""

    def __init__(self, base: Source, patch: Source | None) -> None:
        self._base, self._patch = base, patch

    def rebuild(self, segment: Segment) -> bytes | bytearray:
        data = b"" if self._patch is None or not segment.patch[1] else self._patch.read(*segment.patch)
        return rebuild_segment(segment, self._base.read, data)

    def close(self) -> None:
        pass


class Journal:
    """The memory of a node."""

    def __init__(self, path: Path, trusted: bytes) -> None:
        self.path = path
        self._memories: dict[str, Memory] = {}
        self._held: dict[tuple[str, str], Held] = {}
        self._papers: dict[tuple[str, str, int], Paper] = {}
        self._trusted = trusted
        self._denials: bytes | None = None
        self._was_orderly = True

    def save(self, *memories: Memory, denials: bytes | None = None) -> None:
        self._memories |= {memory.model: memory for memory in memories}
        if denials is not None:
            self._denials = denials

    def load(self, model: str) -> Memory:
        return self._memories.get(model) or Memory(model)

    def models(self) -> tuple[str, ...]:
        return tuple(sorted(self._memories))

    def active(self) -> dict[str, bytes]:
        return {m.model: m.active.release for m in self._memories.values() if m.active is not None}

    def tuples(self) -> dict[str, tuple[int, int]]:
        return {m.model: (m.active.config, m.active.policy) for m in self._memories.values() if m.active is not None}

    def denials(self) -> bytes | None:
        return self._denials

    def trusted(self) -> bytes:
        return self._trusted

    def save_trusted(self, state: bytes) -> None:
        self._trusted = state

    def hold(self, *documents: Held, drop: str = "") -> None:
        self._held = {key: held for key, held in self._held.items() if key[0] != drop}
        self._held |= {(held.kind, held.name): held for held in documents}

    def held(self, kind: str) -> tuple[Held, ...]:
        return tuple(held for key, held in sorted(self._held.items()) if key[0] == kind)

    def drop(self, kind: str) -> None:
        self._held = {key: held for key, held in self._held.items() if key[0] != kind}

    def papers(self) -> tuple[Paper, ...]:
        return tuple(paper for _, paper in sorted(self._papers.items(), key=lambda item: (*item[0][:2], -item[0][2])))

    def shelve(self, *papers: Paper, drop: tuple[Paper, ...] = ()) -> None:
        for paper in drop:
            self._papers.pop((paper.kind, paper.scope, paper.number), None)
        self._papers |= {(paper.kind, paper.scope, paper.number): paper for paper in papers}

    def was_orderly(self) -> bool:
        return self._was_orderly

    def save_life(self, is_alive: bool) -> None:
        self._was_orderly = not is_alive


def outbox(path: Path, run: bytes, cap_bytes: int) -> Outbox:
    """A real one. Nobody else reads it and no power cut takes of it, so it needs neither locks nor syncs."""
    opened = Outbox(path, run, cap_bytes)
    opened._conn.execute("PRAGMA locking_mode = EXCLUSIVE")
    opened._conn.execute("PRAGMA synchronous = OFF")
    return opened


def tear(incoming: Path, rng: Random) -> int:
    """Loses, cuts or garbles what was not flushed; returns how many files that met."""
    torn = 0
    for path in sorted(incoming.iterdir()):
        if path.name.endswith(".recipe"):
            continue
        size = path.stat().st_size
        what = rng.randrange(5)
        if what == 0 or not size:
            continue
        torn += 1
        if what == 1:
            path.unlink()
            continue
        data = bytearray(path.read_bytes())
        if what == 2:
            del data[rng.randrange(size) :]
        else:
            at = rng.randrange(size) & ~0xFFF
            length = min(4096 * rng.randint(1, 3), size - at)
            data[at : at + length] = bytes(length) if what == 3 else rng.randbytes(length)
        path.write_bytes(data)
    return torn


def rot(path: Path, rng: Random) -> None:
    """One bit of a file turns over."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)

"""How a node of these worlds gets bytes: what `heliograph_site.fetching` does with asyncio, done with generators.

It asks for ways, wants what the fetcher says, and lets every leaf and segment be checked by the real cores.
"""

from collections.abc import Generator
from typing import Any

from heliograph.blob import Digest
from heliograph.deadlines import DEADLINES
from heliograph.delta.recipe import parse
from heliograph.documents import Chunk, Way
from heliograph.errors import IntegrityError
from heliograph.manifest import File
from heliograph.transfer import BlobFetch
from heliograph_site.fetching import usable_ways
from heliograph_site.rebuilding import Rebuild
from heliograph_site.slots import PartialBlob
from simulator import disk
from simulator.clock import Steps
from simulator.shell import Shell

SMALL, BULK = 1, 10


class Getting(Shell):
    """A shell that gets bytes over its link."""

    def _ask(self, model: str, release: bytes) -> Generator[Any, None, tuple[str, Any]]:
        while not self.road.links[self.name].is_up:
            yield 1.0
        self._asked += 1
        number = self._asked
        self._asks[number] = None
        releases = [pointer.release for pointer in self.memories[model].kept]
        try:
            if not self._publish("ask", (self.run, number, model, release, self.slots.bases(releases))):
                return ("lost", None)
            deadline = self.clock.now + DEADLINES.offer_s
            self.clock.after(DEADLINES.offer_s, self._alive(self._offered.ring))
            while self._asks[number] is None and self.clock.now < deadline:
                yield self._offered
            answer = self._asks[number]
            return (
                answer if answer is not None and len(answer) == 2 else ("silence" if answer is None else "lost", None)
            )
        finally:
            self._asks.pop(number, None)

    def _on_offer(self, run: bytes, number: int, model: str, release: bytes, word: str, what: Any) -> None:
        if run == self.run and self._asks.get(number, 0) is None:
            self._asks[number] = (word, what)
            self._offered.ring()

    def _on_chunk(self, payload: bytes) -> None:
        try:
            arrival = self.fetcher.on_chunk(Chunk.decode(payload), self.clock.now)
        finally:
            self.clock.after(0.0, self._alive(self.pump))
        if arrival is None:
            return
        self.world.oracle.written(self, arrival)
        part = self._sinks.get(arrival.fetch.blob)
        if part is not None:
            self._do("leaf write", lambda: part.take(arrival))
        self._arrived.ring()

    def pump(self) -> None:
        """Sends what is wanted now, and looks again when the fetcher says so."""
        self._pumps += 1
        if not self.road.links[self.name].is_up:
            return
        number = self._pumps
        now = self.clock.now
        self.fetcher.on_time(now)
        for want in self.fetcher.wants(now):
            self._publish("want", want, qos=0)
        deadline = self.fetcher.next_deadline(now)
        if deadline is not None:
            again = self._alive(lambda: self.pump() if self._pumps == number else None)
            self.clock.after(max(0.001, deadline - now), again)

    def _small(self, digest: bytes, length: int) -> Generator[Any, None, bytes]:
        pause_s = 1.0
        while True:
            fetch = BlobFetch(Digest(digest), length, (), self.rng.randbytes(4))
            self.fetcher.add(fetch, SMALL)
            self.pump()
            try:
                while not fetch.complete:
                    yield self._arrived
                return fetch.finish()
            except IntegrityError:
                pass
            finally:
                self.fetcher.remove(fetch)
            yield pause_s
            pause_s = min(2 * pause_s, DEADLINES.check_in_s)

    def _file(self, file: File, ways: tuple[Way, ...]) -> Steps:
        for way in usable_ways(self.slots, file, ways):
            if way.kind == "full":
                yield from self._full(file)
            else:
                yield from self._delta(file, way)
            return
        raise IntegrityError(f"no way was offered that leads to {file.name}")

    def _full(self, file: File) -> Steps:
        part = PartialBlob(
            self.slots.path(file.sha256, "part"),
            self.slots.path(file.sha256, "pages"),
            BlobFetch(Digest(file.sha256), file.length, file.pages, self.rng.randbytes(4)),
        )
        try:
            self._open(part)
            while not part.fetch.complete:
                yield self._arrived
        finally:
            self._close(part)
        self._do("object write", lambda: self.slots.settle(file.sha256, part.path))

    def _delta(self, file: File, way: Way) -> Steps:
        assert way.recipe is not None and way.base is not None, "a delta names both"
        data = self.slots.kept(file.sha256, "recipe", way.recipe.sha256)
        if data is None:
            data = yield from self._small(way.recipe.sha256, way.recipe.length)
            self.slots.keep(file.sha256, "recipe", data)
        recipe = parse(data)
        recipe.check_is_for(Digest(way.base), Digest(file.sha256), file.length)
        rebuild = Rebuild(self.slots.path(file.sha256, "out"), recipe, self.slots.holdings, disk.Joined)
        patch = PartialBlob(
            self.slots.path(file.sha256, "patch"),
            self.slots.path(file.sha256, "patch-pages"),
            BlobFetch(recipe.patch_sha256, recipe.patch_length, recipe.patch_pages, self.rng.randbytes(4)),
        )
        try:
            rebuild.open()
            self._open(patch)
            while not rebuild.is_complete:
                ready = rebuild.ready(patch)
                for index in ready:
                    self._do("segment write", lambda index=index: rebuild.make(index, patch))  # type: ignore[misc]
                if not ready and not rebuild.is_complete:
                    yield self._arrived
        finally:
            self._close(patch)
            rebuild.close()
        self.world.met["delta"] += 1
        self._do("object write", lambda: self.slots.settle(file.sha256, rebuild.path))

    def _open(self, part: PartialBlob) -> None:
        held = part.open()
        if held:
            self.world.met["resumed"] += 1
        self.world.oracle.resumed(self, part)
        self._sinks[part.fetch.blob] = part
        self.fetcher.add(part.fetch, BULK)
        self.pump()

    def _close(self, part: PartialBlob) -> None:
        self._sinks.pop(part.fetch.blob, None)
        self.fetcher.remove(part.fetch)
        part.close()

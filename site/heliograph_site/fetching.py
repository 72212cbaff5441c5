"""Gets blobs over the link: wants out, chunks in, leaves onto the disk, segments rebuilt as they complete.

What to ask for next is decided by `heliograph.transfer`; what lies on the disk is `heliograph_site.slots`. This shell
joins the two with the connection. Rules:

1. Nothing here gives up: the road is waited out. Only wrong content ends a fetch, with `IntegrityError`.
2. At any moment the process may be killed: what was verified is found again on the disk.
3. One release is fetched at a time; small signed objects (manifests, recipes) may overtake it.
4. Only a release's blobs are held to the budget (`Meter`); what is on its way when it ends still counts.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import ParamSpec, Protocol, TypeVar

from heliograph.blob import sha256
from heliograph.deadlines import DEADLINES, Deadlines
from heliograph.delta.recipe import Recipe, UnknownOpError, parse
from heliograph.documents import Chunk, Grant, SealRef, Want, Way
from heliograph.errors import IntegrityError, TransportError
from heliograph.manifest import File, Manifest, manifest_digest
from heliograph.names import Digest
from heliograph.transfer import BULK, SMALL, BlobFetch, Fetcher
from heliograph_site.forms import Form, Leg, PlainForm, SealedForm
from heliograph_site.rebuilding import Rebuild
from heliograph_site.slots import SYNC_BYTES, PartialBlob, Slots

P = ParamSpec("P")
R = TypeVar("R")
SEGMENTS_AT_ONCE = 4


async def in_thread(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Runs blocking work in a thread; when cancelled, waits for it to end, so that nothing goes on behind our back."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen: whoever cancelled doesn't ask for it
        raise


class Meter(Protocol):
    """What may be fetched now, and who counts it."""

    def may_take(self) -> int | None:
        """Bytes that a release may still bring now; None: any."""

    def took(self, release: bytes, size: int) -> None:
        """So much content came, for this release."""


class Unmetered:
    """A link that nobody counts."""

    def may_take(self) -> int | None:
        """Any."""
        return None

    def took(self, release: bytes, size: int) -> None:
        """Nobody counts."""


class Downloads:
    """Every fetch of the node, through one window.

    Attributes:
        corrupt: chunks that did not verify.
        rebuild_s: how long segments of the release that was fetched last were being rebuilt, since this fetch began.
    """

    def __init__(
        self,
        send: Callable[[Want], Awaitable[None]],
        probe: Callable[[float], Awaitable[object]],
        rng: Random,
        deadlines: Deadlines = DEADLINES,
        meter: Meter | None = None,
    ) -> None:
        """`send` publishes a want (TransportError: no link); `probe` finds out whether the link lives."""
        self.corrupt = 0
        self.rebuild_s = 0.0
        self._meter = meter or Unmetered()
        self._release = b""
        self._send = send
        self._probe = probe
        self._rng = rng
        self._deadlines = deadlines
        self._fetcher = Fetcher(deadlines=deadlines)
        self._sinks: dict[Digest, PartialBlob] = {}
        self._is_up = False
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._arrived = asyncio.Event()

    async def run(self) -> None:
        """Sends what is wanted, for ever."""
        while True:
            self._wake.clear()
            if self._is_up:
                now = time.monotonic()
                if self._fetcher.on_time(now):
                    await self._probe(max(5.0, self._deadlines.chunk_base_s))
                self._fetcher.budget_bytes = self._meter.may_take()
                try:
                    for want in self._fetcher.wants(time.monotonic()):
                        await self._send(want)
                except TransportError:
                    pass  # it counts as asked and lost: asked again when the link is back, or when that is overdue
            deadline = self._fetcher.next_deadline(time.monotonic()) if self._is_up else None
            try:
                async with asyncio.timeout_at(
                    None if deadline is None else asyncio.get_running_loop().time() + deadline - time.monotonic()
                ):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def on_link(self, is_up: bool) -> None:
        """The link came or went: handles are drawn anew, and what was on its way is asked for again."""
        self._is_up = is_up
        if not is_up:
            self._fetcher.on_link_lost(self._draw)
        self._wake.set()

    def look(self) -> None:
        """What may be taken may have changed."""
        self._wake.set()

    def on_hub_back(self) -> None:
        """The hub is known to be there now: nothing waits any longer because it was silent."""
        if self._fetcher.on_peer_back():
            self._wake.set()

    async def on_chunk(self, payload: bytes) -> bool:
        """Takes a chunk message; False if it is none, doesn't verify or wasn't asked for."""
        try:
            chunk = Chunk.decode(payload)
            self._meter.took(self._release, len(chunk.bytes))
            arrival = self._fetcher.on_chunk(chunk, time.monotonic())
        except IntegrityError:
            self.corrupt += 1
            self._wake.set()
            return False
        self._wake.set()
        if arrival is None:
            return False
        part = self._sinks.get(arrival.fetch.blob)
        if part is not None:
            part.take(arrival)
            if part.unsynced_bytes >= SYNC_BYTES:
                await in_thread(part.sync)
        self._arrived.set()
        return True

    async def small(self, digest: bytes, length: int, priority: int = SMALL) -> bytes:
        """A manifest or recipe, verified; asked for again until it is right."""
        pause_s = 1.0
        while True:
            fetch = BlobFetch(Digest(digest), length, (), self._draw())
            self._fetcher.add(fetch, priority)
            try:
                await self._complete(fetch, lambda: None)
                return fetch.finish()
            except IntegrityError:
                self.corrupt += 1
            finally:
                self._fetcher.remove(fetch)
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, self._deadlines.check_in_s)

    async def release(
        self,
        slots: Slots,
        manifest: Manifest,
        ways: Sequence[Way],
        on_progress: Callable[[int, int], None],
        grant: Grant | None = None,
    ) -> tuple[Way, ...]:
        """Every file of the release that isn't held, each by the cheapest way that can be gone, into the store.

        Returns the ways that were gone.

        Args:
            slots: where the files go.
            manifest: of the release.
            ways: as offered, already cut to those allowed.
            on_progress: told (bytes held, bytes to fetch) of the file under way.
            grant: as offered; opens what comes of a confidential release.

        Raises:
            IntegrityError: a segment or a whole file came out wrong though every byte was signed for, or what is
                confidential was offered plain, or by a seal or grant that isn't for it.
            OSError: the disk took no more; what it has is found again.
        """
        async with self._turn:
            self._release = manifest_digest(manifest)
            self.rebuild_s = 0.0
            try:
                gone = [
                    await self._file(slots, manifest, file, ways, on_progress, grant)
                    for file in slots.missing(manifest)
                ]
                return tuple(way for way in gone if way is not None)
            finally:
                self._release = b""

    async def _file(
        self,
        slots: Slots,
        manifest: Manifest,
        file: File,
        ways: Sequence[Way],
        on_progress: Callable[[int, int], None],
        grant: Grant | None,
    ) -> Way | None:
        if not file.length:
            slots.store.put(b"")
            return None
        unknown = ""
        for way in usable_ways(slots, file, ways, is_confidential=manifest.confidential):
            form: Form = PlainForm()
            if way.seal is not None:
                form = await self._sealed_form(slots, manifest, file, way, way.seal, grant)
            if way.kind == "full":
                await self._full(slots, file, form, on_progress)
                return way
            try:
                recipe = await self._recipe(slots, file, way, form)
                await self._delta(slots, file, recipe, form, on_progress)
                return way
            except UnknownOpError as error:
                unknown = f": {error}"  # the next way
        raise IntegrityError(
            f"no way was offered that leads to {file.name}{' sealed' * manifest.confidential}{unknown}"
        )

    async def _sealed_form(
        self, slots: Slots, manifest: Manifest, file: File, way: Way, named: SealRef, grant: Grant | None
    ) -> SealedForm:
        if grant is None:
            raise IntegrityError(f"{manifest.release} is confidential and was offered without a grant")
        data = slots.kept(file.sha256, "seal", named.sha256)
        if data is not None:
            return SealedForm(slots, manifest, data, grant)
        data = await self.small(named.sha256, named.length, BULK)
        form = SealedForm(slots, manifest, data, grant)
        first = file if way.recipe is None else way.recipe
        form.leg(Digest(first.sha256), first.length, ())  # only what is of use is kept
        slots.keep(file.sha256, "seal", data)
        return form

    async def _full(self, slots: Slots, file: File, form: Form, on_progress: Callable[[int, int], None]) -> None:
        part = self._part(slots, file, form.leg(Digest(file.sha256), file.length, file.pages), "part", "pages")
        try:
            await in_thread(part.open)
            self._begin(part)
            try:
                await self._complete(part.fetch, lambda: _report(part, on_progress))
            finally:
                self._end(part)
        finally:
            part.close()
        await in_thread(form.settle, slots, file, part.path, is_fetched=True)

    async def _recipe(self, slots: Slots, file: File, way: Way, form: Form) -> Recipe:
        assert way.recipe is not None and way.base is not None, "a delta names both"
        leg = form.leg(Digest(way.recipe.sha256), way.recipe.length, ())
        data = slots.kept(file.sha256, "recipe", leg.blob)
        if data is None:
            data = await self.small(leg.blob, leg.length, BULK)
            slots.keep(file.sha256, "recipe", data)
        data = leg.opened(data)
        if sha256(data) != way.recipe.sha256:
            raise IntegrityError(f"the recipe for {file.name} opens to another one than the offer names")
        recipe = await in_thread(parse, data)  # a large one takes a while, and the link must not wait for it
        recipe.check_is_for(Digest(way.base), Digest(file.sha256), file.length)
        return recipe

    async def _delta(
        self, slots: Slots, file: File, recipe: Recipe, form: Form, on_progress: Callable[[int, int], None]
    ) -> None:
        patch: PartialBlob | None = None
        patch_key = b""
        if recipe.patch_length:
            leg = form.leg(recipe.patch_sha256, recipe.patch_length, recipe.patch_pages)
            patch = self._part(slots, file, leg, "patch", "patch-pages")
            patch_key = leg.key
        path, key = slots.path(file.sha256, "out"), form.key(Digest(file.sha256))
        rebuild = Rebuild(path, recipe, slots.holdings, key=key, patch_key=patch_key)
        try:
            await in_thread(rebuild.open)
            if patch is not None:
                await in_thread(patch.open)
                self._begin(patch)
            while not rebuild.is_complete:
                self._arrived.clear()
                ready = rebuild.ready(patch)[:SEGMENTS_AT_ONCE]
                for index in ready:
                    begun_s = time.monotonic()
                    await in_thread(rebuild.make, index, patch)
                    self.rebuild_s += time.monotonic() - begun_s
                if patch is not None:
                    _report(patch, on_progress)
                if not ready and not rebuild.is_complete:
                    await self._arrived.wait()
        finally:
            if patch is not None:
                self._end(patch)
                patch.close()
            rebuild.close()
        await in_thread(form.settle, slots, file, rebuild.path, is_fetched=False)

    def _part(self, slots: Slots, file: File, leg: Leg, suffix: str, pages_suffix: str) -> PartialBlob:
        return PartialBlob(
            slots.path(file.sha256, suffix),
            slots.path(file.sha256, pages_suffix),
            BlobFetch(leg.blob, leg.length, leg.pages, self._draw()),
        )

    async def _complete(self, fetch: BlobFetch, on_progress: Callable[[], None]) -> None:
        self._wake.set()
        while not fetch.complete:
            self._arrived.clear()
            await self._arrived.wait()
            on_progress()

    def _begin(self, part: PartialBlob) -> None:
        self._sinks[part.fetch.blob] = part
        self._fetcher.add(part.fetch, BULK)
        self._wake.set()

    def _end(self, part: PartialBlob) -> None:
        self._sinks.pop(part.fetch.blob, None)
        self._fetcher.remove(part.fetch)

    def _draw(self) -> bytes:
        return self._rng.randbytes(4)


def _report(part: PartialBlob, on_progress: Callable[[int, int], None]) -> None:
    if part.failure is not None:
        raise part.failure
    on_progress(part.fetch.bytes_held, part.fetch.length)


def usable_ways(slots: Slots, file: File, ways: Sequence[Way], *, is_confidential: bool = False) -> list[Way]:
    """The ways to this file that the node can go, the cheapest first; to a confidential one, only those with a seal."""
    return sorted(
        (
            way
            for way in ways
            if way.blob == file.sha256
            and (way.seal is not None) == is_confidential
            and (way.kind == "full" or (way.kind == "delta" and way.base and slots.holdings.has(Digest(way.base))))
        ),
        key=lambda way: way.bytes,
    )

"""What a hub makes ready in the background, so that nodes needn't wait for it: recipes, and sealed blobs.

Both are looked for where nodes will need them (what rings are to install, what is new, what is asked for), made one at
a time, and dropped when no node needs them any more. Nothing here is lost when the hub ends: it is looked for again.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import NoReturn

from heliograph.delta.making import Making
from heliograph.errors import HeliographError
from heliograph_hub.fleet import Fleet
from heliograph_hub.recipes import Recipes, files_of, held_releases, pairs_for
from heliograph_hub.registry import KEEP_RECIPES_S, Registry, Release
from heliograph_hub.seals import Seals

log = logging.getLogger("heliograph.hub")


class Workshop:
    """What waits to be made, and the two tasks that make it.

    Attributes:
        recipes: which are waited for; threads that answer asks add to them.
        seals: the same for sealed blobs.
    """

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        seals: Seals,
        directed: Callable[[], set[bytes]],
        now: Callable[[], int],
    ) -> None:
        """`directed`: releases that some ring is to install; `now`: seconds since 1970."""
        self._registry, self._fleet, self._directed, self._now = registry, fleet, directed, now
        self._making = Making()
        self.recipes = Recipes(registry, self._making.make)
        self.seals = seals
        self._to_make = asyncio.Event()
        self._to_seal = asyncio.Event()

    def wake(self) -> None:
        """What is waited for is looked at now; call in the loop, after something was added."""
        self._to_make.set()
        self._to_seal.set()

    def request_recipes(self, release: Release) -> None:
        """Has the recipes made in the background that nodes will need to get this release.

        What could not be made is tried again. Reads manifests: for a thread.
        """
        held = held_releases(self._fleet.nodes()).get(release.model, {})
        self.recipes.retry(files_of(self._registry, release.digest))
        self.recipes.request(pairs_for(self._registry, release, held), time.monotonic())

    def request_all_recipes(self) -> None:
        """The same for every release that nodes may come to ask for: what rings are to install, and what is new."""
        directed, now = self._directed(), self._now()
        for release in self._registry.all():
            if release.digest in directed or release.added_at > now - KEEP_RECIPES_S:
                self.request_recipes(release)

    def drop_recipes(self) -> str:
        """Drops recipes that no node needs any more, and says so; empty if there were none. Blocks: for a thread."""
        held = held_releases(self._fleet.nodes())
        bases = {file for counts in held.values() for one in counts for file in files_of(self._registry, one)}
        wanted = {file for one in self._directed() for file in files_of(self._registry, one)}
        gone = self._registry.drop_recipes(bases, wanted, self._now())
        return f"dropped {gone.recipes} recipes that no node needs: {gone.bytes} bytes" if gone.recipes else ""

    def request_seals(self, releases: Iterable[Release]) -> None:
        """Has all ways to these sealed in the background, as far as they are confidential and it isn't done.

        What can't be sealed is logged, and tried again when a node asks.
        """
        for release in releases:
            try:
                self.seals.request_release(release, self._now())
            except HeliographError as error:
                log.warning("%s can't be sealed: %s", release.name, error)
        self._to_seal.set()

    def seal_again(self) -> None:
        """Has what rings are to install sealed under the newest epochs, if anything of it isn't; what else is asked
        for follows then. Call once something may have begun an epoch."""
        directed = self._directed()
        self.request_seals(release for release in self._registry.all() if release.digest in directed)

    async def make_recipes(self) -> NoReturn:
        """Makes the recipes that are waited for, one at a time, for ever."""
        while True:
            pair = self.recipes.take()
            if pair is None:
                self._to_make.clear()
                await self._to_make.wait()
                continue
            try:
                log.info(await asyncio.to_thread(self.recipes.make, pair, self._now()))
            except asyncio.CancelledError:
                self._making.stop()  # or the process would wait for it to end
                raise
            if pair not in self.recipes.failed:
                self.seals.request_delta(*pair)
                self._to_seal.set()

    async def seal(self) -> NoReturn:
        """Seals what is waited for, one way at a time, for ever."""
        self.seal_again()
        while True:
            task = self.seals.take()
            if task is None:
                self._to_seal.clear()
                await self._to_seal.wait()
                continue
            log.info(await asyncio.to_thread(self.seals.make, task, self._now()))

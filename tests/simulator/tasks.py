"""How a node of these worlds performs the commands of its machines: what `heliograph_site.tasks` does with asyncio."""

from heliograph.deadlines import DEADLINES
from heliograph.errors import IntegrityError
from heliograph.manifest import Manifest
from heliograph.names import Digest
from heliograph_site.fetching import usable_ways
from heliograph_site.happenings import (
    Admitted,
    Blocked,
    Declined,
    Failed,
    Fetched,
    Healthy,
    Passed,
    Proved,
    Served,
    Spoiled,
    Staged,
    Stopped,
)
from heliograph_site.memory import Memory
from simulator import catalogue, disk
from simulator.clock import Steps
from simulator.machines import Machines
from simulator.shell import POLL_S

HEALTHY_S = 10.0


class Tasks(Machines):
    """A shell that performs commands: one method for each, named by it."""

    def _check(self, memory: Memory) -> Steps:
        assert memory.target is not None, "checking has a target"
        release = memory.target.release
        if memory.active is not None:
            failed = yield from self._reach(memory)
            if failed is not None and memory.active.verdict != "failed":
                self._answer(memory.model, failed)
                yield POLL_S
        if memory.tries > 1:
            yield 30.0 * 2.0 ** (memory.tries - 2)
        while self.belief.why_unsure() is not None:
            yield POLL_S
        while (listed := self.belief.trusted.target(memory.model, release)) is None:
            yield POLL_S
        manifest = self.slots.manifest(release)
        if manifest is None:
            data = yield from self._small(release, listed.length)
            try:
                manifest = listed.open_manifest(data)
            except IntegrityError as error:
                return Declined(memory.epoch, str(error))
            self._do("object write", lambda: self.slots.store.put(data))
        if any(variant.arch for variant in manifest.variants):
            return Declined(memory.epoch, "no variant fits this hardware")
        while self.belief.rules.why_unfit(memory) is not None:
            self.world.met["waits for documents that fit"] += 1
            yield POLL_S
        unanswered_s = POLL_S
        while True:
            word, what = yield from self._ask(memory.model, release)
            pause_s = POLL_S
            if word == "never":
                return Declined(memory.epoch, f"the hub declines: {what}")
            if word == "later":
                pause_s = what
            elif word == "silence":
                pause_s, unanswered_s = unanswered_s, min(2 * unanswered_s, DEADLINES.check_in_s)
            elif word == "ways":
                ways = tuple(
                    way
                    for way in what
                    if way.recipe is None
                    or not (memory.full_only or self.belief.denials.is_recipe_denied(way.recipe.sha256))
                )
                missing = self.slots.missing(manifest)
                if all(usable_ways(self.slots, file, ways) for file in missing):
                    self._ways[memory.model] = (release, ways)
                    return Admitted(memory.epoch)
                pause_s = DEADLINES.offer_s
            yield pause_s * self.rng.uniform(1.0, 1.25)

    def _fetch(self, memory: Memory) -> Steps:
        assert memory.target is not None, "fetching has a target"
        release = memory.target.release
        manifest = self.slots.manifest(release)
        offered, ways = self._ways.get(memory.model, (b"", ()))
        if manifest is None or offered != release:
            return Spoiled(memory.epoch, "the manifest is gone from the disk")
        me = object()
        try:
            while self._turn is not None:
                yield self._turn_over
            self._turn = me
            for file in self.slots.missing(manifest):
                if self.is_disk_full:
                    self.world.met["disk full"] += 1
                    raise OSError(28, "No space left on device")
                yield from self._file(file, ways)
        except IntegrityError as error:
            return Spoiled(memory.epoch, str(error))
        except OSError as error:
            return Blocked(memory.epoch, f"the disk: {error.strerror}")
        finally:
            if self._turn is me:
                self._turn = None
                self._turn_over.ring()
        return Fetched(memory.epoch)

    def _stage(self, memory: Memory) -> Steps:
        assert memory.target is not None, "staging has a target"
        manifest = self.slots.manifest(memory.target.release)
        if manifest is None:
            return Spoiled(memory.epoch, "the manifest is gone from the disk")
        yield self.rng.uniform(0.0, 20.0)
        if self.is_disk_full and self.rng.random() < 0.5:
            self.world.met["disk gives nothing"] += 1
            return Blocked(memory.epoch, "the disk: Input/output error")
        if self.is_disk_bad:
            self.rot(manifest)
        try:
            self.slots.verify(manifest)
        except IntegrityError as error:
            return Spoiled(memory.epoch, str(error))
        self.world.oracle.staged(self, memory.target.release)
        return Staged(memory.epoch)

    def rot(self, manifest: Manifest) -> None:
        """A file of this release turns rotten on the disk."""
        file = self.rng.choice(manifest.files)
        if self.slots.store.has(Digest(file.sha256)):
            self.world.met["bit rot"] += 1
            self.world.oracle.rots(self, file.sha256)
            disk.rot(self.slots.store.path(Digest(file.sha256)), self.rng)

    def _activate(self, memory: Memory) -> Steps:
        assert memory.target is not None, "activating has a target"
        release = memory.target.release
        while (self.belief.why_not_yet(memory.model, release) or self.belief.rules.why_unfit(memory)) is not None:
            yield POLL_S
        while True:
            yield self.rng.uniform(0.5, 20.0)
            if self.server.is_up:
                reason = self._do("check", lambda: self.server.check(memory.model, release))
                if reason:
                    return Failed(memory.epoch, reason)
                manifest = self.slots.manifest(release)
                if manifest is None:
                    return Failed(memory.epoch, "the manifest is gone from the disk")
                return Passed(memory.epoch, self.now(), manifest.fail_mode)

    def _reach(self, memory: Memory) -> Steps:
        """Has the server serve what is active; waits for a server that isn't there."""
        release = memory.active.release if memory.active is not None else None
        while True:
            yield self.rng.uniform(0.1, 10.0)
            if self.server.is_up:
                reason = self._do("switch", lambda: self.server.serve(memory.model, release, self._tuned(memory)))
                self._reaching.discard(memory.model)
                if not reason:
                    self.world.oracle.switched(self, memory.model)
                return Failed(memory.epoch, reason) if reason else None

    def _tuned(self, memory: Memory) -> tuple[int, int]:
        active = self.memories[memory.model].active
        return (active.config, active.policy) if active is not None else (0, 0)

    def _prove(self, memory: Memory) -> Steps:
        assert memory.active is not None, "proving follows a flip"
        release = memory.active.release
        failed = yield from self._reach(memory)
        if failed is not None:
            return failed
        began, soak_s = self.clock.now, self.rng.uniform(20.0, 90.0)
        is_slow = catalogue.releases()[Digest(release)].kind == "slow"
        is_told = memory.is_healthy
        is_used = self.serves_traffic == (self.rng.random() < 0.8)
        while True:
            yield POLL_S
            if self.server.is_up and self.server.serving.get(memory.model) != release:
                failed = yield from self._reach(memory)
                if failed is not None:
                    return failed
            lasted_s = self.clock.now - began
            if release in self.server.broken:
                return Failed(memory.epoch, "its worker died too often", answered=True)
            if is_slow and is_used and lasted_s > soak_s / 2:
                return Failed(memory.epoch, "too slow", answered=True)
            if lasted_s > HEALTHY_S and not is_told:
                is_told = True
                self._answer(memory.model, Healthy(memory.epoch))
            if lasted_s > soak_s:
                return Proved(memory.epoch, "proven" if is_used else "unproven")

    def _serve(self, memory: Memory) -> Steps:
        failed = yield from self._reach(memory)
        if failed is not None:
            return failed
        return Served(memory.epoch) if memory.active is not None else Stopped(memory.epoch)

    def _rest(self, memory: Memory) -> Steps:
        self._ways.pop(memory.model, None)
        needed = [pointer.release for memory in self.memories.values() for pointer in memory.kept]
        coming = [memory.target.release for memory in self.memories.values() if memory.target is not None]
        self._do("collect", lambda: self.slots.collect(needed, coming))
        return None
        yield 0.0  # a task like the others

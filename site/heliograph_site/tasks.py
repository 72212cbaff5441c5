"""Performs the machine's commands: each is one coroutine that ends in one event of the epoch it was started in.

What to do next is the machine's business (`machine.py`); here stands only how. Rules:

1. A command names the state to reach and finds out what is there already, so that performing it twice is harmless.
2. The road and the server process are waited for without limit, and what is waited for is said in words.
3. Only what the release itself does, wrongly or too slowly, ends in `Failed`, and only what the hub, the manifest or
   the policy rules out ends in `Declined`.
4. What policy says not yet to (windows, cadence, budget) is asked again and again, and goes on by itself.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, assert_never

from heliograph import economy, rules
from heliograph.deadlines import Deadlines
from heliograph.documents import Grant, Hardware, Way
from heliograph.economy import Wait
from heliograph.errors import IntegrityError, RefusedError, TransportError
from heliograph.manifest import File, Gate, Manifest
from heliograph_site.fetching import Downloads, in_thread, usable_ways
from heliograph_site.gates import BUILT_IN, Probation, Verdict, judge_load, look_from_row, unknown_gates
from heliograph_site.happenings import (
    Admitted,
    Answer,
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
from heliograph_site.hardware import why_unfit
from heliograph_site.machine import Command
from heliograph_site.memory import Memory
from heliograph_site.slots import Slots
from heliograph_site.surroundings import Pace, Server, Surroundings, Switched

AN_OFFER = "an offer from the hub"
WARM_S = 10.0
"""Probation begins without a warm fallback if that takes longer."""
HEALTHY_LOOKS = 3
"""Times in a row that a worker on probation must be seen ready before a power cut is forgiven it."""
AFFECTED = ("answered", "failed", "in_flight")
"""Requests that a release got while it was the one that answers, by what became of them until the switch."""


@dataclass(frozen=True, slots=True)
class _Trip:
    """A release on probation that failed, and when; kept until the fallback answers."""

    at: float
    release: bytes
    detect_s: float | None
    """From the first request that it got to the trip."""


class Tasks:
    """The commands of every model of the node."""

    def __init__(
        self,
        agent: Surroundings,
        slots: Slots,
        downloads: Downloads,
        server: Server,
        hardware: Hardware,
        rng: Random,
        deadlines: Deadlines,
        pace: Pace,
    ) -> None:
        self._agent = agent
        self._slots = slots
        self._downloads = downloads
        self._server = server
        self._hardware = hardware
        self._rng = rng
        self._deadlines = deadlines
        self._pace = pace
        self._ways: dict[str, tuple[bytes, tuple[Way, ...], Grant | None]] = {}
        self._trips: dict[str, _Trip] = {}
        self.switched: dict[str, Switched] = {}
        """The last switch of each model."""

    async def perform(self, command: Command, memory: Memory) -> Answer | None:
        """Does it, however long it takes; None when there is nothing to say."""
        try:
            match command:
                case Command.CHECK:
                    return await self._check(memory)
                case Command.FETCH:
                    return await self._fetch(memory)
                case Command.STAGE:
                    return await self._stage(memory)
                case Command.ACTIVATE:
                    return await self._activate(memory)
                case Command.PROVE:
                    return await self._prove(memory)
                case Command.SERVE:
                    return await self._serve(memory)
                case Command.REST:
                    return await self._rest(memory)
                case _:
                    assert_never(command)
        finally:
            self._agent.note(memory.model, "")

    # --- check --------------------------------------------------------------------------------------------------------

    async def _check(self, memory: Memory) -> Answer:
        assert memory.target is not None, "checking has a target"
        model, release = memory.model, memory.target.release
        await self._serve_first(memory)
        if memory.tries > 1:
            # What spoils in full images, or a disk that takes nothing, would meet the same fault at once again.
            await self._wait(
                model,
                "bytes spoiled, or the disk took nothing: trying again later",
                self._pace.retry_s * 2.0 ** (memory.tries - 2),
            )
        while (unsure := self._agent.why_unsure()) is not None:
            await self._wait(model, unsure, self._pace.poll_s)
        while (listed := self._agent.target(model, release)) is None:
            await self._wait(model, "metadata that lists the release", self._pace.poll_s)
        manifest = self._slots.manifest(release)
        if manifest is None:
            self._agent.note(model, "the manifest")
            data = await self._downloads.small(release, listed.length)
            try:
                manifest = listed.open_manifest(data)
            except IntegrityError as error:
                return Declined(memory.epoch, str(error))
            await self._store(model, data)
        self._agent.named(release, manifest)
        reason = why_unfit(manifest, self._hardware)
        if reason is not None:
            return Declined(memory.epoch, reason)
        if unknown := unknown_gates(manifest.model_copy(update={"gates": self._gates(manifest)})):
            return Declined(memory.epoch, f"{manifest.release} has gate {unknown[0]}, which this agent can't judge")
        while (unfit := self._agent.why_unfit(model)) is not None:
            await self._wait(model, unfit, self._pace.poll_s)
        while lacking := await in_thread(self._slots.lacking_bytes, manifest):
            await self._wait(model, f"{lacking} more bytes of free disk", self._pace.retry_s)
        return await self._ask(memory, manifest)

    async def _serve_first(self, memory: Memory) -> None:
        """Has the server serve what is active: what was superseded may have been about to."""
        if memory.active is None:
            return
        failed = await self._reach(memory, None)
        if failed is not None and memory.active.verdict != "failed":
            await self._agent.tell(memory.model, failed)

    async def _ask(self, memory: Memory, manifest: Manifest) -> Answer:
        assert memory.target is not None, "checking has a target"
        model, release = memory.model, memory.target.release
        back_off_s = self._deadlines.offer_s
        unanswered_s = self._pace.poll_s  # a lost ask has waited its time already
        asking = AN_OFFER
        while True:
            while self._slots.missing(manifest) and (wait := self._agent.why_not_fetch()) is not None:
                await self._wait(model, wait.reason, self._pace.poll_s)
            self._agent.note(model, asking)
            try:
                offer = await self._agent.ask(model, release)
            except TransportError as error:
                asking = f"{AN_OFFER}: {error}"  # said while it is tried again too: each change is reported
                await self._wait(model, asking, self._pace.poll_s)
                continue
            asking = AN_OFFER
            if offer is None:
                reason, pause_s = "no answer from the hub", unanswered_s
                unanswered_s = min(2 * unanswered_s, self._deadlines.check_in_s)
            elif offer.never:
                return Declined(memory.epoch, f"the hub declines: {offer.reason}")
            elif offer.later_s is not None:
                reason, pause_s = f"the hub says later: {offer.reason}", float(offer.later_s)
                back_off_s = self._deadlines.offer_s
            else:
                ways, judged = self._judged(memory, manifest, offer.ways)
                lost = self._why_lost(manifest, ways, offer.grant)
                if not lost and judged == "take":
                    self._ways[model] = (release, ways, offer.grant)
                    return Admitted(memory.epoch)
                number = self._agent.policy_of(model).number
                if not lost and judged == "fail":
                    return Declined(memory.epoch, f"only the full image is offered, and policy {number} refuses that")
                reason, pause_s = lost or f"a delta: policy {number} waits for one", back_off_s
                back_off_s = min(2 * back_off_s, self._deadlines.check_in_s)
            await self._wait(model, reason, pause_s)

    def _why_lost(self, manifest: Manifest, ways: tuple[Way, ...], grant: Grant | None) -> str:
        """What an offer lacks to get every file by; empty: nothing."""
        missing = [file for file in self._slots.missing(manifest) if file.length]
        for file in missing:
            if not self._usable(manifest, file, ways):
                return f"the hub offers no way to {file.name}{' that keeps it sealed' * manifest.confidential}"
        if missing and manifest.confidential and grant is None:
            return f"the hub offers {manifest.release} sealed, and no key that opens it"
        return ""

    def _judged(self, memory: Memory, manifest: Manifest, offered: tuple[Way, ...]) -> tuple[tuple[Way, ...], str]:
        """The ways that may be gone, and `take`, `wait` or `fail`, as policy has it where only the full image will do.

        After a delta that spoiled these are the full ones. Where policy doesn't take the full image, the image's deltas
        have the other tries too, and a fetch that finds it can't go by them has no full image to turn to.
        """
        ways = tuple(
            way for way in offered if way.recipe is None or not self._agent.is_recipe_denied(way.recipe.sha256)
        )
        possible = [way for file in self._slots.missing(manifest) for way in self._usable(manifest, file, ways)]
        budget = self._agent.policy_of(memory.model).budget
        judged = economy.judge_full(budget, is_only_full=True, has_base=bool(memory.kept))
        if judged != "take" and economy.only_full(possible):
            return ways, judged
        image = economy.full_image(possible) if judged != "take" else None
        blob = image.blob if image is not None else None
        return tuple(
            way for way in ways if way != image and (way.recipe is None or way.blob == blob or not memory.full_only)
        ), "take"

    def _usable(self, manifest: Manifest, file: File, ways: tuple[Way, ...]) -> list[Way]:
        return usable_ways(self._slots, file, ways, is_confidential=manifest.confidential)

    def _gates(self, manifest: Manifest) -> tuple[Gate, ...]:
        """The manifest's gates, as tight as policy has them."""
        policy = self._agent.policy_of(manifest.model)
        return rules.tightened(manifest.gates, rules.for_model(policy, manifest.model).gates, BUILT_IN)

    # --- fetch and stage ----------------------------------------------------------------------------------------------

    async def _fetch(self, memory: Memory) -> Answer:
        assert memory.target is not None, "fetching has a target"
        release = memory.target.release
        manifest = self._slots.manifest(release)
        offered, ways, grant = self._ways.get(memory.model, (b"", (), None))
        if manifest is None or offered != release:
            return Spoiled(memory.epoch, "the manifest is gone from the disk")
        try:
            gone, rebuild_s = await self._metered(memory.model, manifest, ways, grant)
        except IntegrityError as error:
            return Spoiled(memory.epoch, str(error))
        except OSError as error:
            return Blocked(memory.epoch, f"the disk: {error.strerror}")
        kinds = ", ".join(sorted({way.kind for way in gone}))
        took = {"bytes": self._agent.took_for(release), "rebuild_ms": round(1000 * rebuild_s)}
        self._agent.record("audit", "fetched", {"model": memory.model, "release": release, "way": kinds, **took})
        return Fetched(memory.epoch)

    async def _metered(
        self, model: str, manifest: Manifest, ways: tuple[Way, ...], grant: Grant | None
    ) -> tuple[tuple[Way, ...], float]:
        """Fetches, and says what is waited for while policy lets nothing come.

        Returns the ways that were gone, and for how many seconds deltas were being applied.
        """

        async def fetch() -> tuple[tuple[Way, ...], float]:
            gone = await self._downloads.release(self._slots, manifest, ways, self._progress(model), grant)
            return gone, self._downloads.rebuild_s  # before another fetch has its turn

        work = asyncio.ensure_future(fetch())
        try:
            while not work.done():
                if (wait := self._agent.why_not_fetch()) is not None:
                    self._agent.note(model, wait.reason)
                self._downloads.look()
                await asyncio.wait({work}, timeout=self._pace.poll_s)
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
        return work.result()

    def _progress(self, model: str) -> Callable[[int, int], None]:
        def tell(held: int, of: int) -> None:
            self._agent.note(model, f"{100 * held // max(of, 1)} % of {of} bytes", is_news=False)

        return tell

    async def _stage(self, memory: Memory) -> Answer:
        assert memory.target is not None, "staging has a target"
        manifest = self._slots.manifest(memory.target.release)
        if manifest is None:
            return Spoiled(memory.epoch, "the manifest is gone from the disk")
        try:
            await in_thread(self._slots.verify, manifest)
        except IntegrityError as error:
            return Spoiled(memory.epoch, str(error))
        except OSError as error:
            return Blocked(memory.epoch, f"the disk: {error.strerror}")
        return Staged(memory.epoch)

    # --- activate, prove, serve ---------------------------------------------------------------------------------------

    async def _activate(self, memory: Memory) -> Answer:
        assert memory.target is not None, "activating has a target"
        release = memory.target.release
        limit_s = self._deadlines.activation_s
        answering_s = 0.0
        while (reason := self._agent.why_not_yet(memory.model, release)) is not None:
            await self._wait(memory.model, reason, self._pace.poll_s)
        while (wait := self._why_not_activate(memory)) is not None:
            await self._wait(memory.model, wait.reason, self._pace.poll_s)
        while True:
            began = time.monotonic()
            try:
                loaded = await self._server.check(memory.model, release, timeout_s=limit_s)
                return self._judge_loaded(memory, loaded)
            except RefusedError as error:
                return Failed(memory.epoch, str(error))
            except TransportError as error:
                # Time counts against the release only while the server is there to answer.
                if await self._server_answers():
                    answering_s += time.monotonic() - began
                if answering_s >= limit_s:
                    return Failed(memory.epoch, f"not active within {limit_s:g} s: {error}")
                await self._wait(memory.model, f"the server: {error}", self._pace.poll_s)

    def _why_not_activate(self, memory: Memory) -> Wait | None:
        assert memory.target is not None, "activating has a target"
        manifest = self._slots.manifest(memory.target.release)
        if manifest is None:
            return None  # it is told when it is to be loaded
        since = memory.active.activated_at if memory.active is not None else None
        return self._agent.why_not_activate(memory.model, manifest.version, since)

    def _judge_loaded(self, memory: Memory, loaded: dict[str, Any]) -> Passed | Failed:
        """What loading showed, against the gates that can be judged before the release answers anything."""
        assert memory.target is not None, "activating has a target"
        manifest = self._slots.manifest(memory.target.release)
        if manifest is None:
            return Failed(memory.epoch, "the manifest is gone from the disk")
        verdict = judge_load(self._gates(manifest), loaded.get("cold_start_ms"), int(loaded.get("memory_bytes") or 0))
        if verdict is None:
            policy = self._agent.policy_of(memory.model)
            fail_mode = rules.fail_mode(policy, memory.model, manifest.fail_mode)
            return Passed(memory.epoch, self._agent.now(), fail_mode)
        self._tell_verdict(memory.model, memory.target.release, verdict)
        return Failed(memory.epoch, verdict.reason)

    async def _prove(self, memory: Memory) -> Answer:
        assert memory.active is not None, "proving follows a flip"
        model, release = memory.model, memory.active.release
        manifest = self._slots.manifest(release)
        if manifest is None:
            return Failed(memory.epoch, "the manifest is gone from the disk")
        failed = await self._reach(memory, None)
        if failed is not None:
            return failed
        await self._warm(memory)
        probation = Probation(self._gates(manifest), manifest.soak, time.monotonic())
        looks = 0
        while True:
            try:
                row = (await self._server.status()).get("models", {}).get(model, {})
            except TransportError as error:
                self._agent.note(model, f"the server: {error}")
                row = {}
            if row and row.get("active") != release.hex():
                failed = await self._reach(memory, None)
                if failed is not None:
                    return failed
                row = {}  # it told of what answered before
            now = time.monotonic()
            verdict = probation.judge(look_from_row(row), now)
            if verdict is not None:
                self._tell_verdict(model, release, verdict)
            if verdict is not None and verdict.word == "failed":
                self._trips[model] = _Trip(now, release, row.get("first_request_s"))
                return Failed(memory.epoch, verdict.reason, answered=True)
            if verdict is not None:
                returns = rules.unproven(self._agent.policy_of(model), model) == "return"
                return Proved(memory.epoch, verdict.word, returns)
            looks = looks + 1 if row.get("state") == "ready" else 0
            if looks == HEALTHY_LOOKS and not memory.is_healthy:
                await self._agent.tell(model, Healthy(memory.epoch))
            self._agent.note(model, probation.waiting, is_news=False)
            await asyncio.sleep(self._pace.poll_s)

    async def _warm(self, memory: Memory) -> None:
        """Has a worker stand by for the fallback, where that isn't what answered last. Best effort."""
        if memory.fallback is None:
            return
        fallback = memory.fallback.release
        try:
            row = (await self._server.status()).get("models", {}).get(memory.model, {})
            standby = (row.get("standby") or {}).get("release")
            if row and standby != fallback.hex():
                await self._server.check(memory.model, fallback, timeout_s=WARM_S)
        except (RefusedError, TransportError):
            pass  # it is loaded when it is needed

    def _tell_verdict(self, model: str, release: bytes, verdict: Verdict) -> None:
        self._agent.record(
            "audit",
            "verdict",
            {
                "model": model,
                "release": release,
                "verdict": verdict.word,
                "reason": verdict.reason[:400],
                "traffic_s": round(verdict.traffic_s, 1),
                "evidence": [row.row() for row in verdict.evidence],
            },
        )

    async def _serve(self, memory: Memory) -> Answer:
        if memory.active is None:
            return await self._stop(memory)
        limit_s = self._deadlines.rollback_s if memory.phase == "rolling-back" else None
        return await self._reach(memory, limit_s) or Served(memory.epoch)

    async def _stop(self, memory: Memory) -> Stopped:
        while True:
            try:
                await self._server.stop(memory.model)
                return Stopped(memory.epoch)
            except (TransportError, RefusedError) as error:
                await self._wait(memory.model, f"the server: {error}", self._pace.poll_s)

    async def _reach(self, memory: Memory, limit_s: float | None) -> Failed | None:
        """Has the server serve what is active; waits for a server that isn't there."""
        assert memory.active is not None, "the caller looked"
        began, answering_s = time.monotonic(), 0.0
        while True:
            asked = time.monotonic()
            try:
                tuned = self._agent.tuned(memory.model)
                answer = await self._server.serve(memory.model, memory.active.release, limit_s or 60.0, tuned)
            except RefusedError as error:
                return Failed(memory.epoch, str(error))
            except TransportError as error:
                if await self._server_answers():
                    answering_s += time.monotonic() - asked
                if limit_s is not None and answering_s >= limit_s:
                    return Failed(memory.epoch, f"not serving within {limit_s:g} s: {error}")
                await self._wait(memory.model, f"the server: {error}", self._pace.poll_s)
            else:
                self._tell_switch(memory, answer, began)
                return None

    def _tell_switch(self, memory: Memory, answer: dict[str, Any], began: float) -> None:
        """Records a switch that this call made, with its figures; back, it is an incident too."""
        assert memory.active is not None, "it serves now"
        before = answer.get("before")
        is_back = memory.phase == "rolling-back" and not memory.aside
        trip = self._trips.pop(memory.model, None)
        if trip is not None and trip.release == memory.active.release:
            return  # with nothing else left it goes on as it is
        if answer.get("duration_ms") is None and trip is None:
            return  # it answered already
        duration_ms, failed = float(answer.get("duration_ms") or 0.0), int(answer.get("failed") or 0)
        self.switched[memory.model] = Switched(memory.active.release, duration_ms, failed)
        before = before if isinstance(before, dict) else {}
        body: dict[str, Any] = {
            "model": memory.model,
            "release": memory.active.release,
            "from": bytes.fromhex(str(before.get("release") or "")),
            "duration_ms": answer.get("duration_ms"),
        }
        if not is_back:
            self._agent.record("audit", "switched", body | {"failed": int(answer.get("failed") or 0)})
            return
        now = time.monotonic()
        body |= {name: int(before.get(name) or 0) for name in AFFECTED}
        body |= {
            "reason": memory.reason[:400],
            "detect_ms": None if trip is None or trip.detect_s is None else round(1000 * trip.detect_s),
            "restore_ms": round(1000 * (now - (trip.at if trip is not None else began))),
        }
        if trip is not None:
            body["from"] = trip.release
        for lane in ("incident", "audit"):
            self._agent.record(lane, "rolled-back", body)

    async def _rest(self, memory: Memory) -> Answer | None:
        """Drops what is half done: objects that nothing needs, and the worker of what was just refused."""
        self._ways.pop(memory.model, None)
        self._agent.collect()
        kept = {pointer.release for pointer in memory.kept}
        for refusal in memory.refused[:4]:
            if refusal.release not in kept:
                try:
                    await self._server.drop(memory.model, refusal.release)
                except (RefusedError, TransportError):
                    pass  # no server, or it serves that still: SERVE has seen to that, or will
        return None

    async def _store(self, model: str, data: bytes) -> None:
        """Keeps a small object, once the disk takes it."""
        while True:
            try:
                self._slots.store.put(data)
                return
            except OSError as error:
                await self._wait(model, f"the disk: {error.strerror}", self._pace.retry_s)

    async def _server_answers(self) -> bool:
        try:
            await self._server.status()
        except TransportError:
            return False
        return True

    async def _wait(self, model: str, reason: str, about_s: float) -> None:
        self._agent.note(model, reason)
        about_s = min(about_s, self._deadlines.check_in_s)
        await asyncio.sleep(about_s * self._rng.uniform(1.0, 1.25))

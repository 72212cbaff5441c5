"""[IO] What the server process serves: per model an active slot, the standby behind it, and the spare being tried.

Rules:
1. Only a slot whose load passed every golden request ever answers.
2. Switching is one assignment: requests already admitted finish on the slot that took them. What a slot is tuned to is
   set before it answers, so that no answer is of one release and of the config of another.
3. The server decides nothing about releases. It serves what the committed pointer says at start and what the agent says
   after; when that can't be served it says so, and never serves something else instead.
"""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from heliograph.blob import Digest
from heliograph.errors import HeliographError, IntegrityError, NotFoundError, RefusedError, TransportError
from heliograph.manifest import Manifest
from heliograph.policy import Config
from heliograph_site.serving.admission import Limits
from heliograph_site.serving.slot import Files, Measured, Slot, memory_bytes
from heliograph_site.serving.spawn import Forks, WorkerDiedError
from heliograph_site.serving.tuned import Tuned, tuned

log = logging.getLogger(__name__)


class Pointed(Protocol):
    """What a committed pointer says."""

    @property
    def release(self) -> bytes:
        """The manifest's digest."""

    @property
    def config(self) -> int:
        """Number of the config that it serves with."""

    @property
    def policy(self) -> int:
        """Number of the policy that it serves under."""


@dataclass(slots=True)
class _Seats:
    """The slots of one model."""

    active: Slot | None = None
    standby: Slot | None = None
    spare: Slot | None = None
    unreadable: tuple[bytes, str] | None = None
    """The committed release whose manifest is missing or rotten, and why; then there is no active slot."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def holding(self, release: bytes) -> Slot | None:
        """A ready slot that holds the release."""
        slots = (self.active, self.spare, self.standby)
        return next((slot for slot in slots if slot and slot.release == release and slot.state == "ready"), None)


class Server:
    """Loads, switches and drops releases; hands the gateway the slot that answers."""

    def __init__(self, files: Files, forks: Forks, limits: Limits, tasks: asyncio.TaskGroup) -> None:
        self._files = files
        self._forks = forks
        self._limits = limits
        self._tasks = tasks
        self._models: dict[str, _Seats] = {}
        self._retiring: set[Slot] = set()

    # --- for the gateway ------------------------------------------------------------------------------------------

    def models(self) -> tuple[str, ...]:
        """Names of the models that have, or should have, an active release."""
        return tuple(name for name, seats in self._models.items() if seats.active or seats.unreadable)

    def active(self, model: str) -> Slot | None:
        """The slot that answers for a model."""
        seats = self._models.get(model)
        return seats.active if seats is not None else None

    def is_known(self, model: str) -> bool:
        """Whether the model was ever loaded here, or told to stop, since the server started."""
        return model in self._models

    def unreadable(self) -> Mapping[str, str]:
        """Models whose active release can't even be described, and why."""
        return {name: seats.unreadable[1] for name, seats in self._models.items() if seats.unreadable}

    # --- for start and control ------------------------------------------------------------------------------------

    async def boot(
        self,
        active: Mapping[str, Pointed],
        fallback: Mapping[str, Pointed],
        configs: Mapping[str, Config] | None = None,
    ) -> None:
        """Serves the committed releases, then warms their fallbacks; what can't be served is told in `status`.

        `configs` are the documents of the numbers that the active pointers name.
        """
        for model in active:
            self._seats(model)
        known = configs or {}
        await asyncio.gather(
            *(
                self._boot_active(model, pointer.release, tuned(pointer.config, pointer.policy, known.get(model)))
                for model, pointer in active.items()
            )
        )
        for model, pointer in fallback.items():
            if model in active:
                await self._boot_standby(model, pointer.release)

    async def check(
        self, model: str, release: bytes, files: Mapping[str, bytes] | None, timeout_s: float
    ) -> dict[str, Any]:
        """Loads a release into the spare slot, unless a ready slot holds it, and returns what was measured.

        Raises:
            HeliographError: it does not load or its golden outputs are wrong.
        """
        seats = self._seats(model)
        async with seats.lock:
            slot = seats.holding(release)
            if slot is None:
                slot = self._slot(model, release)
                if files is not None and dict(files) != {file.name: file.sha256 for file in slot.manifest.files}:
                    raise IntegrityError(f"{slot.manifest.release} holds other files than were asked about")
                if seats.spare is not None:
                    seats.spare.close()
                seats.spare = slot
                try:
                    await self._load(slot, timeout_s)
                except BaseException:
                    seats.spare = None
                    slot.close()
                    raise
            measured = slot.measured
            assert measured is not None
            return {
                "cold_start_ms": measured.cold_start_ms,
                "golden_max_error": measured.golden_max_error,
                "memory_bytes": measured.memory_bytes,
            }

    async def serve(
        self, model: str, release: bytes, timeout_s: float, tuned_to: Tuned | None = None
    ) -> dict[str, Any]:
        """Makes a release the one that answers, with its config; the one before stays as standby.

        Returns the switch's figures: `duration_ms` (null if it answered already), requests of the release before that
        `failed` meanwhile, and `before`: that release and its turn (null if there was none).

        Raises:
            HeliographError: it can't; nothing has changed.
        """
        began = time.monotonic()
        seats = self._seats(model)
        async with seats.lock:
            failed = seats.active.meter.errors if seats.active is not None else 0
            slot = seats.holding(release)
            if slot is None:
                slot = self._slot(model, release)
                try:
                    await self._load(slot, timeout_s)
                except BaseException:
                    slot.close()
                    raise
            slot.tuned = tuned_to or Tuned()
            if slot is seats.active:
                return {"duration_ms": None, "failed": 0, "before": None}
            turn = None if seats.active is None else {"release": seats.active.release.hex(), **seats.active.turn()}
            slot.begin_turn()
            before, standby = seats.active, seats.standby
            seats.active, seats.unreadable = slot, None
            failed = before.meter.errors - failed if before is not None else 0
            if seats.spare is slot:
                seats.spare = None
            if before is not None and (before.state == "failed" or before.release == release):
                self._retire(before)
                before = None
            if standby is not None and standby is not slot:
                if before is None and standby.release != release:
                    before = standby
                else:
                    self._retire(standby)
            seats.standby = before
            log.info("%s answers now", slot.manifest.release)
            return {"duration_ms": round((time.monotonic() - began) * 1000, 1), "failed": failed, "before": turn}

    async def tune(self, model: str, release: bytes, tuned_to: Tuned) -> None:
        """Gives the release that answers, or should, another config.

        Raises:
            RefusedError: another release answers.
        """
        seats = self._seats(model)
        async with seats.lock:
            if seats.active is None or seats.active.release != release:
                raise RefusedError(f"{release.hex()[:12]} is not what answers for {model}: serve it first")
            seats.active.tuned = tuned_to
            log.info("%s answers with config %d", seats.active.manifest.release, tuned_to.config)

    async def drop(self, model: str, release: bytes) -> None:
        """Ends the spare or standby that holds the release.

        Raises:
            RefusedError: it is the active one.
        """
        seats = self._seats(model)
        async with seats.lock:
            if seats.active is not None and seats.active.release == release:
                raise RefusedError(f"{seats.active.manifest.release} is active and is not dropped: serve another first")
            if seats.spare is not None and seats.spare.release == release:
                self._retire(seats.spare)
                seats.spare = None
            if seats.standby is not None and seats.standby.release == release:
                self._retire(seats.standby)
                seats.standby = None

    async def stop(self, model: str, release: bytes | None = None) -> None:
        """Ends every worker of the model, which answers no new request from now on; those admitted are finished.

        Raises:
            RefusedError: a release is named, and another answers or none.
        """
        seats = self._seats(model)
        async with seats.lock:
            if release is not None and (seats.active is None or seats.active.release != release):
                raise RefusedError(f"{release.hex()[:12]} is not what answers for {model}")
            for slot in (seats.active, seats.standby, seats.spare):
                if slot is not None:
                    self._retire(slot)
            seats.active = seats.standby = seats.spare = seats.unreadable = None

    def status(self) -> dict[str, Any]:
        """All that the agent wants to know."""
        return {
            "pid": os.getpid(),
            "forkserver": self._forks.pid,
            "runtimes": self._forks.runtimes,
            "models": {name: _described(seats) for name, seats in self._models.items()},
        }

    def close(self) -> None:
        """Ends every worker; requests still waiting are told so."""
        seated = [slot for seats in self._models.values() for slot in (seats.active, seats.standby, seats.spare)]
        for slot in (*seated, *self._retiring):
            if slot is not None:
                slot.close()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _seats(self, model: str) -> _Seats:
        return self._models.setdefault(model, _Seats())

    def _slot(self, model: str, release: bytes) -> Slot:
        """A slot for a release whose manifest is here.

        Raises:
            IntegrityError: the manifest is missing, rotten, or another model's.
        """
        digest = Digest(release)
        try:
            data = self._files.read(digest)
        except NotFoundError as error:
            raise IntegrityError(f"manifest {release.hex()[:12]} of {model} is not on this node") from error
        manifest = Manifest.parse(data, digest, len(data))
        if manifest.model != model:
            raise IntegrityError(f"manifest {release.hex()[:12]} is {manifest.release}, not a release of {model}")
        return Slot(digest, manifest, self._files, self._forks, self._limits)

    async def _load(self, slot: Slot, timeout_s: float) -> Measured:
        try:
            async with asyncio.timeout(timeout_s):
                measured = await slot.load()
        except TimeoutError:
            raise RefusedError(f"{slot.manifest.release} did not load and answer within {timeout_s:g} s") from None
        self._keep(slot)
        return measured

    def _keep(self, slot: Slot) -> None:
        self._tasks.create_task(slot.keep(), name=f"keep {slot.manifest.release}")

    def _retire(self, slot: Slot) -> None:
        """Ends a slot once the requests it took are answered."""

        async def retire() -> None:
            await slot.drained()
            slot.close()
            self._retiring.discard(slot)

        self._retiring.add(slot)

        self._tasks.create_task(retire(), name=f"retire {slot.manifest.release}")

    async def _boot_active(self, model: str, release: bytes, tuned_to: Tuned) -> None:
        seats = self._seats(model)
        async with seats.lock:
            try:
                slot = self._slot(model, release)
            except HeliographError as error:
                seats.unreadable = (release, str(error))
                log.error("%s", error)
                return
            slot.tuned = tuned_to
            seats.active = slot
            try:
                measured = await slot.load()
            except (WorkerDiedError, TransportError) as error:
                slot.interrupted(str(error))
                log.warning("%s", error)
            except HeliographError as error:
                slot.fail(str(error))
                log.error("%s", error)
                return
            else:
                log.info(
                    "%s answers, %.0f ms after its worker was asked for", slot.manifest.release, measured.cold_start_ms
                )
            self._keep(slot)

    async def _boot_standby(self, model: str, release: bytes) -> None:
        seats = self._seats(model)
        async with seats.lock:
            if seats.standby is not None or (seats.active is not None and seats.active.release == release):
                return
            try:
                slot = self._slot(model, release)
                await slot.load()
            except HeliographError as error:
                log.warning("the fallback of %s is not warm: %s", model, error)
                return
            self._keep(slot)
            seats.standby = slot


def _described(seats: _Seats) -> dict[str, Any]:
    if seats.active is None:
        release, reason = seats.unreadable or (None, "no release is active")
        described: dict[str, Any] = {
            "active": release.hex() if release else None, "version": None, "state": "failed" if release else "empty",
            "reason": reason, "requests": 0, "errors": 0, "latency_ms": {}, "restarts": 0, "waiting": 0,
            "memory_bytes": 0, "worker": None, "runtime": "", "sketch": "", "cold_start_ms": None,
            "first_request_s": None, "began_ns": 0, "config": 0, "policy": 0,
        }  # fmt: skip
    else:
        described = {"active": seats.active.release.hex(), **_slot_status(seats.active)}
        del described["release"]
    described["standby"] = _slot_status(seats.standby) if seats.standby else None
    described["spare"] = _slot_status(seats.spare) if seats.spare else None
    return described


def _slot_status(slot: Slot) -> dict[str, Any]:
    return {
        "release": slot.release.hex(),
        "version": slot.manifest.version,
        "state": slot.state,
        "reason": slot.reason,
        "requests": slot.meter.requests,
        "errors": slot.meter.errors,
        "latency_ms": slot.meter.latency_ms(),
        "restarts": slot.restarts,
        "waiting": slot.waiting,
        "memory_bytes": memory_bytes(slot.pid),
        "worker": slot.pid,
        "runtime": slot.runtime,
        "sketch": slot.meter.sketch.encode().hex(),
        "cold_start_ms": slot.measured.cold_start_ms if slot.measured is not None else None,
        "first_request_s": slot.turn()["first_request_s"],
        "began_ns": slot.began_ns,
        "config": slot.tuned.config,
        "policy": slot.tuned.policy,
        "tuned": slot.tuned.digest,
    }

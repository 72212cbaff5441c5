"""Checking a release: what is waited for, how long, and what is no reason to give up."""

import asyncio
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from heliograph.blob import describe
from heliograph.deadlines import Deadlines
from heliograph.documents import Grant, Hardware, Offer, RecipeRef, SealRef, Way
from heliograph.economy import Wait
from heliograph.errors import IntegrityError, TransportError
from heliograph.manifest import File, Golden, Manifest, Variant, manifest_digest
from heliograph.names import Digest
from heliograph.objects import ObjectStore
from heliograph.policy import Budget, OnlyFull, Policy, no_policy
from heliograph.trust import Target as Listed
from heliograph_site.happenings import Admitted, Declined, Fetched, Spoiled
from heliograph_site.machine import Command
from heliograph_site.memory import Memory, Pointer, Target
from heliograph_site.serving.tuned import Tuned
from heliograph_site.slots import Slots
from heliograph_site.surroundings import Pace
from heliograph_site.tasks import Tasks

HERE = Hardware(arch="aarch64", memory_bytes=1 << 30, runtimes={"tflite": "2.14.0"})
CONTENT = b"model"
FILE = File(name="m", length=len(CONTENT), sha256=describe(CONTENT)[0], pages=describe(CONTENT)[1])
MANIFEST = Manifest(
    model="digits",
    version="1.0.0",
    files=(FILE,),
    variants=(Variant(name="plain", files=("m",)),),
    golden=Golden(inputs="m", outputs="m"),
)
RELEASE = manifest_digest(MANIFEST)
MEMORY = Memory("digits", "checking", 7, Target(RELEASE, 1))


class Surroundings:
    """An agent that lists the one release; offers come as the test says."""

    def __init__(self, *offers: Offer | TransportError | None) -> None:
        self.offers = list(offers)
        self.waited_for: list[str] = []
        self.policy = no_policy("lab", "canary")
        self.waits: list[Wait | None] = []
        self.manifest = MANIFEST
        self.may_go: tuple[Way, ...] = ()
        self.rebuild_s = 0.0
        """How long deltas were being applied in a fetch that succeeds; 0: it doesn't."""
        self.records: list[tuple[str, str, dict[str, Any]]] = []

    def target(self, model: str, release: bytes) -> Listed:
        size = len(self.manifest.encode())
        return Listed("digits/1.0.0", "digits", "1.0.0", size, Digest(release), frozenset(), frozenset())

    async def ask(self, model: str, release: bytes) -> Offer | None:
        given = self.offers.pop(0)
        if isinstance(given, TransportError):
            raise given
        return given

    def note(self, model: str, waiting: str, *, is_news: bool = True) -> None:
        self.waited_for.append(waiting)

    def why_unsure(self) -> str | None:
        return None

    def named(self, release: bytes, manifest: Manifest) -> None:
        assert release == manifest_digest(self.manifest)

    def is_recipe_denied(self, recipe: bytes) -> bool:
        return False

    def why_unfit(self, model: str) -> None:
        return None

    def tuned(self, model: str) -> Tuned:
        return Tuned()

    def policy_of(self, model: str) -> Policy:
        return self.policy

    def why_not_fetch(self) -> Wait | None:
        return self.waits.pop(0) if self.waits else None

    async def small(self, digest: bytes, length: int) -> bytes:
        return self.manifest.encode()

    async def release(
        self, slots: Slots, manifest: Manifest, ways: tuple[Way, ...], on_progress: object, grant: Grant | None
    ) -> tuple[Way, ...]:
        self.may_go = ways
        if self.rebuild_s:
            return ways[:1]
        raise IntegrityError("the end of the test")

    def took_for(self, release: bytes) -> int:
        return 77

    def record(self, lane: str, kind: str, body: dict[str, Any]) -> None:
        self.records.append((lane, kind, body))

    def look(self) -> None:
        pass


class Serves:
    """A server that serves what it is told to."""

    async def serve(self, model: str, release: bytes, timeout_s: float = 60.0, tuned: object = None) -> dict[str, Any]:
        return {"duration_ms": None}


class FullAtFirst(ObjectStore):
    """A disk that takes nothing the first time."""

    refusals = 1

    def put(self, data: bytes) -> Digest:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().put(data)


def never() -> Offer:
    return Offer(
        realm="lab", site="shop", node="till", key=bytes(32), run=bytes(8), n=1, model="digits", release=RELEASE,
        expires=1, never=True, reason="the end of the test",
    )  # fmt: skip


def check(
    folder: Path,
    around: Surroundings,
    prepare: Callable[[Slots], object] = lambda slots: None,
    memory: Memory = MEMORY,
    command: Command = Command.CHECK,
) -> Any:
    """What checking answers; with `Command.FETCH`, what fetching does after it."""
    slots = Slots(folder)
    prepare(slots)
    server: Any = Serves()
    agent: Any = around
    pace = Pace(poll_s=0.001, retry_s=0.001)
    tasks = Tasks(agent, slots, agent, server, HERE, Random(1), Deadlines(offer_s=0.01), pace)

    async def perform() -> Any:
        async with asyncio.timeout(20):
            answer = await tasks.perform(Command.CHECK, memory)
            return answer if command is Command.CHECK else await tasks.perform(command, memory)

    return asyncio.run(perform())


def test_a_lost_ask_costs_its_own_time_and_no_second_minute(tmp_path: Path) -> None:
    around = Surroundings(None, None, None, never())
    assert check(tmp_path, around) == Declined(7, "the hub declines: the end of the test")
    assert around.waited_for.count("no answer from the hub") == 3


def test_a_disk_that_is_full_when_the_manifest_comes_is_waited_out(tmp_path: Path) -> None:
    def fill(slots: Slots) -> None:
        slots.store = FullAtFirst(slots.store.root)

    around = Surroundings(never())
    assert isinstance(check(tmp_path, around, fill), Declined)
    assert "the disk: No space left on device" in around.waited_for
    assert Slots(tmp_path).manifest(RELEASE) == MANIFEST


OLD_FILE = CONTENT[:2]
BASE = describe(OLD_FILE)[0]
FULL = Way(kind="full", blob=FILE.sha256, bytes=5)
DELTA = Way(
    kind="delta", blob=FILE.sha256, bytes=3, base=BASE, recipe=RecipeRef(length=9, sha256=describe(b"recipe")[0])
)


def offer(*ways: Way) -> Offer:
    return never().model_copy(update={"never": False, "reason": "", "ways": ways})


def hold_base(slots: Slots) -> None:
    slots.store.put(OLD_FILE)


@pytest.mark.parametrize(
    ("full", "has_base", "ways", "says"),
    [
        ("full", True, (FULL,), Admitted(7)),
        ("wait", False, (FULL,), Admitted(7)),
        ("wait", True, (FULL, DELTA), Admitted(7)),
        ("fail", True, (FULL, DELTA), Admitted(7)),
        ("fail", False, (FULL,), Admitted(7)),
        ("fail", True, (FULL,), Declined(7, "only the full image is offered, and policy 3 refuses that")),
        ("wait", True, (FULL,), Declined(7, "the hub declines: the end of the test")),
    ],
)
def test_policy_budget_full_says_what_follows_where_only_the_full_image_will_do(
    tmp_path: Path, full: OnlyFull, has_base: bool, ways: tuple[Way, ...], says: object
) -> None:
    around = Surroundings(offer(*ways), never())
    around.policy = Policy(realm="lab", ring="canary", number=3, at=0, budget=Budget(full=full))
    memory = replace(MEMORY, active=Pointer(BASE, 1) if has_base else None)
    assert check(tmp_path, around, hold_base, memory) == says
    waited = "a delta: policy 3 waits for one" in around.waited_for
    assert waited is (isinstance(says, Declined) and full == "wait")


SMALL = FULL.model_copy(update={"blob": bytes(32), "bytes": 1})
SMALL_DELTA = DELTA.model_copy(update={"blob": bytes(32), "bytes": 0})
OFFERED = (DELTA, FULL, SMALL_DELTA, SMALL)


@pytest.mark.parametrize(
    ("full", "has_base", "has_spoiled", "may_go"),
    [
        ("full", True, False, OFFERED),
        ("full", True, True, (FULL, SMALL)),
        ("wait", True, False, (DELTA, SMALL_DELTA, SMALL)),
        ("fail", True, False, (DELTA, SMALL_DELTA, SMALL)),
        ("wait", True, True, (DELTA, SMALL)),
        ("fail", True, True, (DELTA, SMALL)),
        ("wait", False, False, OFFERED),
        ("wait", False, True, (FULL, SMALL)),
    ],
)
def test_no_fetch_turns_to_a_full_image_that_policy_budget_full_does_not_take(
    tmp_path: Path, full: OnlyFull, has_base: bool, has_spoiled: bool, may_go: tuple[Way, ...]
) -> None:
    around = Surroundings(offer(*OFFERED))
    around.policy = Policy(realm="lab", ring="canary", number=3, at=0, budget=Budget(full=full))
    memory = replace(MEMORY, active=Pointer(BASE, 1) if has_base else None, full_only=has_spoiled)
    assert check(tmp_path, around, hold_base, memory, Command.FETCH) == Spoiled(7, "the end of the test")
    assert around.may_go == may_go


def test_what_a_release_cost_the_link_and_the_machine_is_recorded(tmp_path: Path) -> None:
    around = Surroundings(offer(DELTA, FULL))
    around.rebuild_s = 1.2345
    assert check(tmp_path, around, hold_base, MEMORY, Command.FETCH) == Fetched(7)
    body = {"model": "digits", "release": RELEASE, "way": "delta", "bytes": 77, "rebuild_ms": 1234}
    assert around.records == [("audit", "fetched", body)]


def test_nothing_is_asked_while_policy_lets_nothing_be_fetched(tmp_path: Path) -> None:
    around = Surroundings(never())
    around.waits = [Wait("the window for fetching that opens at 2026-11-23 02:00 UTC", 9)] * 3
    assert isinstance(check(tmp_path, around), Declined)
    waits = around.waited_for.index("an offer from the hub")
    assert around.waited_for[waits - 3 : waits] == ["the window for fetching that opens at 2026-11-23 02:00 UTC"] * 3


def test_a_node_whose_asks_are_refused_says_so_once_and_not_at_each_try(tmp_path: Path) -> None:
    refused = TransportError("broker refuses the message: Not authorized")
    around = Surroundings(refused, refused, refused, never())
    assert isinstance(check(tmp_path, around), Declined)
    said = [reason for reason in around.waited_for if "offer" in reason]
    sentence = "an offer from the hub: broker refuses the message: Not authorized"
    assert list(dict.fromkeys(said)) == ["an offer from the hub", sentence]
    assert said.index(sentence) == 1 and set(said[1:]) == {sentence}, "each change would be reported"


def test_a_release_that_lies_here_whole_waits_for_no_window_to_be_asked_for(tmp_path: Path) -> None:
    around = Surroundings(never())
    around.waits = [Wait("the window", 9)]
    assert isinstance(check(tmp_path, around, lambda slots: slots.store.put(CONTENT)), Declined)
    assert around.waits, "nobody asked about windows"


def test_a_confidential_release_is_taken_only_sealed_and_with_a_key(tmp_path: Path) -> None:
    sealed = FULL.model_copy(update={"seal": SealRef(length=9, sha256=bytes(32))})
    granted = offer(sealed).model_copy(update={"grant": Grant(model="digits", epoch=1, box=bytes(80))})
    around = Surroundings(offer(FULL), offer(FULL, DELTA), offer(sealed), granted)
    around.manifest = MANIFEST.model_copy(update={"confidential": True, "crit": ("confidential",)})
    memory = replace(MEMORY, target=Target(manifest_digest(around.manifest), 1))
    assert check(tmp_path, around, hold_base, memory) == Admitted(7)
    said = [reason for reason in around.waited_for if reason.startswith("the hub offers")]
    assert said == [
        "the hub offers no way to m that keeps it sealed",
        "the hub offers no way to m that keeps it sealed",
        "the hub offers digits@1.0.0 sealed, and no key that opens it",
    ]

"""What tasks make of gates, hardware fit, and the node's small files."""

import asyncio
import base64
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from heliograph.deadlines import Deadlines
from heliograph.documents import Hardware, Phase
from heliograph.economy import Wait
from heliograph.errors import ConfigError, RefusedError
from heliograph.manifest import File, Gate, Golden, Manifest, Soak, Variant
from heliograph.policy import ModelRules, Policy, no_policy
from heliograph.wire import pack
from heliograph_site.folder import JOIN_PREFIX, JoinString, read_node_file
from heliograph_site.happenings import Answer, Declined, Failed, Passed, Proved
from heliograph_site.hardware import detect, why_unfit
from heliograph_site.machine import Command
from heliograph_site.memory import Memory, Pointer, Target
from heliograph_site.serving.tuned import Tuned
from heliograph_site.slots import Slots
from heliograph_site.surroundings import Pace
from heliograph_site.tasks import Tasks

HERE = Hardware(arch="aarch64", memory_bytes=1 << 30, runtimes={"tflite": "2.14.0"})
TLS_STRING = JoinString("hub", 8883, "lab", "shop-1", "till-2", b"t" * 32, b"r" * 32, False, b"p" * 32, 8884)
STRING = JoinString("10.0.0.1", 1883, "lab", "shop-1", "till-2", b"t" * 32, b"r" * 32)


def manifest(variant: Variant, min_agent: str = "0") -> Manifest:
    file = File(name="m", length=0, sha256=bytes(32), pages=())
    return Manifest(
        model="digits",
        version="1.0.0",
        files=(file,),
        variants=(variant,),
        golden=Golden(inputs="m", outputs="m"),
        min_agent=min_agent,
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arch": ("x86_64",)}, "is for x86_64, this is aarch64"),
        ({"runtime": "onnx"}, "needs runtime onnx, which isn't installed"),
        ({"min_runtime": "2.15"}, "needs tflite 2.15, here is 2.14.0"),
        ({"accelerator": "npu"}, "needs accelerator npu"),
        ({"memory_bytes": 1 << 31}, "needs 2147483648 bytes of memory"),
    ],
)
def test_what_does_not_fit_is_declined_with_the_reason(change: dict[str, object], says: str) -> None:
    plain = Variant(name="plain", files=("m",), min_runtime="2.9")
    assert why_unfit(manifest(plain), HERE) is None
    reason = why_unfit(manifest(plain.model_copy(update=change)), HERE)
    assert reason is not None and says in reason


def test_a_release_for_a_newer_agent_is_declined() -> None:
    reason = why_unfit(manifest(Variant(name="plain", files=("m",)), min_agent="99.0"), HERE)
    assert reason is not None and reason.startswith("digits@1.0.0 needs agent 99.0")


def test_this_machine_is_described_without_loading_a_runtime() -> None:
    found = detect()
    assert found.arch and found.memory_bytes > 1 << 20


def test_a_join_string_comes_back_as_it_was_printed() -> None:
    assert JoinString.parse(f"  {STRING.encode()}\n") == STRING
    assert STRING.node_file(0).ca == "" and TLS_STRING.node_file(0).ca == "70" * 32
    for string in (TLS_STRING, replace(TLS_STRING, protected=True)):
        assert JoinString.parse(string.encode()) == string
    assert "=" not in STRING.encode()
    protected = replace(STRING, protected=True)
    assert JoinString.parse(protected.encode()) == protected and protected.node_file(0).protected
    assert not STRING.node_file(0).protected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a join string"),
        ("heliograph2:AAAA", "not a join string: it begins with 'heliograph1:'"),
        (STRING.encode()[:-5], "damaged: copy all"),
        (JOIN_PREFIX + "!!!", "damaged: copy all"),
        (
            JOIN_PREFIX + base64.urlsafe_b64encode(pack([3, "x"])).decode(),
            "is of version 3, this version reads 1 and 2",
        ),
        (replace(TLS_STRING, pin=b"short").encode(), "damaged: copy all"),
        (replace(TLS_STRING, enroll_port=0).encode(), "damaged: copy all"),
        (replace(TLS_STRING, enroll_port=70000).encode(), "doesn't hold: enroll_port"),
        (replace(STRING, site="Shop 1").encode(), "doesn't hold: site"),
        (replace(STRING, port=70000).encode(), "doesn't hold: port"),
        (replace(STRING, token=b"short").encode(), "damaged: copy all"),
        (replace(STRING, protected=2).encode(), "damaged: copy all"),
    ],
)
def test_a_bad_join_string_is_refused_in_one_sentence(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as failure:
        JoinString.parse(text)
    assert says in str(failure.value) and "\n" not in str(failure.value)


def test_node_toml_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path
    file = STRING.node_file(8080)
    (folder / "node.toml").write_bytes(file.encode())
    assert read_node_file(folder) == file
    (folder / "node.toml").write_bytes(file.encode() + b"speed = 3\n")
    with pytest.raises(ConfigError, match=r"node\.toml: speed: Extra inputs"):
        read_node_file(folder)
    (folder / "node.toml").write_bytes(b"format = [")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_node_file(folder)
    with pytest.raises(ConfigError, match="is not a node's folder: run `heliograph node join` first"):
        read_node_file(folder / "nowhere")


class Around:
    """What `Tasks` needs of an agent to check a release that lies here already, and what it told."""

    def __init__(self) -> None:
        self.records: list[tuple[str, str, dict[str, Any]]] = []
        self.told: list[Answer] = []
        self.noted: list[str] = []
        self.policy = no_policy("lab", "canary")
        self.waits: list[Wait | None] = []

    async def tell(self, model: str, answer: Answer) -> None:
        self.told.append(answer)

    def target(self, model: str, release: bytes) -> object:
        return object()

    def note(self, model: str, waiting: str, *, is_news: bool = True) -> None:
        self.noted.append(waiting)

    def named(self, release: bytes, manifest: Manifest) -> None:
        pass

    def why_unsure(self) -> None:
        return None

    def why_unfit(self, model: str) -> None:
        return None

    def tuned(self, model: str) -> Tuned:
        return Tuned(3, 2)

    def why_not_yet(self, model: str, release: bytes) -> None:
        return None

    def policy_of(self, model: str) -> Policy:
        return self.policy

    def why_not_fetch(self) -> None:
        return None

    def why_not_activate(self, model: str, version: str, activated_at: int | None) -> Wait | None:
        return self.waits.pop(0) if self.waits else None

    def now(self) -> int:
        return 1

    def record(self, lane: str, kind: str, body: dict[str, Any]) -> None:
        self.records.append((lane, kind, body))


class Loads:
    """A server that loads anything: slowly, into much memory."""

    async def check(self, model: str, release: bytes, files: Any = None, timeout_s: float = 60.0) -> dict[str, Any]:
        return {"cold_start_ms": 900.0, "golden_max_error": 0.0, "memory_bytes": 10**9}


def performed(
    folder: Path, command: Command, phase: Phase, *gates: Gate, around: Around | None = None
) -> tuple[object, Around]:
    """What comes of a command for a release with these gates, whose manifest lies here."""
    slots, around = Slots(folder), around or Around()
    release = slots.store.put(
        manifest(Variant(name="plain", files=("m",))).model_copy(update={"gates": gates}).encode()
    )
    tasks = Tasks(around, slots, None, Loads(), HERE, Random(1), Deadlines(), Pace(poll_s=0.001))
    return asyncio.run(tasks.perform(command, Memory("digits", phase, 1, Target(release, 1)))), around


def test_a_release_with_a_gate_that_this_agent_can_not_judge_is_declined_in_words(tmp_path: Path) -> None:
    event, _ = performed(tmp_path, Command.CHECK, "checking", Gate(name="temperature", limit=80))
    assert event == Declined(1, "digits@1.0.0 has gate temperature, which this agent can't judge")


def test_what_takes_too_long_to_load_never_answers_and_the_verdict_is_recorded(tmp_path: Path) -> None:
    event, around = performed(tmp_path, Command.ACTIVATE, "activating", Gate(name="cold-start-ms", limit=500))
    reason = "cold start 900 ms over its limit of 500 ms"
    assert event == Failed(1, reason)
    [(lane, kind, body)] = around.records
    assert (lane, kind, body["verdict"], body["reason"]) == ("audit", "verdict", "failed", reason)
    assert body["evidence"] == [["cold-start-ms", 500.0, 900.0, 1, True]]
    event, around = performed(tmp_path, Command.ACTIVATE, "activating", Gate(name="memory-bytes", limit=2e9))
    assert isinstance(event, Passed) and around.records == []


def by_policy(**rules: Any) -> Around:
    """An agent whose policy says this of the model."""
    around = Around()
    around.policy = Policy(realm="lab", ring="canary", number=3, at=0, models={"digits": ModelRules(**rules)})
    return around


def test_policy_gates_tighten_what_the_manifest_promises_and_never_loosen_it(tmp_path: Path) -> None:
    cold = Gate(name="cold-start-ms", limit=5000)
    tighter = by_policy(gates=(Gate(name="cold-start-ms", limit=800),))
    event, _ = performed(tmp_path, Command.ACTIVATE, "activating", cold, around=tighter)
    assert event == Failed(1, "cold start 900 ms over its limit of 800 ms")
    looser = by_policy(gates=(Gate(name="cold-start-ms", limit=9000),))
    event, _ = performed(tmp_path, Command.ACTIVATE, "activating", Gate(name="cold-start-ms", limit=500), around=looser)
    assert event == Failed(1, "cold start 900 ms over its limit of 500 ms")
    added = by_policy(gates=(Gate(name="memory-bytes", limit=1000),))
    assert isinstance(performed(tmp_path, Command.ACTIVATE, "activating", around=added)[0], Failed)
    unknown = by_policy(gates=(Gate(name="temperature", limit=80),))
    event, _ = performed(tmp_path, Command.CHECK, "checking", around=unknown)
    assert event == Declined(1, "digits@1.0.0 has gate temperature, which this agent can't judge")


def test_policy_fail_mode_goes_before_the_manifests(tmp_path: Path) -> None:
    event, _ = performed(tmp_path, Command.ACTIVATE, "activating", around=by_policy(fail_mode="closed"))
    assert isinstance(event, Passed) and event.fail_mode == "closed"


def test_activating_waits_for_what_policy_waits_for_and_goes_on_by_itself(tmp_path: Path) -> None:
    around = Around()
    around.waits = [Wait("the window for activating that opens at 2026-11-23 02:00 UTC", 9)] * 3
    event, _ = performed(tmp_path, Command.ACTIVATE, "activating", around=around)
    assert isinstance(event, Passed)
    assert around.noted.count("the window for activating that opens at 2026-11-23 02:00 UTC") == 3


class Answers(Loads):
    """A server that switches, unless the release is rotten; `rows` are what it says of itself, one after the other."""

    def __init__(self, active: bytes, *rows: dict[str, Any], rotten: bytes = b"") -> None:
        self.active, self.rotten = active, rotten
        self.rows = list(rows)

    async def serve(
        self, model: str, release: bytes, timeout_s: float = 60.0, tuned: Tuned | None = None
    ) -> dict[str, Any]:
        assert tuned == Tuned(3, 2)
        if release == self.rotten:
            raise RefusedError("it is rotten")
        self.active = release
        return {"duration_ms": 1.0, "failed": 0, "before": None}

    async def status(self) -> dict[str, Any]:
        return {"models": {"digits": self.rows.pop(0) if self.rows else {"active": self.active.hex()}}}


OLD, NEW = b"o" * 32, b"n" * 32


@pytest.mark.parametrize("rotten", [b"", NEW])
def test_whatever_cut_the_switch_short_checking_begins_with_it(tmp_path: Path, rotten: bytes) -> None:
    slots, around, server = Slots(tmp_path), Around(), Answers(OLD, rotten=rotten)
    wanted = slots.store.put(manifest(Variant(name="plain", files=("m",), arch=("vax",))).encode())
    tasks = Tasks(around, slots, None, server, HERE, Random(1), Deadlines(), Pace())
    memory = Memory("digits", "checking", 7, Target(wanted, 2), active=Pointer(NEW, 5, 1))
    assert isinstance(asyncio.run(tasks.perform(Command.CHECK, memory)), Declined)
    assert server.active == (OLD if rotten else NEW)
    assert around.told == ([Failed(7, "it is rotten")] if rotten else [])
    around.told.clear()
    known = replace(memory, active=Pointer(NEW, 5, 1, "failed"))
    asyncio.run(tasks.perform(Command.CHECK, known))
    assert around.told == [], "and what is known to fail is not told again"


def test_what_the_server_said_of_the_release_before_proves_nothing(tmp_path: Path) -> None:
    slots, around = Slots(tmp_path), Around()
    plain = manifest(Variant(name="plain", files=("m",))).model_copy(update={"soak": Soak(min_s=0, max_s=1)})
    release = slots.store.put(plain.encode())
    other = {"active": OLD.hex(), "state": "failed", "reason": "it died", "requests": 9}
    quiet = {"active": release.hex(), "state": "ready", "requests": 0}
    server = Answers(OLD, other, *[quiet] * 1000)
    tasks = Tasks(around, slots, None, server, HERE, Random(1), Deadlines(), Pace(poll_s=0.01))
    memory = Memory("digits", "proving", 3, Target(release, 1), active=Pointer(release, 5, 1))
    assert asyncio.run(tasks.perform(Command.PROVE, memory)) == Proved(3, "unproven")


@pytest.mark.parametrize(("rule", "returns"), [("extend", False), ("return", True)])
def test_policy_unproven_is_said_with_the_verdict(tmp_path: Path, rule: str, returns: bool) -> None:
    slots, around = Slots(tmp_path), by_policy(unproven=rule)
    plain = manifest(Variant(name="plain", files=("m",))).model_copy(update={"soak": Soak(min_s=0, max_s=0)})
    release = slots.store.put(plain.encode())
    server = Answers(release, *[{"active": release.hex(), "state": "ready", "requests": 0}] * 1000)
    tasks = Tasks(around, slots, None, server, HERE, Random(1), Deadlines(), Pace(poll_s=0.01))
    memory = Memory("digits", "proving", 3, Target(release, 1), active=Pointer(release, 5, 1))
    assert asyncio.run(tasks.perform(Command.PROVE, memory)) == Proved(3, "unproven", returns)

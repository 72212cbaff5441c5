"""An agent with a real hub and broker: releases come, are judged and reported, whatever fails on the way."""

import asyncio
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from agents import TIMING, Hub, Node, at_rest_with, delivered, enrol
from heliograph.connection import Broker
from heliograph.lab import Proxy, Running, spawn
from heliograph.mqtt import Mqtt
from heliograph.names import Digest
from heliograph.protocol import topic
from heliograph_hub.client import HubClient
from heliograph_site.journal import JOURNAL_FILE, Journal
from heliograph_site.outbox import OUTBOX_FILE, Outbox
from heliograph_site.reporting import Incidents
from heliograph_site.status import status
from waits import until


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub of the test's own."""
    found = Hub(tmp_path_factory.mktemp("hub"))
    yield found
    found.stop()


def test_a_release_arrives_in_full_and_the_next_as_a_delta_and_all_is_reported(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "arrives")
    old = Random(1).randbytes(600_000)
    new = old[:300_000] + b"a few new bytes" + old[300_015:]
    hub.release(tmp_path, "arrives", "1.0.0", old)

    async def live() -> None:
        async with node.running() as agent:
            await until(at_rest_with(agent, "arrives", "1.0.0"), "1.0.0 proven")
            assert agent.bytes_received > 600_000
            before = agent.bytes_received
            await asyncio.to_thread(hub.release, tmp_path, "arrives", "1.1.0", new)
            await until(at_rest_with(agent, "arrives", "1.1.0"), "1.1.0 proven")
            assert agent.bytes_received - before < 150_000
            memory = agent.memories["arrives"]
            assert memory.fallback is not None and memory.fallback.verdict == "proven"
            assert memory.active is not None
            manifest = agent._slots.manifest(memory.active.release)
            assert manifest is not None
            assert agent._slots.store.read(Digest(manifest.file("model.tflite").sha256)) == new
            assert not list((node.folder / "incoming").iterdir())
            await until(lambda: delivered(agent), "records receipted")
            assert agent.outbox.status()["audit"].receipted == 12 + 2 * 3, (
                "each time six steps, the bytes, a switch, a verdict"
            )
            assert agent.outbox.status()["incident"].written == 0
            await until(is_reported, "reported")

    def is_reported() -> bool:
        model = hub.fleet(capsys, "arrives")["models"]["arrives"]
        return bool(model["phase"] == "idle" and model["active"]["release"] == "arrives@1.1.0")

    asyncio.run(live())
    row = hub.fleet(capsys, "arrives")
    assert row["ring"] == "canary"
    assert row["bytes_received"] > 600_000


def test_a_release_with_wrong_outputs_never_serves_and_is_refused_for_good(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "wrong")
    hub.release(tmp_path, "wrong", "1.0.0", b"good" * 2000)

    async def live() -> None:
        async with node.running() as agent:
            await until(at_rest_with(agent, "wrong", "1.0.0"), "1.0.0 proven")
            good = agent.memories["wrong"].active
            node.server.refuses = "output differs by 0.5"
            await asyncio.to_thread(hub.release, tmp_path, "wrong", "1.1.0", b"bad!" * 2000)
            await until(lambda: bool(agent.memories["wrong"].refused), "1.1.0 refused")
            await until(lambda: agent.memories["wrong"].phase == "idle", "at rest")
            assert agent.memories["wrong"].active == good
            assert good is not None and node.server.row["wrong"]["active"] == good.release.hex()
            await until(lambda: agent.outbox.status()["incident"].receipted == 1, "the refusal is told")
        node.server.refuses = ""
        checked = len(node.server.checked)
        async with node.running() as agent:
            await until(lambda: agent.is_up and delivered(agent), "back on line")
            await until(lambda: agent._link.nonce is None, "replied")
            assert agent.memories["wrong"].phase == "idle"
            assert len(node.server.checked) == checked

    asyncio.run(live())
    facts = status(node.folder)["models"]["wrong"]
    assert [(r["release"], r["reason"]) for r in facts["refused"]] == [("wrong@1.1.0", "output differs by 0.5")]
    assert facts["active"]["release"] == "wrong@1.0.0"


def test_a_server_that_is_not_there_is_waited_for_and_not_held_against_the_release(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "absent")
    hub.release(tmp_path, "absent", "1.0.0", b"model" * 1000)
    node.server.is_there = False

    async def live() -> None:
        async with node.running() as agent:
            await until(lambda: "absent" in agent.memories and agent.memories["absent"].phase == "activating", "staged")
            await until(
                lambda: "can't be reached" in agent.journal.waiting().get("absent", ""), "says what it waits for"
            )
            node.server.is_there = True
            await until(at_rest_with(agent, "absent", "1.0.0"), "proven")
            assert agent.memories["absent"].refused == ()

    asyncio.run(live())


def test_failed_requests_during_probation_bring_back_what_served_before(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "proves")
    hub.release(tmp_path, "proves", "1.0.0", b"one" * 3000)

    async def live() -> None:
        async with node.running() as agent:
            await until(at_rest_with(agent, "proves", "1.0.0"), "1.0.0 proven")
            good = agent.memories["proves"].active
            await asyncio.to_thread(hub.release, tmp_path, "proves", "1.1.0", b"two" * 3000, 600)
            await until(lambda: agent.memories["proves"].phase == "proving", "on probation")
            node.server.fails_requests = True
            await until(lambda: agent.memories["proves"].phase == "idle", "back at rest")
            node.server.fails_requests = False
            memory = agent.memories["proves"]
            assert memory.active == good and memory.fallback is None
            assert "requests failed during probation" in memory.refused[0].reason
            assert good is not None and node.server.row["proves"]["active"] == good.release.hex()
            await until(lambda: delivered(agent), "told")
            rows = HubClient(str(hub.folder)).get("/v1/fleet/proves/n1/records/incident")
            told = {row["kind"]: row["body"] for row in rows}
            assert set(told) == {"release-refused", "rolled-back"}
            back = told["rolled-back"]
            assert back["reason"] == memory.refused[0].reason and back["from"] == memory.refused[0].release.hex()
            assert back["failed"] > 0 and back["restore_ms"] >= 0
            rows = HubClient(str(hub.folder)).get("/v1/fleet/proves/n1/timeline")["rows"]
            (row,) = [row for row in rows if row["kind"] == "rolled-back"]
            went = row["rollback"]
            assert (went["left"], went["resumed"]) == ("proves@1.1.0", "proves@1.0.0")
            assert went["begun_by"] == "the node itself, which saw it fail" and went["failed"] == back["failed"]
            (tripped,) = went["tripped"]
            assert tripped["measured"] > tripped["limit"] and "ROLLED BACK from proves@1.1.0" in row["says"]
            acts = [row["says"] for row in rows if row["kind"] == "act"]
            assert "approved release proves@1.1.0" in acts and "started the rollout of proves@1.1.0" in acts
            assert len(acts) < len(rows)

    asyncio.run(live())


def test_a_fetch_goes_on_where_the_link_was_cut(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = Random(2).randbytes(900_000)

    async def live(node: Node, proxy: Proxy) -> None:
        async with node.running() as agent:
            await until(lambda: agent.bytes_received > 300_000, "a third is there")
            await proxy.cut(reset=True)
            await until(lambda: not agent.is_up, "the link is down")
            await until(lambda: agent.journal.link() == "down", "and told")
            proxy.restore()
            await until(at_rest_with(agent, "cut", "1.0.0"), "proven")
            assert agent.bytes_received < 1_100_000
            await until(lambda: delivered(agent), "records receipted")
            status = agent.outbox.status()["audit"]
            assert (status.lost, status.receipted) == (0, status.written)

    async def run() -> None:
        async with Proxy(hub.port, rate_bytes_per_s=500_000) as proxy:
            node = await asyncio.to_thread(enrol, hub, tmp_path, capsys, "cut", proxy.port)
            await asyncio.to_thread(hub.release, tmp_path, "cut", "1.0.0", content)
            await live(node, proxy)

    asyncio.run(run())


def test_a_fetch_goes_on_where_the_agent_was_killed(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = Random(3).randbytes(900_000)

    def start(folder: Path, life: int) -> Running:
        return spawn([sys.executable, "-m", "heliograph_site.agent", folder], tmp_path / f"agent-{life}.log")

    lives: list[Running] = []

    async def run() -> Path:
        async with Proxy(hub.port, rate_bytes_per_s=300_000) as proxy:
            node = await asyncio.to_thread(enrol, hub, tmp_path, capsys, "killed", proxy.port)
            await asyncio.to_thread(hub.release, tmp_path, "killed", "1.0.0", content)
            at_first = proxy.bytes_down
            agent = start(node.folder, 1)
            lives.append(agent)
            await until(lambda: proxy.bytes_down - at_first > 450_000, "half is there")
            agent.kill()
            assert "Fetched" not in agent.output()
            before = proxy.bytes_down
            agent = start(node.folder, 2)
            lives.append(agent)
            await until(lambda: "staging -> activating" in agent.output(), "fetched and verified")
            assert proxy.bytes_down - before < 650_000
            agent.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(agent.process.wait, 60) == 0
            return node.folder

    try:
        folder = asyncio.run(run())
    finally:
        for life in lives:
            life.kill()
    facts = status(folder)
    assert facts["link"] == "down"
    assert facts["models"]["killed"]["phase"] == "activating"
    with Outbox(folder / OUTBOX_FILE, None) as outbox:
        ledger = outbox.status()["audit"]
        assert ledger.kept + ledger.merged + ledger.lost + ledger.receipted == ledger.written


def test_a_node_restarts_and_serves_with_no_hub_and_tells_of_it_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub(tmp_path)
    try:
        node = enrol(hub, tmp_path, capsys, "alone")
        hub.release(tmp_path, "alone", "1.0.0", b"model" * 1000)

        async def arrive() -> None:
            async with node.running() as agent:
                await until(at_rest_with(agent, "alone", "1.0.0"), "proven")

        async def stay() -> None:
            node.server.row.clear()
            async with node.running() as agent:
                await until(lambda: "alone" in node.server.row, "serves")
                await until(lambda: agent.outbox.status()["metric"].kept > 0, "counts")
                assert not agent.is_up

        async def tell() -> None:
            async with node.running() as agent:
                kept = agent.outbox.status()["metric"]
                assert kept.kept > 0
                await until(lambda: agent.outbox.status()["metric"].receipted >= kept.kept, "told")
                assert all(lane.lost == 0 for lane in agent.outbox.status().values())

        asyncio.run(arrive())
        hub.stop()
        asyncio.run(stay())
        hub.start()
        asyncio.run(tell())
    finally:
        hub.stop()


def test_hostile_messages_are_recorded_at_a_bounded_rate_and_change_nothing(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "hostile")
    hub.release(tmp_path, "hostile", "1.0.0", b"model" * 1000)
    names = {"site": "hostile", "node": "n1"}
    rng = Random(4)

    async def live() -> None:
        async with node.running() as agent:
            await until(at_rest_with(agent, "hostile", "1.0.0"), "proven")
            before = agent.memories["hostile"]
            trusted, assignment = agent._belief.trusted, agent._belief.assignment
            up = asyncio.Event()

            async def on_link(is_up: bool) -> None:
                if is_up:
                    up.set()

            async def on_message(*_: object) -> None:
                pass

            foe = Mqtt(Broker("127.0.0.1", hub.port), "foe", [], rng, on_message, on_link, timing=TIMING)
            running = asyncio.ensure_future(foe.run())
            await up.wait()
            own = {
                name: topic(name).build("lab", **names) for name in ("assigned", "offer", "receipt", "reply", "chunk")
            }
            began = time.monotonic()
            junk = [b"", b"\xc1", b"\x94\x01\xa5reply\xc4\x00\x90", rng.randbytes(300), b"\xdd\xff\xff\xff\xff"]
            sent = 0
            for full in (
                *own.values(),
                topic("set").build("lab"),
                topic("head").build("lab"),
                topic("root").build("lab", number=2),
                topic("desired").build("lab", ring="canary"),
                f"heliograph/v1/lab/node/hostile/n1/down/{'x' * 10}",
            ):
                for payload in junk:
                    await foe.publish(full, payload, qos=1)
                    sent += 1
            await until(lambda: agent._incidents.count >= 30, "hostile messages were met")
            await until(lambda: agent._downloads.corrupt >= len(junk), "chunks too")
            running.cancel()
            assert agent.memories["hostile"] == before
            assert (agent._belief.trusted, agent._belief.assignment) == (trusted, assignment)
            most = Incidents.PER_MINUTE * (1 + (time.monotonic() - began) / 60)
            assert agent.outbox.status()["incident"].written <= most
            assert agent._incidents.suppressed > 0
            await until(lambda: delivered(agent), "and it still talks")

    asyncio.run(live())


def test_a_release_under_which_the_power_fails_twice_is_demoted(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "power")
    hub.release(tmp_path, "power", "1.0.0", b"one" * 3000)

    async def prove() -> None:
        async with node.running() as agent:
            await until(at_rest_with(agent, "power", "1.0.0"), "1.0.0 proven")
            await asyncio.to_thread(hub.release, tmp_path, "power", "1.1.0", b"two" * 3000, 600)
            await until(lambda: agent.memories["power"].is_healthy, "1.1.0 on probation, and healthy")

    async def resume(after_cut: int) -> None:
        with Journal(node.folder / JOURNAL_FILE) as journal:
            journal.save_life(True)  # as a power cut leaves it
        async with node.running() as agent:
            if after_cut == 1:
                await until(lambda: agent.memories["power"].cuts == 1, "probation goes on")
                assert agent.memories["power"].phase == "proving"
                return
            await until(at_rest_with(agent, "power", "1.0.0"), "1.0.0 serves again")
            refused = agent.memories["power"].refused
            assert [refusal.reason for refusal in refused] == ["the node stopped again during its probation"]

    async def restart_in_order() -> None:
        async with node.running() as agent:
            await until(lambda: agent.is_up, "up")
            assert (agent.memories["power"].phase, agent.memories["power"].cuts) == ("proving", 0)

    asyncio.run(prove())
    asyncio.run(restart_in_order())
    asyncio.run(resume(1))
    asyncio.run(resume(2))

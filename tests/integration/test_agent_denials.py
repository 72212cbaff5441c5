"""An agent and denials, with a real hub and broker: what is denied gives way, whenever the node hears of it."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from agents import Hub, at_rest_with, delivered, enrol
from heliograph.lab import Proxy
from heliograph.names import Digest
from heliograph_site.agent import Agent
from heliograph_site.happenings import Event
from heliograph_site.memory import Memory
from heliograph_site.status import status
from waits import until


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub of the test's own."""
    found = Hub(tmp_path_factory.mktemp("hub"))
    yield found
    found.stop()


def test_a_release_denied_while_it_is_fetched_is_refused_and_what_serves_goes_on(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        async with Proxy(hub.port, rate_bytes_per_s=100_000) as proxy:
            node = await asyncio.to_thread(enrol, hub, tmp_path, capsys, "fetches", proxy.port)
            await asyncio.to_thread(hub.release, tmp_path, "fetches", "1.0.0", b"one" * 3000)
            async with node.running() as agent:
                await until(at_rest_with(agent, "fetches", "1.0.0"), "1.0.0 proven")
                good = agent.memories["fetches"].active
                await asyncio.to_thread(hub.release, tmp_path, "fetches", "1.1.0", Random(5).randbytes(2_000_000))
                await until(lambda: agent.memories["fetches"].phase == "fetching", "on its way")
                await asyncio.to_thread(hub.deny, "fetches@1.1.0", 1)
                await until(lambda: agent.memories["fetches"].phase == "idle", "stopped")
                memory = agent.memories["fetches"]
                assert (memory.active, memory.target) == (good, None)
                assert [refusal.reason for refusal in memory.refused] == ["denied"]
                await until(lambda: not list((node.folder / "incoming").iterdir()), "its bytes are gone")
                await until(lambda: delivered(agent), "told")
                assert agent.outbox.status()["incident"].written == 2, "refused, and denied"

    asyncio.run(run())
    facts = status(tmp_path / "node")
    assert facts["trust"]["deny"]["count"] == 1 and facts["trust"]["deny"]["digest"]


def test_a_denied_active_release_gives_way_to_its_fallback_and_is_gone_for_good(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "active")
    hub.release(tmp_path, "active", "1.0.0", b"one" * 3000)

    async def live() -> None:
        async with node.running() as agent:
            await until(at_rest_with(agent, "active", "1.0.0"), "1.0.0 proven")
            await asyncio.to_thread(hub.release, tmp_path, "active", "1.1.0", b"two" * 3000)
            await until(at_rest_with(agent, "active", "1.1.0"), "1.1.0 proven")
            bad = agent.memories["active"].active
            assert bad is not None and bad.path == "active/1.1.0" and len(bad.vouchers) == 3
            await asyncio.to_thread(hub.deny, "active@1.1.0", 1)
            await until(at_rest_with(agent, "active", "1.0.0"), "1.0.0 serves again")
            memory = agent.memories["active"]
            assert memory.active is not None and memory.fallback is None
            assert node.server.row["active"]["active"] == memory.active.release.hex()
            await until(lambda: not agent._slots.store.has(Digest(bad.release)), "its bytes are gone")
            await until(is_acknowledged, "the hub knows")

    def is_acknowledged() -> bool:
        capsys.readouterr()
        hub.operate("fleet", "show", "active/n1", "--json")
        return bool(json.loads(capsys.readouterr().out)["deny"]["acknowledged"])

    asyncio.run(live())


def test_what_nothing_names_answers_no_longer_where_nothing_else_can_be_served(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "strays")
    hub.release(tmp_path, "strays", "1.0.0", b"one" * 3000)

    async def live() -> None:
        async with node.running() as agent:
            await until(at_rest_with(agent, "strays", "1.0.0"), "1.0.0 proven")
            row = node.server.row["strays"]
            row["state"] = "failed"
            await until(lambda: agent.memories["strays"].phase == "stuck", "given up")
            row["active"] = b"denied long ago".ljust(32).hex()
            await until(lambda: "strays" not in node.server.row, "it is stopped")

    asyncio.run(live())


def test_a_denial_of_one_models_release_leaves_the_other_models_alone(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run() -> None:
        async with Proxy(hub.port) as proxy:
            node = await asyncio.to_thread(enrol, hub, tmp_path, capsys, "several", proxy.port)
            await asyncio.to_thread(hub.release, tmp_path, "calm", "1.0.0", b"one" * 3000)
            async with node.running() as agent:
                await until(at_rest_with(agent, "calm", "1.0.0"), "calm is proven")
                proxy.rate_bytes_per_s = 30_000  # so that the first is still on its way when the second is
                await asyncio.to_thread(hub.release, tmp_path, "good", "1.0.0", Random(6).randbytes(600_000))
                await asyncio.to_thread(hub.release, tmp_path, "bad", "1.0.0", Random(7).randbytes(600_000))
                await until(lambda: phase(agent, "bad") == phase(agent, "good") == "fetching", "two at once")
                calm, epoch = agent.memories["calm"], agent.memories["good"].epoch
                await asyncio.to_thread(hub.deny, "bad@1.0.0", 1)
                await until(lambda: phase(agent, "bad") == "idle", "the denied one is stopped")
                proxy.rate_bytes_per_s = 0.0
                assert agent.memories["good"].epoch >= epoch and not agent.memories["good"].refused
                await until(at_rest_with(agent, "good", "1.0.0"), "the other arrives")
                assert agent.memories["calm"] == calm
                assert agent.memories["good"].epoch == 6, "and was never started anew"

    def phase(agent: Agent, model: str) -> str:
        memory = agent.memories.get(model)
        return memory.phase if memory is not None else ""

    asyncio.run(run())


@pytest.mark.parametrize("fail_mode", ["safe", "closed"])
def test_the_last_release_denied_once_serves_on_flagged_and_denied_twice_ends_in_its_fail_mode(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], fail_mode: str
) -> None:
    node = enrol(hub, tmp_path, capsys, "last")
    hub.release(tmp_path, "last", "1.0.0", b"one" * 3000, fail_mode=fail_mode)

    def active() -> Any:
        return status(node.folder)["models"]["last"]["active"]

    async def live() -> None:
        async with node.running() as agent:
            await until(at_rest_with(agent, "last", "1.0.0"), "1.0.0 proven")
            await asyncio.to_thread(hub.deny, "last@1.0.0", 1)
            await until(lambda: agent.memories["last"].is_last_denied, "flagged")
            assert "last" in node.server.row
            facts = (await asyncio.to_thread(status, node.folder))["models"]["last"]
            assert facts["flag"] == "serves a denied release, because nothing else is left"
            await asyncio.to_thread(hub.deny, "last@1.0.0", 2)
            if fail_mode == "safe":
                await until(lambda: getattr(agent.memories["last"].active, "denied", "") == "finally", "told again")
                assert "last" in node.server.row
                return
            await until(lambda: agent.memories["last"].phase == "stuck", "stopped")
            assert "last" not in node.server.row
            assert agent.memories["last"].reason == "denied finally, and nothing else is left to serve"
        async with node.running() as agent:
            await until(lambda: agent.memories["last"].phase == "stuck", "stopped after a restart too")
            assert "last" not in node.server.row

    asyncio.run(live())
    assert (active() is None) == (fail_mode == "closed")


def test_a_node_that_returns_learns_of_denials_before_anything_else(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "returns")
    hub.release(tmp_path, "returns", "1.0.0", b"one" * 3000)

    async def leave() -> None:
        async with node.running() as agent:
            await until(at_rest_with(agent, "returns", "1.0.0"), "1.0.0 proven")
            await asyncio.to_thread(hub.release, tmp_path, "returns", "1.1.0", b"two" * 3000)
            await until(at_rest_with(agent, "returns", "1.1.0"), "1.1.0 proven")
            await until(lambda: delivered(agent), "told")

    async def come_back() -> None:
        async with node.running() as agent:
            seen: list[tuple[str, str]] = []
            record = agent._machines._record

            def keep(before: Memory, event: Event, after: Memory) -> None:
                active = agent.journal.release_name(after.active.release) if after.active else ""
                seen.append((type(event).__name__, str(active)))
                record(before, event, after)

            agent._machines._record = keep  # type: ignore[method-assign]  # the order of the news is what is tested
            await until(at_rest_with(agent, "returns", "1.2.0"), "1.2.0 proven")
            names = [event for event, _ in seen]
            assert ("ActiveDenied", "returns@1.0.0") in seen
            assert names.index("ActiveDenied") < names.index("Wanted")
            memory = agent.memories["returns"]
            assert [agent.journal.release_name(pointer.release) for pointer in memory.kept] == [
                "returns@1.2.0",
                "returns@1.0.0",
            ]

    asyncio.run(leave())
    hub.release(tmp_path, "returns", "1.2.0", b"new" * 3000)
    hub.deny("returns@1.1.0", 1)
    asyncio.run(come_back())

"""What policy, assignment and the site let an agent do, against a real hub: it waits, goes on, and says why."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from agents import Hub, Node, at_rest_with, enrol
from heliograph.blob import LEAF_BYTES
from heliograph.errors import RefusedError, TransportError
from heliograph.lab import Proxy, spawn
from heliograph_hub.client import HubClient
from heliograph_site.agent import Agent
from heliograph_site.door import knock
from heliograph_site.status import status
from waits import until

CONTENT = Random(4).randbytes(900_000)
RATE = 300_000
HOUR = 3600


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    found = Hub(tmp_path_factory.mktemp("hub"))
    yield found
    found.stop()


def waits_for(agent: Agent, model: str, words: str) -> Callable[[], bool]:
    return lambda: words in agent.journal.waiting().get(model, "")


def records(hub: Hub, site: str, lane: str, kind: str) -> list[dict[str, Any]]:
    rows = HubClient(str(hub.folder)).get(f"/v1/fleet/{site}/n1/records/{lane}")
    return [row["body"] for row in rows if row["kind"] == kind]


def on_a_slow_road(
    hub: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    site: str,
    live: Callable[[Node, Proxy], Awaitable[None]],
) -> None:
    """A node that fetches 900 kB in three seconds; the hub's policy and release are stated before it starts."""

    async def run() -> None:
        async with Proxy(hub.port, rate_bytes_per_s=RATE) as proxy:
            node = await asyncio.to_thread(enrol, hub, tmp_path, capsys, site, proxy.port)
            await live(node, proxy)

    asyncio.run(run())


def test_policy_windows_that_close_in_mid_fetch_pause_it_and_it_goes_on_by_itself_when_the_next_opens(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def live(node: Node, proxy: Proxy) -> None:
        async with node.running() as agent:
            await until(lambda: agent.now() > 0 and agent.is_up, "the time is known")
            opened = agent.now() // 60 % 60
            text = f'[[windows]]\nopens = "{opened} * * * *"\nfor_s = 1800\nguards = ["fetch"]\n'
            await asyncio.to_thread(hub.policy, tmp_path, text)
            await until(lambda: agent.policy.number == 1, "the policy is here")
            await asyncio.to_thread(hub.release, tmp_path, "window", "1.0.0", CONTENT)
            await until(lambda: agent.spent.day > 300_000, "a third is there")
            node.ahead_s = 1800
            await until(waits_for(agent, "window", "the window for fetching that opens at"), "it waits")
            await until(lambda: agent._downloads._fetcher.outstanding_bytes == 0, "nothing is on its way")
            spent = agent.spent.day
            assert agent.memories["window"].phase == "fetching"
            await asyncio.sleep(0.5)  # time itself is looked at: enough for 150 kB
            assert agent.spent.day == spent < 900_000
            node.ahead_s = HOUR
            await until(at_rest_with(agent, "window", "1.0.0"), "proven")
            assert agent.spent.day < 1_000_000, "what was there was not fetched again"

    on_a_slow_road(hub, tmp_path, capsys, "window", live)


def test_policy_budget_day_bytes_that_end_in_mid_fetch_stop_it_through_kills_until_there_is_more(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget, spent_s = 400_000, "the next day: "

    async def live(node: Node, proxy: Proxy) -> None:
        await asyncio.to_thread(hub.policy, tmp_path, f"[budget]\nday_bytes = {budget}\n")
        await asyncio.to_thread(hub.release, tmp_path, "budget", "1.0.0", CONTENT)
        async with node.running() as agent:
            await until(waits_for(agent, "budget", spent_s), "the budget of the day is spent")
            spent = agent.spent.day
            assert budget - LEAF_BYTES < spent <= budget
        came = proxy.bytes_down
        killed = spawn([sys.executable, "-m", "heliograph_site.agent", node.folder], tmp_path / "agent.log")
        try:
            await asyncio.to_thread(killed.wait_for_line, "link is up")
        finally:
            killed.kill()
        async with node.running() as agent:
            await until(lambda: agent.is_up and agent._link.nonce is None, "back on line")
            await until(waits_for(agent, "budget", spent_s), "it still is")
            assert agent.spent.day == spent, "it is remembered, and nothing came"
            assert proxy.bytes_down - came < 100_000, "what is signed comes all the same"
            await asyncio.to_thread(hub.policy, tmp_path, "[budget]\nday_bytes = 2_000_000\n")
            await until(at_rest_with(agent, "budget", "1.0.0"), "proven")
            assert agent.spent.day < 1_000_000, "what was there was not fetched again"
            await until(lambda: bool(records(hub, "budget", "audit", "fetched")), "told")
        [fetched] = records(hub, "budget", "audit", "fetched")
        assert fetched["way"] == "full" and 900_000 <= fetched["bytes"] < 1_000_000

    on_a_slow_road(hub, tmp_path, capsys, "budget", live)


def test_a_command_aborts_a_fetch_once_and_what_it_stopped_is_refused_under_its_number(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def live(node: Node, proxy: Proxy) -> None:
        await asyncio.to_thread(hub.release, tmp_path, "abort", "1.0.0", CONTENT)
        async with node.running() as agent:
            await until(lambda: agent.spent.day > 200_000, "some is there")
            await asyncio.to_thread(hub.operate, "fleet", "command", "abort/n1", "abort", "abort")
            await until(lambda: bool(agent.memories["abort"].refused), "stopped")
            memory = agent.memories["abort"]
            assert (memory.phase, memory.active) == ("idle", None)
            assert [(r.number, r.reason) for r in memory.refused] == [(1, "called off by command 1")]
            await until(lambda: agent.done == 1, "it is done")
            await asyncio.to_thread(hub.operate, "fleet", "command", "abort/n1", "rollback", "abort")
            await asyncio.to_thread(hub.operate, "fleet", "command", "abort/n1", "report")
            await until(lambda: agent.done == 3, "all are done")
            await until(lambda: len(records(hub, "abort", "audit", "ordered")) == 3, "told")
        outcomes = {body["number"]: body["outcome"] for body in records(hub, "abort", "audit", "ordered")}
        assert outcomes == {
            1: "stopped abort@1.0.0, refused under number 1",
            2: "refused: nothing of abort serves",
            3: "reported",
        }
        async with node.running() as agent:
            await until(lambda: agent.is_up and agent._link.nonce is None, "back on line")
            assert agent.done == 3 and agent.memories["abort"].phase == "idle"

    on_a_slow_road(hub, tmp_path, capsys, "abort", live)


def test_policy_authority_says_what_a_site_may_do_by_itself_and_a_refusal_names_the_policy(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "local")
    with pytest.raises(TransportError, match=r"no agent answers on .*: run `heliograph node run` first"):
        knock(node.folder, "rollback", "local", "")
    hub.release(tmp_path, "local", "1.0.0", b"one" * 2000)

    async def say(action: str, model: str = "local", reason: str = "") -> str:
        return await asyncio.to_thread(knock, node.folder, action, model, reason)

    async def live() -> None:
        async with node.running() as agent:
            await until(at_rest_with(agent, "local", "1.0.0"), "1.0.0 proven")
            assert node.folder.joinpath("agent.sock").stat().st_mode & 0o777 == 0o600
            with pytest.raises(RefusedError, match="local has nothing to fall back to, by the fallback rule"):
                await say("rollback")
            assert await say("hold", reason="stocktaking") == "nothing new of local is begun until the site resumes"
            await asyncio.to_thread(hub.release, tmp_path, "local", "1.1.0", b"two" * 2000)
            await until(waits_for(agent, "local", "held by the site: user "), "it says who holds it")
            facts = await asyncio.to_thread(status, node.folder)
            assert facts["models"]["local"]["held_by_site"].endswith("stocktaking")
            await asyncio.to_thread(hub.policy, tmp_path, 'authority = "central"\n')
            await until(lambda: agent.policy_of("local").number == 1, "policy 1 is in force")
            refusal = r"^hold by the site is not allowed: authority of local is central \(policy 1\)$"
            for action in ("hold", "resume"):
                with pytest.raises(RefusedError, match=refusal):
                    await say(action)
            with pytest.raises(RefusedError, match="rollback by the site is not allowed"):
                await say("rollback")
            await asyncio.to_thread(hub.policy, tmp_path, 'authority = "local"\n')
            await until(lambda: agent.policy_of("local").number == 2, "policy 2 is in force")
            assert await say("resume") == "local takes new releases again"
            await until(at_rest_with(agent, "local", "1.1.0"), "1.1.0 proven")
            assert await say("rollback", reason="wrong labels") == "rolled back from local@1.1.0 to local@1.0.0"
            await until(lambda: agent.memories["local"].phase == "idle", "at rest")
            memory = agent.memories["local"]
            assert memory.active is not None and agent.journal.release_name(memory.active.release) == "local@1.0.0"
            assert memory.refused[0].reason.endswith("wrong labels")
            for action, model, words in (
                ("rollback", "nothing", "there is no model 'nothing'"),
                ("fly", "local", "'fly'"),
            ):
                with pytest.raises(RefusedError, match=words):
                    await say(action, model)
            await until(
                lambda: len(records(hub, "local", "audit", "ordered")) >= 9, "every one is told, refused or not"
            )

    asyncio.run(live())


def test_a_pin_begins_nothing_that_is_of_another_version_and_says_so(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "pinned")
    hub.release(tmp_path, "pinned", "1.0.0", b"one" * 2000)

    async def live() -> None:
        async with node.running() as agent:
            await until(at_rest_with(agent, "pinned", "1.0.0"), "1.0.0 proven")
            await asyncio.to_thread(hub.operate, "fleet", "pin", "pinned/n1", "pinned@1.0.0")
            await until(lambda: bool(agent.assigned and agent.assigned.pins), "pinned")
            await asyncio.to_thread(hub.release, tmp_path, "pinned", "1.1.0", b"two" * 2000)
            words = "pinned to pinned@1.0.0 by its assignment, the directive names 1.1.0"
            await until(waits_for(agent, "pinned", words), "it says why")
            assert agent.memories["pinned"].phase == "idle"
            await asyncio.to_thread(hub.operate, "fleet", "pin", "pinned/n1", "--clear", "pinned")
            await until(at_rest_with(agent, "pinned", "1.1.0"), "1.1.0 proven")

    asyncio.run(live())

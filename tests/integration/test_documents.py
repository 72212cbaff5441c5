"""Policies and configs through a real hub and broker to an agent and what serves: in any order, and in words."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents import Hub, at_rest_with, enrol
from heliograph_site.agent import Agent
from heliograph_site.status import status
from waits import until

TWO = '\n[models.pair.compatible."1.1.0".config]\nmin = 2\n[models.pair.compatible."1.0.0".config]\nmax = 1\n'


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    found = Hub(tmp_path_factory.mktemp("hub"))
    yield found
    found.stop()


def config(hub: Hub, tmp: Path, number: int) -> None:
    file = tmp / f"config-{number}.toml"
    file.write_text(f'model = "pair"\n[thresholds]\nsure = 0.{number}\n')
    hub.operate("config", "set", str(file), "--yes")


def serves(agent: Agent, version: str, numbers: tuple[int, int], row: dict[str, Any]) -> bool:
    active = agent.memories["pair"].active
    is_there = active is not None and (active.config, active.policy) == numbers
    has_name = active is not None and agent.journal.release_name(active.release) == f"pair@{version}"
    is_told = (row.get("config"), row.get("policy")) == numbers
    return is_there and has_name and is_told and row["content"]["thresholds"] == {"sure": numbers[0] / 10}


def test_a_release_and_a_config_that_need_each_other_wait_in_words_and_are_activated_together(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.release(tmp_path, "pair", "1.0.0", b"one" * 1000)
    config(hub, tmp_path, 1)
    hub.policy(tmp_path, TWO)
    node = enrol(hub, tmp_path, capsys, "pair")

    async def live() -> None:
        row = node.server.row
        async with node.running() as agent:
            await until(at_rest_with(agent, "pair", "1.0.0"), "the first release serves")
            await until(lambda: serves(agent, "1.0.0", (1, 1), row["pair"]), "with its documents")
            await asyncio.to_thread(hub.release, tmp_path, "pair", "1.1.0", b"two" * 1000)
            words = "config/pair is 1, policy's compatible.1.1.0.config.min of pair@1.1.0 wants 2 or newer"
            await until(lambda: words in agent.journal.waiting().get("pair", ""), "it says what it waits for")
            assert agent.memories["pair"].phase == "checking"
            await asyncio.to_thread(config, hub, tmp_path, 2)
            await until(at_rest_with(agent, "pair", "1.1.0"), "the second release serves")
            await until(lambda: serves(agent, "1.1.0", (2, 1), row["pair"]), "and never with the first one's config")
            await asyncio.to_thread(config, hub, tmp_path, 3)
            await until(lambda: serves(agent, "1.1.0", (3, 1), row["pair"]), "a newer config needs no release")
        async with node.running() as agent:
            await until(lambda: serves(agent, "1.1.0", (3, 1), row["pair"]), "after a restart too")

    asyncio.run(live())


def test_a_policy_that_fits_nothing_is_held_back_and_the_status_says_until_when_and_why(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.release(tmp_path, "pair", "1.0.0", b"one" * 1000)
    hub.policy(tmp_path, "")
    node = enrol(hub, tmp_path, capsys, "held")

    async def live() -> None:
        async with node.running() as agent:
            await until(at_rest_with(agent, "pair", "1.0.0"), "the first release serves")
            await asyncio.to_thread(hub.policy, tmp_path, 'hold_max_s = 900\n[models.pair]\nfloor = "1.0.5"\n')
            await until(lambda: bool(agent.rules.candidates(agent.memories.values())), "it is held")
            assert agent.memories["pair"].policy == 1
            assert not agent.memories["pair"].is_last_unfit
            said = await asyncio.to_thread(status, node.folder)
            assert said["documents"]["policy"] == 1
            [candidate] = said["documents"]["candidates"]
            assert (candidate["document"], candidate["number"]) == ("policy", 2)
            assert 0 < candidate["until"] - candidate["since"] <= 900
            assert "models.pair.floor of policy 2 wants 1.0.5" in candidate["reason"]
            node.ahead_s = 901
            await asyncio.to_thread(config, hub, tmp_path, 1)  # whatever comes, all is looked at anew
            await until(lambda: agent.memories["pair"].is_last_unfit, "its time is over, and nothing else is left")
            assert agent.memories["pair"].policy == 2
            await asyncio.to_thread(hub.release, tmp_path, "pair", "1.0.5", b"two" * 1000)
            await until(at_rest_with(agent, "pair", "1.0.5"), "what the floor lets through serves")
            assert not agent.memories["pair"].is_last_unfit
            assert agent.memories["pair"].policy == 2

    asyncio.run(live())

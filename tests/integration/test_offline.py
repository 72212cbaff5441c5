"""What a node does that hears nothing: each sentence of POLICY.md's "Off line" on an agent and a real hub.

The hub is stopped, or the road is cut; time passes by the agent's clock.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agents import QUICK, Hub, Node, at_rest_with, delivered, enrol
from heliograph_hub.client import HubClient
from heliograph_site.agent import Agent
from heliograph_site.status import status
from waits import until

DAY = 86400
SITE = MODEL = "alone"
OFTEN = replace(QUICK, check_in_s=0.5)
"""Time is looked at twice a second."""


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    found = Hub(tmp_path_factory.mktemp("hub"))
    yield found
    found.stop()


def told(hub: Hub, lane: str) -> list[tuple[str, dict[str, Any]]]:
    rows = HubClient(str(hub.folder)).get(f"/v1/fleet/{SITE}/n1/records/{lane}")
    return [(row["kind"], row["body"]) for row in rows]


def serves(node: Node, agent: Agent) -> str | None:
    """What answers, by name."""
    row = node.server.row.get(MODEL)
    return agent.journal.release_name(bytes.fromhex(row["active"])) if row else None


async def with_two_releases(hub: Hub, node: Node, agent: Agent, tmp_path: Path) -> None:
    for version in ("1.0.0", "1.1.0"):
        await asyncio.to_thread(hub.release, tmp_path, MODEL, version, version.encode() * 1000)
        await until(at_rest_with(agent, MODEL, version), f"{version} proven")


async def go_off_line(hub: Hub, agent: Agent) -> None:
    await until(lambda: delivered(agent), "all is told")
    await asyncio.to_thread(hub.stop)
    await until(lambda: not agent.is_up, "off line")


async def come_back(hub: Hub, agent: Agent) -> None:
    await asyncio.to_thread(hub.start)
    await until(lambda: agent.is_up and agent._link.nonce is None, "on line")


def test_it_serves_on_keeps_its_fallback_judges_health_rolls_back_and_records_all_alone(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, SITE)

    async def live() -> None:
        async with node.running(OFTEN) as agent:
            await with_two_releases(hub, node, agent, tmp_path)
            await go_off_line(hub, agent)
            node.ahead_s = 10 * DAY
            requests = node.server.row[MODEL]["requests"]
            await until(lambda: node.server.row[MODEL]["requests"] > requests, "it answers, and is looked at")
            assert serves(node, agent) == f"{MODEL}@1.1.0"
            memory = agent.memories[MODEL]
            assert memory.fallback is not None and memory.fallback.verdict == "proven"
            node.server.row[MODEL] |= {"state": "failed", "reason": "its worker died too often"}
            await until(lambda: serves(node, agent) == f"{MODEL}@1.0.0", "it went back by itself")
            await until(at_rest_with(agent, MODEL, "1.0.0"), "at rest")
            assert agent.outbox.status()["incident"].kept > 0, "it is recorded until somebody hears it"
            written = {lane: ledger.written for lane, ledger in agent.outbox.status().items()}
            await come_back(hub, agent)
            await until(lambda: delivered(agent), "and told")
            status_now = agent.outbox.status()
            assert status_now["incident"].written >= written["incident"]
            assert all(ledger.lost == 0 for ledger in status_now.values())
        assert "rolled-back" in [kind for kind, _ in told(hub, "incident")]

    asyncio.run(live())


def test_it_installs_nothing_new_once_its_signed_freshness_has_expired(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, SITE)

    async def live() -> None:
        async with node.running(OFTEN) as agent:
            await with_two_releases(hub, node, agent, tmp_path)
            opens = datetime.fromtimestamp(agent.now() + 28 * DAY, UTC).day
            text = f'[[windows]]\nopens = "0 0 {opens} * *"\nfor_s = {DAY}\nguards = ["activate"]\n'
            await asyncio.to_thread(hub.policy, tmp_path, text)
            await until(lambda: agent.policy_of(MODEL).number == 1, "the policy is in force")
            await asyncio.to_thread(hub.release, tmp_path, MODEL, "1.2.0", b"1.2.0" * 1000)
            await until(lambda: "the window for" in agent.journal.waiting().get(MODEL, ""), "1.2.0 lies there whole")
            await asyncio.to_thread(hub.stop)
            await until(lambda: not agent.is_up, "off line")
            node.ahead_s = 28 * DAY
            await until(lambda: "expired" in agent.journal.waiting().get(MODEL, ""), "it says why it waits")
            assert agent.why_not_activate(MODEL, "1.2.0", None) is None, "the window is open"
            assert serves(node, agent) == f"{MODEL}@1.1.0"
            assert agent.memories[MODEL].phase == "activating"

    asyncio.run(live())


@pytest.mark.parametrize(
    ("action", "serving"), [("serve", f"{MODEL}@1.1.0"), ("fall-back", f"{MODEL}@1.0.0"), ("stop", None)]
)
def test_policy_at_max_offline_s_it_does_what_policy_says_until_the_hub_is_heard(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], action: str, serving: str | None
) -> None:
    node = enrol(hub, tmp_path, capsys, SITE)

    async def live() -> None:
        async with node.running(OFTEN) as agent:
            await with_two_releases(hub, node, agent, tmp_path)
            text = f'max_offline_s = {5 * DAY}\nat_max_offline = "{action}"\n'
            await asyncio.to_thread(hub.policy, tmp_path, text)
            await until(lambda: agent.policy_of(MODEL).number == 1, "the policy is in force")
            await go_off_line(hub, agent)
            node.ahead_s = 4 * DAY
            await until(lambda: agent.now() - agent._time.heard_at > 4 * DAY, "time has passed")
            assert agent.flag(MODEL) == "" and serves(node, agent) == f"{MODEL}@1.1.0"
            node.ahead_s = 6 * DAY
            await until(lambda: serves(node, agent) == serving, "it does what policy says")
            await until(lambda: agent.memories[MODEL].phase in ("idle", "stuck"), "at rest")
            await until(lambda: "offline" in str(agent.journal.state("vigil")), "it is written down")
            facts = await asyncio.to_thread(status, node.folder)
            flag = facts["models"][MODEL]["flag"]
            assert "without the hub's word, policy 1 allows 432000 s" in flag
            assert agent.memories[MODEL].refused == (), "nothing is held against anything"
        async with node.running(OFTEN) as agent:
            await until(lambda: agent.memories[MODEL].phase in ("idle", "stuck"), "at rest after a restart")
            await until(lambda: serves(node, agent) == serving, "a restart changes nothing")
            node.ahead_s = 0.0
            await come_back(hub, agent)
            await until(lambda: serves(node, agent) == f"{MODEL}@1.1.0", "all is as it was")
            await until(at_rest_with(agent, MODEL, "1.1.0"), "at rest")
            await until(lambda: delivered(agent), "told")
        kinds = [kind for kind, _ in told(hub, "incident")]
        assert (kinds.count("offline-begun"), kinds.count("offline-ended")) == (1, 1)

    asyncio.run(live())


def test_policy_staleness_is_judged_alone_and_told_when_it_begins_and_ends(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, SITE)

    async def live() -> None:
        async with node.running(OFTEN) as agent:
            await with_two_releases(hub, node, agent, tmp_path)
            await asyncio.to_thread(hub.policy, tmp_path, f"[staleness]\nwithin_s = {DAY}\n")
            await until(lambda: agent.policy_of(MODEL).number == 1, "the policy is in force")
            node.server.refuses = "output differs by 0.5"
            await asyncio.to_thread(hub.release, tmp_path, MODEL, "1.2.0", b"1.2.0" * 1000)
            await until(lambda: bool(agent.memories[MODEL].refused), "1.2.0 is refused")
            await go_off_line(hub, agent)
            assert agent.stale(MODEL) == ()
            node.ahead_s = 2 * DAY
            await until(lambda: bool(agent.stale(MODEL)), "it is behind")
            [sentence] = agent.stale(MODEL)
            assert sentence.startswith("1.2.0 was directed ") and "policy 1 allows 86400 s" in sentence
            stale = lambda: status(node.folder)["models"][MODEL]["stale"]  # noqa: E731 - asked twice
            await until(lambda: "stale" in str(agent.journal.state("vigil")), "it is written down")
            assert "1.2.0 was directed" in await asyncio.to_thread(stale)
            node.ahead_s = 0.0
            await come_back(hub, agent)
            node.server.refuses = ""
            await asyncio.to_thread(hub.release, tmp_path, MODEL, "1.3.0", b"1.3.0" * 1000)
            await until(at_rest_with(agent, MODEL, "1.3.0"), "1.3.0 proven")
            await until(lambda: "stale" not in str(agent.journal.state("vigil")), "it is behind no more")
            await until(lambda: delivered(agent), "told")
        kinds = [kind for kind, _ in told(hub, "incident")]
        assert (kinds.count("stale-begun"), kinds.count("stale-ended")) == (1, 1)

    asyncio.run(live())

"""A node whose wall clock is wrong, on a real hub: it takes releases, serves on, and says so once."""

import asyncio
import time
from pathlib import Path

import pytest

from agents import QUICK, Hub, at_rest_with, delivered, enrol
from heliograph_hub.client import HubClient
from heliograph_site.status import status
from waits import until

SITE = MODEL = "clocks"
Y2040 = 2_208_988_800


def test_a_wall_clock_in_1970_then_2040_then_set_right_stops_nothing_and_is_told(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub(tmp_path_factory.mktemp("hub"))
    node = enrol(hub, tmp_path, capsys, SITE)
    wall_is = 0.0
    began = time.monotonic()
    node.wall = lambda: wall_is + time.monotonic() - began

    async def live() -> None:
        nonlocal wall_is
        async with node.running(QUICK) as agent:
            await asyncio.to_thread(hub.release, tmp_path, MODEL, "1.0.0", b"1.0.0" * 1000)
            await until(at_rest_with(agent, MODEL, "1.0.0"), "1.0.0 is proven in 1970")
            wall_is = Y2040  # in mid-flight
            await asyncio.to_thread(hub.release, tmp_path, MODEL, "1.1.0", b"1.1.0" * 1000)
            await until(at_rest_with(agent, MODEL, "1.1.0"), "1.1.0 is proven in 2040")
            assert abs(agent.now() - time.time()) < 60
            agent._link.greet_now()
            await until(lambda: "ahead" in agent._why_suspect() and agent.clock != "", "it is found out")
            await until(lambda: delivered(agent), "told")
            facts = await asyncio.to_thread(status, node.folder)
            assert "it is ignored" in facts["trust"]["clock"]
            show = await asyncio.to_thread(HubClient(str(hub.folder)).get, f"/v1/fleet/{SITE}/n1")
            assert "it is ignored" in show["clock"]
            wall_is = time.time() - (time.monotonic() - began)
            agent._link.greet_now()
            await until(lambda: agent.clock == "", "it was set right")
            await until(lambda: delivered(agent), "told")
            assert agent.memories[MODEL].refused == ()
        rows = await asyncio.to_thread(HubClient(str(hub.folder)).get, f"/v1/fleet/{SITE}/n1/records/incident")
        told = [row["kind"] for row in rows if row["kind"].startswith("clock-suspect")]
        assert sorted(told) == ["clock-suspect-begun", "clock-suspect-ended"]

    try:
        asyncio.run(live())
    finally:
        hub.stop()

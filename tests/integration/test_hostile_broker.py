"""A node and a hub with a broker between them that wants harm, as real processes.

The node's broker is another Mosquitto than the hub's. What joins them drops, repeats, holds back, spoils, replays and
crosses topics, both ways, from a seed. `tests/simulator/hostile.py` does the same in virtual time, many times over.
"""

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import paho.mqtt.client as paho
import pytest

from agents import QUICK, Hub, at_rest_with, delivered, enrol
from heliograph.lab import free_port, start_mosquitto
from heliograph.mosquitto import Listener
from heliograph.protocol import parse_topic
from heliograph_hub.client import HubClient
from heliograph_site.agent import Agent
from waits import until

SITE = MODEL = "wild"
OFTEN = replace(QUICK, check_in_s=1.0)
HARMS = ("drops", "repeats", "holds back", "spoils", "replays", "crosses topics")
RETAINED = ("deny/all", "tuf/head", "tuf/set", "desired/canary", "policy/canary", f"config/{MODEL}")


class HostileBridge:
    """Carries what one broker has to the other, and what it will of it."""

    def __init__(self, hub_port: int, node_port: int, seed: int, share: float) -> None:
        self.met: Counter[str] = Counter()
        self.share = share
        self._rng = Random(seed)
        self._lock = threading.Lock()
        self._seen: deque[tuple[str, bytes]] = deque(maxlen=200)
        self._timers: set[threading.Timer] = set()
        self._ends = {"hub": self._end(hub_port, "hub"), "node": self._end(node_port, "node")}
        for client in self._ends.values():  # each passes to the other from its first message on
            client.loop_start()

    def close(self) -> None:
        for timer in list(self._timers):
            timer.cancel()
        for client in self._ends.values():
            client.disconnect()
            client.loop_stop()

    def _end(self, port: int, name: str) -> paho.Client:
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=f"bridge-{name}", protocol=paho.MQTTv5)
        client.on_connect = lambda c, *_: c.subscribe("heliograph/#", qos=1)
        client.on_message = lambda _c, _u, message: self._pass(name, message.topic, bytes(message.payload))
        client.connect("127.0.0.1", port)
        return client

    def _pass(self, here: str, topic: str, payload: bytes) -> None:
        found = parse_topic(topic, "lab")
        if found is None or (found[0].sender == "hub") != (here == "hub"):
            return  # it came from the other end, through us
        prefix = "heliograph/v1/lab/"
        is_down = here == "hub"
        with self._lock:
            self._seen.append((topic, payload))
            harm = self._rng.choice(HARMS) if self._rng.random() < self.share else ""
            late_s = self._rng.uniform(0.0, 1.5)
            old = self._rng.choice(self._seen)
            spoilt = self._spoilt(payload)
            other = prefix + self._rng.choice(RETAINED) if is_down else topic
        self.met[harm] += 1
        match harm:
            case "drops":
                return
            case "repeats":
                for after_s in (0.0, 0.1, late_s):
                    self._send(is_down, topic, payload, after_s)
            case "holds back":
                self._send(is_down, topic, payload, late_s)
            case "spoils":
                self._send(is_down, topic, spoilt, 0.0)
            case "replays":
                self._send(is_down, topic, payload, 0.0)
                row = parse_topic(old[0], "lab")
                assert row is not None
                self._send(row[0].sender == "hub", *old, late_s)
            case "crosses topics":
                self._send(is_down, other, payload, 0.0)
            case _:
                self._send(is_down, topic, payload, 0.0)

    def _send(self, is_down: bool, topic: str, payload: bytes, after_s: float) -> None:
        row = parse_topic(topic, "lab")
        assert row is not None
        client = self._ends["node" if is_down else "hub"]

        def go() -> None:
            client.publish(topic, payload, qos=row[0].qos, retain=row[0].retain)

        if not after_s:
            return go()
        timer = threading.Timer(after_s, lambda: (self._timers.discard(timer), go()))
        timer.daemon = True
        self._timers.add(timer)
        timer.start()

    def _spoilt(self, payload: bytes) -> bytes:
        data = bytearray(payload)
        match self._rng.randrange(3):
            case 0 if data:
                data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
            case 1:
                del data[self._rng.randrange(len(data) + 1) :]
            case _:
                data[:] = self._rng.randbytes(100)
        return bytes(data)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    found = Hub(tmp_path)
    yield found
    found.stop()


@contextmanager
def between(hub: Hub, tmp_path: Path, seed: int) -> Iterator[tuple[HostileBridge, int]]:
    """The bridge, and the port of the node's broker."""
    port = free_port()
    broker = start_mosquitto(tmp_path / "other-broker", Listener(port))
    try:
        bridge = HostileBridge(hub.port, port, seed, share=0.25)
        try:
            yield bridge, port
        finally:
            bridge.close()
    finally:
        broker.terminate()


def is_much(met: Counter[str]) -> bool:
    """Whether every harm was done, and more than 40 in all."""
    return all(met[harm] for harm in HARMS) and sum(met[harm] for harm in HARMS) > 40


async def never_goes_back(agent: Agent) -> None:
    """Watches what is committed, until cancelled."""
    before: dict[str, int] = {}
    while True:
        versions = agent._belief.trusted.versions
        assert all(versions[role] >= version for role, version in before.items()), (before, versions)
        before = dict(versions)
        await asyncio.sleep(0.005)  # it is looked at, as often as that


@pytest.mark.mosquitto
@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.full)])
def test_a_node_behind_a_hostile_broker_ends_where_its_ring_is_told_and_activates_nothing_else(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, seed: int
) -> None:
    node = enrol(hub, tmp_path, capsys, SITE)
    with between(hub, tmp_path, seed + number) as (bridge, port):
        file = node.folder / "node.toml"
        file.write_text(file.read_text().replace(f"port = {hub.port}\n", f"port = {port}\n", 1))

        async def live() -> set[bytes]:
            async with node.running(OFTEN) as agent:
                watch = asyncio.ensure_future(never_goes_back(agent))
                for version in ("1.0.0", "1.1.0"):
                    await asyncio.to_thread(hub.release, tmp_path, MODEL, version, version.encode() * 4000)
                number, end = 0, time.monotonic() + 60
                while not is_much(bridge.met):  # a node at rest says little: there is something new until then
                    assert time.monotonic() < end, f"much harm is done: {bridge.met}"
                    number += 1
                    await asyncio.to_thread(hub.policy, tmp_path, f"hold_max_s = {number}\n")
                bridge.share = 0.0
                await until(at_rest_with(agent, MODEL, "1.1.0"), "1.1.0 proven", 60)
                await until(lambda: delivered(agent), "all is told", 60)
                assert not watch.done() or watch.result() is None
                watch.cancel()
                return set(node.server.checked)

        tried = asyncio.run(live())
    answer: dict[str, Any] = HubClient(str(hub.folder)).get(f"/v1/fleet/{SITE}/n1")
    approved = {bytes.fromhex(row["digest"]) for row in HubClient(str(hub.folder)).get("/v1/releases")}
    assert tried <= approved, "nothing else ever came near a worker"
    assert answer["records"] and all(lane["missing"] == 0 for lane in answer["records"].values()), answer["records"]
    assert answer["alarm"] is None

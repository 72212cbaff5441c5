"""A confidential release on its whole way: hub, broker, two nodes; and what everybody else gets to see of it."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from agents import TIMING, Hub, Node, at_rest_with, delivered, enrol
from heliograph import sealing
from heliograph.blob import LEAF_BYTES, sha256
from heliograph.connection import Broker
from heliograph.documents import Want
from heliograph.errors import IntegrityError
from heliograph.lab import Proxy, Running, spawn
from heliograph.mqtt import Mqtt
from heliograph.protocol import topic
from heliograph.sealing import leaf_key, open_range
from heliograph_hub.client import HubClient
from heliograph_hub.keys import load_key
from heliograph_site.agent import Agent
from heliograph_site.holdings import Sidecar
from sealed import leaks
from waits import until

MODEL = "secret"
FIRST = Random(21).randbytes(500_000)
SECOND = FIRST[:300_000] + Random(22).randbytes(3_000) + FIRST[300_000:]
THIRD = SECOND[:100_000] + Random(23).randbytes(3_000) + SECOND[100_000:]
"""Each differs from the one before by bytes that its patch holds as they are."""


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    found = Hub(tmp_path_factory.mktemp("hub"))
    yield found
    found.stop()


class Spy:
    """Whoever reads at the broker: keeps all that passes there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.file = (folder / "heard").open("wb")
        self.bytes_by_topic: dict[str, int] = {}
        self.client: Mqtt

    async def hear(self, full: str, payload: bytes, retained: bool) -> None:
        self.file.write(payload)
        self.bytes_by_topic[full] = self.bytes_by_topic.get(full, 0) + len(payload)


@asynccontextmanager
async def spying(port: int, folder: Path) -> AsyncIterator[Spy]:
    spy, up = Spy(folder), asyncio.Event()

    async def on_link(is_up: bool) -> None:
        if is_up:
            up.set()

    everything = [("heliograph/#", 1)]
    spy.client = Mqtt(Broker("127.0.0.1", port), "spy", everything, Random(1), spy.hear, on_link, timing=TIMING)
    running = asyncio.ensure_future(spy.client.run())
    try:
        await asyncio.wait_for(up.wait(), 60)
        yield spy
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        spy.file.close()


def sidecars(node: Node) -> dict[bytes, Sidecar]:
    """What a node holds sealed, by the plain digest."""
    return {bytes.fromhex(path.name): Sidecar.parse(path.read_bytes()) for path in (node.folder / "seals").iterdir()}


def sealed_blob(node: Node, content: bytes) -> bytes:
    name = sidecars(node)[sha256(content)].sealed.hex()
    return (node.folder / "objects" / name[:2] / name).read_bytes()


def core_limits(pid: int) -> list[str]:
    """How large a core dump of a process may be: now, and at most if it asked for that."""
    limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in limits if line.startswith("Max core file size")).split()[4:6]


def sent(hub: Hub, site: str, version: str) -> int:
    """Bytes of content that the hub sent to a site of a release."""
    rows = HubClient(str(hub.folder)).get(f"/v1/releases/{MODEL}/{version}")["sites"]
    return int(next(row["bytes_sent"] for row in rows if row["site"] == site))


def test_only_the_nodes_read_a_confidential_release_and_a_removed_one_not_the_next(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Attack: a broker that reads and keeps everything; a node's disk; a removed node with all that it ever got."""
    lives: list[Running] = []

    def add(version: str, content: bytes) -> None:
        hub.release(tmp_path, MODEL, version, content, is_confidential=True)

    async def killed_in_mid_fetch(node: Node, proxy: Proxy) -> None:
        """Half of the release, at some 300 KB/s, and then no power."""
        proxy.rate_bytes_per_s = 300_000
        before = proxy.bytes_down
        lives.append(spawn([sys.executable, "-m", "heliograph_site.agent", node.folder], tmp_path / "agent.log"))
        await until(lambda: proxy.bytes_down - before > 300_000, "half is there")
        assert core_limits(lives[-1].process.pid) == ["1", "1"], "a crash gives away none of the keys it holds"
        lives[-1].process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(lives[-1].process.wait, 60)
        assert leaks(node.folder, [FIRST]) == []
        proxy.rate_bytes_per_s = 0.0

    async def refused(node_site: str, spy: Spy, blob: bytes) -> None:
        """A want in the node's name for plain bytes: no chunk, and one more that is counted."""
        want = Want(handle=b"spy!", blob=blob, ranges=((0, 8),))
        await spy.client.publish(topic("want").build("lab", site=node_site, node="n1"), want.encode(), qos=1)

        def is_counted() -> bool:
            row = HubClient(str(hub.folder)).get(f"/v1/fleet/{node_site}/n1")
            return "is confidential" in str(row["not_counted"].get("refused", ""))

        await until(is_counted, "counted")

    async def live(one: Node, two: Node, proxy: Proxy, spy: Spy) -> None:
        await asyncio.to_thread(add, "1.0.0", FIRST)
        await killed_in_mid_fetch(two, proxy)
        before = proxy.bytes_down
        async with one.running() as first, two.running() as second:
            await all_at(first, second, "1.0.0")
            assert proxy.bytes_down - before < 400_000, "what was there was not fetched again"
            assert sealed_blob(one, FIRST) == sealed_blob(two, FIRST)
            await asyncio.to_thread(add, "1.1.0", SECOND)
            await all_at(first, second, "1.1.0")
            assert sent(hub, "one", "1.1.0") < 60_000, "as a delta"
            await until(lambda: delivered(first) and delivered(second), "told")
        await asyncio.to_thread(hub.operate, "fleet", "remove", "two/n1")
        async with one.running() as first:
            await asyncio.to_thread(add, "1.2.0", THIRD)
            await until(at_rest_with(first, MODEL, "1.2.0"), "1.2.0 without the one that was removed")
            await refused("one", spy, sha256(THIRD))

    async def all_at(first: Agent, second: Agent, version: str) -> None:
        await until(at_rest_with(first, MODEL, version), f"{version} at one")
        await until(at_rest_with(second, MODEL, version), f"{version} at two")

    async def run() -> tuple[Node, Node, Spy]:
        async with Proxy(hub.port) as proxy, spying(hub.port, tmp_path / "spy") as spy:
            one = await asyncio.to_thread(enrol, hub, tmp_path / "one", capsys, "one")
            two = await asyncio.to_thread(enrol, hub, tmp_path / "two", capsys, "two", proxy.port)
            await live(one, two, proxy, spy)
            return one, two, spy

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    try:
        one, two, spy = asyncio.run(run())
    finally:
        for life in lives:
            life.kill()
    plain = [FIRST, SECOND, THIRD]
    heard = spy.bytes_by_topic[topic("chunk").build("lab", site="one", node="n1")]
    assert heard > len(FIRST), "the spy heard all of it"
    assert leaks(spy.folder, plain) == []
    assert leaks(one.folder, plain) == [] and leaks(two.folder, plain) == []
    assert leaks(hub.folder / "broker", plain) == []
    assert leaks(hub.folder / "keys", [bytes(range(256))]) == [], "or nothing would be looked at"
    assert (tmp_path / "secret-1.0.0" / "model.tflite").name in leaks(tmp_path / "secret-1.0.0", plain)

    # All that the removed node ever had opens what it held, and nothing of the next release.
    key = load_key(two.folder / "node.key")
    epoch_keys = {key.open_box(sidecar.box) for sidecar in sidecars(two).values()}
    assert len(epoch_keys) == 1 and {sidecar.epoch for sidecar in sidecars(two).values()} == {1}
    (epoch_key,) = epoch_keys
    assert open_range(leaf_key(epoch_key, sha256(SECOND)), 0, sealed_blob(one, SECOND)) == SECOND
    assert sidecars(one)[sha256(THIRD)].epoch == 2
    with pytest.raises(IntegrityError):
        key.open_box(sidecars(one)[sha256(THIRD)].box)
    with pytest.raises(IntegrityError):
        open_range(leaf_key(epoch_key, sha256(THIRD)), 0, sealed_blob(one, THIRD)[:LEAF_BYTES])


def test_an_operator_sees_what_is_confidential_begins_an_epoch_and_is_told_of_a_shared_file(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*args: str) -> Any:
        capsys.readouterr()
        hub.operate(*args, "--json")
        return json.loads(capsys.readouterr().out)

    hub.release(tmp_path, MODEL, "1.0.0", FIRST[:20_000], is_confidential=True)
    capsys.readouterr()
    hub.release(tmp_path, MODEL, "1.1.0", FIRST[-20_000:])
    warnings = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert len(warnings) == 2 and all(
        "of confidential secret@1.0.0 is a file of secret@1.1.0 too" in w for w in warnings
    )
    rows = {row["version"]: (row["confidential"], row["epoch"]) for row in said("release", "list")}
    assert rows == {"1.0.0": (True, 1), "1.1.0": (False, None)}
    assert said("release", "rekey", MODEL) == {"model": MODEL, "epoch": 2, "releases": ["secret@1.0.0"]}
    shown = said("release", "show", "secret@1.0.0")
    assert (shown["confidential"], shown["epoch"]) == (True, 2)
    assert shown["full_bytes"] > sum(sealing.sealed_length(file["length"]) for file in shown["files"])
    log = [(row["who"], row["what"]) for row in said("key", "log")]
    assert ("owner", "releases/secret/rekey") in log
    assert ("hub", "began epoch 2 of secret: asked for") in log
    key = json.loads((hub.folder / "keys" / "epochs" / "secret.json").read_bytes())["keys"]["2"]
    assert key not in json.dumps([log, shown]) and key not in hub._log.read_text()

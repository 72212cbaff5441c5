"""The broker connection when brokers are killed, cut off, stuck and hostile; and the bad road that tests use."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from heliograph.connection import MAX_UNSENT_BYTES, Timing
from heliograph.errors import TransportError
from heliograph.lab import Proxy, Running, free_port, start_iotcore, start_mosquitto, wait_until
from heliograph.mosquitto import Listener
from links import Client
from waits import turns, until


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[int]:
    port = free_port()
    running = start_mosquitto(tmp_path / "broker", Listener(port))
    yield port
    running.terminate()


@pytest.mark.parametrize("kind", [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "iotcore"])
def test_a_broker_killed_in_mid_traffic_and_started_again_is_found_again(tmp_path: Path, kind: str) -> None:
    port = free_port()
    folder = tmp_path / "broker"

    def start() -> Running:
        return start_mosquitto(folder, Listener(port)) if kind == "mosquitto" else start_iotcore(folder, port)

    if kind == "iotcore":
        pytest.importorskip("iotcore")

    brokers = [start()]

    async def main() -> None:
        node, hub = Client(port, "node", "t/#"), Client(port, "hub")
        sent: set[bytes] = set()

        async def talk() -> None:
            number = 0
            while True:
                payload = b"%d" % number
                try:
                    await hub.mqtt.publish("t/x", payload, qos=1)
                    sent.add(payload)
                except TransportError:
                    await turns(1)  # it is told that the link is down
                    await hub.until(lambda: hub.mqtt.connected)
                number += 1

        async with node.running(), hub.running():
            talking = asyncio.create_task(talk())
            for turn in range(1, 4):
                await node.got_count(len(node.got) + 20)
                brokers[-1].kill()
                await node.until(lambda turn=turn: node.links.count(False) == turn)  # type: ignore[misc]
                assert not node.mqtt.connected
                brokers.append(await asyncio.to_thread(start))
                await node.until(lambda turn=turn: node.links.count(True) == turn + 1)  # type: ignore[misc]
                await hub.until(lambda: hub.links[-1])
            await node.got_count(len(node.got) + 20)
            talking.cancel()
        assert node.links == [True, False] * 3 + [True]

    try:
        asyncio.run(main())
    finally:
        brokers[-1].kill()


def test_publishing_without_a_link_fails_at_once_and_says_where(tmp_path: Path) -> None:
    port = free_port()

    async def main() -> None:
        async with Client(port, "a").running(wait=False) as client:
            with pytest.raises(TransportError, match=f"no connection to the broker at 127.0.0.1:{port}"):
                await client.mqtt.publish("t", b"", qos=1)
            assert not await client.mqtt.probe(1.0)

    asyncio.run(main())


@pytest.mark.mosquitto
def test_a_dead_link_is_found_by_a_probe_and_replaced(mosquitto: int) -> None:
    async def main() -> None:
        async with Proxy(mosquitto) as road, Client(road.port, "node", "t").running() as node:
            assert await node.mqtt.probe(30.0)
            await road.cut()
            assert not await node.mqtt.probe(0.2)
            await node.until(lambda: node.links[-1] is False)
            road.restore()
            await node.until(lambda: node.links[-1])
            await node.mqtt.publish("t", b"x", qos=1)
            await node.got_count(1)

    asyncio.run(main())


@pytest.mark.mosquitto
def test_an_unacknowledged_message_fails_in_time_and_the_link_is_made_anew(mosquitto: int) -> None:
    timing = Timing(connect_s=15.0, publish_s=0.3, first_retry_s=0.05, longest_retry_s=0.2)

    async def main() -> None:
        async with Proxy(mosquitto) as road, Client(road.port, "node", timing=timing).running() as node:
            await road.cut()
            with pytest.raises(TransportError, match=r"did not take t/x within 0\.3 s"):
                await node.mqtt.publish("t/x", b"x", qos=1)
            await node.until(lambda: node.links[-1] is False)
            road.restore()
            await node.until(lambda: node.links[-1])

    asyncio.run(main())


@pytest.mark.mosquitto
def test_a_blocked_socket_does_not_fill_our_memory(mosquitto: int) -> None:
    timing = Timing(connect_s=15.0, publish_s=0.3, first_retry_s=0.05, longest_retry_s=0.2)

    async def main() -> None:
        async with Proxy(mosquitto) as road, Client(road.port, "node", timing=timing).running() as node:
            link = node.mqtt._link
            assert link is not None
            await road.cut()

            async def flood() -> None:
                for _ in range(4000):
                    await node.mqtt.publish("t", bytes(32 * 1024), qos=0)
                    assert link._unsent_bytes <= MAX_UNSENT_BYTES

            with pytest.raises(TransportError, match="within"):
                await flood()
            assert node.mqtt.bytes_sent < 16 << 20  # the kernel's share

    asyncio.run(main())


@pytest.mark.mosquitto
def test_wake_connects_at_once_instead_of_after_the_back_off(tmp_path: Path) -> None:
    port = free_port()
    timing = Timing(first_retry_s=600.0, longest_retry_s=600.0)

    async def main() -> None:
        async with Client(port, "node", timing=timing).running(wait=False) as node:
            # The first try has failed, and the back-off has begun.
            await until(lambda: node.mqtt._interruptible is not None and node.mqtt._link is None, "it waits")
            broker = await asyncio.to_thread(start_mosquitto, tmp_path, Listener(port))
            try:
                assert node.links == []
                node.mqtt.wake()
                await node.until(lambda: node.links == [True])
            finally:
                broker.kill()

    asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x20\x03\x00\x00\x00\x30\xff\xff\xff\x7f",  # a PUBLISH that claims 256 MiB
        b"\x20\x03\x00\x00\x00\x30\xff\xff\xff\xff\xff",
        b"\x20\x03\x00\x00\x00\x30\x03\x00\xff\x00",
        b"\x20\x03\x00\x00\x00\x90\x02\x00\x01",  # a SUBACK without codes
        b"\x20\x01\x00",
        b"\x20\x02\x00\x55",
        b"\x20\x05\x00\x00\x02\xee\xee",
    ],
)
def test_a_broker_that_sends_rubbish_is_left_and_tried_again(answer: bytes) -> None:
    async def main() -> None:
        visits = 0
        enough = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal visits
            visits += 1
            writer.write(answer)
            if visits == 3:
                enough.set()
            with contextlib.suppress(OSError):
                await reader.read()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        timing = Timing(connect_s=0.3, first_retry_s=0.02, longest_retry_s=0.05)
        async with Client(port, "node", "t", timing=timing).running(wait=False) as node:
            async with asyncio.timeout(60):
                await enough.wait()
            assert node.links == []
            assert node.got == []
        server.close()

    asyncio.run(main())


@pytest.mark.mosquitto
def test_bulk_with_qos_0_for_a_stuck_handler_is_bounded_and_counted(mosquitto: int) -> None:
    async def main() -> None:
        node = Client(mosquitto, "node", "t", "end")
        go, reached = asyncio.Event(), asyncio.Event()

        async def wait(_topic: str, _payload: bytes) -> None:
            reached.set()
            await go.wait()

        node.handle = wait
        async with node.running(), Client(mosquitto, "hub").running() as hub:
            await hub.mqtt.publish("t", b"first", qos=0)
            await reached.wait()
            sent = 1
            while not node.mqtt.dropped:
                assert sent < 5000
                await hub.mqtt.publish("t", b"%d" % sent, qos=0)
                sent += 1
                await turns(1)
            assert node.mqtt.waiting <= 514
            await hub.mqtt.publish("end", b"", qos=1)
            go.set()
            await node.until(lambda: bool(node.got) and node.got[-1][0] == "end")
            assert len(node.got) + node.mqtt.dropped == sent + 1

    asyncio.run(main())


@pytest.mark.mosquitto
def test_the_proxy_keeps_its_rate_and_delay(mosquitto: int) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Proxy(mosquitto) as road, Client(road.port, "node", "t").running() as node:
            road.rate_bytes_per_s, road.delay_s = 100_000, 0.1
            start = loop.time()
            assert await node.mqtt.probe(30.0)
            assert 0.2 <= loop.time() - start < 10.0
            start, before = loop.time(), road.bytes_up
            await node.mqtt.publish("t", bytes(50_000), qos=1)
            assert 0.65 <= loop.time() - start < 20.0
            assert road.bytes_up - before >= 50_000
            await node.got_count(1)
            await road.cut(reset=True)
            await node.until(lambda: node.links[-1] is False)
            road.restore()
            await node.until(lambda: node.links[-1])
            assert road.connections >= 2

    asyncio.run(main())


def test_wait_until_says_what_it_waited_for() -> None:
    with pytest.raises(Exception, match=r"the moon: not within 0\.05 s"):
        wait_until(lambda: False, 0.05, "the moon")

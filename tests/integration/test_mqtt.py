"""The broker connection with real brokers: what is delivered, to whom, and how handlers hold it back."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from heliograph.connection import RECEIVE_MAXIMUM
from heliograph.errors import TransportError
from heliograph.lab import Running, free_port, spawn, start_iotcore, start_mosquitto
from heliograph.mosquitto import Listener
from links import Client
from waits import until


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[int]:
    port = free_port()
    running = start_mosquitto(tmp_path / "broker", Listener(port))
    yield port
    running.terminate()


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "iotcore"])
def any_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    port = free_port()
    if request.param == "mosquitto":
        running = start_mosquitto(tmp_path / "broker", Listener(port))
    else:
        pytest.importorskip("iotcore")
        running = start_iotcore(tmp_path / "broker", port)
    yield port
    running.terminate()


def test_a_hundred_messages_for_a_slow_handler_all_arrive(any_broker: int) -> None:
    async def main() -> None:
        slow, fast = Client(any_broker, "slow", "t/#"), Client(any_broker, "fast")

        sent = asyncio.Event()

        async def take_time(_topic: str, _payload: bytes) -> None:
            await sent.wait()

        slow.handle = take_time
        async with slow.running(), fast.running():
            await asyncio.gather(*(fast.mqtt.publish(f"t/{n}", b"%d" % n, qos=1) for n in range(100)))
            assert slow.got == [], "it is still with the first"
            sent.set()
            await slow.got_count(100)
        assert sorted(int(payload) for _, payload, _ in slow.got) == list(range(100))
        assert slow.mqtt.dropped == 0

    asyncio.run(main())


def test_a_large_retained_message_waits_for_whoever_subscribes(any_broker: int) -> None:
    payload = Random(1).randbytes(64 * 1024)

    async def main() -> None:
        async with Client(any_broker, "hub").running() as hub:
            await hub.mqtt.publish("tuf/set", payload, qos=1, retain=True)
        async with Client(any_broker, "node", "tuf/+").running() as node:
            await node.got_count(1)
            assert node.got == [("tuf/set", payload, True)]
            assert node.mqtt.bytes_received == len(payload)

    asyncio.run(main())


def test_a_node_is_let_in_by_its_whole_name(any_broker: int) -> None:
    async def main() -> None:
        async with Client(any_broker, "lab/press", "t").running() as node:
            assert node.mqtt.client_id == "lab.press"
            await node.mqtt.publish("t", b"here", qos=1)
            await node.got_count(1)

    asyncio.run(main())


def test_an_older_broker_gets_the_older_protocol(tmp_path: Path) -> None:
    pytest.importorskip("iotcore")
    port = free_port()
    broker = start_iotcore(tmp_path, port)

    async def main() -> None:
        async with Client(port, "a", "t").running() as client:
            assert client.mqtt.version == 3
            await client.mqtt.publish("t", b"x", qos=1)
            await client.got_count(1)

    try:
        asyncio.run(main())
    finally:
        broker.kill()


@pytest.mark.mosquitto
def test_mosquitto_speaks_mqtt_5_with_us_and_3_if_need_be(mosquitto: int) -> None:
    async def main() -> None:
        old = Client(mosquitto, "old", "t")
        old.mqtt.version = 3
        async with Client(mosquitto, "new", "t").running() as new, old.running():
            assert (new.mqtt.version, old.mqtt.version) == (5, 3)
            await old.mqtt.publish("t", b"x", qos=1)
            await old.got_count(1)
            await new.got_count(1)

    asyncio.run(main())


@pytest.mark.parametrize("version", [5, 3])
@pytest.mark.mosquitto
def test_a_message_whose_handler_did_not_return_comes_again(mosquitto: int, version: int) -> None:
    async def main() -> None:
        first = Client(mosquitto, "node", "t")
        first.mqtt.version = version
        reached = asyncio.Event()

        async def hang(_topic: str, _payload: bytes) -> None:
            reached.set()
            await asyncio.Event().wait()

        first.handle = hang
        async with first.running(), Client(mosquitto, "hub").running() as hub:
            await hub.mqtt.publish("t", b"keep me", qos=1)
            await reached.wait()
        assert first.got == []
        second = Client(mosquitto, "node", "t")
        second.mqtt.version = version
        async with second.running():
            await second.got_count(1)
            assert second.got == [("t", b"keep me", False)]
            assert second.mqtt.session_present

    asyncio.run(main())


PROGRAM = """
import asyncio, random, sys
from heliograph.connection import Broker
from heliograph.mqtt import Mqtt

async def hang(topic, payload, retained):
    print("has", payload, flush=True)
    await asyncio.Event().wait()

async def link(up):
    print("up", up, flush=True)

asyncio.run(Mqtt(Broker("127.0.0.1", int(sys.argv[1])), "node", [("t", 1)], random.Random(1), hang, link).run())
"""


@pytest.mark.mosquitto
def test_a_process_killed_while_it_handles_a_message_gets_it_again(mosquitto: int, tmp_path: Path) -> None:
    def start(name: str) -> Running:
        return spawn([sys.executable, "-c", PROGRAM, str(mosquitto)], tmp_path / name)

    async def publish() -> None:
        async with Client(mosquitto, "hub").running() as hub:
            await hub.mqtt.publish("t", b"once", qos=1)

    first = start("first")
    first.wait_for_line("up True")
    asyncio.run(publish())
    first.wait_for_line("has b'once'")
    first.kill()
    second = start("second")
    try:
        second.wait_for_line("has b'once'")
    finally:
        second.kill()


@pytest.mark.mosquitto
def test_a_handler_that_fails_ends_run_and_its_message_is_kept(mosquitto: int) -> None:
    async def main() -> None:
        node = Client(mosquitto, "node", "t")

        async def fail(_topic: str, _payload: bytes) -> None:
            raise ZeroDivisionError("a bug")

        node.handle = fail
        task = asyncio.create_task(node.mqtt.run())
        async with Client(mosquitto, "hub").running() as hub:
            await node.until(lambda: node.links == [True])
            await hub.mqtt.publish("t", b"x", qos=1)
            with pytest.raises(ExceptionGroup) as caught:
                await task
        assert caught.group_contains(ZeroDivisionError)
        async with Client(mosquitto, "node", "t").running() as again:
            await again.got_count(1)

    asyncio.run(main())


@pytest.mark.mosquitto
def test_a_handler_that_lacks_the_link_gets_its_message_again_in_the_same_run(mosquitto: int) -> None:
    async def main() -> None:
        node = Client(mosquitto, "node", "t")
        tries: list[bytes] = []

        async def fail_once(_topic: str, payload: bytes) -> None:
            tries.append(payload)
            if len(tries) == 1:
                raise TransportError("could not answer")

        node.handle = fail_once
        async with node.running(), Client(mosquitto, "hub").running() as hub:
            await hub.mqtt.publish("t", b"x", qos=1)
            await node.got_count(1)
        assert tries == [b"x", b"x"]
        assert node.links == [True, False, True]

    asyncio.run(main())


@pytest.mark.mosquitto
def test_a_slow_handler_holds_the_broker_back_at_the_receive_maximum(mosquitto: int) -> None:
    async def main() -> None:
        node = Client(mosquitto, "node", "t/#", "q")
        go = asyncio.Event()

        async def wait(_topic: str, _payload: bytes) -> None:
            await go.wait()

        node.handle = wait
        async with node.running(), Client(mosquitto, "hub").running() as hub:
            for number in range(30):
                await hub.mqtt.publish(f"t/{number}", b"", qos=1)
            before = node.mqtt.bytes_received
            await hub.mqtt.publish("q", b"mark", qos=0)  # QoS 0 overtakes what the maximum holds back
            await until(lambda: node.mqtt.bytes_received > before, "some of it is here")
            assert node.mqtt.waiting == RECEIVE_MAXIMUM + 1
            go.set()
            await node.got_count(31)

    asyncio.run(main())


@pytest.mark.mosquitto
def test_a_handler_may_publish_and_wait_for_the_answer(mosquitto: int) -> None:
    async def main() -> None:
        node, hub = Client(mosquitto, "node", "down"), Client(mosquitto, "hub", "up")

        async def answer(_topic: str, payload: bytes) -> None:
            await node.mqtt.publish("up", payload, qos=1)

        node.handle = answer
        async with node.running(), hub.running():
            await asyncio.gather(*(hub.mqtt.publish("down", b"%d" % n, qos=1) for n in range(50)))
            await hub.got_count(50)

    asyncio.run(main())

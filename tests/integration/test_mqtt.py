"""The broker connection against real brokers that are killed, cut off, slow, and hostile."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from heliograph.acl import acl_text
from heliograph.connection import MAX_UNSENT_BYTES, RECEIVE_MAXIMUM, Broker, Timing
from heliograph.errors import TransportError
from heliograph.lab import Proxy, Running, free_port, spawn, start_iotcore, start_mosquitto, wait_until
from heliograph.mosquitto import Listener
from heliograph.mqtt import Mqtt

QUICK = Timing(connect_s=3.0, publish_s=5.0, first_retry_s=0.05, longest_retry_s=0.2)


async def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """For what has no event to wait for."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the one place that polls
            await asyncio.sleep(0.01)


class Client:
    """An Mqtt with what it saw; `handle` may be replaced."""

    def __init__(self, port: int, name: str, *filters: str, timing: Timing = QUICK, user: str | None = None) -> None:
        self.got: list[tuple[str, bytes, bool]] = []
        self.links: list[bool] = []
        self.changed = asyncio.Condition()
        self.handle: Callable[[str, bytes], Awaitable[None]] | None = None
        broker = Broker("127.0.0.1", port, user, user and f"{user} secret")
        subscriptions = [(text, 1) for text in filters]
        self.mqtt = Mqtt(broker, name, subscriptions, Random(name), self._message, self._link, timing=timing)

    async def _message(self, topic: str, payload: bytes, retained: bool) -> None:
        if self.handle is not None:
            await self.handle(topic, payload)
        async with self.changed:
            self.got.append((topic, payload, retained))
            self.changed.notify_all()

    async def _link(self, up: bool) -> None:
        async with self.changed:
            self.links.append(up)
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(condition)

    async def got_count(self, count: int) -> None:
        await self.until(lambda: len(self.got) >= count)

    @contextlib.asynccontextmanager
    async def running(self, *, wait: bool = True) -> AsyncIterator["Client"]:
        task = asyncio.create_task(self.mqtt.run())
        try:
            if wait:
                await self.until(lambda: self.links[-1:] == [True])
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


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

        async def take_time(_topic: str, _payload: bytes) -> None:
            await asyncio.sleep(0.01)

        slow.handle = take_time
        async with slow.running(), fast.running():
            await asyncio.gather(*(fast.mqtt.publish(f"t/{n}", b"%d" % n, qos=1) for n in range(100)))
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
            await eventually(lambda: node.mqtt.bytes_received > before)
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
                    await asyncio.sleep(0.01)
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
            assert await node.mqtt.probe(5.0)
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
    timing = Timing(connect_s=3.0, publish_s=0.3, first_retry_s=0.05, longest_retry_s=0.2)

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
    timing = Timing(connect_s=3.0, publish_s=0.3, first_retry_s=0.05, longest_retry_s=0.2)

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
            await eventually(lambda: node.mqtt._interruptible is not None and node.mqtt._link is None)
            broker = await asyncio.to_thread(start_mosquitto, tmp_path, Listener(port))
            try:
                assert node.links == []
                node.mqtt.wake()
                await node.until(lambda: node.links == [True], 5.0)
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
            async with asyncio.timeout(10):
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
                await asyncio.sleep(0)
            assert node.mqtt.waiting <= 514
            await hub.mqtt.publish("end", b"", qos=1)
            go.set()
            await node.until(lambda: bool(node.got) and node.got[-1][0] == "end")
            assert len(node.got) + node.mqtt.dropped == sent + 1

    asyncio.run(main())


# --- who may do what ------------------------------------------------------------------------------------------------


@pytest.fixture
def fenced(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A Mosquitto with passwords and the generated ACLs: one port for hub and nodes, one for new nodes."""
    folder = tmp_path / "broker"
    folder.mkdir()
    names = ["hub", "lab/press", "lab/lathe"]
    passwords = folder / "passwords"
    passwords.write_text("".join(f"{name}:{name} secret\n" for name in names))
    passwords.chmod(0o600)
    subprocess.run(["mosquitto_passwd", "-U", passwords], check=True)
    (folder / "acl").write_text(acl_text("r1"))
    (folder / "acl-enroll").write_text(acl_text("r1", "enroll"))
    nodes, enroll = free_port(), free_port()
    running = start_mosquitto(
        folder,
        Listener(nodes, password_file=str(passwords), acl_file=str(folder / "acl")),
        Listener(enroll, password_file=str(passwords), acl_file=str(folder / "acl-enroll")),
    )
    yield nodes, enroll
    running.terminate()


@pytest.mark.mosquitto
def test_the_broker_fences_a_node_into_its_own_subtree(fenced: tuple[int, int]) -> None:
    base = "heliograph/v1/r1"

    async def main() -> None:
        hub = Client(fenced[0], "hub", f"{base}/#", user="hub")
        press = Client(fenced[0], "press", f"{base}/#", user="lab/press")
        lathe = Client(fenced[0], "lathe", f"{base}/#", user="lab/lathe")
        async with hub.running(), press.running(), lathe.running():
            for topic in (
                "node/lab/lathe/up/hello",
                "node/lab/lathe/down/assigned",
                "node/lab/press/down/assigned",
                "node/lab/press/up/other",
                "desired/canary",
                "tuf/set",
                "deny/all",
                "enroll/lab/press",
            ):
                with pytest.raises(TransportError, match="refuses the message"):
                    await press.mqtt.publish(f"{base}/{topic}", b"forged", qos=1, retain=True)
            await press.mqtt.publish(f"{base}/node/lab/press/up/hello", b"hello", qos=1)
            await press.mqtt.publish(f"{base}/node/lab/press/up/want", b"want", qos=0)
            await hub.got_count(2)
            await hub.mqtt.publish(f"{base}/node/lab/press/down/chunk", b"for press", qos=0)
            await hub.mqtt.publish(f"{base}/node/lab/lathe/down/offer", b"for lathe", qos=1)
            await hub.mqtt.publish(f"{base}/desired/canary", b"for all", qos=1, retain=True)
            await press.got_count(2)
            await lathe.got_count(2)
        assert sorted(payload for _, payload, _ in press.got) == [b"for all", b"for press"]
        assert sorted(payload for _, payload, _ in lathe.got) == [b"for all", b"for lathe"]
        assert b"forged" not in {payload for _, payload, _ in hub.got}

    asyncio.run(main())


@pytest.mark.mosquitto
def test_a_new_node_reaches_only_its_enrolment(fenced: tuple[int, int]) -> None:
    base = "heliograph/v1/r1"

    async def main() -> None:
        hub = Client(fenced[0], "hub", f"{base}/enroll/+/+", user="hub")
        new = Client(fenced[1], "new", f"{base}/#", user="lab/press")
        async with hub.running():
            await hub.mqtt.publish(f"{base}/tuf/set", b"set", qos=1, retain=True)
            await hub.mqtt.publish(f"{base}/desired/canary", b"desired", qos=1, retain=True)
            async with new.running():
                for topic in ("enroll/lab/lathe", "node/lab/press/up/hello", "tuf/set"):
                    with pytest.raises(TransportError, match="refuses the message"):
                        await new.mqtt.publish(f"{base}/{topic}", b"forged", qos=1)
                await new.mqtt.publish(f"{base}/enroll/lab/press", b"token", qos=1)
                await hub.got_count(1)
                await hub.mqtt.publish(f"{base}/node/lab/press/down/offer", b"offer", qos=1)
                await hub.mqtt.publish(f"{base}/node/lab/press/down/assigned", b"assigned", qos=1)
                await new.got_count(2)
        assert [payload for _, payload, _ in hub.got] == [b"token"]
        assert [payload for _, payload, _ in new.got] == [b"set", b"assigned"]

    asyncio.run(main())


@pytest.mark.mosquitto
def test_a_wrong_password_is_refused_and_said(fenced: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        stranger = Client(fenced[0], "press", user="lab/nobody")
        async with stranger.running(wait=False):
            await eventually(lambda: "refuses us" in caplog.text)
            assert stranger.links == []

    with caplog.at_level("INFO", "heliograph.mqtt"):
        asyncio.run(main())
    assert "secret" not in caplog.text


# --- the road itself --------------------------------------------------------------------------------------------------


@pytest.mark.mosquitto
def test_the_proxy_keeps_its_rate_and_delay(mosquitto: int) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Proxy(mosquitto) as road, Client(road.port, "node", "t").running() as node:
            road.rate_bytes_per_s, road.delay_s = 100_000, 0.1
            start = loop.time()
            assert await node.mqtt.probe(5.0)
            assert 0.2 <= loop.time() - start < 1.0
            start, before = loop.time(), road.bytes_up
            await node.mqtt.publish("t", bytes(50_000), qos=1)
            assert 0.65 <= loop.time() - start < 2.0
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

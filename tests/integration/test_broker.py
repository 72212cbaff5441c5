"""The hub's broker: started, killed, started again, and refused a port that is taken."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Literal

import pytest

from heliograph.connection import Broker as Address
from heliograph.errors import ConfigError
from heliograph.lab import Realm, free_port, is_listening, wait_until
from heliograph.mosquitto import Listener
from heliograph.mqtt import Mqtt
from heliograph_hub.broker import Broker

Kind = Literal["mosquitto", "iotcore"]
EITHER = pytest.mark.parametrize("kind", [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "iotcore"])


@contextlib.asynccontextmanager
async def supervised(broker: Broker) -> AsyncIterator[Broker]:
    async with broker:
        task = asyncio.create_task(broker.run())
        try:
            yield broker
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@EITHER
def test_a_broker_that_dies_is_started_again_and_ends_with_the_hub(tmp_path: Path, kind: Kind) -> None:
    port = free_port()

    async def main() -> None:
        async with supervised(Broker(tmp_path, port, kind=kind)) as broker:
            assert is_listening(port)
            first = broker.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            await asyncio.to_thread(wait_until, lambda: broker.starts == 2, 60.0, "the second start")
            assert broker.pid not in (first, None)
            assert is_listening(port)
        assert broker.pid is None
        assert not is_listening(port)

    asyncio.run(main())


def test_a_taken_port_is_refused_with_its_number_and_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} on 127\.0\.0\.1 is not free .* --port"):
            asyncio.run(Broker(tmp_path, port).start())


@EITHER
@pytest.mark.parametrize("is_written", [True, False], ids=["number-written", "killed-before-that"])
def test_a_broker_left_by_a_killed_hub_is_ended_and_replaced(tmp_path: Path, kind: Kind, is_written: bool) -> None:
    port = free_port()
    program = (
        "import asyncio, os, pathlib, signal, sys\n"
        "from heliograph_hub.broker import Broker\n"
        "async def main():\n"
        "    await Broker(pathlib.Path(sys.argv[1]), int(sys.argv[2]), kind=sys.argv[3]).start()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    hub = subprocess.run([sys.executable, "-c", program, tmp_path, str(port), kind], timeout=60)
    assert hub.returncode == -signal.SIGKILL
    assert is_listening(port)
    left = int((tmp_path / "broker" / "pid").read_text())
    if not is_written:
        (tmp_path / "broker" / "pid").unlink()

    async def main() -> None:
        async with supervised(Broker(tmp_path, port, kind=kind)) as broker:
            assert broker.pid not in (left, None)
            assert is_listening(port)

    try:
        asyncio.run(main())
        assert not is_listening(port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)


def test_a_process_that_has_the_old_number_by_chance_is_left_alone(tmp_path: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (tmp_path / "broker").mkdir()
    (tmp_path / "broker" / "pid").write_text(f"{bystander.pid}\n")

    async def main() -> None:
        async with supervised(Broker(tmp_path, free_port())):
            assert bystander.poll() is None

    try:
        asyncio.run(main())
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.communicate()


@EITHER
def test_a_realm_kills_the_broker_that_runs_and_not_what_has_the_number_of_another(tmp_path: Path, kind: Kind) -> None:
    realm = Realm(tmp_path / "realm")
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    async def main() -> None:
        async with Broker(realm.hub_dir, realm.port, kind=kind) as broker:
            assert broker.pid is not None
            running = os.pidfd_open(broker.pid)
            (realm.hub_dir / "broker" / "pid").write_text(f"{bystander.pid}\n")  # of one that ended long ago
            realm.kill_broker()
            assert (await asyncio.to_thread(select.select, [running], [], [], 60))[0], "it has ended"
            os.close(running)

    try:
        asyncio.run(main())
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.communicate()


@EITHER
def test_the_operator_is_told_that_nothing_protects_the_broker(tmp_path: Path, kind: Kind) -> None:
    here = Broker(tmp_path, 1883, kind=kind).notes
    assert any("port 1883 is open to this machine only: no passwords, no TLS" in note for note in here)
    assert any("in memory" in note for note in here) == (kind == "iotcore")
    with pytest.raises(ConfigError, match="without TLS listens on the loopback only, not on 10\\.0\\.0\\.1"):
        Broker(tmp_path, 1883, "10.0.0.1", kind=kind)


def test_a_broker_that_has_no_tls_is_not_given_doors_that_need_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="iotcore has neither TLS nor access lists: install the package mosquitto"):
        Broker(tmp_path, 1883, kind="iotcore", doors=(Listener(1883),))


@pytest.mark.mosquitto
def test_retained_messages_outlive_a_restart_in_order(tmp_path: Path) -> None:
    port = free_port()

    async def main() -> None:
        got: list[tuple[str, bytes, bool]] = []
        up, arrived = asyncio.Event(), asyncio.Event()

        async def take(topic: str, payload: bytes, retained: bool) -> None:
            got.append((topic, payload, retained))
            arrived.set()

        async def link(is_up: bool) -> None:
            if is_up:
                up.set()

        async with supervised(Broker(tmp_path, port)), asyncio.timeout(60), asyncio.TaskGroup() as group:
            hub = Mqtt(Address("127.0.0.1", port), "hub", [], Random(1), take, link)
            task = group.create_task(hub.run())
            await up.wait()
            await hub.publish("t", b"kept", qos=1, retain=True)
            task.cancel()
        async with supervised(Broker(tmp_path, port)), asyncio.timeout(60), asyncio.TaskGroup() as group:
            node = Mqtt(Address("127.0.0.1", port), "node", [("t", 1)], Random(1), take, link)
            task = group.create_task(node.run())
            await arrived.wait()
            task.cancel()
        assert got == [("t", b"kept", True)]

    asyncio.run(main())
    assert (tmp_path / "broker" / "mosquitto.log").exists()

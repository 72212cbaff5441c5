"""Who may do what at a real broker, by the access list that is made from the topics."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from heliograph.acl import acl_text
from heliograph.errors import TransportError
from heliograph.lab import free_port, start_mosquitto
from heliograph.mosquitto import Listener
from links import Client
from waits import until


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
            await until(lambda: "refuses us" in caplog.text, "said so")
            assert stranger.links == []

    with caplog.at_level("INFO", "heliograph.mqtt"):
        asyncio.run(main())
    assert "secret" not in caplog.text

"""What a stranger gets at the broker, and one node at another's: nothing, with a real Mosquitto."""

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from agents import QUICK, Hub, Node
from callers import BASE, Client, authority, certificate_of, held, token_for, watching
from heliograph.errors import TransportError
from heliograph.lab import wait_until
from heliograph.mosquitto import CLIENT_PREFIX
from heliograph.tls import Tls, pem_of
from heliograph_hub.client import HubClient
from heliograph_site.folder import read_key
from heliograph_site.joining import join
from waits import until

pytestmark = pytest.mark.mosquitto


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    found = Hub(tmp_path_factory.mktemp("hub"), has_tls=True)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def pair(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> tuple[Node, Node]:
    """Two nodes of one site, with their certificates."""
    nodes = []
    for name in ("press", "lathe"):
        folder = tmp_path_factory.mktemp("pair") / name
        asyncio.run(join(token_for(hub, f"lab/{name}"), folder, 0, Random(1), QUICK))
        nodes.append(Node(folder))
    return nodes[0], nodes[1]


def test_with_one_nodes_certificate_nothing_of_another_node_and_no_release_topic_is_read_or_written(
    hub: Hub, pair: tuple[Node, Node]
) -> None:
    press, lathe = pair

    async def live() -> None:
        thief = Client(hub.port, certificate_of(hub, press), "#", "$SYS/#", f"{BASE}node/lab/lathe/#")
        victim = Client(hub.port, certificate_of(hub, lathe), f"{BASE}node/lab/lathe/down/#")
        async with thief.running(), victim.running(), watching(hub) as watcher:
            for below in (
                "node/lab/lathe/up/hello",
                "node/lab/lathe/up/gone",
                "node/lab/lathe/down/assigned",
                "node/lab/press/down/assigned",
                "desired/canary",
                "deny/all",
                "tuf/set",
                "tuf/head",
                "policy/canary",
                "config/digits",
                "enroll/lab/lathe",
                "enroll/lab/lathe/renew",
            ):
                with pytest.raises(TransportError, match="refuses the message"):
                    await thief.mqtt.publish(BASE + below, b"forged", qos=1, retain=True)
            await watcher.mqtt.publish(f"{BASE}node/lab/lathe/down/offer", b"for lathe", qos=1)
            await watcher.mqtt.publish(f"{BASE}node/lab/press/down/offer", b"for press", qos=1)
            await until(lambda: victim.heard == ["node/lab/lathe/down/offer"], "what is its own arrives")
            await until(lambda: "node/lab/press/down/offer" in thief.heard, "what is its own arrives")
            assert not [full for full in thief.heard if full.startswith(("node/lab/lathe", "$SYS", "enroll"))]
            assert victim.mqtt.connects == 1

    asyncio.run(live())


@pytest.mark.skipif(shutil.which("mosquitto_pub") is None, reason="mosquitto-clients is not installed")
def test_the_tools_of_a_stranger_with_a_nodes_certificate_get_no_further(
    hub: Hub, pair: tuple[Node, Node], tmp_path: Path
) -> None:
    press, _ = pair
    (tmp_path / "crt").write_bytes(pem_of(held(press.folder).certificate))
    (tmp_path / "key").write_bytes(read_key(press.folder).to_pem())
    (tmp_path / "ca").write_bytes(pem_of(authority(hub).der))
    where = ["-h", "127.0.0.1", "-p", str(hub.port), "--cafile", str(tmp_path / "ca"), "-V", "5"]
    mine = [*where, "--cert", str(tmp_path / "crt"), "--key", str(tmp_path / "key"), "-i", "h.tool"]

    def run(*argv: str) -> tuple[int, str]:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    for below in ("node/lab/lathe/up/hello", "node/lab/lathe/down/assigned", "desired/canary", "deny/all", "tuf/set"):
        _, said = run("mosquitto_pub", *mine, "-q", "1", "-r", "-d", "-t", BASE + below, "-m", "forged")
        assert "RC:135" in said, "not authorized"
    _, said = run("mosquitto_pub", *mine, "-q", "1", "-d", "-t", f"{BASE}node/lab/press/up/gone", "-m", "x")
    assert "RC:0" in said
    heard = [f"{BASE}node/lab/lathe/#", f"{BASE}enroll/#", "$SYS/#"]
    _, said = run("mosquitto_sub", *mine, "-W", "1", "-v", *(part for one in heard for part in ("-t", one)))
    assert BASE not in said and "$SYS" not in said
    assert run("mosquitto_pub", *where, "-t", "x", "-m", "x")[0] != 0, "without a certificate nobody comes in"
    plain = ["-h", "127.0.0.1", "-p", str(hub.port), "-t", "x", "-m", "x"]
    assert run("mosquitto_pub", *plain)[0] != 0, "without TLS neither"


@pytest.mark.skipif(shutil.which("mosquitto_sub") is None, reason="mosquitto-clients is not installed")
def test_the_tools_of_a_stranger_kick_nobody_out_by_client_id(
    hub: Hub, pair: tuple[Node, Node], tmp_path: Path
) -> None:
    (tmp_path / "ca").write_bytes(pem_of(authority(hub).der))

    def at(port: int, *rest: str) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(port), "--cafile", str(tmp_path / "ca"), "-V", "5", *rest]

    def of(node: Node) -> list[str]:
        (tmp_path / f"{node.folder.name}.crt").write_bytes(pem_of(held(node.folder).certificate))
        (tmp_path / f"{node.folder.name}.key").write_bytes(read_key(node.folder).to_pem())
        return ["--cert", str(tmp_path / f"{node.folder.name}.crt"), "--key", str(tmp_path / f"{node.folder.name}.key")]

    press, lathe = pair
    log = tmp_path / "victim.log"
    listens = at(hub.port, *of(lathe), "-i", "h.victim", "-d", "-q", "1", "-t", f"{BASE}node/lab/lathe/down/#")
    with log.open("w") as out, subprocess.Popen(["stdbuf", "-oL", "mosquitto_sub", *listens], stdout=out) as victim:
        try:
            wait_until(lambda: "received SUBACK" in log.read_text(errors="replace"), 60, "the victim listens")
            hello = ["-q", "1", "-t", f"{BASE}node/lab/press/up/gone", "-m", "x"]
            for name in ("lab/lathe", "h.victim", "h.lab/lathe", "hub", "h.hub-lab"):
                for port, shown in ((hub.port, of(press)), (hub.enroll_port, ["-u", "lab/lathe"])):
                    argv = ["mosquitto_pub", *at(port, *shown, "-i", name, *hello)]
                    subprocess.run(argv, capture_output=True, timeout=60, check=False)
            hub.operate("fleet", "assign", "lab", "early")
            wait_until(
                lambda: "received PUBLISH" in log.read_text(errors="replace"),
                60,
                "the victim hears what the hub assigns",
            )
            assert victim.poll() is None and log.read_text(errors="replace").count("received CONNACK") == 1, (
                "on the same connection"
            )
        finally:
            victim.terminate()
    assert _show(hub)["broker"]["link"] == "up"


def test_nobody_is_kicked_out_by_whoever_calls_himself_by_his_name(hub: Hub, pair: tuple[Node, Node]) -> None:
    press, lathe = pair

    async def live() -> None:
        victim = Client(hub.port, certificate_of(hub, lathe), f"{BASE}node/lab/lathe/down/#")
        nobody = Tls(authority(hub).der, lambda: 0)
        async with victim.running():
            for name in ("lab/lathe", "hub", "lab.lathe", f"{CLIENT_PREFIX}lab/lathe", f"{CLIENT_PREFIX}hub-lab"):
                for port, tls, user in (
                    (hub.port, certificate_of(hub, press), "lab/lathe"),
                    (hub.enroll_port, nobody, "lab/lathe"),
                    (hub.enroll_port, nobody, "hub"),
                ):
                    await _try_to_connect(port, tls, user, name)
            assert victim.mqtt.connects == 1 and victim.mqtt.connected
        assert _show(hub)["broker"]["link"] == "up"

    asyncio.run(live())


def _show(hub: Hub) -> dict[str, dict[str, str]]:
    shown: dict[str, dict[str, str]] = HubClient(str(hub.folder)).get("/v1/hub")
    return shown


async def _try_to_connect(port: int, tls: Tls, user: str, name: str) -> None:
    """One MQTT 3.1.1 CONNECT with a client id and a user name as they stand; waits for the broker's answer."""

    def text(value: str) -> bytes:
        return len(value).to_bytes(2, "big") + value.encode()

    body = text("MQTT") + bytes([4, 0x82, 0, 60]) + text(name) + text(user)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls.context(), server_hostname="127.0.0.1")
    writer.write(bytes([0x10, len(body)]) + body)
    with contextlib.suppress(OSError):
        await reader.read(4)
    writer.close()


def test_the_door_for_new_nodes_leads_nowhere_else(hub: Hub, pair: tuple[Node, Node]) -> None:
    async def live() -> None:
        nobody = Tls(authority(hub).der, lambda: 0)
        both = {"node/lab/press/down/offer", "node/lab/lathe/down/assigned"}
        async with watching(hub, f"{BASE}node/#") as watcher:
            for user in ("lab/press", "hub", "lab/+", "+/+", "#", None):
                watcher.heard.clear()
                guest = Client(hub.enroll_port, nobody, "#", "$SYS/#", f"{BASE}#", user=user)
                async with guest.running():
                    for below in ("node/lab/press/up/hello", "node/lab/press/down/assigned", "desired/canary",
                                  "deny/all", "tuf/set", "enroll/lab/lathe", "enroll/lab/lathe/renew"):  # fmt: skip
                        with pytest.raises(TransportError, match="refuses the message"):
                            await guest.mqtt.publish(BASE + below, b"forged", qos=1, retain=True)
                    await watcher.mqtt.publish(f"{BASE}node/lab/press/down/offer", b"x", qos=1)
                    await watcher.mqtt.publish(f"{BASE}node/lab/lathe/down/assigned", b"x", qos=1)
                    await until(lambda: both <= set(watcher.heard), "both went through")
                    allowed = ("tuf/", *(["node/lab/press/down/certified"] if user == "lab/press" else []))
                    assert [full for full in guest.heard if not full.startswith(allowed)] == []

    asyncio.run(live())


def test_attack_nothing_that_a_guest_at_the_door_leaves_stays_at_the_broker(hub: Hub, tmp_path: Path) -> None:
    async def live() -> None:
        nobody = Tls(authority(hub).der, lambda: 0)
        for user in ("lab/new", "one-part", "a/b/c/d"):
            guest = Client(hub.enroll_port, nobody, user=user)
            async with guest.running():
                for below in ("", "/renew"):
                    await guest.mqtt.publish(f"{BASE}enroll/{user}{below}", b"left here", qos=1, retain=True)
        await join(token_for(hub, "lab/late"), tmp_path / "late", 0, Random(1), QUICK)  # the hub has read all before
        async with watching(hub, f"{BASE}enroll/#", f"{BASE}tuf/head") as watcher:
            await until(lambda: "tuf/head" in watcher.retained, "what is retained has come")
            assert set(watcher.retained) == {"tuf/head"}

    asyncio.run(live())


def test_who_comes_to_the_door_as_join_does_leaves_no_session_at_the_broker(hub: Hub) -> None:
    async def is_known(name: str, is_lasting: bool) -> bool:
        nobody = Tls(authority(hub).der, lambda: 0)
        filters = (f"{BASE}tuf/set", f"{BASE}node/lab/guest/down/assigned")
        for _ in range(2):
            guest = Client(hub.enroll_port, nobody, *filters, user="lab/guest", name=f"{CLIENT_PREFIX}{name}")
            guest.mqtt.is_lasting = is_lasting
            async with guest.running():
                found = guest.mqtt.session_present
        return found

    assert not asyncio.run(is_known("as-join", False))
    assert asyncio.run(is_known("lasting", True)), "or this would see none"


def test_whoever_listens_on_the_line_reads_neither_names_nor_topics_nor_tokens(hub: Hub, tmp_path: Path) -> None:
    heard = bytearray()
    string = token_for(hub, "secret-site/secret-node")

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                heard.extend(data)
                writer.write(data)
        writer.close()

    async def both_ways(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", hub.enroll_port)
        await asyncio.gather(pass_on(reader, far_writer), pass_on(far_reader, writer))

    async def live() -> None:
        server = await asyncio.start_server(both_ways, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            await join(replace(string, enroll_port=port), tmp_path / "node", 0, Random(1), QUICK)

    asyncio.run(live())
    assert len(heard) > 5_000
    for secret in (b"secret", b"heliograph/", b"MQTT", string.token, read_key(tmp_path / "node").public.raw):
        assert secret not in heard

"""Who may come to the broker, and as whom: enrolment, certificates and what they admit to, with a real Mosquitto."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from agents import QUICK, TIMING, Hub, Node, at_rest_with, enrol, until
from heliograph.cli import main
from heliograph.connection import Broker
from heliograph.documents import Certified, Renew
from heliograph.errors import IntegrityError, RefusedError, TransportError, TrustError
from heliograph.lab import Proxy, wait_until
from heliograph.metadata import time_text
from heliograph.mosquitto import CLIENT_PREFIX
from heliograph.mqtt import Mqtt
from heliograph.signing import PrivateKey, sign_statement
from heliograph.statement import parse
from heliograph.tls import Tls, pem_of
from heliograph_hub.certificates import CertificateAuthority, make_ca
from heliograph_site.folder import JoinString, read_key
from heliograph_site.identity import CERTIFICATE_FILE, write_certificate
from heliograph_site.joining import join
from heliograph_site.renewal import Renewal

pytestmark = pytest.mark.mosquitto
DAY = 86400
BASE = "heliograph/v1/lab/"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    found = Hub(tmp_path_factory.mktemp("hub"), has_tls=True)
    yield found
    found.stop()


def authority(hub: Hub) -> CertificateAuthority:
    folder = hub.folder / "tls"
    return CertificateAuthority((folder / "ca.crt").read_bytes(), (folder / "ca.key").read_bytes())


def held(folder: Path) -> Certified:
    return Certified.decode((folder / CERTIFICATE_FILE).read_bytes())


def lasting(hub: Hub, node: Node, left_s: int, ca: CertificateAuthority | None = None) -> Certified:
    """Gives the node a certificate that ends in so many seconds, as if it had been made 30 days before that."""
    before = held(node.folder)
    now = int(time.time())
    made = (ca or authority(hub)).certify_client(
        read_key(node.folder).public.raw, f"{before.site}/{before.node}", now + left_s - 30 * DAY, os.urandom(16)
    )
    given = before.model_copy(update={"certificate": made.der, "expires": now + left_s})
    write_certificate(node.folder, given)
    return given


class Client:
    """Anybody with an MQTT client and what he has got hold of."""

    def __init__(self, port: int, tls: Tls, *filters: str, user: str | None = None, name: str = "") -> None:
        self.heard: list[str] = []
        self.up = asyncio.Event()
        subscriptions = [(one, 1) for one in filters]
        broker = Broker("127.0.0.1", port, user, tls=tls)
        client_id = name or CLIENT_PREFIX + os.urandom(8).hex()
        self.mqtt = Mqtt(broker, client_id, subscriptions, Random(3), self._on_message, self._on_link, timing=TIMING)

    async def _on_message(self, full: str, payload: bytes, retained: bool) -> None:
        self.heard.append(full.removeprefix(BASE))

    async def _on_link(self, is_up: bool) -> None:
        if is_up:
            self.up.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Client"]:
        task = asyncio.ensure_future(self.mqtt.run())
        try:
            async with asyncio.timeout(10):
                await self.up.wait()
            yield self
        finally:
            task.cancel()
            await asyncio.wait({task})


def certificate_of(hub: Hub, node: Node) -> Tls:
    return Tls(
        authority(hub).der, lambda: int(time.time()), held(node.folder).certificate, read_key(node.folder).to_pem()
    )


def test_a_node_enrols_over_tls_by_the_pin_and_fetches_a_release_with_its_certificate(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.release(tmp_path, "digits", "1.0.0", Random(1).randbytes(50_000))
    node = enrol(hub, tmp_path, capsys, "fetch")
    assert {path.name for path in node.folder.iterdir()} >= {"ca.crt", CERTIFICATE_FILE, "node.key"}
    assert held(node.folder).expires == pytest.approx(time.time() + 30 * DAY, abs=120)
    assert main(["node", "status", str(node.folder)]) == 0
    assert f"certificate until {time_text(held(node.folder).expires)}" in capsys.readouterr().out
    assert (node.folder / "node.key").stat().st_mode & 0o777 == 0o600
    assert (hub.folder / "tls" / "ca.key").stat().st_mode & 0o777 == 0o600

    async def live() -> None:
        async with node.running() as agent:
            await until(at_rest_with(agent, "digits", "1.0.0"), "proven")

    asyncio.run(live())


@pytest.fixture(scope="module")
def pair(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> tuple[Node, Node]:
    """Two nodes of one site, with their certificates."""
    nodes = []
    for name in ("press", "lathe"):
        folder = tmp_path_factory.mktemp("pair") / name
        asyncio.run(join(_token(hub, f"lab/{name}"), folder, 0, Random(1), QUICK))
        nodes.append(Node(folder))
    return nodes[0], nodes[1]


def _token(hub: Hub, name: str) -> JoinString:
    from heliograph_hub.client import HubClient

    site, _, node = name.partition("/")
    answer = HubClient(str(hub.folder)).post("/v1/fleet/tokens", {"site": site, "node": node, "life_s": 600})
    return JoinString.parse(answer["join"])


def test_with_one_nodes_certificate_nothing_of_another_node_and_no_release_topic_is_read_or_written(
    hub: Hub, pair: tuple[Node, Node]
) -> None:
    press, lathe = pair

    async def live() -> None:
        thief = Client(hub.port, certificate_of(hub, press), "#", "$SYS/#", f"{BASE}node/lab/lathe/#")
        victim = Client(hub.port, certificate_of(hub, lathe), f"{BASE}node/lab/lathe/down/#")
        watcher = Client(hub.port, _hubs(hub), f"{BASE}#")
        async with thief.running(), victim.running(), watcher.running():
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


def _hubs(hub: Hub) -> Tls:
    """What the hub itself would show; made anew with its key, under a name that the access list calls hub."""
    key = PrivateKey.generate(os.urandom(32))
    made = authority(hub).certify_client(key.public.raw, "hub", int(time.time()), os.urandom(16))
    return Tls(authority(hub).der, lambda: int(time.time()), made.der, key.to_pem())


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
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
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
            wait_until(lambda: "received SUBACK" in log.read_text(errors="replace"), 10, "the victim listens")
            hello = ["-q", "1", "-t", f"{BASE}node/lab/press/up/gone", "-m", "x"]
            for name in ("lab/lathe", "h.victim", "h.lab/lathe", "hub", "h.hub-lab"):
                for port, shown in ((hub.port, of(press)), (hub.enroll_port, ["-u", "lab/lathe"])):
                    argv = ["mosquitto_pub", *at(port, *shown, "-i", name, *hello)]
                    subprocess.run(argv, capture_output=True, timeout=20, check=False)
            hub.operate("fleet", "assign", "lab", "early")
            wait_until(
                lambda: "received PUBLISH" in log.read_text(errors="replace"),
                20,
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
    from heliograph_hub.client import HubClient

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
        for user in ("lab/press", "hub", "lab/+", "+/+", "#", None):
            guest = Client(hub.enroll_port, nobody, "#", "$SYS/#", f"{BASE}#", user=user)
            watcher = Client(hub.port, _hubs(hub), f"{BASE}node/#")
            async with guest.running(), watcher.running():
                for below in ("node/lab/press/up/hello", "node/lab/press/down/assigned", "desired/canary", "deny/all",
                              "tuf/set", "enroll/lab/lathe", "enroll/lab/lathe/renew"):  # fmt: skip
                    with pytest.raises(TransportError, match="refuses the message"):
                        await guest.mqtt.publish(BASE + below, b"forged", qos=1, retain=True)
                await watcher.mqtt.publish(f"{BASE}node/lab/press/down/offer", b"x", qos=1)
                await watcher.mqtt.publish(f"{BASE}node/lab/lathe/down/assigned", b"x", qos=1)
                await until(lambda w=watcher: len(w.heard) >= 2, "both went through")  # type: ignore[misc]
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
        await join(_token(hub, "lab/late"), tmp_path / "late", 0, Random(1), QUICK)  # the hub has read all before that
        watcher = Client(hub.port, _hubs(hub), f"{BASE}enroll/#", f"{BASE}tuf/head")
        async with watcher.running():
            await until(lambda: "tuf/head" in watcher.heard, "what is retained has come")
            assert [full for full in watcher.heard if full != "tuf/head"] == []

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


def test_a_certificate_with_few_days_left_is_renewed_over_the_connection_there_is(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "renewal")
    _age(hub, "renewal")
    before = lasting(hub, node, 9 * DAY)

    async def live() -> None:
        async with node.running() as agent:
            await until(lambda: held(node.folder) != before, "another certificate")
            assert held(node.folder).expires > time.time() + 29 * DAY
            assert agent.is_up

    asyncio.run(live())


def _age(hub: Hub, site: str) -> None:
    """Lets the hub forget that it has given a certificate today."""
    import sqlite3

    with sqlite3.connect(hub.folder / "hub.sqlite") as raw:
        raw.execute("UPDATE certificates SET issued_at = issued_at - 90000 WHERE site = ?", (site,))
    raw.close()


@pytest.mark.parametrize("ended", ["by its time", "of another authority", "lost"])
def test_a_node_whose_certificate_counts_no_more_gets_another_by_its_key_without_anybodys_help(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], ended: str
) -> None:
    node = enrol(hub, tmp_path, capsys, f"slept-{len(ended)}")
    before = held(node.folder)
    match ended:
        case "by its time":
            before = lasting(hub, node, -3 * DAY)
        case "lost":
            (node.folder / CERTIFICATE_FILE).write_bytes(b"nothing of it can be read")
        case _:
            other = CertificateAuthority(*make_ca("lab", b"s" * 32, int(time.time()), b"e" * 16))
            before = lasting(hub, node, 20 * DAY, other)

    async def live() -> None:
        async with node.running() as agent:
            await until(lambda: agent.is_up, "inside again")
            now_held = held(node.folder)
            assert now_held.expires > time.time() + 28 * DAY and now_held.nonce != before.nonce

    asyncio.run(live())


@pytest.mark.parametrize("why", ["used before", "not its own"])
def test_a_token_that_is_no_good_is_told_at_once_and_why(hub: Hub, tmp_path: Path, why: str) -> None:
    string = _token(hub, f"refused-{len(why)}/n1")
    if why == "used before":
        asyncio.run(join(string, tmp_path / "first", 0, Random(1), QUICK))
    else:
        string = replace(string, token=b"?" * 32)
    began = time.monotonic()
    with pytest.raises(RefusedError, match=f"brought a token that .*{why}; print a new one with `heliograph fleet tok"):
        asyncio.run(join(string, tmp_path / "second", 0, Random(1), replace(QUICK, enroll_s=60.0)))
    assert time.monotonic() - began < 30 and not (tmp_path / "second").exists()


def test_a_removed_node_is_out_at_once_and_gets_no_certificate(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "removed")
    tls = certificate_of(hub, node)
    gone = f"{BASE}node/removed/n1/up/gone"

    async def removed() -> None:
        live = Client(hub.port, tls, f"{BASE}node/removed/n1/down/#")
        watcher = Client(hub.port, _hubs(hub), f"{BASE}node/removed/#")
        async with live.running(), watcher.running():
            await live.mqtt.publish(gone, b"", qos=1)
            await asyncio.to_thread(hub.operate, "fleet", "remove", "removed/n1")
            async with asyncio.timeout(10):
                while True:
                    try:
                        await live.mqtt.publish(gone, b"", qos=1)
                    except TransportError:
                        break  # the access list, in the session that lives
                    await asyncio.sleep(0.05)
            await watcher.mqtt.publish(f"{BASE}node/removed/n1/down/offer", b"x", qos=1)
            await until(lambda: "node/removed/n1/down/offer" in watcher.heard, "it went through")
            assert live.heard == []
        again = Client(hub.port, tls)
        task = asyncio.ensure_future(again.mqtt.run())
        async with asyncio.timeout(10):
            await again.mqtt.turned_away.wait()  # its certificate is revoked
        assert not again.up.is_set()
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(removed())
    (node.folder / CERTIFICATE_FILE).unlink()

    async def live() -> None:
        async with node.running() as agent:
            await until(lambda: agent._link._door_tries > 0, "turned away at the door too", 30)
            assert not (node.folder / CERTIFICATE_FILE).exists()

    asyncio.run(live())


def test_a_join_string_of_another_authority_is_refused_before_the_token_is_sent(hub: Hub, tmp_path: Path) -> None:
    string = _token(hub, "lab/pinned")
    with pytest.raises(TrustError, match="not of the authority that the join string names"):
        asyncio.run(join(replace(string, pin=b"p" * 32), tmp_path / "node", 0, Random(1), QUICK))
    with pytest.raises(IntegrityError, match="is not the one that the join string names"):
        asyncio.run(join(replace(string, root=b"r" * 32), tmp_path / "node", 0, Random(1), QUICK))
    assert not (tmp_path / "node").exists()
    asyncio.run(join(string, tmp_path / "node", 0, Random(1), QUICK))


def test_a_join_string_without_pin_counts_on_the_loopback_only(tmp_path: Path) -> None:
    string = JoinString("10.1.2.3", 1883, "lab", "lab", "n1", b"t" * 32, b"r" * 32)
    with pytest.raises(RefusedError, match=r"the hub at 10\.1\.2\.3 has no TLS: that is for one machine alone"):
        asyncio.run(join(string, tmp_path / "node", 0, Random(1), QUICK))


def test_hardware_that_was_replaced_comes_in_no_more_and_its_successor_does(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = enrol(hub, tmp_path, capsys, "swapped")
    tls = certificate_of(hub, old)
    asyncio.run(join(_token(hub, "swapped/n1"), tmp_path / "new", 0, Random(1), QUICK))

    async def live() -> None:
        late = Client(hub.port, tls)
        task = asyncio.ensure_future(late.mqtt.run())
        async with asyncio.timeout(10):
            await late.mqtt.turned_away.wait()
        task.cancel()
        await asyncio.wait({task})
        async with Node(tmp_path / "new").running() as agent:
            await until(lambda: agent.is_up, "inside")
            await until(lambda: agent.ring == "canary", "what the name was")

    asyncio.run(live())


def test_an_operator_elsewhere_does_what_his_role_may_over_tls_and_nothing_without_a_token(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["hub", "token", "viewer", "--hub", str(hub.folder)]) == 0
    token = capsys.readouterr().out.strip()
    url = f"https://127.0.0.1:{hub.api_port}"
    monkeypatch.setenv("HELIOGRAPH_CA", str(hub.folder / "tls" / "ca.crt"))
    assert main(["fleet", "list", "--hub", url]) == 4
    assert "no token, or one that has ended" in capsys.readouterr().err
    monkeypatch.setenv("HELIOGRAPH_TOKEN", token)
    assert main(["fleet", "list", "--hub", url]) == 0
    assert main(["fleet", "remove", "lab/press", "--hub", url]) == 4
    assert "role viewer may not POST /v1/fleet/{site}/{node}/remove; that is for operator and security" in (
        capsys.readouterr().err
    )
    assert main(["hub", "token", "operator", "--hub", url]) == 4, "tokens are the owner's to give"
    assert main(["fleet", "list", "--hub", f"http://127.0.0.1:{hub.api_port}"]) == 2
    assert "a token goes over https only" in capsys.readouterr().err
    monkeypatch.delenv("HELIOGRAPH_CA")
    assert main(["fleet", "list", "--hub", url]) == 1, "a hub of an authority that nobody named"


def test_what_enrolling_and_renewing_cost_on_the_wire(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    string = _token(hub, "wire/n1")

    async def enrolling() -> int:
        async with Proxy(hub.enroll_port) as proxy:
            await join(replace(string, enroll_port=proxy.port), tmp_path / "node", 0, Random(1), QUICK)
            return proxy.bytes_up + proxy.bytes_down

    async def renewing() -> tuple[int, int]:
        key, before = read_key(tmp_path / "node"), held(tmp_path / "node")
        tls = Tls(authority(hub).der, lambda: 0, before.certificate, key.to_pem())
        renewal = Renewal("lab", "wire", "n1", key)
        base = f"{BASE}node/wire/n1"
        async with Proxy(hub.port) as proxy:
            client = Client(proxy.port, tls, f"{base}/down/certified")

            async def on_message(full: str, payload: bytes, retained: bool) -> None:
                renewal.take(Certified.decode(parse(payload).payload))

            client.mqtt._on_message = on_message
            async with client.running():
                handshake = proxy.bytes_up + proxy.bytes_down
                await renewal.run(lambda data: client.mqtt.publish(f"{base}/up/renew", data, qos=1), 10.0)
                return handshake, proxy.bytes_up + proxy.bytes_down - handshake

    enrolled = asyncio.run(enrolling())
    connected, renewed = asyncio.run(renewing())
    with capsys.disabled():
        print(f"\nbytes both ways, TLS and MQTT included: enrol {enrolled}, connect {connected}, renew {renewed}")
    assert enrolled < 20_000 and connected < 4_000 and renewed < 4_000


def test_a_question_without_a_fresh_challenge_or_by_another_key_gets_no_certificate(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "replayed")
    names: dict[str, Any] = {"realm": "lab", "site": "replayed", "node": "n1"}
    base, key = f"{BASE}node/replayed/n1", read_key(node.folder)
    answers: dict[bytes, Certified] = {}

    async def on_message(full: str, payload: bytes, retained: bool) -> None:
        answer = Certified.decode(parse(payload).payload)
        answers[answer.nonce] = answer

    async def live() -> None:
        client = Client(hub.port, certificate_of(hub, node), f"{base}/down/certified")
        client.mqtt._on_message = on_message

        async def ask(challenge: bytes | None, by: PrivateKey = key) -> bytes:
            renew = Renew(**names, nonce=os.urandom(16), challenge=challenge)
            await client.mqtt.publish(f"{base}/up/renew", sign_statement("renew", renew.encode(), [by]), qos=1)
            return renew.nonce

        async def answer(challenge: bytes | None) -> Certified:
            nonce = await ask(challenge)
            await until(lambda: nonce in answers, "the hub's answer")
            return answers[nonce]

        async with client.running():
            strangers = await ask(None, PrivateKey.generate(b"x" * 32))
            first = await answer(None)
            assert first.certificate == b"" == (await answer(b"c" * 16)).certificate
            assert strangers not in answers
            given = (await answer(first.challenge)).certificate
            assert given == held(node.folder).certificate, "the one it has, once more"

    asyncio.run(live())
    hub.operate("fleet", "show", "replayed/n1")
    assert "not signed by the node" in capsys.readouterr().out


def test_whoever_listens_on_the_line_reads_neither_names_nor_topics_nor_tokens(hub: Hub, tmp_path: Path) -> None:
    heard = bytearray()
    string = _token(hub, "secret-site/secret-node")

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


def test_connections_are_made_anew_every_day_and_by_then_with_the_newest_certificate(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "daily")

    async def live() -> None:
        async with node.running(replace(QUICK, session_s=0.4)) as agent:
            await until(lambda: agent.is_up, "inside")
            first = agent._link._mqtt
            await until(lambda: agent._link._mqtt not in (first, None) and agent.is_up, "inside again")

    asyncio.run(live())

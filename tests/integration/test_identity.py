"""Who may come to the broker, and as whom: enrolment, certificates and their renewal, with a real Mosquitto."""

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from agents import QUICK, Hub, Node, at_rest_with, enrol
from callers import BASE, DAY, Client, authority, certificate_of, held, lasting, token_for, watching
from heliograph.cli import main
from heliograph.documents import Certified, Renew
from heliograph.errors import IntegrityError, RefusedError, TransportError, TrustError
from heliograph.lab import Proxy
from heliograph.metadata import time_text
from heliograph.signing import PrivateKey, sign_statement
from heliograph.statement import parse
from heliograph.tls import Tls
from heliograph_hub.certificates import CertificateAuthority, make_ca
from heliograph_site.folder import JoinString, read_key
from heliograph_site.identity import CERTIFICATE_FILE
from heliograph_site.joining import join
from heliograph_site.renewal import Renewal
from waits import turns, until

pytestmark = pytest.mark.mosquitto


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    found = Hub(tmp_path_factory.mktemp("hub"), has_tls=True)
    yield found
    found.stop()


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
            await until(lambda: agent.is_up, "a link, which a new ring may just have had made anew")

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
    string = token_for(hub, f"refused-{len(why)}/n1")
    if why == "used before":
        asyncio.run(join(string, tmp_path / "first", 0, Random(1), QUICK))
    else:
        string = replace(string, token=b"?" * 32)
    began = time.monotonic()
    with pytest.raises(RefusedError, match=f"brought a token that .*{why}; print a new one with `heliograph fleet tok"):
        asyncio.run(join(string, tmp_path / "second", 0, Random(1), replace(QUICK, enroll_s=300.0)))
    assert time.monotonic() - began < 150 and not (tmp_path / "second").exists()


def test_a_removed_node_is_out_at_once_and_gets_no_certificate(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "removed")
    tls = certificate_of(hub, node)
    gone = f"{BASE}node/removed/n1/up/gone"

    async def removed() -> None:
        live = Client(hub.port, tls, f"{BASE}node/removed/n1/down/#")
        async with live.running():
            await live.mqtt.publish(gone, b"", qos=1)
            await asyncio.to_thread(hub.operate, "fleet", "remove", "removed/n1")
            async with asyncio.timeout(60):
                while True:
                    try:
                        await live.mqtt.publish(gone, b"", qos=1)
                    except TransportError:
                        break  # the access list, in the session that lives
                    await turns(1)
            async with watching(hub, f"{BASE}node/removed/#") as watcher:
                await watcher.mqtt.publish(f"{BASE}node/removed/n1/down/offer", b"x", qos=1)
                await until(lambda: "node/removed/n1/down/offer" in watcher.heard, "it went through")
                assert live.heard == []
        again = Client(hub.port, tls)
        task = asyncio.ensure_future(again.mqtt.run())
        async with asyncio.timeout(60):
            await again.mqtt.turned_away.wait()  # its certificate is revoked
        assert not again.up.is_set()
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(removed())
    (node.folder / CERTIFICATE_FILE).unlink()

    async def live() -> None:
        async with node.running() as agent:
            await until(lambda: agent._link._door_tries > 0, "turned away at the door too")
            assert not (node.folder / CERTIFICATE_FILE).exists()

    asyncio.run(live())


def test_a_join_string_of_another_authority_is_refused_before_the_token_is_sent(hub: Hub, tmp_path: Path) -> None:
    string = token_for(hub, "lab/pinned")
    with pytest.raises(TrustError, match="not of the authority that the join string names"):
        asyncio.run(join(replace(string, pin=b"p" * 32), tmp_path / "node", 0, Random(1), QUICK))
    with pytest.raises(IntegrityError, match="is not the one that the join string names"):
        asyncio.run(
            join(replace(string, root=b"r" * 32), tmp_path / "node", 0, Random(1), replace(QUICK, enroll_s=5.0))
        )
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
    asyncio.run(join(token_for(hub, "swapped/n1"), tmp_path / "new", 0, Random(1), QUICK))

    async def live() -> None:
        late = Client(hub.port, tls)
        task = asyncio.ensure_future(late.mqtt.run())
        async with asyncio.timeout(60):
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
    string = token_for(hub, "wire/n1")

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


def test_connections_are_made_anew_every_day_and_by_then_with_the_newest_certificate(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = enrol(hub, tmp_path, capsys, "daily")

    async def live() -> None:
        async with node.running(replace(QUICK, session_s=2.0)) as agent:
            await until(lambda: agent.is_up, "inside")
            first = agent._link._mqtt
            await until(lambda: agent._link._mqtt not in (first, None) and agent.is_up, "inside again")

    asyncio.run(live())

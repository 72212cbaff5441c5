"""The realm as any MQTT client sees it: an ordinary one, of another make, reads what the hub keeps at its broker."""

import asyncio
import contextlib
import time
from pathlib import Path

import aiomqtt

from heliograph import trust
from heliograph.deny import DenySet
from heliograph.documents import Deny
from heliograph.lab import free_port
from heliograph.protocol import PREFIX
from heliograph.statement import signed_bytes
from heliograph_hub.broker import Broker
from heliograph_hub.founding import init_hub
from heliograph_hub.keys import load_key
from heliograph_hub.service import Service

REALM = "open"
EXPECTED = ("tuf/root/1", "tuf/set", "tuf/head", "deny/all")
NOW = 1_795_000_000


async def read_all(port: int, *, retained: bool = False) -> dict[str, bytes]:
    """What an ordinary client that speaks 3.1.1 gets until it has all that is expected; all of it as `retained`."""
    wanted = {f"{PREFIX}/{REALM}/{below}" for below in EXPECTED}
    kept: dict[str, bytes] = {}
    client = aiomqtt.Client(
        "127.0.0.1", port, username="shop/till", identifier="reader", protocol=aiomqtt.ProtocolVersion.V311
    )
    async with asyncio.timeout(60), client:
        await client.subscribe(f"{PREFIX}/{REALM}/#", qos=1)
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            assert message.retain or not retained
            kept[message.topic.value] = message.payload
            if wanted <= kept.keys():
                break
    return kept


def test_an_ordinary_client_of_another_make_reads_the_realm_from_what_its_broker_retains(tmp_path: Path) -> None:
    init_hub(tmp_path, REALM, int(time.time()))
    port = free_port()
    service = Service(tmp_path, port)
    denial = Deny(realm=REALM, releases=(b"r" * 32,), reason="wrong labels", at=NOW).encode()
    key = load_key(tmp_path / "keys" / "deny-1.key")
    service.denials.add("deny", denial, {key.keyid: key.sign(signed_bytes("deny", denial))}, NOW)

    async def scenario() -> dict[str, bytes]:
        broker = Broker(tmp_path, port)
        await broker.start()
        works = service.mqtt.run(), service.announcing.publish_retained(service.mqtt)
        tasks = [asyncio.create_task(work) for work in works]
        try:
            service.begin()
            await read_all(port)  # once all of it is there, a client that comes later gets all of it as retained
            return await read_all(port, retained=True)
        finally:
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await broker.stop()

    kept = asyncio.run(scenario())
    service.database.close()
    read = {below: kept[f"{PREFIX}/{REALM}/{below}"] for below in EXPECTED}
    trusted = trust.bootstrap(read["tuf/root/1"], service.authority.root_digest)
    trusted = trust.with_set(trusted, read["tuf/set"], int(time.time()))
    assert trusted.realm == REALM
    assert trusted.timestamp == read["tuf/head"], "the head is the timestamp of the set"
    denials = DenySet().with_list(read["deny/all"], trusted, trusted.heads.deny)
    assert denials.is_denied(b"r" * 32, ()) is not None
    assert denials.holds_all(trusted.heads.deny)

"""Who comes to a broker with TLS, and what he shows: nodes, the hub, and anybody who got hold of what is theirs."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

from agents import TIMING, Hub, Node
from heliograph.connection import Broker
from heliograph.documents import Certified
from heliograph.mosquitto import CLIENT_PREFIX
from heliograph.mqtt import Mqtt
from heliograph.signing import PrivateKey
from heliograph.tls import Tls
from heliograph_hub.certificates import CertificateAuthority
from heliograph_hub.client import HubClient
from heliograph_site.folder import JoinString, read_key
from heliograph_site.identity import CERTIFICATE_FILE, write_certificate
from waits import until

DAY = 86400
BASE = "heliograph/v1/lab/"
LINK_IS_UP = "link to the broker is up"


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
        self.retained: list[str] = []
        """What the broker had kept; not what waited in a session of the same name, from the test before."""
        self.up = asyncio.Event()
        subscriptions = [(one, 1) for one in filters]
        broker = Broker("127.0.0.1", port, user, tls=tls)
        client_id = name or CLIENT_PREFIX + os.urandom(8).hex()
        self.mqtt = Mqtt(broker, client_id, subscriptions, Random(3), self._on_message, self._on_link, timing=TIMING)

    async def _on_message(self, full: str, payload: bytes, retained: bool) -> None:
        self.heard.append(full.removeprefix(BASE))
        if retained:
            self.retained.append(full.removeprefix(BASE))

    async def _on_link(self, is_up: bool) -> None:
        if is_up:
            self.up.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Client"]:
        task = asyncio.ensure_future(self.mqtt.run())
        try:
            async with asyncio.timeout(60):
                await self.up.wait()
            yield self
        finally:
            task.cancel()
            await asyncio.wait({task})


def certificate_of(hub: Hub, node: Node) -> Tls:
    return Tls(
        authority(hub).der, lambda: int(time.time()), held(node.folder).certificate, read_key(node.folder).to_pem()
    )


@contextlib.asynccontextmanager
async def watching(hub: Hub, *filters: str) -> AsyncIterator[Client]:
    """Sees and says what the hub may, which stands still meanwhile: the broker lets in one of that name, the last."""
    assert hub.process is not None
    before = hub.process.output().count(LINK_IS_UP)
    hub.process.process.send_signal(signal.SIGSTOP)
    try:
        watcher = Client(hub.port, as_hub(hub), *filters)
        async with watcher.running():
            yield watcher
    finally:
        hub.process.process.send_signal(signal.SIGCONT)
    await until(lambda: hub.process is None or hub.process.output().count(LINK_IS_UP) > before, "the hub is back")


def as_hub(hub: Hub) -> Tls:
    """What the hub itself would show; made anew with its key, under a name that the access list calls hub."""
    key = PrivateKey.generate(os.urandom(32))
    made = authority(hub).certify_client(key.public.raw, "hub", int(time.time()), os.urandom(16))
    return Tls(authority(hub).der, lambda: int(time.time()), made.der, key.to_pem())


def token_for(hub: Hub, name: str) -> JoinString:
    site, _, node = name.partition("/")
    answer = HubClient(str(hub.folder)).post("/v1/fleet/tokens", {"site": site, "node": node, "life_s": 600})
    return JoinString.parse(answer["join"])

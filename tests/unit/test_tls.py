"""TLS on a node: whom it takes for its broker, with a clock that may say anything."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random

import pytest

from heliograph.connection import Broker, Connection, Timing
from heliograph.errors import TransportError, TrustError
from heliograph.mqtt import Mqtt
from heliograph.signing import PrivateKey
from heliograph.tls import Tls, fetch_ca, pem_of
from heliograph_hub.certificates import BROKER_LIFE_S, CertificateAuthority, make_ca

NOW = int(time.time())
YEAR = 365 * 86400
KEY = PrivateKey.generate(b"k" * 32)
OTHER = CertificateAuthority(*make_ca("demo", b"o" * 32, NOW, b"e" * 16))


def authority(now: int = NOW) -> CertificateAuthority:
    return CertificateAuthority(*make_ca("demo", b"s" * 32, now, b"e" * 16))


@contextlib.asynccontextmanager
async def broker(
    folder: Path, ca: CertificateAuthority, made_at: int = NOW, name: str = "127.0.0.1", *, asks: bool = False
) -> AsyncIterator[int]:
    """Something that shakes hands, with a certificate made at that time; it says CONNACK to whatever comes."""
    key = PrivateKey.generate(b"b" * 32)
    (folder / "crt").write_bytes(ca.certify_broker(key.public.raw, [name], made_at, b"e" * 16).pem + ca.pem)
    (folder / "key").write_bytes(key.to_pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "crt", folder / "key")
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=ca.der)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read(1)
            writer.write(b"\x20\x03\x00\x00\x00")
            await reader.read()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def connects(port: int, tls: Tls, host: str = "127.0.0.1") -> str:
    """Empty once a client of ours is connected; else why it isn't, in the log's words."""

    async def on_link(is_up: bool) -> None:
        pass

    async def on_message(*_: object) -> None:
        pass

    client = Mqtt(Broker(host, port, tls=tls), "h.x", [], Random(1), on_message, on_link, timing=Timing(connect_s=3.0))
    link = client._link = Connection(client._visit(), client._received)
    try:
        await link.open(())
    except TransportError as error:
        return str(error)
    finally:
        link.close("over")
    return ""


def check(folder: Path, tls: Callable[[CertificateAuthority], Tls], **given: object) -> str:
    made_at = given.pop("made_at", NOW)
    assert isinstance(made_at, int)
    ca = authority(made_at)

    async def run() -> str:
        async with broker(folder, ca, made_at, **given) as port:  # type: ignore[arg-type]
            return await connects(port, tls(ca))

    return asyncio.run(run())


def test_a_broker_of_the_realms_authority_is_believed_under_the_name_in_its_certificate(tmp_path: Path) -> None:
    assert check(tmp_path, lambda ca: Tls(ca.der, lambda: NOW)) == ""


def test_a_broker_of_another_authority_or_another_name_is_not(tmp_path: Path) -> None:
    assert "certificate" in check(tmp_path, lambda ca: Tls(OTHER.der, lambda: NOW))
    assert "mismatch" in check(tmp_path, lambda ca: Tls(ca.der, lambda: NOW), name="127.0.0.2")
    assert "mismatch" in check(tmp_path, lambda ca: Tls(ca.der, lambda: NOW), name="hub.example.org")


# This machine's clock can't be set, so that the certificates are of other times: to one that began in the future this
# clock is decades behind (1970), to one that ended long ago decades ahead (2040).
@pytest.mark.parametrize("made_at", [NOW + 50 * YEAR, NOW - 15 * YEAR], ids=["clock-says-1970", "clock-says-2040"])
def test_a_wrong_clock_keeps_no_node_from_a_broker_whose_certificate_lasts_by_its_estimate(
    tmp_path: Path, made_at: int
) -> None:
    assert check(tmp_path, lambda ca: Tls(ca.der, lambda: made_at + 10), made_at=made_at) == ""
    strict = ssl.create_default_context()
    assert not strict.verify_flags & 0x200000, "by default the clock counts, and this would have failed"


@pytest.mark.parametrize("made_at", [NOW + 50 * YEAR, NOW, NOW - 15 * YEAR], ids=["1970", "now", "2040"])
def test_a_certificate_that_has_ended_by_the_nodes_estimate_is_refused_whatever_the_clock_says(
    tmp_path: Path, made_at: int
) -> None:
    end = made_at + BROKER_LIFE_S
    assert check(tmp_path, lambda ca: Tls(ca.der, lambda: end - 1), made_at=made_at) == ""
    assert "certificate ended at" in check(tmp_path, lambda ca: Tls(ca.der, lambda: end), made_at=made_at)
    assert "certificate ended at" in check(tmp_path, lambda ca: Tls(ca.der, lambda: end + YEAR), made_at=made_at)


def test_a_node_shows_a_certificate_of_its_own_key_from_memory(tmp_path: Path) -> None:
    def mine(ca: CertificateAuthority) -> Tls:
        made = ca.certify_client(KEY.public.raw, "lab/pi-1", NOW, b"e" * 16)
        return Tls(ca.der, lambda: NOW, made.der, KEY.to_pem())

    assert check(tmp_path, mine, asks=True) == ""
    assert check(tmp_path, lambda ca: Tls(ca.der, lambda: NOW), asks=True) != ""
    assert "PRIVATE" not in repr(mine(authority()))


def test_a_certificate_of_another_key_is_not_used() -> None:
    ca = authority()
    other = ca.certify_client(PrivateKey.generate(b"x" * 32).public.raw, "lab/pi-1", NOW, b"e" * 16)
    with pytest.raises(TrustError, match="can't be used"):
        Tls(ca.der, lambda: NOW, other.der, KEY.to_pem()).context()
    with pytest.raises(TrustError, match="can't be used"):
        Tls(ca.der, lambda: NOW, b"\x30\x00", KEY.to_pem()).context()


def test_the_authority_is_taken_from_the_broker_if_its_digest_is_the_pin(tmp_path: Path) -> None:
    ca = authority()

    async def run(pin: bytes) -> bytes:
        async with broker(tmp_path, ca) as port:
            return await asyncio.to_thread(fetch_ca, "127.0.0.1", port, pin, 5.0)

    assert asyncio.run(run(ca.pin)) == ca.der
    with pytest.raises(TrustError, match="not of the authority that the join string names"):
        asyncio.run(run(OTHER.pin))


def test_who_answers_without_tls_is_no_hub(tmp_path: Path) -> None:
    async def run() -> None:
        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"\x20\x02\x00\x00")
            writer.close()

        async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            await asyncio.to_thread(fetch_ca, "127.0.0.1", port, b"p" * 32, 5.0)

    with pytest.raises(TransportError, match="no hub with TLS answers at"):
        asyncio.run(run())


def test_pem_is_der_in_another_form() -> None:
    assert pem_of(OTHER.der) == OTHER.pem

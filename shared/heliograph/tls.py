"""[IO] TLS to the broker: whom a client takes for it, as whom it comes, and by which clock.

Rule 1: TLS 1.3; chain and name are verified, under the realm's own authority and nobody else's.
Rule 2: the machine's clock isn't asked, since it may say 1970 or 2040: OpenSSL checks no times, and the broker's
    certificate has to last beyond the caller's estimate of the time.
Rule 3: a private key reaches OpenSSL by a file in memory; it isn't written to the disk a second time.

An authority is known by its pin, the SHA-256 of its certificate. The certificate itself comes from the broker.
"""

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from heliograph.blob import sha256
from heliograph.errors import TransportError, TrustError

NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME, which Python's ssl has no name for."""
MAX_CHAIN = 8


@dataclass(frozen=True, slots=True)
class Tls:
    """How to be sure of a broker, and how it can be sure of us.

    Attributes:
        ca: the authority's certificate, DER.
        now: the caller's estimate of the time, seconds since 1970.
        certificate: our own, DER; empty: we come without one, as a new node does.
        key: its private key, PEM.
    """

    ca: bytes
    now: Callable[[], int] = field(repr=False)
    certificate: bytes = b""
    key: bytes = field(default=b"", repr=False)

    def context(self) -> ssl.SSLContext:
        """Settings for one connection.

        Raises:
            TrustError: the certificates or the key can't be used, or don't belong together.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_flags = ssl.VerifyFlags(context.verify_flags | NO_CHECK_TIME)
        try:
            context.load_verify_locations(cadata=self.ca)
            if self.certificate:
                pem = ssl.DER_cert_to_PEM_cert(self.certificate).encode()
                with _in_memory(pem) as chain, _in_memory(self.key) as key:
                    context.load_cert_chain(chain, key)
        except ssl.SSLError as error:
            raise TrustError(f"certificate or key can't be used: {error.reason or error}") from error
        return context

    def check(self, sock: ssl.SSLSocket) -> None:
        """Returns if the broker's certificate, which OpenSSL has verified but for its times, still lasts.

        Raises:
            TransportError: it has ended, by the caller's estimate.
        """
        shown: dict[str, Any] = sock.getpeercert() or {}
        ends = int(ssl.cert_time_to_seconds(str(shown.get("notAfter", "Jan  1 00:00:00 1970 GMT"))))
        if self.now() >= ends:
            raise TransportError(f"the broker's certificate ended at {shown.get('notAfter')}")


def fetch_ca(host: str, port: int, pin: bytes, timeout_s: float) -> bytes:
    """The certificate with this SHA-256 that a broker shows as its authority, DER. Blocks; sends nothing secret.

    Nothing is believed that the broker says until its certificate was verified under this one, in another connection.

    Raises:
        TransportError: no broker with TLS answers there.
        TrustError: it shows none with this pin.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout_s) as raw,
            context.wrap_socket(raw, server_hostname=host) as sock,
        ):
            chain = _chain(sock)
    except OSError as error:
        raise TransportError(f"no hub with TLS answers at {host}:{port}: {error.strerror or error}") from error
    for shown in chain[:MAX_CHAIN]:
        if sha256(shown) == pin:
            return shown
    raise TrustError(
        f"the broker at {host}:{port} is not of the authority that the join string names: ask for a new string, "
        "and whether somebody else answers at that address"
    )


def pem_of(der: bytes) -> bytes:
    """A certificate as files hold it."""
    return ssl.DER_cert_to_PEM_cert(der).encode()


def der_of(pem: bytes) -> bytes:
    """A certificate's bytes.

    Raises:
        TrustError: not one in PEM.
    """
    try:
        return ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))
    except ValueError as error:
        raise TrustError("not a certificate in PEM") from error


def _chain(sock: ssl.SSLSocket) -> list[bytes]:
    """What the other side showed, DER; Python has a public name for it since 3.13."""
    public: Callable[[], list[bytes]] | None = getattr(sock, "get_unverified_chain", None)
    if public is not None:
        return list(public())
    shown = getattr(sock, "_sslobj").get_unverified_chain()  # noqa: B009 - not in the stubs
    return [ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in shown or ()]


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """A path under which OpenSSL can read the bytes while the block runs."""
    fd = os.memfd_create("heliograph", os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)

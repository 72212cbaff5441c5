"""[IO] By what a node is known: its key to the hub, and the certificate of that key to the broker.

Rule 1: the key never leaves the node, and is all that the node needs to get a certificate, also long after the last
    one ended. Where it is kept is a `KeyStore`'s business.
Rule 2: a certificate is renewed when `RENEW_BEFORE_S` are left of it, by the node's estimate of the time.
Rule 3: an old certificate is replaced only by one that fits the key, on disk, in one rename.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from heliograph.blob import sha256
from heliograph.documents import Certified
from heliograph.errors import ConfigError, HeliographError, TrustError
from heliograph.objects import write_durably
from heliograph.signing import PrivateKey
from heliograph.tls import Tls, der_of, pem_of
from heliograph_site.folder import NodeFile, read_key

CA_FILE = "ca.crt"
CERTIFICATE_FILE = "certificate"
RENEW_BEFORE_S = 10 * 86400


class KeyStore(Protocol):
    """Where a node's key is kept."""

    def load(self) -> PrivateKey:
        """The key.

        Raises:
            ConfigError: it isn't there, or can't be used.
        """


class KeyFile:
    """The key in a file of the node's folder, which only its owner can read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> PrivateKey:
        """The key in `node.key`; raises as the protocol says."""
        return read_key(self._folder)


class Credentials:
    """What a node shows to the broker; nothing, where that has no TLS."""

    def __init__(self, folder: Path, file: NodeFile, key: PrivateKey, now: Callable[[], int]) -> None:
        """`now`: the estimate of the time.

        Raises:
            ConfigError: the realm's CA is not in the folder, or another than when the node joined.
        """
        self._folder, self._key, self._now = folder, key, now
        self.has_tls = bool(file.ca)
        self._ca = _read_ca(folder, bytes.fromhex(file.ca)) if file.ca else b""
        self._certified = read_certificate(folder)

    @property
    def expires(self) -> int:
        """When the certificate ends, seconds since 1970; 0: there is none."""
        return self._certified.expires if self._certified is not None else 0

    @property
    def is_over(self) -> bool:
        """Whether the broker has no reason to let us in: no certificate, or one that has ended."""
        return self.has_tls and self._now() >= self.expires

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next certificate."""
        return self.has_tls and self._now() >= self.expires - RENEW_BEFORE_S

    def tls(self) -> Tls | None:
        """How to come in as this node; None if the broker has no TLS."""
        if not self.has_tls:
            return None
        certificate = self._certified.certificate if self._certified is not None else b""
        return Tls(self._ca, self._now, certificate, self._key.to_pem())

    def tls_at_the_door(self) -> Tls:
        """How to come where new certificates are given, as nobody."""
        return Tls(self._ca, self._now)

    def keep(self, certified: Certified) -> None:
        """Takes a new certificate, on disk when this returns.

        Raises:
            TrustError: it doesn't fit this node's key.
        """
        Tls(self._ca, self._now, certified.certificate, self._key.to_pem()).context()
        write_certificate(self._folder, certified)
        self._certified = certified


def write_ca(folder: Path, ca: bytes) -> None:
    """Keeps the certificate of the realm's CA."""
    write_durably(folder / CA_FILE, pem_of(ca))


def write_certificate(folder: Path, certified: Certified) -> None:
    """Keeps the document that brought a certificate."""
    write_durably(folder / CERTIFICATE_FILE, certified.encode())


def _read_ca(folder: Path, pin: bytes) -> bytes:
    path = folder / CA_FILE
    try:
        ca = der_of(path.read_bytes())
    except (OSError, TrustError) as error:
        raise ConfigError(f"{path} can't be read: {error}; the node must join anew") from error
    if sha256(ca) != pin:
        raise ConfigError(f"{path} is not the CA with which this node joined: restore it, or join anew")
    return ca


def read_certificate(folder: Path) -> Certified | None:
    """The one that is held; one that is damaged counts as none, since another can be had."""
    try:
        return Certified.decode((folder / CERTIFICATE_FILE).read_bytes())
    except (OSError, HeliographError):
        return None

"""[IO] By what a node is known: its key to the hub, and the certificate of that key to the broker.

Rule 1: the key never leaves the node, and is all that the node needs to get a certificate, also long after the last
    one ended. Where it is kept is a `KeyStore`'s business.
Rule 2: a certificate is renewed when `RENEW_BEFORE_S` are left of it, by the node's estimate of the time.
Rule 3: an old certificate is replaced only by one that fits the key, on disk, in one rename.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from heliograph.blob import sha256
from heliograph.documents import Certified
from heliograph.errors import ConfigError, HeliographError, TrustError
from heliograph.objects import write_durably
from heliograph.signing import MAX_KEY_FILE_BYTES, PUBLIC_KEY_BYTES, PrivateKey, PublicKey
from heliograph.tls import Tls, der_of, pem_of
from heliograph_site.folder import KEY_FILE, KeptIn, NodeFile, read_key
from heliograph_site.tpm import MAX_PART_BYTES, Sealed, seal, unseal

CA_FILE = "ca.crt"
CERTIFICATE_FILE = "certificate"
SEALED_KEY_FILE = "node.key.tpm"
SEALED_KEY_FORMAT: Literal[1] = 1
RENEW_BEFORE_S = 10 * 86400


class KeyStore(Protocol):
    """Where a node's key is kept."""

    def load(self) -> PrivateKey:
        """The key.

        Raises:
            ConfigError: it isn't there, or can't be used.
        """

    def keyid(self) -> bytes:
        """Its id, 32 bytes; also where the key itself can't be had just now. Raises as `load`."""


@dataclass(frozen=True, slots=True)
class KeptKey:
    """A key made ready for a node's folder: its file's name, and the content, which may be the secret itself."""

    name: str
    content: bytes = field(repr=False)

    def write(self, folder: Path) -> None:
        """Puts it into the folder, for its owner's eyes only; on disk when this returns."""
        write_durably(folder / self.name, self.content, mode=0o600)


def keep_in(kept_in: KeptIn, key: PrivateKey) -> KeptKey:
    """Makes a new key ready to be kept there.

    Raises:
        ConfigError: there is no TPM that could, said in one sentence.
    """
    if kept_in == "file":
        return KeptKey(KEY_FILE, key.to_json())
    sealed = seal(key.to_seed())
    content = {
        "format": SEALED_KEY_FORMAT,
        "keytype": "ed25519",
        "scheme": "ed25519",
        "public": key.public.raw.hex(),
        "sealed": {"public": sealed.public.hex(), "private": sealed.private.hex()},
    }
    return KeptKey(SEALED_KEY_FILE, json.dumps(content, indent=1).encode() + b"\n")


def key_store(folder: Path, kept_in: KeptIn) -> KeyStore:
    """Where the node of this folder keeps its key, as its `node.toml` says."""
    return KeyFile(folder) if kept_in == "file" else TpmKey(folder)


class KeyFile:
    """The key in a file of the node's folder, which only its owner can read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> PrivateKey:
        """The key in `node.key`; raises as the protocol says."""
        return read_key(self._folder)

    def keyid(self) -> bytes:
        """As the protocol says."""
        return self.load().keyid


class TpmKey:
    """The key in a file of the node's folder that only this machine's TPM opens; a copy of it is nothing elsewhere."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SEALED_KEY_FILE

    def load(self) -> PrivateKey:
        """The key, opened by the TPM; raises as the protocol says."""
        public, sealed = self._read()
        seed = unseal(sealed, str(self._path))
        if len(seed) != PUBLIC_KEY_BYTES or (key := PrivateKey(seed)).public != public:
            raise ConfigError(f"{self._path} is damaged: what is sealed in it is not its key; the node must join anew")
        return key

    def keyid(self) -> bytes:
        """As the protocol says; asks no TPM."""
        return self._read()[0].keyid

    def _read(self) -> tuple[PublicKey, Sealed]:
        try:
            with self._path.open("rb") as file:
                content = json.loads(file.read(MAX_KEY_FILE_BYTES + 1)[:MAX_KEY_FILE_BYTES])
        except OSError as error:
            raise ConfigError(
                f"{self._path} can't be read: {error.strerror}; without it the node must join anew"
            ) from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{self._path} is damaged: not JSON; the node must join anew") from error
        try:
            match content:
                case {"format": int(version)} if version != SEALED_KEY_FORMAT:
                    raise ConfigError(f"{self._path} has format {version}, this version reads {SEALED_KEY_FORMAT}")
                case {
                    "keytype": "ed25519",
                    "scheme": "ed25519",
                    "public": str(public),
                    "sealed": {"public": str(outer), "private": str(inner)},
                } if len(public) == 2 * PUBLIC_KEY_BYTES and max(len(outer), len(inner)) <= 2 * MAX_PART_BYTES:
                    return PublicKey(bytes.fromhex(public)), Sealed(bytes.fromhex(outer), bytes.fromhex(inner))
        except (ValueError, TrustError):
            pass  # as any other that isn't one
        raise ConfigError(f"{self._path} is no sealed key; restore it, or join anew")


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

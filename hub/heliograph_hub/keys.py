"""[IO] Keys as operators name them: files of ours, the hub's folder of them, and keys in an HSM or a KMS by URI.

    NAME.key, file:NAME.key       a private key, 0600 (shared/FORMATS.md, "Key file")
    NAME.pub                      its public half, to be carried to the ceremony
    SCHEME:…#NAME.pub             a key that `securesystemslib.signer` reaches, and the public half of it

Rule 1: whatever signs, its signature is checked by the public half before it is used.
Rule 2: Ed25519 only. Of the library's own schemes that is `file2:` (a PEM file) and `hv:` (Vault's transit engine);
    its others are for ECDSA, RSA or ML-DSA. An installed package may bring a scheme: an entry point of `SIGNERS`.
Rule 3: what a scheme needs is imported when a key of it is asked for.
"""

import json
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from securesystemslib.exceptions import UnsupportedLibraryError, VerificationError
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, Signer, SSlibKey

from heliograph.errors import ConfigError, RefusedError, TrustError
from heliograph.objects import write_durably
from heliograph.signing import KEY_FILE_VERSION, MAX_KEY_FILE_BYTES, PrivateKey, PublicKey

SUFFIX, PUBLIC_SUFFIX = ".key", ".pub"
SIGNERS = "heliograph.signers"
"""Entry points: a scheme by name, and the `securesystemslib.signer.Signer` that makes keys of its URIs."""
_ED25519 = "ed25519"
_LIBRARY = "securesystemslib."
_LIBRARY_ED25519 = frozenset({"file2", "hv"})
"""Of the library's own schemes those whose keys can be of our kind."""


class SigningKey(Protocol):
    """What signs, wherever its secret is."""

    keyid: bytes
    public: PublicKey

    def sign(self, data: bytes) -> bytes:
        """The signature over `data`, 64 bytes."""


def load_key(path: Path) -> PrivateKey:
    """The private key in a key file.

    Raises:
        ConfigError: missing, unreadable, readable by others than its owner, or no key file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is not a file: name a key file such as keys/sign-digits.key")
        if status.st_mode & 0o077:
            raise ConfigError(f"{path} can be read by other users: chmod 600 it, and think about who has read it")
        with path.open("rb") as file:
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"key file {path} does not exist: name a file of the realm's keys folder") from error
    except OSError as error:
        raise ConfigError(f"key file {path} cannot be read: {error.strerror}") from error
    return PrivateKey.from_json(data, str(path))


def make_key(path: Path, seed: bytes) -> PublicKey:
    """Writes a new private key, 0600, and its public half beside it; on disk when this returns.

    Raises:
        RefusedError: there is a file already.
        ConfigError: it can't be written there.
    """
    public = path.with_suffix(PUBLIC_SUFFIX)
    if path.suffix != SUFFIX:
        raise ConfigError(f"{path} is no name of a key file: end it in {SUFFIX}, the public half gets {PUBLIC_SUFFIX}")
    for there in (path, public):
        if there.exists():
            raise RefusedError(f"{there} exists: a key is never overwritten, choose another name")
    key = PrivateKey.generate(seed)
    try:
        write_durably(path, key.to_json(), mode=0o600)
        write_durably(public, public_json(key.public))
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error.strerror}): choose another place") from error
    return key.public


def public_json(key: PublicKey) -> bytes:
    """The content of a `.pub` file."""
    value = {"format": KEY_FILE_VERSION, "keytype": _ED25519, "scheme": _ED25519, "public": key.raw.hex()}
    return json.dumps(value, indent=1).encode() + b"\n"


def load_public(path: Path) -> PublicKey:
    """The public key in a `.pub` file; of a private key's file its public half.

    Raises:
        ConfigError: missing, or neither.
    """
    if path.suffix == SUFFIX:
        return load_key(path).public
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(MAX_KEY_FILE_BYTES))
    except OSError as error:
        raise ConfigError(f"public key {path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is no public key: not JSON; heliograph key make writes one beside each key"
        ) from error
    match value:
        case {"format": int(version)} if version != KEY_FILE_VERSION:
            raise ConfigError(f"{path} has key format {version}, this version reads {KEY_FILE_VERSION}")
        case {"keytype": "ed25519", "scheme": "ed25519", "public": str(text)} if "private" not in value:
            pass
        case _:
            raise ConfigError(f"{path} is no Ed25519 public key: it needs keytype, scheme and public, nothing private")
    try:
        return PublicKey(bytes.fromhex(text))
    except (ValueError, TrustError) as error:
        raise ConfigError(f"{path} is no Ed25519 public key: {error}") from error


class RemoteKey:
    """A key whose secret stays in an HSM, a KMS or wherever its signer reaches."""

    def __init__(self, signer: Signer, public: PublicKey, where: str) -> None:
        self._signer = signer
        self._where = where
        self.public = public
        self.keyid = public.keyid

    def sign(self, data: bytes) -> bytes:
        """The signature over `data`, checked.

        Raises:
            TrustError: it isn't the key's.
        """
        known = (OSError, ValueError, UnsupportedLibraryError, VerificationError)
        refusals: tuple[type[Exception], ...] = (*known, *_vault_errors())
        try:
            signature = bytes.fromhex(self._signer.sign(data).signature)
        except refusals as error:
            raise TrustError(f"{self._where} did not sign: {error}") from error
        if not self.public.is_signature(data, signature):
            raise TrustError(f"{self._where} gave a signature that is not of key {self.keyid.hex()[:16]}")
        return signature


def open_key(where: str) -> SigningKey:
    """The key that an operator names: a file, `file:` and a file, or `SCHEME:…#PUBLIC`.

    Raises:
        ConfigError: no such key, no such scheme, or not an Ed25519 key.
    """
    scheme, colon, rest = where.partition(":")
    if not colon or scheme == "file" or Path(where).exists():
        return load_key(Path(rest if colon and scheme == "file" else where))
    uri, hash_, public_file = where.rpartition("#")
    for point in entry_points(group=SIGNERS, name=scheme):
        SIGNER_FOR_URI_SCHEME[scheme] = point.load()
    schemes = sorted(name for name, made_by in SIGNER_FOR_URI_SCHEME.items() if _is_ed25519(name, made_by))
    if scheme not in SIGNER_FOR_URI_SCHEME:
        known = ", ".join(sorted({"file", *schemes}))
        raise ConfigError(f"{where[:100]} is neither a file nor a key of a known scheme: schemes are {known}")
    if scheme not in schemes:
        raise ConfigError(
            f"{scheme}: keys are not Ed25519, as every key here is: schemes are file, {', '.join(schemes)}, and what "
            f"an installed package brings as entry point of {SIGNERS}"
        )
    if not hash_:
        raise ConfigError(f"{where[:100]} names no public half: write {scheme}:…#FILE.pub")
    public = load_public(Path(public_file))
    key = SSlibKey(public.keyid.hex(), _ED25519, _ED25519, {"public": public.raw.hex()})  # signers take no other class
    try:
        signer = Signer.from_priv_key_uri(uri, key)
    except UnsupportedLibraryError as error:
        raise ConfigError(f"{scheme}: keys need a library that is missing: {error}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:  # a PEM file with a password is a TypeError
        raise ConfigError(f"{uri[:100]} can't be used: {error}") from error
    return RemoteKey(signer, public, uri)


def _vault_errors() -> tuple[type[Exception], ...]:
    """What Vault's client raises when Vault refuses, once it is loaded: it is no error of the system's kinds."""
    loaded = sys.modules.get("hvac.exceptions")
    return (loaded.VaultError,) if loaded is not None else ()


def _is_ed25519(scheme: str, made_by: type[Signer]) -> bool:
    return scheme in _LIBRARY_ED25519 or not made_by.__module__.startswith(_LIBRARY)


def open_keys(named: Iterable[str]) -> list[SigningKey]:
    """Each of them."""
    return [open_key(where) for where in named]


class KeyDir:
    """The folder of private keys, 0700, one file per key, 0600."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_id: dict[bytes, PrivateKey] = {}

    def path(self, name: str) -> Path:
        """Where the key called `name` is, or would be."""
        return self.folder / f"{name}{SUFFIX}"

    def make(self, name: str, entropy: Callable[[int], bytes]) -> PrivateKey:
        """The key called `name`: the one on disk, else a new one; on disk when this returns, never overwritten."""
        path = self.path(name)
        if not path.exists():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            write_durably(path, PrivateKey.generate(entropy(32)).to_json(), mode=0o600)
        key = load_key(path)
        self._by_id[key.keyid] = key
        return key

    def find(self, keyids: Mapping[bytes, bytes]) -> list[PrivateKey]:
        """Those of the keys that are here, in the order of their ids.

        Raises:
            ConfigError: a file in the folder is no key file, or is open to others.
        """
        if not all(keyid in self._by_id for keyid in keyids):
            loaded = [load_key(path) for path in sorted(self.folder.glob(f"*{SUFFIX}"))]
            self._by_id = {key.keyid: key for key in loaded}
        return [self._by_id[keyid] for keyid in sorted(keyids) if keyid in self._by_id]

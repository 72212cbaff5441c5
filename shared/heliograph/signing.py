"""Ed25519 keys by PyNaCl: signing and checking statements, and the keys that TUF metadata is verified with.

Rule 1: a key id is the SHA-256 of the key's TUF canonical JSON: 64 hex digits in TUF metadata, 32 raw bytes in
    statements. It is recomputed when a key is read, so one key can't stand under two ids and count twice.
Rule 2: importing this module makes `tuf.api.metadata` read every ed25519 key as `TufKey`, which verifies through
    libsodium. Without it securesystemslib falls back to pure Python, some 40 times slower.
Rule 3: randomness comes as an argument (a seed of 32 bytes), and nothing here prints a private key.

Which keys count for what is not decided here but in `heliograph.trust`.
"""

import json
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from nacl.bindings import (
    crypto_box_seal_open,
    crypto_sign_ed25519_pk_to_curve25519,
    crypto_sign_ed25519_sk_to_curve25519,
)
from nacl.exceptions import BadSignatureError, CryptoError
from nacl.exceptions import ValueError as NaclValueError
from nacl.signing import SigningKey, VerifyKey
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import KEY_FOR_TYPE_AND_SCHEME, Key, SecretsHandler, Signature, Signer

from heliograph.blob import sha256
from heliograph.errors import ConfigError, IntegrityError, TrustError
from heliograph.statement import SIGNATURE_BYTES, Statement, encode, signed_bytes

KEY_FILE_VERSION: Literal[1] = 1
SEED_BYTES = 32
PUBLIC_KEY_BYTES = 32
MAX_KEY_FILE_BYTES = 4096
_ED25519 = "ed25519"
_HEX = frozenset("0123456789abcdef")
_PKCS8 = bytes.fromhex("302e020100300506032b657004220420")
"""What stands before the 32 bytes of an Ed25519 key in PKCS#8."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One Ed25519 public key, 32 raw bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != PUBLIC_KEY_BYTES:
            raise TrustError(f"public key of {len(self.raw)} bytes, an Ed25519 key has {PUBLIC_KEY_BYTES}")

    @property
    def keyid(self) -> bytes:
        """32 bytes: SHA-256 of the canonical JSON of keytype, scheme and keyval."""
        canonical = encode_canonical({"keytype": _ED25519, "scheme": _ED25519, "keyval": {"public": self.raw.hex()}})
        assert canonical is not None  # only with an output function, which is not given
        return sha256(canonical.encode())

    def is_signature(self, data: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's over `data`; any malformed key or signature is simply not."""
        if len(signature) != SIGNATURE_BYTES:
            return False
        try:
            VerifyKey(self.raw).verify(data, signature)
        except (BadSignatureError, NaclValueError):
            return False
        return True

    def tuf_key(self) -> "TufKey":
        """The same key as TUF metadata holds it."""
        return TufKey(self.keyid.hex(), _ED25519, _ED25519, {"public": self.raw.hex()})


class PrivateKey:
    """One Ed25519 private key. Its `repr` shows the key id only."""

    __slots__ = ("_key", "keyid", "public")

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)
        self.public = PublicKey(bytes(self._key.verify_key))
        self.keyid = self.public.keyid

    @classmethod
    def generate(cls, seed: bytes) -> "PrivateKey":
        """The key of 32 bytes of entropy; the same seed gives the same key."""
        if len(seed) != SEED_BYTES:
            raise ConfigError(f"seed of {len(seed)} bytes, an Ed25519 key needs {SEED_BYTES}")
        return cls(seed)

    def sign(self, data: bytes) -> bytes:
        """The signature over `data`, 64 bytes; deterministic."""
        return self._key.sign(data).signature

    def open_box(self, box: bytes) -> bytes:
        """What was sealed to this key by a libsodium sealed box (`heliograph.sealing.grant_box`); a secret.

        Raises:
            IntegrityError: sealed to another key, or damaged.
        """
        try:
            private = crypto_sign_ed25519_sk_to_curve25519(bytes(self._key) + self.public.raw)
            return crypto_box_seal_open(box, crypto_sign_ed25519_pk_to_curve25519(self.public.raw), private)
        except (CryptoError, TypeError, ValueError):
            raise IntegrityError(f"box of {len(box)} bytes doesn't open with key {self.keyid.hex()[:16]}") from None

    def signer(self) -> "TufSigner":
        """The same key as `Metadata.sign` takes it."""
        return TufSigner(self)

    def to_json(self) -> bytes:
        """The key file's content: a secret, to be written with mode 0600 and never logged."""
        content = {
            "format": KEY_FILE_VERSION,
            "keytype": _ED25519,
            "scheme": _ED25519,
            "private": bytes(self._key).hex(),
            "public": self.public.raw.hex(),
        }
        return json.dumps(content, indent=1).encode() + b"\n"

    def to_seed(self) -> bytes:
        """The 32 bytes that `generate` makes it of again: a secret."""
        return bytes(self._key)

    def to_pem(self) -> bytes:
        """The same key as TLS takes it (PKCS#8): a secret, for memory only."""
        body = b64encode(_PKCS8 + bytes(self._key))
        return b"-----BEGIN PRIVATE KEY-----\n" + body + b"\n-----END PRIVATE KEY-----\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "PrivateKey":
        """The key in a key file's content; `where` names the file in messages.

        Raises:
            ConfigError: not a key file, one of another version, or its two halves don't belong together.
        """
        if len(data) > MAX_KEY_FILE_BYTES:
            raise ConfigError(f"{where} is no key file: {len(data)} bytes, a key file has at most {MAX_KEY_FILE_BYTES}")
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where} is no key file: not JSON; name a file of the realm's keys folder") from error
        match content:
            case {"format": int(version)} if version != KEY_FILE_VERSION:
                raise ConfigError(f"{where} has key format {version}, this version reads {KEY_FILE_VERSION}")
            case {"keytype": "ed25519", "scheme": "ed25519", "private": str(private), "public": str(public)} if _is_hex(
                private, SEED_BYTES
            ) and _is_hex(public, PUBLIC_KEY_BYTES):
                key = cls(bytes.fromhex(private))
            case _:
                raise ConfigError(f"{where} is no Ed25519 key file: it needs keytype, scheme, private and public")
        if key.public.raw.hex() != public:
            raise ConfigError(f"{where} is damaged: its private and public halves don't belong together")
        return key

    def __repr__(self) -> str:
        return f"PrivateKey(keyid={self.keyid.hex()})"


class TufKey(Key):
    """An ed25519 key in TUF metadata, verified through libsodium; its id must be its digest."""

    @classmethod
    def from_dict(cls, keyid: str, key_dict: dict[str, Any]) -> "TufKey":
        """Reads a key, as `securesystemslib.signer.Key.from_dict` dispatches here.

        Raises:
            ValueError: the id isn't the key's digest, or the value isn't exactly one public key.
        """
        keytype, scheme, keyval = cls._from_dict(key_dict)
        if set(keyval) != {"public"} or not _is_hex(keyval["public"], PUBLIC_KEY_BYTES) or key_dict:
            raise ValueError("an ed25519 key has one public value of 64 lower-case hex digits and no other field")
        if PublicKey(bytes.fromhex(keyval["public"])).keyid.hex() != keyid:
            raise ValueError("key id is not the digest of its key")
        return cls(keyid, keytype, scheme, keyval)

    def to_dict(self) -> dict[str, Any]:
        """The key's JSON value."""
        return self._to_dict()

    @property
    def public(self) -> PublicKey:
        """The key alone."""
        return PublicKey(bytes.fromhex(self.keyval["public"]))

    def verify_signature(self, signature: Signature, data: bytes) -> None:
        """Returns if the signature is this key's over `data`.

        Raises:
            UnverifiedSignatureError: otherwise, whatever is wrong with it.
        """
        text = signature.signature
        if signature.keyid != self.keyid or not _is_hex(text, SIGNATURE_BYTES):
            raise UnverifiedSignatureError(f"malformed signature of {self.keyid}")
        if not self.public.is_signature(data, bytes.fromhex(text)):
            raise UnverifiedSignatureError(f"wrong signature of {self.keyid}")


class TufSigner(Signer):
    """Signs TUF metadata with a key in memory."""

    def __init__(self, key: PrivateKey) -> None:
        self._private = key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> "TufSigner":
        """Refuses: key files are read where files are read, not by URI.

        Raises:
            ValueError: always.
        """
        raise ValueError("this signer is made from a key in memory, not from a URI")

    @property
    def public_key(self) -> Key:
        """The key that verifies what this signer signs."""
        return self._private.public.tuf_key()

    def sign(self, payload: bytes) -> Signature:
        """The signature over `payload`, in TUF's form."""
        return Signature(self._private.keyid.hex(), self._private.sign(payload).hex())


KEY_FOR_TYPE_AND_SCHEME[(_ED25519, _ED25519)] = TufKey


def sign_statement(type_: str, payload: bytes, keys: Iterable[PrivateKey]) -> bytes:
    """The envelope's bytes with one signature per key; a key given twice signs once.

    Raises:
        IntegrityError: the envelope would exceed 60 KiB.
    """
    message = signed_bytes(type_, payload)
    distinct = {key.keyid: key for key in keys}
    signatures = tuple((keyid, key.sign(message)) for keyid, key in sorted(distinct.items()))
    return encode(Statement(type_, payload, signatures))


def verify_own(statement: Statement, public_key: bytes, type_: str) -> bytes:
    """The payload of a statement that a node signed with its own key (32 raw bytes).

    Raises:
        TrustError: another type, or not signed by this key.
    """
    if statement.type != type_:
        raise TrustError(f"statement is a {statement.type!r}, expected {type_!r}")
    public = PublicKey(public_key)
    message = signed_bytes(statement.type, statement.payload)
    keyid = public.keyid
    if not any(key == keyid and public.is_signature(message, sig) for key, sig in statement.signatures):
        raise TrustError(f"{type_} statement is not signed by its node's key {keyid.hex()[:16]}")
    return statement.payload


def _is_hex(value: object, length: int) -> bool:
    return isinstance(value, str) and len(value) == 2 * length and _HEX.issuperset(value)

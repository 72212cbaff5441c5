"""The one signed envelope that isn't TUF metadata: msgpack `[1, type, payload, [[keyid, sig], ...]]`.

Rule 1: bytes are verified before the payload is parsed; `parse` reads the envelope only, and bounds it first.
Rule 2: what is signed is DSSE's pre-authentication encoding over `heliograph/<type>.v1` and the payload bytes, so a
    signature on one type is worth nothing on another. Payload bytes are signed as sent, never re-encoded.
Rule 3: which keys count, and how many, is not decided here but by TUF delegations (`vouching`) or the node's own key.

Source: DSSE v1.0.2 protocol, "Signature Definition".
"""

from dataclasses import dataclass

from heliograph.errors import IntegrityError
from heliograph.wire import pack, unpack

ENVELOPE_VERSION = 1
MAX_STATEMENT_BYTES = 60 * 1024
MAX_SIGNATURES = 16
KEYID_BYTES = 32
SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Statement:
    """One envelope, its payload not yet believed.

    Attributes:
        type: a name of `heliograph.protocol.STATEMENTS`, or one this version does not know.
        payload: msgpack bytes of the document.
        signatures: (key id of 32 bytes, signature of 64 bytes), key ids distinct.
    """

    type: str
    payload: bytes
    signatures: tuple[tuple[bytes, bytes], ...]


def signed_bytes(type_: str, payload: bytes) -> bytes:
    """DSSE pre-authentication encoding: the bytes a key signs."""
    name = f"heliograph/{type_}.v1".encode()
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)


def encode(statement: Statement) -> bytes:
    """The envelope's bytes.

    Raises:
        IntegrityError: it would exceed 60 KiB.
    """
    data = pack(
        [ENVELOPE_VERSION, statement.type, statement.payload, [[key, sig] for key, sig in statement.signatures]]
    )
    if len(data) > MAX_STATEMENT_BYTES:
        raise IntegrityError(f"{statement.type} statement of {len(data)} bytes exceeds {MAX_STATEMENT_BYTES}")
    return data


def parse(data: bytes) -> Statement:
    """Reads an envelope; nothing in it is believed yet.

    Raises:
        IntegrityError: not an envelope of version 1, or out of bounds.
    """
    if len(data) > MAX_STATEMENT_BYTES:
        raise IntegrityError(f"statement of {len(data)} bytes exceeds {MAX_STATEMENT_BYTES}")
    match unpack(data, max_bytes=MAX_STATEMENT_BYTES):
        case [bool() | float(), *_]:
            raise IntegrityError("not a statement")
        case [1, str(type_), bytes(payload), list(pairs)] if len(pairs) <= MAX_SIGNATURES and len(type_) <= 40:
            signatures = []
            for pair in pairs:
                match pair:
                    case [bytes(key), bytes(sig)] if len(key) == KEYID_BYTES and len(sig) == SIGNATURE_BYTES:
                        signatures.append((key, sig))
                    case _:
                        raise IntegrityError(f"{type_!r} statement has a malformed signature")
            if len({key for key, _ in signatures}) != len(signatures):
                raise IntegrityError(f"{type_!r} statement names a key twice")
            return Statement(type_, payload, tuple(signatures))
        case [int(version), *_] if version != ENVELOPE_VERSION:
            raise IntegrityError(f"statement of version {version}, this agent reads version {ENVELOPE_VERSION}")
        case _:
            raise IntegrityError("not a statement")

"""[IO] The file that carries protected's directive to its offline keys, and their signatures back.

JSON: `{"format": 1, "type": "directive", "release": "model@version", "payload": hex, "signatures": {key id: hex}}`. The
payload is what is signed; whatever else stands in the file is only shown.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from heliograph.documents import Directive
from heliograph.errors import ConfigError, IntegrityError, RefusedError
from heliograph.names import parse_release
from heliograph.objects import write_durably
from heliograph.statement import MAX_SIGNATURES, signed_bytes
from heliograph_hub.keys import SigningKey
from heliograph_hub.request import directive_words

MAX_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class File:
    """A directive and the signatures it has so far, by key id."""

    release: str
    payload: bytes
    signatures: Mapping[bytes, bytes]

    @property
    def directive(self) -> Directive:
        """What is signed.

        Raises:
            IntegrityError: not a directive.
        """
        return Directive.decode(self.payload)

    def words(self) -> list[str]:
        """What a signature on it says, by what is signed; the release's name is only what the file says."""
        return [*directive_words(self.directive), f"  the file calls it {self.release}"]

    def signed_by(self, key: SigningKey) -> "File":
        """The same, with the key's signature.

        Raises:
            RefusedError: not a directive of ring protected; other rings' keys are the hub's.
        """
        if self.directive.ring != "protected":
            raise RefusedError(f"the file holds a directive of ring {self.directive.ring}, not of protected")
        signature = key.sign(signed_bytes("directive", self.payload))
        return File(self.release, self.payload, {**self.signatures, key.keyid: signature})


def write(path: Path, file: File) -> None:
    """On disk when this returns.

    Raises:
        ConfigError: it can't be written there.
    """
    signatures = {keyid.hex(): signature.hex() for keyid, signature in sorted(file.signatures.items())}
    value = {"format": 1, "type": "directive", "release": file.release, "payload": file.payload.hex()}
    try:
        write_durably(path, json.dumps(value | {"signatures": signatures}, indent=1).encode() + b"\n")
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error.strerror}): choose another place") from error


def read(path: Path) -> File:
    """What `write` wrote.

    Raises:
        ConfigError: missing, or no such file.
    """
    try:
        with path.open("rb") as opened:
            value = json.loads(opened.read(MAX_FILE_BYTES))
        if (value["format"], value["type"]) != (1, "directive"):
            raise ConfigError(f"{path} is of format {value['format']!r}, this version reads directives of format 1")
        model, _ = parse_release(value["release"])
        signatures = {bytes.fromhex(keyid): bytes.fromhex(sig) for keyid, sig in value["signatures"].items()}
        file = File(value["release"], bytes.fromhex(value["payload"]), signatures)
        if (found := Directive.decode(file.payload).model) != model:
            raise ConfigError(f"{path} names a release of {model}, and holds a directive of {found}")
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IntegrityError) as error:
        raise ConfigError(f"{path} is not what rollout request writes: name its file, or ask again") from error
    if len(file.signatures) > MAX_SIGNATURES:
        raise ConfigError(f"{path} has {len(file.signatures)} signatures, at most {MAX_SIGNATURES} are read")
    return file

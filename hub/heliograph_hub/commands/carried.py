"""[IO] The file that carries assignments to protected's offline keys, and their signatures back.

JSON: `{"format": 1, "type": "assignments", "site": name, "assignments": [one, …]}`, each of them
`{"payload": hex, "signatures": {key id: hex}}`. The payloads are what is signed; the rest of the file is only shown.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from heliograph.documents import Assignment
from heliograph.errors import ConfigError, IntegrityError
from heliograph.names import check_name
from heliograph.objects import write_durably
from heliograph.statement import MAX_SIGNATURES, signed_bytes
from heliograph_hub.commands.terminal import table
from heliograph_hub.keys import SigningKey

MAX_FILE_BYTES = 8 << 20
MAX_ASSIGNMENTS = 200


@dataclass(frozen=True, slots=True)
class Carried:
    """One assignment and the signatures it has so far, by key id."""

    payload: bytes
    signatures: Mapping[bytes, bytes]

    @property
    def document(self) -> Assignment:
        """What is signed."""
        return Assignment.decode(self.payload)

    def signed_by(self, key: SigningKey) -> "Carried":
        """The same, with the key's signature."""
        signature = key.sign(signed_bytes("assignment", self.payload))
        return replace(self, signatures={**self.signatures, key.keyid: signature})


def write(path: Path, site: str, assignments: list[Carried]) -> None:
    """On disk when this returns.

    Raises:
        ConfigError: it can't be written there.
    """
    rows = [
        {"payload": one.payload.hex(), "signatures": {k.hex(): s.hex() for k, s in sorted(one.signatures.items())}}
        for one in assignments
    ]
    value = {"format": 1, "type": "assignments", "site": site, "assignments": rows}
    try:
        write_durably(path, json.dumps(value, indent=1).encode() + b"\n")
    except OSError as error:
        raise ConfigError(f"{path} can't be written ({error.strerror}): choose another place") from error


def read(path: Path) -> tuple[str, list[Carried]]:
    """What `write` wrote: the site, and its assignments.

    Raises:
        ConfigError: missing, or no such file.
    """
    try:
        with path.open("rb") as opened:
            value = json.loads(opened.read(MAX_FILE_BYTES))
        if (value["format"], value["type"]) != (1, "assignments"):
            raise ConfigError(f"{path} is of format {value['format']!r}, this version reads assignments of format 1")
        site = check_name(value["site"], "site")
        found = [
            Carried(
                bytes.fromhex(row["payload"]),
                {bytes.fromhex(keyid): bytes.fromhex(sig) for keyid, sig in row["signatures"].items()},
            )
            for row in value["assignments"]
        ]
        other = next((one.document.site for one in found if one.document.site != site), None)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IntegrityError) as error:
        raise ConfigError(f"{path} is not what fleet request writes: name its file, or ask again") from error
    if other is not None:
        raise ConfigError(f"{path} names site {site}, and holds an assignment of {other}")
    if len(found) > MAX_ASSIGNMENTS or any(len(one.signatures) > MAX_SIGNATURES for one in found):
        raise ConfigError(
            f"{path} holds more than {MAX_ASSIGNMENTS} assignments, or {MAX_SIGNATURES} signatures of one"
        )
    return site, found


def show(rows: list[Carried]) -> None:
    """Prints what a signature on each says."""
    cells = []
    for one in (row.document for row in rows):
        said = [f"{key}={value}" for key, value in sorted(one.labels.items())]
        said += [f"pin {model}@{version}" for model, version in sorted(one.pins.items())]
        said += [f"{c.kind} {c.model or ''}".strip() for c in one.commands] + (
            [f"relay {one.relay}"] if one.relay else []
        )
        cells.append((f"{one.site}/{one.node}", one.ring, f"{one.number}", one.key.hex()[:16], ", ".join(said)))
    table(("node", "ring", "number", "its key", "and"), cells)

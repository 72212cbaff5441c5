"""Conversations between a node and its hub as bytes: recorded once from the real ones, replayed against later ones.

What a node in the field says and understands never changes again, so a record is never made anew (shared/FORMATS.md,
"Conversation"); `recorder` makes them, `ends` are the hub and the agent without a network.

A record is text: `name value` lines; then, in the order in which things happened, `! step` (what an operator did),
`> topic` (the node said) and `< topic` (the hub said), each message followed by its payload in hex, indented. Lines
that begin with `#` say in words what follows. Topics stand below the realm.
"""

import json
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from heliograph.errors import RefusedError
from heliograph.protocol import parse_topic
from heliograph.statement import parse as parse_statement
from heliograph.wire import unpack

FOLDER = Path(__file__).parent / "data" / "conversations"
FORMAT = 1
REALM, SITE, NODE = "talk", "shop", "till"
NAMES = {"site": SITE, "node": NODE}
MODEL = "digits"

Who = Literal["!", ">", "<"]


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened: an operator's step (`what` alone), or a message of node (`>`) or hub (`<`)."""

    who: Who
    what: str
    payload: bytes = b""


@dataclass
class Conversation:
    """A record: what it was made with, and all that happened."""

    header: dict[str, str] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    @property
    def steps(self) -> tuple[str, ...]:
        """What the operator did, in order."""
        return tuple(line.what for line in self.lines if line.who == "!")

    def bytes_of(self, name: str) -> bytes:
        """A header field in hex."""
        return bytes.fromhex(self.header[name])

    def after(self, step: str) -> list[Line]:
        """What was said from this step on, until the next."""
        found: list[Line] = []
        begun = False
        for line in self.lines:
            if line.who == "!":
                begun = line.what == step
            elif begun:
                found.append(line)
        return found

    def blobs(self) -> dict[bytes, bytes]:
        """Every blob that went over, put together from its chunks."""
        wanted: dict[bytes, bytes] = {}
        parts: dict[bytes, dict[int, bytes]] = {}
        for line in self.lines:
            if line.what.endswith("/up/want"):
                want = unpack(line.payload)
                wanted[want["handle"]] = want["blob"]
            elif line.what.endswith("/down/chunk"):
                chunk = unpack(line.payload)
                if chunk.get("offset") is not None:
                    parts.setdefault(wanted[chunk["handle"]], {})[chunk["offset"]] = chunk["bytes"]
        return {blob: b"".join(data for _, data in sorted(held.items())) for blob, held in parts.items()}

    def text(self) -> str:
        """The record as a file."""
        rows = ["# A conversation between a node and its hub; see tests/conversation.py. Its keys are of tests only."]
        rows += [f"{name} {value}" for name, value in self.header.items()]
        for line in self.lines:
            rows.append("")
            if line.who == "!":
                rows.append(f"! {line.what}")
                continue
            rows.append(f"# {in_words(line)}"[:120])
            rows.append(f"{line.who} {line.what}")
            rows += [f"  {part}" for part in textwrap.wrap(line.payload.hex(), 116)]
        return "\n".join(rows) + "\n"


def read(path: Path) -> Conversation:
    """The record in a file."""
    found = Conversation()
    for row in path.read_text("ascii").splitlines():
        if row.startswith("  "):
            last = found.lines[-1]
            found.lines[-1] = Line(last.who, last.what, last.payload + bytes.fromhex(row))
        elif row.startswith(("! ", "> ", "< ")):
            who: Any = row[0]
            found.lines.append(Line(who, row[2:]))
        elif row and not row.startswith("#"):
            name, _, value = row.partition(" ")
            found.header[name] = value
    if found.header.get("conversation") != str(FORMAT):
        raise RefusedError(f"{path} is a conversation of format {found.header.get('conversation')}, not {FORMAT}")
    return found


def records() -> list[Path]:
    """All records there are."""
    return sorted(FOLDER.glob("*.txt"))


def in_words(line: Line) -> str:
    """One line about a message, as far as it can be read without a key."""
    found = parse_topic(f"heliograph/v1/{REALM}/{line.what}", REALM)
    if found is None or found[0].payload == "bytes":
        return f"{len(line.payload)} bytes"
    if found[0].payload == "message":
        return _shown(unpack(line.payload))
    listed = unpack(line.payload) if found[0].payload == "statements" else [line.payload]
    return " ".join(f"{(s := parse_statement(data)).type} {_shown(unpack(s.payload))}" for data in listed)


def _shown(value: Any) -> str:
    match value:
        case bytes():
            return value.hex() if len(value) <= 8 else f"{value[:4].hex()}..({len(value)})"
        case dict():
            return "{" + ", ".join(f"{name}: {_shown(item)}" for name, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_shown, value)) + "]"
    return json.dumps(value)

"""What a node is to be: its ring, labels, pins, relay and commands, checked and put into one document.

Rule 1: an assignment is a function of what operators stated; whatever exceeds a bound is refused before it is stated.
Rule 2: into ring protected, within it and out of it leads only an assignment that protected's own keys sign; so does
    every assignment of a node that was enrolled with a token that says protected.
Rule 3: pins only restrict; a command is given once, by its number, and repeated until the node says that it is done.

Pure: which time zones there are comes from the caller.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from heliograph.documents import Assignment, Command
from heliograph.errors import ConfigError, RefusedError
from heliograph.names import Ring, check_name, parse_release

CommandKind = Literal["drill", "rollback", "report", "abort", "forget"]
KINDS: tuple[CommandKind, ...] = get_args(CommandKind)
NEEDS_MODEL: frozenset[CommandKind] = frozenset({"drill", "rollback", "abort"})
TIME_ZONE = "time-zone"
"""The label whose value is the IANA name of the site's time zone."""
MAX_LABELS = 32
MAX_LABEL_CHARACTERS = 120
MAX_PINS = 64
MAX_OPEN_COMMANDS = 16
MAX_AHEAD = 1000
"""A number that nodes report counts only so far above those known here: one node can't use the numbers up."""
MAX_ASSIGNMENT_BYTES = 12 * 1024
"""Largest payload of an assignment: any reply has room for it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What operators stated of one node."""

    ring: Ring
    labels: Mapping[str, str] = field(default_factory=dict)
    relay: str | None = None
    pins: Mapping[str, str] = field(default_factory=dict)
    commands: tuple[Command, ...] = ()


def assignment(realm: str, site: str, node: str, keyid: bytes, number: int, wanted: Wanted) -> Assignment:
    """The document that tells a node what it is.

    Raises:
        RefusedError: it would exceed one of the bounds.
    """
    name = f"{site}/{node}"
    for what, count, most in (
        ("labels", len(wanted.labels), MAX_LABELS),
        ("pins", len(wanted.pins), MAX_PINS),
        ("commands that wait", len(wanted.commands), MAX_OPEN_COMMANDS),
    ):
        if count > most:
            raise RefusedError(f"{name} would have {count} {what}, at most {most} are allowed")
    made = Assignment(
        realm=realm,
        site=site,
        node=node,
        key=keyid,
        number=number,
        ring=wanted.ring,
        labels=dict(sorted(wanted.labels.items())),
        relay=wanted.relay,
        pins=dict(sorted(wanted.pins.items())),
        commands=wanted.commands,
    )
    size = len(made.encode())
    if size > MAX_ASSIGNMENT_BYTES:
        raise RefusedError(f"the assignment of {name} would have {size} bytes, at most {MAX_ASSIGNMENT_BYTES} go")
    return made


def next_number(known: int, said: int) -> int:
    """The number that follows those known here and those that nodes say they have.

    They have higher ones where an older copy of the database was brought back: what has one of theirs, or a lower one,
    they would pass over.
    """
    return max(known, said if said <= known + MAX_AHEAD else 0) + 1


def needs_protected(ring: Ring | None, wanted: Ring, *, for_protected: bool) -> bool:
    """Whether the next assignment needs protected's own signatures.

    Args:
        ring: of the newest assignment in force; None without one.
        wanted: the ring it is to be in.
        for_protected: it was enrolled with a token that says protected.
    """
    return for_protected or "protected" in (ring, wanted)


def label_changes(pairs: Iterable[str], is_time_zone: Callable[[str], bool]) -> dict[str, str | None]:
    """What `KEY=VALUE` (set) and `KEY=` (take away) ask for.

    Raises:
        ConfigError: not such a pair, twice the same key, or a value that is no label's.
    """
    changes: dict[str, str | None] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"label {pair[:60]!r} is not KEY=VALUE (KEY= takes the label away)")
        check_name(key, "label")
        if key in changes:
            raise ConfigError(f"label {key} is given twice")
        if len(value) > MAX_LABEL_CHARACTERS or not value.isprintable():
            raise ConfigError(
                f"label {key} has a value that is not {MAX_LABEL_CHARACTERS} printable characters or less"
            )
        if key == TIME_ZONE and value and not is_time_zone(value):
            raise ConfigError(f"label {key}: {value!r} is no IANA time zone, such as Europe/Lisbon")
        changes[key] = value or None
    if not changes:
        raise ConfigError("no label is given: write KEY=VALUE, or KEY= to take one away")
    return changes


def pin(text: str) -> tuple[str, str]:
    """Model and version of `MODEL@VERSION`.

    Raises:
        ConfigError: not a release.
    """
    return parse_release(text)


def command_kind(kind: str, model: str | None) -> CommandKind:
    """The kind, if it is one and has the model that it needs.

    Raises:
        ConfigError: it isn't, or hasn't, or has one that it doesn't take.
    """
    found = next((known for known in KINDS if known == kind), None)
    if found is None:
        raise ConfigError(f"no command {kind[:40]!r}: commands are {', '.join(KINDS)}")
    if found in NEEDS_MODEL and model is None:
        raise ConfigError(f"command {found} is about one model: name it")
    if found == "report" and model is not None:
        raise ConfigError(f"command report is about the whole node: leave {model} out")
    return found


def check_relay(text: str) -> str:
    """The text if a node may use it as the address of a relay: `host` or `host:port`.

    Raises:
        ConfigError: it is not.
    """
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "1883")
    is_port = port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host) or not is_port:
        raise ConfigError(f"relay {text[:80]!r} is not HOST or HOST:PORT")
    return text

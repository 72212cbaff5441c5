"""Every message in one table: its topic, who sends it to whom, QoS, retain, and what its payload is.

Rule 1: a topic is built and taken apart only here; the broker's ACL is generated from TOPICS and tested against it.
Rule 2: state never depends on delivery. Retained messages are hints; `hello` and `reply` catch up on everything.
Rule 3: payloads are at most 64 KiB, topics have at most 7 slashes, and nothing needs more than MQTT 3.1.1.

An unknown topic or statement type is counted and ignored by its reader, never an error that stops anything.
"""

import re
from dataclasses import dataclass
from typing import Literal

from heliograph import documents as doc
from heliograph.documents import Document
from heliograph.errors import IntegrityError
from heliograph.policy import Config, Policy

PREFIX = "heliograph/v1"
SCHEMAS: dict[str, int] = {"statement": 1, "manifest": 1, "recipe": 2, "records": 1, "deny": 1}
"""Newest version of each format this agent reads, as sent in hello and reported."""

Payload = Literal["bytes", "statement", "statements", "message"]


@dataclass(frozen=True, slots=True)
class Topic:
    """One row of the table.

    Attributes:
        name: what code calls it.
        pattern: below `heliograph/v1/<realm>/`; `{…}` stand for names.
        sender, reader: the hub (`hub`), any node (`node`), the topic's own node (`own`), one not yet enrolled (`new`).
        payload: raw bytes, one signed statement, a msgpack list of statements, or one unsigned message.
        document: the message's model, or the statement's payload model; None for raw bytes.
    """

    name: str
    pattern: str
    sender: str
    reader: str
    qos: int
    retain: bool
    payload: Payload
    statement: str | None = None
    document: type[Document] | None = None

    def build(self, realm: str, **names: str | int) -> str:
        """The full topic for these names."""
        return f"{PREFIX}/{realm}/{self.pattern.format(**names)}"

    def filter(self, realm: str, **names: str) -> str:
        """A subscription filter; names not given become `+`."""
        below = re.sub(r"\{(\w+)\}", lambda m: names.get(m.group(1), "+"), self.pattern)
        return f"{PREFIX}/{realm}/{below}"

    def match(self, below: str) -> dict[str, str] | None:
        """The names in a topic below the realm, or None if it isn't this row's."""
        regex = re.sub(r"\{number\}", "(?P<number>[0-9]{1,9})", self.pattern)
        regex = re.sub(r"\{(\w+)\}", r"(?P<\1>[a-z0-9-]{1,40})", regex)
        found = re.fullmatch(regex, below)
        return found.groupdict() if found else None


_UP, _DOWN = "node/{site}/{node}/up/", "node/{site}/{node}/down/"

# fmt: off
TOPICS: tuple[Topic, ...] = (
    #     name        pattern                  sender reader qos retain payload       statement     document
    Topic("deny",     "deny/all",              "hub", "node", 1, True,  "message",    None,         doc.DenyAll),
    Topic("head",     "tuf/head",              "hub", "node", 1, True,  "bytes"),
    Topic("set",      "tuf/set",               "hub", "node", 1, True,  "bytes"),
    Topic("root",     "tuf/root/{number}",     "hub", "node", 1, True,  "bytes"),
    Topic("desired",  "desired/{ring}",        "hub", "node", 1, True,  "statements", "directive",  doc.Directive),
    Topic("policy",   "policy/{ring}",         "hub", "node", 1, True,  "statement",  "policy",     Policy),
    Topic("config",   "config/{model}",        "hub", "node", 1, True,  "statement",  "config",     Config),
    Topic("assigned", _DOWN + "assigned",      "hub", "own",  1, False, "statement",  "assignment", doc.Assignment),
    Topic("offer",    _DOWN + "offer",         "hub", "own",  1, False, "statement",  "offer",      doc.Offer),
    Topic("receipt",  _DOWN + "receipt",       "hub", "own",  1, False, "statement",  "receipt",    doc.Receipt),
    Topic("reply",    _DOWN + "reply",         "hub", "own",  1, False, "statement",  "reply",      doc.Reply),
    Topic("certified", _DOWN + "certified",    "hub", "own",  1, False, "statement",  "certified",  doc.Certified),
    Topic("refused",  _DOWN + "refused",       "hub", "own",  1, False, "statement",  "refused",    doc.Refused),
    Topic("chunk",    _DOWN + "chunk",         "hub", "own",  0, False, "message",    None,         doc.Chunk),
    Topic("hello",    _UP + "hello",           "own", "hub",  1, False, "message",    None,         doc.Hello),
    Topic("ask",      _UP + "ask",             "own", "hub",  1, False, "message",    None,         doc.Ask),
    Topic("want",     _UP + "want",            "own", "hub",  0, False, "message",    None,         doc.Want),
    Topic("reported", _UP + "reported",        "own", "hub",  1, False, "statement",  "reported",   doc.Reported),
    Topic("records",  _UP + "records",         "own", "hub",  1, False, "statement",  "records",    doc.Records),
    Topic("renew",    _UP + "renew",           "own", "hub",  1, False, "statement",  "renew",      doc.Renew),
    Topic("gone",     _UP + "gone",            "own", "hub",  1, False, "bytes"),
    Topic("enroll",   "enroll/{site}/{node}",  "new", "hub",  1, False, "message",    None,         doc.Enroll),
    Topic("again",    "enroll/{site}/{node}/renew", "new", "hub", 1, False, "statement", "renew",    doc.Renew),
)

#: Statement type -> the role whose keys sign it. `own` is the key of the node in the topic. Types without a document in
#: TOPICS or DENIALS are reserved: a reader counts and refuses them.
STATEMENTS: dict[str, str] = {
    "directive":  "ring-{ring}",
    "assignment": "assign",
    "offer":      "recipes",
    "receipt":    "recipes",
    "certified":  "assign",
    "refused":    "assign",
    "reply":      "timestamp",
    "policy":     "policy",
    "config":     "config-{model}",
    "deny":       "deny",
    "deny-key":   "deny-key",
    "reported":   "own",
    "records":    "own",
    "renew":      "own",
}
# fmt: on

DENIALS: dict[str, type[doc.Deny] | type[doc.DenyKey]] = {"deny": doc.Deny, "deny-key": doc.DenyKey}
"""Statement types that have no topic of their own: `deny/all` carries lists of them."""

BY_NAME: dict[str, Topic] = {topic.name: topic for topic in TOPICS}


def topic(name: str) -> Topic:
    """The row called `name`; an unknown name is a programmer's error."""
    return BY_NAME[name]


def parse_topic(full: str, realm: str) -> tuple[Topic, dict[str, str]] | None:
    """The row and names of a full topic, or None if no row of this realm has it."""
    prefix = f"{PREFIX}/{realm}/"
    if not full.startswith(prefix):
        return None
    below = full[len(prefix) :]
    for row in TOPICS:
        names = row.match(below)
        if names is not None:
            return row, names
    return None


def below_realm(full: str) -> str:
    """`desired/canary` of `heliograph/v1/<realm>/desired/canary`.

    Raises:
        IntegrityError: not a Heliograph topic.
    """
    parts = full.split("/", 3)
    if len(parts) != 4 or "/".join(parts[:2]) != PREFIX:
        raise IntegrityError(f"topic {full[:100]!r} is not under {PREFIX}/<realm>/")
    return parts[3]

"""A hub's view of its fleet, without network: what makes nodes, what they say, and the keys that sign for them."""

from pathlib import Path
from typing import Any

from heliograph.documents import Assignment, Denials, Enroll, ModelReport, Records, Reported, Tuple
from heliograph.protocol import SCHEMAS
from heliograph.signing import PrivateKey, sign_statement
from heliograph.statement import parse
from heliograph_hub.assigning import Assigned, Assignments
from heliograph_hub.database import Database
from heliograph_hub.enrolment import Enrolment
from heliograph_hub.fleet import Fleet

NOW = 1_800_000_000
DAY = 86400
HUB_KEY = PrivateKey.generate(b"h" * 32)
PROTECTED = tuple(PrivateKey.generate(bytes([n]) * 32) for n in (1, 2))
NODE_KEY = PrivateKey.generate(b"n" * 32)
OTHER_KEY = PrivateKey.generate(b"o" * 32)
TOKEN, RUN, LATER_RUN = b"t" * 32, b"r" * 8, b"s" * 8


class Hub:
    """The parts of a hub that know nodes, on one database. Two keys sign for ring protected, both are needed."""

    def __init__(self, path: Path) -> None:
        self.database = Database(path)
        self.fleet = Fleet(self.database, "dev")
        keys = {key.keyid: key.public.raw for key in PROTECTED}
        self.assignments = Assignments(
            self.database,
            "dev",
            lambda document: sign_statement("assignment", document.encode(), [HUB_KEY]),
            lambda: (2, keys),
        )
        self.enrolment = Enrolment(self.database, self.assignments)

    def enroll(
        self, name: str = "lab/pi-1", key: PrivateKey = NODE_KEY, token: bytes = TOKEN, *, protected: bool = False
    ) -> Assigned:
        """Gives out a token for a node and has a key use it."""
        site, node = name.split("/")
        self.enrolment.add_token(site, node, token, NOW, DAY, protected=protected)
        return self.enrolment.enroll(site, node, request(token, key), NOW)

    def sign(self, name: str = "lab/pi-1", keys: tuple[PrivateKey, ...] = PROTECTED) -> Assigned | None:
        """Has keys sign the assignment that a node waits for, one after the other."""
        site, node = name.split("/")
        done = None
        for key in keys:
            (proposal,) = self.assignments.proposals(site, node)
            _, done = self.assignments.add_signatures(proposal.payload, {key.keyid: signature(key, proposal.payload)})
        return done

    def assignment(self, name: str = "lab/pi-1") -> Assignment:
        """What a node is told that it is."""
        return told(self.fleet.node(*name.split("/")).assigned)


def signature(key: PrivateKey, payload: bytes) -> bytes:
    """A key's signature over an assignment."""
    return dict(parse(_signed(key, payload)).signatures)[key.keyid]


def _signed(key: PrivateKey, payload: bytes) -> bytes:
    return sign_statement("assignment", payload, [key])


def told(statement: bytes) -> Assignment:
    """The assignment in a statement."""
    return Assignment.decode(parse(statement).payload)


def request(token: bytes = TOKEN, key: PrivateKey = NODE_KEY) -> Enroll:
    """What a new node sends."""
    return Enroll(token=token, key=key.public.raw, nonce=b"x" * 16)


def reported(n: int, run: bytes = RUN, key: PrivateKey = NODE_KEY, **changes: Any) -> bytes:
    """What lab/pi-1 says of itself."""
    values = {
        "realm": "dev", "site": "lab", "node": "pi-1", "run": run, "n": n, "estimate": NOW, "agent": "0.1.0",
        "schemas": SCHEMAS, "ring": "general", "assignment": 1, "tuf": {}, "deny": Denials(), "bytes_received": n,
        "models": {"digits": ModelReport(phase="idle", tuple=Tuple(release=bytes([n]) * 32))},
    }  # fmt: skip
    return sign_statement("reported", Reported(**values | changes).encode(), [key])


def records(
    first: int,
    rows: list[tuple[int, str]],
    lane: str = "audit",
    run: bytes = RUN,
    key: PrivateKey = NODE_KEY,
    at: int = NOW,
    **changes: Any,
) -> bytes:
    """A batch of lab/pi-1's records: (count, kind) of each."""
    values = {"realm": "dev", "site": "lab", "node": "pi-1", "run": run, "lane": lane, "first": first}
    made = tuple((count, kind, at, {"i": index}) for index, (count, kind) in enumerate(rows))
    return sign_statement("records", Records(**values | changes, rows=made).encode(), [key])

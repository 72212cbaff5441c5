"""[IO] Who did what at this hub, and with which keys: rows that are only ever added.

Rule 1: every operator's act that changed something is one row, and so is every duty that the hub signed by itself. The
    table refuses to change or drop a row, so that only who rewrites the file can.
Rule 2: what is written holds no secret: names, numbers and key ids.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from heliograph.wire import unpack
from heliograph_hub.database import Database, duties

MAX_WHAT = 400


@dataclass(frozen=True, slots=True)
class Done:
    """One act: `who` is `owner`, an operator's role, or `hub`."""

    number: int
    at: int
    who: str
    what: str
    keyids: tuple[bytes, ...]


class Duties:
    """The log of one hub."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, str, str, bytes]] = []

    def note(self, now: int, who: str, what: str, keyids: Iterable[bytes] = ()) -> None:
        """One act; on disk when this returns, with all that waited."""
        self.note_later(now, who, what, keyids)
        self.flush()

    def note_later(self, now: int, who: str, what: str, keyids: Iterable[bytes] = ()) -> None:
        """One act in the midst of a transaction, or in another thread: on disk with the next `flush`."""
        row = (now, who, what[:MAX_WHAT], b"".join(sorted(keyids)))
        with self._lock:
            self._waiting.append(row)

    def note_signed(self, now: int, type_: str, payload: bytes, keyids: Iterable[bytes]) -> None:
        """What the hub signed by itself, if that is a duty; on disk with the next `flush`."""
        if type_ in ("directive", "assignment", "policy", "config"):
            self.note_later(now, "hub", f"signed {type_}: {payload_words(payload)}", keyids)

    def flush(self) -> None:
        """Writes what waits."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        with self._database.write() as connection:
            number = connection.execute(sa.select(sa.func.max(duties.c.number))).scalar() or 0
            for place, (at, who, what, keyids) in enumerate(waiting, start=number + 1):
                row = {"number": place, "at": at, "who": who, "what": what, "keyids": keyids}
                connection.execute(sa.insert(duties).values(**row))

    def newest(self, limit: int, before: int | None = None) -> list[Done]:
        """The newest acts, newest first; those below a number, if one is given."""
        query = sa.select(duties).order_by(duties.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(duties.c.number < before)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [Done(r.number, r.at, r.who, r.what, _keyids(r.keyids)) for r in rows]

    def between(self, since: int, until: int, limit: int) -> list[Done]:
        """The newest acts of a time (seconds since 1970, both inclusive), newest first."""
        query = sa.select(duties).where(duties.c.at.between(since, until))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(duties.c.number.desc()).limit(limit)).all()
        return [Done(r.number, r.at, r.who, r.what, _keyids(r.keyids)) for r in rows]


def payload_words(payload: bytes) -> str:
    """What was signed, for the log; the payload has been decoded as its type before."""
    fields = unpack(payload)
    assert isinstance(fields, dict)  # every document is one
    names = ("site", "node", "ring", "model", "number", "action")
    found = [f"{name} {fields[name]}" for name in names if fields.get(name) not in (None, "")]
    release = fields.get("release")
    found += [f"release {release.hex()[:16]}"] if isinstance(release, bytes) else []
    for name in ("releases", "keys", "keep"):  # of denials
        digests = fields.get(name)
        listed = [one.hex()[:16] for one in digests if isinstance(one, bytes)] if isinstance(digests, list) else []
        found += [f"{name} {' '.join(listed)}"] if listed else []
    return ", ".join(found)


def _keyids(joined: bytes) -> tuple[bytes, ...]:
    return tuple(joined[at : at + 32] for at in range(0, len(joined), 32))

"""[IO] The directives as stored, and the list that each ring's topic retains.

Rule 1: a directive is signed before it is stored and stored before it is announced; its number is never used again.
Rule 2: a directive of protected is stored when it is worded, gets its signatures later, and is released with the last.
Rule 3: what a ring is told is a function of the rows alone: its released directives, newest per model, sorted by model.
"""

import sqlalchemy as sa

from heliograph.documents import Directive
from heliograph.errors import RefusedError
from heliograph.names import Ring
from heliograph.statement import parse
from heliograph.wire import pack
from heliograph_hub.database import Database, directives
from heliograph_hub.rollout import MAX_DESIRED_BYTES, Signed, Worded, in_force


class Desired:
    """The directives of one realm."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def rows(self) -> list[Signed]:
        """Every directive ever signed, by ring, model and number."""
        query = sa.select(directives).order_by(directives.c.ring, directives.c.model, directives.c.number)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [Signed(r.ring, r.model, r.number, r.release, r.action, r.released_at is not None) for r in rows]

    def released_at(self) -> dict[tuple[Ring, str, int], int]:
        """When each directive that was released was, by ring, model and number."""
        query = sa.select(directives).where(directives.c.released_at.is_not(None))
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return {(r.ring, r.model, r.number): r.released_at for r in rows}

    def statement(self, row: Signed) -> bytes:
        """A stored directive, with the signatures it has."""
        with self._database.read() as connection:
            return bytes(connection.execute(sa.select(directives.c.statement).where(*_key(row))).scalar_one())

    def ends(self, row: Signed) -> int:
        """When a stored directive expires."""
        return Directive.decode(parse(self.statement(row)).payload).expires

    def life(self, row: Signed) -> tuple[int, int]:
        """When a stored directive was worded, and when it expires."""
        with self._database.read() as connection:
            signed_at = connection.execute(sa.select(directives.c.signed_at).where(*_key(row))).scalar_one()
        return int(signed_at), self.ends(row)

    def add(self, signed: list[tuple[Worded, bytes]], now: int) -> None:
        """Stores directives with their statements, all or none; released ones are in force at once.

        Raises:
            RefusedError: a ring's list would no longer fit one message.
        """
        with self._database.write() as connection:
            for worded, statement in signed:
                directive = worded.directive
                values = {
                    "ring": directive.ring,
                    "model": directive.model,
                    "number": directive.number,
                    "release": directive.release,
                    "action": directive.action,
                    "statement": statement,
                    "signed_at": now,
                    "released_at": now if worded.released else None,
                }
                connection.execute(sa.insert(directives).values(**values))
            _check_size(connection)

    def sign(self, row: Signed, statement: bytes) -> None:
        """Keeps the signatures that a waiting directive has so far."""
        with self._database.write() as connection:
            connection.execute(sa.update(directives).where(*_key(row)).values(statement=statement))

    def release(self, rows: tuple[Signed, ...], now: int) -> None:
        """Puts stored directives in force, all or none.

        Raises:
            RefusedError: a ring's list would no longer fit one message.
        """
        with self._database.write() as connection:
            for row in rows:
                connection.execute(sa.update(directives).where(*_key(row)).values(released_at=now))
            _check_size(connection)

    def lists(self) -> dict[Ring, bytes]:
        """Per ring with anything in force: the payload of `desired/<ring>`."""
        with self._database.read() as connection:
            return _lists(connection)


def _key(row: Signed) -> tuple[sa.ColumnElement[bool], ...]:
    return (directives.c.ring == row.ring, directives.c.model == row.model, directives.c.number == row.number)


def _lists(connection: sa.Connection) -> dict[Ring, bytes]:
    statements: dict[tuple[str, str, int], bytes] = {}
    rows = []
    for r in connection.execute(sa.select(directives).where(directives.c.released_at.is_not(None))):
        statements[r.ring, r.model, r.number] = r.statement
        rows.append(Signed(r.ring, r.model, r.number, r.release, r.action, True))
    return {
        ring: pack([statements[ring, model, row.number] for model, row in sorted(models.items())])
        for ring, models in in_force(rows).items()
    }


def _check_size(connection: sa.Connection) -> None:
    for ring, payload in _lists(connection).items():
        if len(payload) > MAX_DESIRED_BYTES:
            raise RefusedError(
                f"ring {ring} has {len(payload)} bytes of directives, a message holds {MAX_DESIRED_BYTES}"
            )

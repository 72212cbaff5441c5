"""The hub's memory: one SQLite file, its tables, and the numbered migrations that bring an older file up to date.

Rule 1: whatever the hub announces was committed here first; `synchronous=FULL` makes a commit survive a power cut.
Rule 2: a migration is never edited once released; the next number adds to it. A newer file is refused, not guessed at.
Rule 3: only statements that PostgreSQL also understands are used by the callers (conflicts are handled by reading
    first, inside one writing transaction).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from heliograph.errors import ConfigError

# fmt: off
DATABASE_FILE = "hub.sqlite"
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    # 1: the walking skeleton
    (
        """CREATE TABLE releases (
            model TEXT NOT NULL, version TEXT NOT NULL, digest BLOB NOT NULL UNIQUE, length INTEGER NOT NULL,
            added_at INTEGER NOT NULL, PRIMARY KEY (model, version))""",
        """CREATE TABLE blobs (
            digest BLOB PRIMARY KEY, length INTEGER NOT NULL, kind TEXT NOT NULL)""",
        """CREATE TABLE recipes (
            base BLOB NOT NULL, target BLOB NOT NULL, recipe BLOB NOT NULL, recipe_length INTEGER NOT NULL,
            patch BLOB NOT NULL, patch_length INTEGER NOT NULL, made_at INTEGER NOT NULL, seconds REAL NOT NULL,
            PRIMARY KEY (base, target))""",
        """CREATE TABLE directives (
            ring TEXT NOT NULL, model TEXT NOT NULL, number INTEGER NOT NULL, release BLOB NOT NULL,
            action TEXT NOT NULL, statement BLOB NOT NULL, signed_at INTEGER NOT NULL, released_at INTEGER,
            PRIMARY KEY (ring, model, number))""",
        """CREATE TABLE sites (site TEXT PRIMARY KEY, ring TEXT NOT NULL)""",
        """CREATE TABLE tokens (
            hash BLOB PRIMARY KEY, site TEXT NOT NULL, node TEXT NOT NULL, expires INTEGER NOT NULL,
            used_at INTEGER, used_by BLOB)""",
        """CREATE TABLE nodes (
            site TEXT NOT NULL, node TEXT NOT NULL, key BLOB NOT NULL, keyid BLOB NOT NULL,
            enrolled_at INTEGER NOT NULL, assignment INTEGER NOT NULL, assigned BLOB NOT NULL, last_heard INTEGER,
            gone_at INTEGER, run BLOB, n INTEGER NOT NULL, reported BLOB, PRIMARY KEY (site, node))""",
        """CREATE TABLE runs (
            site TEXT NOT NULL, node TEXT NOT NULL, run BLOB NOT NULL, since INTEGER NOT NULL,
            PRIMARY KEY (site, node, run))""",
        """CREATE TABLE lanes (
            site TEXT NOT NULL, node TEXT NOT NULL, run BLOB NOT NULL, lane TEXT NOT NULL, next INTEGER NOT NULL,
            kept INTEGER NOT NULL, merged INTEGER NOT NULL, lost INTEGER NOT NULL, missing INTEGER NOT NULL,
            PRIMARY KEY (site, node, run, lane))""",
        """CREATE TABLE records (
            site TEXT NOT NULL, node TEXT NOT NULL, run BLOB NOT NULL, lane TEXT NOT NULL, seq INTEGER NOT NULL,
            count INTEGER NOT NULL, kind TEXT NOT NULL, at INTEGER NOT NULL, body BLOB NOT NULL,
            PRIMARY KEY (site, node, run, lane, seq))""",
        """CREATE TABLE counts (
            site TEXT NOT NULL, node TEXT NOT NULL, what TEXT NOT NULL, count INTEGER NOT NULL, last TEXT NOT NULL,
            PRIMARY KEY (site, node, what))""",
    ),
    # 2: denials
    (
        """CREATE TABLE denials (
            digest BLOB PRIMARY KEY, type TEXT NOT NULL, statement BLOB NOT NULL, made_at INTEGER NOT NULL,
            in_force_at INTEGER)""",
        """CREATE TABLE vouchers (
            release BLOB NOT NULL, role TEXT NOT NULL, keyid BLOB NOT NULL, PRIMARY KEY (release, role, keyid))""",
    ),
    # 3: policy and config
    (
        """CREATE TABLE documents (
            kind TEXT NOT NULL, scope TEXT NOT NULL, number INTEGER NOT NULL, statement BLOB NOT NULL,
            made_at INTEGER NOT NULL, published_at INTEGER, PRIMARY KEY (kind, scope, number))""",
    ),
    # 4: pauses, who began to fetch what, and the bytes sent
    (
        """CREATE TABLE pauses (
            model TEXT NOT NULL, release BLOB NOT NULL, lets_running INTEGER NOT NULL, at INTEGER NOT NULL,
            PRIMARY KEY (model, release))""",
        """CREATE TABLE begun (
            site TEXT NOT NULL, node TEXT NOT NULL, release BLOB NOT NULL, model TEXT NOT NULL, ring TEXT NOT NULL,
            number INTEGER NOT NULL, began_at INTEGER NOT NULL, last_at INTEGER NOT NULL, cost INTEGER NOT NULL,
            sent_before INTEGER NOT NULL, PRIMARY KEY (site, node, release))""",
        """CREATE INDEX begun_lately ON begun (last_at)""",
        """CREATE TABLE sent (
            site TEXT NOT NULL, node TEXT NOT NULL, release BLOB NOT NULL, quarter INTEGER NOT NULL, ring TEXT NOT NULL,
            bytes INTEGER NOT NULL, PRIMARY KEY (site, node, release, quarter))""",
        """CREATE INDEX sent_lately ON sent (quarter)""",
    ),
    # 5: assignments by node, their signing, hardware that was replaced, records dropped by age
    (
        "ALTER TABLE nodes ADD COLUMN ring TEXT",
        """UPDATE nodes SET ring = COALESCE(
            (SELECT sites.ring FROM sites WHERE sites.site = nodes.site), 'general')""",
        "ALTER TABLE nodes ADD COLUMN protected INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE nodes ADD COLUMN proposed INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE nodes ADD COLUMN relay TEXT",
        "ALTER TABLE nodes ADD COLUMN removed_at INTEGER",
        "ALTER TABLE nodes ADD COLUMN runs_before INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE nodes ADD COLUMN records_before INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE tokens ADD COLUMN protected INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE lanes ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE records ADD COLUMN received_at INTEGER NOT NULL DEFAULT 0",
        """CREATE TABLE labels (
            site TEXT NOT NULL, node TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
            PRIMARY KEY (site, node, key))""",
        """CREATE TABLE pins (
            site TEXT NOT NULL, node TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL,
            PRIMARY KEY (site, node, model))""",
        """CREATE TABLE commands (
            site TEXT NOT NULL, node TEXT NOT NULL, number INTEGER NOT NULL, kind TEXT NOT NULL, model TEXT,
            given_at INTEGER NOT NULL, done_at INTEGER, ended_at INTEGER, PRIMARY KEY (site, node, number))""",
        """CREATE TABLE proposals (
            site TEXT NOT NULL, node TEXT NOT NULL, number INTEGER NOT NULL, statement BLOB NOT NULL,
            PRIMARY KEY (site, node))""",
        """CREATE TABLE former_keys (
            site TEXT NOT NULL, node TEXT NOT NULL, keyid BLOB NOT NULL, enrolled_at INTEGER NOT NULL,
            ended_at INTEGER NOT NULL, why TEXT NOT NULL)""",
    ),
    # 6: certificates given to nodes
    (
        """CREATE TABLE certificates (
            serial TEXT PRIMARY KEY, site TEXT NOT NULL, node TEXT NOT NULL, keyid BLOB NOT NULL, der BLOB NOT NULL,
            issued_at INTEGER NOT NULL, not_after INTEGER NOT NULL, revoked_at INTEGER)""",
        """CREATE INDEX certificates_of ON certificates (keyid)""",
    ),
    # 7: who did what
    (
        """CREATE TABLE duties (
            number INTEGER PRIMARY KEY, at INTEGER NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,
            keyids BLOB NOT NULL)""",
        """CREATE TRIGGER duties_stand BEFORE UPDATE ON duties
            BEGIN SELECT RAISE(ABORT, 'the log of duties is only added to'); END""",
        """CREATE TRIGGER duties_stay BEFORE DELETE ON duties
            BEGIN SELECT RAISE(ABORT, 'the log of duties is only added to'); END""",
    ),
    # 8: confidential releases
    (
        """ALTER TABLE releases ADD COLUMN confidential INTEGER NOT NULL DEFAULT 0""",
        """CREATE TABLE epochs (
            model TEXT NOT NULL, epoch INTEGER NOT NULL, began_at INTEGER NOT NULL, ended_keys INTEGER NOT NULL,
            key_check BLOB NOT NULL, PRIMARY KEY (model, epoch))""",
        """CREATE TABLE sealed (
            model TEXT NOT NULL, epoch INTEGER NOT NULL, plain BLOB NOT NULL, plain_length INTEGER NOT NULL,
            sealed BLOB NOT NULL, pages BLOB NOT NULL, PRIMARY KEY (model, epoch, plain))""",
        """CREATE TABLE seals (
            model TEXT NOT NULL, epoch INTEGER NOT NULL, base BLOB NOT NULL, blob BLOB NOT NULL, seal BLOB NOT NULL,
            seal_length INTEGER NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (model, epoch, base, blob))""",
    ),
    # 9: recipes that nobody needs are dropped
    (
        "ALTER TABLE recipes ADD COLUMN asked_at INTEGER NOT NULL DEFAULT 0",
        "UPDATE recipes SET asked_at = made_at",
    ),
)
# fmt: on
SCHEMA_VERSION = len(MIGRATIONS)

metadata = sa.MetaData()


def _table(name: str, **columns: Any) -> sa.Table:
    return sa.Table(name, metadata, *(sa.Column(column, kind) for column, kind in columns.items()))


_text, _int, _blob = sa.Text(), sa.BigInteger(), sa.LargeBinary()

releases = _table("releases", model=_text, version=_text, digest=_blob, length=_int, added_at=_int, confidential=_int)
blobs = _table("blobs", digest=_blob, length=_int, kind=_text)
recipes = _table(
    "recipes",
    base=_blob,
    target=_blob,
    recipe=_blob,
    recipe_length=_int,
    patch=_blob,
    patch_length=_int,
    made_at=_int,
    seconds=sa.Float(),
    asked_at=_int,
)
directives = _table(
    "directives",
    ring=_text,
    model=_text,
    number=_int,
    release=_blob,
    action=_text,
    statement=_blob,
    signed_at=_int,
    released_at=_int,
)
sites = _table("sites", site=_text, ring=_text)
tokens = _table("tokens", hash=_blob, site=_text, node=_text, expires=_int, used_at=_int, used_by=_blob, protected=_int)
nodes = _table(
    "nodes",
    site=_text,
    node=_text,
    key=_blob,
    keyid=_blob,
    enrolled_at=_int,
    assignment=_int,
    assigned=_blob,
    last_heard=_int,
    gone_at=_int,
    run=_blob,
    n=_int,
    reported=_blob,
    ring=_text,
    protected=_int,
    proposed=_int,
    relay=_text,
    removed_at=_int,
    runs_before=_int,
    records_before=_int,
)
runs = _table("runs", site=_text, node=_text, run=_blob, since=_int)
lanes = _table(
    "lanes",
    site=_text,
    node=_text,
    run=_blob,
    lane=_text,
    next=_int,
    kept=_int,
    merged=_int,
    lost=_int,
    missing=_int,
    dropped=_int,
)
records = _table(
    "records",
    site=_text,
    node=_text,
    run=_blob,
    lane=_text,
    seq=_int,
    count=_int,
    kind=_text,
    at=_int,
    body=_blob,
    received_at=_int,
)
labels = _table("labels", site=_text, node=_text, key=_text, value=_text)
pins = _table("pins", site=_text, node=_text, model=_text, version=_text)
commands = _table(
    "commands", site=_text, node=_text, number=_int, kind=_text, model=_text, given_at=_int, done_at=_int, ended_at=_int
)
proposals = _table("proposals", site=_text, node=_text, number=_int, statement=_blob)
former_keys = _table("former_keys", site=_text, node=_text, keyid=_blob, enrolled_at=_int, ended_at=_int, why=_text)
epochs = _table("epochs", model=_text, epoch=_int, began_at=_int, ended_keys=_int, key_check=_blob)
sealed = _table("sealed", model=_text, epoch=_int, plain=_blob, plain_length=_int, sealed=_blob, pages=_blob)
seals = _table("seals", model=_text, epoch=_int, base=_blob, blob=_blob, seal=_blob, seal_length=_int, bytes=_int)
certificates = _table(
    "certificates",
    serial=_text,
    site=_text,
    node=_text,
    keyid=_blob,
    der=_blob,
    issued_at=_int,
    not_after=_int,
    revoked_at=_int,
)
counts = _table("counts", site=_text, node=_text, what=_text, count=_int, last=_text)
duties = _table("duties", number=_int, at=_int, who=_text, what=_text, keyids=_blob)
denials = _table("denials", digest=_blob, type=_text, statement=_blob, made_at=_int, in_force_at=_int)
vouchers = _table("vouchers", release=_blob, role=_text, keyid=_blob)
documents = _table(
    "documents",
    kind=_text,
    scope=_text,
    number=_int,
    statement=_blob,
    made_at=_int,
    published_at=_int,
)
pauses = _table("pauses", model=_text, release=_blob, lets_running=sa.Boolean(), at=_int)
begun = _table(
    "begun",
    site=_text,
    node=_text,
    release=_blob,
    model=_text,
    ring=_text,
    number=_int,
    began_at=_int,
    last_at=_int,
    cost=_int,
    sent_before=_int,
)
sent = _table("sent", site=_text, node=_text, release=_blob, quarter=_int, ring=_text, bytes=_int)


class Database:
    """The hub's tables. One process writes (`hub run` holds the folder's lock); threads of it may share this object."""

    def __init__(self, path: Path) -> None:
        """Opens the file, made if it isn't there, and migrates it.

        Raises:
            ConfigError: the file is not a database, or was written by a newer version.
        """
        self.path = path
        self._engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30, "isolation_level": None})
        sa.event.listen(self._engine, "connect", _configure)
        sa.event.listen(self._engine, "begin", _begin)
        try:
            with self.write() as connection:
                _migrate(connection, path)
        except sa.exc.DatabaseError as error:
            raise ConfigError(f"{path} can't be opened as the hub's database: {error.orig}") from error

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction: committed, on disk, when the block ends; nothing of it if the block raises."""
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent view; writers don't wait for it."""
        with self._engine.connect() as connection:
            yield connection

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()


def _configure(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _begin(connection: sa.Connection) -> None:
    # pysqlite begins by guesswork, so this says it; IMMEDIATE makes a writer wait at its start, never in the middle.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


def _migrate(connection: sa.Connection, path: Path) -> None:
    connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
    version = connection.exec_driver_sql("SELECT max(version) FROM schema_version").scalar() or 0
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{path} is of schema {version} and this heliograph knows up to {SCHEMA_VERSION}: run the newer version"
        )
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        for statement in statements:
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("INSERT INTO schema_version (version) VALUES (?)", (number,))

"""SQLite files of a node: opened durably, migrated once, and refused in words when they can't be used.

What is in them is the business of `journal` and `outbox`. `Database` and `Migrations` come from here, so that
sqlite-utils is imported in one way.
"""

import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from heliograph.errors import ConfigError, StorageError


@contextmanager
def _hidden(*modules: str) -> Iterator[None]:
    """Makes importing these modules fail meanwhile, unless they are loaded already."""
    absent = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None is how Python marks "can't be imported"
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


# sqlite-utils loads them, where installed, only to map their types to columns: 25 MB that the agent has no use for.
with _hidden("numpy", "pandas"):
    from sqlite_utils import Database as Database
    from sqlite_utils import Migrations as Migrations

BUSY_S = 10.0
UP_TO_DATE_S = 1.0
"""So long a reader waits for the writer that makes a file, or brings it up to date."""
LOOK_S = 0.02
_OF_THE_DISK = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY)
"""What SQLite says when not the file is wrong but its surroundings are, for now."""


def open_database(path: Path, known: Migrations, *, read_only: bool = False, older: bool = False) -> Database:
    """Opens a SQLite file durably (WAL, `synchronous=FULL`) and migrates it; read-only, it is left as it is.

    `older`: the reader makes do with what any earlier version wrote.

    Raises:
        ConfigError: not a database, damaged, absent (read-only), or written by a newer version.
        StorageError: the disk is full, or doesn't do its job.
    """
    if read_only and not path.exists():
        raise ConfigError(f"{path} does not exist: is this a node's folder, and did the node run once?")
    try:
        target = f"{path.resolve().as_uri()}?mode=ro" if read_only else str(path)
        # Every use is serialised by its owner; a thread may run a long write while the loop waits for it.
        conn = sqlite3.connect(target, uri=read_only, timeout=BUSY_S, check_same_thread=False)
        db = Database(conn, execute_plugins=False)
        applied = {migration.name for migration in known.applied(db)}
        newer = applied - {migration.name for migration in known._migrations}
        if newer:
            raise ConfigError(
                f"{path} was written by a newer version (schema {max(newer)}): install that version or a later one"
            )
        if read_only:
            deadline = time.monotonic() + UP_TO_DATE_S
            while not older and known.pending(db) and time.monotonic() < deadline:
                time.sleep(LOOK_S)
            if not older and known.pending(db):
                raise ConfigError(f"{path} has an older schema: run the node once to bring it up to date")
            return db
        conn.execute("PRAGMA journal_mode=WAL")
        conn.execute("PRAGMA synchronous=FULL")
        if conn.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("quick_check found damage")
        known.apply(db)
    except (sqlite3.DatabaseError, sqlite3.OperationalError) as error:
        if is_of_the_disk(error):
            raise StorageError(
                f"{path} can't be used now: {error}; see to the disk, its space and its rights"
            ) from error
        raise ConfigError(f"{path} can't be used: {error}; move it away to start anew, or restore a copy") from error
    return db


def is_of_the_disk(error: sqlite3.Error) -> bool:
    """Whether space, rights or the device are to blame, so that the same may go well later."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _OF_THE_DISK

"""The tables of a node's journal, one migration for each version that changed them.

Rule: a migration that has been released is never edited; the next one changes what it made.
"""

from heliograph_site.database import Database, Migrations

migrations = Migrations("journal")


@migrations(name="0001")
def _first(db: Database) -> None:
    db.conn.execute(
        "CREATE TABLE machine (model TEXT PRIMARY KEY, phase TEXT NOT NULL, epoch INTEGER NOT NULL,"
        " target BLOB, target_number INTEGER, full_only INTEGER NOT NULL, refused BLOB NOT NULL, reason TEXT NOT NULL)"
    )
    db.conn.execute(
        "CREATE TABLE pointer (model TEXT NOT NULL, slot TEXT NOT NULL CHECK (slot IN ('active', 'fallback')),"
        " release BLOB NOT NULL, config INTEGER NOT NULL, policy INTEGER NOT NULL, activated_at INTEGER NOT NULL,"
        " verdict TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (model, slot))"
    )
    db.conn.execute(
        "CREATE TABLE document (kind TEXT NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL,"
        " statement BLOB NOT NULL, PRIMARY KEY (kind, name))"
    )
    db.conn.execute('CREATE TABLE "release" (digest BLOB PRIMARY KEY, model TEXT NOT NULL, version TEXT NOT NULL)')
    db.conn.execute("CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB NOT NULL)")


@migrations(name="0002")
def _evidence(db: Database) -> None:
    """A third slot, and with each target and pointer the path it was listed under and the keys that vouched for it."""
    for column in (
        "target_path TEXT NOT NULL DEFAULT ''",
        "target_vouchers BLOB NOT NULL DEFAULT x''",
        "tries INTEGER NOT NULL DEFAULT 0",
        "cuts INTEGER NOT NULL DEFAULT 0",
        "is_healthy INTEGER NOT NULL DEFAULT 0",
    ):
        db.conn.execute(f"ALTER TABLE machine ADD COLUMN {column}")
    db.conn.execute("ALTER TABLE pointer RENAME TO pointer_1")
    db.conn.execute(
        "CREATE TABLE pointer (model TEXT NOT NULL,"
        " slot TEXT NOT NULL CHECK (slot IN ('active', 'fallback', 'earlier')),"
        " release BLOB NOT NULL, config INTEGER NOT NULL, policy INTEGER NOT NULL, activated_at INTEGER NOT NULL,"
        " verdict TEXT NOT NULL, number INTEGER NOT NULL, path TEXT NOT NULL DEFAULT '',"
        " vouchers BLOB NOT NULL DEFAULT x'', fail_mode TEXT NOT NULL DEFAULT 'safe',"
        " proven INTEGER NOT NULL DEFAULT 0, denied TEXT NOT NULL DEFAULT '', PRIMARY KEY (model, slot))"
    )
    db.conn.execute(
        "INSERT INTO pointer (model, slot, release, config, policy, activated_at, verdict, number)"
        " SELECT model, slot, release, config, policy, activated_at, verdict, number FROM pointer_1"
    )
    db.conn.execute("DROP TABLE pointer_1")


@migrations(name="0003")
def _papers(db: Database) -> None:
    """Policies and configs, several to a scope; with each machine the policy in force and what is outside of it."""
    db.conn.execute(
        "CREATE TABLE paper (kind TEXT NOT NULL CHECK (kind IN ('policy', 'config')), scope TEXT NOT NULL,"
        " number INTEGER NOT NULL, statement BLOB NOT NULL, came INTEGER NOT NULL,"
        " newest_until INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (kind, scope, number))"
    )
    db.conn.execute("ALTER TABLE machine ADD COLUMN policy INTEGER NOT NULL DEFAULT 0")
    db.conn.execute("ALTER TABLE pointer ADD COLUMN is_unfit INTEGER NOT NULL DEFAULT 0")
    db.conn.execute("ALTER TABLE pointer ADD COLUMN passed_over INTEGER NOT NULL DEFAULT 0")


@migrations(name="0004")
def _spent(db: Database) -> None:
    """Bytes of content that came for a release on a day of the site, as `2026-11-22`."""
    db.conn.execute(
        "CREATE TABLE spent (day TEXT NOT NULL, release BLOB NOT NULL, bytes INTEGER NOT NULL,"
        " PRIMARY KEY (day, release)) WITHOUT ROWID"
    )

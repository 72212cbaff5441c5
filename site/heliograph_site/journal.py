"""The node's memory on disk: `DIR/journal.sqlite`, one SQLite file with one writer, the agent.

It holds each machine's memory and pointers with their evidence, the denials, the trusted metadata, the newest directive
of each model and the node's assignment as signed, names of releases, counters, and the last estimate of the time. It
decides nothing.

Rule 1: what a method saved is on disk when it returns (WAL, `synchronous=FULL`), whole or not at all.
Rule 2: the pointer rows of a model change in the same transaction as its machine's memory, and the denials in the same
    transaction as what every machine makes of them.
Rule 3: a file written by a newer version is refused, never guessed at; an older one is migrated, once, on opening.

The server process reads pointers through `Journal.pointers` without writing; it may do so while the agent runs.
Source: FORMATS.md, "journal".
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

from heliograph.documents import Phase, Verdict
from heliograph.errors import ConfigError, StorageError
from heliograph.wire import pack, unpack
from heliograph_site.database import open_database
from heliograph_site.memory import Aside, FailMode, Memory, Pointer, Refused, Standing, Target
from heliograph_site.reckoning import TimeMark
from heliograph_site.schema import migrations
from heliograph_site.served import Counted

JOURNAL_FILE = "journal.sqlite"
_INSERT_POINTER = (
    "INSERT INTO pointer (model, slot, release, activated_at, number, verdict, config, policy,"
    " path, vouchers, fail_mode, proven, denied, is_unfit, passed_over)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_SELECT_POINTER = (
    "SELECT release, activated_at, number, verdict, config, policy, path, vouchers, fail_mode, proven, denied,"
    " is_unfit, passed_over"
    " FROM pointer WHERE model = ? AND slot = ?"
)
_KEYID_BYTES = 32


@dataclass(frozen=True, slots=True)
class Held:
    """The newest document of a kind (`directive`, `assignment`) for a name, as its signed bytes."""

    kind: str
    name: str
    number: int
    statement: bytes


@dataclass(frozen=True, slots=True)
class Paper:
    """A policy or config as its signed bytes; of each scope several may be held.

    Attributes:
        kind: `policy` or `config`.
        scope: the ring of a policy, the model of a config.
        came: when it was first held, by this node's estimate of the time.
        newest_until: it is the newest published one up to this number, as the hub said when it was asked for by number.
    """

    kind: str
    scope: str
    number: int
    statement: bytes
    came: int
    newest_until: int = 0


class Journal:
    """The journal, open for writing (one at a time: the agent's lock sees to that) or for reading."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._db = open_database(path, migrations, read_only=read_only)
        self._conn = self._db.conn

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; nothing is pending, ever."""
        self._conn.close()

    # --- machines ---------------------------------------------------------------------------------------------------

    def save(self, *memories: Memory, denials: bytes | None = None) -> None:
        """Whole memories with their pointer rows, and the denials if given, in one transaction; on disk on return."""
        with self._db.atomic():
            if denials is not None:
                self._conn.execute("INSERT OR REPLACE INTO state VALUES ('denials', ?)", (denials,))
            for memory in memories:
                self._save_machine(memory)
                self._save_pointers(memory)

    def _save_machine(self, memory: Memory) -> None:
        target = memory.target
        self._conn.execute(
            "INSERT OR REPLACE INTO machine (model, phase, epoch, target, target_number, full_only, refused, reason,"
            " target_path, target_vouchers, tries, cuts, is_healthy, policy)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                memory.model,
                memory.phase,
                memory.epoch,
                target.release if target else None,
                target.number if target else None,
                int(memory.full_only),
                pack([[r.release, r.number, r.reason] for r in memory.refused]),
                memory.reason,
                target.path if target else "",
                b"".join(target.vouchers) if target else b"",
                memory.tries,
                memory.cuts,
                int(memory.is_healthy),
                memory.policy,
            ),
        )

    def _save_pointers(self, memory: Memory) -> None:
        self._conn.execute("DELETE FROM pointer WHERE model = ?", (memory.model,))
        slots = (("active", memory.active), ("fallback", memory.fallback), ("earlier", memory.earlier))
        for slot, pointer in slots:
            if pointer is not None:
                self._conn.execute(_INSERT_POINTER, (memory.model, slot, *_row_from_pointer(pointer)))
        # Not slots: nobody but the machine asks for them.
        for name, pointer in (("resort", memory.resort), ("unfit", memory.unfit)):
            key = f"{name} {memory.model}"
            if pointer is None:
                self._conn.execute("DELETE FROM state WHERE key = ?", (key,))
            else:
                value = pack(list(_row_from_pointer(pointer)))
                self._conn.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))
        for name, text in (("aside", memory.aside), ("ring", f"{memory.policy} {memory.ring}")):
            self._conn.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (f"{name} {memory.model}", text.encode()))

    def load(self, model: str) -> Memory:
        """The machine's memory as last saved; a new one for a model never seen."""
        row = self._conn.execute(
            "SELECT phase, epoch, target, target_number, full_only, refused, reason, target_path, target_vouchers,"
            " tries, cuts, is_healthy, policy FROM machine WHERE model = ?",
            (model,),
        ).fetchone()
        if row is None:
            return Memory(model)
        phase, epoch, target, number, full_only, refused, reason, path, vouchers, tries, cuts, is_healthy, policy = row
        return Memory(
            model,
            cast(Phase, phase),
            epoch,
            Target(target, number, path, _keyids(vouchers)) if target is not None else None,
            bool(full_only),
            self._pointer(model, "active"),
            self._pointer(model, "fallback"),
            tuple(Refused(*entry) for entry in unpack(refused)),
            reason,
            self._pointer(model, "earlier"),
            tries,
            cuts,
            bool(is_healthy),
            self._apart(model, "resort"),
            policy=policy,
            ring=self._ring(model, policy),
            unfit=self._apart(model, "unfit"),
            aside=cast(Aside, (self._get(f"aside {model}") or b"").decode()),
        )

    def models(self) -> tuple[str, ...]:
        """The models that have a machine here, by name."""
        return tuple(row[0] for row in self._conn.execute("SELECT model FROM machine ORDER BY model"))

    def _ring(self, model: str, policy: int) -> str:
        """The ring of the policy in force, unless an agent has saved another number since that kept no ring."""
        number, _, ring = (self._get(f"ring {model}") or b"").decode().partition(" ")
        return ring if number == str(policy) else ""

    def _apart(self, model: str, name: str) -> Pointer | None:
        row = self._get(f"{name} {model}")
        return None if row is None else _pointer_from_row(tuple(unpack(row)))

    def _pointer(self, model: str, slot: str) -> Pointer | None:
        row = self._conn.execute(_SELECT_POINTER, (model, slot)).fetchone()
        return None if row is None else _pointer_from_row(row)

    @staticmethod
    def pointers(path: Path, slot: str = "active") -> dict[str, Pointer]:
        """The committed pointers of `slot` by model, read without writing; {} where no journal is yet.

        `Pointer.release` is the manifest's digest. The evidence is left out, so that a journal of any version will do:
        what was served is served before the agent has brought the file up to date.

        Raises:
            ConfigError: the file is damaged or of a newer version.
            StorageError: the disk doesn't give it.
        """
        if not path.exists():
            return {}
        with _reading(path) as conn:
            if not conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'pointer'").fetchone():
                return {}
            rows = conn.execute(
                "SELECT model, release, activated_at, number, verdict, config, policy FROM pointer WHERE slot = ?",
                (slot,),
            ).fetchall()
        return {row[0]: _pointer_from_row(row[1:]) for row in rows}

    # --- signed documents and names -----------------------------------------------------------------------------------

    def hold(self, *documents: Held, drop: str = "") -> None:
        """Keeps these documents, each in place of the one of the same kind and name, in one transaction.

        `drop` is a kind that is forgotten with it: a node that changes its ring obeys no directive of the old one.
        """
        with self._db.atomic():
            self._conn.execute("DELETE FROM document WHERE kind = ?", (drop,))
            for held in documents:
                self._conn.execute(
                    "INSERT OR REPLACE INTO document VALUES (?, ?, ?, ?)",
                    (held.kind, held.name, held.number, held.statement),
                )

    def held(self, kind: str) -> tuple[Held, ...]:
        """The documents held of a kind, by name."""
        rows = self._conn.execute(
            "SELECT kind, name, number, statement FROM document WHERE kind = ? ORDER BY name", (kind,)
        )
        return tuple(Held(*row) for row in rows)

    def papers(self) -> tuple[Paper, ...]:
        """Every policy and config held, by kind and scope, the newest first."""
        rows = self._conn.execute(
            "SELECT kind, scope, number, statement, came, newest_until FROM paper ORDER BY kind, scope, number DESC"
        )
        return tuple(Paper(*row) for row in rows)

    def shelve(self, *papers: Paper, drop: tuple[Paper, ...] = ()) -> None:
        """Keeps these, each in place of one of the same number, and forgets those of `drop`, in one transaction."""
        with self._db.atomic():
            for paper in drop:
                self._conn.execute(
                    "DELETE FROM paper WHERE kind = ? AND scope = ? AND number = ?",
                    (paper.kind, paper.scope, paper.number),
                )
            for paper in papers:
                self._conn.execute(
                    "INSERT OR REPLACE INTO paper VALUES (?, ?, ?, ?, ?, ?)",
                    (paper.kind, paper.scope, paper.number, paper.statement, paper.came, paper.newest_until),
                )

    @staticmethod
    def configs(path: Path) -> dict[str, bytes]:
        """The signed configs that the active pointers name, by model; read as `pointers` are."""
        if not path.exists():
            return {}
        with _reading(path) as conn:
            if not conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'paper'").fetchone():
                return {}
            return dict(
                conn.execute(
                    "SELECT model, statement FROM pointer JOIN paper ON kind = 'config' AND scope = model"
                    " AND paper.number = config WHERE slot = 'active'"
                ).fetchall()
            )

    def name_release(self, digest: bytes, model: str, version: str) -> None:
        """Remembers what a manifest digest is called, for people."""
        with self._db.atomic():
            self._conn.execute('INSERT OR REPLACE INTO "release" VALUES (?, ?, ?)', (digest, model, version))

    def release_name(self, digest: bytes) -> str | None:
        """`model@version`, or None for a digest never named here."""
        row = self._conn.execute('SELECT model, version FROM "release" WHERE digest = ?', (digest,)).fetchone()
        return f"{row[0]}@{row[1]}" if row else None

    # --- what was fetched ---------------------------------------------------------------------------------------------

    def spend(self, day: str, release: bytes, size: int, *, forget_before: str) -> None:
        """Adds bytes that came for a release on a day (`2026-11-22`), and drops days before `forget_before`."""
        with self._db.atomic():
            self._conn.execute("DELETE FROM spent WHERE day < ?", (forget_before,))
            self._conn.execute(
                "INSERT INTO spent VALUES (?, ?, ?) ON CONFLICT (day, release) DO UPDATE SET bytes = bytes + ?",
                (day, release, size, size),
            )

    def spent(self, since: str, until: str) -> int:
        """Bytes that came on the days from `since` to `until`, both included."""
        found = self._conn.execute("SELECT SUM(bytes) FROM spent WHERE day BETWEEN ? AND ?", (since, until)).fetchone()
        return int(found[0] or 0)

    def spent_on(self, release: bytes) -> int:
        """Bytes that came for a release on the days remembered."""
        found = self._conn.execute("SELECT SUM(bytes) FROM spent WHERE release = ?", (release,)).fetchone()
        return int(found[0] or 0)

    # --- denials -----------------------------------------------------------------------------------------------------

    def denials(self) -> bytes | None:
        """The denials held, as `save` was given them; None before the first."""
        return self._get("denials")

    # --- one-row state ------------------------------------------------------------------------------------------------

    def trusted(self) -> bytes | None:
        """The trusted set's state as `heliograph.trust` wrote it; None before the first."""
        return self._get("trusted")

    def save_trusted(self, state: bytes) -> None:
        """Replaces the trusted set, whole."""
        self._put(("trusted", state))

    def time_mark(self) -> TimeMark | None:
        """The last estimate of the time; None before any signed time was seen."""
        value = self._get("time")
        return None if value is None else TimeMark(*unpack(value))

    def time_marks(self) -> tuple[TimeMark, ...]:
        """An estimate for each set of keys that signed a time."""
        value = self._get("times")
        if value is None:
            mark = self.time_mark()
            return () if mark is None or not mark.at else (mark,)
        return tuple(TimeMark(at, boot, s, tuple(keyids)) for at, boot, s, keyids in unpack(value))

    def save_times(self, *marks: TimeMark) -> None:
        """Replaces the estimates, and `time_mark` by the greatest, which is given first."""
        first = marks[0] if marks else TimeMark(0, "", 0.0)
        rows = [[mark.at, mark.boot, mark.boottime_s, list(mark.keyids)] for mark in marks]
        self._put(("time", pack([first.at, first.boot, first.boottime_s])), ("times", pack(rows)))

    def heard_at(self) -> int:
        """The newest time that the hub vouched for; 0 before the first."""
        return int.from_bytes(self._get("heard") or b"", "big")

    def save_heard(self, at: int) -> None:
        """Replaces it."""
        self._put(("heard", at.to_bytes(8, "big")))

    def counter(self, name: str) -> int:
        """A counter's value; 0 if never saved."""
        value = self._get(f"counter {name}")
        return 0 if value is None else int(unpack(value))

    def save_counters(self, **values: int) -> None:
        """Replaces these counters."""
        self._put(*((f"counter {name}", pack(value)) for name, value in values.items()))

    def link(self) -> str:
        """`up` or `down`, as the agent last wrote it; it counts only while the agent runs."""
        return (self._get("link") or b"down").decode()

    def save_link(self, is_up: bool) -> None:
        """Writes the state of the link."""
        self._put(("link", b"up" if is_up else b"down"))

    def was_orderly(self) -> bool:
        """Whether the agent's last life ended because it was asked to; also before the first."""
        return self._get("life") != b"running"

    def save_life(self, is_running: bool) -> None:
        """Writes that the agent runs, or that it ends in order."""
        self._put(("life", b"running" if is_running else b"ended"))

    def waiting(self) -> dict[str, str]:
        """What each model waits for, in words; only models that wait."""
        return dict(unpack(self._get("waiting") or pack({})))

    def save_waiting(self, waiting: dict[str, str]) -> None:
        """Replaces what the models wait for."""
        self._put(("waiting", pack(waiting)))

    def served(self) -> dict[tuple[str, str], Counted]:
        """How far what the server counted is told: (model, release in hex) -> where its count stood."""
        rows = unpack(self._get("served") or pack([]))
        return {(model, release): Counted.from_plain(plain) for model, release, plain in rows}

    def save_served(self, served: dict[tuple[str, str], Counted]) -> None:
        """Replaces how far it is told."""
        rows = [[model, release, counted.to_plain()] for (model, release), counted in served.items()]
        self._put(("served", pack(rows)))

    def state(self, key: str) -> bytes | None:
        """What a module of the agent saved under its own name; None before the first time."""
        return self._get(key)

    def save_state(self, key: str, value: bytes) -> None:
        """Replaces it."""
        self._put((key, value))

    def _get(self, key: str) -> bytes | None:
        row = self._conn.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def _put(self, *pairs: tuple[str, bytes]) -> None:
        with self._db.atomic():
            self._conn.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", pairs)


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection; its errors come out as ConfigError.

    SQLite needs a little space even to read. Where there is none and no log lies beside the file, all is in the file
    and nobody writes to it, so that it is read as it is.
    """
    log = path.with_name(path.name + "-wal")
    try:
        conn = open_database(path, migrations, read_only=True, older=True).conn
    except StorageError:
        if log.exists() and log.stat().st_size:
            raise
        conn = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        yield conn
    except sqlite3.DatabaseError as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    finally:
        conn.close()


def _row_from_pointer(pointer: Pointer) -> tuple[Any, ...]:
    return (
        pointer.release,
        pointer.activated_at,
        pointer.number,
        pointer.verdict,
        pointer.config,
        pointer.policy,
        pointer.path,
        b"".join(pointer.vouchers),
        pointer.fail_mode,
        pointer.proven,
        pointer.denied,
        int(pointer.is_unfit),
        pointer.passed_over,
    )


def _pointer_from_row(row: tuple[Any, ...]) -> Pointer:
    release, activated_at, number, verdict, config, policy, *evidence = row
    pointer = Pointer(bytes(release), activated_at, number, cast(Verdict, verdict), config, policy)
    if not evidence:
        return pointer
    path, vouchers, fail_mode, proven, denied, *fit = evidence
    is_unfit, passed_over = fit or (0, 0)
    return replace(
        pointer,
        path=path,
        vouchers=_keyids(vouchers),
        fail_mode=cast(FailMode, fail_mode),
        proven=proven,
        denied=cast(Standing, denied),
        is_unfit=bool(is_unfit),
        passed_over=passed_over,
    )


def _keyids(joined: bytes) -> tuple[bytes, ...]:
    return tuple(joined[at : at + _KEYID_BYTES] for at in range(0, len(joined), _KEYID_BYTES))

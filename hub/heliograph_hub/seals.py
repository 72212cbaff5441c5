"""[IO] What is sealed of confidential releases: made in the background, named in offers, dropped when it is too old.

Rule 1: sealing is done under the newest epoch only (`heliograph_hub.epochs`), and offers name nothing of an older one.
Rule 2: objects are on disk before the rows that name them. A way is offered once its seal and all that this names is
    there; whoever asks before is told `later`.
Rule 3: sealed blobs of an epoch stay for `KEEP_S` after the next began, for nodes that are fetching them; then they go.
    What is sealed under the newest stays.

Sealing blocks for seconds: callers run `make` and `drop_old` in a thread.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from heliograph.blob import SHORT_DIGEST_BYTES, Pager
from heliograph.documents import SealRef
from heliograph.errors import HeliographError, IntegrityError, NotFoundError
from heliograph.manifest import Manifest
from heliograph.names import Digest
from heliograph.objects import ObjectStore
from heliograph.sealing import PLAIN_LEAF_BYTES, Seal, SealedBlob, Sealer, encode, leaf_key, sealed_length
from heliograph_hub.database import Database, blobs, epochs, sealed, seals
from heliograph_hub.epochs import Epoch, Epochs
from heliograph_hub.registry import FULL, MAX_DELTA_WAYS, Delta, Registry, Release, SealedWay, note_blob, transfer_bytes

KEEP_S = 14 * 86400
"""How long sealed blobs of an epoch that is over can still be fetched: as long as a node may need on a poor link."""
_READ_BYTES = 256 * PLAIN_LEAF_BYTES


@dataclass(frozen=True, slots=True)
class Task:
    """One way that is to be sealed: in full (base empty), or by the recipe from a base."""

    model: str
    base: bytes
    blob: Digest


class Seals:
    """Sealed blobs and seals: rows in the database, bytes in the object store. May be used by several threads."""

    def __init__(self, database: Database, objects: ObjectStore, registry: Registry, keys: Epochs) -> None:
        self._database = database
        self._objects = objects
        self._registry = registry
        self.epochs = keys
        self._lock = threading.Lock()
        self._waiting: deque[Task] = deque()
        self._asked: dict[Task, float] = {}
        self.failed: dict[Task, str] = {}
        """Ways that couldn't be sealed, and why, until their release is made ready again."""

    # --- what there is ----------------------------------------------------------------------------------------------

    def ways(self, model: str, epoch: int | None) -> dict[tuple[bytes, bytes], SealedWay]:
        """What can be offered under this epoch, as `Registry.ways` takes it; of none, nothing."""
        query = sa.select(seals).where(seals.c.model == model, seals.c.epoch == epoch)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return {
            (bytes(r.base), bytes(r.blob)): SealedWay(SealRef(length=r.seal_length, sha256=r.seal), r.bytes)
            for r in rows
        }

    def missing(
        self,
        manifest: Manifest,
        bases: Collection[bytes],
        epoch: Epoch,
        is_denied: Callable[[bytes], bool] = lambda recipe: False,
    ) -> list[Task]:
        """Ways to a release for a node with these bases that aren't sealed under this epoch, less those that failed.

        Deltas only as far as they would be offered: the cheapest.
        """
        there = self.ways(epoch.model, epoch.number)
        tasks = []
        for blob, length in {Digest(file.sha256): file.length for file in manifest.files}.items():
            if blob in bases:
                continue
            made = [d for d in self._registry.deltas_to(blob) if d.base in bases and not is_denied(d.recipe)]
            cheaper = [d.base for d in made if d.cost_bytes < transfer_bytes(length)][:MAX_DELTA_WAYS]
            tasks += [Task(manifest.model, base, blob) for base in (FULL, *cheaper)]
        return [task for task in tasks if (task.base, task.blob) not in there and task not in self.failed]

    # --- what is to be made -----------------------------------------------------------------------------------------

    def request(self, tasks: Iterable[Task]) -> None:
        """Has these made, in this order, after what waits."""
        with self._lock:
            self._waiting += [task for task in dict.fromkeys(tasks) if task not in self._waiting]

    def waited_s(self, tasks: Iterable[Task], now_s: float) -> float:
        """How long nodes have waited for the newest of these, which are waited for from now on."""
        with self._lock:
            return min((now_s - self._asked.setdefault(task, now_s) for task in tasks), default=0.0)

    def request_release(self, release: Release, now: int) -> None:
        """Has all ways to a confidential release made that are known, and what failed tried again.

        Raises:
            IntegrityError, NotFoundError: its manifest has rotted.
            RefusedError: the file of epoch keys can't be read.
        """
        if release.confidential:
            manifest = self._registry.manifest(release)
            for task in list(self.failed):
                if task.model == release.model:
                    self.failed.pop(task, None)
            bases = {delta.base for file in manifest.files for delta in self._registry.deltas_to(file.sha256)}
            held = bases - {file.sha256 for file in manifest.files}
            self.request(self.missing(manifest, held, self.epochs.newest(release.model, now)))

    def request_delta(self, base: Digest, target: Digest) -> None:
        """Has a recipe that was made just now sealed, for every model with a confidential release of its target."""
        owners = [self._registry.by_digest(owner) for owner in self._registry.owners(target)]
        self.request(Task(owner.model, base, target) for owner in owners if owner is not None and owner.confidential)

    def take(self) -> Task | None:
        """The next way to seal, if any."""
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def make(self, task: Task, now: int) -> str:
        """Seals one way (seconds of work) under the newest epoch, and returns a sentence about it."""
        what = f"{task.blob.hex()[:12]} of {task.model}" + (f" from {task.base.hex()[:12]}" if task.base else "")
        try:
            epoch = self.epochs.newest(task.model, now)
            if (task.base, task.blob) in self.ways(task.model, epoch.number):
                return f"{what} is sealed already"
            with self._registry.writing:
                cost = self._make(task, epoch)
        except (HeliographError, OSError) as error:  # a full disk, say: denials go out all the same
            self.failed[task] = str(error)
            return f"{what} can't be sealed: {error}"
        finally:
            with self._lock:
                self._asked.pop(task, None)
        return f"sealed {what} for epoch {epoch.number}: {cost} bytes"

    def _make(self, task: Task, epoch: Epoch) -> int:
        if task.base == FULL:
            plain = [task.blob]
        else:
            delta = self._delta(task)
            plain = [delta.recipe, *([delta.patch] if delta.patch_length else [])]
        made = [self._seal(blob, epoch) for blob in plain]
        document = encode(Seal(epoch.model, epoch.number, tuple(made)))
        digest = self._objects.put(document)
        cost = len(document) + sum(transfer_bytes(blob.length) for blob in made)
        with self._database.write() as connection:
            for blob in made:
                note_blob(connection, blob.sealed, blob.length, "sealed")
                values = {"plain_length": blob.plain_length, "sealed": blob.sealed, "pages": b"".join(blob.pages)}
                _insert_once(
                    connection, sealed, {"model": epoch.model, "epoch": epoch.number, "plain": blob.plain}, values
                )
            note_blob(connection, digest, len(document), "seal")
            key = {"model": epoch.model, "epoch": epoch.number, "base": task.base, "blob": task.blob}
            _insert_once(connection, seals, key, {"seal": digest, "seal_length": len(document), "bytes": cost})
        return cost

    def _delta(self, task: Task) -> Delta:
        for delta in self._registry.deltas_to(task.blob):
            if delta.base == task.base:
                return delta
        raise NotFoundError(f"no recipe from {task.base.hex()[:12]} to {task.blob.hex()[:12]}")

    def _seal(self, plain: Digest, epoch: Epoch) -> SealedBlob:
        query = sa.select(sealed).where(
            sealed.c.model == epoch.model, sealed.c.epoch == epoch.number, sealed.c.plain == plain
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is not None and self._objects.has(row.sealed):
            pages = tuple(
                row.pages[at : at + SHORT_DIGEST_BYTES] for at in range(0, len(row.pages), SHORT_DIGEST_BYTES)
            )
            return SealedBlob(plain, row.plain_length, Digest(row.sealed), pages)
        if not self._objects.verify(plain):
            raise IntegrityError(f"object {plain.hex()} is missing or has rotted: add its release again")
        path, pager = self._objects.path(plain), Pager()
        digest = self._objects.put_pieces(_sealing(path, plain, leaf_key(epoch.key, plain), pager))
        named, pages = pager.finish()
        length = path.stat().st_size
        if named != digest or pager.length != sealed_length(length):
            raise IntegrityError(f"object {plain.hex()} changed while it was sealed")
        return SealedBlob(plain, length, digest, pages)

    # --- what goes --------------------------------------------------------------------------------------------------

    def drop_old(self, now: int) -> int:
        """Drops what is sealed under epochs that were over `KEEP_S` ago; returns how many blobs that were."""
        with self._registry.writing:
            return self._drop_old(now)

    def _drop_old(self, now: int) -> int:
        with self._database.write() as connection:
            gone: set[bytes] = set()
            for table, column in ((sealed, sealed.c.sealed), (seals, seals.c.seal)):
                later = sa.select(epochs.c.epoch).where(
                    epochs.c.model == table.c.model, epochs.c.epoch > table.c.epoch, epochs.c.began_at <= now - KEEP_S
                )
                is_over = sa.exists(later.correlate(table))
                gone |= set(connection.execute(sa.select(column).where(is_over)).scalars())
                connection.execute(sa.delete(table).where(is_over))
            still = set(connection.execute(sa.select(sealed.c.sealed)).scalars())
            still |= set(connection.execute(sa.select(seals.c.seal)).scalars())
            kinds = {r.digest: r.kind for r in connection.execute(sa.select(blobs.c.digest, blobs.c.kind))}
            dropped = [Digest(digest) for digest in gone - still if kinds.get(digest) in ("sealed", "seal")]
            for digest in dropped:
                connection.execute(sa.delete(blobs).where(blobs.c.digest == digest))
        self._registry.changed()
        for digest in dropped:
            self._objects.delete(digest)
        return len(dropped)


def _sealing(path: Path, plain: Digest, key: bytes, pager: Pager) -> Iterator[bytes]:
    """The sealed bytes of a file, in runs; `pager` is fed with them.

    Raises:
        IntegrityError: at the end, if the file wasn't `plain`: by that key and its nonces nothing else may be sealed.
    """
    sealer, sha = Sealer(key), hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            sha.update(data)
            piece = sealer.feed(data)
            pager.feed(piece)
            yield piece
    if sha.digest() != plain:
        raise IntegrityError(f"object {plain.hex()} changed while it was sealed")
    piece = sealer.finish()
    pager.feed(piece)
    yield piece


def _insert_once(connection: sa.Connection, table: sa.Table, key: dict[str, object], values: dict[str, object]) -> None:
    known = sa.select(sa.literal(1)).select_from(table).where(*(table.c[name] == value for name, value in key.items()))
    if connection.execute(known).first() is None:
        connection.execute(sa.insert(table).values(**key, **values))

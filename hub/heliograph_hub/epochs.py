"""[IO] The keys by which confidential releases are sealed: one a model and epoch, in files beside the online keys.

    DIR/keys/epochs/MODEL.json    all keys of one model, 0600 (shared/FORMATS.md, "Epoch keys")

Rule 1: only the newest epoch is granted and sealed with. Its row says how many nodes' keys had ended when it began:
    once that number differs, the next epoch begins before anything else is granted or sealed. So nothing has to be told
    of a node that is removed or replaced, and a hub that was killed between the two acts is not late.
Rule 2: a key is on disk before the row that makes its epoch the newest. Where the file lacks the row's key, or holds
    another or a later one, because one of the two was restored from an older copy, the next epoch begins.
Rule 3: keys are in the files only: not in the database, its log, or any answer of the API. A node gets one sealed to
    its key, and only if that is still its key once the epoch has begun.

Time comes from the caller; entropy from the system.
"""

import hashlib
import json
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from heliograph.documents import Grant
from heliograph.errors import RefusedError
from heliograph.names import check_name
from heliograph.objects import write_durably
from heliograph.sealing import EPOCH_KEY_BYTES, MAX_EPOCH, grant_box
from heliograph_hub.database import Database, epochs, former_keys, nodes

EPOCHS_FORMAT: Literal[1] = 1
MAX_FILE_BYTES = 1 << 20
MAX_KEYS = 4096
"""Keys that are kept of a model, the newest; only the newest of all is still used."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch of a model; its `repr` doesn't show the key."""

    model: str
    number: int
    key: bytes

    def __repr__(self) -> str:
        return f"Epoch({self.model}, {self.number})"


class Epochs:
    """The epochs of all models of a realm. May be used by several threads of the process that holds the folder."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        on_begun: Callable[[int, str, int, str], None] = lambda now, model, number, why: None,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """`folder` is made when the first key is; `on_begun` is told when, the model, the number and why."""
        self._database = database
        self._folder = folder
        self._on_begun = on_begun
        self._entropy = entropy
        self._lock = threading.RLock()

    def newest(self, model: str, now: int) -> Epoch:
        """The epoch to seal and grant with; begun here if there is none, or another is due.

        Raises:
            RefusedError: the file of keys can't be read or written.
        """
        with self._lock:
            with self._database.read() as connection:
                row = connection.execute(_newest(model)).one_or_none()
                ended = _ended(connection)
            if row is None:
                return self._begin(model, now, "the first")
            if row.ended_keys != ended:
                return self._begin(model, now, "a node's key has ended")
            keys = self._keys(model)
            key = keys.get(row.epoch)
            if key is None or _check(key) != row.key_check or max(keys) > row.epoch:
                return self._begin(model, now, "database and file of keys are not of one time")
            return Epoch(model, row.epoch, key)

    def begin(self, model: str, now: int) -> Epoch:
        """A new epoch because somebody wants one; on disk when this returns.

        Raises:
            RefusedError: the file of keys can't be read or written.
        """
        with self._lock:
            return self._begin(model, now, "asked for")

    def number(self, model: str) -> int | None:
        """The number of the newest epoch that has begun; None before the first."""
        with self._database.read() as connection:
            row = connection.execute(_newest(model)).one_or_none()
        return None if row is None else int(row.epoch)

    def grant(self, epoch: Epoch, site: str, node: str, keyid: bytes) -> Grant:
        """The epoch's key for one node.

        Raises:
            RefusedError: the node has another key by now, or none.
            TrustError: nothing can be sealed to its key.
        """
        query = sa.select(nodes.c.key).where(
            nodes.c.site == site, nodes.c.node == node, nodes.c.keyid == keyid, nodes.c.removed_at.is_(None)
        )
        with self._database.read() as connection:
            public = connection.execute(query).scalar_one_or_none()
        if public is None:
            raise RefusedError(f"{site}/{node} has key {keyid.hex()[:16]} no more: nothing is granted to it")
        box = grant_box(epoch.key, public, self._entropy(32))
        return Grant(model=epoch.model, epoch=epoch.number, box=box)

    def _begin(self, model: str, now: int, why: str) -> Epoch:
        keys = self._keys(model)
        with self._database.read() as connection:
            row = connection.execute(_newest(model)).one_or_none()
            ended = _ended(connection)
        number = max(row.epoch if row else 0, *keys, 0) + 1
        if number > MAX_EPOCH:
            raise RefusedError(f"{model} has had {MAX_EPOCH} epochs: {self._path(model)} was tampered with")
        key = keys[number] = self._entropy(EPOCH_KEY_BYTES)
        kept = sorted(keys)[-MAX_KEYS:]
        content = {
            "format": EPOCHS_FORMAT,
            "model": model,
            "keys": {str(epoch): keys[epoch].hex() for epoch in kept},
        }
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(self._path(model), json.dumps(content, indent=1).encode() + b"\n", mode=0o600)
        except OSError as error:
            raise RefusedError(f"{self._path(model)} can't be written: {error.strerror}") from error
        values = {"model": model, "epoch": number, "began_at": now, "ended_keys": ended, "key_check": _check(key)}
        with self._database.write() as connection:
            connection.execute(sa.insert(epochs).values(**values))
        self._on_begun(now, model, number, why)
        return Epoch(model, number, key)

    def _keys(self, model: str) -> dict[int, bytes]:
        path = self._path(model)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise RefusedError(f"{path} can't be read ({error.strerror}): it holds the keys of {model}") from error
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise RefusedError(f"{path} is no file of epoch keys: restore it, or move it away for new keys") from error
        match content:
            case {"format": int(version)} if version != EPOCHS_FORMAT:
                raise RefusedError(f"{path} has format {version}, this version reads {EPOCHS_FORMAT}")
            case {"model": str(name), "keys": dict(keys)} if name == model:
                try:
                    found = {int(number): bytes.fromhex(key) for number, key in keys.items()}
                except (TypeError, ValueError):
                    found = {0: b""}
                if all(0 < number <= MAX_EPOCH and len(key) == EPOCH_KEY_BYTES for number, key in found.items()):
                    return found
        raise RefusedError(f"{path} is no file of {model}'s epoch keys: restore it, or move it away for new keys")

    def _path(self, model: str) -> Path:
        return self._folder / f"{check_name(model, 'model')}.json"


def _newest(model: str) -> sa.Select[tuple[object, ...]]:
    return sa.select(epochs).where(epochs.c.model == model).order_by(epochs.c.epoch.desc()).limit(1)


def _ended(connection: sa.Connection) -> int:
    """How many keys were nodes' and are no more."""
    return connection.execute(sa.select(sa.func.count()).select_from(former_keys)).scalar() or 0


def _check(key: bytes) -> bytes:
    """What tells one key from another and says nothing of it, 16 bytes."""
    return hashlib.blake2b(b"heliograph/epoch-check.v1", digest_size=16, key=key).digest()

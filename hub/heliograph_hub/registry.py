"""[IO] The releases of a realm: their manifests, the objects they are made of, and the recipes between them.

Rule 1: a release is its manifest's digest. The same version is never added with another digest; adding the same bundle
    again changes nothing.
Rule 2: objects are on disk before the row that names them, so that a row never names what isn't there.
Rule 3: a recipe is made once per (base, target) and kept, with its patch, as objects like any other, until no node
    needs it any more (`drop_recipes`). Deltas never chain: base and target are both files of releases.
Rule 4: every file of every release can be had in full; a delta is offered only where it costs less.
Rule 5: what only confidential releases are made of is secret: it is offered by sealed ways only (`Seals` makes them),
    and nobody is sent its plain bytes. A recipe from a secret base, and its patch, would tell of that: they are secret
    whatever they lead to, and a public release is offered no such way.

Packing and diffing block for seconds: callers run `add` and `make_recipe` in a thread.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from heliograph.blob import SHORT_DIGEST_BYTES, leaf_count
from heliograph.delta.file import Progress, make_file, parts
from heliograph.documents import RecipeRef, SealRef, Way
from heliograph.errors import IntegrityError, NotFoundError, RefusedError
from heliograph.manifest import File, Manifest, manifest_digest
from heliograph.names import Digest, version_key
from heliograph.objects import ObjectStore
from heliograph_hub.bundle import Bundle, pack
from heliograph_hub.database import Database, blobs, recipes, releases, sealed, seals

MAX_WAYS_BYTES = 50 * 1024
"""What the ways of one offer may take of a statement's 60 KiB."""
MAX_DELTA_WAYS = 2
"""Deltas offered for one file, the cheapest."""
_OWNING = (releases, recipes, sealed, seals)
"""Tables that say which release a blob belongs to."""
_HOW_MANY = sa.select(*(sa.select(sa.func.count()).select_from(table).scalar_subquery() for table in _OWNING))
_CONTENT = ("file", "recipe", "patch")
"""Kinds of blobs that are a release's content in plain."""
_OF_RECIPES = ("recipe", "patch", "sealed", "seal")
"""Kinds of blobs that go when no row names them any more. What a release lists is of another kind, always."""
KEEP_RECIPES_S = 14 * 86400
"""How long a recipe stays after it was made or last asked for, whoever holds its base: as long as a fetch may take."""
NOTE_ASKED_S = 86400
"""It is noted at most this often that a recipe was asked for."""

Maker = Callable[[Path, Path, Path, Progress | None], object]
"""(old, new, delta file to write, progress): as `heliograph.delta.file.make_file`."""


@dataclass(frozen=True, slots=True)
class Release:
    """One row of the registry."""

    model: str
    version: str
    digest: Digest
    length: int
    added_at: int
    confidential: bool = False

    @property
    def name(self) -> str:
        """`model@version`."""
        return f"{self.model}@{self.version}"


@dataclass(frozen=True, slots=True)
class Delta:
    """A recipe that was made, and the bytes that cross the link when it is used."""

    base: Digest
    target: Digest
    recipe: Digest
    recipe_length: int
    patch: Digest
    patch_length: int
    seconds: float

    @property
    def cost_bytes(self) -> int:
        """Recipe, patch and the patch's pages."""
        return self.recipe_length + transfer_bytes(self.patch_length)


@dataclass(frozen=True, slots=True)
class SealedWay:
    """The seal of one way of a confidential release, and all bytes that cross the link when it is used."""

    seal: SealRef
    cost_bytes: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """What went because nobody needs it."""

    recipes: int
    blobs: int
    bytes: int


SealedWays = Mapping[tuple[bytes, bytes], SealedWay]
"""By (base, blob); of a full way the base is empty."""
FULL = b""


def transfer_bytes(length: int) -> int:
    """Content bytes that cross the link for a paged blob: its leaves and their digests."""
    return length + leaf_count(length) * SHORT_DIGEST_BYTES


class Registry:
    """Releases and recipes: rows in the database, bytes in the object store."""

    def __init__(self, database: Database, objects: ObjectStore) -> None:
        self._database = database
        self.objects = objects
        self.writing = threading.RLock()
        """Held while objects, and the rows that name them, are made or dropped: or one thread would drop what another
        has found to be there already."""
        self._owners: dict[bytes, tuple[Digest, ...]] = {}
        self._secret: frozenset[bytes] = frozenset()
        self._owned_as_of: tuple[int | None, ...] = ()

    # --- releases ---------------------------------------------------------------------------------------------------

    def check_new(self, manifest: Manifest) -> bool:
        """Whether this release is new; False if the very same one is there.

        Raises:
            RefusedError: the version is taken by another digest.
        """
        digest = manifest_digest(manifest)
        try:
            known = self.find(manifest.model, manifest.version)
        except NotFoundError:
            return True
        if known.digest != digest:
            raise RefusedError(
                f"{manifest.release} exists with digest {known.digest.hex()[:16]} and this bundle has "
                f"{digest.hex()[:16]}: a version never changes, choose another"
            )
        return False

    def add(self, folder: Path, now: int) -> tuple[Release, Bundle, bool]:
        """Packs the folder and keeps it: the release, its bundle, and whether it is new. On disk when this returns.

        Raises:
            ConfigError, RefusedError: as `pack`, and a version that is taken.
        """
        bundle = pack(folder)
        with self.writing:
            return self._add(bundle, now)

    def _add(self, bundle: Bundle, now: int) -> tuple[Release, Bundle, bool]:
        manifest = bundle.manifest
        is_new = self.check_new(manifest)
        # Also when the release is known: what has rotted on disk since is mended by adding it again.
        for name, path in bundle.paths.items():
            expected = Digest(manifest.file(name).sha256)
            if not self.objects.verify(expected) and self.objects.put_file(path) != expected:
                raise RefusedError(f"{path} changed while it was read: add the bundle again when nobody writes to it")
        data = manifest.encode()
        self.objects.verify(manifest_digest(manifest))
        digest = self.objects.put(data)
        if not is_new:
            return self.find(manifest.model, manifest.version), bundle, False
        release = Release(manifest.model, manifest.version, digest, len(data), now, manifest.confidential)
        with self._database.write() as connection:
            for file in manifest.files:
                note_blob(connection, Digest(file.sha256), file.length, "file")
            note_blob(connection, release.digest, release.length, "manifest")
            values = {name: getattr(release, name) for name in Release.__slots__}
            connection.execute(sa.insert(releases).values(**values))
        return release, bundle, True

    def find(self, model: str, version: str) -> Release:
        """One release.

        Raises:
            NotFoundError: it was never added.
        """
        query = sa.select(releases).where(releases.c.model == model, releases.c.version == version)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise NotFoundError(f"no release {model}@{version}: heliograph release list shows what there is")
        return _release(row)

    def by_digest(self, digest: bytes) -> Release | None:
        """The release of this manifest digest, if it is known."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(releases).where(releases.c.digest == digest)).one_or_none()
        return _release(row) if row else None

    def all(self) -> list[Release]:
        """All releases, by model, then by version."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(releases)).all()
        return sorted(map(_release, rows), key=lambda r: (r.model, version_key(r.version)))

    def manifest(self, release: Release) -> Manifest:
        """The release's manifest, verified.

        Raises:
            IntegrityError: it has rotted on disk.
        """
        return Manifest.parse(self.objects.read(release.digest), release.digest, release.length)

    def check_whole(self, release: Release) -> None:
        """Nothing if every file can be had in full. Reads all of them: for a thread.

        Raises:
            RefusedError: one is missing or has rotted; whoever holds no base of a delta could never get it.
            IntegrityError, NotFoundError: the manifest has rotted or is missing.
        """
        for file in self.manifest(release).files:
            if not self.objects.verify(Digest(file.sha256)):
                raise RefusedError(
                    f"{file.name} of {release.name} is missing on the hub or has rotted there: add the release again"
                )

    # --- blobs ------------------------------------------------------------------------------------------------------

    def blob_length(self, digest: bytes) -> int | None:
        """The length of a blob that this registry serves; None for any other digest."""
        with self._database.read() as connection:
            return connection.execute(sa.select(blobs.c.length).where(blobs.c.digest == digest)).scalar_one_or_none()

    def owners(self, blob: Digest) -> tuple[Digest, ...]:
        """The releases that need this blob, newest first: their manifest, a file, or the way to one, sealed or not."""
        self._look_whose()
        return self._owners.get(blob, ())

    def is_secret(self, blob: Digest) -> bool:
        """Whether these are plain bytes that no public release has, or tell of such: nobody is sent them.

        What belongs to a release whose manifest has rotted is secret too, as far as is known.
        """
        self._look_whose()
        return blob in self._secret

    def shared(self, release: Release) -> list[tuple[str, Release]]:
        """Files of a release that others have too, of which some are confidential and some aren't; by name."""
        found = []
        for file in self.manifest(release).files:
            others = [r for r in map(self.by_digest, self.owners(Digest(file.sha256))) if r is not None]
            other = next((other for other in others if other.confidential != release.confidential), None)
            if other is not None and file.length:
                found.append((file.name, other))
        return found

    def changed(self) -> None:
        """Rows were dropped: whose blobs are whose is looked up anew."""
        self._owned_as_of = ()

    def _look_whose(self) -> None:
        with self._database.read() as connection:
            known = tuple(connection.execute(_HOW_MANY).one())
        if known != self._owned_as_of:
            files = self._find_files()
            self._owners = self._find_owners(files)
            self._secret, self._owned_as_of = self._find_secret(files), known

    def _find_secret(self, files: Mapping[bytes, Collection[Digest]]) -> frozenset[bytes]:
        with self._database.read() as connection:
            public = set(connection.execute(sa.select(releases.c.digest).where(releases.c.confidential == 0)).scalars())
            content = connection.execute(sa.select(blobs.c.digest).where(blobs.c.kind.in_(_CONTENT))).scalars().all()
            rows = connection.execute(sa.select(recipes)).all()
        plain = {file for file, owners in files.items() if not public.isdisjoint(owners)}
        open_rows = [row for row in rows if row.base in plain and row.target in plain]
        return frozenset(content) - plain - {digest for row in open_rows for digest in (row.recipe, row.patch)}

    def _find_files(self) -> dict[bytes, list[Digest]]:
        files: dict[bytes, list[Digest]] = {}
        for release in reversed(self.all()):
            with contextlib.suppress(IntegrityError, NotFoundError):  # a manifest that rotted: nothing of it is served
                for digest in {bytes(file.sha256) for file in self.manifest(release).files}:
                    files.setdefault(digest, []).append(release.digest)
            files.setdefault(release.digest, []).append(release.digest)
        return files

    def _find_owners(self, files: Mapping[bytes, Collection[Digest]]) -> dict[bytes, tuple[Digest, ...]]:
        owners = {digest: tuple(found) for digest, found in files.items()}
        with self._database.read() as connection:
            rows = connection.execute(sa.select(recipes.c.target, recipes.c.recipe, recipes.c.patch)).all()
            leads = [(digest, row.target) for row in rows for digest in (row.recipe, row.patch)]
            leads += [(row.sealed, row.plain) for row in connection.execute(sa.select(sealed.c.sealed, sealed.c.plain))]
            leads += [(row.seal, row.blob) for row in connection.execute(sa.select(seals.c.seal, seals.c.blob))]
        for digest, target in leads:
            owners[digest] = tuple(dict.fromkeys((*owners.get(digest, ()), *owners.get(target, ()))))
        return owners

    # --- recipes ----------------------------------------------------------------------------------------------------

    def deltas_to(self, target: bytes) -> list[Delta]:
        """Recipes made for this blob, cheapest first."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(recipes).where(recipes.c.target == target)).all()
        found = [Delta(r.base, r.target, r.recipe, r.recipe_length, r.patch, r.patch_length, r.seconds) for r in rows]
        return sorted(found, key=lambda delta: (delta.cost_bytes, delta.base))

    def pairs(self, release: Release, bases: Collection[bytes]) -> list[tuple[Digest, Digest]]:
        """(base, target) blobs worth a recipe: a base is a file of the same name in another release of the model.

        For each file the two bases that come first in `bases`; what the release itself shares with a base needs none.
        """
        manifest = self.manifest(release)
        held = [base for base in dict.fromkeys(bases) if release.confidential or not self.is_secret(Digest(base))]
        others = [self.manifest(r) for r in self.all() if r.model == release.model and r.digest != release.digest]
        named: dict[str, set[bytes]] = {}
        for other in others:
            for file in other.files:
                named.setdefault(file.name, set()).add(file.sha256)
        wanted = []
        for file in manifest.files:
            if file.sha256 in bases or file.length == 0:
                continue
            likely = [base for base in held if base in named.get(file.name, set()) and base != file.sha256]
            wanted += [(Digest(base), Digest(file.sha256)) for base in likely[:MAX_DELTA_WAYS]]
        return wanted

    def likely_pairs(self, release: Release) -> list[tuple[Digest, Digest]]:
        """The pairs that a node running the version before this one will need."""
        before = [
            r for r in self.all() if r.model == release.model and version_key(r.version) < version_key(release.version)
        ]
        return self.pairs(release, [file.sha256 for file in self.manifest(before[-1]).files]) if before else []

    def missing_recipes(self, pairs: Iterable[tuple[Digest, Digest]]) -> list[tuple[Digest, Digest]]:
        """Those pairs for which no recipe was made yet."""
        with self._database.read() as connection:
            made = {(r.base, r.target) for r in connection.execute(sa.select(recipes.c.base, recipes.c.target))}
        return [pair for pair in pairs if pair not in made]

    def note_asked(self, pairs: Iterable[tuple[Digest, Digest]], now: int) -> None:
        """Somebody needs the recipes of these pairs, as far as they are made."""
        wanted = set(pairs)
        if not wanted:
            return
        with self._database.read() as connection:
            query = sa.select(recipes.c.base, recipes.c.target).where(recipes.c.asked_at <= now - NOTE_ASKED_S)
            old = {(row.base, row.target) for row in connection.execute(query)}
        if due := wanted & old:
            with self._database.write() as connection:
                for base, target in due:
                    pair = (recipes.c.base == base, recipes.c.target == target)
                    connection.execute(sa.update(recipes).where(*pair).values(asked_at=now))

    def make_recipe(
        self, base: Digest, target: Digest, now: int, make: Maker = make_file, progress: Progress | None = None
    ) -> Delta:
        """Makes, keeps and returns the recipe of a pair; on disk when this returns.

        Raises:
            IntegrityError, NotFoundError: an object has rotted or is missing.
            ConfigError, RefusedError: the recipe would exceed its bounds, or making it would.
        """
        for digest in (base, target):
            if not self.objects.verify(digest):
                raise IntegrityError(f"object {digest.hex()} is missing or has rotted: add its release again")
        begun = time.monotonic()
        made = self.objects.root / f".{secrets.token_hex(8)}.part"
        try:
            make(self.objects.path(base), self.objects.path(target), made, progress)
            with parts(made) as (recipe, encoded, patch):
                recipe.check_is_for(base, target, self.objects.size(target))
                seconds = time.monotonic() - begun
                with self.writing:
                    digests = self.objects.put(encoded), self.objects.put_pieces(patch)
                    delta = Delta(
                        base, target, digests[0], len(encoded), digests[1], recipe.patch_length, round(seconds, 3)
                    )
                    self._note_recipe(delta, now)
        finally:
            made.unlink(missing_ok=True)
        return delta

    def _note_recipe(self, delta: Delta, now: int) -> None:
        with self._database.write() as connection:
            note_blob(connection, delta.recipe, delta.recipe_length, "recipe")
            note_blob(connection, delta.patch, delta.patch_length, "patch")
            pair = (recipes.c.base == delta.base, recipes.c.target == delta.target)
            if connection.execute(sa.select(recipes.c.base).where(*pair)).one_or_none() is None:
                values = {name: getattr(delta, name) for name in Delta.__slots__}
                connection.execute(sa.insert(recipes).values(made_at=now, asked_at=now, **values))

    def drop_recipes(self, held: Collection[bytes], wanted: Collection[bytes], now: int) -> Dropped:
        """Drops recipes that nobody needs, with their patches and all that is sealed of both.

        One is needed while its base is among the files `held` by nodes and its target among those `wanted`, and for
        `KEEP_RECIPES_S` after it was made or asked for. Nothing that another row names goes.
        """
        with self.writing:
            with self._database.write() as connection:
                query = sa.select(recipes).where(recipes.c.asked_at <= now - KEEP_RECIPES_S)
                rows = [r for r in connection.execute(query).all() if not (r.base in held and r.target in wanted)]
                for row in rows:
                    connection.execute(
                        sa.delete(recipes).where(recipes.c.base == row.base, recipes.c.target == row.target)
                    )
                    connection.execute(sa.delete(seals).where(seals.c.base == row.base, seals.c.blob == row.target))
                gone = _drop_unnamed(connection) if rows else []
            self.changed()
            for digest, _ in gone:
                self.objects.delete(digest)
        return Dropped(len(rows), len(gone), sum(length for _, length in gone))

    # --- offers -----------------------------------------------------------------------------------------------------

    def ways(
        self,
        manifest: Manifest,
        bases: Iterable[bytes],
        is_denied: Callable[[bytes], bool] = lambda recipe: False,
        by_seal: SealedWays | None = None,
    ) -> tuple[Way, ...]:
        """Every way to get each file that is not among `bases`: deltas that cost less than full, then full.

        Always enough to get the whole release without a base; deltas that save least are left out where the offer
        would grow too large, those whose recipe is denied always. Of a confidential release only ways in `by_seal`.
        """
        held = frozenset(bases)
        full: dict[bytes, Way] = {}
        saving: list[tuple[int, Way]] = []
        for file in manifest.files:
            if file.sha256 in held or file.sha256 in full:
                continue
            way = _sealed(_full(file), by_seal) if manifest.confidential else _full(file)
            if way is None:
                continue
            full[file.sha256] = way
            made = [d for d in self.deltas_to(file.sha256) if d.base in held and not is_denied(d.recipe)]
            if not manifest.confidential:
                made = [d for d in made if not (self.is_secret(d.recipe) or self.is_secret(d.patch))]
            deltas = [
                _sealed(_way(file, delta), by_seal) if manifest.confidential else _way(file, delta) for delta in made
            ]
            cheaper = [delta for delta in deltas if delta is not None and delta.bytes < way.bytes]
            cheaper.sort(key=lambda delta: delta.bytes)
            saving += [(way.bytes - delta.bytes, delta) for delta in cheaper[:MAX_DELTA_WAYS]]
        room = MAX_WAYS_BYTES - sum(len(way.encode()) for way in full.values())
        chosen: dict[bytes, list[Way]] = {}
        for _, way in sorted(saving, key=lambda entry: -entry[0]):
            if len(way.encode()) <= room:
                room -= len(way.encode())
                chosen.setdefault(way.blob, []).append(way)
        return tuple(way for blob, last in full.items() for way in (*chosen.get(blob, []), last))


def _full(file: File) -> Way:
    return Way(kind="full", blob=file.sha256, bytes=transfer_bytes(file.length))


def _way(file: File, delta: Delta) -> Way:
    return Way(
        kind="delta",
        blob=file.sha256,
        bytes=delta.cost_bytes,
        base=delta.base,
        recipe=RecipeRef(length=delta.recipe_length, sha256=delta.recipe),
    )


def _sealed(way: Way, by_seal: SealedWays | None) -> Way | None:
    """The same way as it is offered of a confidential release; None if it isn't sealed."""
    found = (by_seal or {}).get((way.base or FULL, way.blob))
    return way.model_copy(update={"bytes": found.cost_bytes, "seal": found.seal}) if found is not None else None


def note_blob(connection: sa.Connection, digest: Digest, length: int, kind: str) -> None:
    """Has a blob served from now on; part of the caller's transaction, after the object is on disk.

    What a release lists stays that, whatever else it is; a patch that is found to be a file too becomes one.
    """
    known = connection.execute(sa.select(blobs.c.kind).where(blobs.c.digest == digest)).scalar_one_or_none()
    if known is None:
        connection.execute(sa.insert(blobs).values(digest=digest, length=length, kind=kind))
    elif known in _OF_RECIPES and kind not in _OF_RECIPES:
        connection.execute(sa.update(blobs).where(blobs.c.digest == digest).values(kind=kind))


def _drop_unnamed(connection: sa.Connection) -> list[tuple[Digest, int]]:
    """Drops the rows of blobs that were made for recipes and that nothing names; returns them, to be deleted."""

    def of(column: sa.Column[Any]) -> set[bytes]:
        return set(connection.execute(sa.select(column)).scalars())

    kinds = {row.digest: row for row in connection.execute(sa.select(blobs).where(blobs.c.kind.in_(_OF_RECIPES)))}
    named = of(recipes.c.recipe) | of(recipes.c.patch)
    plain = {digest for digest, row in kinds.items() if row.kind in ("recipe", "patch")} - named
    for digest in plain:
        connection.execute(sa.delete(sealed).where(sealed.c.plain == digest))
    named |= of(sealed.c.sealed) | of(seals.c.seal)
    gone = [(Digest(digest), row.length) for digest, row in kinds.items() if digest not in named]
    for digest, _ in gone:
        connection.execute(sa.delete(blobs).where(blobs.c.digest == digest))
    return gone


def _release(row: Any) -> Release:
    return Release(row.model, row.version, Digest(row.digest), row.length, row.added_at, bool(row.confidential))

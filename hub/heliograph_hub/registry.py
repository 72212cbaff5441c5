"""[IO] The releases of a realm: their manifests, the objects they are made of, and the recipes between them.

Rule 1: a release is its manifest's digest. The same version is never added with another digest; adding the same bundle
    again changes nothing.
Rule 2: objects are on disk before the row that names them, so that a row never names what isn't there.
Rule 3: a recipe is made once per (base, target) and kept, with its patch, as objects like any other. Deltas never
    chain: base and target are both files of releases.
Rule 4: every file of every release can be had in full; a delta is offered only where it costs less.

Packing and diffing block for seconds: callers run `add` and `make_recipe` in a thread.
"""

import contextlib
import mmap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from heliograph.blob import MAX_UNPAGED_BYTES, SHORT_DIGEST_BYTES, leaf_count
from heliograph.delta import diff, recipe
from heliograph.documents import RecipeRef, Way
from heliograph.errors import IntegrityError, NotFoundError, RefusedError
from heliograph.manifest import File, Manifest, manifest_digest
from heliograph.names import Digest, version_key
from heliograph.objects import ObjectStore
from heliograph_hub.bundle import Bundle, pack
from heliograph_hub.database import Database, blobs, recipes, releases

MAX_WAYS_BYTES = 50 * 1024
"""What the ways of one offer may take of a statement's 60 KiB."""
MAX_DELTA_WAYS = 2
_OWNING = (releases, recipes)
"""Tables that say which release a blob belongs to."""
"""Deltas offered for one file, the cheapest."""


@dataclass(frozen=True, slots=True)
class Release:
    """One row of the registry."""

    model: str
    version: str
    digest: Digest
    length: int
    added_at: int

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


def transfer_bytes(length: int) -> int:
    """Content bytes that cross the link for a paged blob: its leaves and their digests."""
    return length + leaf_count(length) * SHORT_DIGEST_BYTES


class Registry:
    """Releases and recipes: rows in the database, bytes in the object store."""

    def __init__(self, database: Database, objects: ObjectStore) -> None:
        self._database = database
        self.objects = objects
        self._owners: dict[bytes, tuple[Digest, ...]] = {}
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
        release = Release(manifest.model, manifest.version, digest, len(data), now)
        with self._database.write() as connection:
            for file in manifest.files:
                _note_blob(connection, Digest(file.sha256), file.length, "file")
            _note_blob(connection, release.digest, release.length, "manifest")
            values = {name: getattr(release, name) for name in ("model", "version", "digest", "length", "added_at")}
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

    # --- blobs ------------------------------------------------------------------------------------------------------

    def blob_length(self, digest: bytes) -> int | None:
        """The length of a blob that this registry serves; None for any other digest."""
        with self._database.read() as connection:
            return connection.execute(sa.select(blobs.c.length).where(blobs.c.digest == digest)).scalar_one_or_none()

    def owners(self, blob: Digest) -> tuple[Digest, ...]:
        """The releases that need this blob, the newest first: their manifest, a file, or the way to one."""
        with self._database.read() as connection:
            known = tuple(connection.execute(sa.select(sa.func.count()).select_from(t)).scalar() for t in _OWNING)
        if known != self._owned_as_of:
            self._owned_as_of, self._owners = known, self._find_owners()
        return self._owners.get(blob, ())

    def _find_owners(self) -> dict[bytes, tuple[Digest, ...]]:
        files: dict[bytes, list[Digest]] = {}
        for release in reversed(self.all()):
            with contextlib.suppress(IntegrityError, NotFoundError):  # a manifest that rotted: nothing of it is served
                for digest in {bytes(file.sha256) for file in self.manifest(release).files}:
                    files.setdefault(digest, []).append(release.digest)
            files.setdefault(release.digest, []).append(release.digest)
        owners = {digest: tuple(found) for digest, found in files.items()}
        with self._database.read() as connection:
            rows = connection.execute(sa.select(recipes.c.target, recipes.c.recipe, recipes.c.patch)).all()
        for row in rows:
            for digest in (row.recipe, row.patch):
                mine = (*owners.get(digest, ()), *owners.get(row.target, ()))
                owners[digest] = tuple(dict.fromkeys(mine))
        return owners

    # --- recipes ----------------------------------------------------------------------------------------------------

    def deltas_to(self, target: bytes) -> list[Delta]:
        """Recipes made for this blob, cheapest first."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(recipes).where(recipes.c.target == target)).all()
        found = [Delta(r.base, r.target, r.recipe, r.recipe_length, r.patch, r.patch_length, r.seconds) for r in rows]
        return sorted(found, key=lambda delta: (delta.cost_bytes, delta.base))

    def pairs(self, release: Release, bases: Iterable[bytes]) -> list[tuple[Digest, Digest]]:
        """(base, target) blobs worth a recipe: a base is a file of the same name in another release of the model.

        For each file the two bases that come first in `bases`; what the release itself shares with a base needs none.
        """
        manifest = self.manifest(release)
        held = list(dict.fromkeys(bases))
        others = [self.manifest(r) for r in self.all() if r.model == release.model and r.digest != release.digest]
        named: dict[str, set[bytes]] = {}
        for other in others:
            for file in other.files:
                named.setdefault(file.name, set()).add(file.sha256)
        wanted = []
        for file in manifest.files:
            if file.sha256 in held or file.length == 0:
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

    def make_recipe(self, base: Digest, target: Digest, now: int) -> Delta:
        """Makes, keeps and returns the recipe of a pair; on disk when this returns.

        Raises:
            IntegrityError, NotFoundError: an object has rotted or is missing.
            RefusedError: the recipe would exceed 1 MiB.
        """
        for digest in (base, target):
            if not self.objects.verify(digest):
                raise IntegrityError(f"object {digest.hex()} is missing or has rotted: add its release again")
        begun = time.monotonic()
        with _mapped(self.objects.path(base)) as old, _mapped(self.objects.path(target)) as new:
            made, patch = diff.make(old, new)
        encoded = recipe.encode(made)
        if len(encoded) > MAX_UNPAGED_BYTES:
            raise RefusedError(f"recipe of {len(encoded)} bytes exceeds {MAX_UNPAGED_BYTES}")
        seconds = time.monotonic() - begun
        patch_digest, recipe_digest = self.objects.put(patch), self.objects.put(encoded)
        delta = Delta(base, target, recipe_digest, len(encoded), patch_digest, len(patch), seconds)
        with self._database.write() as connection:
            _note_blob(connection, recipe_digest, len(encoded), "recipe")
            _note_blob(connection, patch_digest, len(patch), "patch")
            known = connection.execute(
                sa.select(recipes.c.base).where(recipes.c.base == base, recipes.c.target == target)
            )
            if known.one_or_none() is None:
                values = {name: getattr(delta, name) for name in Delta.__slots__}
                connection.execute(sa.insert(recipes).values(made_at=now, **values))
        return delta

    # --- offers -----------------------------------------------------------------------------------------------------

    def ways(
        self, manifest: Manifest, bases: Iterable[bytes], is_denied: Callable[[bytes], bool] = lambda recipe: False
    ) -> tuple[Way, ...]:
        """Every way to get each file that is not among `bases`: deltas that cost less than full, then full.

        Always enough to get the whole release without a base; deltas that save least are left out where the offer
        would grow too large, those whose recipe is denied always.
        """
        held = frozenset(bases)
        full: dict[bytes, Way] = {}
        saving: list[tuple[int, Way]] = []
        for file in manifest.files:
            if file.sha256 in held or file.sha256 in full:
                continue
            cost = transfer_bytes(file.length)
            full[file.sha256] = Way(kind="full", blob=file.sha256, bytes=cost)
            made = [d for d in self.deltas_to(file.sha256) if d.base in held and not is_denied(d.recipe)]
            cheaper = [delta for delta in made if delta.cost_bytes < cost]
            saving += [(cost - delta.cost_bytes, _way(file, delta)) for delta in cheaper[:MAX_DELTA_WAYS]]
        room = MAX_WAYS_BYTES - sum(len(way.encode()) for way in full.values())
        chosen: dict[bytes, list[Way]] = {}
        for _, way in sorted(saving, key=lambda entry: -entry[0]):
            if len(way.encode()) <= room:
                room -= len(way.encode())
                chosen.setdefault(way.blob, []).append(way)
        return tuple(way for blob, last in full.items() for way in (*chosen.get(blob, []), last))


def _way(file: File, delta: Delta) -> Way:
    return Way(
        kind="delta",
        blob=file.sha256,
        bytes=delta.cost_bytes,
        base=delta.base,
        recipe=RecipeRef(length=delta.recipe_length, sha256=delta.recipe),
    )


@contextmanager
def _mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    """The file as one read-only buffer."""
    if path.stat().st_size == 0:
        yield b""
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        yield mapping


def _note_blob(connection: sa.Connection, digest: Digest, length: int, kind: str) -> None:
    if connection.execute(sa.select(blobs.c.digest).where(blobs.c.digest == digest)).one_or_none() is None:
        connection.execute(sa.insert(blobs).values(digest=digest, length=length, kind=kind))


def _release(row: Any) -> Release:
    return Release(row.model, row.version, Digest(row.digest), row.length, row.added_at)

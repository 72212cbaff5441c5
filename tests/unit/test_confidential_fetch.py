"""Confidential releases over a link of the test's own: sealed ways only, killed anywhere, nothing plain on the disk."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from heliograph.blob import describe, sha256, short_digest
from heliograph.deadlines import Deadlines
from heliograph.delta import recipe as recipes
from heliograph.delta.recipe import COPY, Recipe, Segment
from heliograph.documents import Grant, RecipeRef, SealRef, Want, Way
from heliograph.errors import IntegrityError
from heliograph.manifest import Manifest
from heliograph.sealing import Seal, encode, leaf_key, parse, seal_range
from heliograph.signing import PrivateKey
from heliograph_site.fetching import Downloads, usable_ways
from heliograph_site.slots import Slots
from sealed import NODE_KEY, Vault, leaks, manifest_of, noise

OLD = noise(1, 1_300_000)
NEW = OLD[:500_000] + noise(2, 40_000) + OLD[530_000:1_200_000] + noise(3, 90_000)
FILES = {"model.tflite": NEW}
MANIFEST = manifest_of(FILES)
SLOW = Deadlines(chunk_base_s=30.0)


class KilledError(Exception):
    """The process is killed in the middle of a chunk."""


class Link:
    """A hub that answers at once, until the node has had as many chunks as it may get before it is killed."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault
        self.left: int | None = None
        self.chunks = 0
        self.wanted: set[bytes] = set()

    @asynccontextmanager
    async def node(self) -> AsyncIterator[Downloads]:
        """Downloads of a node that has just started."""
        wants: asyncio.Queue[Want] = asyncio.Queue()

        async def probe(_timeout_s: float) -> bool:
            return True

        downloads = Downloads(wants.put, probe, Random(1), SLOW)

        async def serve() -> None:
            while True:
                want = await wants.get()
                self.wanted.add(want.blob)
                for chunk in self.vault.answers(want):
                    if self.left is not None and self.chunks >= self.left:
                        raise KilledError
                    self.chunks += 1
                    await downloads.on_chunk(chunk.encode())

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(downloads.run()), group.create_task(serve())]
            await downloads.on_link(True)
            yield downloads
            for task in tasks:
                task.cancel()


def fetch(
    link: Link, slots: Slots, ways: Sequence[Way], grant: Grant | None = None, manifest: Manifest = MANIFEST
) -> tuple[Way, ...]:
    """One fetch by a node that has just started.

    Raises:
        KilledError: in the middle.
    """

    async def scenario() -> tuple[Way, ...]:
        async with asyncio.timeout(60), link.node() as downloads:
            return await downloads.release(slots, manifest, ways, lambda held, of: None, grant)

    try:
        return asyncio.run(scenario())
    except* KilledError as killed:
        raise KilledError from killed
    except* IntegrityError as wrong:
        raise wrong.exceptions[0] from None


def site(folder: Path, vault: Vault, *, base: str = "") -> Slots:
    """A node that may hold OLD, plain or sealed."""
    slots = Slots(folder, NODE_KEY.open_box)
    if base == "plain":
        slots.store.put(OLD)
    elif base == "sealed":
        path = slots.path(sha256(OLD), "part")
        path.write_bytes(vault.sealed(OLD))
        slots.settle_sealed(manifest_of({"m": OLD}).files[0], path, vault.grant())
    return slots


def files_of(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]


def test_a_full_file_comes_sealed_and_is_held_sealed(tmp_path: Path) -> None:
    vault = Vault()
    slots, link, way = site(tmp_path, vault), Link(vault), vault.full(NEW)
    assert fetch(link, slots, [way], vault.grant()) == (way,)
    assert slots.store.path(sha256(vault.sealed(NEW))).read_bytes() == vault.sealed(NEW)
    slots.verify(MANIFEST)
    assert slots.holdings.read(sha256(NEW)) == NEW
    assert sha256(NEW) not in link.wanted
    assert leaks(tmp_path, vault.plain) == []


@pytest.mark.parametrize("base", ["plain", "sealed"])
def test_a_delta_comes_sealed_and_makes_the_hubs_own_sealed_blob(tmp_path: Path, base: str) -> None:
    vault = Vault()
    slots, link, way = site(tmp_path, vault, base=base), Link(vault), vault.delta(OLD, NEW)
    assert way.bytes < len(NEW) // 4
    assert fetch(link, slots, [vault.full(NEW), way], vault.grant()) == (way,)
    assert slots.store.path(sha256(vault.sealed(NEW))).read_bytes() == vault.sealed(NEW)
    slots.verify(MANIFEST)
    assert leaks(tmp_path, [content for content in vault.plain if content != OLD] if base == "sealed" else []) == []


def test_a_small_patch_comes_sealed_in_its_recipe_and_no_byte_of_it_is_written_plain(tmp_path: Path) -> None:
    vault, kept = Vault(), []

    class Watched(Slots):
        def keep(self, digest: bytes, suffix: str, data: bytes) -> None:
            kept.append(suffix)
            super().keep(digest, suffix, data)
            assert leaks(tmp_path, vault.plain) == [], "nor while it may be needed again"

    new = OLD[:500_000] + noise(8, 700) + OLD[500_700:]
    site(tmp_path, vault, base="sealed")
    way, manifest = vault.delta(OLD, new), manifest_of({"model.tflite": new})
    assert way.seal is not None and way.recipe is not None
    (blob,) = parse(vault.blobs[way.seal.sha256]).blobs
    assert blob.plain == way.recipe.sha256 and any(noise(8, 700)[100:600] in content for content in vault.plain)
    slots = Watched(tmp_path, NODE_KEY.open_box)
    assert fetch(Link(vault), slots, [way], vault.grant(), manifest) == (way,)
    slots.verify(manifest)
    assert kept == ["seal", "recipe"] and leaks(tmp_path, [*vault.plain, new[499_000:502_000]]) == []


def test_a_delta_that_only_copies_has_no_patch(tmp_path: Path) -> None:
    vault, new = Vault(), OLD[:1_000_000]
    slots, manifest = site(tmp_path, vault, base="sealed"), manifest_of({"model.tflite": new})
    way = vault.delta(OLD, new)
    assert fetch(Link(vault), slots, [way], vault.grant(), manifest) == (way,)
    slots.verify(manifest)


@pytest.mark.parametrize("kind", ["full", "delta"])
def test_wherever_it_is_killed_nothing_plain_is_left_and_what_came_is_found_again(tmp_path: Path, kind: str) -> None:
    vault, new = Vault(), NEW[400_000:700_000]
    manifest = manifest_of({"model.tflite": new})
    slots = site(tmp_path, vault, base="sealed")
    way = vault.full(new) if kind == "full" else vault.delta(OLD, new)
    link = Link(vault)
    kills = 0
    while True:
        link.left = link.chunks + (1 if kills < 5 else 3)
        try:
            fetch(link, slots, [way], vault.grant(), manifest)
            break
        except KilledError:
            kills += 1
        assert leaks(tmp_path / "incoming", vault.plain) == []
        slots = Slots(tmp_path, NODE_KEY.open_box)
        assert kills < 100
    assert kills >= 5
    slots.verify(manifest)
    assert leaks(tmp_path, vault.plain) == []
    undisturbed = Link(vault)
    fetch(undisturbed, site(tmp_path / "other", vault, base="sealed"), [way], vault.grant(), manifest)
    assert link.chunks == undisturbed.chunks, "nothing that verified was fetched again"


def test_only_ways_with_a_seal_lead_to_a_confidential_file(tmp_path: Path) -> None:
    vault = Vault()
    slots, file = site(tmp_path, vault, base="plain"), MANIFEST.files[0]
    sealed, delta = vault.full(NEW), vault.delta(OLD, NEW)
    plain = [Way(kind="full", blob=sha256(NEW), bytes=1), delta.model_copy(update={"seal": None})]
    assert usable_ways(slots, file, [sealed, *plain, delta], is_confidential=True) == [delta, sealed]
    assert usable_ways(slots, file, [sealed, delta, plain[0]]) == [plain[0]]
    with pytest.raises(IntegrityError, match=r"no way was offered that leads to model\.tflite sealed"):
        fetch(Link(vault), slots, plain, vault.grant())


def garbled(vault: Vault, way: Way, **changes: object) -> Way:
    """The way, by a seal in which that stands."""
    assert way.seal is not None
    document = encode(replace(parse(vault.blobs[way.seal.sha256]), **changes))  # type: ignore[arg-type]
    vault.blobs[sha256(document)] = document
    return way.model_copy(update={"seal": SealRef(length=len(document), sha256=sha256(document))})


def test_a_seal_or_a_grant_for_something_else_is_refused_clearly_and_leaves_nothing(tmp_path: Path) -> None:
    vault, other = Vault(), Vault(epoch=2)
    way = vault.full(NEW)
    assert way.seal is not None
    seal = parse(vault.blobs[way.seal.sha256])
    vault.blobs[sha256(b"no seal at all")] = b"no seal at all"
    nothing = way.model_copy(update={"seal": SealRef(length=14, sha256=sha256(b"no seal at all"))})
    longer = Seal(seal.model, seal.epoch, (replace(seal.blobs[0], plain_length=len(NEW) - 1),))
    for wrong, grant, why in (
        (way, None, "offered without a grant"),
        (way, vault.grant(PrivateKey.generate(b"o" * 32)), "doesn't open with key"),
        (way, other.grant(), "seal is of epoch 1 of digits, grant of 2"),
        (way, vault.grant().model_copy(update={"model": "letters"}), "grant of letters"),
        (nothing, vault.grant(), "not a zstd frame"),
        (garbled(vault, way, model="letters"), vault.grant(), "seal is of letters"),
        (garbled(vault, way, blobs=longer.blobs), vault.grant(), "seal says 1299999 bytes|seal says"),
        (garbled(vault, way, blobs=(replace(seal.blobs[0], plain=sha256(OLD)),)), vault.grant(), "no sealed blob of"),
    ):
        folder = tmp_path / sha256(repr((wrong, grant)).encode()).hex()[:8]
        slots = Slots(folder, NODE_KEY.open_box)
        with pytest.raises(IntegrityError, match=why):
            fetch(Link(vault), slots, [wrong], grant)
        assert files_of(folder) == []
        assert fetch(Link(vault), slots, [way], vault.grant()) == (way,), "the next offer is right"


def test_a_grant_of_another_key_than_the_bytes_were_sealed_by_spoils_the_file(tmp_path: Path) -> None:
    vault = Vault()
    wrong = Vault()
    wrong.epoch_key = noise(99, 32)
    way = vault.full(NEW)
    slots = site(tmp_path, vault)
    with pytest.raises(IntegrityError, match="doesn't open with this key"):
        fetch(Link(vault), slots, [way], wrong.grant())
    assert files_of(tmp_path) == []
    assert fetch(Link(vault), slots, [way], vault.grant()) == (way,)


def test_a_recipe_that_opens_to_another_than_the_offer_names_is_refused(tmp_path: Path) -> None:
    vault = Vault()
    slots, way = site(tmp_path, vault, base="sealed"), vault.delta(OLD, NEW)
    assert way.recipe is not None and way.seal is not None
    seal = parse(vault.blobs[way.seal.sha256])
    lie = garbled(vault, way, blobs=(replace(seal.blobs[1], plain=seal.blobs[0].plain), seal.blobs[1]))
    with pytest.raises(IntegrityError, match="seal says"):
        fetch(Link(vault), slots, [lie], vault.grant())
    other = seal_range(leaf_key(vault.epoch_key, seal.blobs[0].plain), 0, noise(7, way.recipe.length))
    digest, pages = describe(other)
    vault.blobs[digest] = other
    lie = garbled(vault, way, blobs=(replace(seal.blobs[0], sealed=digest, pages=pages), seal.blobs[1]))
    with pytest.raises(IntegrityError, match="opens to another one than the offer names"):
        fetch(Link(vault), slots, [lie], vault.grant())
    assert leaks(tmp_path, vault.plain) == []


def test_attack_by_a_grant_of_his_own_a_thief_of_key_recipes_leaves_no_copy_of_what_is_held(tmp_path: Path) -> None:
    """The copy is sealed by his key while it grows: what the manifest doesn't name is gone with the fetch."""
    held, directed = noise(5, 50_000), noise(6, 50_000)
    vault, thief, manifest = Vault(), Vault(epoch=9), manifest_of({"model.tflite": directed})
    slots = Slots(tmp_path, NODE_KEY.open_box)
    path = slots.path(sha256(held), "part")
    path.write_bytes(vault.sealed(held))
    slots.settle_sealed(manifest_of({"m": held}).files[0], path, vault.grant())
    names = Recipe(
        base=sha256(held),
        base_length=len(held),
        target=sha256(directed),
        target_length=len(held),
        patch_length=0,
        patch_sha256=sha256(b""),
        patch_pages=(),
        segments=tuple(  # of one alone the digest would have to be the target's
            Segment(25_000, COPY, ((at, 25_000),), (0, 0), short_digest(held[at : at + 25_000])) for at in (0, 25_000)
        ),
    )
    encoded = recipes.encode(names)
    seal, size = thief.seal(encoded)
    reference = RecipeRef(length=len(encoded), sha256=sha256(encoded))
    way = Way(kind="delta", blob=sha256(directed), bytes=size, base=sha256(held), recipe=reference, seal=seal)
    before = files_of(tmp_path)
    with pytest.raises(IntegrityError, match=r"opens to .*, expected"):
        fetch(Link(thief), slots, [way], thief.grant(), manifest)
    assert files_of(tmp_path) == before
    assert leaks(tmp_path, [seal_range(leaf_key(thief.epoch_key, sha256(directed)), 0, held)]) == []


def test_a_new_epoch_in_the_middle_of_a_fetch_begins_it_anew(tmp_path: Path) -> None:
    first, second = Vault(), Vault(epoch=2)
    slots, link = site(tmp_path, first), Link(first)
    link.left = 20
    with pytest.raises(KilledError):
        fetch(link, slots, [first.full(NEW)], first.grant())
    way = second.full(NEW)
    assert fetch(Link(second), slots, [way], second.grant()) == (way,)
    slots.verify(MANIFEST)
    assert leaks(tmp_path, first.plain) == []


def test_an_empty_file_of_a_confidential_release_needs_no_way(tmp_path: Path) -> None:
    vault = Vault()
    files = {"model.tflite": NEW, "labels.txt": b""}
    manifest = manifest_of(files)
    slots = site(tmp_path, vault)
    way = vault.full(NEW)
    assert fetch(Link(vault), slots, [way], vault.grant(), manifest) == (way,)
    slots.verify(manifest)

"""What stands on the disk: resumed by what verifies, whole or not at all, and nothing needed is removed."""

from pathlib import Path
from random import Random

import pytest

from heliograph.blob import LEAF_BYTES, PAGE_SPAN_BYTES, describe, page_of
from heliograph.delta.diff import make
from heliograph.documents import Chunk, Way
from heliograph.errors import IntegrityError
from heliograph.manifest import File, Golden, Manifest, Variant, manifest_digest
from heliograph.names import Digest
from heliograph.transfer import Arrival, BlobFetch
from heliograph_site.fetching import usable_ways
from heliograph_site.rebuilding import Rebuild
from heliograph_site.slots import PartialBlob, Slots

HANDLE = b"hndl"


def blob(seed: int, length: int) -> bytes:
    return Random(seed).randbytes(length)


def part_of(tmp_path: Path, content: bytes) -> PartialBlob:
    digest, pages = describe(content)
    fetch = BlobFetch(digest, len(content), pages, HANDLE)
    return PartialBlob(tmp_path / "x.part", tmp_path / "x.pages", fetch)


def give_page(part: PartialBlob, content: bytes, index: int) -> None:
    page = page_of(content[index * PAGE_SPAN_BYTES : (index + 1) * PAGE_SPAN_BYTES])
    part.take(Arrival(part.fetch, part.fetch.accept(Chunk(handle=HANDLE, page=index, bytes=page))))


def give(part: PartialBlob, content: bytes, leaf: int, count: int = 4) -> None:
    data = content[leaf * LEAF_BYTES : (leaf + count) * LEAF_BYTES]
    part.take(Arrival(part.fetch, part.fetch.accept(Chunk(handle=HANDLE, offset=leaf * LEAF_BYTES, bytes=data))))


def manifest_of(files: dict[str, bytes], version: str = "1.0.0") -> Manifest:
    rows = []
    for name, content in files.items():
        digest, pages = describe(content)
        rows.append(File(name=name, length=len(content), sha256=digest, pages=pages))
    first = next(iter(files))
    return Manifest(
        model="digits",
        version=version,
        files=tuple(rows),
        variants=(Variant(name="plain", files=(first,)),),
        golden=Golden(inputs=first, outputs=first),
    )


def put(slots: Slots, manifest: Manifest, files: dict[str, bytes]) -> Digest:
    for content in files.values():
        slots.store.put(content)
    slots.store.put(manifest.encode())
    return manifest_digest(manifest)


def test_what_was_written_before_a_kill_is_held_after_it(tmp_path: Path) -> None:
    content = blob(1, PAGE_SPAN_BYTES + 50_000)
    part = part_of(tmp_path, content)
    assert part.open() == 0
    give_page(part, content, 0)
    give(part, content, 0)
    give(part, content, 8)
    again = part_of(tmp_path, content)  # the first is not closed: it was killed
    assert again.open() == 8
    assert again.fetch.has_range(8 * LEAF_BYTES, 4 * LEAF_BYTES) and not again.fetch.has_range(4 * LEAF_BYTES, 1)


def test_bytes_that_rotted_on_the_disk_are_fetched_again(tmp_path: Path) -> None:
    content = blob(2, 100_000)
    part = part_of(tmp_path, content)
    part.open()
    give_page(part, content, 0)
    give(part, content, 0)
    part.close()
    data = bytearray((tmp_path / "x.part").read_bytes())
    data[LEAF_BYTES + 7] ^= 1
    (tmp_path / "x.part").write_bytes(data)
    again = part_of(tmp_path, content)
    assert again.open() == 3
    assert next(again.fetch.missing()) == 1


def test_a_torn_page_is_forgotten_and_the_next_one_is_read_back(tmp_path: Path) -> None:
    content = blob(3, 2 * PAGE_SPAN_BYTES + 10_000)
    part = part_of(tmp_path, content)
    part.open()
    for index in (0, 1):
        give_page(part, content, index)
    part.close()
    pages = tmp_path / "x.pages"
    pages.write_bytes(pages.read_bytes()[:-100])
    torn = part_of(tmp_path, content)
    torn.open()
    assert torn.fetch.has_page(0) and not torn.fetch.has_page(1)
    give_page(torn, content, 2)
    torn.close()
    again = part_of(tmp_path, content)
    again.open()
    assert again.fetch.has_page(0) and again.fetch.has_page(2) and not again.fetch.has_page(1)


def test_segments_are_rebuilt_as_their_patch_arrives_and_found_again_after_a_kill(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    old = blob(4, 1_500_000)
    new = old[:700_000] + blob(5, 20_000) + old[720_000:] + blob(6, 300_000)
    recipe, patch = make(old, new)
    slots.store.put(old)
    part = part_of(tmp_path, patch)
    part.open()
    path = slots.path(recipe.target, "out")
    rebuild = Rebuild(path, recipe, slots.holdings)
    rebuild.open()
    first = rebuild.ready(part)
    assert 0 < len(first) < len(recipe.segments), "copies are ready at once, the rest waits for the patch"
    for index in first:
        rebuild.make(index, part)
    killed = Rebuild(path, recipe, slots.holdings)
    killed.open()
    assert not set(killed.ready(part)) & set(first)
    give_page(part, patch, 0)
    for leaf in range(0, -(-len(patch) // LEAF_BYTES), 4):
        give(part, patch, leaf)
    for index in killed.ready(part):
        killed.make(index, part)
    assert killed.is_complete
    killed.close()
    slots.settle(recipe.target, path)
    assert slots.store.read(recipe.target) == new
    assert list(slots.incoming.iterdir()) == []


def test_a_rotten_base_spoils_the_segment_instead_of_the_result(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    old = blob(7, 500_000)
    recipe, _ = make(old, old + blob(9, 50_000))
    digest = slots.store.put(old)
    slots.store.path(digest).write_bytes(blob(8, 500_000))
    rebuild = Rebuild(slots.path(recipe.target, "out"), recipe, slots.holdings)
    rebuild.open()
    ready = [index for index in rebuild.ready(None) if recipe.segments[index].patch[1] == 0]
    assert ready, "the delta copies most of the base"
    with pytest.raises(IntegrityError, match="does not match its digest"):
        rebuild.make(ready[0], None)


def test_a_finished_file_of_other_content_never_enters_the_store(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    target = describe(b"right")[0]
    path = slots.path(target, "part")
    path.write_bytes(b"wrong")
    slots.path(target, "pages").write_bytes(b"")
    with pytest.raises(IntegrityError):
        slots.settle(target, path)
    assert not slots.store.has(target)
    assert list(slots.incoming.iterdir()) == []


def test_whole_images_are_read_back_and_what_has_rotted_is_missing_again(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    files = {"model.tflite": blob(9, 50_000), "labels.txt": b"a\nb\n"}
    manifest = manifest_of(files)
    release = put(slots, manifest, files)
    assert slots.missing(manifest) == [] and slots.holds(release)
    slots.verify(manifest)
    slots.store.path(Digest(manifest.files[0].sha256)).write_bytes(blob(10, 50_000))
    with pytest.raises(IntegrityError, match=r"model\.tflite of digits@1\.0\.0 is not what its digest says"):
        slots.verify(manifest)
    assert [file.name for file in slots.missing(manifest)] == ["model.tflite"]


def test_only_what_no_release_needs_is_removed(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    shared = b"labels"
    old = {"model.tflite": blob(11, 9000), "labels.txt": shared}
    new = {"model.tflite": blob(12, 9000), "labels.txt": shared}
    first, second = manifest_of(old), manifest_of(new, "1.1.0")
    kept, gone = put(slots, first, old), put(slots, second, new)
    half_kept, half_gone = slots.path(first.files[0].sha256, "part"), slots.path(second.files[0].sha256, "part")
    half_kept.write_bytes(b"")
    half_gone.write_bytes(b"")
    assert slots.collect([kept]) == 3
    assert slots.holds(kept) and not slots.holds(gone)
    assert half_kept.exists() and not half_gone.exists()
    assert slots.bases([kept]) == tuple(file.sha256 for file in first.files)


def test_files_of_a_release_whose_manifest_has_rotted_are_kept(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    files = {"model.tflite": blob(13, 9000)}
    active = put(slots, manifest_of(files), files)
    litter = slots.store.put(b"of no release")
    slots.store.path(active).write_bytes(b"rotten")
    for _ in range(2):  # the first look moves what has rotted away
        assert slots.collect([active]) == 0
    assert slots.missing(manifest_of(files)) == [] and slots.store.has(litter)
    assert slots.collect([], [active]) == 2, "what is only coming has no files yet"


def test_a_release_that_is_larger_than_the_disk_lacks_bytes(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    small = manifest_of({"model.tflite": b"small"})
    assert slots.lacking_bytes(small) == 0
    huge = slots.free_bytes()
    digest, _ = describe(b"")
    pages = (bytes(16),) * -(-huge // PAGE_SPAN_BYTES)
    file = File.model_construct(name="model.tflite", length=huge, sha256=digest, pages=pages)
    assert slots.lacking_bytes(small.model_copy(update={"files": (file,)})) > huge // 2


def test_the_cheapest_way_that_can_be_gone_comes_first(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    base = slots.store.put(b"base")
    file = manifest_of({"model.tflite": b"new content"}).files[0]
    recipe = {"length": 10, "sha256": bytes(32)}
    full = Way(kind="full", blob=file.sha256, bytes=900)
    near = Way.model_validate({"kind": "delta", "blob": file.sha256, "bytes": 50, "base": base, "recipe": recipe})
    nowhere = near.model_copy(update={"base": bytes(32), "bytes": 1})
    other = full.model_copy(update={"blob": bytes(32), "bytes": 1})
    relay = full.model_copy(update={"kind": "relay", "bytes": 1})
    assert usable_ways(slots, file, [full, nowhere, other, relay, near]) == [near, full]

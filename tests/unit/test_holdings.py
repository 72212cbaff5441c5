"""Files on a node's disk, plain or sealed: found by their plain digest, opened in memory only, gone when rotten."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from heliograph.blob import LEAF_BYTES, sha256
from heliograph.errors import IntegrityError, NotFoundError
from heliograph.manifest import manifest_digest
from heliograph.names import Digest
from heliograph.objects import ObjectStore
from heliograph.sealing import leaf_key, seal_range
from heliograph.signing import PrivateKey
from heliograph.wire import pack
from heliograph_site.holdings import MAX_SIDECAR_BYTES, Holdings, Sidecar, check_sealed
from heliograph_site.slots import Slots
from sealed import NODE_KEY, Vault, leaks, manifest_of, noise

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "sidecar.msgpack"
SIDECAR = Sidecar("digits", 3, bytes(range(80)), 700, Digest(bytes([2]) * 32))
MODEL, LABELS = noise(1, 300_000), noise(2, 5000)
FILES = {"model.tflite": MODEL, "labels.txt": LABELS}
OTHER_KEY = PrivateKey.generate(b"o" * 32)


def settle(slots: Slots, vault: Vault, content: bytes, key: PrivateKey = NODE_KEY) -> None:
    """As a fetch ends."""
    path = slots.path(sha256(content), "part")
    path.write_bytes(vault.sealed(content))
    file = manifest_of({"m": content}).files[0]
    slots.settle_sealed(file, path, vault.grant(key), sha256(vault.sealed(content)))


def release(slots: Slots, vault: Vault, files: dict[str, bytes] = FILES, version: str = "1.0.0") -> Digest:
    manifest = manifest_of(files, version)
    for content in files.values():
        settle(slots, vault, content)
    return slots.store.put(manifest.encode())


def sealed_path(slots: Slots, vault: Vault, content: bytes) -> Path:
    return slots.store.path(sha256(vault.sealed(content)))


def test_the_bytes_of_a_sidecar_are_for_ever() -> None:
    assert SIDECAR.encode() == GOLDEN.read_bytes()
    assert Sidecar.parse(GOLDEN.read_bytes()) == SIDECAR


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pack([2, b"digits", 3, bytes(80), 700, bytes(32)]),
        pack([1, b"digits", 3, bytes(80), 700]),
        pack([1, b"digits", 0, bytes(80), 700, bytes(32)]),
        pack([1, b"digits", 3, bytes(79), 700, bytes(32)]),
        pack([1, b"\xff", 3, bytes(80), 700, bytes(32)]),
        pack([1, b"digits", 3, bytes(80), -1, bytes(32)]),
        pack([1, b"digits", 3, bytes(80), 700, bytes(31)]),
        SIDECAR.encode() + b"\0",
        bytes(MAX_SIDECAR_BYTES + 1),
    ],
)
def test_what_is_no_sidecar_of_this_version_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Sidecar.parse(data)


def test_a_confidential_release_is_held_whole_and_nothing_of_it_is_readable(tmp_path: Path) -> None:
    slots, vault = Slots(tmp_path, NODE_KEY.open_box), Vault()
    digest = release(slots, vault)
    manifest = manifest_of(FILES)
    assert slots.holds(digest) and slots.missing(manifest) == []
    slots.verify(manifest)
    assert slots.bases([digest]) == tuple(file.sha256 for file in manifest.files)
    assert slots.holdings.read(sha256(LABELS)) == LABELS
    assert slots.lacking_bytes(manifest) == 0
    assert leaks(tmp_path, FILES.values()) == []
    assert [*slots.incoming.iterdir()] == []
    sidecar = tmp_path / "seals" / sha256(MODEL).hex()
    assert stat.S_IMODE(sidecar.stat().st_mode) == 0o600
    assert vault.epoch_key not in sidecar.read_bytes()
    again = Slots(tmp_path, NODE_KEY.open_box)
    assert again.holds(digest)
    again.verify(manifest)


def test_the_scan_for_leaks_finds_one(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"head" + MODEL[1001:1033])
    assert leaks(tmp_path, [MODEL]) == ["x"]


def test_ranges_are_read_through_the_leaves_they_lie_in(tmp_path: Path) -> None:
    slots = Slots(tmp_path, NODE_KEY.open_box)
    settle(slots, Vault(), MODEL)
    held = slots.holdings.find(sha256(MODEL))
    assert held is not None and held.length == len(MODEL)
    assert repr(held.key.hex()) not in repr(held) and "key" not in repr(held.open())
    source = held.open()
    for offset, length in ((0, 1), (4079, 2), (0, len(MODEL)), (299_999, 1), (4080, 4080), (100, 0)):
        assert source.read(offset, length) == MODEL[offset : offset + length]
    with pytest.raises(IntegrityError):
        source.read(299_999, 2)
    os.close(source.fd)


@pytest.mark.parametrize("at", [0, LEAF_BYTES * 5 + 100, -1])
def test_a_sealed_file_that_rotted_is_absent_once_it_is_found_out(tmp_path: Path, at: int) -> None:
    slots, vault = Slots(tmp_path, NODE_KEY.open_box), Vault()
    release(slots, vault)
    path = sealed_path(slots, vault, MODEL)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.tflite of digits@1\.0\.0 is not what its digest says"):
        slots.verify(manifest_of(FILES))
    assert [file.name for file in slots.missing(manifest_of(FILES))] == ["model.tflite"]
    assert not path.exists()


def test_a_small_file_that_rotted_is_not_read(tmp_path: Path) -> None:
    slots, vault = Slots(tmp_path, NODE_KEY.open_box), Vault()
    settle(slots, vault, LABELS)
    sealed_path(slots, vault, LABELS).write_bytes(vault.sealed(noise(3, 5000)))
    with pytest.raises(IntegrityError, match="rotted"):
        slots.holdings.read(sha256(LABELS))
    with pytest.raises(NotFoundError):
        slots.holdings.read(sha256(LABELS))


def test_a_sidecar_that_names_another_file_is_found_out_and_its_object_is_kept(tmp_path: Path) -> None:
    slots, vault = Slots(tmp_path, NODE_KEY.open_box), Vault()
    release(slots, vault)
    seals = tmp_path / "seals"
    (seals / sha256(MODEL).hex()).write_bytes((seals / sha256(LABELS).hex()).read_bytes())
    with pytest.raises(IntegrityError):
        slots.verify(manifest_of(FILES))
    assert [file.name for file in slots.missing(manifest_of(FILES))] == ["model.tflite"]
    assert slots.holdings.read(sha256(LABELS)) == LABELS


@pytest.mark.parametrize("data", [b"", b"garbage", bytes(MAX_SIDECAR_BYTES + 1)])
def test_a_garbled_sidecar_counts_as_absent_and_goes(tmp_path: Path, data: bytes) -> None:
    slots, vault = Slots(tmp_path, NODE_KEY.open_box), Vault()
    digest = release(slots, vault)
    (tmp_path / "seals" / sha256(MODEL).hex()).write_bytes(data)
    assert [file.name for file in slots.missing(manifest_of(FILES))] == ["model.tflite"]
    assert slots.collect([digest]) == 2, "the sidecar, and the sealed blob that nothing names"
    settle(slots, vault, MODEL)
    assert slots.holds(digest)


def test_only_what_no_release_needs_is_removed(tmp_path: Path) -> None:
    slots, vault = Slots(tmp_path, NODE_KEY.open_box), Vault()
    kept = release(slots, vault)
    gone = release(slots, vault, {"model.tflite": noise(4, 9000), "labels.txt": LABELS}, "1.1.0")
    assert slots.collect([kept]) == 3, "manifest, sealed blob and sidecar"
    assert slots.holds(kept) and not slots.holds(gone)
    assert sorted(path.name for path in (tmp_path / "seals").iterdir()) == sorted(
        sha256(content).hex() for content in FILES.values()
    )


def test_with_another_key_nothing_is_held_and_all_is_fetched_again(tmp_path: Path) -> None:
    vault = Vault()
    digest = release(Slots(tmp_path, NODE_KEY.open_box), vault)
    slots = Slots(tmp_path, OTHER_KEY.open_box)
    manifest = manifest_of(FILES)
    assert [file.name for file in slots.missing(manifest)] == ["model.tflite", "labels.txt"]
    assert slots.bases([digest]) == () and not slots.holds(digest)
    with pytest.raises(IntegrityError):
        slots.verify(manifest)
    slots.collect([digest])
    assert [*slots.store.list()] == [digest], "what can't be opened is gone"
    for content in FILES.values():
        settle(slots, vault, content, OTHER_KEY)
    slots.verify(manifest)
    assert slots.holds(digest)


def test_a_grant_for_another_node_spoils_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    slots, vault = Slots(tmp_path, NODE_KEY.open_box), Vault()
    with pytest.raises(IntegrityError, match="doesn't open with key"):
        settle(slots, vault, LABELS, OTHER_KEY)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("sealed", "why"),
    [
        (Vault().sealed(noise(9, 5000)), "doesn't open with this key"),
        (Vault(epoch=2).sealed(LABELS), "doesn't open with this key"),
        (seal_range(leaf_key(Vault().epoch_key, sha256(LABELS)), 0, noise(9, 5000)), "opens to"),
        (LABELS, "another length"),
        (Vault().sealed(LABELS)[:-1], "another length"),
    ],
)
def test_what_is_not_the_sealed_blob_of_the_file_never_enters_the_store(
    tmp_path: Path, sealed: bytes, why: str
) -> None:
    slots, vault = Slots(tmp_path, NODE_KEY.open_box), Vault()
    path = slots.path(sha256(LABELS), "out")
    path.write_bytes(sealed)
    with pytest.raises(IntegrityError, match=why):
        slots.settle_sealed(manifest_of({"m": LABELS}).files[0], path, vault.grant())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_digest_that_the_seal_did_not_promise_is_refused(tmp_path: Path) -> None:
    slots, vault = Slots(tmp_path, NODE_KEY.open_box), Vault()
    path = slots.path(sha256(LABELS), "part")
    path.write_bytes(vault.sealed(LABELS))
    with pytest.raises(IntegrityError, match="expected " + "00" * 32):
        slots.settle_sealed(manifest_of({"m": LABELS}).files[0], path, vault.grant(), Digest(bytes(32)))
    assert not slots.holdings.has(sha256(LABELS))


class Killed(BaseException):
    """The process ends here."""


class Dying(ObjectStore):
    """A store whose process is killed beside one rename."""

    def __init__(self, root: Path, *, is_before: bool) -> None:
        super().__init__(root)
        self._is_before = is_before

    def adopt(self, path: Path, digest: Digest) -> None:
        if not self._is_before:
            super().adopt(path, digest)
        raise Killed


@pytest.mark.parametrize("is_before", [True, False])
def test_a_kill_between_sidecar_and_object_costs_nothing(tmp_path: Path, is_before: bool) -> None:
    vault, manifest = Vault(), manifest_of({"m": MODEL})
    slots = Slots(tmp_path, NODE_KEY.open_box)
    digest = slots.store.put(manifest.encode())
    slots.holdings.store = Dying(tmp_path / "objects", is_before=is_before)
    with pytest.raises(Killed):
        settle(slots, vault, MODEL)
    again = Slots(tmp_path, NODE_KEY.open_box)
    assert again.holds(digest) is not is_before
    again.collect([digest])
    assert leaks(tmp_path, [MODEL]) == []
    if is_before:
        path = again.path(sha256(MODEL), "part")
        assert path.read_bytes() == vault.sealed(MODEL), "all that came is there still"
        again.settle_sealed(manifest.files[0], path, vault.grant())
    again.verify(manifest)
    assert again.holds(digest)


def test_a_public_release_and_a_confidential_one_may_share_a_file(tmp_path: Path) -> None:
    slots, vault = Slots(tmp_path, NODE_KEY.open_box), Vault()
    confidential = release(slots, vault)
    files = {"model.tflite": noise(5, 9000), "labels.txt": LABELS}
    public = manifest_of(files, "2.0.0", is_confidential=False)
    assert [file.name for file in slots.missing(public)] == ["model.tflite"], "it is held, sealed"
    slots.store.put(files["model.tflite"])
    digest = slots.store.put(public.encode())
    slots.verify(public)
    assert slots.collect([digest]) == 3, "manifest, model and its sidecar of the confidential release"
    slots.verify(public)
    assert slots.holds(digest) and not slots.holds(confidential)
    settle(slots, vault, MODEL)
    slots.store.put(LABELS)
    assert slots.missing(manifest_of(FILES)) == [], "in either form"


def test_a_file_that_is_held_plain_serves_a_confidential_release_too(tmp_path: Path) -> None:
    slots = Slots(tmp_path, NODE_KEY.open_box)
    slots.store.put(LABELS)
    assert slots.missing(manifest_of({"labels.txt": LABELS})) == []
    slots.verify(manifest_of({"labels.txt": LABELS}))


def test_without_the_key_nothing_sealed_is_held(tmp_path: Path) -> None:
    digest = release(Slots(tmp_path, NODE_KEY.open_box), Vault())
    assert not Slots(tmp_path).holds(digest)
    assert Slots(tmp_path).manifest(digest) == manifest_of(FILES)


def test_a_box_is_opened_once_and_again_when_its_sidecar_changed(tmp_path: Path) -> None:
    boxes: list[bytes] = []

    def open_box(box: bytes) -> bytes:
        boxes.append(box)
        return NODE_KEY.open_box(box)

    settle(Slots(tmp_path, NODE_KEY.open_box), Vault(), LABELS)
    holdings = Holdings(tmp_path, open_box)
    for _ in range(5):
        assert holdings.has(sha256(LABELS))
    assert len(boxes) == 1
    (tmp_path / "seals" / sha256(LABELS).hex()).unlink()
    assert not holdings.has(sha256(LABELS))
    settle(Slots(tmp_path, NODE_KEY.open_box), Vault(), LABELS)
    assert holdings.has(sha256(LABELS)) and len(boxes) == 2
    second = Vault(epoch=2)
    settle(Slots(tmp_path, NODE_KEY.open_box), second, LABELS)
    held = holdings.find(sha256(LABELS))
    assert held is not None and held.path.name == sha256(second.sealed(LABELS)).hex()


def test_a_full_disk_leaves_what_came(tmp_path: Path) -> None:
    slots, vault = Slots(tmp_path, NODE_KEY.open_box), Vault()
    path = slots.path(sha256(LABELS), "part")
    path.write_bytes(vault.sealed(LABELS))
    (tmp_path / "seals").write_bytes(b"a file, where the folder of sidecars should be")
    with pytest.raises(OSError):
        slots.settle_sealed(manifest_of({"m": LABELS}).files[0], path, vault.grant())
    assert path.read_bytes() == vault.sealed(LABELS)


def test_the_check_of_a_sealed_blob_gives_its_own_digest(tmp_path: Path) -> None:
    slots, vault = Slots(tmp_path, NODE_KEY.open_box), Vault()
    settle(slots, vault, MODEL)
    held = slots.holdings.find(sha256(MODEL))
    assert held is not None
    assert check_sealed(held, sha256(MODEL)) == sha256(vault.sealed(MODEL))


def test_collecting_leaves_a_sidecar_that_is_being_written(tmp_path: Path) -> None:
    slots, vault = Slots(tmp_path, NODE_KEY.open_box), Vault()
    digest = release(slots, vault)
    being_written = tmp_path / "seals" / ".0123456789abcdef.part"
    being_written.write_bytes(b"half")
    slots.collect([digest])
    assert being_written.exists() and slots.holds(digest)


def test_what_a_power_cut_left_half_written_goes_and_nothing_else(tmp_path: Path) -> None:
    slots, vault = Slots(tmp_path, NODE_KEY.open_box), Vault()
    digest = release(slots, vault)
    held = {path for path in tmp_path.rglob("*") if path.is_file()}
    for folder in ("seals", "objects", f"objects/{digest.hex()[:2]}"):
        (tmp_path / folder / ".0123456789abcdef.part").write_bytes(b"half")
    slots.holdings.clean()
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == held and slots.holds(digest)


class Busy(ObjectStore):
    """A store that takes what another thread has ready whenever its objects are listed."""

    def __init__(self, root: Path, work: Callable[[], None]) -> None:
        super().__init__(root)
        self.work = work

    def list(self) -> Iterator[Digest]:
        self.work()
        return super().list()


def test_what_another_thread_takes_while_the_rest_is_collected_stays(tmp_path: Path) -> None:
    slots, vault = Slots(tmp_path, NODE_KEY.open_box), Vault()
    digest = slots.store.put(manifest_of(FILES).encode())

    def arrive() -> None:
        for content in FILES.values():
            settle(slots, vault, content)

    slots.holdings.store = Busy(slots.store.root, arrive)
    slots.collect([digest])
    assert slots.holds(digest)


def test_a_manifest_is_found_where_files_are(tmp_path: Path) -> None:
    slots = Slots(tmp_path, NODE_KEY.open_box)
    digest = release(slots, Vault())
    assert slots.holdings.read(digest) == manifest_of(FILES).encode()
    assert manifest_digest(manifest_of(FILES)) == digest


@pytest.mark.parametrize("where", ["seals", "objects"])
def test_any_flipped_bit_gives_the_right_bytes_or_none(tmp_path: Path, where: str) -> None:
    vault, content = Vault(), noise(6, 40)
    settle(Slots(tmp_path, NODE_KEY.open_box), vault, content)
    path = next(path for path in (tmp_path / where).rglob("*") if path.is_file())
    sidecar = tmp_path / "seals" / sha256(content).hex()
    right, kept = path.read_bytes(), sidecar.read_bytes()
    for bit in range(8 * len(right)):
        data = bytearray(right)
        data[bit // 8] ^= 1 << bit % 8
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        if where == "objects":
            sidecar.write_bytes(kept)
        try:
            assert Holdings(tmp_path, NODE_KEY.open_box).read(sha256(content)) == content
            assert where == "seals", "what it calls its model and epoch opens nothing"
        except (IntegrityError, NotFoundError):
            assert not Holdings(tmp_path, NODE_KEY.open_box).has(sha256(content))

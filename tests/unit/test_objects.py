"""The object store: whole or absent, verified when read, nothing left of what failed."""

import hashlib
from pathlib import Path

import pytest

from heliograph.errors import IntegrityError, NotFoundError
from heliograph.names import Digest
from heliograph.objects import ObjectStore, digest_of_file, replacing, write_durably

DATA = b"weights" * 1000
ABSENT = Digest(bytes(32))


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "objects")


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_is_put_is_found_by_its_digest_and_reads_back(store: ObjectStore) -> None:
    digest = store.put(DATA)
    assert digest == hashlib.sha256(DATA).digest()
    assert store.has(digest)
    assert store.size(digest) == len(DATA)
    assert store.read(digest) == DATA
    assert store.path(digest) == store.root / digest.hex()[:2] / digest.hex()


def test_a_file_is_stored_under_the_same_name_as_its_bytes(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "big"
    source.write_bytes(DATA * 400)
    digest = store.put_file(source)
    assert digest == store.put(DATA * 400) == digest_of_file(source)
    assert store.read(digest) == source.read_bytes()
    assert files_in(store.root) == [f"{digest.hex()[:2]}/{digest.hex()}"]


def test_putting_twice_keeps_one_object_and_leaves_no_temporary_file(store: ObjectStore, tmp_path: Path) -> None:
    digest = store.put(DATA)
    before = store.path(digest).stat().st_ino
    (tmp_path / "copy").write_bytes(DATA)
    assert store.put(DATA) == store.put_file(tmp_path / "copy") == digest
    assert store.path(digest).stat().st_ino == before
    assert files_in(store.root) == [f"{digest.hex()[:2]}/{digest.hex()}"]


def test_an_object_that_rotted_is_refused_moved_away_and_can_be_stored_again(store: ObjectStore) -> None:
    digest = store.put(DATA)
    store.path(digest).write_bytes(b"W" + DATA[1:])
    with pytest.raises(IntegrityError, match="rotted"):
        store.read(digest)
    assert not store.has(digest)
    assert list(store.list()) == []
    assert files_in(store.root) == [f"rotten/{digest.hex()}"]
    store.put(DATA)
    assert store.read(digest) == DATA


def test_an_object_cut_short_on_disk_is_written_anew_by_the_next_put(store: ObjectStore) -> None:
    digest = store.put(DATA)
    store.path(digest).write_bytes(DATA[:10])
    store.put(DATA)
    assert store.read(digest) == DATA


def test_verify_tells_whole_from_rotten_and_absent(store: ObjectStore) -> None:
    digest = store.put(DATA)
    assert store.verify(digest)
    store.path(digest).write_bytes(DATA + b"!")
    assert not store.verify(digest)
    assert not store.has(digest)
    assert not store.verify(ABSENT)


def test_what_is_not_held_is_named_in_the_error(store: ObjectStore) -> None:
    for ask in (store.read, store.path, store.size, lambda digest: store.read_range(digest, 0, 1)):
        with pytest.raises(NotFoundError, match=ABSENT.hex()):
            ask(ABSENT)


def test_a_finished_file_is_adopted_by_rename(store: ObjectStore, tmp_path: Path) -> None:
    part = tmp_path / "x.part"
    part.write_bytes(DATA)
    inode = part.stat().st_ino
    digest = Digest(hashlib.sha256(DATA).digest())
    store.adopt(part, digest)
    assert not part.exists()
    assert store.path(digest).stat().st_ino == inode
    assert store.read(digest) == DATA


def test_a_file_with_other_content_than_named_is_not_adopted_and_not_kept(store: ObjectStore, tmp_path: Path) -> None:
    part = tmp_path / "x.part"
    part.write_bytes(DATA)
    with pytest.raises(IntegrityError):
        store.adopt(part, ABSENT)
    assert not part.exists()
    assert files_in(store.root) == []


def test_a_range_is_exact_or_an_error(store: ObjectStore) -> None:
    digest = store.put(DATA)
    assert store.read_range(digest, 5, 9) == DATA[5:14]
    assert store.read_range(digest, len(DATA), 0) == b""
    with pytest.raises(IntegrityError):
        store.read_range(digest, len(DATA) - 3, 4)


def test_the_list_has_every_object_once_in_order_and_nothing_else(store: ObjectStore) -> None:
    digests = [store.put(bytes([n])) for n in range(20)]
    (store.root / "ab").mkdir(exist_ok=True)
    (store.root / "ab" / ".0123.part").write_bytes(b"cut by a power failure")
    (store.root / "rotten").mkdir()
    (store.root / "rotten" / ("f" * 64)).write_bytes(b"")
    assert list(store.list()) == sorted(digests)
    store.delete(digests[0])
    store.delete(ABSENT)
    assert list(store.list()) == sorted(digests[1:])


def test_cleaning_removes_temporary_files_and_keeps_objects(store: ObjectStore) -> None:
    digest = store.put(DATA)
    (store.root / ".0123.part").write_bytes(b"x")
    (store.path(digest).parent / ".4567.part").write_bytes(b"x")
    store.clean()
    assert files_in(store.root) == [f"{digest.hex()[:2]}/{digest.hex()}"]


def test_a_durable_write_replaces_the_file_and_sets_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    write_durably(path, b"old")
    write_durably(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert files_in(tmp_path) == ["node.key"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, IntegrityError])
def test_a_replacement_that_is_interrupted_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_and_fail() -> None:
        with replacing(path) as file:
            file.write(b"new")
            file.flush()
            raise interruption

    with pytest.raises(interruption):
        write_and_fail()
    assert path.read_bytes() == b"old"
    assert files_in(tmp_path) == ["file"]

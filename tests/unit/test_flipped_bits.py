"""Every bit of every stored object, row and message, flipped: refused, or nothing changes; nothing else is believed.

CI flips some hundred bits of each, drawn from the seed; `scripts/test --full` flips all.
"""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

import realms
from golden import MANIFEST, REPORTED
from heliograph import deny, documents, trust, vouching
from heliograph.blob import describe, page_of, sha256
from heliograph.delta import diff, recipe
from heliograph.documents import Chunk, Denials
from heliograph.errors import IntegrityError, TrustError
from heliograph.manifest import Manifest
from heliograph.names import Digest
from heliograph.objects import ObjectStore
from heliograph.protocol import topic
from heliograph.signing import PrivateKey, sign_statement
from heliograph.transfer import BlobFetch

CI_BITS = 300
NOW = realms.NOW
REALM = realms.Realm(11)
RELEASE = REALM.list_release("1.0.0", b"manifest")
HELD = trust.with_set(REALM.bootstrap(), REALM.publish().pack(), NOW)
REALM.list_release("1.1.0", b"another")
NEXT = REALM.publish()
ROOT = REALM.rotate("timestamp")
DENIAL = REALM.sign("deny", "deny", documents.Deny(realm=REALM.name, releases=(RELEASE,), reason="no", at=NOW))
LIST = documents.DenyAll(statements=(DENIAL,)).encode()
DIRECTIVE = REALM.sign("ring-canary", "directive", REALM.directive(RELEASE))
NODE_KEY = PrivateKey.generate(b"n" * 32)
TOLD = sign_statement("reported", REPORTED.encode(), [NODE_KEY])
NAMES = {"site": REPORTED.site, "node": REPORTED.node}
CONTENT = Random(3).randbytes(9000)
BLOB, PAGES = describe(CONTENT)
STATE = trust.state_to_bytes(HELD)
DENIED = deny.DenySet().with_statement(DENIAL, HELD).to_bytes()


def denies(data: bytes) -> object:
    """What a spoilt list denies for sure: nothing, or what the good one did."""
    found = deny.DenySet().with_list(data, HELD, Denials())
    return found.is_denied(RELEASE) is not None or None


def chunk(data: bytes) -> object:
    fetch = BlobFetch(Digest(BLOB), len(CONTENT), PAGES, b"hndl")
    fetch.accept(Chunk(handle=b"hndl", page=0, bytes=page_of(CONTENT)))
    return fetch.accept(Chunk(handle=b"hndl", offset=4096, bytes=data))


def kept(data: bytes) -> object:
    return trust.state_to_bytes(trust.state_from_bytes(data))


OLD = Random(4).randbytes(20_000)
RECIPE = recipe.encode(diff.make(OLD, OLD[:9000] + b"!" * 500 + OLD[9000:])[0])

# What reads it, and what came. Equal to what the good bytes gave is as good as refused.
READERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "set": (lambda data: trust.state_to_bytes(trust.with_set(HELD, data, NOW)), NEXT.pack()),
    "head": (lambda data: trust.with_head(HELD, data, NOW), NEXT.timestamp),
    "root": (lambda data: trust.with_root(HELD, data).versions, ROOT),
    "directive": (lambda data: vouching.admit(HELD, data, "canary", NOW), DIRECTIVE),
    "denials": (denies, LIST),
    "what a node says": (
        lambda data: vouching.open_own(
            data, topic("reported"), NAMES, realm=REPORTED.realm, public_key=NODE_KEY.public.raw
        ),
        TOLD,
    ),
    "manifest": (lambda data: Manifest.parse(data, sha256(MANIFEST.encode()), len(data)), MANIFEST.encode()),
    "leaves": (chunk, CONTENT[4096:]),
    "stored trust": (kept, STATE),
    "stored denials": (lambda data: deny.DenySet.from_bytes(data).to_bytes(), DENIED),
}


def bits_of(name: str, data: bytes, seed: int, *, all_of_them: bool) -> list[int]:
    every = range(8 * len(data))
    return list(every) if all_of_them else sorted(Random(f"{seed} {name}").sample(every, min(CI_BITS, len(every))))


def flip_and_read(name: str, seed: int, *, all_of_them: bool) -> int:
    read, data = READERS[name]
    good = read(data)
    refused = 0
    for bit in bits_of(name, data, seed, all_of_them=all_of_them):
        spoilt = bytearray(data)
        spoilt[bit // 8] ^= 1 << bit % 8
        try:
            got = read(bytes(spoilt))
        except (TrustError, IntegrityError):
            refused += 1
            continue
        assert got == good or got is None, f"{name}: bit {bit} makes another thing of it"
    return refused


@pytest.mark.parametrize("name", READERS)
def test_some_bits_flipped_make_nothing_else_of_it(name: str, seed: int) -> None:
    assert flip_and_read(name, seed, all_of_them=False) > 0


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", READERS)
def test_every_bit_flipped_makes_nothing_else_of_it(name: str, seed: int) -> None:
    assert flip_and_read(name, seed, all_of_them=True) > 0


def test_every_bit_of_a_stored_object_flipped_is_seen_when_it_is_read(tmp_path: Path) -> None:
    content = bytes(range(20))
    for bit in range(8 * len(content)):
        store = ObjectStore(tmp_path / str(bit))
        digest = store.put(content)
        spoilt = bytearray(content)
        spoilt[bit // 8] ^= 1 << bit % 8
        store.path(digest).write_bytes(spoilt)
        with pytest.raises(IntegrityError, match="rotted"):
            store.read(digest)
        assert not store.has(digest), "it is fetched again"


@pytest.mark.parametrize("becomes", ["other bytes", "a link to other bytes", "a link to what never ends"])
def test_an_object_swapped_by_a_local_administrator_is_seen_when_it_is_read(tmp_path: Path, becomes: str) -> None:
    store = ObjectStore(tmp_path / "objects")
    digest = store.put(b"approved")
    path = store.path(digest)
    (tmp_path / "other").write_bytes(b"another")
    path.unlink()
    if becomes == "other bytes":
        path.write_bytes(b"another")
    else:
        path.symlink_to(tmp_path / "other" if becomes == "a link to other bytes" else "/dev/zero")
    with pytest.raises(IntegrityError, match="rotted"):
        store.read(digest, max_bytes=1 << 20)
    assert store.has(digest) is False and not path.exists()

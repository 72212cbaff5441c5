"""The hub's side of confidential releases, in memory: what a node is offered, what it gets, and what must not leak."""

from collections.abc import Iterable
from pathlib import Path
from random import Random

from heliograph.blob import LEAF_BYTES, PAGE_SPAN_BYTES, describe, page_of, sha256
from heliograph.delta import recipe as recipes
from heliograph.delta.diff import make
from heliograph.documents import Chunk, Grant, RecipeRef, SealRef, Want, Way
from heliograph.manifest import File, Golden, Manifest, Variant
from heliograph.names import Digest
from heliograph.sealing import Seal, describe_sealed, encode, grant_box, leaf_key
from heliograph.signing import PrivateKey

NODE_KEY = PrivateKey.generate(b"n" * 32)


def noise(seed: int, length: int) -> bytes:
    return Random(seed).randbytes(length)


def manifest_of(files: dict[str, bytes], version: str = "1.0.0", *, is_confidential: bool = True) -> Manifest:
    """A release of these files; the first is its model."""
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
        confidential=is_confidential,
        crit=("confidential",) * is_confidential,
    )


class Vault:
    """One model's epoch: seals what is offered, and answers wants.

    Attributes:
        blobs: all that may be asked for, by digest.
        plain: bytes that nobody but the node may ever see.
    """

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch
        self.epoch_key = noise(epoch, 32)
        self.blobs: dict[bytes, bytes] = {}
        self.plain: list[bytes] = []

    def grant(self, key: PrivateKey = NODE_KEY, ephemeral: bytes = b"e" * 32) -> Grant:
        return Grant(model="digits", epoch=self.epoch, box=grant_box(self.epoch_key, key.public.raw, ephemeral))

    def sealed(self, content: bytes) -> bytes:
        return describe_sealed(leaf_key(self.epoch_key, sha256(content)), content)[1]

    def seal(self, *contents: bytes) -> tuple[SealRef, int]:
        """The seal of these blobs, and how many bytes of content they and it are."""
        described = [describe_sealed(leaf_key(self.epoch_key, sha256(content)), content) for content in contents]
        self.plain += contents
        self.blobs |= {blob.sealed: sealed for blob, sealed in described}
        document = encode(Seal("digits", self.epoch, tuple(blob for blob, _ in described)))
        self.blobs[sha256(document)] = document
        size = len(document) + sum(len(sealed) for _, sealed in described)
        return SealRef(length=len(document), sha256=sha256(document)), size

    def full(self, content: bytes) -> Way:
        named, size = self.seal(content)
        return Way(kind="full", blob=sha256(content), bytes=size, seal=named)

    def delta(self, old: bytes, new: bytes) -> Way:
        recipe, patch = recipes.with_patch(*make(old, new))
        encoded = recipes.encode(recipe)
        named, size = self.seal(encoded, *[patch] * bool(patch))
        self.plain[self.plain.index(encoded)] = _without(encoded, recipe.base, recipe.target, recipe.patch_sha256)
        reference = RecipeRef(length=len(encoded), sha256=sha256(encoded))
        return Way(kind="delta", blob=sha256(new), bytes=size, base=sha256(old), recipe=reference, seal=named)

    def answers(self, want: Want) -> Iterable[Chunk]:
        """What a hub sends for a want."""
        data = self.blobs[want.blob]
        for page in want.pages:
            yield Chunk(handle=want.handle, page=page, bytes=page_of(data[page * PAGE_SPAN_BYTES :][:PAGE_SPAN_BYTES]))
        for first, count in want.ranges:
            for at in range(first, first + count, 4):
                leaves = data[at * LEAF_BYTES : min(at + 4, first + count) * LEAF_BYTES]
                yield Chunk(handle=want.handle, offset=at * LEAF_BYTES, bytes=leaves)


def _without(content: bytes, *digests: bytes) -> bytes:
    """What is left of a recipe without digests, which seals and offers name openly."""
    for digest in digests:
        content = content.replace(digest, b"")
    return content


def leaks(folder: Path, plain: Iterable[bytes]) -> list[str]:
    """Files under `folder` that hold 32 bytes in a row of what must stay sealed, wherever they begin.

    Any 32 bytes hold 16 that begin at a multiple of 16; those of few different bytes, as zeros, stand everywhere.
    """
    blocks = {content[at : at + 16] for content in plain for at in range(0, len(content) - 15, 16)}
    secret = {block for block in blocks if len(set(block)) > 8}
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if any(data[at : at + 16] in secret for at in range(len(data) - 15)):
                found.append(str(path.relative_to(folder)))
    return found


def put(vault: Vault, folder: Path, content: bytes) -> Digest:
    """Puts a finished sealed blob where a fetch would leave it; the plain digest."""
    path = folder / f"{sha256(content).hex()}.part"
    path.write_bytes(vault.sealed(content))
    return sha256(content)

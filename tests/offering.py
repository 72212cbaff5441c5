"""A hub with one node and releases of one model, as far as offers and what they name go."""

import json
from dataclasses import replace

from fleets import NODE_KEY, NOW, Hub
from heliograph import sealing
from heliograph.blob import LEAF_BYTES, sha256
from heliograph.documents import Ask, Chunk, Reported, Want
from heliograph.objects import ObjectStore
from heliograph.protocol import SCHEMAS
from heliograph.sealing import leaf_key, open_range
from heliograph.sender import Sender
from heliograph.transfer import BlobFetch
from heliograph_hub.distribution import Distribution, answer
from heliograph_hub.epochs import Epochs
from heliograph_hub.recipes import Recipes
from heliograph_hub.registry import Registry
from heliograph_hub.rollout import Signed
from heliograph_hub.seals import Seals

TENSOR = {"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}
OLD = b"".join(sha256(number.to_bytes(4, "big")) for number in range(35_000))  # 1.07 MiB: two pages
NEW = OLD[:-6400] + b"".join(sha256(b"changed %d" % number) for number in range(200))  # no recipe has room for it
HANDLE = b"hndl"


def reading_recipes(node):
    """The node, after it said, if it said nothing, that it reads all that this version writes."""
    return node if node.reported else replace(node, reported=Reported.model_construct(schemas=SCHEMAS, models={}))


class Realm:
    """A hub with one node and releases of one model; says and sends as the service does."""

    def __init__(self, folder):
        self.folder = folder
        self.hub = Hub(folder / "hub.sqlite")
        self.hub.enroll()
        self.registry = Registry(self.hub.database, ObjectStore(folder / "objects"))
        self.begun = []
        self.epochs = self.open_epochs()
        self.seals = Seals(self.hub.database, self.registry.objects, self.registry, self.epochs)
        self.recipes = Recipes(self.registry)
        self.distribution = Distribution(self.registry, Sender(queue_chunks=1 << 16))

    def open_epochs(self):
        return Epochs(self.hub.database, self.folder / "keys" / "epochs", lambda *said: self.begun.append(said))

    def add(self, version, model, *, confidential=True, golden=b"", extra=()):
        folder = self.folder / version
        folder.mkdir()
        (folder / "model.tflite").write_bytes(model)
        tensor = TENSOR | {"name": "y" + golden.decode()} if golden else TENSOR
        (folder / "in.json").write_text(json.dumps({"requests": [{"inputs": [tensor]}]}))
        (folder / "out.json").write_text(json.dumps({"responses": [{"outputs": [tensor]}]}))
        for number, data in enumerate(extra):
            (folder / f"part-{number}.bin").write_bytes(data)
        said = "confidential = true\n" if confidential else ""
        tables = '[golden]\ninputs = "in.json"\noutputs = "out.json"\n'
        (folder / "release.toml").write_text(f'model = "digits"\nversion = "{version}"\n{said}{tables}')
        release, _, _ = self.registry.add(folder, NOW)
        return release

    def ask(self, release, held=None, now=NOW, node=None):
        bases = [file.sha256 for file in self.registry.manifest(held).files] if held else []
        asked = Ask(run=b"r" * 8, n=4, model="digits", release=release.digest, bases=tuple(bases), free_bytes=1 << 30)
        told = {"general": {"digits": Signed("general", "digits", 1, release.digest, "install", True)}}
        node = reading_recipes(node or self.hub.fleet.node("lab", "pi-1"))
        return answer(self.registry, self.recipes, "dev", node, asked, told, now, 0.0, seals=self.seals)

    def work(self, now=NOW):
        """Makes all recipes and seals that are waited for."""
        said = []
        while (pair := self.recipes.take()) is not None:
            self.recipes.make(pair, now)
            self.seals.request_delta(*pair)
        while (task := self.seals.take()) is not None:
            said.append(self.seals.make(task, now))
        return said

    def offer(self, release, held=None, now=NOW):
        """The offer that has ways, once what it waits for is made."""
        for _ in range(3):
            offer = self.ask(release, held, now)
            if offer.later_s is None:
                return offer
            self.work(now)
        raise AssertionError(f"no ways: {offer.reason}")

    def fetch(self, digest, length, pages):
        """The blob as a node fetches it, every leaf checked, and the bytes of content that were sent."""
        before = self.distribution.content_bytes["lab", "pi-1"]
        fetch, image = BlobFetch(digest, length, pages, HANDLE), bytearray(length)
        leaves = -(-length // LEAF_BYTES)
        ranges = tuple((at, min(256, leaves - at)) for at in range(0, leaves, 256))
        for want in (
            Want(handle=HANDLE, blob=digest, pages=tuple(range(len(pages)))),
            Want(handle=HANDLE, blob=digest, ranges=ranges),
        ):
            self.distribution.take("lab", "pi-1", want, 0.0)
            while (outgoing := self.distribution.next(0.0)) is not None:
                for offset, run in fetch.accept(Chunk.decode(outgoing.payload)):
                    image[offset : offset + len(run)] = run
        assert fetch.complete
        return bytes(image), self.distribution.content_bytes["lab", "pi-1"] - before

    def unpaged(self, ref):
        """A blob without pages, as the offer names it."""
        count = -(-ref.length // LEAF_BYTES)
        self.distribution.take("lab", "pi-1", Want(handle=HANDLE, blob=ref.sha256, ranges=((0, count),)), 0.0)
        data = b""
        while (outgoing := self.distribution.next(0.0)) is not None:
            data += Chunk.decode(outgoing.payload).bytes
        assert sha256(data) == ref.sha256 and len(data) == ref.length
        return data

    def opened(self, offer, way, key=NODE_KEY):
        """What a way brings, plain, by the plain digest; and every byte of content that was sent for it."""
        seal = sealing.parse(self.unpaged(way.seal))
        assert (seal.model, seal.epoch) == (offer.grant.model, offer.grant.epoch)
        epoch_key = key.open_box(offer.grant.box)
        plain, total = {}, way.seal.length
        for blob in seal.blobs:
            data, sent = self.fetch(blob.sealed, blob.length, blob.pages)
            plain[blob.plain] = open_range(leaf_key(epoch_key, blob.plain), 0, data)
            assert sha256(plain[blob.plain]) == blob.plain and len(plain[blob.plain]) == blob.plain_length
            total += sent
        return plain, total

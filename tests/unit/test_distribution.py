"""Offers and chunks: only what is directed is offered, only what the registry knows is served, and it verifies."""

import json

import pytest

from heliograph.blob import LEAF_BYTES, sha256
from heliograph.documents import Ask, Chunk, Deny, Want
from heliograph.errors import NotFoundError
from heliograph.objects import ObjectStore
from heliograph.sender import Sender
from heliograph.statement import signed_bytes
from heliograph.transfer import BlobFetch
from heliograph_hub.authority import Authority
from heliograph_hub.database import Database
from heliograph_hub.denial import Denials
from heliograph_hub.distribution import RECIPE_LATER_S, ROLLOUT_LATER_S, Distribution, answer
from heliograph_hub.fleet import Node
from heliograph_hub.founding import init_realm
from heliograph_hub.keys import load_key
from heliograph_hub.recipes import RECIPE_PATIENCE_S, Recipes
from heliograph_hub.registry import Registry
from heliograph_hub.rollout import Signed
from offering import reading_recipes

NOW = 1_800_000_000
NODE = Node("lab", "pi-1", "canary", b"k" * 32, b"i" * 32, 1, b"", NOW, NOW, None, None, None)
TENSOR = {"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}
OLD = b"".join(sha256(number.to_bytes(4, "big")) for number in range(70_000))  # 2.1 MiB: three pages
NEW = OLD[:-64] + b"changed!" * 8
HANDLE = b"hndl"


@pytest.fixture
def registry(tmp_path):
    database = Database(tmp_path / "hub.sqlite")
    registry = Registry(database, ObjectStore(tmp_path / "objects"))
    for version, model in (("1.0.0", OLD), ("1.1.0", NEW)):
        folder = tmp_path / version
        folder.mkdir()
        (folder / "model.tflite").write_bytes(model)
        (folder / "in.json").write_text(json.dumps({"requests": [{"inputs": [TENSOR]}]}))
        (folder / "out.json").write_text(json.dumps({"responses": [{"outputs": [TENSOR]}]}))
        golden = '[golden]\ninputs = "in.json"\noutputs = "out.json"\n'
        (folder / "release.toml").write_text(f'model = "digits"\nversion = "{version}"\n{golden}')
        registry.add(folder, NOW)
    yield registry
    database.close()


def _ask(registry, release, held=None):
    bases = [file.sha256 for file in registry.manifest(held).files] if held else []
    return Ask(run=b"r" * 8, n=4, model="digits", release=release.digest, bases=tuple(bases), free_bytes=1 << 30)


def _in_force(release, ring="canary", action="install"):
    return {ring: {"digits": Signed(ring, "digits", 1, release.digest, action, True)}}


def _answer(registry, ask, in_force, recipes=None, now_s=0.0, denials=None):
    return answer(
        registry, recipes or Recipes(registry), "dev", reading_recipes(NODE), ask, in_force, NOW, now_s, denials
    )


@pytest.fixture
def denied(registry, tmp_path):
    """Denies digests, as an operator with one deny key, and gives the denials."""
    init_realm(tmp_path / "realm", "dev", NOW)
    key = load_key(tmp_path / "realm" / "keys" / "deny-1.key")
    denials = Denials(registry._database, registry.objects, Authority(tmp_path / "realm"))

    def deny(*digests):
        payload = Deny(realm="dev", releases=digests, reason="wrong labels", at=NOW).encode()
        denials.add("deny", payload, {key.keyid: key.sign(signed_bytes("deny", payload))}, NOW)
        return denials

    return deny


# --- offers -----------------------------------------------------------------------------------------------------------


def test_an_offer_answers_exactly_one_ask_of_one_node_for_a_minute(registry):
    old, _ = registry.all()
    offer = _answer(registry, _ask(registry, old), _in_force(old))
    assert (offer.realm, offer.site, offer.node, offer.key) == ("dev", "lab", "pi-1", NODE.keyid)
    assert (offer.run, offer.n, offer.release, offer.expires) == (b"r" * 8, 4, old.digest, NOW + 60)
    assert (offer.later_s, offer.never, offer.reason) == (None, False, "")
    files = registry.manifest(old).files
    assert {way.blob for way in offer.ways} == {file.sha256 for file in files}
    assert all(way.kind == "full" for way in offer.ways)


def test_a_node_waits_for_a_recipe_then_is_offered_it(registry):
    old, new = registry.all()
    recipes = Recipes(registry)
    ask = _ask(registry, new, held=old)
    offer = _answer(registry, ask, _in_force(new), recipes, now_s=5.0)
    assert (offer.later_s, offer.never, offer.ways) == (RECIPE_LATER_S, False, ())
    assert "deltas to digits@1.1.0 are being made" in offer.reason
    _answer(registry, ask, _in_force(new), recipes, now_s=6.0)
    pair = recipes.take()
    assert recipes.take() is None, "asked for twice, made once"
    assert "made a recipe" in recipes.make(pair, NOW)
    offer = _answer(registry, ask, _in_force(new), recipes, now_s=7.0)
    assert [way.kind for way in offer.ways] == ["delta", "full"] and offer.later_s is None
    assert offer.ways[0].bytes < offer.ways[1].bytes / 100


def test_nobody_waits_longer_than_the_bound_for_a_recipe(registry):
    old, new = registry.all()
    recipes = Recipes(registry)
    ask = _ask(registry, new, held=old)
    assert _answer(registry, ask, _in_force(new), recipes, now_s=5.0).later_s is not None
    assert _answer(registry, ask, _in_force(new), recipes, now_s=4.9 + RECIPE_PATIENCE_S).later_s is not None
    assert [w.kind for w in _answer(registry, ask, _in_force(new), recipes, now_s=5 + RECIPE_PATIENCE_S).ways] == [
        "full"
    ]


def test_a_recipe_that_can_not_be_made_means_full_at_once(registry):
    old, new = registry.all()
    recipes = Recipes(registry)
    ask = _ask(registry, new, held=old)
    _answer(registry, ask, _in_force(new), recipes)
    pair = recipes.take()
    registry.objects.path(pair[0]).write_bytes(b"rotten")
    assert "no recipe from" in recipes.make(pair, NOW)
    assert [way.kind for way in _answer(registry, ask, _in_force(new), recipes).ways] == ["full"]


def test_never_is_said_of_what_does_not_exist_or_no_ring_is_to_run(registry):
    old, new = registry.all()
    unknown = _ask(registry, old).model_copy(update={"release": b"?" * 32})
    foreign = _ask(registry, old).model_copy(update={"model": "faces"})
    for ask, in_force, words in (
        (unknown, _in_force(old), "the hub has no release"),
        (foreign, _in_force(old), "the hub has no release"),
        (_ask(registry, old), {}, "no ring is to run digits@1.0.0"),
        (_ask(registry, old), _in_force(new), "no ring is to run digits@1.0.0"),
    ):
        offer = _answer(registry, ask, in_force)
        assert offer.never and offer.later_s is None and offer.ways == () and words in offer.reason


def test_later_is_said_of_what_another_ring_runs_or_is_held(registry):
    old, _ = registry.all()
    for in_force in (_in_force(old, "early"), _in_force(old, "canary", "hold")):
        offer = _answer(registry, _ask(registry, old), in_force)
        assert (offer.later_s, offer.never, offer.ways) == (ROLLOUT_LATER_S, False, ())
        assert "not released to ring canary" in offer.reason


# --- chunks -----------------------------------------------------------------------------------------------------------


def _drain(distribution, now_s=0.0):
    while (outgoing := distribution.next(now_s)) is not None:
        yield outgoing


def _distribution(registry, **limits):
    return Distribution(registry, Sender(**limits))


def test_a_whole_file_comes_in_chunks_that_verify(registry):
    file = registry.manifest(registry.all()[1]).file("model.tflite")
    distribution = _distribution(registry, queue_chunks=4096)
    fetch = BlobFetch(file.sha256, file.length, file.pages, HANDLE)
    image = bytearray(file.length)
    distribution.take("lab", "pi-1", Want(handle=HANDLE, blob=file.sha256, pages=(0, 1, 2)), 0.0)
    for outgoing in _drain(distribution):
        fetch.accept(Chunk.decode(outgoing.payload))
    leaves = -(-file.length // LEAF_BYTES)
    ranges = tuple((first, min(8, leaves - first)) for first in range(0, leaves, 8))
    distribution.take("lab", "pi-1", Want(handle=HANDLE, blob=file.sha256, ranges=ranges), 0.0)
    for outgoing in _drain(distribution):
        assert (outgoing.site, outgoing.node) == ("lab", "pi-1") and len(outgoing.payload) <= 64 * 1024
        for offset, run in fetch.accept(Chunk.decode(outgoing.payload)):
            image[offset : offset + len(run)] = run
    assert fetch.complete and bytes(image) == NEW
    assert distribution.content_bytes["lab", "pi-1"] == file.length + leaves * 16


def test_the_manifest_comes_whole_without_pages(registry):
    release = registry.all()[0]
    distribution = _distribution(registry)
    distribution.take("lab", "pi-1", Want(handle=HANDLE, blob=release.digest, ranges=((0, 1),)), 0.0)
    (outgoing,) = _drain(distribution)
    assert Chunk.decode(outgoing.payload).bytes == registry.objects.read(release.digest)


def test_what_the_registry_does_not_know_is_not_served_though_it_lies_on_the_disk(registry):
    secret = registry.objects.put(b"in the store, part of no release")
    distribution = _distribution(registry)
    with pytest.raises(NotFoundError, match="no blob"):
        distribution.take("lab", "pi-1", Want(handle=HANDLE, blob=secret, ranges=((0, 1),)), 0.0)
    assert list(_drain(distribution)) == []


@pytest.mark.parametrize("beyond", [{"pages": (3, 1 << 40)}, {"ranges": ((547, 8), (1 << 50, 256))}])
def test_what_lies_beyond_the_end_is_left_out(registry, beyond):
    file = registry.manifest(registry.all()[0]).file("model.tflite")
    assert len(file.pages) == 3 and -(-file.length // LEAF_BYTES) == 547
    distribution = _distribution(registry)
    distribution.take("lab", "pi-1", Want(handle=HANDLE, blob=file.sha256, **beyond), 0.0)
    assert list(_drain(distribution)) == []


def test_a_range_that_runs_over_the_end_gives_the_short_last_leaf(registry):
    file = registry.manifest(registry.all()[0]).file("in.json")
    distribution = _distribution(registry)
    distribution.take("lab", "pi-1", Want(handle=HANDLE, blob=file.sha256, ranges=((0, 200),)), 0.0)
    (outgoing,) = _drain(distribution)
    assert Chunk.decode(outgoing.payload).bytes == registry.objects.read(file.sha256)


def test_a_file_that_went_from_the_disk_costs_its_chunks_and_nothing_else(registry):
    release = registry.all()[0]
    model, golden = (registry.manifest(release).file(name) for name in ("model.tflite", "in.json"))
    distribution = _distribution(registry)
    distribution.take("lab", "pi-1", Want(handle=HANDLE, blob=model.sha256, ranges=((0, 8),)), 0.0)
    distribution.take("lab", "pi-1", Want(handle=b"more", blob=golden.sha256, ranges=((0, 1),)), 0.0)
    registry.objects.path(model.sha256).unlink()
    (outgoing,) = _drain(distribution)
    assert Chunk.decode(outgoing.payload).handle == b"more" and distribution.rotten == 1


def test_the_total_rate_is_kept_and_nodes_take_turns(registry):
    file = registry.manifest(registry.all()[0]).file("model.tflite")
    distribution = _distribution(registry, total_bytes_per_s=100_000, queue_chunks=4096)
    for node in ("a", "b"):
        ranges = tuple((first, 8) for first in range(0, 256, 8))
        distribution.take("lab", node, Want(handle=HANDLE, blob=file.sha256, ranges=ranges), 0.0)
    sent = {"a": 0, "b": 0}
    for tick in range(1000):
        for outgoing in _drain(distribution, tick / 100):
            sent[outgoing.node] += outgoing.content_bytes
    assert 900_000 <= sum(sent.values()) <= 1_200_000
    assert abs(sent["a"] - sent["b"]) <= 32_768
    distribution.forget("lab", "a")
    assert {outgoing.node for outgoing in _drain(distribution, 1e6)} <= {"b"}


def test_a_denied_release_is_never_offered_whatever_is_directed_and_others_still_are(registry, denied):
    old, new = registry.all()
    denials = denied(new.digest)
    offer = _answer(registry, _ask(registry, new, old), _in_force(new), denials=denials)
    assert (offer.never, offer.ways, offer.later_s) == (True, (), None)
    assert offer.reason == "digits@1.1.0 is denied by its digest: wrong labels"
    assert _answer(registry, _ask(registry, old), _in_force(old), denials=denials).ways
    unknown = Ask(run=b"r" * 8, n=4, model="digits", release=b"?" * 32, free_bytes=1)
    assert _answer(registry, unknown, {}, denials=denied(b"?" * 32)).reason.startswith("this release is denied")


def test_a_way_whose_recipe_is_denied_is_not_offered_any_more_and_the_release_still_is(registry, denied):
    old, new = registry.all()
    ask = _ask(registry, new, old)
    (pair,) = registry.pairs(new, ask.bases)
    made = registry.make_recipe(*pair, NOW)
    assert [way.kind for way in _answer(registry, ask, _in_force(new)).ways] == ["delta", "full"]
    denials = denied(made.recipe)
    assert [way.kind for way in _answer(registry, ask, _in_force(new), denials=denials).ways] == ["full"]

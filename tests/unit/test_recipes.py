"""Recipes at the hub: made apart, for every base that is held, told of while they are made, and dropped in the end."""

import asyncio
import json
import os
import random
import select
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from fleets import NOW, request
from fleets import reported as said
from heliograph.blob import sha256
from heliograph.delta import recipe
from heliograph.delta.making import NICE, Making
from heliograph.documents import ModelReport, Reported, Tuple
from heliograph.errors import RefusedError
from heliograph_hub.api.releases import Releases
from heliograph_hub.commands.terminal import show_making
from heliograph_hub.database import blobs
from heliograph_hub.database import recipes as recipes_table
from heliograph_hub.fleet import Node
from heliograph_hub.founding import init_realm
from heliograph_hub.recipes import Recipes, files_of, held_releases, pairs_for
from heliograph_hub.registry import KEEP_RECIPES_S, NOTE_ASKED_S, transfer_bytes
from heliograph_hub.rollout import Signed
from heliograph_hub.service import Service
from limits import no_room_beyond
from offering import NEW, OLD, TENSOR, Realm

OTHER = OLD[:-320] + b"another!" * 40
NODE = Node("lab", "pi-1", "canary", b"k" * 32, b"i" * 32, 1, b"", NOW, NOW, None, None, None)
LATER = NOW + KEEP_RECIPES_S


@pytest.fixture
def realm(tmp_path):
    realm = Realm(tmp_path)
    yield realm
    realm.hub.database.close()


def reported(active: bytes, fallback: bytes | None = None, held: tuple[bytes, ...] = ()) -> Reported:
    return Reported.model_construct(
        models={
            "digits": ModelReport.model_construct(
                tuple=Tuple.model_construct(release=active),
                fallback=None if fallback is None else Tuple.model_construct(release=fallback),
                held=held,
            )
        }
    )


def files(realm, release) -> set[bytes]:
    return set(files_of(realm.registry, release.digest))


def objects(realm) -> set[bytes]:
    return set(realm.registry.objects.list())


# --- for which bases ------------------------------------------------------------------------------------------------


def test_recipes_are_asked_for_from_every_release_that_nodes_hold_the_commonest_first(realm):
    releases = [realm.add(f"1.{n}.0", model, confidential=False) for n, model in enumerate((OLD, OTHER, OLD[:-8]))]
    first, second, third = (release.digest for release in releases)
    new = realm.add("2.0.0", NEW, confidential=False)
    nodes = [
        replace(NODE, reported=reported(second, fallback=first)),
        replace(NODE, node="pi-2", reported=reported(second)),
        replace(NODE, node="pi-3", reported=None),
        replace(NODE, node="pi-4", reported=reported(third), removed_at=NOW),
        replace(NODE, node="pi-5", reported=reported(b"?" * 32)),
    ]
    held = held_releases(nodes)["digits"]
    assert held == {first: 1, second: 2, b"?" * 32: 1}
    bases = [pair[0] for pair in pairs_for(realm.registry, new, held)]
    assert bases == [sha256(OTHER), sha256(OLD), sha256(OLD[:-8])], "the predecessor too, whoever holds it"


def test_a_release_of_many_files_makes_and_sends_only_what_changed(realm):
    common = [os.urandom(50_000) for _ in range(3)]
    old = realm.add("1.0.0", OLD, confidential=False, extra=common)
    new = realm.add("1.1.0", NEW, confidential=False, extra=common)
    assert pairs_for(realm.registry, new, {old.digest: 1}) == [(sha256(OLD), sha256(NEW))]
    offer = realm.offer(new, old)
    assert {way.blob for way in offer.ways} == {sha256(NEW)}


def test_an_offer_says_to_the_byte_what_crosses_the_link(realm):
    old = realm.add("1.0.0", OLD, confidential=False)
    new = realm.add("1.1.0", NEW, confidential=False)
    way = realm.offer(new, old).ways[0]
    made = recipe.parse(realm.unpaged(way.recipe))
    patch, sent = realm.fetch(made.patch_sha256, made.patch_length, made.patch_pages)
    assert way.kind == "delta" and way.bytes == way.recipe.length + sent
    assert sent == transfer_bytes(len(patch))


# --- while they are made --------------------------------------------------------------------------------------------


def test_it_is_told_what_waits_what_is_made_how_far_it_is_and_what_failed(realm):
    for n, model in enumerate((OLD, OTHER, NEW)):
        realm.add(f"1.{n}.0", model, confidential=False)
    told = []

    def make(old, new, delta, progress):
        progress(1000, len(NEW))
        told.append(recipes.pending({sha256(NEW)}, 7.0))
        raise RefusedError("no more memory")

    recipes = Recipes(realm.registry, make)
    pairs = [(sha256(OLD), sha256(NEW)), (sha256(OTHER), sha256(NEW))]
    assert recipes.request(pairs, 3.0) == pairs
    assert [(one.state, one.seconds) for one in recipes.pending({sha256(NEW)}, 5.0)] == [("waiting", 2.0)] * 2
    assert recipes.pending({sha256(OLD)}, 5.0) == []
    assert "no more memory" in recipes.make(recipes.take(), NOW, lambda: 5.0)
    making, waiting = told[0]
    assert (making.base, making.state, making.seconds, making.done_bytes) == (sha256(OLD), "being made", 2.0, 1000)
    assert (waiting.base, waiting.state) == (sha256(OTHER), "waiting")
    states = {one.base: (one.state, one.why) for one in recipes.pending({sha256(NEW)}, 9.0)}
    assert states == {sha256(OTHER): ("waiting", ""), sha256(OLD): ("failed", "no more memory")}
    assert recipes.request(pairs[:1], 9.0) == [], "it isn't made again for whoever asks"
    recipes.retry([sha256(NEW)])
    assert recipes.request(pairs[:1], 9.0) == pairs[:1], "but when its release is added again"


def test_a_recipe_made_apart_is_the_one_made_here_and_leaves_nothing_else(realm):
    realm.add("1.0.0", OLD, confidential=False)
    new = realm.add("1.1.0", NEW, confidential=False)
    pair = (sha256(OLD), sha256(NEW))
    here = realm.registry.make_recipe(*pair, NOW)
    realm.registry.drop_recipes((), (), LATER)
    before = objects(realm)
    seen = []
    apart = realm.registry.make_recipe(*pair, NOW, Making().make, lambda done, whole: seen.append((done, whole)))
    assert (apart.recipe, apart.patch, apart.cost_bytes) == (here.recipe, here.patch, here.cost_bytes)
    assert seen[-1] == (len(NEW), len(NEW))
    assert objects(realm) - before == {apart.recipe, apart.patch}
    assert not list(realm.registry.objects.root.glob(".*")), "the delta file is gone"
    assert realm.registry.ways(realm.registry.manifest(new), [sha256(OLD)])


def test_what_is_made_apart_can_be_stopped_and_gives_way_to_everything_else(tmp_path: Path):
    chance = random.Random(3)
    (tmp_path / "old").write_bytes(chance.randbytes(1 << 20))
    (tmp_path / "new").write_bytes(chance.randbytes(1 << 20))
    making, begun = Making(), threading.Event()
    niceness = []

    def look(done: int, whole: int) -> None:
        if not begun.is_set():
            assert making._child is not None
            niceness.append(os.getpriority(os.PRIO_PROCESS, making._child.pid))
            begun.set()
            making.stop()

    with pytest.raises(RefusedError, match="stopped"):
        making.make(tmp_path / "old", tmp_path / "new", tmp_path / "delta", look)
    assert niceness[0] >= min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    with pytest.raises(RefusedError, match="stopped"):
        making.make(tmp_path / "old", tmp_path / "new", tmp_path / "delta")


def test_what_is_made_apart_ends_with_a_hub_that_is_killed(tmp_path: Path):
    chance = random.Random(5)
    for name in ("old", "new"):
        (tmp_path / name).write_bytes(chance.randbytes(8 << 20))
    program = (
        "import sys, threading; from pathlib import Path; from heliograph.delta.making import Making\n"
        "folder, making = Path(sys.argv[1]), Making()\n"
        "paths = [folder / name for name in ('old', 'new', 'delta')]\n"
        "child = making._started(*paths)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    hub = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with hub:
        assert hub.stdout is not None
        child = os.pidfd_open(int(hub.stdout.readline()))
        hub.kill()
    ended = select.poll()
    ended.register(child, select.POLLIN)
    assert ended.poll(30_000)
    os.close(child)
    assert not (tmp_path / "delta").exists(), "it wasn't finished first"


def test_what_can_not_be_made_apart_is_said_in_its_own_words(tmp_path: Path):
    (tmp_path / "old").write_bytes(b"old" * 1000)
    (tmp_path / "new").mkdir()
    with pytest.raises(RefusedError, match="new is not a regular file"):
        Making().make(tmp_path / "old", tmp_path / "new", tmp_path / "delta")


# --- when they go ---------------------------------------------------------------------------------------------------


def test_a_recipe_goes_a_fortnight_after_nobody_needs_it_and_no_sooner(realm):
    old = realm.add("1.0.0", OLD, confidential=False)
    new = realm.add("1.1.0", NEW, confidential=False)
    before = objects(realm)
    realm.registry.make_recipe(sha256(OLD), sha256(NEW), NOW)
    assert len(objects(realm) - before) == 2
    held, wanted = files(realm, old), files(realm, new)
    assert realm.registry.drop_recipes((), (), LATER - 1).recipes == 0, "it may be being fetched"
    assert realm.registry.drop_recipes(held, wanted, LATER).recipes == 0, "a node that holds the base may come back"
    for kept in ((held, ()), ((), wanted)):
        gone = realm.registry.drop_recipes(*kept, LATER)
        assert (gone.recipes, gone.blobs) == (1, 2) and gone.bytes > 0
        assert objects(realm) == before
        assert realm.registry.drop_recipes((), (), LATER).recipes == 0
        realm.registry.make_recipe(sha256(OLD), sha256(NEW), NOW)


def test_a_node_that_asks_again_after_a_recipe_was_dropped_gets_a_new_one(realm):
    old = realm.add("1.0.0", OLD, confidential=False)
    new = realm.add("1.1.0", NEW, confidential=False)
    first = realm.offer(new, old)
    assert realm.registry.drop_recipes((), (), LATER).recipes == 1
    asked = realm.ask(new, old, now=LATER)
    assert asked.later_s is not None and "being made" in asked.reason
    assert realm.offer(new, old, now=LATER).ways == first.ways


def test_an_ask_keeps_the_recipe_that_it_is_about(realm):
    old = realm.add("1.0.0", OLD, confidential=False)
    new = realm.add("1.1.0", NEW, confidential=False)
    realm.offer(new, old)
    realm.ask(new, old, now=NOW + NOTE_ASKED_S)
    assert realm.registry.drop_recipes((), (), LATER).recipes == 0
    assert realm.registry.drop_recipes((), (), LATER + NOTE_ASKED_S).recipes == 1


def test_with_a_confidential_recipe_goes_all_that_is_sealed_of_it(realm):
    old = realm.add("1.0.0", OLD)
    new = realm.add("1.1.0", NEW)
    full = realm.offer(new)
    before = objects(realm)
    offer = realm.offer(new, old)
    assert [way.kind for way in offer.ways] == ["delta", "full"]
    made = objects(realm) - before
    assert len(made) == 5, "recipe and patch, both sealed, and the seal"
    gone = realm.registry.drop_recipes((), (), LATER)
    assert (gone.recipes, gone.blobs) == (1, 5)
    assert objects(realm) == before
    with realm.hub.database.read() as connection:
        assert {row.digest for row in connection.execute(sa.select(blobs))}.isdisjoint(made)
    assert realm.offer(new).ways == full.ways, "what is sealed in full stays"
    assert realm.offer(new, old).ways == offer.ways, "and it is made and sealed again for who asks"


def test_a_patch_that_two_recipes_share_and_one_that_is_a_file_of_a_release_stay(realm):
    longer = OLD + OLD[:4096]
    for n, model in enumerate((OLD, longer)):
        realm.add(f"1.{n}.0", model, confidential=False)
    realm.add("2.0.0", OLD[:4096], confidential=False)
    deltas = [realm.registry.make_recipe(sha256(base), sha256(OLD[:4096]), NOW) for base in (OLD, longer)]
    assert deltas[0].patch == deltas[1].patch == sha256(b""), "only copies"
    realm.add("3.0.0", NEW, confidential=False, extra=[b""])
    assert realm.registry.drop_recipes({sha256(OLD)}, {sha256(OLD[:4096])}, LATER).blobs == 1
    with realm.hub.database.read() as connection:
        assert connection.execute(sa.select(recipes_table.c.base)).scalars().all() == [sha256(OLD)]
    assert realm.registry.objects.has(sha256(b""))
    assert realm.registry.drop_recipes((), (), LATER).blobs == 1
    assert realm.registry.objects.has(sha256(b"")), "a release lists it"
    assert realm.registry.blob_length(sha256(b"")) == 0


def test_the_loop_goes_on_while_a_recipe_is_made(realm):
    """The hub's own threads do next to nothing for it, so that chunks and answers come first."""
    chance = random.Random(4)
    old = chance.randbytes(1 << 20)
    new = bytearray(old)
    for at in range(0, len(new), 50):
        new[at] ^= 1
    realm.add("1.0.0", old, confidential=False)
    realm.add("1.1.0", bytes(new), confidential=False)
    pair = (sha256(old), sha256(bytes(new)))

    async def beats() -> int:
        making = asyncio.ensure_future(asyncio.to_thread(realm.registry.make_recipe, *pair, NOW, Making().make))
        count = 0
        while not making.done():
            await asyncio.sleep(0.001)  # time itself is counted: how often the loop comes round
            count += 1
        await making
        return count

    used = os.times()
    assert asyncio.run(beats()) > 50
    after = os.times()
    here = after.user + after.system - used.user - used.system
    there = after.children_user + after.children_system - used.children_user - used.children_system
    assert here < there, "the work is done in the other process"


def test_a_full_disk_makes_no_recipe_and_ends_nothing(realm):
    realm.add("1.0.0", OLD), realm.add("1.1.0", NEW)
    pair = sha256(OLD), sha256(NEW)
    with no_room_beyond(0):
        assert "no recipe" in realm.recipes.make(pair, NOW)
    assert "File too large" in realm.recipes.failed[pair]
    realm.recipes.retry([pair[1]])
    assert "made a recipe" in realm.recipes.make(pair, NOW)


# --- in the service -------------------------------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path):
    """A hub with two releases; the ring is to install the newer."""
    init_realm(tmp_path / "hub", "dev", 1_795_000_000)
    service = Service(tmp_path / "hub", 1)
    for version, model in (("1.0.0", OLD), ("1.1.0", NEW)):
        folder = tmp_path / version
        folder.mkdir()
        (folder / "model.tflite").write_bytes(model)
        (folder / "in.json").write_text(json.dumps({"requests": [{"inputs": [TENSOR]}]}))
        (folder / "out.json").write_text(json.dumps({"responses": [{"outputs": [TENSOR]}]}))
        tables = '[golden]\ninputs = "in.json"\noutputs = "out.json"\n'
        (folder / "release.toml").write_text(f'model = "digits"\nversion = "{version}"\n{tables}')
        service.registry.add(folder, 1)
    tell(service, "install")
    yield service
    service.database.close()


def tell(service, action) -> None:
    newest = service.registry.all()[-1]
    service.told = {"canary": {"digits": Signed("canary", "digits", 1, newest.digest, action, True)}}


def test_a_hub_that_starts_asks_for_what_rings_are_to_install_and_for_nothing_that_was_dropped(service):
    tell(service, "hold")
    service.workshop.request_all_recipes()
    assert service.workshop.recipes.take() is None, "no ring is to run it, and it is old"
    tell(service, "install")
    service.workshop.request_all_recipes()
    assert service.workshop.recipes.take() == (sha256(OLD), sha256(NEW))


def test_a_recipe_stays_while_a_node_says_that_it_holds_the_base_of_what_its_ring_is_to_install(service):
    service.enrolment.add_token("lab", "pi-1", b"t" * 32, 1, 60)
    service.enrolment.enroll("lab", "pi-1", request(b"t" * 32), 2)
    old, _ = service.registry.all()
    pair = (sha256(OLD), sha256(NEW))
    service.registry.make_recipe(*pair, 1)
    models = {"digits": ModelReport(phase="idle", tuple=Tuple(release=old.digest))}
    service.fleet.take_reported("lab", "pi-1", said(1, models=models))
    assert service.workshop.drop_recipes() == "" and service.registry.missing_recipes([pair]) == []
    tell(service, "hold")
    assert "dropped 1 recipes" in service.workshop.drop_recipes() and service.registry.missing_recipes([pair]) == [pair]
    tell(service, "install")
    service.registry.make_recipe(*pair, 1)
    service.fleet.take_reported("lab", "pi-1", said(2, models={"digits": ModelReport(phase="idle")}))
    assert "dropped 1 recipes" in service.workshop.drop_recipes(), "the node holds it no longer"


def test_a_hub_that_ends_waits_for_no_recipe(service):
    """What is being made is ended with it, in the middle of it."""
    chance = random.Random(6)
    folder = service.folder.parent
    for name in ("old", "new"):
        (folder / name).write_bytes(chance.randbytes(16 << 20))
    base, target = (service.objects.put_file(folder / name) for name in ("old", "new"))
    begun = threading.Event()

    def make(old, new, delta, progress):
        service.workshop._making.make(old, new, delta, lambda done, whole: (begun.set(), progress(done, whole)))

    service.workshop.recipes = Recipes(service.registry, make)
    assert service.workshop.recipes.request([(base, target)], 0.0)

    async def run() -> float:
        making = asyncio.ensure_future(service.workshop.make_recipes())
        await asyncio.to_thread(begun.wait, 60)
        making.cancel()
        await asyncio.wait({making})
        return time.monotonic()

    cancelled = asyncio.run(run())  # which waits for the thread
    assert "stopped" in service.workshop.recipes.failed[base, target]
    assert time.monotonic() - cancelled < 10, "making it takes far longer"


def test_an_operator_sees_of_a_release_which_deltas_wait_how_far_one_is_and_why_one_failed(service, capsys):
    releases = Releases(service)
    assert asyncio.run(releases.show_release("digits@1.1.0"))["making"] == []
    service.workshop.request_recipes(service.registry.find("digits", "1.1.0"))
    (row,) = asyncio.run(releases.show_release("digits@1.1.0"))["making"]
    assert (row["file"], row["from"], row["state"]) == ("model.tflite", ["digits@1.0.0"], "waiting")
    assert (row["base"], row["done_bytes"], row["bytes"]) == (sha256(OLD).hex(), 0, len(NEW))
    service.objects.path(sha256(OLD)).write_bytes(b"rotten")
    service.workshop.recipes.make(service.workshop.recipes.take(), NOW)
    show_making(asyncio.run(releases.show_release("digits@1.1.0"))["making"])
    printed = capsys.readouterr().out
    assert "digits@1.0.0" in printed and "failed: object" in printed and f"0 of {len(NEW)}" in printed
    show_making([])
    assert capsys.readouterr().out == ""

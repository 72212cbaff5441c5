"""The hub as a process, what operators type, a real Mosquitto, and a node played by hand."""

import os
import signal
import stat
import time
from random import Random

import pytest

import bundles
from heliograph import documents as doc
from heliograph import vouching
from heliograph.blob import sha256
from heliograph.delta import recipe
from heliograph.delta.patch import rebuild_segment
from heliograph.errors import RefusedError
from heliograph.lab import free_port
from heliograph.manifest import Manifest
from heliograph.protocol import topic
from heliograph.signing import PrivateKey
from heliograph.sketch import Sketch
from heliograph.wire import pack, unpack
from heliograph_hub.founding import init_hub
from heliograph_hub.rollout import Worded
from heliograph_hub.service import Service
from hubs import HARDWARE, STEP_S, Hub, ScriptedNode, in_loop
from waits import until


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path)
    try:
        hub.start()
        yield hub
    finally:
        code = hub.run.terminate() if hub.run is not None and hub.run.is_alive else 0
    assert code == 0, hub.log.read_text()


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("releases")
    return {
        "1.0.0": bundles.digits_bundle(folder / "1.0.0", "1.0.0"),
        "1.1.0": bundles.digits_bundle(folder / "1.1.0", "1.1.0", bundles.HEAD),
    }


@in_loop
async def test_a_release_goes_from_a_folder_to_a_node_that_rebuilds_it_in_full_then_as_a_delta(hub, releases):
    join = hub.command("fleet", "token", "lab", code=2) and hub.command("fleet", "token", "lab/pi-1").strip()
    async with ScriptedNode(join).connected() as node:
        await node.enroll()
        assert (node.assignment.number, node.assignment.ring) == (1, "general")
        assert hub.command("fleet", "assign", "lab", "canary").startswith("site lab is in ring canary: 1 node assigned")
        assert (await node.next("assigned")).ring == "canary"

        hub.publish(releases["1.0.0"], "digits@1.0.0")
        hub.command("rollout", "start", "digits@1.0.0")
        old = bytes.fromhex(hub.json("release", "show", "digits@1.0.0")["digest"])
        await node.hello()
        (directive,) = node.desired["canary"]
        assert "early" not in node.desired, "only canary is released"
        target = vouching.admit(node.trusted, directive, "canary", 1).target
        assert (target.sha256, target.model, target.version) == (old, "digits", "1.0.0")

        manifest = Manifest.parse(await node.fetch(old, target.length), old, target.length)
        offer = await node.settled_offer(old)
        assert {way.kind for way in offer.ways} == {"full"}
        files = {}
        for file in manifest.files:
            before = node.content_bytes
            files[file.name] = await node.fetch(file.sha256, file.length, file.pages)
            (way,) = [way for way in offer.ways if way.blob == file.sha256]
            assert node.content_bytes - before == way.bytes, "the offer says exactly what crosses the link"
        assert files["model.tflite"] == bundles.BASE.read_bytes()

        await node.report(
            1, digits=doc.ModelReport(phase="idle", tuple=doc.Tuple(release=old), since=77, verdict="proven")
        )
        await until(lambda: hub.json("fleet", "list")[0]["models"], "the report arrives")
        (listed,) = hub.json("fleet", "list")
        assert listed["last_heard"] > 1_700_000_000 and listed["bytes_received"] > 3_000_000
        assert {key: listed[key] for key in ("site", "node", "ring", "link", "models")} == {
            "site": "lab", "node": "pi-1", "ring": "canary", "link": "up",
            "models": {"digits": {"phase": "idle", "verdict": "proven", "active": {
                "release": "digits@1.0.0", "digest": old.hex(), "config": 0, "policy": 0, "since": 77}}},
        }  # fmt: skip
        canary = hub.json("rollout", "status", "digits@1.0.0")["rings"][0]
        assert canary["serving"] == canary["proven"] == ["lab/pi-1"]
        assert "digits: digits@1.0.0 (idle, proven)" in hub.command("fleet", "list")

        hub.publish(releases["1.1.0"], "digits@1.1.0")
        hub.command("rollout", "start", "digits@1.1.0")
        shown = hub.json("release", "show", "digits@1.1.0")
        new = bytes.fromhex(shown["digest"])
        await node.hello()
        target = vouching.admit(node.trusted, node.desired["canary"][0], "canary", 1).target
        assert target.sha256 == new
        manifest = Manifest.parse(await node.fetch(new, target.length), new, target.length)
        offer = await node.settled_offer(new, tuple(sha256(content) for content in files.values()))
        model = manifest.file("model.tflite")
        delta, full = [way for way in offer.ways if way.blob == model.sha256]
        assert (delta.kind, full.kind) == ("delta", "full") and delta.bytes < full.bytes / 4
        before = node.content_bytes
        made = recipe.parse(await node.fetch(delta.recipe.sha256, delta.recipe.length))
        made.check_is_for(sha256(bundles.BASE.read_bytes()), model.sha256, model.length)
        patch = await node.fetch(made.patch_sha256, made.patch_length, made.patch_pages)
        base = files["model.tflite"]
        rebuilt = b"".join(
            rebuild_segment(s, lambda at, count: base[at : at + count], patch[s.patch[0] : s.patch[0] + s.patch[1]])
            for s in made.segments
        )
        assert rebuilt == bundles.HEAD.read_bytes()
        assert node.content_bytes - before == delta.bytes
        shown = hub.json("release", "show", "digits@1.1.0")
        cheapest = {way.blob: way.bytes for way in reversed(offer.ways)}  # each blob's cheapest way stands first
        assert shown["costs"] == {"digits@1.0.0": target.length + sum(cheapest.values())}
        (costs,) = [d for d in shown["deltas"] if d["file"] == "model.tflite"]
        assert (costs["bytes"], costs["full_bytes"], costs["from"]) == (delta.bytes, full.bytes, ["digits@1.0.0"])

        offer = await node.ask(b"?" * 32)
        assert offer.never and "the hub has no release" in offer.reason
        refused = doc.Refusal(release=new, number=2, reason="golden outputs differ by 31")
        await node.report(2, digits=doc.ModelReport(phase="idle", tuple=doc.Tuple(release=old), refused=(refused,)))
        await until(lambda: hub.json("fleet", "show", "lab/pi-1")["models"]["digits"]["refused"], "the refusal arrives")
        (refusal,) = hub.json("rollout", "status", "digits@1.1.0")["rings"][0]["refused"]
        assert refusal == {"node": "lab/pi-1", "reason": "golden outputs differ by 31"}
    await until(lambda: hub.json("fleet", "list")[0]["link"] == "down", "the broken connection is seen")


@in_loop
async def test_a_killed_hub_comes_back_with_everything_and_counts_records_once(hub, releases):
    hub.publish(releases["1.0.0"], "digits@1.0.0")
    hub.command("rollout", "start", "digits@1.0.0")
    hub.command("rollout", "promote", "digits@1.0.0", "--to", "general")
    join = hub.command("fleet", "token", "lab/pi-1").strip()
    async with ScriptedNode(join).connected() as node:
        await node.enroll()
        batch = node.records(0, 3)
        for _ in range(3):
            await node.say("records", batch)
            assert (await node.next("receipt")).next == 3
        before = {
            words: hub.json(*words)
            for words in (
                ("release", "list"),
                ("release", "show", "digits@1.0.0"),
                ("rollout", "status", "digits@1.0.0"),
            )
        }
        hub.kill()
        shown = hub.command("fleet", "list", code=1)
        assert f"no hub is running at {hub.folder}: start it with: heliograph hub run" in shown
        hub.start()
        await until(node.up.is_set, "the node is back")
        await node.hello()
        for words, answer in before.items():
            assert hub.json(*words) == answer
        for first, count, expected in ((0, 3, 3), (0, 3, 3), (0, 5, 5), (5, 1, 6)):
            await node.say("records", node.records(first, count))
            assert (await node.next("receipt")).next == expected
        records = hub.json("fleet", "show", "lab/pi-1")["records"]
        assert records == {"audit": {"kept": 6, "merged": 0, "lost": 0, "missing": 0, "dropped": 0}}
        (reply,) = await node.hello()
        assert {(r.lane, r.next) for r in reply.acked} == {("audit", 6)}
        assert "general" in node.desired
        assert reply.heads.directives["general"] == sha256(pack(list(node.desired["general"])))


@in_loop
async def test_the_percentiles_of_a_node_outlive_the_thinning_of_its_records(hub, releases):
    hub.publish(releases["1.0.0"], "digits@1.0.0")
    release = bytes.fromhex(hub.json("release", "show", "digits@1.0.0")["digest"])
    async with ScriptedNode(hub.command("fleet", "token", "lab/pi-1").strip()).connected() as node:
        await node.enroll()
        slow, fast = Sketch(), Sketch()
        for _ in range(90):
            slow.add(40_000_000)
        for _ in range(10):
            fast.add(5_000_000)
        hour = {"model": "digits", "release": release, "state": "ready", "restarts": 0}
        rows = (
            (60, "serving", 3600, hour | {"requests": 92, "errors": 2, "latency": slow.encode(), "span": [3600, 7140]}),
            (1, "serving", 7200, hour | {"requests": 10, "errors": 0, "latency": fast.encode()}),
            (1, "serving", 7260, {"model": "digits", "requests": "many"}),
        )
        await node.say("records", node.records_of("metric", 0, rows))
        assert (await node.next("receipt")).next == 62
        (told,) = hub.json("fleet", "show", "lab/pi-1")["serving"]["digits"]
        assert (told["release"], told["digest"]) == ("digits@1.0.0", release.hex())
        assert (told["requests"], told["errors"], told["from"], told["to"]) == (102, 2, 3600, 7200)
        assert (told["p50_ms"], told["p95_ms"]) == pytest.approx((40, 40), rel=0.01)
        shown = hub.command("fleet", "show", "lab/pi-1")
        (line,) = (line.split() for line in shown.splitlines() if line.startswith("digits@1.0.0"))
        assert line[1:4] == ["102", "2", "0"] and line[6:8] == ["1970-01-01", "01:00:00"]


@in_loop
async def test_hostile_messages_are_counted_and_stop_nothing(hub):
    join = hub.command("fleet", "token", "lab/pi-1").strip()
    async with ScriptedNode(join).connected() as node:
        await node.enroll()
        stranger = ScriptedNode(join, PrivateKey.generate(b"s" * 32))
        stranger.mqtt, stranger.trusted, stranger.assignment = node.mqtt, node.trusted, node.assignment
        await stranger.say(
            "enroll", doc.Enroll(token=node.token, key=stranger.key.public.raw, nonce=b"x" * 16).encode()
        )
        await stranger.report(1)
        await stranger.say("records", stranger.records(0, 3))
        rng = Random(5)
        for name in ("hello", "ask", "want", "reported", "records", "renew", "enroll"):
            for _ in range(5):
                await node.say(name, rng.randbytes(rng.randint(0, 300)))
            await node.say(name, b"\x81" * 60_000)
            await node.say(name, b"")
        await node.say("want", doc.Want(handle=b"hndl", blob=b"?" * 32, ranges=((0, 1),)).encode())
        await node.mqtt.publish(topic("hello").build("test", site="no", node="where"), b"x", qos=1)
        await node.report(1)
        await node.report(1)
        assert len(await node.hello()) == 1, "served as before"
        shown = hub.json("fleet", "show", "lab/pi-1")
        counted = {what: count["count"] for what, count in shown["not_counted"].items()}
        assert counted["replayed"] == 1
        assert counted["refused"] == 1, "the used token"
        assert counted["not signed by the node"] == 2
        assert counted["about unknown things"] == 1
        assert counted["malformed"] == 7 * 7 - 1, "an empty one at the door clears what was retained there"
        assert shown["records"] == {}
        assert hub.run.is_alive


@in_loop
async def test_a_broker_that_comes_back_empty_is_given_everything_again(hub, releases):
    hub.publish(releases["1.0.0"], "digits@1.0.0")
    hub.command("rollout", "start", "digits@1.0.0")
    broker = hub.folder / "broker"
    pid = int((broker / "pid").read_text())
    os.kill(pid, signal.SIGKILL)
    for path in broker.glob("*.db"):
        path.unlink()
    join = hub.command("fleet", "token", "lab/pi-1").strip()
    async with ScriptedNode(join).connected() as node:
        await until(
            lambda: node.trusted is not None and node.trusted.is_complete and "canary" in node.desired, "retained"
        )
        assert int((broker / "pid").read_text()) != pid
        await node.enroll()


def test_news_too_large_for_one_statement_come_in_parts_that_each_fit(tmp_path):
    folder = tmp_path / "hub"
    init_hub(folder, "test", int(time.time()))
    service = Service(folder, free_port())
    key = PrivateKey.generate(b"k" * 32)
    service.enrolment.add_token("lab", "pi-1", b"t" * 32, 1, 60)
    service.enrolment.enroll("lab", "pi-1", doc.Enroll(token=b"t" * 32, key=key.public.raw, nonce=b"n" * 16), 1)
    signed = []
    for number in range(218):
        directive = doc.Directive(
            realm="test",
            ring="general",
            model=f"m{number}",
            release=b"r" * 32,
            number=1,
            action="install",
            expires=1 << 33,
        )
        statement = service.authority.sign_statement("ring-general", "directive", directive)
        signed.append((Worded(directive, released=True), statement))
    service.desired.add(signed, 1)
    service.announce()
    hello = doc.Hello(
        run=b"r" * 8, nonce=b"n" * 16, agent="0", schemas={}, hardware=HARDWARE, numbers=doc.Numbers(), tuf={}
    )
    replies = service.replies(service.fleet.node("lab", "pi-1"), hello, ())
    assert len(replies) > 1 and [reply.more for reply in replies] == [True] * (len(replies) - 1) + [False]
    assert all(len(service.authority.sign_statement("timestamp", "reply", reply)) <= 60 * 1024 for reply in replies)
    documents = dict(document for reply in replies for document in reply.documents)
    assert list(documents) == ["tuf/root/1", "tuf/set", "assigned", "desired/general"]
    assert len(unpack(documents["desired/general"])) == 218
    current = doc.Numbers(assignment=1, directives={f"m{number}": 1 for number in range(218)})
    known = hello.model_copy(update={"tuf": service.authority.set.versions, "numbers": current})
    (reply,) = service.replies(service.fleet.node("lab", "pi-1"), known, ())
    assert reply.documents == () and not reply.more, "who has everything is told that nothing is new"
    others = [worded.directive.model_copy(update={"model": f"x{number}"}) for number, (worded, _) in enumerate(signed)]
    more = [(Worded(other, released=True), signed[0][1]) for other in others[:60]]
    with pytest.raises(RefusedError, match=r"ring general has .* bytes of directives"):
        service.desired.add(more, 1)
    assert len(service.desired.rows()) == 218
    service.database.close()


def test_what_an_operator_does_wrong_is_said_in_one_line_with_its_exit_code(hub, releases, tmp_path):
    hub.command("release", "add", str(releases["1.0.0"]))
    added = hub.command("release", "add", str(releases["1.0.0"]))
    assert added.strip() == hub.json("release", "show", "digits@1.0.0")["digest"]
    release = ("release", "approve", "digits@1.0.0", "--key")
    no_key = tmp_path / "no.key"
    no_key.touch(0o600)
    # fmt: off
    wrong = [
        (4, "can't approve digits: keys that count are",       *release, hub.key("sign-digits")),
        (2, "does not exist",                                  *release, str(tmp_path / "absent.key")),
        (2, "is no key file",                                  *release, str(no_key)),
        (2, "can be read by other users: chmod 600 it",        *release, str(releases["1.0.0"] / "labels.txt")),
        (4, "is not signed: heliograph release sign",          "rollout", "start", "digits@1.0.0"),
        (3, "no release digits@7.0.0",                         "release", "show", "digits@7.0.0"),
        (3, "no release faces@1.0.0",                          "rollout", "start", "faces@1.0.0"),
        (2, "write MODEL@MAJOR.MINOR.PATCH",                   "release", "show", "digits"),
        (3, "has no rollout: heliograph rollout start",        "rollout", "status", "digits@1.0.0"),
        (2, "no ring 'moon'",                                  "fleet", "assign", "lab", "moon"),
        (2, "'Mars' is no IANA time zone",                     "fleet", "label", "lab", "time-zone=Mars"),
        (3, "no node lab/x is enrolled",                       "fleet", "remove", "lab/x"),
        (2, "write SITE/NODE",                                 "fleet", "show", "lab"),
        (2, "is neither MODEL@MAJOR.MINOR.PATCH nor a digest", "release", "deny", "abcd", "--key", hub.key("deny-1")),
        (2, "reason: string should have at most",              "release", "deny", "digits@1.0.0", "--reason", "x" * 999,
                                                               "--key", hub.key("deny-1")),
        (4, "which can't sign this denial: keys that count",   "release", "deny", "digits@1.0.0",
                                                               "--key", hub.key("sign-digits")),
        (3, "no key 'abc' in this realm",                      "key", "deny", "abc", "--key", hub.key("deny-key-1")),
        (2, "is not a folder",                                 "release", "add", str(tmp_path / "absent")),
        (4, "a hub is running in",                             "hub", "run", str(hub.folder)),
        (2, "is no hub folder: heliograph hub init",           "hub", "run", str(tmp_path)),
        (4, "holds a realm already",                           "hub", "init", str(hub.folder)),
        (2, "is no hub folder: heliograph hub init",           "hub", "run", str(no_key)),
        (2, "holds something else than a realm",               "hub", "init", str(no_key)),
        (2, "can't be made (Not a directory): choose a",       "hub", "init", str(no_key / "below")),
        (2, "is not a name",                                   "hub", "init", str(tmp_path / "new"), "--realm", "No!"),
        (2, "is no hub folder",                                "fleet", "list", "--hub", str(tmp_path)),
        (1, "no hub is running at http://127.0.0.1:1",         "fleet", "list", "--hub", "http://127.0.0.1:1"),
    ]
    # fmt: on
    for code, words, *arguments in wrong:
        assert words in hub.command(*arguments, code=code), arguments
    assert hub.json("release", "list")[0]["approved"] == {"have": 0, "need": 2, "done": False}
    assert hub.command(*release, hub.key("approve-digits-3")) == "digits@1.0.0: 1 of 2 signatures, 1 more to go\n"
    assert hub.command(*release, hub.key("approve-digits-3")) == "digits@1.0.0: 1 of 2 signatures, 1 more to go\n"
    assert hub.command(*release, hub.key("approve-digits-1")) == "digits@1.0.0 is approved\n"
    assert hub.json("release", "list")[0]["approved"] == {"have": 2, "need": 2, "done": True}
    assert stat.S_IMODE((hub.folder / "hub.sock").stat().st_mode) == 0o600


def test_ctrl_c_ends_the_hub_cleanly_and_a_port_that_is_taken_is_named(hub, tmp_path):
    other = Hub(tmp_path / "other")
    said = other.command("hub", "run", str(other.folder), "--plain-port", str(hub.port), code=2)
    assert f"port {hub.port} on 127.0.0.1 is not free" in said
    hub.run.process.send_signal(signal.SIGINT)
    assert hub.run.process.wait(STEP_S) == 0, hub.log.read_text()
    assert "stopped" in hub.log.read_text() and "Traceback" not in hub.log.read_text()
    assert not (hub.folder / "hub.sock").exists()

"""What a hub announces first: denials, to nodes by hand over a real broker, and in its replies."""

import asyncio
import time

import pytest

import bundles
from heliograph import documents as doc
from heliograph.errors import TrustError
from heliograph.lab import free_port
from heliograph.signing import PrivateKey
from heliograph.statement import signed_bytes
from heliograph_hub.api.denials import Denials
from heliograph_hub.broker import Broker as BrokerProcess
from heliograph_hub.founding import init_hub, init_realm
from heliograph_hub.keys import load_key
from heliograph_hub.process import greeting
from heliograph_hub.service import Service
from hubs import HARDWARE, Hub, ScriptedNode, in_loop
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
async def test_a_denial_reaches_a_node_before_all_else_and_the_release_never_goes_out_again(hub, releases):
    hub.publish(releases["1.0.0"], "digits@1.0.0")
    hub.publish(releases["1.1.0"], "digits@1.1.0")
    bad = bytes.fromhex(hub.json("release", "show", "digits@1.1.0")["digest"])
    hub.command("rollout", "start", "digits@1.1.0")
    join = hub.command("fleet", "token", "lab/pi-1").strip()
    async with ScriptedNode(join).connected() as node:
        await node.enroll()
        assert "; the node has not said hello yet\n" in hub.command("fleet", "show", "lab/pi-1")
        await node.hello()
        assert hub.json("fleet", "show", "lab/pi-1")["deny"] == {"count": 0, "digest": "", "acknowledged": False}
        node.told.clear()
        told = hub.command("release", "deny", "digits@1.1.0", "--key", hub.key("deny-1"), "--reason", "wrong labels")
        assert "a node that has nothing else serves it on" in told and "denied now: digits@1.1.0" in told
        await until(lambda: "set" in node.told, "the set that names the denial")
        assert node.told[0] == "deny", "published before anything else"
        assert node.denied.is_denied(bad).document.reason == "wrong labels"
        assert node.trusted.heads.deny == node.denied.head and node.denied.holds_all(node.trusted.heads.deny)

        offer = await node.ask(bad)
        assert offer.never and "is denied by its digest: wrong labels" in offer.reason
        for words in (("rollout", "start"), ("rollout", "promote"), ("release", "sign")):
            key = ("--key", hub.key("sign-digits")) if words[0] == "release" else ()
            assert "denied" in hub.command(*words, "digits@1.1.0", *key, code=4)
        assert "DENIED by digest: wrong labels" in hub.command("rollout", "status", "digits@1.1.0")
        assert "DENIED by digest: wrong labels" in hub.command("release", "show", "digits@1.1.0")
        listed = {row["release"]: row["denied"] for row in hub.json("release", "list")}
        assert listed["digits@1.0.0"] is None and listed["digits@1.1.0"]["final"] is False

        await node.report(1)
        await until(lambda: hub.json("fleet", "show", "lab/pi-1")["deny"]["acknowledged"], "the node's word")
        assert "denials 1, all that are in force" in hub.command("fleet", "show", "lab/pi-1")

    told = hub.command("release", "deny", "digits@1.1.0", "--key", hub.key("deny-2"))
    assert "with 2 signatures: final" in told
    hub.kill()
    hub.start()
    fresh = ScriptedNode(join, node.key)
    fresh.trusted, fresh.assignment = node.trusted, node.assignment
    async with fresh.connected():
        await fresh.hello()
        assert fresh.denied.is_final(bad), "by what is retained, or else by the reply"


@in_loop
async def test_a_stolen_signing_key_is_denied_and_what_it_signed_is_not_offered_except_what_is_kept(hub, releases):
    hub.publish(releases["1.0.0"], "digits@1.0.0")
    hub.publish(releases["1.1.0"], "digits@1.1.0")
    good, bad = (bytes.fromhex(hub.json("release", "show", f"digits@1.{n}.0")["digest"]) for n in (0, 1))
    (stolen,) = [row["keyid"] for row in hub.json("key", "list") if row["role"] == "sign-digits"]
    keep = ("--keep", "digits@1.0.0", "--reason", "stolen")
    assert "can't sign this denial" in hub.command("key", "deny", stolen, "--key", hub.key("deny-1"), *keep, code=4)
    told = hub.command("key", "deny", stolen[:16], "--key", hub.key("deny-key-1"), *keep)
    assert "1 of 2 signatures, 1 more to go; nothing is denied yet" in told
    told = hub.command("key", "deny", stolen[:16], "--key", hub.key("deny-key-2"), *keep)
    assert "with 2 signatures: final" in told and told.endswith("denied now: digits@1.1.0\n")
    assert "denied" in hub.command("rollout", "start", "digits@1.1.0", code=4)
    hub.command("rollout", "start", "digits@1.0.0")
    assert [row["denied"] for row in hub.json("key", "list") if row["keyid"] == stolen] == [True]
    async with ScriptedNode(hub.command("fleet", "token", "lab/pi-1").strip()).connected() as node:
        await node.enroll()
        await node.hello()
        assert node.denied.is_denied(bad, [bytes.fromhex(stolen)]) and node.denied.is_denied(bad) is None
        assert node.denied.is_denied(good, [bytes.fromhex(stolen)]) is None
        assert (await node.ask(bad)).never
    for words in (("digits@9.9.9",), ("digits",), ("f" * 63,)):
        assert hub.command("release", "deny", *words, "--key", hub.key("deny-1"), code=3 if "@9" in words[0] else 2)
    assert "no key" in hub.command("key", "deny", "f" * 16, "--key", hub.key("deny-key-1"), code=3)
    (weights, *_) = [file["sha256"] for file in hub.json("release", "show", "digits@1.0.0")["files"]]
    told = hub.command("release", "deny", weights, "--key", hub.key("deny-1"), code=2)
    assert f"{weights[:16]} is a part of digits@1." in told and "which no denial names: deny digits@1." in told


def test_what_a_denial_names_and_nobody_here_knows_is_told_and_denied_all_the_same(tmp_path):
    init_hub(tmp_path / "hub", "test", int(time.time()))
    service = Service(tmp_path / "hub", free_port())
    known = next(iter(service.denials.keyids("deny"))).hex()
    api = Denials(service)

    def unknown(**asked):
        return asyncio.run(api.request_denial({"reason": "", "keep": []} | asked))["unknown"]

    assert unknown(type="deny", releases=["f" * 64]) == ["f" * 64]
    assert unknown(type="deny-key", keys=[known, "e" * 64], keep=["d" * 64]) == ["e" * 64, "d" * 64]
    _denying(service, "deny-1")
    assert service.denials.head.count == 1
    service.database.close()


def _denying(service: Service, *names: str) -> None:
    payload = doc.Deny(realm="test", releases=(b"r" * 32,), at=1).encode()
    keys = [load_key(service.folder / "keys" / f"{name}.key") for name in names]
    message = signed_bytes("deny", payload)
    service.denials.add("deny", payload, {key.keyid: key.sign(message) for key in keys}, 1)


def test_a_denial_is_announced_though_the_realm_expired_long_ago(tmp_path):
    init_realm(tmp_path, "test", 1_000_000_000)
    service = Service(tmp_path, free_port())
    _denying(service, "deny-1")
    with pytest.raises(TrustError, match="expired"):
        service.announce()
    assert list(service.announcing.retained) == ["heliograph/v1/test/deny/all"]
    service.database.close()


def test_denials_come_first_in_a_reply_and_once_more_behind_a_set(tmp_path):
    init_hub(tmp_path / "hub", "test", int(time.time()))
    service = Service(tmp_path / "hub", free_port())
    key = PrivateKey.generate(b"k" * 32)
    service.enrolment.add_token("lab", "pi-1", b"t" * 32, 1, 60)
    service.enrolment.enroll("lab", "pi-1", doc.Enroll(token=b"t" * 32, key=key.public.raw, nonce=b"n" * 16), 1)
    _denying(service, "deny-1")
    service.announce()
    assert next(iter(service.announcing.retained)) == "heliograph/v1/test/deny/all"
    hello = doc.Hello(
        run=b"r" * 8, nonce=b"n" * 16, agent="0", schemas={}, hardware=HARDWARE, numbers=doc.Numbers(), tuf={}
    )
    node = service.fleet.node("lab", "pi-1")
    (reply,) = service.replies(node, hello, ())
    assert [name for name, _ in reply.documents] == ["deny/all", "tuf/root/1", "tuf/set", "deny/all", "assigned"]
    known = hello.model_copy(update={"tuf": service.authority.set.versions, "numbers": doc.Numbers(assignment=1)})
    (reply,) = service.replies(node, known, ())
    assert [name for name, _ in reply.documents] == ["deny/all"] and reply.heads.deny == service.denials.head
    (reply,) = service.replies(node, known.model_copy(update={"deny": service.denials.head}), ())
    assert reply.documents == ()
    service.database.close()
    (tmp_path / "hub" / "hub.sqlite").unlink()
    again = Service(tmp_path / "hub", free_port())
    assert greeting(again, BrokerProcess(tmp_path / "hub", 1, "127.0.0.1"))[0].startswith(
        "DENIALS ARE MISSING: the timestamp names 1, the database has 0"
    )
    again.database.close()

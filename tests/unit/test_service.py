"""How a hub begins whose set can't be signed anew: denials are announced, and what was signed before goes on."""

import asyncio
import json
import os
import time

import pytest
import sqlalchemy as sa

from heliograph import documents as doc
from heliograph.blob import Digest
from heliograph.errors import TrustError
from heliograph.policy import Policy
from heliograph.signing import PrivateKey, sign_statement
from heliograph.statement import Statement, encode, parse, signed_bytes
from heliograph_hub import request
from heliograph_hub.access import Doors
from heliograph_hub.database import nodes
from heliograph_hub.founding import init_realm
from heliograph_hub.keys import load_key, make_key
from heliograph_hub.registry import note_blob
from heliograph_hub.retention import UNNAMED_S
from heliograph_hub.rollout import Signed
from heliograph_hub.service import Service

HARDWARE = doc.Hardware(arch="aarch64", memory_bytes=1 << 30, runtimes={})


@pytest.fixture
def expired(tmp_path):
    """The hub of a realm that expired long ago, with a denial that its timestamp doesn't name."""
    init_realm(tmp_path, "test", 1_000_000_000)
    service = Service(tmp_path, 1)
    payload = doc.Deny(realm="test", releases=(b"r" * 32,), at=1).encode()
    key = load_key(tmp_path / "keys" / "deny-1.key")
    service.denials.add("deny", payload, {key.keyid: key.sign(signed_bytes("deny", payload))}, 1)
    service.database.close()
    service = Service(tmp_path, 1)
    yield service
    service.database.close()


def test_a_hub_of_an_expired_realm_begins_and_says_what_it_can_not_sign(expired):
    expired.begin()
    below = [full.removeprefix("heliograph/v1/test/") for full in expired.announcing.retained]
    assert below[0] == "deny/all", "before everything, as always"
    assert below[-3:] == ["tuf/root/1", "tuf/set", "tuf/head"]
    assert "expired" in expired.unsigned
    with pytest.raises(TrustError, match="expired"):
        expired.announce()


def test_a_node_that_lacks_everything_is_replied_to_by_a_hub_that_can_not_sign_anew(expired):
    expired.begin()
    key = PrivateKey.generate(b"k" * 32)
    expired.enrolment.add_token("lab", "pi-1", b"t" * 32, 1, 60)
    expired.enrolment.enroll("lab", "pi-1", doc.Enroll(token=b"t" * 32, key=key.public.raw, nonce=b"n" * 16), 1)
    hello = doc.Hello(
        run=b"r" * 8, nonce=b"n" * 16, agent="0", schemas={}, hardware=HARDWARE, numbers=doc.Numbers(), tuf={}
    )
    (reply,) = expired.replies(expired.fleet.node("lab", "pi-1"), hello, ())
    assert [name for name, _ in reply.documents] == ["deny/all", "tuf/root/1", "tuf/set", "deny/all", "assigned"]


def test_denials_are_announced_at_once_though_an_assignment_can_not_be_signed_again(tmp_path):
    now = int(time.time())
    init_realm(tmp_path, "test", now)
    service = Service(tmp_path, 1)
    service.enrolment.add_token("lab", "pi-1", b"t" * 32, now, 60)
    key = PrivateKey.generate(b"k" * 32).public.raw
    service.enrolment.enroll("lab", "pi-1", doc.Enroll(token=b"t" * 32, key=key, nonce=b"n" * 16), now)
    payload = doc.Deny(realm="test", releases=(b"r" * 32,), at=now).encode()
    deny = load_key(tmp_path / "keys" / "deny-1.key")
    service.denials.add("deny", payload, {deny.keyid: deny.sign(signed_bytes("deny", payload))}, now)
    with service.database.write() as connection:
        bare = encode(Statement("assignment", parse(service.fleet.node("lab", "pi-1").assigned).payload, ()))
        connection.execute(sa.update(nodes).values(assigned=bare))
    (tmp_path / "keys" / "assign.key").unlink()
    service.database.close()
    service = Service(tmp_path, 1)
    service.begin()
    assert "assign" in service.unsigned
    assert next(iter(service.announcing.retained)) == "heliograph/v1/test/deny/all"
    service.database.close()


def test_a_hub_that_can_sign_begins_with_nothing_to_say(tmp_path):
    init_realm(tmp_path, "test", 1_795_000_000)
    service = Service(tmp_path, 1)
    service.begin()
    assert service.unsigned == "" and "heliograph/v1/test/tuf/set" in service.announcing.retained
    service.database.close()


def test_a_set_is_announced_after_what_it_names_and_before_it_if_it_names_other_keys(tmp_path):
    now = int(time.time())
    init_realm(tmp_path, "test", now)
    service = Service(tmp_path, 1)
    service.begin()
    stored = service.control.draft(Policy(realm="test", ring="canary", number=1, at=now), now)
    signer = load_key(tmp_path / "keys" / "policy.key")
    signatures = {signer.keyid: signer.sign(signed_bytes("policy", stored.payload))}
    service.control.add("policy", stored.payload, signatures, now)
    service.announce()
    below = [full.removeprefix("heliograph/v1/test/") for full in service.announcing.retained]
    assert below == ["tuf/root/1", "policy/canary", "tuf/set", "tuf/head"], "or nodes would ask for what is on its way"
    service.rotation.propose("root", [make_key(tmp_path / "root-4.key", b"n" * 32)], [], None, now)
    roots = [load_key(tmp_path / "keys" / f"root-{number}.key") for number in (1, 2, 3)]
    for ask in request.sign(service.rotation.asks(), roots)[0]:
        assert service.rotation.add(ask.name, ask.signatures, now)
    service.announce()
    below = [full.removeprefix("heliograph/v1/test/") for full in service.announcing.retained]
    assert below == ["tuf/root/1", "tuf/root/2", "tuf/set", "policy/canary", "tuf/head"]
    service.announce()
    assert list(service.announcing.retained)[-2:] == [f"heliograph/v1/test/tuf/{name}" for name in ("set", "head")]
    service.database.close()


def test_numbers_that_a_node_has_and_an_older_copy_of_the_hub_lost_are_counted_on_from(tmp_path):
    init_realm(tmp_path, "test", 1_795_000_000)
    service = Service(tmp_path, 1)
    key = PrivateKey.generate(b"k" * 32)
    sent = []

    async def send(name, site, node, payload):
        sent.append((name, payload))

    service._send = send
    service.enrolment.add_token("lab", "pi-1", b"t" * 32, 1, 60)
    service.enrolment.enroll("lab", "pi-1", doc.Enroll(token=b"t" * 32, key=key.public.raw, nonce=b"n" * 16), 1)
    reported = doc.Reported(
        realm="test", site="lab", node="pi-1", run=b"r" * 8, n=1, estimate=1_795_000_000, agent="0", schemas={},
        ring="general", assignment=7, tuf={}, deny=doc.Denials(), bytes_received=0, models={},
    )  # fmt: skip
    hello = doc.Hello(
        run=b"r" * 8, nonce=b"n" * 16, agent="0", schemas={}, hardware=HARDWARE, tuf=service.authority.set.versions,
        numbers=doc.Numbers(directives={"digits": 4}, assignment=7),
    )  # fmt: skip

    async def say():
        await service._handle("reported", "lab", "pi-1", sign_statement("reported", reported.encode(), [key]))
        await service._handle("hello", "lab", "pi-1", hello.encode())

    asyncio.run(say())
    told = [payload for name, payload in sent if name == "assigned"]
    assigned = told[0]
    assert doc.Assignment.decode(parse(assigned).payload).number == 8
    assert service.fleet.node("lab", "pi-1").assignment == 8
    assert service.rollouts._said == {("general", "digits"): 4}
    assert len(told) == 1
    reported = reported.model_copy(update={"n": 2})
    asyncio.run(say())
    assert [payload for name, payload in sent if name == "assigned"] == [assigned] * 2, "until it says that it has it"
    reported = reported.model_copy(update={"n": 3, "assignment": 8})
    asyncio.run(say())
    assert len([name for name, _ in sent if name == "assigned"]) == 2
    service.database.close()


def test_a_certificate_at_the_door_says_of_no_node_that_it_has_a_link(tmp_path):
    now = int(time.time())
    init_realm(tmp_path, "test", now)
    service = Service(tmp_path, 1, doors=Doors(enroll_port=2))
    key, names = PrivateKey.generate(b"k" * 32), {"realm": "test", "site": "lab", "node": "pi-1"}
    sent = []

    async def send(name, site, node, payload):
        sent.append(name)

    service._send = send
    service.enrolment.add_token("lab", "pi-1", b"t" * 32, now, 60)
    service.enrolment.enroll("lab", "pi-1", doc.Enroll(token=b"t" * 32, key=key.public.raw, nonce=b"n" * 16), now)
    renew = sign_statement("renew", doc.Renew(**names, nonce=b"n" * 16).encode(), [key])
    asyncio.run(service._handle("again", "lab", "pi-1", renew))
    node = service.fleet.node("lab", "pi-1")
    assert sent == ["certified"] and node.last_heard is None and not node.is_up(now), "it has joined and never run"
    asyncio.run(service._handle("renew", "lab", "pi-1", renew))
    assert service.fleet.node("lab", "pi-1").is_up(now), "over its own connection"
    service.fleet.gone("lab", "pi-1", now)
    asyncio.run(service._handle("again", "lab", "pi-1", renew))
    assert not service.fleet.node("lab", "pi-1").is_up(now), "at the door because that broke"
    service.database.close()


def test_what_a_killed_hub_was_sealing_is_removed_and_what_rings_are_told_is_sealed_by_itself(tmp_path):
    init_realm(tmp_path / "hub", "test", 1_795_000_000)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "model.tflite").write_bytes(b"model" * 1000)
    tensor = {"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}
    (bundle / "in.json").write_text(json.dumps({"requests": [{"inputs": [tensor]}]}))
    (bundle / "out.json").write_text(json.dumps({"responses": [{"outputs": [tensor]}]}))
    tables = '[golden]\ninputs = "in.json"\noutputs = "out.json"\n'
    (bundle / "release.toml").write_text(f'model = "digits"\nversion = "1.0.0"\nconfidential = true\n{tables}')
    service = Service(tmp_path / "hub", 1)
    release, _, _ = service.registry.add(bundle, 1_795_000_000)
    left = tmp_path / "hub" / "objects" / ".0123456789abcdef.part"
    left.write_bytes(b"half of a sealed blob")
    orphan = service.objects.put(b"a sealed blob whose row was never written")
    fresh = service.objects.put(b"a file of a release that a newer database knows, which may be put back")
    _age(service, orphan, UNNAMED_S + 60)
    _age(service, fresh, UNNAMED_S - 60)
    kept = list(service.objects.list())
    kept.remove(orphan)
    service.database.close()
    service = Service(tmp_path / "hub", 1)
    service.begin()
    assert not left.exists() and list(service.objects.list()) == kept != []
    service.told = {"canary": {"digits": Signed("canary", "digits", 1, release.digest, "install", True)}}
    service.workshop.seal_again()
    tasks = list(iter(service.workshop.seals.take, None))
    assert len(tasks) == 3 and all("sealed" in service.workshop.seals.make(task, 1_795_000_001) for task in tasks)
    service.workshop.seal_again()
    assert service.workshop.seals.take() is None, "once"
    service.duties.flush()
    assert service.duties.newest(1)[0].what == "began epoch 1 of digits: the first"
    service.database.close()


def _age(service, digest, seconds):
    came = time.time() - seconds
    os.utime(service.objects.path(digest), (came, came))


def test_a_hub_with_a_database_that_names_nothing_removes_nothing_from_its_store(tmp_path):
    init_realm(tmp_path, "test", 1_795_000_000)
    service = Service(tmp_path, 1)
    held = service.objects.put(b"of a release that another database knows")
    _age(service, held, 2 * UNNAMED_S)
    service.begin()
    assert service.objects.has(held)
    service.database.close()


def test_a_hub_begins_though_what_nothing_names_can_not_be_removed_and_though_odd_files_lie_there(tmp_path):
    init_realm(tmp_path, "test", 1_795_000_000)
    service = Service(tmp_path, 1)
    with service.database.write() as connection:
        note_blob(connection, service.objects.put(b"named"), 5, "file")
    folder = service.objects.path(next(service.objects.list())).parent
    odd = folder / folder.name.ljust(64, "-")
    odd.write_bytes(b"an object's name has other letters")
    stuck = Digest(b"\0" * 32)
    (tmp_path / "objects" / "00" / stuck.hex()).mkdir(parents=True)
    orphan = service.objects.put(b"unnamed")
    _age(service, orphan, 2 * UNNAMED_S)
    service.begin()
    assert service.announcing.retained and odd.exists() and not service.objects.has(orphan)
    service.database.close()

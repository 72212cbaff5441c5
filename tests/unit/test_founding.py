"""A realm whose keys lie elsewhere, from its ceremony on: everything by the commands, signatures carried by file."""

import json
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import uvicorn
from tests.unit.test_registry import RELEASE, make_bundle

from heliograph import trust
from heliograph.cli import main
from heliograph.deny import DenySet
from heliograph.lab import free_port, wait_until
from heliograph.protocol import topic
from heliograph.statement import parse
from heliograph_hub.api.application import application
from heliograph_hub.api.keys import Ending
from heliograph_hub.authority import Authority
from heliograph_hub.ceremony import ONLINE_ROLES
from heliograph_hub.keys import load_key, load_public
from heliograph_hub.service import Service

STAFF = {
    "root": 3,
    "targets": 3,
    "policy": 1,
    "deny": 2,
    "deny-key": 3,
    "ring-protected": 2,
    "sign-digits": 1,
    "approve-digits": 3,
    "config-digits": 1,
}


def run(*args: object) -> None:
    """A command that ends well."""
    assert main([str(arg) for arg in args]) == 0, args


class Offline:
    """Keys in files elsewhere, and their public halves to be given to the hub."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "offline"
        self.public = folder / "public"
        self.folder.mkdir(parents=True)
        self.public.mkdir()
        for role, keys in STAFF.items():
            for number in range(keys):
                self.make(role if keys == 1 else f"{role}-{number + 1}")

    def make(self, name: str) -> Path:
        run("key", "make", self.folder / f"{name}.key")
        return Path(shutil.move(self.folder / f"{name}.pub", self.public / f"{name}.pub"))

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def id(self, name: str) -> str:
        return load_key(self.key(name)).keyid.hex()

    def sign(self, file: Path, *names: str) -> int:
        keys = [part for name in names for part in ("--key", str(self.key(name)))]
        return main(["key", "sign", str(file), *keys])


MADE: list[Path] = []


@pytest.fixture
def made(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished realm in `hub` and its keys in `offline`; made once, copied for each test."""
    if not MADE:
        folder = tmp_path_factory.mktemp("ceremony")
        keys = Offline(folder)
        run("hub", "init", folder / "hub", "--realm", "prod", "--offline-keys", keys.public)
        assert keys.sign(folder / "hub" / "to-sign.json", "root-1", "root-2", "targets-1", "targets-3") == 0
        run("hub", "init", folder / "hub", "--signed", folder / "hub" / "to-sign.json")
        MADE.append(folder)
    return Path(shutil.copytree(MADE[0], tmp_path / "made"))


class Realm:
    """A hub that runs, as its operators and its nodes see it."""

    def __init__(self, folder: Path, service: Service, url: str) -> None:
        self.folder, self.service, self.url = folder, service, url
        self.offline = Offline.__new__(Offline)
        self.offline.folder, self.offline.public = folder / "offline", folder / "public"
        self.node = self.take(trust.bootstrap(service.authority.set.root, service.authority.root_digest))

    def hub(self, *args: object) -> int:
        return main([*(str(arg) for arg in args), "--hub", self.url])

    def ok(self, *args: object) -> None:
        assert self.hub(*args) == 0, args

    def carry(self, *names: str, **wanted: str) -> None:
        """Asks for what waits and what is wanted, has these keys sign it elsewhere, hands it in."""
        file = self.folder / "carried.json"
        options = [part for name, value in wanted.items() for part in (f"--{name.replace('_', '-')}", value)]
        self.ok("hub", "sign-request", "--out", file, *options)
        assert self.offline.sign(file, *names) == 0
        self.ok("key", "add", file)

    def take(self, held: trust.TrustedSet) -> trust.TrustedSet:
        """What a node that held this makes of what is published: the next roots one by one, then the set."""
        out, realm, now = self.service.authority.published(), self.service.realm, self.service.authority.set.at
        for number in range(held.versions["root"] + 1, self.service.authority.set.versions["root"] + 1):
            held = trust.with_root(held, out[topic("root").build(realm, number=number)])
        return trust.with_set(held, out[topic("set").build(realm)], now)

    def release(self, version: str = "1.0.0") -> None:
        bundle = make_bundle(self.folder / f"bundle-{version}", release=RELEASE.replace("1.0.0", version))
        self.ok("release", "add", bundle)
        self.carry("sign-digits", sign=f"digits@{version}")
        self.carry("approve-digits-1", "approve-digits-3", approve=f"digits@{version}")

    def log(self) -> list[dict[str, Any]]:
        return [
            {"who": done.who, "what": done.what, "keys": [keyid.hex() for keyid in done.keyids]}
            for done in self.service.duties.newest(1000)
        ]


@contextmanager
def running(folder: Path) -> Iterator[Realm]:
    service = Service(folder / "hub", 1)
    service.begin()
    port = free_port()
    config = uvicorn.Config(application(service), port=port, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, 10.0, "the server listens")
        yield Realm(folder, service, f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()
        service.database.close()


@pytest.fixture
def realm(made: Path) -> Iterator[Realm]:
    with running(made) as realm:
        yield realm


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


# --- the ceremony -----------------------------------------------------------------------------------------------------


def test_after_a_ceremony_the_hubs_folder_holds_online_keys_only(made: Path) -> None:
    held = {path.stem for path in (made / "hub" / "keys").iterdir()}
    assert held == set(ONLINE_ROLES)
    authority = Authority(made / "hub")
    assert (authority.set.kind, authority.realm, authority.set.models) == ("production", "prod", ("digits",))
    for role, keys in STAFF.items():
        assert len(authority.set.role_keys(role)[1]) == keys
    assert {role: authority.set.role_keys(role)[0] for role in ("root", "targets", "approve-digits")} == {
        "root": 2,
        "targets": 2,
        "approve-digits": 2,
    }
    found = {load_key(path).keyid for path in (made / "offline").glob("*.key")}
    assert not found & {load_key(path).keyid for path in (made / "hub" / "keys").glob("*.key")}
    for path in (made / "hub").rglob("*"):
        if path.is_file():
            assert not any(load_key(key).to_json() in path.read_bytes() for key in (made / "offline").glob("*.key"))


def test_a_key_that_is_made_is_its_owners_alone_and_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("key", "make", tmp_path / "a.key")
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    assert load_public(tmp_path / "a.pub") == load_key(tmp_path / "a.key").public
    assert "private" not in json.loads((tmp_path / "a.pub").read_bytes())
    before = (tmp_path / "a.key").read_bytes()
    assert main(["key", "make", str(tmp_path / "a.key")]) == 4
    assert (tmp_path / "a.key").read_bytes() == before and "never overwritten" in said(capsys)


def test_a_ceremony_goes_on_where_it_stood_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, hub, ask = Offline(tmp_path), tmp_path / "hub", tmp_path / "ask.json"
    run("hub", "init", hub, "--realm", "prod", "--offline-keys", keys.public, "--out", ask)
    assert "root lacks 2 more" in said(capsys)
    assert main(["hub", "run", str(hub)]) == 2 and "unfinished" in said(capsys)
    run("hub", "init", hub, "--realm", "prod", "--offline-keys", keys.public, "--out", ask)  # begun again: the same
    copies = [Path(shutil.copy(ask, tmp_path / f"{who}.json")) for who in ("ann", "ben")]
    assert keys.sign(copies[0], "root-3", "targets-2") == 0
    told = said(capsys)
    assert "root 1, to count until" in told and "approve-digits: 2 of 3" in told, "who signs sees what"
    run("hub", "init", hub, "--signed", copies[0], "--out", ask)
    assert "root lacks 1 more" in said(capsys)
    assert keys.sign(copies[1], "root-1", "targets-1") == 0
    run("hub", "init", hub, "--signed", copies[1], "--out", ask)
    assert "is ready" in said(capsys) and not ask.exists()
    assert Authority(hub).set.is_complete
    assert main(["hub", "init", str(hub), "--signed", str(copies[1])]) == 2
    assert "holds no realm on its way" in said(capsys)
    assert main(["hub", "init", str(hub), "--offline-keys", str(keys.public)]) == 4
    assert "holds a realm already" in said(capsys)


def test_what_is_wrong_in_a_ceremony_is_said_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, hub = Offline(tmp_path / "one"), tmp_path / "hub"
    other = Offline(tmp_path / "two")

    def refused(code: int, words: str, *args: object) -> None:
        capsys.readouterr()
        assert main([str(arg) for arg in args]) == code, args
        text = capsys.readouterr().err
        assert words in text and text.count("\n") == 1, text

    refused(2, "holds no .pub files", "hub", "init", hub, "--offline-keys", tmp_path / "none")
    refused(
        2,
        "--threshold root=x is not ROLE=N",
        "hub",
        "init",
        hub,
        "--offline-keys",
        keys.public,
        "--threshold",
        "root=x",
    )
    refused(2, "has 3 keys and 4 must sign", "hub", "init", hub, "--offline-keys", keys.public, "--threshold", "root=4")
    refused(2, "no keys of moon", "hub", "init", hub, "--offline-keys", keys.public, "--threshold", "moon=1")
    twice = Path(shutil.copy(keys.public / "root-1.pub", keys.public / "targets-4.pub"))
    refused(2, "every role has its own keys", "hub", "init", hub, "--offline-keys", keys.public)
    twice.rename(keys.public / "moon-1.pub")
    refused(2, "names no role", "hub", "init", hub, "--offline-keys", keys.public)
    (keys.public / "moon-1.pub").rename(keys.public / "timestamp.pub")
    refused(2, "hub's own", "hub", "init", hub, "--offline-keys", keys.public)
    (keys.public / "timestamp.pub").unlink()
    spare = (keys.public / "policy.pub").rename(tmp_path / "policy.pub")
    refused(2, "role policy has 0 keys and 1 must sign", "hub", "init", hub, "--offline-keys", keys.public)
    spare.rename(keys.public / "policy.pub")
    assert not hub.exists(), "nothing was begun"

    ask = tmp_path / "ask.json"
    run("hub", "init", hub, "--realm", "prod", "--offline-keys", keys.public, "--out", ask)
    refused(2, "begun with other keys", "hub", "init", hub, "--realm", "prod", "--offline-keys", other.public)
    refused(2, "holds the unfinished realm", "hub", "init", hub, "--realm", "dev2", "--offline-keys", keys.public)
    refused(2, "holds the unfinished realm", "hub", "init", hub, "--realm", "prod")
    refused(4, "asks nothing of", "key", "sign", ask, "--key", other.key("root-1"))
    refused(2, "is not ROLE=N", "hub", "init", hub, "--offline-keys", keys.public, "--threshold", "root=" + "9" * 5000)
    endless = tmp_path / "endless.json"
    endless.write_text(ask.read_text().replace('"need": 2', '"need": 1e999'))
    refused(2, "is not what heliograph hub sign-request writes", "key", "sign", endless, "--key", keys.key("root-1"))
    refused(2, "carries nothing to sign", "key", "sign", keys.public / "root-1.pub", "--key", keys.key("root-1"))
    refused(2, "is not a file", "key", "sign", ask, "--key", tmp_path)
    value = json.loads(ask.read_bytes())
    value["asks"][0]["signatures"] = {keys.id("root-1"): "00" * 64}
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(value))
    refused(4, "does not fit root", "hub", "init", hub, "--signed", forged)
    value["realm"] = "moon"
    forged.write_text(json.dumps(value))
    refused(2, "is of realm moon", "hub", "init", hub, "--signed", forged)


def test_a_realm_of_one_person_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, hub, ask = Offline(tmp_path), tmp_path / "hub", tmp_path / "ask.json"
    for name in ("root-2", "root-3", "targets-2", "targets-3"):
        (keys.public / f"{name}.pub").unlink()
    alone = ("--threshold", "root=1", "--threshold", "targets=1", "--threshold", "approve-digits=1")
    run("hub", "init", hub, "--realm", "mine", "--offline-keys", keys.public, *alone, "--out", ask)
    assert keys.sign(ask, "root-1", "targets-1") == 0
    capsys.readouterr()
    run("hub", "init", hub, "--signed", ask)
    assert "THIS IS A ONE-PERSON REALM: one key is enough for root, targets, approve-digits" in said(capsys)


# --- duties -----------------------------------------------------------------------------------------------------------


def test_roles_have_disjoint_keys_and_each_does_its_own_duty_alone(
    realm: Realm, capsys: pytest.CaptureFixture[str]
) -> None:
    trusted = realm.service.authority.set
    seen: set[bytes] = set()
    for role in realm.service.authority.roles:
        keys = set(trusted.role_keys(role)[1])
        assert not keys & seen, role
        seen |= keys
    realm.ok("release", "add", make_bundle(realm.folder / "bundle"))
    signer, manager = realm.offline.key("sign-digits"), realm.offline.key("approve-digits-1")
    operations = realm.folder / "hub" / "keys" / "ring-canary.key"
    for key in (manager, operations):
        assert realm.hub("release", "sign", "digits@1.0.0", "--key", key) == 4
    for key in (signer, operations):
        assert realm.hub("release", "approve", "digits@1.0.0", "--key", key) == 4
    assert realm.hub("rollout", "start", "digits@1.0.0") == 4
    assert "can't sign digits" in said(capsys)
    realm.ok("release", "sign", "digits@1.0.0", "--key", signer)
    assert realm.hub("rollout", "start", "digits@1.0.0") == 4, "signed, but not approved"
    realm.ok("release", "approve", "digits@1.0.0", "--key", manager)
    assert realm.hub("rollout", "start", "digits@1.0.0") == 4, "one manager is not two"
    realm.ok("release", "approve", "digits@1.0.0", "--key", realm.offline.key("approve-digits-2"))
    realm.ok("rollout", "start", "digits@1.0.0")
    node = realm.take(realm.node)
    assert len(node.releases("digits")[0].listed_by) == 2


def test_everything_offline_is_signed_by_one_file_and_logged_with_its_keys(realm: Realm) -> None:
    realm.release()
    realm.carry("deny-1", deny="digits@1.0.0", reason="wrong labels")
    (realm.folder / "canary.toml").write_text('ring = "canary"\n')
    realm.carry("policy", policy=str(realm.folder / "canary.toml"))
    (realm.folder / "digits.toml").write_text('model = "digits"\n')
    realm.carry("config-digits", config=str(realm.folder / "digits.toml"))
    realm.carry("deny-key-1", "deny-key-3", deny_key=realm.offline.id("approve-digits-1"))
    assert realm.service.control.newest("policy")["canary"].counts
    assert realm.service.control.newest("config")["digits"].counts
    assert realm.service.denials.head.count == 2
    logged = {keyid: row["what"] for row in realm.log() for keyid in row["keys"]}
    for name in ("sign-digits", "approve-digits-1", "approve-digits-3", "deny-1", "policy", "config-digits"):
        assert realm.offline.id(name) in logged, name
    denied = realm.offline.id("approve-digits-1")
    assert logged[realm.offline.id("deny-key-3")] == f"denials type=deny-key keys {denied[:16]}"
    release = realm.service.registry.find("digits", "1.0.0").digest.hex()
    assert logged[realm.offline.id("deny-1")] == f"denials type=deny releases {release[:16]}"
    assert logged[realm.offline.id("policy")] == "documents kind=policy ring canary, number 1"
    assert logged[realm.offline.id("approve-digits-3")] == "candidates/approve-digits@1.0.0"
    with pytest.raises(Exception, match="only added to"), realm.service.database.write() as connection:
        connection.exec_driver_sql("UPDATE duties SET who = 'nobody'")
    with pytest.raises(Exception, match="only added to"), realm.service.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM duties")


def test_what_the_hub_signs_by_itself_and_what_its_owner_does_is_logged(
    realm: Realm, capsys: pytest.CaptureFixture[str]
) -> None:
    realm.release()
    realm.ok("rollout", "start", "digits@1.0.0")
    rows = realm.log()
    assert rows[0] == {"who": "owner", "what": "rollouts release=digits@1.0.0", "keys": []}
    ring = load_key(realm.folder / "hub" / "keys" / "ring-canary.key").keyid.hex()
    words = next(row["what"] for row in rows if row["who"] == "hub" and row["keys"] == [ring])
    assert words.startswith("signed directive: ring canary, model digits, number 1, action install")
    capsys.readouterr()
    realm.ok("key", "log", "--json", "--limit", "2")
    assert [row["who"] for row in json.loads(capsys.readouterr().out)] == ["owner", "hub"]
    before = realm.service.duties.newest(1)[0].number
    assert realm.hub("rollout", "start", "digits@9.9.9") == 3
    assert realm.service.duties.newest(1)[0].number == before, "what was refused did nothing"


def test_a_release_of_a_model_without_keys_says_who_has_to_bring_them(
    realm: Realm, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(realm.folder / "tones", release=RELEASE.replace('"digits"', '"tones"'))
    capsys.readouterr()
    realm.ok("release", "add", bundle)
    assert "heliograph key rotate sign-tones --add" in said(capsys)
    assert realm.hub("release", "sign", "tones@1.0.0", "--key", realm.offline.key("sign-digits")) == 3


# --- rotation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["root", "targets"])
def test_an_offline_role_of_root_is_rotated_by_its_old_and_new_keys(realm: Realm, role: str) -> None:
    realm.release()
    before = realm.take(realm.node)
    public = realm.offline.make(f"{role}-4")
    gone = realm.offline.id(f"{role}-1")
    realm.ok("key", "rotate", role, "--add", public, "--remove", gone)
    held = realm.service.authority.set.versions["root"]
    if role == "root":  # root-2 and root-3 are of both, yet two of the new have to sign as well as two of the old
        realm.carry("root-1", "root-2")
        assert realm.service.authority.set.versions["root"] == held
        realm.carry("root-4")
    else:
        realm.carry("root-3", "root-2", "targets-4")
        assert realm.service.authority.set.versions["root"] == held, "its new keys have to sign targets as well"
        realm.carry("targets-2")
    trusted = realm.take(before)
    assert trusted.versions["root"] == held + 1
    assert bytes.fromhex(gone) not in trusted.role_keys(role)[1]
    assert len(trusted.releases("digits")[0].listed_by) == 2, "what was approved stays so"


@pytest.mark.parametrize("role", ["timestamp", "ring-canary"])
def test_an_online_role_is_rotated_to_a_key_in_the_hubs_folder_and_what_it_signed_is_signed_again(
    realm: Realm, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    realm.release()
    realm.ok("rollout", "start", "digits@1.0.0")
    before = realm.take(realm.node)
    old = load_key(realm.folder / "hub" / "keys" / f"{role}.key").keyid
    elsewhere = realm.offline.make(f"{role}-9")
    assert realm.hub("key", "rotate", role, "--add", elsewhere, "--remove", old.hex()) == 2
    assert "the hub needs 1" in said(capsys)
    run("key", "make", realm.folder / "hub" / "keys" / f"{role}-2.key")
    realm.ok("key", "rotate", role, "--add", realm.folder / "hub" / "keys" / f"{role}-2.pub", "--remove", old.hex())
    realm.carry("root-1", "root-2") if role in ("timestamp", "snapshot") else realm.carry("targets-1", "targets-2")
    trusted = realm.take(before)
    assert old not in trusted.role_keys(role)[1] and trusted.is_complete
    assert trusted.versions["timestamp"] > before.versions["timestamp"], "versions go on"
    if role.startswith("ring-"):
        ring = role.removeprefix("ring-")
        rows = [row for row in realm.service.desired.rows() if row.ring == ring]
        assert [row.number for row in rows] == [1], "no new directive was worded"
        signed = parse(realm.service.desired.statement(rows[0])).signatures
        assert {keyid for keyid, _ in signed} == set(trusted.role_keys(role)[1])


DUTY_ROLES = ("sign-digits", "approve-digits")
STATEMENT_ROLES = ("config-digits", "policy", "deny", "deny-key")


def replace_keys(realm: Realm, role: str) -> list[Path]:
    """Words a change that gives a role other keys only; their public halves."""
    count = STAFF[role]
    old = [role] if count == 1 else [f"{role}-{number + 1}" for number in range(count)]
    new = [realm.offline.make(f"{role}-{number}") for number in range(7, 7 + count)]
    adding = [part for path in new for part in ("--add", path)]
    removing = [part for name in old for part in ("--remove", realm.offline.id(name))]
    realm.ok("key", "rotate", role, *adding, *removing)
    return new


def test_duties_are_rotated_and_their_files_are_signed_again_with_the_change(realm: Realm) -> None:
    realm.release()
    before = realm.take(realm.node)
    new = {role: replace_keys(realm, role) for role in DUTY_ROLES}
    realm.carry("targets-1", "targets-2")
    assert realm.service.rotation.asks(), "the new keys have to sign as well"
    realm.carry("sign-digits-7", "approve-digits-7", "approve-digits-9")
    trusted = realm.take(before)
    for role, paths in new.items():
        keyids = {load_public(path).keyid for path in paths}
        assert set(trusted.role_keys(role)[1]) == keyids and set(trusted.signers(role)) <= keyids
    assert len(trusted.releases("digits")[0].listed_by) == 2, "what was approved stays so"


def test_statements_whose_keys_were_rotated_are_signed_again_as_they_are(realm: Realm) -> None:
    (realm.folder / "canary.toml").write_text('ring = "canary"\n')
    (realm.folder / "digits.toml").write_text('model = "digits"\n')
    toml = {"policy": str(realm.folder / "canary.toml"), "config": str(realm.folder / "digits.toml")}
    realm.carry("policy", "config-digits", "deny-1", **toml, deny="ab" * 32)
    realm.carry("deny-key-1", "deny-key-2", deny_key="cd" * 32)
    before = realm.take(realm.node)
    new = {role: replace_keys(realm, role) for role in STATEMENT_ROLES}
    realm.carry("targets-1", "targets-2")
    trusted = realm.take(before)
    for role, paths in new.items():
        assert set(trusted.role_keys(role)[1]) == {load_public(path).keyid for path in paths}
    assert realm.hub("hub", "keys", "due") == 4, "statements wait for the new keys"
    realm.carry(*(path.stem for paths in new.values() for path in paths if not path.stem.endswith("deny-8")))
    assert realm.hub("hub", "keys", "due") == 0
    fresh = DenySet().with_list(realm.service.denials.announced() or b"", trusted, trusted.heads.deny)
    assert fresh.count == 2, "who never saw a denial believes it by the new keys"
    assert realm.service.control.newest("policy")["canary"].number == 1
    assert realm.service.control.newest("config")["digits"].number == 1


def test_directives_of_protected_in_force_are_signed_again_by_its_new_keys(realm: Realm) -> None:
    realm.release()
    realm.ok("rollout", "start", "digits@1.0.0")
    realm.ok("rollout", "promote", "digits@1.0.0", "--to", "general")
    file = realm.folder / "protected.json"
    realm.ok("rollout", "request", "digits@1.0.0", "--out", file)
    assert realm.offline.sign(file, "ring-protected-1", "ring-protected-2") == 0, "one command signs every such file"
    assert realm.hub("key", "add", file) == 2
    realm.ok("rollout", "add", file)
    public = realm.offline.make("ring-protected-3")
    realm.ok("key", "rotate", "ring-protected", "--add", public, "--remove", realm.offline.id("ring-protected-1"))
    realm.carry("targets-1", "targets-2")
    ((offline, held),) = realm.service.rollouts.unsigned()
    assert (offline.have, offline.need, len(held)) == (1, 2, 1)
    realm.carry("ring-protected-3")
    assert realm.service.rollouts.unsigned() == []


def test_the_other_online_roles_are_rotated_together_by_one_change(realm: Realm) -> None:
    before = realm.take(realm.node)
    keys = realm.folder / "hub" / "keys"
    for role in (roles := ("snapshot", "assign", "recipes", "ring-early", "ring-general")):
        run("key", "make", keys / f"{role}-2.key")
        old = load_key(keys / f"{role}.key").keyid.hex()
        realm.ok("key", "rotate", role, "--add", keys / f"{role}-2.pub", "--remove", old)
    realm.carry("root-1", "root-2", "targets-1", "targets-2")
    trusted = realm.take(before)
    assert {role: set(trusted.role_keys(role)[1]) for role in roles} == {
        role: {load_key(keys / f"{role}-2.key").keyid} for role in roles
    }


def test_a_new_models_keys_come_by_the_same_way(realm: Realm) -> None:
    for name in ("sign-tones", "config-tones", "approve-tones-1", "approve-tones-2"):
        realm.ok(
            "key",
            "rotate",
            name.removesuffix("-1").removesuffix("-2"),
            "--add",
            realm.offline.make(name),
            *(
                ("--threshold", "1")
                if name == "approve-tones-1"
                else ("--threshold", "2")
                if name == "approve-tones-2"
                else ()
            ),
        )
    assert "tones" not in realm.service.authority.set.models
    realm.carry("targets-1", "targets-2")
    assert realm.service.authority.set.models == ("digits", "tones")
    assert realm.service.authority.set.role_keys("approve-tones")[0] == 2
    assert realm.take(realm.node).is_complete


def test_rotations_of_root_that_a_node_missed_are_walked_by_who_comes_back(realm: Realm) -> None:
    before = realm.take(realm.node)
    for number in range(3):
        realm.ok(
            "key",
            "rotate",
            "root",
            "--add",
            realm.offline.make(f"root-{number + 4}"),
            "--remove",
            realm.offline.id(f"root-{number + 1}"),
        )
        realm.carry(f"root-{number + 1}", f"root-{number + 2}", f"root-{number + 3}")
    trusted = realm.take(before)
    assert trusted.versions["root"] == 4
    assert set(trusted.role_keys("root")[1]) == {bytes.fromhex(realm.offline.id(f"root-{n}")) for n in (4, 5, 6)}


def test_what_is_wrong_in_a_rotation_is_said_in_one_sentence(realm: Realm, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(code: int, words: str, *args: object) -> None:
        capsys.readouterr()
        assert realm.hub(*args) == code, args
        text = capsys.readouterr().err
        assert words in text and text.count("\n") == 1, text

    new = realm.offline.make("root-9")
    theirs = realm.offline.public / "targets-1.pub"
    refused(3, "no role 'moon'", "key", "rotate", "moon", "--add", new)
    refused(3, "has no keys yet", "key", "rotate", "sign-tones")
    refused(4, "is one of targets", "key", "rotate", "root", "--add", theirs)
    refused(2, "names no single key", "key", "rotate", "root", "--remove", realm.offline.id("targets-1"))
    refused(4, "4 must sign", "key", "rotate", "root", "--threshold", 4)
    assert realm.service.rotation.asks() == [], "nothing waits"
    file = realm.folder / "f.json"
    realm.ok("key", "rotate", "root", "--add", new)
    realm.ok("hub", "sign-request", "--out", file)
    refused(4, "has no signatures", "key", "add", file)
    stale = Path(shutil.copy(file, realm.folder / "stale.json"))
    assert realm.offline.sign(stale, "root-1", "root-2") == 0
    realm.ok("key", "rotate", "root", "--threshold", 3)
    refused(4, "does not fit root as it is now", "key", "add", stale)
    realm.ok("key", "rotate", "root", "--drop")
    refused(3, "no change of 'root' waits", "key", "add", stale)


# --- what ends --------------------------------------------------------------------------------------------------------


def test_due_is_what_has_less_than_a_third_of_its_life_left() -> None:
    ending = Ending("root 1", 900, 900, "")
    assert [ending.is_due(at) for at in (0, 600, 601, 899, 1000)] == [False, False, True, True, True]


def test_what_ends_is_renewed_by_the_same_way(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(made) as realm:
        realm.release()
        assert realm.hub("hub", "keys", "due") == 0
        at = realm.service.authority.set.at
        keys = realm.service.authority.set.expiries()
        assert keys["sign-digits"] - at <= 180 * 86_400
        realm.ok("key", "rotate", "sign-digits")  # nothing changes but how long it counts
        realm.ok("key", "rotate", "targets")
        realm.ok("key", "rotate", "root")
        capsys.readouterr()
        assert realm.hub("hub", "keys", "due", "--json") == 4
        rows = json.loads(capsys.readouterr().out)
        assert [row["what"] for row in rows if row["due"]] == [
            "root lacks 2 signatures of root",
            "targets lacks 2 signatures of targets",
            "sign-digits lacks 1 signatures of sign-digits",
        ]
        realm.carry("root-1", "root-2", "targets-1", "targets-2", "sign-digits")
        assert realm.hub("hub", "keys", "due") == 0
        assert realm.take(realm.node).versions["sign-digits"] == 2

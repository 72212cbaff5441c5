"""Certificates of nodes as the hub gives, repeats and revokes them, and how a node asks for one."""

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from heliograph.blob import sha256
from heliograph.cli import main
from heliograph.documents import Certified, Enroll, Renew
from heliograph.errors import ConfigError, RefusedError, TransportError, TrustError
from heliograph.signing import PrivateKey, verify_own
from heliograph.statement import parse
from heliograph_hub.access import CHALLENGE_S, TLS_FOLDER, Access, has_ca, init_access
from heliograph_hub.assigning import Assignments
from heliograph_hub.certificates import CertificateAuthority
from heliograph_hub.database import Database
from heliograph_hub.enrolment import Enrolment
from heliograph_site.folder import JoinString, NodeFile
from heliograph_site.identity import RENEW_BEFORE_S, Credentials, write_ca
from heliograph_site.renewal import MAX_CHALLENGES, Renewal

NOW = 1_795_000_000
DAY = 86400
KEY, OTHER = PrivateKey.generate(b"k" * 32), PrivateKey.generate(b"o" * 32)


class Hub:
    """What of a hub says who may come in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        init_access(folder, "demo", NOW)
        self.database = Database(folder / "hub.sqlite")
        assignments = Assignments(self.database, "demo", lambda assignment: b"signed", lambda: (2, {}))
        self.enrolment = Enrolment(self.database, assignments)
        self.access = Access(folder, self.database, "demo", 1, 2, "127.0.0.1", ["hub.example.org"])
        self.read = 0
        self.access.on_change = self._on_change

    def _on_change(self) -> None:
        self.read += 1

    def enrol(self, name: str, key: PrivateKey = KEY) -> None:
        site, _, node = name.partition("/")
        token = os.urandom(32)
        self.enrolment.add_token(site, node, token, NOW, 60)
        self.enrolment.enroll(site, node, Enroll(token=token, key=key.public.raw, nonce=b"n" * 16), NOW)

    def certify(self, name: str, key: PrivateKey = KEY, now: int = NOW) -> bytes:
        site, _, node = name.partition("/")
        return self.access.certify(site, node, key.public.raw, key.keyid, now)[0]

    def revoked(self) -> set[int]:
        read = x509.load_pem_x509_crl((self.folder / TLS_FOLDER / "revoked.pem").read_bytes())
        return {entry.serial_number for entry in read}

    def acl(self) -> str:
        return (self.folder / TLS_FOLDER / "acl").read_text()


def serial(der: bytes) -> int:
    return x509.load_der_x509_certificate(der).serial_number


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    made = Hub(tmp_path)
    yield made
    made.database.close()


def test_a_certificate_asked_for_again_is_the_same_for_a_day(hub: Hub) -> None:
    hub.enrol("lab/pi-1")
    first = hub.certify("lab/pi-1")
    assert hub.certify("lab/pi-1", now=NOW + DAY - 1) == first
    assert hub.certify("lab/pi-1", now=NOW + DAY) != first


def test_a_challenge_counts_for_minutes_for_one_node_with_one_key_at_one_hub(hub: Hub) -> None:
    access = hub.access
    given = access.challenge("lab", "pi-1", KEY.keyid, NOW)
    assert access.is_challenge(given, "lab", "pi-1", KEY.keyid, NOW + CHALLENGE_S)
    assert not access.is_challenge(given, "lab", "pi-1", KEY.keyid, NOW + 2 * CHALLENGE_S)
    assert not access.is_challenge(given, "lab", "pi-2", KEY.keyid, NOW)
    assert not access.is_challenge(given, "lab", "pi-1", OTHER.keyid, NOW)
    again = Access(hub.folder, hub.database, "demo", 1, 2, "127.0.0.1", [])
    assert not again.is_challenge(given, "lab", "pi-1", KEY.keyid, NOW), "a hub that starts anew challenges anew"


def test_a_removed_node_is_revoked_and_denied_and_its_neighbour_is_not(hub: Hub) -> None:
    hub.enrol("lab/pi-1")
    hub.enrol("lab/pi-2", OTHER)
    gone, stays = hub.certify("lab/pi-1"), hub.certify("lab/pi-2", OTHER)
    hub.access.write(NOW)
    assert hub.revoked() == set() and "topic deny" not in hub.acl()
    hub.enrolment.remove("lab", "pi-1", NOW + 1)
    hub.access.settle(NOW + 1)
    assert hub.revoked() == {serial(gone)} != {serial(stays)}
    assert "user lab/pi-1\ntopic deny #\n" in hub.acl() and "lab/pi-2" not in hub.acl()
    assert hub.read == 1


def test_replaced_hardware_is_revoked_and_the_name_goes_on(hub: Hub) -> None:
    hub.enrol("lab/pi-1")
    old = hub.certify("lab/pi-1")
    hub.enrol("lab/pi-1", OTHER)
    hub.access.settle(NOW)
    new = hub.certify("lab/pi-1", OTHER)
    assert hub.revoked() == {serial(old)} != {serial(new)}
    assert "topic deny" not in hub.acl()
    hub.access.settle(NOW + 40 * DAY)
    assert hub.revoked() == set(), "what has ended by itself is not listed any more"


def test_a_removed_node_that_enrols_again_with_its_key_comes_in_again(hub: Hub) -> None:
    hub.enrol("lab/pi-1")
    old = hub.certify("lab/pi-1")
    hub.enrolment.remove("lab", "pi-1", NOW)
    hub.access.settle(NOW)
    hub.enrol("lab/pi-1")
    hub.access.settle(NOW)
    assert "topic deny" not in hub.acl()
    assert serial(hub.certify("lab/pi-1")) not in hub.revoked() >= {serial(old)}


def test_the_brokers_certificate_stays_until_it_is_due_or_lacks_a_name(hub: Hub) -> None:
    file = hub.folder / TLS_FOLDER / "broker.crt"
    hub.access.write(NOW)
    first = file.read_bytes()
    hub.access.write(NOW + 100 * DAY)
    assert file.read_bytes() == first
    hub.access.write(NOW + 200 * DAY)
    assert (second := file.read_bytes()) != first
    Access(hub.folder, hub.database, "demo", 1, 2, "10.0.0.1", ["other.example.org"]).write(NOW + 200 * DAY)
    assert file.read_bytes() != second
    assert (hub.folder / TLS_FOLDER / "broker.key").stat().st_mode & 0o777 == 0o600


def test_an_authority_can_be_brought(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "mine").mkdir()
    files = hub.folder / TLS_FOLDER / "ca.crt", hub.folder / TLS_FOLDER / "ca.key"
    assert "of your CA" in init_access(tmp_path / "mine", "demo", NOW, files)
    made = CertificateAuthority(*(path.read_bytes() for path in files))
    assert sha256(made.der) == hub.access.pin
    with pytest.raises(ConfigError, match=r"nowhere can't be read"):
        init_access(tmp_path / "mine", "demo", NOW, (files[0], tmp_path / "nowhere"))


def test_an_authority_that_was_shown_is_never_replaced_by_a_new_one_unasked(tmp_path: Path, hub: Hub) -> None:
    assert not has_ca(tmp_path / "empty")
    (hub.folder / TLS_FOLDER / "ca.crt").unlink()
    assert not has_ca(hub.folder), "as a kill in its making leaves it"
    hub.access.write(NOW)
    assert has_ca(hub.folder), "nodes know it: it has to be restored"


def test_an_authority_that_has_ended_certifies_nobody(hub: Hub) -> None:
    with pytest.raises(RefusedError, match="CA has ended"):
        hub.certify("lab/pi-1", now=hub.access.ca.not_after)


# --- the node's side -------------------------------------------------------------------------------------------------


class Answering:
    """A hub's answers to one node's questions."""

    def __init__(self, renewal: Renewal, challenges: int = 1) -> None:
        self._renewal, self._left = renewal, challenges
        self.asked: list[Renew] = []

    async def send(self, data: bytes) -> None:
        renew = Renew.decode(verify_own(parse(data), KEY.public.raw, "renew"))
        self.asked.append(renew)
        names: dict[str, Any] = {"realm": renew.realm, "site": renew.site, "node": renew.node, "key": KEY.keyid}
        self._renewal.take(Certified(**names, nonce=b"?" * 16, certificate=b"for another question"))
        if self._left:
            self._left -= 1
            challenge = bytes([self._left]) * 16
            self._renewal.take(Certified(**names, nonce=renew.nonce, challenge=challenge))
        else:
            self._renewal.take(Certified(**names, nonce=renew.nonce, certificate=b"certificate", expires=NOW))


def test_a_node_signs_the_hubs_challenge_and_takes_only_the_answer_to_its_question() -> None:
    renewal = Renewal("demo", "lab", "pi-1", KEY)
    hub = Answering(renewal)
    assert asyncio.run(renewal.run(hub.send, 5.0)).certificate == b"certificate"
    first, second = hub.asked
    assert first.challenge is None and second.challenge == bytes(16) and first.nonce != second.nonce


def test_a_hub_that_challenges_for_ever_or_never_answers_is_given_up() -> None:
    renewal = Renewal("demo", "lab", "pi-1", KEY)
    endless = Answering(renewal, 100)
    with pytest.raises(RefusedError, match="challenges and no certificate"):
        asyncio.run(renewal.run(endless.send, 5.0))
    assert len(endless.asked) == 1 + MAX_CHALLENGES

    async def nothing(data: bytes) -> None:
        pass

    with pytest.raises(TransportError, match="certified nothing within"):
        asyncio.run(renewal.run(nothing, 0.01))


def node_file(hub: Hub) -> NodeFile:
    string = JoinString("hub.example.org", 1, "demo", "lab", "pi-1", b"t" * 32, b"r" * 32, False, hub.access.pin, 2)
    return string.node_file(0)


def test_a_certificate_is_due_ten_days_before_its_end_by_the_nodes_estimate_and_over_at_it(
    hub: Hub, tmp_path: Path
) -> None:
    now = [NOW]
    (tmp_path / "node").mkdir()
    write_ca(tmp_path / "node", hub.access.ca.der)
    held = Credentials(tmp_path / "node", node_file(hub), KEY, lambda: now[0])
    assert held.is_due and held.is_over and held.expires == 0
    hub.enrol("lab/pi-1")
    der, expires = hub.access.certify("lab", "pi-1", KEY.public.raw, KEY.keyid, NOW)
    certified = Certified(
        realm="demo", site="lab", node="pi-1", key=KEY.keyid, nonce=bytes(16), certificate=der, expires=expires
    )
    held.keep(certified)
    for at, due, over in (
        (NOW, False, False),
        (expires - RENEW_BEFORE_S - 1, False, False),
        (expires - RENEW_BEFORE_S, True, False),
        (expires - 1, True, False),
        (expires, True, True),
    ):
        now[0] = at
        assert (held.is_due, held.is_over) == (due, over)
    again = Credentials(tmp_path / "node", node_file(hub), KEY, lambda: NOW)
    assert again.expires == expires and again.tls() is not None


def test_a_certificate_that_does_not_fit_replaces_none(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    write_ca(tmp_path / "node", hub.access.ca.der)
    held = Credentials(tmp_path / "node", node_file(hub), KEY, lambda: NOW)
    der = hub.access.ca.certify_client(OTHER.public.raw, "lab/pi-1", NOW, b"e" * 16).der
    names: dict[str, Any] = {"realm": "demo", "site": "lab", "node": "pi-1", "key": KEY.keyid, "nonce": bytes(16)}
    for wrong in (der, b"\x30\x00"):
        with pytest.raises(TrustError, match="can't be used"):
            held.keep(Certified(**names, certificate=wrong, expires=NOW + DAY))
    assert held.expires == 0 and not (tmp_path / "node" / "certificate").exists()


def test_the_authority_in_the_folder_must_be_the_one_of_the_join_string(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    with pytest.raises(ConfigError, match="join anew"):
        Credentials(tmp_path / "node", node_file(hub), KEY, lambda: NOW)
    (tmp_path / "other").mkdir()
    init_access(tmp_path / "other", "demo", NOW)
    (tmp_path / "node" / "ca.crt").write_bytes((tmp_path / "other" / TLS_FOLDER / "ca.crt").read_bytes())
    with pytest.raises(ConfigError, match="not the CA with which this node joined"):
        Credentials(tmp_path / "node", node_file(hub), KEY, lambda: NOW)


def test_without_tls_nothing_is_due_and_nothing_is_shown(tmp_path: Path) -> None:
    file = JoinString("127.0.0.1", 1, "demo", "lab", "pi-1", b"t" * 32, b"r" * 32).node_file(0)
    held = Credentials(tmp_path, file, KEY, lambda: NOW)
    assert (held.has_tls, held.is_due, held.is_over, held.tls()) == (False, False, False, None)


def test_the_table_of_threats_at_the_broker_names_tests_that_exist() -> None:
    root = Path(__file__).parents[2]
    section = (root / "shared" / "THREATS.md").read_text("utf-8").partition("## At the broker")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
    files = [next((root / "tests").glob(f"*/{name}")) for name in re.findall(r"`(test_\w+\.py)`", section)]
    there = set(re.findall(r"^def (test_\w+)", "\n".join(file.read_text() for file in files), re.MULTILINE))
    assert len(rows) >= 6
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row[-1])
        assert named and set(named) <= there, row[0]


@pytest.mark.parametrize(
    ("says", "argv"),
    [
        ("says not how nodes reach the hub: name it with --host", ["hub", "run", "DIR", "--listen", "::"]),
        ("--api-port needs TLS", ["hub", "run", "DIR", "--plain-port", "1", "--api-port", "2"]),
        ("--ca and --ca-key go together", ["hub", "init", "DIR", "--ca", "ca.crt"]),
        ("for this machine alone", ["hub", "run", "DIR", "--plain-port", "1", "--listen", "::"]),
        ("for this machine alone", ["hub", "run", "DIR", "--plain-port", "1", "--host", "hub.example.org"]),
        ("no host name", ["hub", "run", "DIR", "--host", "hub.exämple"]),
        ("no host name", ["hub", "run", "DIR", "--host", "my hub"]),
        ("no host name", ["hub", "run", "DIR", "--host", "https://hub.example.org"]),
    ],
)
def test_what_can_not_be_served_is_refused_in_one_sentence(
    says: str, argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if argv[1] == "run":
        assert main(["hub", "init", str(tmp_path / "hub"), "--realm", "demo"]) == 0
    capsys.readouterr()
    assert main([part.replace("DIR", str(tmp_path / "hub")) for part in argv]) == 2
    shown = capsys.readouterr().err
    assert says in shown and shown.count("\n") == 1

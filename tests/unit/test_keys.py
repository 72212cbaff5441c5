"""Keys as operators name them: files, and by URI whatever securesystemslib reaches."""

import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, Key, SecretsHandler, Signature, Signer
from tuf.api.metadata import Metadata

from heliograph import trust
from heliograph.blob import sha256
from heliograph.cli import main
from heliograph.errors import ConfigError, TrustError
from heliograph.protocol import topic
from heliograph.signing import PrivateKey
from heliograph.statement import Statement, encode, parse
from heliograph.vouching import counted
from heliograph_hub import ceremony, request
from heliograph_hub.founding import init_realm
from heliograph_hub.keys import SIGNERS, load_key, make_key, open_key, public_json
from heliograph_hub.request import Ask, Group
from realms import NOW, Realm


class Token(Signer):
    """As a driver of an HSM: keys live in it by label, and never leave it."""

    held: ClassVar[dict[str, PrivateKey]] = {}

    def __init__(self, label: str, public_key: Key) -> None:
        self._label, self._public = label, public_key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> "Token":
        label = priv_key_uri.removeprefix("token:")
        if label not in cls.held:
            raise ValueError(f"no key {label} in this token")
        return cls(label, public_key)

    @property
    def public_key(self) -> Key:
        return self._public

    def sign(self, payload: bytes) -> Signature:
        return Signature(self._public.keyid, self.held[self._label].sign(payload).hex())


class Far(Token):
    """As a driver that isn't all there."""

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> "Far":
        raise UnsupportedLibraryError("far-driver")


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The name of a key in a token."""
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "token", Token)
    key = PrivateKey.generate(b"t" * 32)
    monkeypatch.setitem(Token.held, "release-1", key)
    (tmp_path / "release.pub").write_bytes(public_json(key.public))
    return f"token:release-1#{tmp_path / 'release.pub'}"


def test_a_key_in_a_token_signs_what_is_asked_and_nodes_count_it(token: str) -> None:
    realm = Realm(3)
    key = open_key(token)
    assert key.public == PrivateKey.generate(b"t" * 32).public
    realm.keys["deny"].append(Token.held["release-1"])
    held = trust.with_set(realm.bootstrap(), realm.publish().pack(), NOW)
    payload = b"a denial"
    ask = Ask("deny", "deny", "deny 1", payload, (Group(1, frozenset([key.keyid])),), {})
    (signed,), counts = request.sign([ask], [key])
    assert counts == {key.keyid: 1} and signed.lacks == 0
    data = encode(Statement("deny", payload, tuple(signed.signatures.items())))
    assert counted(held, data, "deny") == (key.keyid,)
    assert parse(data).payload == payload


def test_commands_take_a_key_by_uri_wherever_they_take_a_file(
    token: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = open_key(token)
    realm = Realm(3)
    root = realm.rotate("root")
    file = tmp_path / "root.json"
    request.write(file, "demo", [Ask("root", "metadata", "root", root, (Group(1, frozenset([key.keyid])),), {})])
    assert main(["key", "sign", str(file), "--key", token]) == 0
    _, (signed,) = request.read(file)
    assert key.public.is_signature(signed.message, signed.signatures[key.keyid])
    assert "root 2, to count until" in capsys.readouterr().err


def test_a_token_that_signs_with_another_key_is_found_out(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key = open_key(token)
    monkeypatch.setitem(Token.held, "release-1", PrivateKey.generate(b"u" * 32))
    with pytest.raises(TrustError, match="a signature that is not of key"):
        key.sign(b"anything")
    monkeypatch.delitem(Token.held, "release-1")
    with pytest.raises(ConfigError, match="no key release-1 in this token"):
        open_key(token)


class SealedError(Exception):
    """As Vault's client says that Vault refuses."""


class SealedToken(Token):
    def sign(self, payload: bytes) -> Signature:
        raise SealedError("permission denied")


def test_what_vault_refuses_is_told_in_a_sentence(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "token", SealedToken)
    client = ModuleType("hvac.exceptions")
    vars(client)["VaultError"] = SealedError
    monkeypatch.setitem(sys.modules, "hvac.exceptions", client)
    with pytest.raises(TrustError, match="token:release-1 did not sign: permission denied"):
        open_key(token).sign(b"anything")


def test_a_file_is_named_by_its_path_or_as_a_uri(tmp_path: Path) -> None:
    path = tmp_path / "a:b.key"
    public = make_key(path, b"s" * 32)
    assert open_key(str(path)).public == open_key(f"file:{path}").public == public == load_key(path).public


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("nowhere.key", "does not exist"),
        ("moon:1", "nor a key of a known scheme: schemes are file, file2, hv$"),
        ("hv:k/2", r"names no public half: write hv:…#FILE.pub"),
        ("hv:k/2#nowhere.pub", "can't be read"),
        ("hsm:2#a.pub", "hsm: keys are not Ed25519, as every key here is: schemes are file, file2, hv, and what"),
        ("awskms:k#a.pub", "awskms: keys are not Ed25519"),
    ],
)
def test_what_is_no_key_is_said_to_be_none(named: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        open_key(named)


def test_what_a_scheme_needs_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pub").write_bytes(public_json(PrivateKey.generate(b"a" * 32).public))
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "far", Far)
    with pytest.raises(ConfigError, match="far: keys need a library that is missing: far-driver"):
        open_key(f"far:1#{tmp_path / 'a.pub'}")


def test_a_pem_file_signs_through_the_librarys_own_signer(tmp_path: Path) -> None:
    key = PrivateKey.generate(b"p" * 32)
    pem, public = tmp_path / "release.pem", tmp_path / "release.pub"
    pem.write_bytes(key.to_pem())
    public.write_bytes(public_json(key.public))
    opened = open_key(f"file2:{pem}#{public}")
    assert opened.keyid == key.keyid and opened.sign(b"a release") == key.sign(b"a release")
    public.write_bytes(public_json(PrivateKey.generate(b"q" * 32).public))
    with pytest.raises(ConfigError, match="can't be used"):
        open_key(f"file2:{pem}#{public}")


def test_a_key_in_vault_is_taken_by_the_librarys_own_signer(tmp_path: Path) -> None:
    public = tmp_path / "a.pub"
    public.write_bytes(public_json(PrivateKey.generate(b"a" * 32).public))
    with pytest.raises(ConfigError, match=r"hv: keys need a library that is missing: .*hvac"):
        open_key(f"hv:release/1#{public}")


def test_an_installed_package_brings_a_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = PrivateKey.generate(b"d" * 32)
    (tmp_path / "a.pub").write_bytes(public_json(key.public))
    package = tmp_path / "drawer-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: drawer\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(f"[{SIGNERS}]\ndrawer = {__name__}:Token\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "drawer", Token)  # so that it is gone after the test
    monkeypatch.delitem(SIGNER_FOR_URI_SCHEME, "drawer")
    monkeypatch.setitem(Token.held, "drawer:1", key)
    assert open_key(f"drawer:1#{tmp_path / 'a.pub'}").sign(b"x") == key.sign(b"x")


def test_only_ed25519_is_a_public_key(tmp_path: Path) -> None:
    (tmp_path / "a.pub").write_text('{"format": 1, "keytype": "rsa", "scheme": "rsassa-pss-sha256", "public": "00"}')
    with pytest.raises(ConfigError, match="no Ed25519 public key"):
        open_key(f"hv:k/2#{tmp_path / 'a.pub'}")


def test_a_rotation_of_a_development_realm_goes_by_the_same_files(tmp_path: Path) -> None:
    init_realm(tmp_path / "realm", "demo", NOW)
    from heliograph_hub.authority import Authority
    from heliograph_hub.rotation import Rotation

    authority = Authority(tmp_path / "realm")
    rotation = Rotation(authority)
    new = make_key(tmp_path / "root-4.key", b"n" * 32)
    rotation.propose("root", [new], [], None, NOW)
    (ask,) = rotation.asks()
    (signed,), _ = request.sign([ask], [load_key(authority.keys.path(name)) for name in ("root-1", "root-3")])
    assert rotation.add("root", signed.signatures, NOW)
    out = authority.published()
    first = out[topic("root").build("demo", number=1)]
    held = trust.with_root(trust.bootstrap(first, sha256(first)), out[topic("root").build("demo", number=2)])
    assert trust.with_set(held, out[topic("set").build("demo")], NOW).role_keys("root")[1].keys() >= {new.keyid}


def test_attack_nothing_that_is_to_be_signed_moves_the_terminal_of_who_signs_it() -> None:
    targets = ceremony.make_targets(1, NOW).signed
    ceremony.delegate(targets, "sign-\x1b[1A\x1b[2K", [PrivateKey.generate(b"a" * 32).public], 1, [])
    targets.targets["digits/1.0.0\r\x1b[8m"] = ceremony.make_target("digits/1.0.0", 1, sha256(b"x"))
    ask = Ask("targets", request.METADATA, "targets", Metadata(targets).to_bytes(), (), {})
    lines = ask.words()
    assert any("digits/1.0.0  [8m" in line for line in lines), "it is shown, as it is written"
    assert all(line.isprintable() for line in lines)

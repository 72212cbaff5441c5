"""What the hub's authority vouches for, read by another implementation than the one that made it: OpenSSL."""

import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from heliograph.blob import sha256
from heliograph.errors import ConfigError
from heliograph.signing import PrivateKey
from heliograph.tls import der_of, pem_of
from heliograph_hub.certificates import BROKER_LIFE_S, CA_LIFE_S, NODE_LIFE_S, CertificateAuthority, is_of, make_ca

NOW = int(time.time())
KEY = PrivateKey.generate(b"k" * 32)


@pytest.fixture(scope="module")
def ca() -> CertificateAuthority:
    return CertificateAuthority(*make_ca("demo", b"s" * 32, NOW, b"\xff" * 16))


def shown(der: bytes, tmp_path: Path) -> dict[str, Any]:
    """What Python's ssl reads in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=der)
    found: list[dict[str, Any]] = context.get_ca_certs()
    return found[0] if found else {}


def test_the_authority_may_sign_and_is_known_by_its_digest(ca: CertificateAuthority, tmp_path: Path) -> None:
    read = shown(ca.der, tmp_path)
    assert read["subject"] == ((("commonName", "heliograph demo"),),)
    assert ssl.cert_time_to_seconds(read["notAfter"]) == ca.not_after == NOW + CA_LIFE_S
    assert ca.pin == sha256(ca.der) == sha256(der_of(ca.pem))
    assert der_of(pem_of(ca.der)) == ca.der


@pytest.mark.filterwarnings("ignore:Attribute's length")
@pytest.mark.parametrize("user", ["lab/pi-1", "x" * 40 + "/" + "y" * 40])
def test_a_nodes_certificate_holds_its_key_and_its_name_for_thirty_days(ca: CertificateAuthority, user: str) -> None:
    made = ca.certify_client(KEY.public.raw, user, NOW, b"\x00" * 16)
    read = x509.load_der_x509_certificate(made.der)
    read.verify_directly_issued_by(x509.load_der_x509_certificate(ca.der))
    assert read.public_key().public_bytes_raw() == KEY.public.raw  # type: ignore[union-attr]
    assert [name.value for name in read.subject] == [user]
    assert made.not_after == NOW + NODE_LIFE_S == NOW + 30 * 86400 == read.not_valid_after_utc.timestamp()
    assert read.not_valid_before_utc.timestamp() < NOW
    assert made.serial == read.serial_number > 0
    assert not read.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = read.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_nothing_lasts_longer_than_the_authority(ca: CertificateAuthority) -> None:
    late = ca.not_after - 86400
    assert ca.certify_client(KEY.public.raw, "a/b", late, b"e" * 16).not_after == ca.not_after


def test_a_brokers_certificate_is_made_anew_when_it_is_half_over_or_lacks_a_name(ca: CertificateAuthority) -> None:
    names = ("hub.example.org", "10.0.0.1", "::1")
    pem = ca.certify_broker(KEY.public.raw, names, NOW, b"e" * 16).pem
    assert is_of(pem, KEY.to_pem(), ca, names, NOW) and is_of(pem, KEY.to_pem(), ca, names[:1], NOW)
    assert is_of(pem, KEY.to_pem(), ca, names, NOW + BROKER_LIFE_S // 2 - 1)
    assert not is_of(pem, KEY.to_pem(), ca, names, NOW + BROKER_LIFE_S // 2 + 1)
    assert not is_of(pem, KEY.to_pem(), ca, (*names, "localhost"), NOW)
    other = CertificateAuthority(*make_ca("demo", b"t" * 32, NOW, b"e" * 16))
    assert not is_of(pem, KEY.to_pem(), other, names, NOW)
    assert not is_of(
        ca.certify_client(KEY.public.raw, "hub.example.org", NOW, b"e" * 16).pem, KEY.to_pem(), ca, names, NOW
    )
    assert not is_of(b"nothing", KEY.to_pem(), ca, names, NOW)
    for key in (PrivateKey.generate(b"x" * 32).to_pem(), b""):
        assert not is_of(pem, key, ca, names, NOW), "a kill came between the two files"


def test_the_list_of_the_revoked_is_the_authoritys_and_names_each(ca: CertificateAuthority) -> None:
    serials = {ca.certify_client(KEY.public.raw, "a/b", NOW, bytes([n]) * 16).serial: NOW + n for n in range(3)}
    for listed in ({}, serials):
        read = x509.load_pem_x509_crl(ca.revoked(listed, NOW))
        assert read.is_signature_valid(x509.load_der_x509_certificate(ca.der).public_key())  # type: ignore[arg-type]
        assert {entry.serial_number: int(entry.revocation_date_utc.timestamp()) for entry in read} == listed
        assert read.next_update_utc is not None and read.next_update_utc.timestamp() > NOW + 300 * 86400


def test_an_authority_that_can_not_be_used_is_refused_in_words(ca: CertificateAuthority) -> None:
    certificate, key = make_ca("demo", b"s" * 32, NOW, b"e" * 16)
    _, other_key = make_ca("demo", b"t" * 32, NOW, b"e" * 16)
    leaf = ca.certify_client(PrivateKey.generate(b"s" * 32).public.raw, "a/b", NOW, b"e" * 16).pem
    for pair, says in (
        ((b"", key), "can't be read"),
        ((certificate, b"-----BEGIN"), "can't be read"),
        ((certificate, other_key), "don't belong together"),
        ((leaf, key), "may not sign others"),
        (_elliptic(), "not an Ed25519 key"),
    ):
        with pytest.raises(ConfigError, match=says):
            CertificateAuthority(*pair)


def _elliptic() -> tuple[bytes, bytes]:
    from datetime import UTC, datetime, timedelta

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "other")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    now = datetime.now(UTC)
    made = builder.serial_number(7).not_valid_before(now).not_valid_after(now + timedelta(1)).sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_a_strict_client_finds_nothing_amiss(ca: CertificateAuthority, tmp_path: Path) -> None:
    pem = ca.certify_broker(KEY.public.raw, ["hub.example.org"], NOW, b"e" * 16).pem
    (tmp_path / "crt").write_bytes(pem)
    (tmp_path / "key").write_bytes(KEY.to_pem())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    client = ssl.create_default_context(cadata=ca.pem.decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(theirs, ours, server_hostname="hub.example.org")
    far = server.wrap_bio(ours, theirs, server_side=True)
    for side in (near, far, near, far, near):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
    assert near.version() == "TLSv1.3"
    assert dict(near.getpeercert() or {})["subject"] == ((("commonName", "broker"),),)

"""X.509 for the broker's TLS: the hub's own certificate authority and what it vouches for. Bytes in, bytes out.

Rule 1: certificates admit to the broker and nothing more. What a node believes it believes for its signed metadata;
    whom the hub believes it knows by the keys of its database.
Rule 2: all keys are Ed25519. A node's certificate holds the node's own key, so that nothing secret of it travels.
Rule 3: time and randomness come as arguments. Certificates begin an hour early, for clocks that are a little slow.

Only this module imports `cryptography`: it is in the extra `hub`, nodes do without.
"""

import ipaddress
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from heliograph.blob import sha256
from heliograph.errors import ConfigError

DAY_S = 86400
CA_LIFE_S = 3650 * DAY_S
BROKER_LIFE_S = 365 * DAY_S
"""Of the hub's own two; `hub run` makes them anew long before."""
NODE_LIFE_S = 30 * DAY_S
EARLY_S = 3600
SERIAL_BYTES = 16
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate, and what is asked about it later."""

    der: bytes
    serial: int
    not_after: int

    @property
    def pem(self) -> bytes:
        """As files hold it."""
        return x509.load_der_x509_certificate(self.der).public_bytes(Encoding.PEM)


class CertificateAuthority:
    """A certificate that may sign others, with its key in memory."""

    def __init__(self, certificate_pem: bytes, key_pem: bytes) -> None:
        """Takes one that exists.

        Raises:
            ConfigError: unusable, not Ed25519, not for signing certificates, or the two don't belong together.
        """
        try:
            self._certificate = x509.load_pem_x509_certificate(certificate_pem)
            key = load_pem_private_key(key_pem, None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"the CA can't be read: two PEM files, the key without password: {error}") from error
        public = self._certificate.public_key()
        if not isinstance(key, Ed25519PrivateKey) or not isinstance(public, Ed25519PublicKey):
            raise ConfigError("the CA's key is not an Ed25519 key: make one of that kind")
        if key.public_key().public_bytes_raw() != public.public_bytes_raw():
            raise ConfigError("the CA's certificate and key don't belong together")
        try:
            may_sign = self._certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            may_sign = False
        if not may_sign:
            raise ConfigError("the CA's certificate may not sign others: it needs basicConstraints CA:TRUE")
        self._key = key

    @property
    def pem(self) -> bytes:
        """The certificate, as files hold it."""
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def der(self) -> bytes:
        """The certificate's bytes."""
        return self._certificate.public_bytes(Encoding.DER)

    @property
    def pin(self) -> bytes:
        """SHA-256 of the certificate: what join strings carry."""
        return sha256(self.der)

    @property
    def not_after(self) -> int:
        """When it ends, seconds since 1970."""
        return int(self._certificate.not_valid_after_utc.timestamp())

    def certify_broker(self, key: bytes, names: Iterable[str], now: int, entropy: bytes) -> Certificate:
        """A server's certificate for a public key of 32 bytes, under these host names and addresses.

        Raises:
            ConfigError: a name is none.
        """
        alternatives: list[x509.GeneralName] = []
        for name in dict.fromkeys(names):
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                if len(name) > 253 or not all(map(_LABEL.fullmatch, name.split("."))):
                    raise ConfigError(
                        f"{name[:60]!r} is no host name: letters, digits and '-' between dots, or an address"
                    ) from None
                alternatives.append(x509.DNSName(name))
        extensions: list[x509.ExtensionType] = [
            x509.SubjectAlternativeName(alternatives),
            # Asked for by strict clients, such as Python's from 3.13 on; a node isn't one, and its own has neither.
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
        ]
        return self._certify(key, "broker", ExtendedKeyUsageOID.SERVER_AUTH, extensions, now, BROKER_LIFE_S, entropy)

    def certify_client(self, key: bytes, user: str, now: int, entropy: bytes, life_s: int = NODE_LIFE_S) -> Certificate:
        """A client's certificate for a public key of 32 bytes: the broker takes its name for the user's."""
        return self._certify(key, user, ExtendedKeyUsageOID.CLIENT_AUTH, [], now, life_s, entropy)

    def revoked(self, serials: Mapping[int, int], now: int) -> bytes:
        """The list of certificates (serial number to when) that count no more, PEM."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._certificate.subject)
        builder = builder.last_update(_time(now - EARLY_S)).next_update(_time(now + BROKER_LIFE_S))
        for serial, at in sorted(serials.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_time(at)).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, None).public_bytes(Encoding.PEM)

    def _certify(
        self,
        key: bytes,
        name: str,
        usage: x509.ObjectIdentifier,
        extensions: list[x509.ExtensionType],
        now: int,
        life_s: int,
        entropy: bytes,
    ) -> Certificate:
        public = Ed25519PublicKey.from_public_bytes(key)
        end = min(now + life_s, self.not_after)
        with warnings.catch_warnings():
            # X.520 says 64 characters, a node's name may have 81: neither OpenSSL nor Mosquitto minds.
            warnings.simplefilter("ignore")
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False)])
        builder = _builder(subject, self._certificate.subject, public, now, end, entropy)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        made = builder.sign(self._key, None)
        return Certificate(made.public_bytes(Encoding.DER), made.serial_number, end)


def make_ca(realm: str, seed: bytes, now: int, entropy: bytes) -> tuple[bytes, bytes]:
    """A new authority of a realm: its certificate and its key, both PEM.

    Args:
        realm: its name.
        seed: 32 random bytes: the key.
        now: seconds since 1970.
        entropy: 16 random bytes: the serial number.
    """
    key = Ed25519PrivateKey.from_private_bytes(seed)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"heliograph {realm}")])
    builder = _builder(name, name, key.public_key(), now, now + CA_LIFE_S, entropy)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    builder = builder.add_extension(
        x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False), True
    )
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    made = builder.sign(key, None)
    return made.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def is_of(certificate_pem: bytes, key_pem: bytes, ca: CertificateAuthority, names: Iterable[str], now: int) -> bool:
    """Whether a server's certificate is the authority's and the key's, holds all these names, and is half alive."""
    try:
        held = x509.load_pem_x509_certificate(certificate_pem)
        if load_pem_private_key(key_pem, None).public_key() != held.public_key():
            return False
        held.verify_directly_issued_by(x509.load_der_x509_certificate(ca.der))
        value = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    has = {*value.get_values_for_type(x509.DNSName), *map(str, value.get_values_for_type(x509.IPAddress))}
    ends = min(int(held.not_valid_after_utc.timestamp()), ca.not_after)
    return has >= {_plain(name) for name in names} and ends - now > min(BROKER_LIFE_S, ca.not_after - now) / 2


def _builder(
    subject: x509.Name, issuer: x509.Name, public: Ed25519PublicKey, now: int, end: int, entropy: bytes
) -> x509.CertificateBuilder:
    serial = int.from_bytes(entropy[:SERIAL_BYTES], "big") >> 1 | 1 << 120
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(_time(now - EARLY_S))
        .not_valid_after(_time(end))
    )


def _plain(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def _time(at: int) -> datetime:
    return datetime.fromtimestamp(at, UTC).replace(tzinfo=None)

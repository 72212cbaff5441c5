"""[IO] Who may come to the broker: the hub's own certificate authority, its listeners' files, certificates of nodes.

    DIR/tls/ca.crt, ca.key          the authority; the key 0600, and needed while the hub runs: it certifies nodes
    DIR/tls/broker.crt, broker.key  what the broker shows, with the authority's certificate behind it
    DIR/tls/revoked.pem             certificates of keys that ended
    DIR/tls/acl, acl-enroll         who may do what, by listener

Rule 1: a node gets a certificate for the key that it enrolled, if it signs for it with a challenge of ours that is
    minutes old, and if nobody has removed or replaced it. No other word from it is needed, however long it slept.
Rule 2: whoever is removed or replaced is out at once: the hub believes it no more (`fleet`), its certificates are
    revoked, and if it is removed the broker denies its name everything, in sessions that live too.
Rule 3: asked again within a day, the same certificate is given again: nobody fills the table by asking.

Time comes from the caller.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from heliograph.acl import HUB_USER, acl_text
from heliograph.errors import ConfigError, RefusedError
from heliograph.mosquitto import MAX_NEW_NODES, Listener
from heliograph.objects import write_durably
from heliograph.signing import PrivateKey
from heliograph.tls import Tls
from heliograph_hub.certificates import CA_LIFE_S, DAY_S, CertificateAuthority, is_of, make_ca
from heliograph_hub.database import Database, certificates, former_keys, nodes

TLS_FOLDER = "tls"
CHALLENGE_S = 300
"""A challenge counts in the period it is of, and the next."""
SAME_S = DAY_S
LOCAL = ("localhost", "127.0.0.1", "::1")
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Doors:
    """How nodes reach a broker with TLS.

    Attributes:
        enroll_port: for those without a certificate; those with one have the hub's port.
        listen: the address of both.
        names: host names and addresses in the broker's certificate; the first is what nodes are told.
        api_port: for operators with a token, at the same address and under the same certificate; 0: there is none.
    """

    enroll_port: int
    listen: str = HOST
    names: tuple[str, ...] = ()
    api_port: int = 0


def init_access(folder: Path, realm: str, now: int, ca: tuple[Path, Path] | None = None) -> str:
    """Makes the authority of a hub's folder, or takes the one in these files; returns what to tell the operator.

    Raises:
        ConfigError: the files can't be read, or are no authority that can be used.
    """
    place = folder / TLS_FOLDER
    place.mkdir(mode=0o700, exist_ok=True)
    if ca is None:
        certificate, key = make_ca(realm, secrets.token_bytes(32), now, secrets.token_bytes(16))
    else:
        try:
            certificate, key = ca[0].read_bytes(), ca[1].read_bytes()
        except OSError as error:
            raise ConfigError(f"the CA's file {error.filename} can't be read: {error.strerror}") from error
    authority = CertificateAuthority(certificate, key)
    write_durably(place / "ca.key", key, mode=0o600)
    write_durably(place / "ca.crt", authority.pem)
    return f"certificates for the broker are of {'a new' if ca is None else 'your'} CA, pin {authority.pin.hex()}"


class Access:
    """The broker's doors, for one hub.

    Attributes:
        port, enroll_port: for nodes with a certificate, and for those without.
        listen: the address that both listen at.
        host: what nodes are told to connect to.
    """

    def __init__(
        self,
        folder: Path,
        database: Database,
        realm: str,
        port: int,
        enroll_port: int,
        listen: str,
        names: Iterable[str],
    ) -> None:
        """`names`: host names and addresses under which nodes reach the broker, the first goes into join strings.

        Raises:
            ConfigError: no authority is there, or it can't be used.
        """
        self.port, self.enroll_port, self.listen = port, enroll_port, listen
        self._names = tuple(names) or ((listen,) if listen not in ("0.0.0.0", "::") else ("localhost",))  # noqa: S104
        self.host = self._names[0]
        self._place = folder.absolute() / TLS_FOLDER
        self._database, self._realm = database, realm
        try:
            certificate, key = (self._place / "ca.crt").read_bytes(), (self._place / "ca.key").read_bytes()
        except OSError as error:
            raise ConfigError(f"{error.filename} can't be read: {error.strerror}") from error
        self.ca = CertificateAuthority(certificate, key)
        self._secret = secrets.token_bytes(32)
        self.on_change: Callable[[], None] = lambda: None
        """Called when the broker has to read its files again."""

    @property
    def pin(self) -> bytes:
        """What join strings carry."""
        return self.ca.pin

    @property
    def shown(self) -> tuple[str, str]:
        """Files of the certificate that is shown to everybody, and of its key."""
        return str(self._place / "broker.crt"), str(self._place / "broker.key")

    def listeners(self) -> tuple[Listener, Listener]:
        """The broker's doors: for nodes, and for those that want to become one."""
        place = self._place
        certificate, key = self.shown
        known = (str(place / "ca.crt"), str(place / "revoked.pem"))
        return (
            Listener(self.port, self.listen, None, str(place / "acl"), certificate, key, known),
            Listener(
                self.enroll_port,
                self.listen,
                None,
                str(place / "acl-enroll"),
                certificate,
                key,
                max_connections=MAX_NEW_NODES,
            ),
        )

    def hub_tls(self, now: Callable[[], int]) -> Tls:
        """With what the hub itself comes to its broker; the key is in memory only."""
        key = PrivateKey.generate(os.urandom(32))
        made = self.ca.certify_client(key.public.raw, HUB_USER, now(), secrets.token_bytes(16), CA_LIFE_S)
        return Tls(self.ca.der, now, made.der, key.to_pem())

    def write(self, now: int) -> None:
        """Writes all that the broker reads, as the database says; the broker's certificate anew if that is due."""
        place = self._place
        names = (*self._names, *LOCAL)
        try:
            held = (place / "broker.crt").read_bytes(), (place / "broker.key").read_bytes()
        except FileNotFoundError:
            held = b"", b""
        if not is_of(*held, self.ca, names, now):
            key = PrivateKey.generate(os.urandom(32))
            made = self.ca.certify_broker(key.public.raw, names, now, secrets.token_bytes(16))
            write_durably(place / "broker.key", key.to_pem(), mode=0o600)
            # Whoever joins knows the authority by its digest only, and takes it from here.
            write_durably(place / "broker.crt", made.pem + self.ca.pem)
        with self._database.read() as connection:
            ended = connection.execute(
                sa.select(certificates.c.serial, certificates.c.revoked_at).where(
                    certificates.c.revoked_at.is_not(None), certificates.c.not_after >= now
                )
            ).all()
            removed = connection.execute(
                sa.select(nodes.c.site, nodes.c.node).where(nodes.c.removed_at.is_not(None))
            ).all()
        revoked = self.ca.revoked({int(row.serial, 16): row.revoked_at for row in ended}, now)
        write_durably(place / "revoked.pem", revoked)
        users = [f"{row.site}/{row.node}" for row in removed]
        write_durably(place / "acl", acl_text(self._realm, removed=users).encode())
        write_durably(place / "acl-enroll", acl_text(self._realm, "enroll").encode())

    def renew(self, now: int) -> None:
        """Writes everything again and has the broker read it: what ends is replaced in time."""
        self.write(now)
        self.on_change()

    def settle(self, now: int) -> None:
        """Revokes the certificates of every key that is no node's any more; call after removing or replacing one."""
        with self._database.write() as connection:
            ended = sa.select(former_keys.c.keyid)
            held = sa.select(nodes.c.keyid).where(nodes.c.removed_at.is_(None))
            gone = certificates.c.keyid.in_(ended) & certificates.c.keyid.not_in(held)
            connection.execute(
                sa.update(certificates).where(gone, certificates.c.revoked_at.is_(None)).values(revoked_at=now)
            )
            connection.execute(sa.delete(certificates).where(certificates.c.not_after < now))
        self.renew(now)

    # --- certificates of nodes ---------------------------------------------------------------------------------------

    def challenge(self, site: str, node: str, keyid: bytes, now: int) -> bytes:
        """What the node has to sign now: 16 bytes that nobody could know before."""
        return self._challenge(site, node, keyid, now // CHALLENGE_S)

    def is_challenge(self, given: bytes, site: str, node: str, keyid: bytes, now: int) -> bool:
        """Whether it is one that this hub gave this node minutes ago."""
        period = now // CHALLENGE_S
        return any(hmac.compare_digest(given, self._challenge(site, node, keyid, p)) for p in (period, period - 1))

    def _challenge(self, site: str, node: str, keyid: bytes, period: int) -> bytes:
        message = b"\0".join((site.encode(), node.encode(), keyid, period.to_bytes(8, "big")))
        return hmac.digest(self._secret, message, hashlib.sha256)[:16]

    def certify(self, site: str, node: str, key: bytes, keyid: bytes, now: int) -> tuple[bytes, int]:
        """A certificate for the node's key, DER, and when it ends; on disk when this returns.

        Raises:
            RefusedError: the authority itself has ended.
        """
        if self.ca.not_after - now < DAY_S:
            raise RefusedError("the hub's CA has ended: make a hub with another, and have the nodes join it")
        with self._database.write() as connection:
            newest = connection.execute(
                sa.select(certificates)
                .where(certificates.c.keyid == keyid, certificates.c.site == site, certificates.c.node == node)
                .where(certificates.c.revoked_at.is_(None), certificates.c.issued_at > now - SAME_S)
                .order_by(certificates.c.issued_at.desc())
            ).first()
            if newest is not None:
                return bytes(newest.der), newest.not_after
            made = self.ca.certify_client(key, f"{site}/{node}", now, secrets.token_bytes(16))
            row = {"serial": f"{made.serial:x}", "der": made.der, "issued_at": now, "not_after": made.not_after}
            connection.execute(sa.insert(certificates).values(site=site, node=node, keyid=keyid, **row))
        return made.der, made.not_after


def open_access(folder: Path, database: Database, realm: str, port: int, doors: Doors, now: int) -> Access:
    """The doors of a hub's folder, all that the broker reads written; an authority is made if it never had one.

    Raises:
        ConfigError: the authority is lost, or can't be used.
    """
    if not has_ca(folder):
        init_access(folder, realm, now)
    access = Access(folder, database, realm, port, doors.enroll_port, doors.listen, doors.names)
    access.write(now)
    return access


def has_ca(folder: Path) -> bool:
    """Whether a hub's folder has an authority, or had one: none is made in its place then.

    An earlier version made folders without; one whose making was interrupted has not shown its authority to anybody.
    """
    return any((folder / TLS_FOLDER / name).exists() for name in ("ca.crt", "broker.crt"))

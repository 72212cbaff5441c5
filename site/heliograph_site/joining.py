"""`node join`: from a join string to a node's folder, once.

Steps: (1) get the CA's certificate and check it against the pin in the join string; all that follows goes over TLS
under it, to the port that is for new nodes; (2) read the realm's root and check it against the digest in the join
string; (3) verify the metadata set under it; (4) make a key, send it with the token; (5) wait for the assignment that
names this key, signed by role `assign` or, if the token says protected, at the threshold of ring protected: then for as
long as people need to sign it; (6) sign for a certificate (`renewal`); (7) put the folder in place, whole, in one
rename. Before (7) nothing of it exists.

What is heard is judged by the greatest time that is known to have come: first that before which this version was not
made, then what the hub signs in (6) over a number made here. So whoever plays back a set of last year, from before what
was denied since, is found out: nobody joins by a set that had expired by then.

A join string without pin is of a hub whose broker has no TLS: it counts on the loopback only.
"""

import asyncio
import contextlib
import ipaddress
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from heliograph.blob import sha256
from heliograph.connection import Broker
from heliograph.deadlines import DEADLINES, Deadlines
from heliograph.documents import Assignment, Certified, Enroll, Refused
from heliograph.errors import ConfigError, HeliographError, IntegrityError, RefusedError, TransportError, TrustError
from heliograph.metadata import time_text
from heliograph.mosquitto import CLIENT_PREFIX
from heliograph.mqtt import Mqtt
from heliograph.objects import sync_directory, write_durably
from heliograph.protocol import parse_topic, topic
from heliograph.signing import PrivateKey
from heliograph.tls import Tls, fetch_ca
from heliograph.trust import TrustedSet, bootstrap, state_to_bytes, with_root, with_set
from heliograph.vouching import open_document
from heliograph_site.folder import NODE_FILE, JoinString, KeptIn
from heliograph_site.identity import KeptKey, keep_in, write_ca, write_certificate
from heliograph_site.journal import JOURNAL_FILE, Held, Journal
from heliograph_site.reckoning import BUILT_AT
from heliograph_site.renewal import Renewal


def check_free(folder: Path) -> None:
    """Returns if a node may join into `folder`.

    Raises:
        RefusedError: a node has joined there already.
        ConfigError: something else lies there.
    """
    if (folder / NODE_FILE).exists():
        raise RefusedError(f"{folder} has joined already: use it with `heliograph node run`, or choose another folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not an empty folder: choose another")


def make_beside(folder: Path) -> Path:
    """Makes the empty folder in which all is written before it gets its place.

    Raises:
        ConfigError: nothing can be written there.
    """
    folder = folder.absolute()
    beside = folder.parent / f".{folder.name}.joining-{secrets.token_hex(4)}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(f"{folder} can't be made ({error.strerror}): choose a folder you may write to") from error
    return beside


async def join(
    string: JoinString,
    folder: Path,
    http_port: int,
    rng: Random,
    deadlines: Deadlines = DEADLINES,
    say: Callable[[str], None] = lambda line: None,
    kept_in: KeptIn = "file",
) -> Assignment:
    """Enrols a new node and returns what it is; its folder is on disk then.

    With a token that says protected this waits without limit, since people have to sign; `say` is told so.

    Raises:
        ConfigError: the folder is in use or can't be made, or there is no TPM to keep the key; the token is still good.
        TransportError: broker or hub don't answer.
        IntegrityError: the realm's root isn't the one that the join string names, or its metadata has expired.
        RefusedError: a node has joined there already, or the hub did not take the token.
    """
    check_free(folder)
    # Whoever can't write the folder or keep the key shouldn't spend the token on finding out.
    make_beside(folder).rmdir()
    file = string.node_file(http_port, kept_in)
    key = PrivateKey.generate(os.urandom(32))
    kept = await asyncio.to_thread(keep_in, kept_in, key)
    ceremony = _Ceremony(string, key)
    names = {"site": string.site, "node": string.node}
    subscriptions = [(topic(name).filter(string.realm), 1) for name in ("root", "set")]
    subscriptions += [(topic(name).filter(string.realm, **names), 1) for name in ("assigned", "certified", "refused")]
    user = f"{string.site}/{string.node}"
    client_id = f"{user}/join-{secrets.token_hex(8)}"
    ca = b""
    broker = Broker(string.host, string.port, user)
    if string.pin:
        ca = await asyncio.to_thread(fetch_ca, string.host, string.enroll_port, string.pin, deadlines.enroll_s)
        tls = Tls(ca, lambda: ceremony.at)
        broker, client_id = Broker(string.host, string.enroll_port, user, tls=tls), CLIENT_PREFIX + client_id
    elif not is_loopback(string.host):
        raise RefusedError(f"the hub at {string.host} has no TLS: that is for one machine alone, on its loopback")
    mqtt = Mqtt(
        broker,
        client_id,
        subscriptions,
        rng,
        ceremony.on_message,
        ceremony.on_link,
        is_lasting=False,
    )
    running = asyncio.ensure_future(mqtt.run())
    try:
        await _within(ceremony.connected, deadlines.enroll_s, ceremony.why_not_connected)
        await _within(ceremony.ready, deadlines.enroll_s, ceremony.why_not_ready)
        enroll = Enroll(token=string.token, key=key.public.raw, nonce=ceremony.nonce).encode()
        target = topic("enroll").build(string.realm, site=string.site, node=string.node)
        await mqtt.publish(target, enroll, qos=1)
        if string.protected:
            say(f"waiting for the keys of ring protected to sign: heliograph fleet request {string.site} --out FILE")
        while True:
            try:
                await _within(ceremony.answered, deadlines.enroll_s, ceremony.why_not_enrolled)
                ceremony.require_enrolled()
                break
            except RefusedError:
                if ceremony.refusal or not string.protected:
                    raise
            with contextlib.suppress(TransportError):  # the link is down: once more later
                await mqtt.publish(target, enroll, qos=1)  # whose answer may have been lost
        certified = None
        if ca:
            again = topic("again").build(string.realm, **names)
            certified = await ceremony.renewal.run(lambda data: mqtt.publish(again, data, qos=1), deadlines.enroll_s)
            ceremony.require_fresh(certified.at)
    finally:
        running.cancel()
        await asyncio.wait({running})
    assert ceremony.trusted is not None and ceremony.assignment is not None, "enrolled under what is trusted"
    held = Held("assignment", "", ceremony.assignment.number, ceremony.statement)
    put_in_place(folder, file.encode(), kept, ceremony.trusted, held, ca, certified)
    return ceremony.assignment


def is_loopback(host: str) -> bool:
    """Whether what is sent there stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def put_in_place(
    folder: Path,
    node_file: bytes,
    key: KeptKey,
    trusted: TrustedSet,
    assignment: Held,
    ca: bytes = b"",
    certified: Certified | None = None,
) -> None:
    """Writes the folder beside its place and renames it there, whole.

    Raises:
        ConfigError: something lies there by now, or nothing can be written.
    """
    folder = folder.absolute()
    beside = make_beside(folder)
    try:
        key.write(beside)
        if ca:
            write_ca(beside, ca)
        if certified is not None:
            write_certificate(beside, certified)
        with Journal(beside / JOURNAL_FILE) as journal:
            journal.save_trusted(state_to_bytes(trusted))
            journal.hold(assignment)
        write_durably(beside / NODE_FILE, node_file)
        sync_directory(beside)
        try:
            beside.rename(folder)
        except OSError as error:
            raise ConfigError(f"{folder} can't be put in place: {error.strerror}") from error
        sync_directory(folder.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


async def _within(event: asyncio.Event, limit_s: float, why_not: Callable[[float], HeliographError]) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        raise why_not(limit_s) from None


class _Ceremony:
    """What has come so far."""

    def __init__(self, string: JoinString, key: PrivateKey) -> None:
        self.connected, self.ready, self.answered = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.at = BUILT_AT
        """It is at least so late: by what was signed."""
        self.nonce = os.urandom(16)
        self.refusal = ""
        """Why the hub enrols us not, in its words."""
        self.trusted: TrustedSet | None = None
        self.assignment: Assignment | None = None
        self.statement = b""
        self.renewal = Renewal(string.realm, string.site, string.node, key)
        self._string = string
        self._key = key
        self._roots: dict[int, bytes] = {}
        self._set = b""
        self._refused = ""

    async def on_link(self, is_up: bool) -> None:
        """The broker answers."""
        if is_up:
            self.connected.set()

    async def on_message(self, full: str, payload: bytes, retained: bool) -> None:
        """Takes what the realm retains, and the assignment."""
        found = parse_topic(full, self._string.realm)
        if found is None:
            return
        row, names = found
        try:
            match row.name:
                case "root":
                    self._roots[int(names["number"])] = payload
                    self._believe()
                case "set":
                    self._set = payload
                    self._believe()
                case "assigned" | "certified" | "refused" if self.trusted is not None:
                    document = open_document(
                        self.trusted,
                        payload,
                        row,
                        names,
                        site=self._string.site,
                        node=self._string.node,
                        key=self._key.keyid,
                        is_protected=self._string.protected,
                    )
                    if isinstance(document, Certified):
                        self.renewal.take(document)
                        return
                    if isinstance(document, Refused):
                        if document.nonce == self.nonce and self.assignment is None:
                            self.refusal = document.reason
                            self.answered.set()
                        return
                    assert isinstance(document, Assignment)  # the row says so
                    self.assignment, self.statement, self.refusal = document, payload, ""
                    self.answered.set()
                case _:
                    pass
        except (TrustError, IntegrityError) as error:
            self._refused = str(error)

    def _believe(self) -> None:
        if self.trusted is None:
            anchors = [n for n, root in self._roots.items() if sha256(root) == self._string.root]
            if not anchors:
                return
            self.trusted = bootstrap(self._roots[anchors[0]], self._string.root)
        while (following := self._roots.get(self.trusted.versions["root"] + 1)) is not None:
            self.trusted = with_root(self.trusted, following)
        if self._set:
            self.trusted = with_set(self.trusted, self._set, self.at)
            self.at = max(self.at, self.trusted.at)
            self.ready.set()

    def require_enrolled(self) -> None:
        """Returns if the hub's answer is an assignment.

        Raises:
            RefusedError: it is a refusal.
        """
        if self.refusal:
            name = f"{self._string.site}/{self._string.node}"
            raise RefusedError(f"{self.refusal}; print a new one with `heliograph fleet token {name}`")

    def require_fresh(self, at: int) -> None:
        """Returns if what is trusted had not expired when the hub signed this time, 0 if it said none.

        Raises:
            IntegrityError: it had; somebody may play back what was good once.
        """
        assert self.trusted is not None, "the hub's signature was verified under it"
        self.at = max(self.at, self.trusted.within(at))
        if not self.trusted.is_fresh(self.at):
            ended = f"expired at {time_text(self.trusted.fresh_until)}" if self.trusted.is_complete else "is not whole"
            raise IntegrityError(
                f"what the broker holds of realm {self._string.realm} {ended}, and the hub answers at "
                f"{time_text(self.at)}: somebody keeps newer metadata back, or the hub can't sign; "
                "see `heliograph hub keys due` there, then join with a new string"
            )

    def why_not_connected(self, limit_s: float) -> HeliographError:
        """The broker did not answer."""
        where = f"{self._string.host}:{self._string.enroll_port or self._string.port}"
        return TransportError(f"no hub answers at {where} within {limit_s:g} s: check that it runs and can be reached")

    def why_not_ready(self, limit_s: float) -> HeliographError:
        """Broker yes, realm no."""
        realm = self._string.realm
        if self.trusted is None and self._roots:
            return IntegrityError(
                f"the root of realm {realm} is not the one that the join string names: ask for a new string, "
                "and whether somebody else answers at that address"
            )
        if self._refused:
            return IntegrityError(f"the metadata of realm {realm} can't be trusted: {self._refused}")
        return TransportError(f"the broker holds nothing of realm {realm}: check that its hub is running")

    def why_not_enrolled(self, limit_s: float) -> HeliographError:
        """The hub says nothing to a token that is no good."""
        name = f"{self._string.site}/{self._string.node}"
        return RefusedError(
            f"the hub did not enrol {name} within {limit_s:g} s: the token was used, has expired or is another node's, "
            f"or the hub is not running; print a new one with `heliograph fleet token {name}`"
        )

"""[IO] What operators do to rollouts: directives are worded by `rollout`, signed here or elsewhere, stored, renewed.

Rule 1: what the hub signs it signs before it stores, and stores before anybody is told (`desired`).
Rule 2: protected's directives are stored unsigned when they are worded, so that everybody signs the same bytes. Each
    signature is checked when it comes in; with the last one needed the directive is released.
Rule 3: nothing here announces; the caller does, when a change is committed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from heliograph import statement as envelope
from heliograph.documents import Directive
from heliograph.errors import NotFoundError, TrustError
from heliograph.names import Ring
from heliograph.signing import PublicKey
from heliograph.statement import Statement
from heliograph_hub import rollout
from heliograph_hub.assignment import next_number
from heliograph_hub.authority import Authority
from heliograph_hub.desired import Desired
from heliograph_hub.ledger import Ledger
from heliograph_hub.registry import Release
from heliograph_hub.rollout import Action, Paused, Signed, Stop, Worded

OFFLINE_ROLE = "ring-protected"
MAX_SAID = 1000
"""Models, each in one ring, of which nodes have directives and this database has none."""


@dataclass(frozen=True, slots=True)
class Offline:
    """Protected's directive that waits for signatures, or has them: `have` of `need`."""

    row: Signed
    payload: bytes
    have: int
    need: int


class Rollouts:
    """The rollouts of one realm."""

    def __init__(self, desired: Desired, ledger: Ledger, authority: Authority) -> None:
        self._desired = desired
        self._ledger = ledger
        self._authority = authority
        self._said: dict[tuple[Ring, str], int] = {}

    def heard(self, ring: Ring, numbers: Mapping[str, int]) -> None:
        """A node of the ring has directives of these numbers, by model: what is signed next follows them.

        They are above those known here only where an older copy of the database was brought back.
        """
        newest = {row.model: row.number for row in self._desired.rows() if row.ring == ring}
        for model, number in numbers.items():
            known = newest.get(model, 0)
            if known < number < next_number(known, number) and (model in newest or len(self._said) < MAX_SAID):
                self._said[ring, model] = max(number, self._said.get((ring, model), 0))

    def start(self, release: Release, now: int) -> None:
        """Signs for every ring of the hub's and releases canary's; a pause of the release is over.

        Raises:
            RefusedError: not signed, not approved, or a list would no longer fit one message.
        """
        directives = rollout.start(
            self._desired.rows(),
            realm=self._authority.realm,
            model=release.model,
            version=release.version,
            release=release.digest,
            signed=self._authority.is_signed(release.model, release.digest),
            approved=self._authority.is_approved(release.model, release.digest),
            now=now,
        )
        self._add(tuple(Worded(d, d.ring == "canary") for d in directives), now)
        self._ledger.resume(release.digest)

    def promote(self, release: Release, to: str | None, now: int) -> None:
        """Releases the next ring, or all up to one.

        Raises:
            NotFoundError, RefusedError: as `rollout.promote`.
        """
        rows = rollout.promote(
            self._desired.rows(),
            model=release.model,
            version=release.version,
            release=release.digest,
            to=to,
            is_paused=self.paused(release) is not None,
        )
        self._desired.release(rows, now)

    def stop(self, release: Release, action: Stop, ring: str | None, now: int) -> tuple[Worded, ...]:
        """Aborts or returns a release: signed and stored, in force but for protected's; what was worded.

        Raises:
            NotFoundError, RefusedError: as `rollout.stop`.
        """
        worded = rollout.stop(
            self._desired.rows(),
            realm=self._authority.realm,
            model=release.model,
            version=release.version,
            release=release.digest,
            action=action,
            ring=ring,
            now=now,
        )
        return self._add(worded, now)

    def pause(self, release: Release, *, lets_running: bool, now: int) -> None:
        """Has the rollout stand still.

        Raises:
            NotFoundError, RefusedError: as `rollout.pause`.
        """
        rollout.pause(self._desired.rows(), model=release.model, version=release.version, release=release.digest)
        self._ledger.pause(Paused(release.model, release.digest, lets_running), now)

    def resume(self, release: Release) -> bool:
        """Has it go on; whether it was paused."""
        return self._ledger.resume(release.digest)

    def paused(self, release: Release) -> Paused | None:
        """Whether the rollout stands still."""
        return self._ledger.pauses().get(release.digest)

    def renew(self, now: int) -> tuple[Worded, ...]:
        """Signs again what ends soon."""
        rows = [(row, self._desired.ends(row)) for row in _standing(self._desired.rows())]
        worded = rollout.renewals(rows, realm=self._authority.realm, now=now)
        return self._add(worded, now)

    def told(self) -> list[Signed]:
        """What rings are told or wait for."""
        return _standing(self._desired.rows())

    def sign_again(self) -> int:
        """Signs again what rings are told or wait for, where keys in force no longer vouch for it; how many."""
        count = 0
        for row in _standing(self._desired.rows()):
            if row.ring == "protected" or self._lacks(row)[0] <= 0:
                continue
            payload = envelope.parse(self._desired.statement(row)).payload
            signatures = self._authority.sign_payload(f"ring-{row.ring}", "directive", payload)
            self._desired.sign(row, envelope.encode(Statement("directive", payload, tuple(sorted(signatures.items())))))
            count += 1
        return count

    def unsigned(self) -> list[tuple[Offline, dict[bytes, bytes]]]:
        """Protected's directives in force that its keys no longer vouch for, with the signatures that still count."""
        rows = [row for row in _standing(self._desired.rows()) if row.ring == "protected" and row.released]
        return [(self._offline(row), self._lacks(row)[1]) for row in rows if self._lacks(row)[0] > 0]

    def add_again(self, payload: bytes, signatures: Mapping[bytes, bytes]) -> Offline:
        """Takes signatures of a directive of protected that is in force, checked here; on disk when this returns.

        Raises:
            IntegrityError: not a directive.
            NotFoundError: none of protected's in force.
            TrustError: a signature is not by one of the ring's keys, or doesn't fit.
        """
        directive = Directive.decode(payload)
        found = [o for o, _ in self.unsigned() if o.payload == payload]
        if not found:
            raise NotFoundError(f"directive {directive.number} of ring {directive.ring} waits for no signature")
        need, keys = self._authority.set.statement_keys(OFFLINE_ROLE)
        message = envelope.signed_bytes("directive", payload)
        for keyid, signature in signatures.items():
            if keyid not in keys or not PublicKey(keys[keyid]).is_signature(message, signature):
                raise TrustError(f"signature of key {keyid.hex()[:16]} is none of {OFFLINE_ROLE} on this directive")
        held = envelope.parse(self._desired.statement(found[0].row)).signatures
        good = {k: s for k, s in held if k in keys} | dict(signatures)
        # Of keys that were rotated out they stay until enough others have signed.
        kept = good if len(good) >= need else dict(held) | good
        self._desired.sign(found[0].row, envelope.encode(Statement("directive", payload, tuple(sorted(kept.items())))))
        return self._offline(found[0].row)

    def _lacks(self, row: Signed) -> tuple[int, dict[bytes, bytes]]:
        """How many signatures a directive lacks by the keys in force, and those it has."""
        need, keys = self._authority.set.statement_keys(f"ring-{row.ring}")
        statement = envelope.parse(self._desired.statement(row))
        message = envelope.signed_bytes("directive", statement.payload)
        good = {k: s for k, s in statement.signatures if k in keys and PublicKey(keys[k]).is_signature(message, s)}
        return need - len(good), good

    # --- protected --------------------------------------------------------------------------------------------------

    def word(self, release: Release, action: Action, now: int) -> Offline:
        """Protected's directive for its offline keys: the one that waits already, else a new one, stored.

        Raises:
            NotFoundError, RefusedError: as `rollout.word`.
        """
        rows = self._desired.rows()
        found = rollout.word(
            rows,
            realm=self._authority.realm,
            model=release.model,
            version=release.version,
            release=release.digest,
            action=action,
            is_paused=self.paused(release) is not None,
            now=now,
        )
        if isinstance(found, Directive):
            [stored] = self._add((Worded(found, released=False),), now)
            new = stored.directive
            found = Signed(new.ring, new.model, new.number, new.release, new.action, False)
        return self._offline(found)

    def add_signatures(self, release_name: str, payload: bytes, signatures: Mapping[bytes, bytes], now: int) -> Offline:
        """Takes signatures of protected's directive; on disk when this returns, released with the last one needed.

        Raises:
            TrustError: a signature is not by one of the ring's keys, or doesn't fit.
            IntegrityError: not a directive.
            NotFoundError: not one that this hub worded.
            RefusedError: a newer number made it void, or its rollout was stopped, paused or superseded.
        """
        directive = Directive.decode(payload)
        rows = self._desired.rows()
        key = (directive.ring, directive.model, directive.number)
        row = next((r for r in rows if r.ring == "protected" and (r.ring, r.model, r.number) == key), None)
        if row is None or envelope.parse(self._desired.statement(row)).payload != payload:
            raise NotFoundError(f"this hub worded no such directive: heliograph rollout request {release_name}")
        if row.released:
            return self._offline(row)
        paused = row.release in self._ledger.pauses()
        rollout.check_may_release(rows, row, name=release_name, is_paused=paused)
        _, keys = self._authority.set.statement_keys(OFFLINE_ROLE)
        message = envelope.signed_bytes("directive", payload)
        for keyid, signature in signatures.items():
            if keyid not in keys:
                raise TrustError(
                    f"key {keyid.hex()[:16]} is not one of the keys of {OFFLINE_ROLE}: "
                    f"sign what heliograph rollout request {release_name} writes anew, by those alone"
                )
            if not PublicKey(keys[keyid]).is_signature(message, signature):
                raise TrustError(f"signature of key {keyid.hex()[:16]} does not fit the directive")
        held = {k: s for k, s in envelope.parse(self._desired.statement(row)).signatures if k in keys}
        both = tuple(sorted((held | dict(signatures)).items()))
        self._desired.sign(row, envelope.encode(Statement("directive", payload, both)))
        offline = self._offline(row)
        if offline.have >= offline.need:
            self._desired.release((row,), now)
        return offline

    def offline_keyids(self) -> tuple[bytes, ...]:
        """Who may sign for protected."""
        return tuple(sorted(self._authority.set.statement_keys(OFFLINE_ROLE)[1]))

    def offline(self, release: Release) -> Offline | None:
        """Protected's newest directive of a release, if it waits for signatures."""
        ours = [row for row in self._desired.rows() if (row.ring, row.model) == ("protected", release.model)]
        newest = rollout.newest_signed(ours).get("protected")
        if newest is None or newest.released or newest.release != release.digest:
            return None
        return self._offline(newest)

    def _offline(self, row: Signed) -> Offline:
        need, keys = self._authority.set.statement_keys(OFFLINE_ROLE)
        statement = envelope.parse(self._desired.statement(row))
        have = sum(keyid in keys for keyid, _ in statement.signatures)
        return Offline(row, statement.payload, have, need)

    def _add(self, worded: tuple[Worded, ...], now: int) -> tuple[Worded, ...]:
        """Signs and stores them, with numbers that follow those that nodes have; returns them so."""
        worded = tuple(replace(each, directive=self._behind(each.directive)) for each in worded)
        signed = []
        for each in worded:
            document = each.directive
            if each.is_online:
                statement = self._authority.sign_statement(f"ring-{document.ring}", "directive", document)
            else:
                statement = envelope.encode(Statement("directive", document.encode(), ()))
            signed.append((each, statement))
        if signed:
            self._desired.add(signed, now)
        return worded

    def _behind(self, directive: Directive) -> Directive:
        key = (directive.ring, directive.model)
        known = max((row.number for row in self._desired.rows() if (row.ring, row.model) == key), default=0)
        ahead = next_number(known, self._said.get(key, 0)) - known - 1
        return directive.model_copy(update={"number": directive.number + ahead})


def _standing(rows: list[Signed]) -> list[Signed]:
    """What rings are told or wait for."""
    told = {(row.ring, row.model): row for row in rows if row.released}
    newest = {(row.ring, row.model): row for row in rows}  # by number, as `Desired.rows` gives them
    return list(dict.fromkeys([*told.values(), *newest.values()]))

"""What the agent believes and was told: trusted metadata, directives of its ring, its assignment; kept in the journal.

Rule 1: nothing is kept that did not verify, and a set only whole (`heliograph.trust`).
Rule 2: documents are kept as signed and verified again whenever they are used; a number counts only as long as the
    signatures of its document do.
Rule 3: what a directive means to a machine now is worked out from these and the time alone: level, not edge.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from heliograph.documents import Assignment, Directive, Document, Numbers
from heliograph.errors import ConfigError, HeliographError, IntegrityError, TrustError
from heliograph.names import Ring
from heliograph.protocol import Topic, topic
from heliograph.trust import (
    DUTIES,
    TrustedSet,
    state_from_bytes,
    state_to_bytes,
    with_head,
    with_root,
    with_set,
)
from heliograph.vouching import admit, open_document
from heliograph.wire import unpack
from heliograph_site.journal import Held, Journal
from heliograph_site.machine import Directed, Memory, Target, Withdrawn

log = logging.getLogger("heliograph.agent")

MAX_DIRECTIVES = 200
"""In one ring's list."""


@dataclass(frozen=True, slots=True)
class News:
    """What a document changed.

    Attributes:
        hello: the hub has more than this node: ask it.
        assigned: there is a new assignment.
        ring: and it names another ring.
        models: directives or their standing may mean something else now.
        again: a document (full topic, payload) that failed before and is worth another look.
    """

    hello: bool = False
    assigned: bool = False
    ring: bool = False
    models: bool = False
    again: tuple[str, bytes] | None = None


class Belief:
    """Everything believed, as of the last document taken.

    Attributes:
        trusted: the newest complete state of the metadata.
        assignment: what this node is; None before the first.
    """

    def __init__(self, journal: Journal, names: tuple[str, str, str], keyid: bytes, now: Callable[[], int]) -> None:
        """Reads the journal. `names` are realm, site, node; `now` gives the estimated time.

        Raises:
            ConfigError: no metadata was ever trusted here.
        """
        self._journal = journal
        self._realm, self._site, self._node = names
        self._keyid = keyid
        self._now = now
        state = journal.trusted()
        if state is None:
            raise ConfigError(f"{journal.path} holds no trusted metadata: join anew")
        self.trusted: TrustedSet = state_from_bytes(state)
        self.assignment: Assignment | None = self._held_assignment()
        self._directives: dict[str, Held] = {held.name: held for held in journal.held("directive")}
        self._unverified: tuple[str, bytes] | None = None

    @property
    def ring(self) -> Ring | None:
        """The ring this node is in; None before its assignment."""
        return self.assignment.ring if self.assignment else None

    @property
    def models(self) -> tuple[str, ...]:
        """Models that a directive is held for."""
        return tuple(self._directives)

    def numbers(self) -> Numbers:
        """The newest numbers held, for hello."""
        return Numbers(
            directives={model: held.number for model, held in self._directives.items()},
            assignment=self.assignment.number if self.assignment else 0,
        )

    def open(self, row: Topic, names: dict[str, str], payload: bytes) -> Document:
        """A verified document meant for this node.

        Raises:
            TrustError, IntegrityError: as `heliograph.vouching.open_document`.
        """
        return open_document(
            self.trusted,
            payload,
            row,
            names,
            site=self._site,
            node=self._node,
            key=self._keyid,
            is_protected=self.ring == "protected",
        )

    def take(self, row: Topic, names: dict[str, str], payload: bytes) -> News:
        """Takes a document of the rows root, head, set, desired, assigned; on disk when this returns.

        Raises:
            TrustError, IntegrityError: it is not to be believed; what else it held may have been kept.
        """
        match row.name:
            case "root":
                if int(names["number"]) <= self.trusted.versions["root"]:
                    return News()
                return self._trust(with_root(self.trusted, payload), hello=True)
            case "head":
                return News(hello=with_head(self.trusted, payload, self._now()))
            case "set":
                return self._trust(with_set(self.trusted, payload, self._now()), hello=False)
            case "desired":
                return self._take_desired(row, names, payload)
            case "assigned":
                return self._take_assigned(row, names, payload)
            case _:
                raise AssertionError(f"{row.name} is none of these")

    def wanted(self, model: str, memory: Memory) -> tuple[Directed | Withdrawn | None, str]:
        """What the model's directive says to its machine now, and in words what it waits for at rest."""
        held = self._directives.get(model)
        directive = self._directive(held) if held is not None else None
        if held is None or directive is None or self.ring is None:
            return None, ""
        now = self._now()
        target = Target(directive.release, directive.number)
        if directive.action == "install":
            try:
                admitted = admit(self.trusted, held.statement, self.ring, now)
            except HeliographError as error:
                is_under_way = memory.target is not None and memory.target.release == directive.release
                # Stale metadata only forbids activating; what is lost or over ends what is under way.
                if is_under_way and self.trusted.is_fresh(now) and memory.phase != "proving":
                    return Withdrawn(str(error)), str(error)
                return None, str(error)
            duties = (key for duty in DUTIES for key in self.trusted.signers(f"{duty}-{model}"))
            target = replace(target, path=admitted.target.path, vouchers=tuple(sorted(set(duties))))
        return Directed(directive.action, target), ""

    def why_not_yet(self, model: str, release: bytes) -> str | None:
        """What forbids activating the release now; None if every duty vouches for it and freshness is proven."""
        held = self._directives.get(model)
        if held is None or self.ring is None:
            return "a directive of this node's ring"
        try:
            admitted = admit(self.trusted, held.statement, self.ring, self._now())
        except HeliographError as error:
            return str(error)
        return None if admitted.target.sha256 == release else "the release that the newest directive names"

    def _trust(self, trusted: TrustedSet, *, hello: bool) -> News:
        if trusted == self.trusted:
            return News()
        self._journal.save_trusted(state_to_bytes(trusted))
        self.trusted = trusted
        log.info("trusted metadata is now %s", trusted.versions)
        again, self._unverified = self._unverified, None
        return News(hello=hello, models=True, again=again)

    def _take_desired(self, row: Topic, names: dict[str, str], payload: bytes) -> News:
        if names["ring"] != self.ring:
            return News()  # retained for a ring that this node has left
        statements = unpack(payload)
        if not isinstance(statements, list) or len(statements) > MAX_DIRECTIVES:
            raise IntegrityError("not a list of directives")
        known = {held.statement for held in self._directives.values()}
        news: list[Held] = []
        refused: HeliographError | None = None
        for statement in statements:
            if not isinstance(statement, bytes):
                raise IntegrityError("not a list of directives")
            if statement in known:
                continue
            try:
                directive = self.open(row, names, statement)
            except (TrustError, IntegrityError) as error:
                refused = error
                continue
            assert isinstance(directive, Directive)  # the row says so
            if directive.number > self._standing_number(directive.model):
                news.append(Held("directive", directive.model, directive.number, statement))
        if news:
            self._journal.hold(*news)
            self._directives |= {held.name: held for held in news}
        if refused is not None:
            # A newer set may know keys that this one doesn't: it is looked at once more when that comes.
            self._unverified = (row.build(self._realm, **names), payload)
            if not news:
                raise refused
        return News(models=bool(news))

    def _take_assigned(self, row: Topic, names: dict[str, str], payload: bytes) -> News:
        assignment = self.open(row, names, payload)
        assert isinstance(assignment, Assignment)  # the row says so
        before = self.assignment
        if before is not None and assignment.number <= before.number:
            return News()
        self._journal.hold(Held("assignment", "", assignment.number, payload))
        self.assignment = assignment
        is_other_ring = before is None or before.ring != assignment.ring
        if is_other_ring:
            log.info("assigned to ring %s", assignment.ring)
            self._journal.drop("directive")
            self._directives.clear()
            self._unverified = None
        return News(assigned=True, ring=is_other_ring)

    def _standing_number(self, model: str) -> int:
        """The number of the directive held, as long as its signatures still count; else 0."""
        held = self._directives.get(model)
        return 0 if held is None or self._directive(held) is None else held.number

    def _directive(self, held: Held) -> Directive | None:
        """The directive held, if it still verifies and is this ring's."""
        if self.ring is None:
            return None
        try:
            directive = self.open(topic("desired"), {"ring": self.ring}, held.statement)
        except HeliographError:
            return None
        assert isinstance(directive, Directive)  # the row says so
        return directive

    def _held_assignment(self) -> Assignment | None:
        names = {"site": self._site, "node": self._node}
        for held in self._journal.held("assignment"):
            try:
                # Its ring's threshold was checked when it came.
                document = open_document(
                    self.trusted,
                    held.statement,
                    topic("assigned"),
                    names,
                    site=self._site,
                    node=self._node,
                    key=self._keyid,
                )
            except HeliographError as error:
                log.warning("the assignment held no longer verifies: %s", error)
                continue
            assert isinstance(document, Assignment)  # the row says so
            return document
        return None

"""What the agent believes and was told: denials, trusted metadata, directives of its ring, its assignment.

Rule 1: nothing is kept that did not verify, and a set only whole (`heliograph.trust`).
Rule 2: documents are kept as signed and verified again whenever they are used; a number counts only as long as the
    signatures of its document do.
Rule 3: a node enrolled for ring protected, or in it, takes an assignment only at protected's threshold. What it is
    stays in force over restarts and changes of keys, until a newer assignment that verifies replaces it.
Rule 4: what a directive means to a machine now is worked out from these and the time alone: level, not edge.
Rule 5: denials are handed over, not kept here: they go to the journal in one transaction with what every machine makes
    of them, and count from then on (`holds`).
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from heliograph.deny import DenySet, older_blob
from heliograph.documents import Assignment, Directive, Document, Numbers, OlderDenials
from heliograph.errors import ConfigError, HeliographError, IntegrityError, TrustError
from heliograph.manifest import Manifest
from heliograph.names import Ring
from heliograph.protocol import Topic, topic
from heliograph.statement import parse
from heliograph.trust import (
    DUTIES,
    TrustedSet,
    state_from_bytes,
    state_to_bytes,
    time_in_head,
    with_head,
    with_root,
    with_set,
)
from heliograph.vouching import PROTECTED_ROLE, AdmissibleTarget, admit, counted, is_in_time, open_document
from heliograph.wire import unpack
from heliograph_site.happenings import Directed, Withdrawn
from heliograph_site.journal import Held, Journal
from heliograph_site.memory import UNDER_WAY, Memory, Target
from heliograph_site.rulebook import Rulebook

log = logging.getLogger("heliograph.agent")

MAX_DIRECTIVES = 200
"""In one ring's list."""
ASSIGNERS = ("assign", PROTECTED_ROLE)
"""Roles whose thresholds sign assignments."""


@dataclass(frozen=True, slots=True)
class News:
    """What a document changed.

    Attributes:
        hello: the hub has more than this node: ask it.
        assigned: there is a new assignment.
        ring: and it names another ring.
        models: directives or their standing may mean something else now.
        again: a document (full topic, payload) that failed before and is worth another look.
        denials: they have grown, or are judged by other keys: to be saved with what every machine makes of them.
        older: a blob that the list of denials needs to be whole.
        at: what a head says the time was, and by which keys; of a set the trusted metadata tells.
    """

    hello: bool = False
    assigned: bool = False
    ring: bool = False
    models: bool = False
    again: tuple[str, bytes] | None = None
    denials: DenySet | None = None
    older: OlderDenials | None = None
    at: tuple[int, tuple[bytes, ...]] | None = None


NO_NEWS = News()


@dataclass(slots=True)
class _Judged:
    """What documents are worth under one trusted set, in one ring, by their signed bytes."""

    trusted: TrustedSet
    ring: Ring | None
    directives: dict[bytes, Directive | None] = field(default_factory=dict)
    admitted: dict[bytes, AdmissibleTarget] = field(default_factory=dict)
    vouchers: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    assignment: tuple[Held, int] | None = None


class Belief:
    """Everything believed, as of the last document taken.

    Attributes:
        trusted: the newest complete state of the metadata.
        denials: what is denied, as saved.
        assignment: what this node is; None before the first.
    """

    def __init__(
        self,
        journal: Journal,
        names: tuple[str, str, str],
        keyid: bytes,
        now: Callable[[], int],
        *,
        for_protected: bool = False,
        manifests: Callable[[bytes], Manifest | None] = lambda _: None,
        latest: Callable[[], int] | None = None,
    ) -> None:
        """Reads the journal. `names` are realm, site, node; `now` gives the estimated time.

        `latest` gives how late it may be: what expires is judged by that; left out: `now`.
        `manifests` gives those that are on the disk.
        `for_protected`: the token that enrolled this node said so.

        Raises:
            ConfigError: no metadata was ever trusted here.
        """
        self._journal = journal
        self._realm, self._site, self._node = names
        self._keyid = keyid
        self._now, self._latest = now, latest or now
        self._for_protected = for_protected
        state = journal.trusted()
        if state is None:
            raise ConfigError(f"{journal.path} holds no trusted metadata: join anew")
        self.trusted: TrustedSet = state_from_bytes(state)
        self._assigned: Held | None = next(iter(journal.held("assignment")), None)
        self.assignment: Assignment | None = self._held_assignment()
        self.rules = Rulebook(journal, self._realm, lambda: self.trusted, lambda: self.ring, now, manifests)
        denials = journal.denials()
        self.denials = DenySet() if denials is None else DenySet.from_bytes(denials)
        self._deny_list: bytes | None = None
        self._directives: dict[str, Held] = {held.name: held for held in journal.held("directive")}
        self._unverified: tuple[str, bytes] | None = None
        # Worked out once for the metadata and ring that it was worked out under: machines ask after every step.
        self._judged = _Judged(self.trusted, self.ring)

    @property
    def ring(self) -> Ring | None:
        """The ring this node is in; None before its assignment."""
        return self.assignment.ring if self.assignment else None

    @property
    def is_protected(self) -> bool:
        """Whether this node's assignments need the threshold of ring protected."""
        return self._for_protected or self.ring == "protected"

    @property
    def memories(self) -> tuple[Memory, ...]:
        """What each machine remembers, as last saved."""
        return tuple(self._journal.load(model) for model in self._journal.models())

    @property
    def models(self) -> tuple[str, ...]:
        """Models that a directive is held for."""
        return tuple(self._directives)

    @property
    def served_models(self) -> tuple[str, ...]:
        """Models whose configs matter: those that a directive is held for, and those that were ever directed here."""
        return tuple(dict.fromkeys((*self._directives, *self._journal.models())))

    def numbers(self) -> Numbers:
        """The newest numbers held, for hello."""
        policy, configs = self.rules.numbers(self.served_models)
        return Numbers(
            policy=policy,
            config=configs,
            directives={model: number for model in self._directives if (number := self.directive_number(model))},
            assignment=self._assignment_number(),
        )

    @property
    def assigned_by(self) -> tuple[bytes, ...]:
        """The ids of the keys that signed the assignment held, if they still reach a threshold that may."""
        if self._assigned is None or not self._assignment_number():
            return ()
        found = (counted(self.trusted, self._assigned.statement, role) for role in ASSIGNERS)
        return tuple(sorted({keyid for keyids in found for keyid in keyids}))

    def may_assign(self, keyids: Collection[bytes]) -> bool:
        """Whether these keys together may still say what this node is."""
        for role in ASSIGNERS:
            try:
                threshold, keys = self.trusted.statement_keys(role)
            except TrustError:
                continue
            if sum(keyid in keys for keyid in keyids) >= threshold:
                return True
        return False

    def directive_number(self, model: str) -> int:
        """The number of the directive held, as long as its signatures still count; else 0."""
        held = self._directives.get(model)
        return 0 if held is None or self._directive(held) is None else held.number

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
            is_protected=self.is_protected,
        )

    def take(self, row: Topic, names: dict[str, str], payload: bytes, *, is_answer: bool = False) -> News:
        """Takes a document of the rows deny, root, head, set, desired, assigned, policy, config; on disk on return.

        Denials are not on disk yet: the caller saves those in the news, and then says so by `holds`. `is_answer`: it
        came in the hub's answer to this node's last hello.

        Raises:
            TrustError, IntegrityError: it is not to be believed; what else it held may have been kept.
        """
        match row.name:
            case "deny":
                return self._take_denials(payload)
            case "root":
                if int(names["number"]) <= self.trusted.versions["root"]:
                    return NO_NEWS
                return self._trust(with_root(self.trusted, payload), hello=True)
            case "head":
                hello = with_head(self.trusted, payload, self._latest())
                return News(hello=hello, at=time_in_head(self.trusted, payload))
            case "set":
                return self._trust(with_set(self.trusted, payload, self._latest()), hello=False)
            case "desired":
                return self._take_desired(row, names, payload)
            case "assigned":
                return self._take_assigned(row, names, payload)
            case "policy" | "config":
                is_news = self.rules.take(row, names, payload, is_answer=is_answer)
                return News(models=True) if is_news else NO_NEWS
            case _:
                raise AssertionError(f"{row.name} is none of these")

    def wanted(self, model: str, memory: Memory) -> tuple[Directed | Withdrawn | None, str]:
        """What the model's directive says to its machine now, and in words what it waits for at rest."""
        held = self._directives.get(model)
        directive = self._directive(held) if held is not None else None
        if held is None and self.ring is not None:
            return Directed("", Target(b"", 0)), ""
        if held is None or directive is None or self.ring is None:
            return None, ""
        now, latest = self._now(), self._latest()
        path, vouchers = "", tuple[bytes, ...]()
        if directive.action == "install":
            try:
                admitted = self._admitted(held.statement, self.ring, now, latest)
            except HeliographError as error:
                # Stale metadata only forbids activating. A directive that can't be obeyed ends what is under way by it,
                # and by any older one.
                if memory.phase in UNDER_WAY and self.trusted.is_fresh(latest):
                    return Withdrawn(str(error)), str(error)
                return None, str(error)
            why = self._why_denied(model, admitted)
            if why is not None:
                return (Withdrawn(why) if memory.phase in UNDER_WAY else None), why
            if memory.phase in ("fetching", "staging") and memory.target is not None:
                unfit = self.rules.why_unfit(memory) if memory.target.release == directive.release else None
                if unfit is not None:
                    return Withdrawn(unfit), unfit  # it is checked anew, and waits there
            path, vouchers = admitted.target.path, self.vouchers(model)
        return Directed(directive.action, Target(directive.release, directive.number, path, vouchers)), ""

    def directed(self, model: str) -> str | None:
        """The version that the model's newest directive installs, if it does and the release is listed."""
        held = self._directives.get(model)
        directive = self._directive(held) if held is not None else None
        if directive is None or directive.action != "install":
            return None
        target = self.trusted.target(model, directive.release)
        return target.version if target is not None else None

    def why_not_yet(self, model: str, release: bytes) -> str | None:
        """What forbids activating the release now; None if every duty vouches for it and freshness is proven."""
        held = self._directives.get(model)
        if held is None or self.ring is None:
            return "a directive of this node's ring"
        try:
            admitted = self._admitted(held.statement, self.ring, self._now(), self._latest())
        except HeliographError as error:
            return str(error)
        if admitted.target.sha256 != release:
            return "the release that the newest directive names"
        return self.why_unsure() or self._why_denied(model, admitted)

    def why_unsure(self) -> str | None:
        """What is missing to know what is denied; None if every denial that the newest timestamp names is held."""
        head = self.trusted.heads.deny
        return None if self.denials.holds_all(head) else f"the {head.count} denials that the newest timestamp names"

    def holds(self, denials: DenySet) -> None:
        """These denials are on disk, with what every machine makes of them."""
        self.denials = denials

    def with_older(self, blob: bytes) -> News:
        """Takes the list of denials again, with the blob that it names."""
        return NO_NEWS if self._deny_list is None else self._take_denials(self._deny_list, blob)

    def _take_denials(self, payload: bytes, older: bytes | None = None) -> News:
        head = self.trusted.heads.deny
        grown = self.denials.with_list(payload, self.trusted, head, older)
        self._deny_list = payload
        missing = None if older is not None or grown.holds_all(head) else older_blob(payload)
        is_same = grown == self.denials and grown.lists == self.denials.lists
        if is_same and missing is None:
            return NO_NEWS
        return News(models=not is_same, denials=None if is_same else grown, older=missing)

    def vouchers(self, model: str) -> tuple[bytes, ...]:
        """Ids of the keys that signed or approved the model's releases that are listed now."""
        known = self._under().vouchers
        if model not in known:
            keyids = {keyid for duty in DUTIES for keyid in self.trusted.signers(f"{duty}-{model}")}
            known[model] = tuple(sorted(keyids))
        return known[model]

    def _why_denied(self, model: str, admitted: AdmissibleTarget) -> str | None:
        """Which denial stands against installing the release, or against who directs it."""
        vouchers = self.vouchers(model)
        denial = self.denials.forbids(admitted.target.sha256, vouchers)
        if denial is not None:
            said = denial.document.reason if denial.document is not None else ""
            return f"denied: {said or 'no reason given'}"
        if any(self.denials.is_key_denied(keyid) for keyid in admitted.keyids if keyid not in vouchers):
            return "denied: a key that directs it"
        return None

    def _trust(self, trusted: TrustedSet, *, hello: bool) -> News:
        if trusted == self.trusted:
            return NO_NEWS
        self._journal.save_trusted(state_to_bytes(trusted))
        self.trusted = trusted
        log.info("trusted metadata is now %s", trusted.versions)
        again, self._unverified = self._unverified, None
        denials = self.denials.with_trusted(trusted)
        older: OlderDenials | None = None
        if self._deny_list is not None and not denials.holds_all(trusted.heads.deny):
            news = self._take_denials(self._deny_list)  # which the newer timestamp may name
            denials, older = news.denials or denials, news.older
        is_same = denials == self.denials and denials.lists == self.denials.lists
        hello = hello or not denials.holds_all(trusted.heads.deny) or self.rules.is_behind(self.served_models)
        return News(hello=hello, models=True, again=again, denials=None if is_same else denials, older=older)

    def _take_desired(self, row: Topic, names: dict[str, str], payload: bytes) -> News:
        if names["ring"] != self.ring:
            return NO_NEWS  # retained for a ring that this node has left
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
            if directive.number > self.directive_number(directive.model):
                news.append(Held("directive", directive.model, directive.number, statement))
        if news:
            self._journal.hold(*news)
            self._directives |= {held.name: held for held in news}
        if refused is not None:
            # A newer set may know keys that this one doesn't: it is looked at once more when that comes.
            self._unverified = (row.build(self._realm, **names), payload)
            if not news:
                raise refused
        return News(models=True) if news else NO_NEWS

    def _take_assigned(self, row: Topic, names: dict[str, str], payload: bytes) -> News:
        held = self._assigned
        if held is not None and held.statement == payload and self._assignment_number() == held.number:
            return NO_NEWS  # every reply brings it again
        assignment = self.open(row, names, payload)
        assert isinstance(assignment, Assignment)  # the row says so
        before = self.assignment
        if assignment.number <= self._assignment_number():
            return NO_NEWS
        is_other_ring = before is None or before.ring != assignment.ring
        self._assigned = Held("assignment", "", assignment.number, payload)
        self._journal.hold(self._assigned, drop="directive" if is_other_ring else "")
        self.assignment = assignment
        if is_other_ring:
            log.info("assigned to ring %s", assignment.ring)
            self.rules.leave_ring()
            self._directives.clear()
            self._unverified = None
        return News(assigned=True, ring=is_other_ring, models=is_other_ring)

    def _directive(self, held: Held) -> Directive | None:
        """The directive held, if it still verifies and is this ring's."""
        ring, known = self.ring, self._under().directives
        if ring is None:
            return None
        if held.statement not in known:
            directive: Document | None
            try:
                directive = self.open(topic("desired"), {"ring": ring}, held.statement)
            except HeliographError:
                directive = None
            assert directive is None or isinstance(directive, Directive)  # the row says so
            if len(known) > MAX_DIRECTIVES:
                known.clear()
            known[held.statement] = directive
        return known[held.statement]

    def _admitted(self, statement: bytes, ring: Ring, now: int, latest: int) -> AdmissibleTarget:
        """As `admit`, which is asked once; from then on only the time may speak against it."""
        known = self._under().admitted
        admitted = known.get(statement)
        if admitted is None or not is_in_time(self.trusted, admitted, now, latest):
            if len(known) > MAX_DIRECTIVES:
                known.clear()
            admitted = known[statement] = admit(self.trusted, statement, ring, now, latest)
        return admitted

    def _under(self) -> "_Judged":
        """What was worked out under the metadata and ring of now."""
        if self._judged.trusted is not self.trusted or self._judged.ring != self.ring:
            self._judged = _Judged(self.trusted, self.ring)
        return self._judged

    def _assignment_number(self) -> int:
        """The number of the assignment held, as long as its signatures still count; else 0."""
        if self._assigned is None:
            return 0
        judged = self._under()
        if judged.assignment is None or judged.assignment[0] is not self._assigned:
            try:
                self._open_held(self._assigned)
                judged.assignment = (self._assigned, self._assigned.number)
            except HeliographError:
                judged.assignment = (self._assigned, 0)
        return judged.assignment[1]

    def _held_assignment(self) -> Assignment | None:
        """What this node is. Verified when it came: a rotation of its keys must lead no node out of protected."""
        if self._assigned is None:
            return None
        try:
            return self._open_held(self._assigned)
        except HeliographError as error:
            log.warning("the assignment held no longer verifies, it stays in force until a newer one: %s", error)
        try:
            held = Assignment.decode(parse(self._assigned.statement).payload)
        except HeliographError as error:
            log.warning("the assignment held can't be read: %s", error)
            return None
        mine = (self._realm, self._site, self._node, self._keyid)
        return held if (held.realm, held.site, held.node, held.key) == mine else None

    def _open_held(self, held: Held) -> Assignment:
        document = open_document(
            self.trusted,
            held.statement,
            topic("assigned"),
            {"site": self._site, "node": self._node},
            site=self._site,
            node=self._node,
            key=self._keyid,
            is_protected=self._for_protected,
        )
        assert isinstance(document, Assignment)  # the row says so
        return document

"""Policies and configs as papers: held as signed, opened and verified again whenever they are used.

What is held is said here, and what each paper is worth under the metadata of now; which ones are kept, and what a
machine makes of them, says `rulebook`.

Rule 1: what verified is kept, also where this version can't obey it: that is declined, in words, and told.
Rule 2: a number counts as long as the signatures of its document do.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from heliograph import tuples
from heliograph.documents import Declined, Heads
from heliograph.errors import IntegrityError, TrustError
from heliograph.policy import Config, Policy
from heliograph.protocol import STATEMENTS, Topic
from heliograph.statement import parse
from heliograph.trust import TrustedSet
from heliograph.versions import why_too_old
from heliograph.vouching import UnknownTypeError, verify
from heliograph.wire import unpack
from heliograph_site.journal import Paper

SCOPES = {"policy": "ring", "config": "model"}
MAX_OPENED = 64


class Shelf(Protocol):
    """What the journal does for papers."""

    def papers(self) -> tuple[Paper, ...]:
        """Every one held."""

    def shelve(self, *papers: Paper, drop: tuple[Paper, ...] = ()) -> None:
        """Keeps and forgets, in one transaction."""


class Papers:
    """All that is held, of this node's ring and of others."""

    def __init__(self, shelf: Shelf, realm: str, trusted: Callable[[], TrustedSet]) -> None:
        """Reads the journal."""
        self._shelf, self._realm, self._trusted = shelf, realm, trusted
        self._held: dict[tuple[str, str], dict[int, Paper]] = {}
        for paper in shelf.papers():
            self._held.setdefault((paper.kind, paper.scope), {})[paper.number] = paper
        # Worked out once for what it was worked out from: machines ask after every step.
        self._opened: dict[bytes, Policy | Config | str] = {}
        self._counts: dict[bytes, bool] = {}
        self._newest: dict[tuple[str, str], int] = {}
        self._obeyed: dict[str, list[tuple[Policy, int]]] = {}
        self._counted_under: TrustedSet | None = None
        self._heads: tuple[TrustedSet, Heads] | None = None

    # --- what is held -------------------------------------------------------------------------------------------------

    def of(self, kind: str, scope: str) -> Mapping[int, Paper]:
        """Those of a ring or a model, by their numbers."""
        return self._held.get((kind, scope), {})

    def rings(self) -> tuple[str, ...]:
        """Rings of which a policy is held, in the order in which the first of each came."""
        return tuple(scope for (kind, scope), held in self._held.items() if kind == "policy" and held)

    def add(self, paper: Paper) -> Mapping[int, Paper]:
        """Holds one more; all of its scope. Not on disk before `save`."""
        held = self._held.setdefault((paper.kind, paper.scope), {})
        held[paper.number] = paper
        self._forget()
        return held

    def save(self, paper: Paper, drop: tuple[Paper, ...]) -> None:
        """Keeps what was added, and drops others of its scope; on disk when this returns."""
        self._shelf.shelve(paper, drop=drop)
        for old in drop:
            del self._held[old.kind, old.scope][old.number]
        self._forget()

    def drop_rings(self, rings: set[str]) -> None:
        """Holds no more policies of these rings; on disk when this returns."""
        self._shelf.shelve(drop=tuple(paper for ring in sorted(rings) for paper in self.of("policy", ring).values()))
        for ring in rings:
            del self._held["policy", ring]
        self._forget()

    def restamp(self, now: int) -> bool:
        """What came later than now came now, in the same order; whether anything did. On disk when this returns."""
        late = [paper for held in self._held.values() for paper in held.values() if paper.came > now > 0]
        late.sort(key=lambda paper: paper.came)
        stamped = [replace(paper, came=now + place - len(late) + 1) for place, paper in enumerate(late)]
        for paper in stamped:
            self._held[paper.kind, paper.scope][paper.number] = paper
        self._forget()
        if stamped:
            self._shelf.shelve(*stamped)
        return bool(stamped)

    # --- what it is worth ---------------------------------------------------------------------------------------------

    def believed(self, row: Topic, scope: str, payload: bytes) -> int:
        """The number of a document that its role signed, for this realm and scope; its fields may be unknown here.

        Raises:
            TrustError, IntegrityError: it is not to be believed.
        """
        statement = parse(payload)
        if statement.type not in STATEMENTS:
            raise UnknownTypeError(f"statement of unknown type {statement.type!r} on topic {row.pattern}")
        if statement.type != row.statement:
            raise TrustError(f"{statement.type} statement came on topic {row.pattern}, which carries {row.statement}")
        what = SCOPES[row.name]
        body = unpack(verify(self._trusted(), statement, STATEMENTS[row.name].format(**{what: scope})))
        if not isinstance(body, dict):
            raise IntegrityError(f"{row.name} is not a map")
        for field, mine in (("realm", self._realm), (what, scope)):
            if body.get(field) != mine:
                raise TrustError(f"{row.name} is for {field} {str(body.get(field))[:60]}, not for {field} {mine}")
        number = body.get("number")
        if type(number) is not int or not 0 < number < 1 << 63:
            raise IntegrityError(f"{row.name} has no number")
        return number

    def opened(self, paper: Paper) -> Policy | Config | str:
        """The document, or why it is declined; it verified when it came."""
        found = self._opened.get(paper.statement)
        if found is None:
            if len(self._opened) > MAX_OPENED:
                self._opened.clear()
            found = self._opened[paper.statement] = _decoded(paper)
        return found

    def is_signed(self, paper: Paper) -> bool:
        """Whether its signatures still count."""
        self._look()
        found = self._counts.get(paper.statement)
        if found is None:
            role = STATEMENTS[paper.kind].format(**{SCOPES[paper.kind]: paper.scope})
            try:
                verify(self._trusted(), parse(paper.statement), role)
                found = True
            except TrustError:
                found = False
            self._counts[paper.statement] = found
        return found

    def newest(self, kind: str, scope: str) -> int:
        """The highest number that counts; 0 without any."""
        self._look()
        found = self._newest.get((kind, scope))
        if found is None:
            numbers = (paper.number for paper in self.of(kind, scope).values() if self.is_signed(paper))
            found = self._newest[kind, scope] = max(numbers, default=0)
        return found

    def head(self, kind: str, scope: str) -> int:
        """The number that the newest timestamp names; 0 if none."""
        trusted = self._trusted()
        if self._heads is None or self._heads[0] is not trusted:
            self._heads = trusted, trusted.heads  # parsed once
        heads = self._heads[1]
        known: Mapping[str, int] = heads.policy if kind == "policy" else heads.config  # type: ignore[assignment]
        return known.get(scope, 0)

    def policies(self, ring: str) -> list[tuple[Policy, int]]:
        """Those of the ring that verify and can be obeyed, with when they came."""
        self._look()
        found = self._obeyed.get(ring)
        if found is None:
            found = []
            for paper in self.of("policy", ring).values():
                opened = self.opened(paper)
                if isinstance(opened, Policy) and self.is_signed(paper):
                    found.append((opened, paper.came))
            self._obeyed[ring] = found
        return found

    def configs(self, model: str, own: int) -> tuple[tuples.HeldConfig, ...]:
        """Those that verify and can be used; and what is used (`own`), until one that verifies has come since."""
        papers = self.of("config", model)
        signed = [paper for paper in papers.values() if self.is_signed(paper)]
        used = papers.get(own)
        if used is not None and used not in signed and not any(paper.came > used.came for paper in signed):
            signed.append(used)
        found = [(self.opened(paper), paper.newest_until) for paper in signed]
        return tuple(tuples.held_config(config, until) for config, until in found if isinstance(config, Config))

    def declined(self) -> tuple[tuple[Paper, Declined], ...]:
        """What is held and not obeyed, in the order of kinds and scopes."""
        found = []
        for (kind, scope), held in sorted(self._held.items()):
            for paper in held.values():
                opened = self.opened(paper)
                if isinstance(opened, str):
                    name = "policy" if kind == "policy" else f"config/{scope}"
                    found.append((paper, Declined(document=name, number=paper.number, reason=opened[:400])))
        return tuple(found)

    def _look(self) -> None:
        """What was worked out under other metadata counts no more."""
        trusted = self._trusted()
        if trusted is not self._counted_under:
            self._counts, self._counted_under = {}, trusted
            self._forget()

    def _forget(self) -> None:
        """What was worked out from all that is held counts no more."""
        self._newest.clear()
        self._obeyed.clear()


def _decoded(paper: Paper) -> Policy | Config | str:
    model: type[Policy] | type[Config] = Policy if paper.kind == "policy" else Config
    try:
        document = model.decode(parse(paper.statement).payload)
    except IntegrityError as error:
        return str(error)
    return why_too_old(f"{paper.kind} {paper.number}", document.min_agent) or document

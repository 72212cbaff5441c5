"""How one release goes through the rings: which directives are signed, which are released, and who runs it.

A rollout has operations sign a directive for every ring at once, with the next number of that (ring, model), and
releases only canary's. Each further ring is released by hand. A node never sees a directive that was not released.

Rule 1: a release starts only when it is signed AND approved; the directives add the third duty, the ring's.
Rule 2: numbers grow per (ring, model) and are never used again, so a release that was refused is tried again only by
    starting its rollout again.
Rule 3: the newest rollout of a model supersedes the older ones: what they signed and did not release stays unreleased
    for good. A ring keeps running what was last released to it.
Rule 4: *protected* needs two offline signatures and is never released here.

Pure: rows of the database come in, rows to write go out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from heliograph.documents import Directive, ModelReport
from heliograph.errors import NotFoundError, RefusedError
from heliograph.names import RINGS, Ring

ONLINE_RINGS: tuple[Ring, ...] = ("canary", "early", "general")
"""Rings whose keys the hub holds."""
DIRECTIVE_LIFE_S = 365 * 86400
"""A directive left standing must be renewed by a new rollout within a year."""
MAX_DESIRED_BYTES = 56 * 1024
"""Largest `desired/<ring>` list: it must fit into one signed reply."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A directive as stored; `released` says whether nodes may see it."""

    ring: Ring
    model: str
    number: int
    release: bytes
    action: str
    released: bool


@dataclass(frozen=True, slots=True)
class Member:
    """One node of a ring and what it last said of the model."""

    site: str
    node: str
    ring: Ring
    silent: bool
    report: ModelReport | None


RingState = Literal["released", "waiting", "superseded", "offline"]


@dataclass(frozen=True, slots=True)
class Standing:
    """One ring of a rollout. `serving + refused + silent + under_way` is the ring's nodes.

    Attributes:
        state: `released`, `waiting` for promotion, `superseded` by a newer rollout, `offline` (protected).
        serving: nodes that said they serve the release.
        refused: nodes that said they will not run it under this number, with their reasons.
        silent: nodes unheard past their deadline, whatever they said before, unless they had refused.
        under_way: the rest.
    """

    ring: Ring
    state: RingState
    number: int | None
    serving: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    silent: tuple[str, ...]
    under_way: tuple[str, ...]


def start(
    rows: Iterable[Signed],
    *,
    realm: str,
    model: str,
    version: str,
    release: bytes,
    signed: bool,
    approved: bool,
    now: int,
) -> tuple[Directive, ...]:
    """The directives to sign, canary first; canary's is released, the others wait.

    Raises:
        RefusedError: the release is not signed, or not approved.
    """
    for done, verb, duty in ((signed, "signed", "sign"), (approved, "approved", "approve")):
        if not done:
            raise RefusedError(
                f"{model}@{version} is not {verb}: heliograph release {duty} {model}@{version} --key FILE"
            )
    highest: dict[str, int] = {}
    for row in rows:
        if row.model == model:
            highest[row.ring] = max(highest.get(row.ring, 0), row.number)
    return tuple(
        Directive(
            realm=realm,
            ring=ring,
            model=model,
            release=release,
            number=highest.get(ring, 0) + 1,
            action="install",
            expires=now + DIRECTIVE_LIFE_S,
        )
        for ring in ONLINE_RINGS
    )


def promote(rows: Iterable[Signed], *, model: str, version: str, release: bytes, to: str | None) -> tuple[Signed, ...]:
    """The directives to release now: the next ring's, or every waiting one up to and including `to`.

    Raises:
        NotFoundError: no rollout of the release was started.
        RefusedError: superseded, nothing is waiting, or the ring is not the hub's to release.
    """
    name = f"{model}@{version}"
    if to == "protected":
        raise RefusedError(f"{name}: ring protected is released by two offline signatures, not by this hub")
    if to is not None and to not in RINGS:
        raise NotFoundError(f"no ring {to!r}: rings are {', '.join(RINGS)}")
    newest = newest_signed(row for row in rows if row.model == model)
    if not newest:
        raise NotFoundError(f"{name} has no rollout: heliograph rollout start {name}")
    if any(row.release != release for row in newest.values()):
        raise RefusedError(f"{name} is not the newest rollout of {model}: start it again to go back to it")
    waiting = [newest[ring] for ring in ONLINE_RINGS if ring in newest and not newest[ring].released]
    if not waiting:
        raise RefusedError(f"{name} is released to {', '.join(ONLINE_RINGS)}; protected needs two offline signatures")
    if to is None:
        return (waiting[0],)
    rings: tuple[str, ...] = ONLINE_RINGS
    chosen = tuple(row for row in waiting if rings.index(row.ring) <= rings.index(to))
    if not chosen:
        raise RefusedError(f"{name} is released to ring {to} already")
    return chosen


def newest_signed(rows: Iterable[Signed]) -> dict[Ring, Signed]:
    """Per ring the row of the highest number; give it rows of one model."""
    newest: dict[Ring, Signed] = {}
    for row in rows:
        if row.ring not in newest or row.number > newest[row.ring].number:
            newest[row.ring] = row
    return newest


def in_force(rows: Iterable[Signed]) -> dict[Ring, dict[str, Signed]]:
    """Per ring and model the released row of the highest number: what nodes are told."""
    found: dict[Ring, dict[str, Signed]] = {}
    for row in rows:
        if row.released:
            models = found.setdefault(row.ring, {})
            if row.model not in models or row.number > models[row.model].number:
                models[row.model] = row
    return found


def standings(rows: Sequence[Signed], members: Sequence[Member], *, model: str, release: bytes) -> tuple[Standing, ...]:
    """Where each ring stands with this release, by what the nodes themselves said.

    Raises:
        NotFoundError: no directive ever named the release.
    """
    mine = [row for row in rows if row.model == model]
    own = newest_signed(row for row in mine if row.release == release)
    if not own:
        raise NotFoundError(f"no rollout of this release of {model} was started")
    newest = newest_signed(mine)
    return tuple(
        _standing(ring, own.get(ring), newest.get(ring), [m for m in members if m.ring == ring], release)
        for ring in RINGS
    )


def _standing(ring: Ring, own: Signed | None, newest: Signed | None, members: list[Member], release: bytes) -> Standing:
    state: RingState
    if own is None or newest is None:
        state = "offline"
    elif newest.release != release:
        state = "superseded"
    else:
        state = "released" if newest.released else "waiting"
    serving: list[str] = []
    refused: list[tuple[str, str]] = []
    silent: list[str] = []
    under_way: list[str] = []
    for member in members:
        name, report = f"{member.site}/{member.node}", member.report
        active = report is not None and report.tuple is not None and report.tuple.release == release
        numbers = {own.number} if own else set()
        reason = next(
            (r.reason for r in report.refused if r.release == release and r.number in numbers) if report else iter(()),
            None,
        )
        if reason is not None and not active:
            refused.append((name, reason))
        elif member.silent:
            silent.append(name)
        elif active:
            serving.append(name)
        else:
            under_way.append(name)
    number = own.number if own else None
    return Standing(ring, state, number, tuple(serving), tuple(refused), tuple(silent), tuple(under_way))

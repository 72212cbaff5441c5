"""How one release goes through the rings: which directives are signed, which are released, and who runs it.

A rollout has operations sign a directive for every ring at once, with the next number of that (ring, model), and
releases only canary's. Each further ring is released by hand. A node never sees a directive that was not released.

Rule 1: a release starts only when it is signed AND approved; the directives add the third duty, the ring's.
Rule 2: numbers grow per (ring, model) and are never used again, so a release that was refused is tried again only by
    starting its rollout again.
Rule 3: the newest rollout of a model supersedes the older ones: what they signed and did not release stays unreleased
    for good. A ring keeps running what was last released to it.
Rule 4: *protected* is never signed here. Its directives are worded here and signed elsewhere (`word`); one that a newer
    number follows is void, whoever has signed it.
Rule 5: whoever stops a release signs the next number in every ring that has a directive of it, released or waiting, so
    that nothing signed before counts. What waits for another rollout in such a ring is signed anew behind it.
Rule 6: a pause is a row beside the directives: nothing further is released while it stands.

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
"""How long a directive may be obeyed by who hasn't yet; what serves goes on."""
RENEW_BEFORE_S = 30 * 86400
"""The hub signs what stands in its own rings again, with the next number, so long before it ends."""
MAX_DESIRED_BYTES = 56 * 1024
"""Largest `desired/<ring>` list: it must fit into one signed reply."""

Action = Literal["install", "hold", "return"]
Stop = Literal["hold", "return"]
STOPPED: dict[str, str] = {"hold": "aborted", "return": "returned"}


@dataclass(frozen=True, slots=True)
class Signed:
    """A directive as stored; `released` says whether nodes may see it."""

    ring: Ring
    model: str
    number: int
    release: bytes
    action: Action
    released: bool


@dataclass(frozen=True, slots=True)
class Worded:
    """A directive to be signed: by the hub at once, in protected by its offline keys; `released` when it is stored."""

    directive: Directive
    released: bool

    @property
    def is_online(self) -> bool:
        """Whether the hub holds the ring's key."""
        return self.directive.ring in ONLINE_RINGS


@dataclass(frozen=True, slots=True)
class Paused:
    """A release whose rollout stands still; `lets_running`: nodes that had begun may end."""

    model: str
    release: bytes
    lets_running: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """One node of a ring and what it last said of the model."""

    site: str
    node: str
    ring: Ring
    silent: bool
    report: ModelReport | None


RingState = Literal["released", "waiting", "paused", "aborted", "returned", "superseded", "offline"]


@dataclass(frozen=True, slots=True)
class Standing:
    """One ring of a rollout. `serving + refused + silent + under_way` is the ring's nodes.

    Attributes:
        state: `released`; `waiting` for promotion, or for signatures in protected; `paused`: released, and standing
            still; `aborted`, `returned`: stopped here; `superseded` by a newer rollout; `offline`: protected, and
            nobody has worded its directive.
        number: of the ring's newest directive of this release.
        serving: nodes that said they serve the release, and not that it failed there.
        refused: nodes that said they will not run it under this number, with their reasons; also if it failed there and
            serves on for want of another.
        silent: nodes unheard past their deadline, whatever they said before, unless they had refused.
        under_way: the rest.
        waiting: of `under_way`, what each said it waits for.
        proven: of `serving`, where it came through its probation. Only this is success.
    """

    ring: Ring
    state: RingState
    number: int | None
    serving: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    silent: tuple[str, ...]
    under_way: tuple[str, ...]
    waiting: tuple[tuple[str, str], ...] = ()
    proven: tuple[str, ...] = ()


# --- commands ---------------------------------------------------------------------------------------------------------


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
    mine = [row for row in rows if row.model == model]
    return tuple(_directive(mine, realm, ring, model, release, "install", now) for ring in ONLINE_RINGS)


def promote(
    rows: Iterable[Signed], *, model: str, version: str, release: bytes, to: str | None, is_paused: bool = False
) -> tuple[Signed, ...]:
    """The directives to release now: the next ring's, or every waiting one up to and including `to`.

    Raises:
        NotFoundError: no rollout of the release was started.
        RefusedError: paused, stopped, superseded, nothing is waiting, or the ring is not the hub's to release.
    """
    name = f"{model}@{version}"
    if to == "protected":
        raise RefusedError(f"{name}: ring protected is released by its offline signatures: {_request(name)}")
    if to is not None and to not in RINGS:
        raise NotFoundError(f"no ring {to!r}: rings are {', '.join(RINGS)}")
    newest = _going_on(rows, model, name, release, is_paused)
    waiting = [newest[ring] for ring in ONLINE_RINGS if ring in newest and not newest[ring].released]
    if not waiting:
        raise RefusedError(
            f"{name} is released to {', '.join(ONLINE_RINGS)}; protected needs its offline signatures: {_request(name)}"
        )
    if to is None:
        return (waiting[0],)
    rings: tuple[str, ...] = ONLINE_RINGS
    chosen = tuple(row for row in waiting if rings.index(row.ring) <= rings.index(to))
    if not chosen:
        raise RefusedError(f"{name} is released to ring {to} already")
    return chosen


def stop(
    rows: Iterable[Signed],
    *,
    realm: str,
    model: str,
    version: str,
    release: bytes,
    action: Stop,
    ring: str | None,
    now: int,
) -> tuple[Worded, ...]:
    """The directives that abort (`hold`) or return a release, in `ring` or wherever there is a directive of it.

    Empty if it is stopped so already: saying it twice changes nothing.

    Raises:
        NotFoundError: no rollout of the release was started, or no such ring.
        RefusedError: it is superseded wherever it was asked to be stopped.
    """
    name = f"{model}@{version}"
    if ring is not None and ring not in RINGS:
        raise NotFoundError(f"no ring {ring!r}: rings are {', '.join(RINGS)}")
    mine = [row for row in rows if row.model == model]
    if not any(row.release == release for row in mine):
        raise NotFoundError(f"{name} has no rollout: heliograph rollout start {name}")
    newest, told = newest_signed(mine), newest_signed(row for row in mine if row.released)
    chosen = [known for known in RINGS if ring in (None, known) and _is_of(release, newest.get(known), told.get(known))]
    if not chosen:
        where = f"ring {ring}" if ring else "every ring"
        raise RefusedError(f"{name} is superseded in {where}: stop the rollout that is the newest there")
    worded: list[Worded] = []
    for known in chosen:
        standing = newest[known] if _is_of(release, newest[known]) else told[known]
        if standing.action == action:
            continue
        first = _directive(mine, realm, known, model, release, action, now)
        worded.append(Worded(first, released=known in ONLINE_RINGS))
        waiting = newest[known]
        if waiting.release != release and not waiting.released and known in ONLINE_RINGS:
            again = first.model_copy(
                update={"release": waiting.release, "action": waiting.action, "number": first.number + 1}
            )
            worded.append(Worded(again, released=False))
    return tuple(worded)


def word(
    rows: Iterable[Signed],
    *,
    realm: str,
    model: str,
    version: str,
    release: bytes,
    action: Action,
    is_paused: bool,
    now: int,
) -> Directive | Signed:
    """Protected's directive to be signed offline: the row that waits for signatures already, else a new one.

    Raises:
        NotFoundError: no rollout of the release was started.
        RefusedError: it is released there already, or may not be: general isn't released, paused, stopped, superseded;
            or there is nothing to stop.
    """
    name = f"{model}@{version}"
    mine = [row for row in rows if row.model == model]
    if action == "install":
        newest = _going_on(mine, model, name, release, is_paused)
        if not newest["general"].released:
            raise RefusedError(f"{name} is not released to ring general yet: heliograph rollout promote {name}")
    elif not any(row.release == release for row in mine):
        raise NotFoundError(f"{name} has no rollout: heliograph rollout start {name}")
    ours = [row for row in mine if row.ring == "protected"]
    last = newest_signed(ours).get("protected")
    if last is not None and (last.release, last.action) == (release, action):
        if last.released:
            raise RefusedError(f"ring protected has directive {last.number}, {action} {name}, already")
        return last
    told = newest_signed(row for row in ours if row.released).get("protected")
    if action != "install" and not _is_of(release, last, told):
        raise RefusedError(f"ring protected has no directive of {name} that could be stopped")
    return _directive(mine, realm, "protected", model, release, action, now)


def check_may_release(rows: Iterable[Signed], row: Signed, *, name: str, is_paused: bool) -> None:
    """Whether a directive that has its offline signatures now may be released.

    Raises:
        RefusedError: a newer number made it void, or its rollout was stopped, paused or superseded meanwhile.
    """
    mine = [other for other in rows if other.model == row.model]
    newest = max((other.number for other in mine if other.ring == row.ring), default=0)
    if newest > row.number:
        raise RefusedError(f"directive {row.number} of ring {row.ring} is void: number {newest} follows it")
    if row.action == "install":
        _going_on(mine, row.model, name, row.release, is_paused)


def pause(rows: Iterable[Signed], *, model: str, version: str, release: bytes) -> None:
    """Whether the rollout can be paused.

    Raises:
        NotFoundError: it was never started.
        RefusedError: it is superseded or stopped.
    """
    _going_on(rows, model, f"{model}@{version}", release, False)


def renewals(rows: Iterable[tuple[Signed, int]], *, realm: str, now: int) -> tuple[Worded, ...]:
    """What the hub signs again because it ends soon: of (row, expires), what its own rings are told or wait for.

    With the next number, since a node takes no other directive of the same number. Whoever serves the release goes on
    untouched; who had refused it tries it once more.
    """
    given = [(row, expires) for row, expires in rows if row.ring in ONLINE_RINGS]
    ends = {(row.ring, row.model, row.number): expires for row, expires in given}
    worded = []
    for model in sorted({row.model for row, _ in given}):
        mine = [row for row, _ in given if row.model == model]
        newest, told = newest_signed(mine), newest_signed(row for row in mine if row.released)
        for ring in newest:
            standing = list(dict.fromkeys(found[ring] for found in (told, newest) if ring in found))
            if all(ends[ring, model, row.number] - now >= RENEW_BEFORE_S for row in standing):
                continue
            for ahead, row in enumerate(standing):  # what waits stays behind what is told
                again = _directive(mine, realm, ring, model, row.release, row.action, now)
                again = again.model_copy(update={"number": again.number + ahead})
                worded.append(Worded(again, row.released))
    return tuple(worded)


# --- what rows say ----------------------------------------------------------------------------------------------------


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


def standings(
    rows: Sequence[Signed], members: Sequence[Member], *, model: str, release: bytes, is_paused: bool = False
) -> tuple[Standing, ...]:
    """Where each ring stands with this release, by what the nodes themselves said.

    Raises:
        NotFoundError: no directive ever named the release.
    """
    mine = [row for row in rows if row.model == model]
    own = newest_signed(row for row in mine if row.release == release)
    if not own:
        raise NotFoundError(f"no rollout of this release of {model} was started")
    newest, told = newest_signed(mine), newest_signed(row for row in mine if row.released)
    return tuple(
        _standing(
            ring,
            _state(release, newest.get(ring), own.get(ring), told.get(ring), is_paused),
            own.get(ring),
            [m for m in members if m.ring == ring],
            release,
        )
        for ring in RINGS
    )


def _state(
    release: bytes, newest: Signed | None, own: Signed | None, told: Signed | None, is_paused: bool
) -> RingState:
    if own is None or newest is None:
        return "offline"
    if newest.release != release:
        return "superseded"
    if newest.action != "install":
        if not newest.released and told is not None and (told.release, told.action) == (release, "install"):
            return "released"  # protected: the stop waits for its signatures
        return "aborted" if newest.action == "hold" else "returned"
    if not newest.released:
        return "waiting"
    return "paused" if is_paused else "released"


def _standing(ring: Ring, state: RingState, own: Signed | None, members: list[Member], release: bytes) -> Standing:
    serving: list[str] = []
    refused: list[tuple[str, str]] = []
    silent: list[str] = []
    under_way: list[str] = []
    waiting: list[tuple[str, str]] = []
    proven: list[str] = []
    for member in members:
        name, report = f"{member.site}/{member.node}", member.report
        active = report is not None and report.tuple is not None and report.tuple.release == release
        numbers = {own.number} if own else set()
        reason = next(
            (r.reason for r in report.refused if r.release == release and r.number in numbers) if report else iter(()),
            None,
        )
        verdict = report.verdict if report is not None and active else None
        if reason is not None and (not active or verdict == "failed"):
            refused.append((name, reason))
        elif member.silent:
            silent.append(name)
        elif active:
            serving.append(name)
            if verdict == "proven":
                proven.append(name)
        else:
            under_way.append(name)
            if report is not None and report.waiting:
                waiting.append((name, report.waiting))
    number = own.number if own else None
    return Standing(
        ring,
        state,
        number,
        tuple(serving),
        tuple(refused),
        tuple(silent),
        tuple(under_way),
        tuple(waiting),
        tuple(proven),
    )


def _going_on(rows: Iterable[Signed], model: str, name: str, release: bytes, is_paused: bool) -> dict[Ring, Signed]:
    """The newest directive of each ring, if the release's rollout is the model's newest and nobody stopped it."""
    newest = newest_signed(row for row in rows if row.model == model)
    online = {ring: row for ring, row in newest.items() if ring in ONLINE_RINGS}
    if not online:
        raise NotFoundError(f"{name} has no rollout: heliograph rollout start {name}")
    if any(row.release != release for row in online.values()):
        raise RefusedError(f"{name} is not the newest rollout of {model}: start it again to go back to it")
    for ring, row in online.items():
        if row.action in STOPPED:
            raise RefusedError(
                f"{name} was {STOPPED[row.action]} in ring {ring}: heliograph rollout start {name} begins anew"
            )
    if is_paused:
        raise RefusedError(f"{name} is paused: heliograph rollout resume {name}")
    return newest


def _directive(
    mine: Iterable[Signed], realm: str, ring: Ring, model: str, release: bytes, action: Action, now: int
) -> Directive:
    highest = max((row.number for row in mine if row.ring == ring), default=0)
    return Directive(
        realm=realm,
        ring=ring,
        model=model,
        release=release,
        number=highest + 1,
        action=action,
        expires=now + DIRECTIVE_LIFE_S,
    )


def _is_of(release: bytes, *rows: Signed | None) -> bool:
    return any(row is not None and row.release == release for row in rows)


def _request(name: str) -> str:
    return f"heliograph rollout request {name} --out FILE"

"""One node's timeline: what it told, joined in order of time with what was done about it at the hub.

Rule 1: what a node tells in two lanes, or twice for one event, is one row.
Rule 2: of two rows of one second, the hub's stands first: what was ordered, then what came of it. A node's own stand in
    the order of their numbers.
Rule 3: a source that was cut hides what is older in the others as well: a timeline ends early and has no holes.

Pure: records, acts and names come in, rows for people go out.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from heliograph.errors import ConfigError
from heliograph_hub.acts import Concern, act
from heliograph_hub.telling import (
    GAP,
    MAX_LISTED,
    ROLLED_BACK,
    Rollback,
    Told,
    digest,
    name_of,
    rollback,
    rollback_words,
    sentence,
    when,
    who,
    words,
)

TWIN_S: Final = 2
"""Seconds within which one run tells the same of one event in two records."""
LOOKED_AT: Final = 200
"""Records before a way back among which its verdict and who began it are looked for."""
REPEATED: Final = 2
"""Returns to one release from which on they are worth a sentence."""
_AGO: Final = re.compile(r"([0-9]{1,6})([mhdw])")
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SECONDS: Final = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True, slots=True)
class Act:
    """One row of the hub's log; `who` as there, `keys` are ids of those that signed."""

    at: int
    who: str
    what: str
    keys: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a timeline.

    Attributes:
        at: seconds since 1970; a node's own are by its estimate.
        who: `node`, `site`, `hub`, `owner` or an operator's role.
        keys: key ids, with which it was done.
        kind: of the record; `act` of what was done at the hub.
        says: one sentence.
        heard_at: when the hub had it.
        rollback: of a way back, what it was.
    """

    at: int
    who: str
    keys: tuple[bytes, ...]
    kind: str
    model: str
    says: str
    heard_at: int
    rollback: Rollback | None = None

    def plain(self, names: Mapping[bytes, str]) -> dict[str, Any]:
        """As JSON knows it."""
        found: dict[str, Any] = {
            "at": self.at,
            "who": self.who,
            "keys": [key.hex() for key in self.keys],
            "kind": self.kind,
            "model": self.model,
            "says": self.says,
            "heard_at": self.heard_at,
        }
        if self.rollback is not None:
            went = asdict(self.rollback)
            for end in ("left", "resumed"):
                release = went.pop(end)
                went |= {end: names.get(release), f"{end}_digest": release.hex()}
            found["rollback"] = went
        return found


@dataclass(frozen=True, slots=True)
class Return:
    """A release that a model came back to `times` times since `since`, and from which others how often."""

    model: str
    release: bytes
    times: int
    since: int
    last: int
    left: tuple[tuple[bytes, int], ...]

    def says(self, names: Mapping[bytes, str]) -> str:
        """In one sentence."""
        left = [
            (name_of(one, names, self.model).partition("@")[2] or name_of(one, names, self.model))
            + (f" ({times} times)" if times > 1 else "")
            for one, times in self.left[:MAX_LISTED]
        ]
        left += [f"{len(self.left) - MAX_LISTED} more"] if len(self.left) > MAX_LISTED else []
        name = name_of(self.release, names, self.model)
        return f"returned to {name} {self.times} times since {when(self.since)} UTC: from {', '.join(left)}"

    def plain(self, names: Mapping[bytes, str]) -> dict[str, Any]:
        """As JSON knows it."""
        return {
            "model": self.model,
            "release": names.get(self.release),
            "digest": self.release.hex(),
            "times": self.times,
            "since": self.since,
            "last": self.last,
            "from": [{"release": names.get(one), "digest": one.hex(), "times": times} for one, times in self.left],
            "says": self.says(names),
        }


def joined(told: Iterable[Told], done: Iterable[Act], concern: Concern, names: Mapping[bytes, str]) -> list[Row]:
    """Every row, oldest first.

    Args:
        told: the node's records.
        done: rows of the hub's log, the oldest first.
        concern: what of them is about this node.
        names: of releases, by digest.
    """
    records = once(told)
    rows = [_of_record(one, records[max(0, at - LOOKED_AT) : at], names) for at, one in enumerate(records)]
    acts = [
        Row(one.at, one.who, one.keys, "act", "", said, one.at)
        for one in done
        if (said := act(one.what, concern)) is not None
    ]
    return sorted([*acts, *rows], key=lambda row: row.at)  # stable: acts stand first


def newest(rows: Sequence[Row], limit: int, since: int, whole_from: int) -> tuple[list[Row], bool]:
    """The newest rows of a time, and whether there are older ones in it that are left out.

    Args:
        rows: oldest first.
        limit: at most so many.
        since: none older.
        whole_from: from here on no source lacks anything.
    """
    found = [row for row in rows if row.at >= max(since, whole_from)]
    return found[len(found) - min(limit, len(found)) :], len(found) > limit or whole_from > since


def returns(told: Iterable[Told]) -> list[Return]:
    """Releases that a model came back to at least `REPEATED` times, the most often first."""
    found: dict[tuple[str, bytes], list[Told]] = {}
    for one in once(told):
        resumed = digest(one.body.get("release"))
        if one.kind == ROLLED_BACK and resumed:
            found.setdefault((words(one.body.get("model")), resumed), []).append(one)
    listed = [
        Return(
            model,
            release,
            len(ways),
            ways[0].at,
            ways[-1].at,
            tuple(Counter(digest(one.body.get("from")) for one in ways).items()),
        )
        for (model, release), ways in found.items()
        if len(ways) >= REPEATED
    ]
    return sorted(listed, key=lambda one: (-one.times, one.model, one.release))


def once(told: Iterable[Told]) -> list[Told]:
    """Records in order, each event once: what stands in `incident` as well is told as the incident."""
    records = sorted(told, key=_order)
    twins: dict[int, list[Told]] = {}
    for one in records:
        if one.lane == "incident":
            twins.setdefault(one.at, []).append(one)
    found: list[Told] = []
    for one in records:
        if one.lane != "incident":
            near = (other for at in range(one.at - TWIN_S, one.at + TWIN_S + 1) for other in twins.get(at, ()))
            twin = next((other for other in near if _is_twin(one, other)), None)
            if twin is not None:
                twins[twin.at].remove(twin)
            found.append(one if twin is None else replace(one, kind=twin.kind))
    return sorted([*found, *(one for at in twins.values() for one in at)], key=_order)


def lines(answer: Mapping[str, Any]) -> list[str]:
    """A timeline as the API answers it, for people: a row a line, then what is worth knowing of the whole."""
    name = f"{answer['site']}/{answer['node']}"
    found = ["older rows are left out: --limit shows more of them, --until older ones"] if answer["is_cut"] else []
    for row in answer["rows"]:
        keys = [key[:16] for key in row["keys"][:MAX_LISTED]]
        signed = f" with key{'s' if len(keys) > 1 else ''} {', '.join(keys)}" if keys else ""
        found.append(f"{when(row['at'])}  {row['who']}{signed}: {row['says']}")
    if not answer["told"]:
        found.append(f"{name} has told nothing yet")
    elif not answer["rows"]:
        found.append(f"nothing of {name} in that time")
    return [*found, *(one["says"] for one in answer["returned"])]


def moment(text: str, now: int) -> int:
    """A time as people write it: how long ago (`90m`, `12h`, `3d`, `2w`), or a day or time of UTC.

    Raises:
        ConfigError: it is neither, or is yet to come.
    """
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return max(0, now - int(ago[1]) * _SECONDS[ago[2]])
    try:
        if _DAY.match(text) is None or len(text) > 32:
            raise ValueError("it begins with no day")
        said = datetime.fromisoformat(text)
        at = int((said if said.tzinfo is not None else said.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"{text[:40]!r} is no time: write 90m, 12h, 3d or 2w for how long ago, or a time of UTC as 2026-11-22 "
            "or 2026-11-22T16:00"
        ) from error
    if not 0 <= at <= now:
        raise ConfigError(f"{text[:40]!r} is {'yet to come' if at > now else 'before 1970'}: nothing is told of it")
    return at


def _of_record(told: Told, earlier: list[Told], names: Mapping[bytes, str]) -> Row:
    model = words(told.body.get("model"))
    if told.kind != ROLLED_BACK:
        return Row(told.at, who(told), (), told.kind, model, sentence(told, names), told.heard_at)
    went = rollback(told, earlier)
    return Row(told.at, "node", (), told.kind, model, rollback_words(went, names), told.heard_at, went)


def _is_twin(one: Told, other: Told) -> bool:
    return one.run == other.run and GAP not in (one.kind, other.kind) and one.body == other.body


def _order(told: Told) -> tuple[int, bytes, int]:
    # In the incident lane the newest is sent, and numbered, first.
    return told.at, told.run, -told.seq if told.lane == "incident" else told.seq

"""When a node may fetch and activate, by which ways, and how much: windows, cadence, budgets, pacing.

Each decision is a function of a policy, of what was counted and of the time; a node and the hub ask the same ones. All
times are seconds since 1970 as the caller estimates them; days, months and windows are those of the site's time zone.

Rules:
1. Where something may not be done now, the answer says why, in words, and when to look again: a `Wait`. The answer at
    that time may be another one, so nothing is remembered.
2. Denials and documents never wait for a window or a budget; only content (pages, leaves, recipes) does.
3. A budget pauses; it refuses nothing. What is larger than a whole day's budget is spread over days.
4. Going back is never held up: windows and cadence count for what is new only.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim

from heliograph.documents import Spent, Way
from heliograph.policy import Budget, Guarded, ModelRules, Pacing, Policy, Window

HOUR_S = 3600
FOREVER = 1 << 40
"""Later than any time that a document can name."""
LOOK_AGAIN_S = 900
"""Where it isn't known when something will have changed."""


class Wait(NamedTuple):
    """Not now: why, and when to look again."""

    reason: str
    until: int


class Zone(NamedTuple):
    """A site's time zone, and what is wrong with the label that should name it; empty if nothing is."""

    tz: ZoneInfo
    said: str = ""


def zone(label: str | None) -> Zone:
    """The time zone that an assignment's label `time-zone` names; UTC if there is none or it is unknown."""
    if not label:
        return Zone(ZoneInfo("UTC"))
    try:
        return Zone(ZoneInfo(label))
    except (ValueError, OSError, KeyError):  # KeyError: ZoneInfoNotFoundError is one
        return Zone(ZoneInfo("UTC"), f"time zone {label[:60]!r} is unknown here: UTC counts")


# --- windows ----------------------------------------------------------------------------------------------------------


def open_until(windows: Sequence[Window], guarded: Guarded, tz: ZoneInfo, now: int) -> int | None:
    """Until when a window is open at least; None: none is. Where none guards it, it always is."""
    guards = [window for window in windows if guarded in window.guards]
    if not guards:
        return FOREVER
    ends = [end for window in guards if (end := _opened(window, tz, now) + window.for_s) > now]
    return max(ends, default=None)


def next_open(windows: Sequence[Window], guarded: Guarded, tz: ZoneInfo, now: int) -> int | None:
    """When the next window opens, or now if one is open; None: none ever does."""
    if open_until(windows, guarded, tz, now) is not None:
        return now
    found = (next_opening(window, tz, now) for window in windows if guarded in window.guards)
    return min((at for at in found if at is not None), default=None)


def why_closed(windows: Sequence[Window], guarded: Guarded, tz: ZoneInfo, now: int) -> Wait | None:
    """Which window is waited for; None if one is open."""
    if open_until(windows, guarded, tz, now) is not None:
        return None
    opens = next_open(windows, guarded, tz, now)
    what = "fetching" if guarded == "fetch" else "activating"
    if opens is None:
        return Wait(f"no window for {what} ever opens", now + LOOK_AGAIN_S)
    return Wait(f"the window for {what} that opens at {_local(opens, tz)}", opens)


def _opened(window: Window, tz: ZoneInfo, now: int) -> int:
    """When it last opened, that included which opens now; 0: never."""
    after = datetime.fromtimestamp(now + 1, tz)
    return next((int(at.timestamp()) for at in CronSim(window.opens, after, reverse=True)), 0)


def next_opening(window: Window, tz: ZoneInfo, now: int) -> int | None:
    """When the window opens after `now`; None: never."""
    return next((int(at.timestamp()) for at in CronSim(window.opens, datetime.fromtimestamp(now, tz))), None)


def _local(at: int, tz: ZoneInfo) -> str:
    return datetime.fromtimestamp(at, tz).strftime("%Y-%m-%d %H:%M ") + tz.key


# --- activating -------------------------------------------------------------------------------------------------------


def why_not_yet_activate(
    policy: Policy, model: str, version: str, *, activated_at: int | None, tz: ZoneInfo, now: int
) -> Wait | None:
    """What a release that is new here waits for before it is activated; None: nothing in this policy.

    `activated_at` is when the active release of the model was; None if there is none, or it never got to serve.
    """
    closed = why_closed(policy.windows, "activate", tz, now)
    if closed is not None:
        return closed
    rules = policy.models.get(model, ModelRules())
    cadence_s = policy.cadence_s if rules.cadence_s is None else rules.cadence_s
    if activated_at is None or version in rules.security or now >= activated_at + cadence_s:
        return None
    due = activated_at + cadence_s
    return Wait(f"the cadence: {cadence_s} s between activations, next at {_local(due, tz)}", due)


# --- budgets ----------------------------------------------------------------------------------------------------------


class Periods(NamedTuple):
    """The day and the month of a time zone that a time lies in, as keys, and when they end."""

    day: str
    month: str
    day_ends: int
    month_ends: int


def periods(tz: ZoneInfo, now: int) -> Periods:
    """The periods that bytes fetched now count for."""
    today = datetime.fromtimestamp(now, tz).date()
    first = date(today.year + today.month // 12, today.month % 12 + 1, 1)
    return Periods(
        f"{today:%Y-%m-%d}", f"{today:%Y-%m}", _midnight(today + timedelta(days=1), tz), _midnight(first, tz)
    )


def _midnight(day: date, tz: ZoneInfo) -> int:
    """When the day begins: where midnight is skipped, with what follows."""
    at = datetime.combine(day, time(), tz)
    return int(at.astimezone(UTC).timestamp())


def budget_left(budget: Budget, spent: Spent) -> int | None:
    """Bytes that may be fetched now; None: as many as wanted."""
    left = []
    if budget.day_bytes is not None:
        left.append(budget.day_bytes - spent.day)
    if budget.month_bytes is not None:
        left.append(budget.month_bytes - spent.month)
    return max(min(left), 0) if left else None


def why_spent(budget: Budget, spent: Spent, tz: ZoneInfo, now: int) -> Wait | None:
    """Which budget is used up, and when it begins anew; None: there is some left."""
    ends = periods(tz, now)
    if budget.month_bytes is not None and spent.month >= budget.month_bytes:
        return Wait(
            f"the next month: {spent.month} of {budget.month_bytes} bytes of this one's budget are spent",
            ends.month_ends,
        )
    if budget.day_bytes is not None and spent.day >= budget.day_bytes:
        return Wait(
            f"the next day: {spent.day} of {budget.day_bytes} bytes of this one's budget are spent", ends.day_ends
        )
    return None


# --- ways -------------------------------------------------------------------------------------------------------------


def cheapest(ways: Iterable[Way], is_usable: Callable[[Way], bool] = lambda way: True) -> dict[bytes, Way]:
    """For each blob the usable way with the fewest bytes; of equals the one offered first."""
    found: dict[bytes, Way] = {}
    for way in ways:
        best = found.get(way.blob)
        if is_usable(way) and (best is None or way.bytes < best.bytes):
            found[way.blob] = way
    return found


def only_full(ways: Iterable[Way], is_usable: Callable[[Way], bool] = lambda way: True) -> bool:
    """Whether only a full image will do: of the blobs to fetch, the dearest has no way but the full one.

    Small files beside the image often have no delta worth its name: they don't count.
    """
    usable = [way for way in ways if is_usable(way)]
    image = full_image(usable)
    return image is not None and all(way.kind == "full" for way in usable if way.blob == image.blob)


def full_image(ways: Iterable[Way]) -> Way | None:
    """The full way to the dearest of the blobs, which is the image; None without any full way."""
    return max((way for way in ways if way.kind == "full"), key=lambda way: way.bytes, default=None)


def judge_full(budget: Budget, *, is_only_full: bool, has_base: bool) -> str:
    """What is to be done about ways: `take`, `wait` (ask again later) or `fail` (decline the release).

    With nothing of the model on the node (`has_base`) there never can be a delta: then the full image is taken.
    """
    if not is_only_full or not has_base or budget.full == "full":
        return "take"
    return budget.full


# --- at the hub -------------------------------------------------------------------------------------------------------


def why_paced(
    limits: Pacing, *, fetching: int, begun: Sequence[int], bytes_last_hour: int, has_begun: bool, now: int
) -> Wait | None:
    """Why a node of the ring isn't offered ways yet.

    Args:
        fetching: nodes of the ring that fetch this release now, the asker not counted.
        begun: when each node that began in the last hour did.
        bytes_last_hour: content sent to the ring in the last hour.
        has_begun: the asker is one of those that began, and goes on.
    """
    if limits.bytes_per_hour is not None and bytes_last_hour >= limits.bytes_per_hour:
        return Wait(f"{bytes_last_hour} of {limits.bytes_per_hour} bytes an hour were sent", now + LOOK_AGAIN_S)
    if limits.nodes_at_once is not None and fetching >= limits.nodes_at_once:
        return Wait(f"{fetching} of {limits.nodes_at_once} nodes at once are fetching", now + 60)
    recent = sorted(at for at in begun if at > now - HOUR_S)
    if not has_begun and limits.nodes_per_hour is not None and len(recent) >= limits.nodes_per_hour:
        due = recent[len(recent) - limits.nodes_per_hour] + HOUR_S
        return Wait(f"{len(recent)} of {limits.nodes_per_hour} nodes an hour have begun", due)
    return None


def site_spent(nodes: Iterable[tuple[Spent, int]], tz: ZoneInfo, now: int) -> Spent:
    """What a site's nodes fetched in the day and month that `now` lies in: (what each reported, when)."""
    here = periods(tz, now)
    day = month = 0
    for spent, reported_at in nodes:
        then = periods(tz, reported_at)
        day += spent.day if then.day == here.day else 0
        month += spent.month if then.month == here.month else 0
    return Spent(day=day, month=month)

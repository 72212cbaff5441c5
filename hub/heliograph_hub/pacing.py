"""How fast a release goes out: whether a node may begin to fetch now, and when it is to ask again if it may not.

Rule 1: what nodes were let in for counts as sent until it is, so that those let in together don't overdraw together.
    A node is let in while anything is left: what is larger than an allowance is spread over several.
Rule 2: a node stops counting as fetching when it says that it has the release or refused it, or when nothing was sent
    to it for `IDLE_S`: one that is away must not keep others waiting. Coming back it goes on with what it has.
Rule 3: `later` is never less than `MIN_LATER_S`, is spread by chance, and grows with the number of nodes that wait, so
    that all of them together ask no more than `ASKS_PER_S`; up to `MAX_LATER_S`, beyond which no node waits anyway.

Pure: what is known comes in as `Facts`, chance as a number from 0 to 1.
"""

from dataclasses import dataclass
from zoneinfo import ZoneInfo

from heliograph.documents import Spent, Way
from heliograph.economy import Wait, cheapest, why_paced, why_spent
from heliograph.policy import Policy

HOUR_S = 3600
IDLE_S = 180
"""A node to which nothing was sent for so long is not fetching now."""
MIN_LATER_S = 30
MAX_LATER_S = 900
"""As long as a node waits at most: its check-in."""
ASKS_PER_S = 20
"""What all nodes that wait may ask together, as long as that doesn't take them longer than `MAX_LATER_S` each."""
RECIPE_LATER_S = 2
"""First wait for a recipe that is being made; then half as long as it has been waited for."""
ASKS_PER_HOUR = HOUR_S // MIN_LATER_S
"""Most that one node asks in an hour because it was told `later` for other reasons than a recipe."""
ASKS_PER_RECIPE = 12
"""Most that one node asks while it waits for a recipe; once more after each start of the hub."""

NOTHING = Spent()


@dataclass(frozen=True, slots=True)
class Facts:
    """What bears on one node's ask. `others` are the other nodes of its ring, `neighbours` those of its site.

    Attributes:
        has_begun: it was let in by this directive before.
        fetching: others that fetch this model now.
        begun: when others began with this release, within the last hour.
        ring_bytes: what was sent to the ring within the last hour, and what others are still to be sent.
        site: what was sent to the site in its day and its month.
        promised: what neighbours are still to be sent.
    """

    has_begun: bool = False
    fetching: int = 0
    begun: tuple[int, ...] = ()
    ring_bytes: int = 0
    site: Spent = NOTHING
    promised: int = 0


def why_wait(policy: Policy, facts: Facts, tz: ZoneInfo, now: int) -> Wait | None:
    """What keeps a node from fetching now; None if nothing does."""
    promised = Spent(day=facts.site.day + facts.promised, month=facts.site.month + facts.promised)
    return why_spent(policy.budget, promised, tz, now) or why_paced(
        policy.pacing,
        fetching=facts.fetching,
        begun=facts.begun,
        bytes_last_hour=facts.ring_bytes,
        has_begun=facts.has_begun,
        now=now,
    )


def cost(ways: tuple[Way, ...]) -> int:
    """Bytes of content that will cross the link: each blob by its cheapest way."""
    return sum(way.bytes for way in cheapest(ways).values())


def later_s(waiting: int, due_s: float, chance: float) -> int:
    """In how many seconds a node is to ask again.

    Args:
        waiting: nodes that were told `later` and have not been let in.
        due_s: in how many seconds the answer may be another; 0: nobody knows.
        chance: from 0 to 1, drawn anew for each answer.
    """
    return _spread(max(MIN_LATER_S, waiting / ASKS_PER_S, due_s), chance)


def recipe_later_s(waiting: int, waited_s: float, chance: float) -> int:
    """As `later_s`, for a recipe that has been waited for so long."""
    return _spread(max(RECIPE_LATER_S, waited_s / 2, waiting / ASKS_PER_S), chance)


def _spread(about_s: float, chance: float) -> int:
    """Up to half as long again; the longest wait is spread below its bound."""
    return int(min(about_s, MAX_LATER_S / 1.5) * (1 + chance / 2))

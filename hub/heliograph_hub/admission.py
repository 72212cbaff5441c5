"""[IO] Who may fetch now: policy, pauses, pacing and the site's budget, put to one ask or one want.

Rule 1: whoever is let in is written down before the offer goes out (`ledger`); two asks never get the same last place.
Rule 2: content of a release goes only to rings that are to install it now: what is held, returned, superseded or paused
    is sent no more, whatever is asked for. What belongs to no release (denials) always is.
Rule 3: who waits is only remembered to spread the asks. A hub that starts anew spreads them less at first.

May be used by several threads.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from zoneinfo import ZoneInfo

from heliograph.documents import Spent
from heliograph.economy import Wait, site_spent, why_spent
from heliograph.names import Digest, Ring
from heliograph.policy import Budget, Policy
from heliograph.rules import why_below_floor
from heliograph_hub.fleet import Node
from heliograph_hub.ledger import Ledger
from heliograph_hub.pacing import MAX_LATER_S, Facts, later_s, recipe_later_s, why_wait
from heliograph_hub.registry import Release
from heliograph_hub.rollout import Signed

Told = Mapping[Ring, Mapping[str, Signed]]
"""What each ring is told of each model."""
SPENT_FOR_S = 1.0
"""What a site has spent is read for wants at most so often; what is sent meanwhile is added."""


class Admission:
    """What stands between an ask and its ways.

    Args:
        policy_of: the policy in force for a ring.
        zone_of: the time zone of a site.
        chance: a number from 0 to 1, drawn anew.
        said_by: what the nodes of a site say that they fetched, and when they said it. A hub that was restored from an
            older copy has sent more than its books know.
    """

    def __init__(
        self,
        ledger: Ledger,
        policy_of: Callable[[Ring], Policy],
        zone_of: Callable[[str], ZoneInfo],
        chance: Callable[[], float],
        said_by: Callable[[str], Sequence[tuple[Spent, int]]] = lambda site: (),
    ) -> None:
        self._ledger = ledger
        self._said_by = said_by
        self._policy_of, self._zone_of, self._chance = policy_of, zone_of, chance
        self._lock = threading.Lock()
        self._waiting: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self._spent: dict[str, tuple[float, int, Spent]] = {}

    # --- asks -------------------------------------------------------------------------------------------------------

    def why_never(self, node: Node, release: Release) -> str | None:
        """Why the node's ring may not have the release at all."""
        return why_below_floor(self._policy_of(node.ring), release.model, release.version)

    def why_paused(self, node: Node, release: Release, number: int) -> str | None:
        """Why nothing goes on: its rollout is paused, and doesn't let this node end."""
        paused = self._ledger.pauses().get(release.digest)
        if paused is None:
            return None
        if paused.lets_running and self._ledger.has_begun(node.site, node.node, release.digest, number):
            return None
        return f"the rollout of {release.name} is paused"

    def admit(self, node: Node, release: Release, number: int, cost: int, now: int) -> Wait | None:
        """What keeps the node from fetching now; None: it was written down that it has begun."""
        policy, zone = self._policy_of(node.ring), self._zone_of(node.site)
        why: list[Wait | None] = []

        def is_let_in(facts: Facts) -> bool:
            spent = self._spent_by(node.site, facts.site, policy.budget, zone, now)
            why.append(why_wait(policy, replace(facts, site=spent), zone, now))
            return why[0] is None

        self._ledger.admit(
            node.site, node.node, node.ring, release.model, release.digest, number, cost, zone, now, is_let_in
        )
        return why[0]

    def later(self, node: Node, model: str, due_s: float, now_s: float) -> int:
        """How long the node is to wait; it counts as waiting from now on."""
        return later_s(self._waits(node, model, now_s), due_s, self._chance())

    def recipe_later(self, node: Node, model: str, waited_s: float, now_s: float) -> int:
        """As `later`, for a recipe."""
        return recipe_later_s(self._waits(node, model, now_s), waited_s, self._chance())

    def answered(self, node: Node, model: str) -> None:
        """The node waits no more."""
        with self._lock:
            self._waiting.pop((node.site, node.node, model), None)

    def _waits(self, node: Node, model: str, now_s: float) -> int:
        """How many wait, this one among them."""
        with self._lock:
            key = (node.site, node.node, model)
            self._waiting[key] = now_s
            self._waiting.move_to_end(key)
            while next(iter(self._waiting.values())) < now_s - 2 * MAX_LATER_S:
                self._waiting.popitem(last=False)
            return len(self._waiting)

    # --- wants ------------------------------------------------------------------------------------------------------

    def purpose(self, node: Node, owners: Iterable[Digest], told: Told) -> Digest | None:
        """Which release a want is for: of those that the blob belongs to, the one that the ring is to install."""
        wanted = {row.release for row in told.get(node.ring, {}).values() if row.action == "install"}
        mine = list(owners)
        return next((owner for owner in mine if owner in wanted), mine[0] if mine else None)

    def is_open(self, ring: Ring, release: bytes, told: Told) -> bool:
        """Whether content of the release may go to the ring now."""
        if not any(row.release == release and row.action == "install" for row in told.get(ring, {}).values()):
            return False
        paused = self._ledger.pauses().get(release)
        return paused is None or paused.lets_running

    def is_spent(self, node: Node, now: int, now_s: float) -> bool:
        """Whether the site's budget holds nothing more today, or this month. What is queued by then still goes out."""
        budget = self._policy_of(node.ring).budget
        if budget.day_bytes is None and budget.month_bytes is None:
            return False
        zone, noted = self._zone_of(node.site), self._ledger.noted[node.site]
        known = self._spent.get(node.site)
        if known is None or now_s - known[0] >= SPENT_FOR_S:
            booked = self._ledger.spent(node.site, zone, now)
            known = (now_s, noted, self._spent_by(node.site, booked, budget, zone, now))
            self._spent[node.site] = known
        _, before, spent = known
        spent = Spent(day=spent.day + noted - before, month=spent.month + noted - before)
        return why_spent(budget, spent, zone, now) is not None

    def _spent_by(self, site: str, booked: Spent, budget: Budget, zone: ZoneInfo, now: int) -> Spent:
        """What counts of the site's budget: what was sent, or what its nodes say that came, whichever is more."""
        if budget.day_bytes is None and budget.month_bytes is None:
            return booked
        said = site_spent(self._said_by(site), zone, now)
        return Spent(day=max(booked.day, said.day), month=max(booked.month, said.month))

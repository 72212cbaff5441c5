"""[IO] One node's timeline, and the releases that it came back to more than once."""

from starlette.requests import Request

from heliograph_hub import timeline
from heliograph_hub.acts import Concern
from heliograph_hub.api.messages import Answer, Routes, number
from heliograph_hub.api.part import Part
from heliograph_hub.fleet import MAX_AT, Node
from heliograph_hub.telling import Told, words
from heliograph_hub.timeline import Act

MAX_ROWS = 500
MAX_ACTS = 5000
"""Newest acts of a time that are looked at; most concern other nodes."""
CONTEXT_S = 3600
"""A way back is told with what led to it, even if that is older than what is asked for by as much."""


class Timeline(Part):
    """What is asked about what happened to one node."""

    def routes(self) -> Routes:
        """Where it is asked."""

        def names(request: Request) -> tuple[str, str]:
            return request.path_params["site"], request.path_params["node"]

        return [("GET", "/v1/fleet/{site}/{node}/timeline", lambda r, b: self.show(*names(r), r))]

    async def show(self, site: str, name: str, request: Request) -> Answer:
        """The newest rows of a time, oldest first; `is_cut` if there are older ones in it."""
        fleet, duties = self._service.fleet, self._service.duties
        node = fleet.node(site, name, removed_too=True)
        limit = max(1, number(request, "limit", 100, MAX_ROWS))
        since, until = number(request, "since", 0, MAX_AT), number(request, "until", MAX_AT, MAX_AT)
        names = self.names()
        most = 2 * limit + timeline.LOOKED_AT  # one event may be told in two lanes
        told = fleet.told(site, name, most, since=max(0, since - CONTEXT_S), until=until)
        duties.flush()
        done = duties.between(since, until, MAX_ACTS)
        whole_from = max(told[-1].at if len(told) == most else 0, done[-1].at if len(done) == MAX_ACTS else 0)
        acts = [Act(one.at, one.who, one.what, one.keyids) for one in reversed(done)]
        rows = timeline.joined(told, acts, self._concern(node, told, names), names)
        shown, is_cut = timeline.newest(rows, limit, since, whole_from)
        counted = fleet.lanes(site, name)
        return {
            "site": site,
            "node": name,
            "ring": node.ring,
            "rows": [row.plain(names) for row in shown],
            "is_cut": is_cut,
            "told": sum(counted.get(lane, {}).get("kept", 0) for lane in ("incident", "audit")),
            "returned": self.returned(site, name, names),
        }

    def _concern(self, node: Node, told: list[Told], names: dict[bytes, str]) -> Concern:
        pins = self._service.assignments.pins().get((node.site, node.node), {})
        models = {*pins, *(node.reported.models if node.reported else ()), *(words(t.body.get("model")) for t in told)}
        prefixes = {digest.hex()[:16]: name for digest, name in names.items()}
        return Concern(node.site, node.node, node.ring, frozenset(models - {""}), prefixes)

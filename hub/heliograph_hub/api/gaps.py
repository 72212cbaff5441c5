"""[IO] Where nodes differ from what their ring is told, who is further behind than policy allows, who is silent."""

from dataclasses import asdict

from heliograph.names import RINGS, Ring
from heliograph_hub import gaps
from heliograph_hub.api.messages import Answer, Routes, now
from heliograph_hub.api.part import Part
from heliograph_hub.gaps import Due, Facts, Told
from heliograph_hub.rollout import in_force
from heliograph_hub.simulation import Seen, missing


class Gaps(Part):
    """What is asked about the whole fleet's standing."""

    def routes(self) -> Routes:
        """Where it is asked."""
        return [
            ("GET", "/v1/fleet/drift", lambda r, b: self.show_drift()),
            ("GET", "/v1/fleet/stale", lambda r, b: self.show_stale()),
        ]

    async def show_drift(self) -> Answer:
        """Every gap, with those first that policy doesn't allow."""
        due, at = self._due(), now()
        nodes = self._facts()
        found = [gap for node in nodes for gap in gaps.drift(node, due[node.ring], at)]
        found.sort(key=lambda gap: (not gap.against, gap.silent, gap.site, gap.node))
        with_gaps = {(gap.site, gap.node) for gap in found}
        return {
            "nodes": len(nodes),
            "level": len([n for n in nodes if n.said is not None and (n.site, n.node) not in with_gaps]),
            "never_reported": [f"{n.site}/{n.node}" for n in nodes if n.said is None],
            "gaps": [asdict(gap) | {"within_policy": not gap.against} for gap in found],
        }

    async def show_stale(self) -> Answer:
        """Who is further behind than policy allows, which immediate items are not in force, and who is silent."""
        due, at = self._due(), now()
        nodes = self._facts()
        behind = [one for node in nodes if (one := gaps.stale(node, due[node.ring], at)) is not None]
        seen = [Seen(f"{n.site}/{n.node}", n.ring, n.said, n.is_silent) for n in nodes]
        late = [
            asdict(row) | {"ring": ring, "policy": due[ring].policy.number}
            for ring in RINGS
            for row in missing(due[ring].policy, seen, at)
        ]
        return {
            "nodes": len(nodes),
            "behind": [
                asdict(one)
                | {
                    "says": [{"about": about, "sentence": sentence} for about, sentence in one.says],
                    "own": [{"about": about, "sentence": sentence} for about, sentence in one.own],
                }
                for one in behind
            ],
            "immediate": late,
            "silent": [
                {"site": n.site, "node": n.node, "ring": n.ring, "last_heard": n.last_heard} for n in gaps.silent(nodes)
            ],
        }

    def _facts(self) -> list[Facts]:
        service = self._service
        versions = {bytes(release.digest): release.version for release in service.registry.all()}
        pins = service.assignments.pins()
        at = now()
        return [
            Facts(
                n.site,
                n.node,
                n.ring,
                not n.is_up(at),
                n.last_heard,
                n.assignment,
                pins.get((n.site, n.node), {}),
                n.reported,
                versions,
            )
            for n in service.fleet.nodes()
        ]

    def _due(self) -> dict[Ring, Due]:
        service = self._service
        rows = service.desired.rows()
        at = service.desired.released_at()
        told = in_force(rows)
        configs = {model: stored.number for model, stored in service.control.newest("config").items()}
        releases = {bytes(release.digest): release for release in service.registry.all()}
        denied = {d for d, release in releases.items() if service.denials.denial(release.model, d)}
        found: dict[Ring, Due] = {}
        for ring in RINGS:
            known: dict[str, set[str]] = {}
            for row in rows:
                is_known = row.release in releases and row.release not in denied
                if is_known and (row.ring, row.released, row.action) == (ring, True, "install"):
                    known.setdefault(row.model, set()).add(releases[row.release].version)
            directives = {
                model: Told(row.release, row.action, row.number, at[row.ring, row.model, row.number])
                for model, row in told.get(ring, {}).items()
            }
            sorted_known = {model: tuple(sorted(versions)) for model, versions in known.items()}
            found[ring] = Due(service.control.policy_of(ring), directives, configs, sorted_known)
        return found

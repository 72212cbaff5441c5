"""How a world ends: when everything has come to rest where it belongs, and whether the sums agree then.

Its invariants are named in `simulator.oracle`; nothing here is remembered while the world lives.
"""

from typing import TYPE_CHECKING

from heliograph.documents import LANES
from heliograph.names import Digest
from heliograph_site.memory import Memory, Pointer
from simulator import catalogue
from simulator.oracle import require

if TYPE_CHECKING:
    from simulator.machines import Machines
    from simulator.world import World


def unsettled(world: "World") -> str:
    """Why the world can't end yet; empty: it can."""
    hub = world.hub
    if world.papers_to_come:
        return "more documents are to come"
    for node in world.nodes.values():
        if not node.is_alive or node.belief.ring != hub.rings[node.name]:
            return f"{node.name} isn't where it belongs"
        if node.belief.denials.digest != hub.denials.digest:
            return f"{node.name} lacks denials"
        if node.belief.trusted.versions.get("timestamp") != hub.version:
            return f"{node.name} lacks metadata"
        for model in catalogue.MODELS:
            why = _unsettled(world, node, model)
            if why:
                return f"{node.name}: {model} {why}"
        if node.outbox is not None and any(node.outbox.batch(lane, 1) is not None for lane in LANES):
            return f"{node.name} keeps records"
    return ""


def settled(world: "World") -> None:
    """The world has ended: sums are made."""
    hub = world.hub
    require("handle", hub.wrong_handles == 0, f"{hub.wrong_handles} chunks went under an old handle")
    for name, node in world.nodes.items():
        spent, allowed = hub.content.get(name, 0), world.oracle.allowed_bytes[name]
        is_wasted = world.hostile is not None  # who carries the bytes can have them sent again for ever
        require("bytes", is_wasted or spent <= 4 * allowed + 200_000, f"{name} was sent {spent} bytes for {allowed}")
        if node.outbox is not None:
            _count_records(world, node)


def _unsettled(world: "World", node: "Machines", model: str) -> str:
    row = world.hub.in_force(node.name, model)
    memory = node.memories.get(model)
    if memory is None:
        if row is None or row.action != "install" or not _is_listed(world, row.release):
            return ""
        return "" if _is_denied(world, node, model, row.release) else "never began"
    ring = world.hub.rings[node.name]
    best = None if row is None else world.hub.papers.best(model, row.release, ring)
    waits = (
        best is None and row is not None and memory.target is not None and memory.phase in ("checking", "activating")
    )
    if memory.phase not in ("idle", "stuck") and not (waits and memory.target.release == row.release):  # type: ignore[union-attr]
        return f"is still {memory.phase}"
    if memory.aside:
        return f"has its {memory.aside} stand in"
    why = _untuned(world, node, memory, ring)
    if why:
        return why
    active = memory.active
    serving = node.server.serving.get(model)
    is_well = active is not None and active.verdict != "failed" and active.release not in node.server.broken
    if active is not None and is_well and serving != active.release:
        return "does not serve what is active"
    if active is None and serving is not None:
        return "serves though nothing is active"
    if row is None or row.action == "hold":
        return ""
    if row.action == "return":
        is_back = active is None or active.release != row.release or memory.fallback is None
        return "" if is_back else "has not returned"
    if active is not None and (active.release, active.number) == (row.release, row.number):
        return ""
    if any((refusal.release, refusal.number) == (row.release, row.number) for refusal in memory.refused):
        return ""
    if best is None:
        return ""
    if not _is_listed(world, row.release) or _is_denied(world, node, model, row.release):
        return ""
    return f"in {memory.phase} on something else than {catalogue.releases()[Digest(row.release)]} {row.number}"


def _untuned(world: "World", node: "Machines", memory: Memory, ring: str) -> str:
    """How what is active isn't the newest tuple that was published; empty: it is."""
    papers, active = world.hub.papers, memory.active
    newest = max(papers.policies.get(ring, {}), default=0)
    if memory.unfit is not None and papers.best(memory.model, memory.unfit.release, ring) is not None:
        return "stays stopped though something fits"
    if active is None:
        return ""
    if active.policy != newest:
        return f"is on policy {active.policy} of {newest}"
    if newest and memory.ring != ring:
        return f"is on a policy of {memory.ring}"
    best = papers.best(memory.model, active.release, ring)
    if best is None:
        # No published config fits; what was activated before there was any may go on fitting as it is.
        is_fit = papers.fits(memory.model, active.release, active.config, ring, newest)
        return "" if active.is_unfit or is_fit else "fits nothing and isn't flagged"
    if best > max(active.config, active.passed_over):
        return f"is on config {active.config} of {best}"
    serving = node.server.serving.get(memory.model) == active.release
    is_tuned = node.server.tuned.get(memory.model) == (active.config, active.policy)
    return "answers with other numbers than its tuple's" if serving and not is_tuned else ""


def _is_listed(world: "World", release: bytes) -> bool:
    return all(release in catalogue.listed(world.hub.step, duty) for duty in ("sign", "approve"))


def _is_denied(world: "World", node: "Machines", model: str, release: bytes) -> bool:
    trusted = world.hub.trusted
    vouchers = tuple(k for duty in ("sign", "approve") for k in trusted.signers(f"{duty}-{model}"))
    return world.oracle.denials(node, Pointer(release, 0, vouchers=vouchers)) > 0


def _count_records(world: "World", node: "Machines") -> None:
    assert node.outbox is not None
    hub = world.hub
    for lane in LANES:
        status = node.outbox.status()[lane]
        whole = status.kept + status.merged + status.lost + status.receipted
        wrote = node.written.get(lane, 0)
        require("records", whole == status.written == wrote, f"{node.name} {lane}: {status}, wrote {wrote}")
        sums = {"kept": 0, "merged": 0, "lost": 0, "missing": 0}
        for (name, _, of), state in hub.lanes.items():
            if (name, of) == (node.name, lane):
                sums = {what: sums[what] + state[what] for what in sums}
        told = {"kept": status.receipted, "merged": status.merged, "lost": status.lost, "missing": 0}
        require("records", sums == told, f"{node.name} {lane}: the hub has {sums}, the node {told}")
        for key, rows in hub.records.items():
            if (key[0], key[2]) == (node.name, lane):
                numbers = [number for first, count, _ in rows for number in range(first, first + count)]
                require("records", len(numbers) == len(set(numbers)), f"{node.name} {lane}: counted twice")

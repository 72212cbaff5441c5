"""What must hold, whatever the weather: judged by what the makers of the world know, not by what the nodes believe.

Each invariant has a name in `INVARIANTS`; a world that breaks one ends with `BrokenError`.
"""

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from heliograph.blob import LEAF_BYTES, leaf_count, page_of
from heliograph.deny import DenySet
from heliograph.documents import Deny, DenyKey
from heliograph.names import Digest
from heliograph.policy import Policy
from heliograph.rules import for_model
from heliograph.transfer import Arrival
from heliograph.wire import pack
from heliograph_site.happenings import (
    ActiveDenied,
    ActiveLost,
    ActiveUnfit,
    Directed,
    Event,
    FitsAgain,
    Healthy,
    Passed,
    RestartedAgain,
    Resumed,
    Returned,
    Served,
    Stopped,
    Wanted,
)
from heliograph_site.machine import Command
from heliograph_site.memory import UNDER_WAY, Memory, Pointer
from heliograph_site.outbox import Batch
from heliograph_site.slots import PartialBlob
from simulator import catalogue
from simulator.papers import RINGS
from simulator.shell import LOOK_S
from simulator.watch import ROUNDED_S

if TYPE_CHECKING:
    from simulator.machines import Machines, Moves
    from simulator.shell import Shell
    from simulator.world import World

INVARIANTS: Final = {
    "verified": "no byte is written, held or staged but what its digests say",
    "golden": "what serves gave its golden outputs on this node",
    "admitted": "what is activated was signed, approved and directed to the node's ring",
    "list": "nothing is activated before every denial that the newest timestamp names is held",
    "set": "the metadata that a node has committed never goes back",
    "denied": "nothing known to be denied is kept, but the last, flagged; where two deny it and it is closed, nothing",
    "fallback": "what may serve next stands on the disk, was active here and did not fail",
    "saved": "memory is on disk before its command runs",
    "pointer": "what answers is what the pointer names, or about to be",
    "reason": "nobody is stuck, and nothing refused, without a reason that is true",
    "number": "what is under way goes by the newest number that its directive came under, at the latest with the tick "
    "after its wall clock jumped",
    "refused": "what was refused under a number is not tried again under it",
    "probation": "a probation outlives one power cut at most, and that only if the worker was healthy",
    "end": "after calm every node ends on what its ring's newest directive says, or has refused it",
    "tuple": "what is active goes with a config and policy that it fits, or is flagged, which nothing new ever is",
    "policy": "in one ring the policy in force never goes back",
    "restored": "rolling back brings back the config that the fallback had, or one newer than what was rolled back",
    "served": "what answers does so with the numbers of one committed tuple",
    "handle": "what is sent goes under the handle last asked for",
    "bytes": "no more is fetched than bad weather explains",
    "time": "no node is ahead of time or further behind than was unmeasured, takes what expired or stops by a clock",
    "records": "kept + merged + lost + receipted = written, and the hub counts each once",
}


LEFT_UNSEEN: Final = (ActiveDenied, Returned, RestartedAgain)
"""What ends a probation for another reason than that it failed."""


class BrokenError(AssertionError):
    """An invariant is broken."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"[{name}] {INVARIANTS[name]}: {what}")
        self.name = name


def require(name: str, holds: object, what: str) -> None:
    """Raises `BrokenError` if it doesn't hold."""
    if not holds:
        raise BrokenError(name, what)


class Oracle:
    """Watches one world."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._refused: dict[tuple[str, str], set[tuple[bytes, int]]] = defaultdict(set)
        self._were_active: dict[tuple[str, str], set[bytes]] = defaultdict(set)
        self._in_force: dict[tuple[str, str], tuple[str, int]] = {}
        self._committed: dict[tuple[str, str], set[tuple[bytes, int, int]]] = defaultdict(set)
        self._cuts: dict[tuple[str, str], int] = defaultdict(int)
        self._denials: dict[str, set[bytes]] = defaultdict(set)
        self._all_cuts: dict[str, int] = defaultdict(int)
        self._versions: dict[str, dict[str, int]] = defaultdict(dict)
        self._rotten: set[tuple[str, bytes]] = set()
        self.allowed_bytes: dict[str, int] = defaultdict(int)
        self._handed_out: dict[tuple[str, bytes, str, int], tuple[int, str, int, bytes]] = {}
        # What was judged last, by identity: these never change, they are replaced.
        self._judged_set: dict[str, object] = {}
        self._strays: dict[tuple[str, int, str], float] = {}
        self._unsure: set[tuple[str, str]] = set()
        """Where what was active went before anybody saw whether it, or still what it succeeded, answered."""
        self._judged_denials: dict[str, tuple[DenySet, frozenset[bytes]]] = {}
        self._judged: dict[tuple[str, str], tuple[Memory, DenySet, tuple[bytes, ...]]] = {}

    # --- what is watched ----------------------------------------------------------------------------------------------

    def begins(self, node: "Machines", command: Command, memory: Memory) -> None:
        saved = node.journal.load(memory.model)
        require("saved", saved == memory, f"{node.name} begins {command.value} in {memory.phase}, saved {saved.phase}")

    def stepped(self, node: "Machines", before: Memory, event: Event, after: Memory) -> None:
        """One row of the table was taken."""
        key = (node.name, after.model)
        if isinstance(event, Wanted):
            names = (event.target.release, event.target.number)
            require("refused", names not in self._refused[key], f"{node.name} wants {names[0].hex()[:8]} {names[1]}")
        for refusal in after.refused:
            if (refusal.release, refusal.number) not in self._refused[key]:
                self._refused[key].add((refusal.release, refusal.number))
                self._explained(node, after.model, refusal.release, refusal.reason)
        is_new = after.active is not None and after.active.activated_at not in {p.activated_at for p in before.kept}
        if isinstance(event, Passed) or (is_new and before.target is not None):
            self._activated(node, before, after)
        elif after.active is not None and (before.active is None or before.active.release != after.active.release):
            was_active = after.active.release in self._were_active[key]
            require("fallback", was_active, f"{node.name} falls back on what never served")
            is_resort = before.resort is not None and after.active.release == before.resort.release
            is_fit = after.active.verdict != "failed" and not after.active.denied
            require("fallback", is_fit or is_resort, f"{node.name} falls back on what failed or is denied")
            has_proven = any(pointer.verdict == "proven" for pointer in before.line)
            has_proven &= not isinstance(event, ActiveUnfit | FitsAgain | Resumed)  # of those that fit, it is the best
            is_proven = after.active.verdict == "proven"
            require("fallback", is_proven or not has_proven, f"{node.name} passes a proven release over")
        self._count_cuts(node, before, event, after)
        if type(event).__name__ == "Admitted" and after.target is not None:
            self.allowed_bytes[node.name] += catalogue.releases()[Digest(after.target.release)].size

    def settled_on(self, node: "Machines", moves: "Moves") -> None:
        """These steps were saved at once."""
        if not moves:
            return
        before, after = moves[0][0], moves[-1][2]
        papers = self._world.hub.papers
        key, active, own = (node.name, after.model), after.active, str(node.belief.ring)
        ring = after.ring or own
        known_ring, known = self._in_force.get(key, (ring, 0))
        is_back = known_ring == ring and after.policy < known
        require("policy", not is_back, f"{node.name} goes back to policy {after.policy}")
        has_none = not after.policy and known and node.belief.trusted.heads.policy.get(own, 0)  # type: ignore[call-overload]
        require("policy", not has_none, f"{node.name} has no policy in force, though {own} has some, and {known} was")
        require(
            "policy", not after.policy or after.policy in papers.policies.get(ring, {}), f"{node.name} has {ring}'s"
        )
        self._in_force[key] = (ring, after.policy)
        for was, event, _ in moves:
            if isinstance(event, Healthy | Served | Stopped):
                self._unsure.discard(key)
            elif was.phase == "proving" and not was.is_healthy and isinstance(event, LEFT_UNSEEN):
                self._unsure.add(key)
        if active is None:
            return
        self._committed[key].add((active.release, active.config, active.policy))
        is_fit = self._fits(after.model, active)
        require("tuple", is_fit or active.is_unfit, f"{node.name} has {active.config}, {active.policy} unflagged")
        if any(isinstance(event, Passed) for _, event, _ in moves):
            require("tuple", not active.is_unfit, f"{node.name} activates what doesn't fit")
        is_back = any(isinstance(event, ActiveLost | Returned | RestartedAgain) for _, event, _ in moves)
        old = next((pointer for pointer in before.line if pointer.release == active.release), None)
        if is_back and old is not None and not any(isinstance(event, ActiveUnfit) for _, event, _ in moves):
            could = papers.fits(after.model, old.release, old.config, ring, after.policy)
            is_new = before.active is not None and active.config > before.active.config
            is_back = active.config == old.config or is_new
            require("restored", is_back or not could, f"{node.name} brings config {active.config}")

    def _fits(self, model: str, pointer: Pointer) -> bool:
        papers = self._world.hub.papers
        return any(papers.fits(model, pointer.release, pointer.config, ring, pointer.policy) for ring in RINGS)

    def holds(self, node: "Machines") -> None:
        """What must be true of a node between any two events."""
        if self._judged_set.get(node.name) is not node.belief.trusted:
            self._goes_on(node)
            self._judged_set[node.name] = node.belief.trusted
        denied = self._denied(node)
        for memory in node.memories.values():
            known = self._judged.get((node.name, memory.model))
            if known is None or known[0] is not memory or known[1] is not node.belief.denials:
                self._remembers(node, memory)
                spare = tuple(pointer.release for pointer in memory.kept[1:])
                known = self._judged[node.name, memory.model] = (memory, node.belief.denials, spare)
            for release in known[2]:
                require("fallback", self._stands(node, release), f"{node.name}: a fallback lacks files")
            target = memory.target
            if target is not None and memory.phase in UNDER_WAY and not node.watch.has_jumped:
                told = node.belief._directives.get(memory.model)
                if told is not None and told.number != target.number:
                    says, _ = node.belief.wanted(memory.model, memory)
                    is_same = isinstance(says, Directed) and says.target.release == target.release
                    is_held = isinstance(says, Directed) and says.action != "install"
                    require("number", not is_same or is_held, f"{node.name} obeys {target.number}, told {told.number}")
        self.serves(node)
        for model, release in node.server.serving.items():
            is_known = release in denied
            memory = node.memories.get(model) or Memory(model)
            active = memory.active
            is_named = active is not None and active.release == release
            is_leaving = node.is_reaching(model) or self._is_stray(node, memory, release)
            require("pointer", is_named or is_leaving, f"{node.name} answers by a {model} that no pointer names")
            is_flagged = is_named and active is not None and active.denied != ""
            require("denied", not is_known or is_flagged or is_leaving, f"{node.name} answers by a denied {model}")

    def _is_stray(self, node: "Machines", memory: Memory, release: bytes) -> bool:
        """Whether what answers is named by nothing since nobody knew it, and the server wasn't looked at since."""
        where = (node.name, node.life, memory.model)
        if not memory.is_stray(release) or (node.name, memory.model) not in self._unsure:
            self._strays.pop(where, None)
            return False
        return self._world.clock.now - self._strays.setdefault(where, self._world.clock.now) <= LOOK_S

    def _goes_on(self, node: "Machines") -> None:
        """Another set is never an older one."""
        versions = node.belief.trusted.versions
        for role, version in self._versions[node.name].items():
            require(
                "set", versions.get(role, 0) >= version, f"{node.name} went back from {role} {version} to {versions}"
            )
        self._versions[node.name] = versions

    def _remembers(self, node: "Machines", memory: Memory) -> None:
        """What a machine remembers, by the denials that its node holds."""
        require("reason", memory.phase != "stuck" or memory.reason, f"{node.name} is stuck without a reason")
        for pointer in memory.line:
            require("denied", not self.denials(node, pointer), f"{node.name} keeps a denied fallback")
        target = memory.target
        if target is not None and memory.phase in UNDER_WAY:
            is_denied = self._by_digest(node, target.release)
            require("denied", not is_denied, f"{node.name} is after a denied release")
        active = memory.active
        if active is not None and (by := self.denials(node, active)):
            require("denied", active.denied, f"{node.name} serves {active.release.hex()[:8]}, denied, unflagged")
            require("denied", memory.fallback is None, f"{node.name} serves what is denied beside a fallback")
            require("denied", by < 2 or active.fail_mode == "safe", f"{node.name} is closed and serves on")

    def serves(self, node: "Machines") -> None:
        """Whatever answers gave its golden outputs, and is what the journal names or named."""
        for model, release in node.server.serving.items():
            numbers = (release, *node.server.tuned.get(model, (0, 0)))
            require("served", numbers in self._committed[node.name, model], f"{node.name} answers with {numbers[1:]}")
            require("golden", (model, release) in node.server.passed, f"{node.name} serves {release.hex()[:8]}")

    def switched(self, node: "Machines", model: str) -> None:
        """The server just did what it was told."""
        active = node.journal.load(model).active
        serving = node.server.serving.get(model)
        names = active.release if active is not None else None
        require("pointer", serving == names, f"{node.name} switched {model} to another release")

    def written(self, node: "Shell", arrival: Arrival) -> None:
        blob = catalogue.blobs()[arrival.fetch.blob]
        for page in arrival.fetch._pages.values():  # small blobs: there is one
            require("verified", page == page_of(blob), f"{node.name} believes a wrong page")
        for offset, data in arrival.runs:
            require("verified", blob[offset : offset + len(data)] == data, f"{node.name} writes a wrong leaf")

    def resumed(self, node: "Shell", part: PartialBlob) -> None:
        blob = catalogue.blobs()[part.fetch.blob]
        for leaf in range(leaf_count(part.fetch.length)):
            if part.fetch.has_leaf(leaf):
                at = leaf * LEAF_BYTES
                good = blob[at : at + LEAF_BYTES]
                require("verified", part.read(at, len(good)) == good, f"{node.name} holds leaf {leaf}, which is torn")

    def staged(self, node: "Machines", release: bytes) -> None:
        for digest in catalogue.releases()[Digest(release)].files:
            data = node.slots.store.path(digest).read_bytes() if node.slots.store.has(digest) else None
            require("verified", data == catalogue.blobs()[digest], f"{node.name} staged a file that isn't whole")

    def rots(self, node: "Machines", digest: bytes) -> None:
        self._rotten.add((node.name, digest))

    def handed_out(self, node: "Machines", batch: Batch) -> None:
        """What was handed out under a number stays what it is."""
        number = batch.first
        for count, kind, at, body in batch.rows:
            row = (count, kind, at, pack(body))
            known = self._handed_out.setdefault((node.name, batch.run, batch.lane, number), row)
            require("records", known == row, f"{node.name} changed {batch.lane} {number} after it was handed out")
            number += count

    # --- denials, as the world knows them -----------------------------------------------------------------------------

    def denials(self, node: "Machines", pointer: Pointer) -> int:
        """By how many people the release is denied, as far as the node was told; a denial by key counts as two."""
        found: set[object] = set()
        for digest in _verified(node):
            document, by = self._world.hub.truth[digest]
            match document:
                case Deny(releases=releases) if pointer.release in releases:
                    found.add(by)
                case DenyKey(keys=keys, keep=keep) if pointer.release not in keep and {*keys} & {*pointer.vouchers}:
                    found |= {"two", "people"}
                case _:
                    pass
        return len(found)

    def _by_digest(self, node: "Machines", release: bytes) -> bool:
        return release in self._denied(node)

    def _denied(self, node: "Machines") -> frozenset[bytes]:
        """Every release that a denial held names; none is forgotten."""
        denials, known = node.belief.denials, self._judged_denials.get(node.name)
        if known is None or known[0] is not denials:
            held = denials.denials.keys()
            require("denied", self._denials[node.name] <= held, f"{node.name} forgot a denial")
            self._denials[node.name].update(held)
            told = (self._world.hub.truth[digest][0] for digest in _verified(node))
            named = {release for document in told if isinstance(document, Deny) for release in document.releases}
            known = self._judged_denials[node.name] = (denials, frozenset(named))
        return known[1]

    # --- judging ------------------------------------------------------------------------------------------------------

    def _activated(self, node: "Machines", before: Memory, after: Memory) -> None:
        assert before.target is not None and after.active is not None
        release, key = before.target.release, (node.name, after.model)
        versions = node.belief.trusted.versions
        named = self._world.hub.heads[versions["timestamp"]]
        held = set(node.belief.denials.denials)
        require("list", named <= held, f"{node.name} activates and lacks {len(named - held)} denials")
        step = (versions["snapshot"] - 1) // 2
        for duty in ("sign", "approve"):
            is_listed = release in catalogue.listed(step, duty)
            require("admitted", is_listed, f"{node.name} activates {release.hex()[:8]} without {duty}")
        told = (node.belief.ring, after.model, release, "install", True)
        rows = {(row.ring, row.model, row.release, row.action, row.released) for row in self._world.hub.rows}
        require("admitted", told in rows, f"{node.name} activates what no directive of its ring names")
        passed = (after.model, release) in node.server.passed
        require("golden", passed, f"{node.name} activates {release.hex()[:8]}")
        require("denied", not self.denials(node, after.active), f"{node.name} activates what is denied")
        require("verified", self._stands(node, release), f"{node.name} activates what lacks files")
        watch, trusted = node.watch, node.belief.trusted
        late_s = watch.true() - trusted.fresh_until
        require("time", late_s < watch.may_lag_s or late_s < 0, f"{node.name} activates {late_s} s after expiry")
        self._were_active[key].add(release)
        self._cuts[key] = 0

    def clocks(self, node: "Machines", model: str, policy: Policy, *, is_alone: bool) -> None:
        """What a node takes the time for, and what it makes of being alone."""
        watch = node.watch
        if not self._world.has_clocks:
            return
        self._world.met[f"clock: {watch.wall}"] += 1
        lag_s = watch.true() - watch.now()
        require("time", lag_s >= 0, f"{node.name} is {-lag_s} s ahead of time")
        require("time", lag_s <= watch.off_s + ROUNDED_S, f"{node.name} is {lag_s} s behind, unmeasured {watch.off_s}")
        if is_alone:
            alone_s = watch.true() - node.heard_at
            allowed_s = for_model(policy, model).max_offline_s
            require("time", alone_s > allowed_s, f"{node.name} takes itself for alone after {alone_s} s")

    def _stands(self, node: "Machines", release: bytes) -> bool:
        known = catalogue.releases()[Digest(release)]
        needed = [digest for digest in (known.digest, *known.files) if (node.name, digest) not in self._rotten]
        return all(node.slots.store.has(digest) for digest in needed)

    def _count_cuts(self, node: "Machines", before: Memory, event: Event, after: Memory) -> None:
        if not type(event).__name__.startswith("Restarted") or node.was_orderly:
            return
        self._all_cuts[node.name] += 1
        key = (node.name, before.model)
        if before.phase == "proving" and before.fallback is not None:
            self._cuts[key] += 1
            goes_on = after.phase == "proving"
            require("probation", not goes_on or self._cuts[key] < 2, f"{node.name} survives cut {self._cuts[key]}")
            require("probation", not goes_on or before.is_healthy, f"{node.name} was never healthy and goes on")

    def _explained(self, node: "Machines", model: str, release: bytes, reason: str) -> None:
        kind = catalogue.releases()[Digest(release)].kind
        is_rotten = any((node.name, digest) in self._rotten for digest in self._rotten_of(release))
        causes = {
            "denied": True,  # `holds` and `_activated` judge denials
            "golden": kind == "golden",
            "too slow": kind == "slow",
            "no variant": kind == "unfit",
            "given up": node.had_bad_disk,
            "the node stopped": self._all_cuts[node.name] > 0 or not node.was_orderly,
            "its worker": release in node.server.broken,
            "its files": is_rotten,
            "the server gave": is_rotten or release in node.server.broken,
            "the manifest is gone": is_rotten,
            "returned": True,
            "rolled back by": (node.name, "rollback", model) in self._world.hub.ordered,
            "called off by": (node.name, "abort", model) in self._world.hub.ordered,
            "the hub declines": True,
        }
        told = next((is_true for start, is_true in causes.items() if reason.startswith(start)), False)
        require("reason", told, f"{node.name} refuses {catalogue.releases()[Digest(release)]}: {reason!r}")

    def _rotten_of(self, release: bytes) -> tuple[bytes, ...]:
        known = catalogue.releases()[Digest(release)]
        return (known.digest, *known.files)


def _verified(node: "Machines") -> list[bytes]:
    """Denials that the node believes: one whose signatures were spoilt on the way is only kept in mind."""
    return [digest for digest, denial in node.belief.denials.denials.items() if denial.is_verified]

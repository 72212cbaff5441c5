"""The policies of the node's ring and the configs of its models: which are taken, kept and in force.

Which of them go together with a release says `heliograph.tuples`; what is held, and what that is worth now, `papers`;
here stands what a machine makes of it.

Rule 1: several numbers of a scope are held: what is in force, what machines keep, and what came since. Nothing below
    the number that the newest timestamp names is taken, unless it was asked for.
Rule 2: what is in force stays so until a document that verifies has come since; that one needs no higher number.
Rule 3: what is of another ring is never in force, but for the former ring's: for each model until one of the new ring's
    is in force for it. Nothing is made of the new ring's lack, nor of what is only held of it.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from heliograph import tuples
from heliograph.documents import Declined, Numbers
from heliograph.manifest import Manifest
from heliograph.names import Ring
from heliograph.policy import Config, Policy, no_config, no_policy
from heliograph.protocol import Topic
from heliograph.trust import TrustedSet
from heliograph_site.happenings import Matched, Passed
from heliograph_site.journal import Paper
from heliograph_site.memory import FailMode, Memory, Pointer
from heliograph_site.papers import SCOPES, Papers, Shelf

log = logging.getLogger("heliograph.agent")

MAX_PAPERS = 64
"""Of one scope, besides those that a machine needs. Older ones are asked for one after another, from the newest down,
and each answer has to be here still when the next one is judged: with too few the same would be asked for ever."""
MAX_MANIFESTS = 64
"""At hand."""
NO_NUMBERS = Numbers()


class Memories(Shelf, Protocol):
    """What the journal does for papers, and what machines remember."""

    def models(self) -> tuple[str, ...]:
        """Models with a machine."""

    def load(self, model: str) -> Memory:
        """What a machine remembers."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document that is held and not in force, for people."""

    document: str
    number: int
    came: int
    until: int | None
    """When it is in force whatever fits it; None: not by time."""
    reason: str


class Rulebook:
    """What is held, and what it says."""

    def __init__(
        self,
        shelf: Memories,
        realm: str,
        trusted: Callable[[], TrustedSet],
        ring: Callable[[], Ring | None],
        now: Callable[[], int],
        manifests: Callable[[bytes], Manifest | None],
    ) -> None:
        """Reads the journal. `manifests` gives those whose objects are on the disk."""
        self._shelf, self._realm = shelf, realm
        self._trusted, self._ring, self._now = trusted, ring, now
        self._load_manifest = manifests
        self._papers = Papers(shelf, realm, trusted)
        self._manifests: dict[bytes, Manifest] = {}
        self._targets: dict[tuple[bytes, bool], tuples.HeldRelease] = {}
        self._asked: dict[tuple[str, str], int] = {}
        # Worked out once for what it was worked out from: machines ask after every step.
        self._held: dict[tuple[str, str, bool, bool], tuple[object, tuples.Held]] = {}
        self._held_under: TrustedSet | None = None
        self._ruled: tuple[TrustedSet, Ring | None, bool, str] | None = None
        self._chosen: dict[str, tuple[tuples.Held, tuples.Choice]] = {}
        self._matched: dict[str, tuple[tuples.Choice, Matched]] = {}
        self._unfit: dict[str, tuple[tuples.Held, int, str | None]] = {}
        self._lacked: dict[str, tuple[tuples.Held, tuples.Lacks]] = {}

    # --- what comes ---------------------------------------------------------------------------------------------------

    def take(self, row: Topic, names: dict[str, str], payload: bytes, *, is_answer: bool = False) -> bool:
        """Takes a policy or config; on disk when this returns. Whether it is news.

        `is_answer`: it came in the hub's answer to what was `asked` last. Only that says that nothing between it and
        the number asked for was published; what a broker repeats says nothing of the kind.

        Raises:
            TrustError, IntegrityError: it is not to be believed.
        """
        kind, scope = row.name, names[SCOPES[row.name]]
        if kind == "policy" and scope != self._ring():
            return False  # kept by the broker for a ring that this node has left
        number = self._papers.believed(row, scope, payload)
        held = self._papers.of(kind, scope)
        asked = self._asked.get((kind, scope), 0)
        is_asked = number <= asked
        known = held.get(number)
        if known is not None and known.statement == payload:
            if not (is_asked and is_answer) or known.newest_until >= asked:
                return False
            self._keep(replace(known, newest_until=asked))
            return True
        newest = max((paper.number for paper in held.values() if self._papers.is_signed(paper)), default=0)
        if not is_asked and (number <= newest or number < self._papers.head(kind, scope)):
            return False
        self._keep(Paper(kind, scope, number, payload, self._now(), asked if is_asked and is_answer else 0))
        log.info("%s %s %d has come", kind, scope, number)
        return True

    def _keep(self, paper: Paper) -> None:
        held = self._papers.add(paper)
        self._ruled = None
        # A newer one that is declined doesn't take the place of the newest that is obeyed.
        needed = {
            paper.number,
            max((n for n, one in held.items() if not isinstance(self._papers.opened(one), str)), default=0),
        }
        memories = [self._shelf.load(model) for model in self._shelf.models()]
        for memory in memories:
            if paper.kind == "policy" and self._ring_in_force(memory) == paper.scope:
                needed.add(memory.policy)
            elif paper.kind == "config" and memory.model == paper.scope:
                needed |= {pointer.config for pointer in memory.kept}
        spare = sorted((number for number in held if number not in needed), reverse=True)
        numbers = [memory.policy if self._ring_in_force(memory) == paper.scope else 0 for memory in memories]
        in_force = min(numbers, default=0) if paper.kind == "policy" else 0
        if in_force in held and not self._papers.is_signed(held[in_force]):
            in_force = 0  # its number is nobody's any more
        drop = tuple(held[number] for place, number in enumerate(spare) if place >= MAX_PAPERS or number < in_force)
        self._held.clear()
        self._papers.save(paper, drop)
        self._ruled = None

    def restamp(self) -> None:
        """What came later than now came under a time that a stolen key signed: it came now, in the same order."""
        if self._papers.restamp(self._now()):
            self._held.clear()
            self._chosen.clear()

    @property
    def policy_ring(self) -> str:
        """The ring whose policy is in force: this node's, or until that one's is here the one that it came from."""
        return self._ruling()[3]

    def _ruling(self) -> tuple[TrustedSet, Ring | None, bool, str]:
        """Whether the ring's policy is still to come, and whose is in force: worked out once for metadata and ring."""
        trusted, ring = self._trusted(), self._ring()
        known = self._ruled
        if known is None or known[0] is not trusted or known[1] != ring:
            is_to_come = self._is_policy_to_come(ring)
            known = self._ruled = (
                trusted,
                ring,
                is_to_come,
                (self._former_ring() if is_to_come else None) or ring or "",
            )
        return known

    def leave_ring(self) -> None:
        """No other ring's policies matter any more but those in force; if this ring has none, not even those."""
        own = self._ring() or ""
        others = {ring for ring in self._papers.rings() if ring != own}
        if not others:
            return
        self._ruled = None
        if self._lacks_policy():
            return
        if self._policy_papers(own):
            others -= {self._ring_in_force(self._shelf.load(model)) for model in self._shelf.models()}
        self._papers.drop_rings(others)
        self._ruled = None
        self._held.clear()

    # --- what is told -------------------------------------------------------------------------------------------------

    def numbers(self, models: Iterable[str]) -> tuple[int, dict[str, int]]:
        """The newest numbers that count, for hello."""
        configs = {model: self._papers.newest("config", model) for model in models}
        return self._papers.newest("policy", self._ring() or ""), {
            model: number for model, number in configs.items() if number
        }

    def is_behind(self, models: Iterable[str]) -> bool:
        """Whether the newest timestamp names a newer document than is held."""
        policy, configs = self.numbers(models)
        ring = self._ring()
        return (ring is not None and policy < self._papers.head("policy", ring)) or any(
            configs.get(model, 0) < self._papers.head("config", model) for model in models
        )

    def lacks(self, memories: Iterable[Memory]) -> Numbers:
        """Which older documents would help: of each the newest published one up to this number."""
        policy, configs = 0, {}
        for memory in memories:
            held = self._coming(memory)
            found = self._lacking(held) if held is not None else tuples.Lacks()
            policy = max(policy, found.policy)
            if found.config:
                configs[memory.model] = found.config
        if not policy and not configs:
            return NO_NUMBERS
        return Numbers(policy=0 if self._lacks_policy() else policy, config=configs)

    def _lacking(self, held: tuples.Held) -> tuples.Lacks:
        known = self._lacked.get(held.model)
        if known is None or known[0] is not held:
            known = self._lacked[held.model] = (held, tuples.lacks(held))
        return known[1]

    def asked(self, lacks: Numbers) -> None:
        """These were asked for."""
        self._asked = {("config", model): number for model, number in lacks.config.items()}
        self._asked["policy", self._ring() or ""] = lacks.policy

    def declined(self) -> tuple[Declined, ...]:
        """What is held, newer than what is in force, and not obeyed."""
        return tuple(declined for _, declined in self._papers.declined())

    def candidates(self, memories: Iterable[Memory]) -> tuple[Candidate, ...]:
        """What is held and not in force, with until when and why."""
        found: list[Candidate] = []
        for memory in memories:
            held = self._coming(memory)
            if held is None:
                continue
            choice = tuples.choose(held, self._now())
            why = "; ".join(choice.waits)
            for policy in held.policies:
                if policy.number > choice.in_force and not any(one.number == policy.number for one in found):
                    found.append(Candidate("policy", policy.number, policy.came_at, policy.forced_at, why))
            paper = self._papers.of("config", memory.model)
            for config in held.configs:
                if config.number > choice.config:
                    name = f"config/{memory.model}"
                    found.append(Candidate(name, config.number, paper[config.number].came, None, why))
        found += [
            Candidate(declined.document, declined.number, paper.came, None, f"declined: {declined.reason}")
            for paper, declined in self._papers.declined()
        ]
        return tuple(found)

    # --- documents in force -------------------------------------------------------------------------------------------

    def policy(self, number: int, ring: str = "") -> Policy:
        """The ring's policy of this number; without it, no document. `ring`: empty for this node's."""
        paper = self._policy_papers(ring or self.policy_ring).get(number)
        opened = self._papers.opened(paper) if paper is not None else None
        return opened if isinstance(opened, Policy) else no_policy(self._realm, self._ring() or "canary")

    def config(self, model: str, number: int) -> Config:
        """The model's config of this number; without it, no document."""
        paper = self._papers.of("config", model).get(number)
        opened = self._papers.opened(paper) if paper is not None else None
        return opened if isinstance(opened, Config) else no_config(self._realm, model)

    def node_policy(self, memories: Iterable[Memory]) -> Policy:
        """What counts for the node as a whole: the newest in force for any model, or, with none, the newest held."""
        if not self._papers.rings():
            return no_policy(self._realm, self._ring() or "canary")
        newest: dict[str, int] = {}
        for memory in memories:
            ring = self._ring_in_force(memory)
            if memory.policy in self._policy_papers(ring):
                newest[ring] = max(newest.get(ring, 0), memory.policy)
        if newest:
            ring = self.policy_ring if self.policy_ring in newest else min(newest)
            return self.policy(newest[ring], ring)
        nothing = no_policy(self._realm, self._ring() or "canary")
        return max(self._papers.policies(self.policy_ring), default=(nothing, 0), key=_number)[0]

    def node_policy_number(self, memories: Iterable[Memory]) -> int:
        """Number of `node_policy`."""
        return self.node_policy(memories).number

    # --- what machines make of it -------------------------------------------------------------------------------------

    def match(self, memory: Memory) -> Matched | None:
        """What is to serve of what is, or was last, active and its fallbacks; None where that can't be told."""
        ring = self._ring_for(memory, None)
        held = self._held_of(ring, memory, None)
        if held is None or held.active is None:
            return None
        choice = self._choose(held)
        if choice.release is None:
            return None
        known = self._matched.get(memory.model)
        if known is None or known[0] is not choice:
            reason = "; ".join(choice.waits) or "no config and policy held fit"
            found = Matched(
                choice.release,
                choice.config,
                choice.in_force,
                choice.standing,
                self._fail_mode(memory.model, choice.release, choice.in_force, ring),
                reason,
                ring if choice.in_force else "",
            )
            known = self._matched[memory.model] = (choice, found)
        return known[1]

    def why_unfit(self, memory: Memory) -> str | None:
        """What the target waits for; None if it could be activated with what is held, or nothing is known of it yet."""
        assert memory.target is not None, "the caller looked"
        target = self._target(memory, is_staged=True)
        if self._is_elsewhere(memory, target):
            return f"the policy of ring {self._ring()}"
        held = self._held_of(self._ring() or "", memory, target)
        if target is None or held is None:
            return None
        lowest = tuples.least(held, self._now())
        known = self._unfit.get(held.model)
        if known is None or known[0] is not held or known[1] != lowest:
            known = self._unfit[held.model] = (held, lowest, self._why_nothing_fits(held, lowest, target))
        return known[2]

    def _why_nothing_fits(self, held: tuples.Held, lowest: int, target: tuples.HeldRelease) -> str | None:
        if tuples.fitting(replace(held, in_force=lowest), target) is not None:
            return None
        waits = tuples.choose(held, self._now()).waits
        return "documents that fit: " + ("; ".join(waits) or "none held does")

    def heard(self, memory: Memory, passed: Passed) -> Passed:
        """The same with the numbers that are activated with the target at this moment, or with what it waits for."""
        assert memory.target is not None, "the caller looked"
        target, ring = self._target(memory, is_staged=True), self._ring() or ""
        if self._is_elsewhere(memory, target):
            return replace(passed, waits_for=f"the policy of ring {ring}")
        held = self._held_of(ring, memory, target)
        if target is None or held is None:
            # A manifest is gone: that shows when it is served.
            return replace(passed, policy=memory.policy, ring=memory.ring)
        choice = tuples.choose(held, self._now())
        if choice.release != target.digest or choice.standing != "fits":
            return replace(passed, waits_for="documents that fit: " + ("; ".join(choice.waits) or "none held does"))
        in_force, mode = choice.in_force, self._fail_mode(memory.model, target.digest, choice.in_force, ring)
        return replace(passed, config=choice.config, policy=in_force, fail_mode=mode, ring=ring if in_force else "")

    def _is_elsewhere(self, memory: Memory, target: tuples.HeldRelease | None) -> bool:
        """Whether nothing new may be activated, since no policy of this node's ring can be in force with it yet."""
        return self._lacks_policy() or self._ring_for(memory, target) != (self._ring() or "")

    def _coming(self, memory: Memory) -> tuples.Held | None:
        """What is held of this node's ring, also where the former ring's policy is still in force for the model."""
        return self._held_of(self.policy_ring, memory, self._target(memory, is_staged=False))

    def _ring_for(self, memory: Memory, directed: tuples.HeldRelease | None) -> str:
        """The ring of whose policies one is to be in force for the model now."""
        own, former = self.policy_ring, self._ring_in_force(memory)
        if former == own or not self._policy_papers(former):
            return own
        held = self._held_of(own, memory, directed)
        return own if held is None or self._takes_over(held) else former

    def _takes_over(self, held: tuples.Held) -> bool:
        """Whether one of a new ring's policies is in force: what may serve fits it, or its time has come."""
        if tuples.least(held, self._now()):
            return True
        wanted = held.directed if held.directed is not None and held.directed.is_staged else None
        found = (tuples.fitting(held, release) for release in (wanted, held.active) if release is not None)
        return any(one is not None and one[1].number > 0 for one in found)

    def _held_of(self, ring: str, memory: Memory, directed: tuples.HeldRelease | None) -> tuples.Held | None:
        """All that is held of a model and a ring, as the one rule asks; None where one of them is to come."""
        if memory.policy and self._lacks_policy() and not self._policy_papers(ring):
            return None
        in_force = memory.policy if self._ring_in_force(memory) == ring else 0
        basis = (memory.active, memory.unfit, memory.fallback, memory.earlier, in_force, directed)
        place = (memory.model, ring, directed is None, directed is not None and directed.is_staged)
        trusted = self._trusted()
        if trusted is not self._held_under:
            self._held, self._held_under = {}, trusted
        known = self._held.get(place)
        if known is None or known[0] != basis:
            found = self._gathered(ring, in_force, memory, directed)
            if found is None or len(found.fallbacks) < len(memory.line):
                return found  # manifests may come
            known = self._held[place] = (basis, found)
        return known[1]

    def _choose(self, held: tuples.Held) -> tuples.Choice:
        """What the one rule says now; it says the same until the next policy is forced."""
        now = self._now()
        known = self._chosen.get(held.model)
        if known is None or known[0] is not held or (known[1].forces_at or now + 1) <= now:
            known = self._chosen[held.model] = (held, tuples.choose(held, now))
        return known[1]

    def _gathered(
        self, ring: str, in_force: int, memory: Memory, directed: tuples.HeldRelease | None
    ) -> tuples.Held | None:
        last = memory.active or memory.unfit
        active = self._release(last) if last is not None else None
        if last is not None and active is None:
            return None
        spare = [self._release(pointer) for pointer in memory.line if last is None or pointer.release != last.release]
        papers, policies = self._policy_papers(ring), self._papers.policies(ring)
        in_force = in_force if in_force in papers else 0
        paper = papers.get(in_force)
        if paper is not None and not self._papers.is_signed(paper):
            since = [(policy, came) for policy, came in policies if came > paper.came]
            stays = self._papers.opened(paper)
            if since:
                in_force = 0
                policies = [(policy.model_copy(update={"hold_max_s": 0}), came) for policy, came in since]
            elif isinstance(stays, Policy):
                policies = [(stays, paper.came)]
        until = {number: one.newest_until for number, one in papers.items()}
        return tuples.Held(
            model=memory.model,
            active=active,
            directed=directed,
            fallbacks=tuple(release for release in spare if release is not None),
            configs=self._papers.configs(memory.model, last.config if last is not None else 0),
            policies=tuple(
                tuples.held_policy(policy, memory.model, came, until.get(policy.number, 0)) for policy, came in policies
            ),
            in_force=in_force,
        )

    # --- inside -------------------------------------------------------------------------------------------------------

    def _lacks_policy(self) -> bool:
        """Whether the ring has a policy of which nothing is here yet, or nothing but what can't be obeyed.

        In a first ring that one leaves number 0 in force, as in a ring without any.
        """
        return self._ruling()[2]

    def _is_policy_to_come(self, ring: Ring | None) -> bool:
        if ring is None or self._papers.head("policy", ring) == 0:
            return False
        held = self._policy_papers(ring).values()
        is_obeyed = any(not isinstance(self._papers.opened(paper), str) for paper in held)
        return not held or (not is_obeyed and self._former_ring() is not None)

    def _former_ring(self) -> str | None:
        """Another ring of which a policy is still held."""
        return next((ring for ring in self._papers.rings() if ring != self._ring()), None)

    def _ring_in_force(self, memory: Memory) -> str:
        """The ring of the policy in force for the model; where that wasn't kept, one that has such a number."""
        if memory.ring:
            return memory.ring
        own = self._ring() or ""
        if memory.policy == 0 or memory.policy in self._policy_papers(own):
            return self.policy_ring
        return self._former_ring() or own

    def _policy_papers(self, ring: str) -> Mapping[int, Paper]:
        return self._papers.of("policy", ring)

    def _fail_mode(self, model: str, release: bytes, policy: int, ring: str) -> FailMode:
        rules = tuples.held_policy(self.policy(policy, ring), model, 0)
        manifest = self._manifest(release)
        return rules.fail_mode or (manifest.fail_mode if manifest is not None else "safe")

    def _target(self, memory: Memory, *, is_staged: bool) -> tuples.HeldRelease | None:
        if memory.target is None:
            return None
        release = memory.target.release
        manifest = self._manifest(release)
        if manifest is None:
            return None
        known = self._targets.get((release, is_staged))
        if known is None:
            if len(self._targets) > MAX_MANIFESTS:
                self._targets.clear()
            known = tuples.release_from_manifest(manifest, release, is_staged=is_staged)
            self._targets[release, is_staged] = known
        return known

    def _release(self, pointer: Pointer) -> tuples.HeldRelease | None:
        manifest = self._manifest(pointer.release)
        if manifest is None:
            return None
        release = tuples.release_from_manifest(manifest, pointer.release)
        newest = max(self._papers.newest("config", manifest.model), self._papers.head("config", manifest.model))
        # A number above every one that counts was a thief's: nothing is passed over for it.
        passed_over = pointer.passed_over if pointer.passed_over <= newest else 0
        return replace(release, config=pointer.config, passed_over=passed_over)

    def _manifest(self, release: bytes) -> Manifest | None:
        found = self._manifests.get(release)
        if found is None:
            found = self._load_manifest(release)
            if len(self._manifests) > MAX_MANIFESTS:
                self._manifests.clear()
            if found is not None:
                self._manifests[release] = found
        return found


def _number(found: tuple[Policy, int]) -> int:
    return found[0].number

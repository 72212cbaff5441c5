"""Which release, config and policy may meet, and which of those a node holds it activates together.

This is the one place with the compatibility rule: a node asks it what to activate, what it waits for and which older
document to ask for; the hub asks it what a new document would do to the fleet. Nothing here knows how documents come,
how long fetching takes or what was denied: what may not serve isn't handed in.

The rules (`misfits`, `choose`):
1. A tuple fits when the release's ranges (its manifest's, or what the *tuple's* policy says instead) hold the numbers
    of config and policy, the config's generation, if it states one, is one the release accepts, if it states any, and
    the release's version isn't below the policy's floor.
2. Of the tuples that fit, of the directed release (once it is staged) and the active one: newest policy first, never
    one below that in force; then the directed release; then the newest config.
3. A newer policy that none of these fits is held, at most its `hold_max_s` from when it came. Then it is in force: the
    best fallback that fits serves; with none, the fail mode. Fallbacks are never taken for a policy that can wait.
    An older policy that came because it was asked for is never forced: a newer one stands behind it.
4. Rolling back restores a release with its config. Configs that came since, up to the one that was rolled back from,
    come last for it, or the choice would bring the same config back at once. Policy never goes back.
5. Number 0 stands for "no document". It is a candidate where no document is held, and where it was activated so.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from heliograph.manifest import Compatible, Manifest, Span
from heliograph.names import version_key
from heliograph.policy import Config, FailModeRule, ModelRules, Policy

ANY_NUMBER = Compatible()
NO_RULES = ModelRules()


@dataclass(frozen=True, slots=True)
class HeldRelease:
    """A release that may serve here.

    Attributes:
        is_staged: its whole image stands verified; a directed release without that is waited for.
        config: number of the config it was last active with here; None if it never was.
        passed_over: a rollback to it left this config: those up to it are taken only where `config` doesn't fit.
    """

    digest: bytes
    version: str
    compatible: Compatible = ANY_NUMBER
    generations: tuple[int, ...] = ()
    fail_mode: FailModeRule = "safe"
    is_staged: bool = True
    config: int | None = None
    passed_over: int = 0


@dataclass(frozen=True, slots=True)
class HeldConfig:
    """A config that is held.

    Attributes:
        newest_until: it is the newest published one up to this number, as the hub said when it was asked for by number.
    """

    number: int
    generation: int | None = None
    newest_until: int = 0


@dataclass(frozen=True, slots=True)
class HeldPolicy:
    """What a policy that is held means to one model.

    Attributes:
        came_at: estimated time at which it came; its `hold_max_s` counts from there.
        newest_until: as of a config.
    """

    number: int
    rules: ModelRules = NO_RULES
    fail_mode: FailModeRule | None = None
    hold_max_s: int = 3600
    came_at: int = 0
    newest_until: int = 0

    @property
    def forced_at(self) -> int:
        """When it is in force whatever fits it, if it came as the newest."""
        return self.came_at + self.hold_max_s


NO_CONFIG = HeldConfig(0)
NO_POLICY = HeldPolicy(0)


@dataclass(frozen=True, slots=True)
class Held:
    """What one node holds of one model.

    Attributes:
        active: what serves, or served last.
        directed: what the newest directive of the ring installs, unless it was refused; may be the active one.
        fallbacks: by the fallback rule, the best first.
        configs, policies: the documents held, in any order; always those in use. One whose signatures count no longer
            stands here under the number that it falls to.
        in_force: number of the policy in force for the model; the caller keeps what `Choice` says.
    """

    model: str
    active: HeldRelease | None = None
    directed: HeldRelease | None = None
    fallbacks: tuple[HeldRelease, ...] = ()
    configs: tuple[HeldConfig, ...] = ()
    policies: tuple[HeldPolicy, ...] = ()
    in_force: int = 0


class Lacks(NamedTuple):
    """Older documents to ask for: the newest published one up to this number; 0: none."""

    config: int = 0
    policy: int = 0


NO_LACKS = Lacks()
Standing = Literal["fits", "flagged", "stopped"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be active.

    Attributes:
        release: digest of what is to serve; None: nothing can.
        config, in_force: the numbers that go with it; `in_force` also where nothing fits, to be kept.
        standing: `fits`; else nothing fits the policy in force, and the fail mode says whether the release serves on,
            flagged, or is stopped.
        waits: what isn't taken yet and why, in words: document, field, both values.
        forces_at: when the next held policy comes into force whatever fits it; None: none is held back.
    """

    release: bytes | None
    config: int
    in_force: int
    standing: Standing = "fits"
    waits: tuple[str, ...] = ()
    forces_at: int | None = None


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why a tuple doesn't fit: which document, by which field of whom, and the two values."""

    document: str
    got: str
    field: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.document} is {self.got}, {self.field} wants {self.wanted}"


# --- from documents ---------------------------------------------------------------------------------------------------


def release_from_manifest(manifest: Manifest, digest: bytes, *, is_staged: bool = True) -> HeldRelease:
    """What the rule needs of a manifest."""
    return HeldRelease(
        digest=digest,
        version=manifest.version,
        compatible=manifest.compatible,
        generations=manifest.feature_schema.generations,
        fail_mode=manifest.fail_mode,
        is_staged=is_staged,
    )


def held_config(config: Config, newest_until: int = 0) -> HeldConfig:
    """What the rule needs of a config."""
    return HeldConfig(config.number, config.generation, newest_until)


def held_policy(policy: Policy, model: str, came_at: int, newest_until: int = 0) -> HeldPolicy:
    """What the rule needs of a policy, for one model."""
    rules = policy.models.get(model, NO_RULES)
    fail_mode = rules.fail_mode or policy.fail_mode
    return HeldPolicy(policy.number, rules, fail_mode, policy.hold_max_s, came_at, newest_until)


# --- the rule ---------------------------------------------------------------------------------------------------------


def ranges(release: HeldRelease, rules: ModelRules) -> tuple[Compatible, str]:
    """The ranges that count for the release under these rules, and what to call their owner."""
    replaced = rules.compatible.get(release.version)
    if replaced is None:
        return release.compatible, "compatible"
    return replaced, f"policy's compatible.{release.version}"


def misfits(model: str, release: HeldRelease, config: HeldConfig, policy: HeldPolicy) -> tuple[Misfit, ...]:
    """Why these three may not meet, policy first; empty if they may."""
    return (*_policy_misfits(model, release, policy), *_config_misfits(model, release, config, policy))


def is_compatible(release: HeldRelease, config: HeldConfig, policy: HeldPolicy) -> bool:
    """Whether these three may meet."""
    return not misfits("", release, config, policy)


def _policy_misfits(model: str, release: HeldRelease, policy: HeldPolicy) -> Iterator[Misfit]:
    spans, owner = ranges(release, policy.rules)
    name = f"{model}@{release.version}"
    yield from _outside("policy", policy.number, spans.policy, f"{owner}.policy", name)
    floor = policy.rules.floor
    if floor is not None and version_key(release.version) < version_key(floor):
        yield Misfit(f"release {name}", release.version, f"models.{model}.floor of policy {policy.number}", floor)


def _config_misfits(model: str, release: HeldRelease, config: HeldConfig, policy: HeldPolicy) -> Iterator[Misfit]:
    spans, owner = ranges(release, policy.rules)
    name = f"{model}@{release.version}"
    yield from _outside(f"config/{model}", config.number, spans.config, f"{owner}.config", name)
    if config.generation is not None and release.generations and config.generation not in release.generations:
        document = f"generation of config/{model} {config.number}"
        wanted = " or ".join(map(str, release.generations))
        yield Misfit(document, str(config.generation), f"schema.generations of {name}", wanted)


def _outside(document: str, number: int, span: Span, field: str, name: str) -> Iterator[Misfit]:
    if number < span.min:
        yield Misfit(document, str(number), f"{field}.min of {name}", f"{span.min} or newer")
    if span.max is not None and number > span.max:
        yield Misfit(document, str(number), f"{field}.max of {name}", f"{span.max} or older")


# --- choosing ---------------------------------------------------------------------------------------------------------


def choose(held: Held, now: int) -> Choice:
    """What is to be active of all that is held, and what it waits for."""
    chosen = _choose(held, now)
    ahead = [policy.forced_at for policy in _forcing(held) if policy.number > chosen.in_force]
    return replace(chosen, waits=tuple(dict.fromkeys(_waits(held, chosen))), forces_at=min(ahead, default=None))


def fitting(held: Held, release: HeldRelease) -> tuple[HeldConfig, HeldPolicy] | None:
    """The newest policy, then newest config, that the release may be activated with; None: not now."""
    for policy in _policies(held, held.in_force):
        config = _newest_config(held, release, policy)
        if config is not None:
            return config, policy
    return None


def least(held: Held, now: int) -> int:
    """The lowest policy number that may be in force now."""
    return max(held.in_force, *(policy.number for policy in _forcing(held) if now >= policy.forced_at), 0)


def _choose(held: Held, now: int) -> Choice:
    lowest = least(held, now)
    wanted = held.directed if held.directed is not None and held.directed.is_staged else None
    first = [release for release in (wanted, held.active) if release is not None]
    for policy in _policies(held, lowest):
        for release in first:
            config = _newest_config(held, release, policy)
            if config is not None:
                return Choice(release.digest, config.number, policy.number)
    return _fall_back(held, lowest)


def _fall_back(held: Held, lowest: int) -> Choice:
    for release in held.fallbacks:
        for policy in _policies(held, lowest):
            config = _newest_config(held, release, policy)
            if config is not None:
                return Choice(release.digest, config.number, policy.number)
    last = held.active or next(iter(held.fallbacks), None)
    if last is None:
        return Choice(None, 0, lowest, "stopped")
    in_force = next((policy for policy in held.policies if policy.number == lowest), NO_POLICY)
    is_safe = (in_force.fail_mode or last.fail_mode) == "safe"
    return Choice(last.digest, last.config or 0, lowest, "flagged" if is_safe else "stopped")


def _forcing(held: Held) -> list[HeldPolicy]:
    """Those that come into force by time: they came before any newer one did."""
    found = []
    since = None
    for policy in sorted(held.policies, key=lambda policy: policy.number, reverse=True):
        if since is None or policy.came_at < since:
            found.append(policy)
            since = policy.came_at
    return found


def _policies(held: Held, lowest: int) -> list[HeldPolicy]:
    """Those that may be in force, the newest first; 0 only for what serves already, or where none is held."""
    found = {policy.number: policy for policy in held.policies if policy.number >= lowest}
    if lowest == 0 and (held.active is not None or held.fallbacks or not found):
        found.setdefault(0, NO_POLICY)
    return [found[number] for number in sorted(found, reverse=True)]


def _newest_config(held: Held, release: HeldRelease, policy: HeldPolicy) -> HeldConfig | None:
    if any(True for _ in _policy_misfits(held.model, release, policy)):
        return None
    return next((config for config in _configs(held, release) if is_compatible(release, config, policy)), None)


def _configs(held: Held, release: HeldRelease) -> list[HeldConfig]:
    """Those that may be taken for the release, the best first: the newest; of those passed over, its own first."""
    found = {config.number: config for config in held.configs}
    if not found or release.config == 0:
        found.setdefault(0, NO_CONFIG)

    def rank(number: int) -> tuple[bool, bool, int]:
        is_new = number > release.passed_over
        return is_new, not is_new and number == release.config, number

    return [found[number] for number in sorted(found, key=rank, reverse=True)]


# --- what is waited for -----------------------------------------------------------------------------------------------


def _waits(held: Held, chosen: Choice) -> Iterator[str]:
    """Why the directed release, a newer policy or a newer config isn't taken."""
    policies = _policies(held, chosen.in_force)
    kept = {release.digest: release for release in (*held.fallbacks, held.active, held.directed) if release is not None}
    if held.directed is not None and held.directed.digest != chosen.release and policies:
        if fitting(replace(held, in_force=chosen.in_force), held.directed) is None:
            configs = _configs(held, held.directed) or [NO_CONFIG]
            yield from map(str, misfits(held.model, held.directed, configs[0], policies[0]))
        elif held.directed.is_staged:
            yield from map(str, _policy_misfits(held.model, held.directed, policies[0]))
    release = kept.get(chosen.release) if chosen.release is not None else None
    if release is None:
        return
    in_force = next((policy for policy in held.policies if policy.number == chosen.in_force), NO_POLICY)
    for policy in policies:
        if policy.number > chosen.in_force:
            newest = next(iter(_configs(held, release)), NO_CONFIG)
            why = "; ".join(map(str, misfits(held.model, release, newest, policy)))
            yield f"policy {policy.number} is held back: {why}"
    if chosen.standing != "fits":
        own = next((config for config in held.configs if config.number == chosen.config), HeldConfig(chosen.config))
        yield from map(str, misfits(held.model, release, own, in_force))
        return
    for config in _configs(held, release):
        if config.number > chosen.config:
            why = "; ".join(map(str, _config_misfits(held.model, release, config, in_force)))
            why = why or f"config {release.passed_over} was rolled back from, what is newer is taken"
            yield f"config/{held.model} {config.number} is held back: {why}"


def lacks(held: Held) -> Lacks:
    """Which older published documents could give a better choice than those held; each answer narrows the question.

    Of all numbers that could help the highest is asked for: where that gets no answer, none of the others was published
    either. To ask for the most wanted one first would let one that doesn't exist hide those that do.
    """
    coming = replace(held.directed, is_staged=True) if held.directed is not None else None
    with_coming = _lacks(held, [release for release in (coming, held.active) if release is not None])
    without = _lacks(held, [held.active] if held.active is not None else [])
    return Lacks(max(with_coming.config, without.config), max(with_coming.policy, without.policy))


def _lacks(held: Held, releases: list[HeldRelease]) -> Lacks:
    if not releases:
        return NO_LACKS
    config = 0
    for policy in _policies(held, held.in_force):
        for release in releases:
            if any(True for _ in _policy_misfits(held.model, release, policy)):
                continue
            best = _newest_config(held, release, policy)
            span = ranges(release, policy.rules)[0].config
            above = span.min - 1
            if best is not None:
                above = max(best.number, release.passed_over if best.number == release.config else 0)
            config = max(config, _unknown(held.configs, above, span.max))
            if best is not None:
                return Lacks(config, _unknown(held.policies, policy.number, None))
    return Lacks(config, _unknown(held.policies, held.in_force - 1, None))


def _unknown(known: Iterable[HeldConfig | HeldPolicy], above: int, most: int | None) -> int:
    """The highest number over `above`, up to `most`, of which nothing is known; 0: none.

    What is newer than the newest held comes by itself.
    """
    covered = sorted(((one.number, max(one.number, one.newest_until)) for one in known), reverse=True)
    if not covered:
        return 0
    number = covered[0][0]
    if most is not None:
        number = min(number, most)
    for low, high in covered:
        if low <= number <= high:
            number = low - 1
    return number if number > above else 0

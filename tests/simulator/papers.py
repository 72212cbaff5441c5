"""Policies and configs of a world: what its operators set, in any order and with any ranges, as the hub publishes it.

Ranges come from two sides: some releases of the catalogue state them, and a policy may replace those of any version.
"""

from random import Random

from heliograph.deadlines import DEADLINES
from heliograph.documents import Numbers
from heliograph.manifest import Compatible, Span
from heliograph.names import Digest, Ring
from heliograph.policy import Config, ModelRules, Policy, no_config, no_policy
from heliograph.tuples import held_config, held_policy, is_compatible, release_from_manifest
from simulator import catalogue
from simulator.road import Message

HOLDS = (0, 0, 120, 600, 1800)
# Longer than a node that hears the hub is silent, so that calm ends what being alone began.
OFF_LINE_S = (2 * int(DEADLINES.check_in_s), 30 * 86_400, int(1.2 * DEADLINES.check_in_s))
RINGS: tuple[Ring, ...] = ("canary", "early")


class Papers:
    """Everything that was published, by scope and number."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self.policies: dict[str, dict[int, Policy]] = {}
        self.configs: dict[str, dict[int, Config]] = {}
        self._statements: dict[tuple[str, str, int], bytes] = {}

    # --- what operators do --------------------------------------------------------------------------------------------

    def set_policy(self, ring: Ring, at: int) -> Policy:
        """The ring's next policy."""
        number = max(self.policies.setdefault(ring, {}), default=0) + self._rng.choice([1, 1, 1, 2])
        models = {model: self._rules(model, number) for model in catalogue.MODELS if self._rng.random() < 0.6}
        return self._policy(ring, number, at, self._rng.choice(HOLDS), models)

    def outlaw(self, ring: Ring, model: str, versions: list[str], at: int) -> Policy:
        """The next policy forbids these versions, and takes effect at once; with none, it forbids nothing."""
        number = max(self.policies.setdefault(ring, {}), default=0) + 1
        never = Compatible(policy=Span(min=number + 1000))
        return self._policy(ring, number, at, 0, {model: ModelRules(compatible=dict.fromkeys(versions, never))})

    def _policy(self, ring: Ring, number: int, at: int, hold_max_s: int, models: dict[str, ModelRules]) -> Policy:
        fail_mode = self._rng.choice([None, None, "safe", "closed"])
        policy = Policy(
            realm=catalogue.REALM, ring=ring, number=number, at=at, hold_max_s=hold_max_s, fail_mode=fail_mode,
            models=models, max_offline_s=self._rng.choice(OFF_LINE_S),
            at_max_offline=self._rng.choice(["serve", "fall-back", "stop"]),
        )  # fmt: skip
        self.policies[ring][number] = policy
        signed = catalogue.signed("policy", policy.encode(), catalogue.signers("policy"))
        self._statements["policy", ring, number] = signed
        return policy

    def set_config(self, model: str, at: int) -> Config:
        """The model's next config."""
        number = max(self.configs.setdefault(model, {}), default=0) + self._rng.choice([1, 1, 1, 2])
        generation = self._rng.choice([None, None, 1, 2, 3])
        config = Config(realm=catalogue.REALM, model=model, number=number, at=at, generation=generation)
        self.configs[model][number] = config
        signed = catalogue.signed("config", config.encode(), catalogue.signers(f"config-{model}"))
        self._statements["config", model, number] = signed
        return config

    def _rules(self, model: str, number: int) -> ModelRules:
        rng = self._rng
        newest = max(self.configs.get(model, {}), default=0)
        spans = {
            f"1.{rng.randint(1, len(catalogue.KINDS))}.0": Compatible(
                config=self._span(newest), policy=self._span(number)
            )
            for _ in range(rng.choice([0, 0, 1, 2]))
        }
        floor = f"1.{rng.randint(1, 3)}.0" if rng.random() < 0.15 else None
        return ModelRules(compatible=spans, floor=floor)

    def _span(self, about: int) -> Span:
        low = self._rng.choice([0, 0, about, about + 1])
        return Span(min=low, max=self._rng.choice([None, None, max(low, about), max(low, about + 1)]))

    # --- what the hub sends -------------------------------------------------------------------------------------------

    def heads(self) -> tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]:
        """The newest numbers: (by ring, by model)."""
        policies = tuple((ring, max(found)) for ring, found in sorted(self.policies.items()))
        return policies, tuple((model, max(found)) for model, found in sorted(self.configs.items()))

    def message(self, kind: str, scope: str, up_to: int | None = None) -> Message | None:
        """The newest published one, or the newest up to this number."""
        found = self.policies.get(scope, {}) if kind == "policy" else self.configs.get(scope, {})
        number = max((n for n in found if up_to is None or n <= up_to), default=None)
        if number is None:
            return None
        return (kind, {"ring" if kind == "policy" else "model": scope}, self._statements[kind, scope, number])

    def answers(self, ring: str, numbers: Numbers, lacks: Numbers) -> list[Message]:
        """What a hello is answered with."""
        found = []
        for kind, scope, held, lacked in (
            ("policy", ring, numbers.policy, lacks.policy),
            *(("config", m, numbers.config.get(m, 0), lacks.config.get(m, 0)) for m in catalogue.MODELS),
        ):
            newest = self.policies.get(scope, {}) if kind == "policy" else self.configs.get(scope, {})
            if max(newest, default=0) > held:
                found.append(self.message(kind, scope))
            if lacked:
                found.append(self.message(kind, scope, lacked))
        return [message for message in found if message is not None]

    # --- what the makers of the world know ----------------------------------------------------------------------------

    def policy(self, ring: str, number: int) -> Policy:
        return self.policies.get(ring, {}).get(number) or no_policy(catalogue.REALM, "canary")

    def config(self, model: str, number: int) -> Config:
        return self.configs.get(model, {}).get(number) or no_config(catalogue.REALM, model)

    def fits(self, model: str, release: bytes, config: int, ring: str, policy: int) -> bool:
        """Whether these three may meet."""
        known = release_from_manifest(catalogue.manifest(Digest(release)), release)
        rules = held_policy(self.policy(ring, policy), model, 0)
        return is_compatible(known, held_config(self.config(model, config)), rules)

    def best(self, model: str, release: bytes, ring: str) -> int | None:
        """The newest published config with which the release fits the ring's newest policy; None: there is none."""
        newest = max(self.policies.get(ring, {}), default=0)
        numbers = sorted(self.configs.get(model, {0: None}), reverse=True)
        return next((n for n in numbers if self.fits(model, release, n, ring, newest)), None)

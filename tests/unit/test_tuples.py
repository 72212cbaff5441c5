"""The compatibility rule and the choice it leads to, as tables; `test_tuples_in_any_order` has what is random."""

from dataclasses import replace

import pytest

from golden import CONFIG, MANIFEST, POLICY, RELEASE
from heliograph.manifest import Compatible, Span
from heliograph.policy import ModelRules, no_config, no_policy
from heliograph.tuples import (
    NO_CONFIG,
    NO_POLICY,
    Held,
    HeldConfig,
    HeldPolicy,
    HeldRelease,
    Lacks,
    choose,
    fitting,
    held_config,
    held_policy,
    is_compatible,
    lacks,
    misfits,
    release_from_manifest,
)

HOUR, NOW = 3600, 1_795_000_000


def span(low: int = 0, high: int | None = None) -> Span:
    return Span(min=low, max=high)


def a_release(name: str, version: str, config: Span | None = None, policy: Span | None = None) -> HeldRelease:
    ranges = Compatible(config=config or Span(), policy=policy or Span())
    return HeldRelease(digest=name.encode(), version=version, compatible=ranges, config=0)


def a_policy(number: int, came_at: int = NOW, hold_max_s: int = HOUR, **rules: object) -> HeldPolicy:
    return HeldPolicy(number, ModelRules.model_validate(rules), None, hold_max_s, came_at)


ACTIVE = a_release("A", "1.0.0")
OLD_ONLY = a_release("A", "1.0.0", policy=span(0, 3))
NEW_ONLY = a_release("T", "1.1.0", policy=span(4))
FALLBACK = a_release("F", "0.9.0")


# --- what fits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "config", "policy", "why"),
    [
        (ACTIVE, NO_CONFIG, NO_POLICY, []),
        (a_release("A", "1.0.0", span(1, 4)), HeldConfig(1), NO_POLICY, []),
        (a_release("A", "1.0.0", span(1, 4)), HeldConfig(4), NO_POLICY, []),
        (a_release("A", "1.0.0", span(1, 4)), NO_CONFIG, NO_POLICY,
         ["config/digits is 0, compatible.config.min of digits@1.0.0 wants 1 or newer"]),
        (a_release("A", "1.0.0", span(1, 4)), HeldConfig(5), NO_POLICY,
         ["config/digits is 5, compatible.config.max of digits@1.0.0 wants 4 or older"]),
        (OLD_ONLY, NO_CONFIG, a_policy(3), []),
        (OLD_ONLY, NO_CONFIG, a_policy(4), ["policy is 4, compatible.policy.max of digits@1.0.0 wants 3 or older"]),
        (NEW_ONLY, NO_CONFIG, a_policy(3), ["policy is 3, compatible.policy.min of digits@1.1.0 wants 4 or newer"]),
        (replace(ACTIVE, generations=(1, 2)), HeldConfig(1, 2), NO_POLICY, []),
        (replace(ACTIVE, generations=(1, 2)), HeldConfig(1, None), NO_POLICY, []),
        (replace(ACTIVE, generations=()), HeldConfig(1, 3), NO_POLICY, []),
        (replace(ACTIVE, generations=(1, 2)), HeldConfig(1, 3), NO_POLICY,
         ["generation of config/digits 1 is 3, schema.generations of digits@1.0.0 wants 1 or 2"]),
        (ACTIVE, NO_CONFIG, a_policy(2, floor="1.0.0"), []),
        (ACTIVE, NO_CONFIG, a_policy(2, floor="1.0.1"),
         ["release digits@1.0.0 is 1.0.0, models.digits.floor of policy 2 wants 1.0.1"]),
        (replace(ACTIVE, version="0.10.0"), NO_CONFIG, a_policy(2, floor="0.9.0"), []),
        (OLD_ONLY, NO_CONFIG, a_policy(4, compatible={"1.0.0": Compatible()}), []),
        (ACTIVE, HeldConfig(1), a_policy(4, compatible={"1.0.0": Compatible(config=span(2))}),
         ["config/digits is 1, policy's compatible.1.0.0.config.min of digits@1.0.0 wants 2 or newer"]),
        (OLD_ONLY, NO_CONFIG, a_policy(4, compatible={"1.0.1": Compatible()}),
         ["policy is 4, compatible.policy.max of digits@1.0.0 wants 3 or older"]),
    ],
)  # fmt: skip
def test_what_may_meet_and_why_not(
    release: HeldRelease, config: HeldConfig, policy: HeldPolicy, why: list[str]
) -> None:
    assert [str(misfit) for misfit in misfits("digits", release, config, policy)] == why
    assert is_compatible(release, config, policy) == (not why)


def test_documents_mean_to_the_rule_what_they_say() -> None:
    release = release_from_manifest(MANIFEST, RELEASE)
    assert (release.version, release.generations, release.fail_mode) == ("1.4.0", (1, 2), "safe")
    assert release.compatible.config == span(1, 4)
    assert held_config(CONFIG, 9) == HeldConfig(2, 1, 9)
    policy = held_policy(POLICY, "digits", NOW)
    assert (policy.number, policy.rules.floor, policy.fail_mode, policy.hold_max_s) == (4, "1.2.0", "safe", 0)
    assert held_policy(POLICY, "faces", NOW).fail_mode == "closed", "the ring's, where the model has none"
    assert is_compatible(release, held_config(CONFIG), policy)
    assert not is_compatible(release, held_config(no_config("demo", "digits")), policy)


def test_without_documents_number_0_fits_whatever_sets_no_minimum() -> None:
    none = held_policy(no_policy("demo", "canary"), "digits", 0)
    assert is_compatible(ACTIVE, NO_CONFIG, none)
    assert not is_compatible(NEW_ONLY, NO_CONFIG, none)


# --- what is chosen ---------------------------------------------------------------------------------------------------


def chosen(held: Held, now: int = NOW) -> tuple[str, int, int, str]:
    choice = choose(held, now)
    return (choice.release or b"-").decode(), choice.config, choice.in_force, choice.standing


def test_newest_policy_goes_before_the_directed_release_and_that_before_the_newest_config() -> None:
    directed = a_release("T", "1.1.0", policy=span(0, 3))
    held = Held("digits", ACTIVE, directed, policies=(a_policy(3), a_policy(4)), in_force=3)
    assert chosen(held) == ("A", 0, 4, "fits")
    held = replace(held, policies=(a_policy(3),), configs=(HeldConfig(1), HeldConfig(2, 7)))
    assert chosen(held) == ("T", 2, 3, "fits")
    held = replace(held, directed=replace(directed, generations=(1,)))
    assert chosen(held) == ("T", 1, 3, "fits"), "though the active one could have the newer config"


def test_a_directed_release_that_is_not_staged_is_waited_for() -> None:
    coming = replace(NEW_ONLY, is_staged=False, config=None)
    held = Held("digits", ACTIVE, coming, policies=(a_policy(4),))
    assert chosen(held) == ("A", 0, 4, "fits")
    assert chosen(replace(held, directed=NEW_ONLY)) == ("T", 0, 4, "fits")


def test_a_policy_that_nothing_fits_is_held_for_its_time_and_no_longer() -> None:
    held = Held("digits", OLD_ONLY, None, (FALLBACK,), policies=(a_policy(3), a_policy(4, NOW + 1)), in_force=3)
    assert chosen(held, NOW + HOUR) == ("A", 0, 3, "fits")
    assert choose(held, NOW + HOUR).forces_at == NOW + 1 + HOUR
    assert chosen(held, NOW + 1 + HOUR) == ("F", 0, 4, "fits"), "the best fallback that fits"
    assert choose(held, NOW + 1 + HOUR).forces_at is None


def test_an_immediate_policy_is_not_held_at_all() -> None:
    held = Held("digits", OLD_ONLY, policies=(a_policy(3), a_policy(4, hold_max_s=0, came_at=NOW + 1)), in_force=3)
    assert chosen(held, NOW + 1) == ("A", 0, 4, "flagged")


@pytest.mark.parametrize(
    ("of_policy", "of_manifest", "standing"),
    [(None, "safe", "flagged"), (None, "closed", "stopped"), ("closed", "safe", "stopped"),
     ("safe", "closed", "flagged")],
)  # fmt: skip
def test_with_nothing_that_fits_the_fail_mode_counts_that_of_the_policy_first(
    of_policy: str | None, of_manifest: str, standing: str
) -> None:
    forced = replace(a_policy(4, hold_max_s=0), fail_mode=of_policy)
    active = replace(OLD_ONLY, fail_mode=of_manifest)
    assert chosen(Held("digits", active, policies=(forced,), in_force=3)) == ("A", 0, 4, standing)
    held = Held("digits", active, NEW_ONLY, policies=(forced,), in_force=4)
    assert chosen(held) == ("T", 0, 4, "fits"), "what fits ends it"


def test_fallbacks_are_not_taken_for_a_policy_that_can_wait() -> None:
    held = Held("digits", OLD_ONLY, None, (FALLBACK,), policies=(a_policy(3), a_policy(4, NOW + 1)), in_force=3)
    assert chosen(held) == ("A", 0, 3, "fits")


def test_a_policy_never_goes_back_though_an_older_one_would_fit() -> None:
    held = Held("digits", OLD_ONLY, policies=(a_policy(3), a_policy(4)), in_force=4)
    assert chosen(held)[2] == 4


def test_an_older_policy_that_was_asked_for_is_taken_if_it_fits_and_never_forced() -> None:
    newest, older = a_policy(6, NOW), a_policy(5, NOW + 1, hold_max_s=0)
    active = a_release("A", "1.0.0", policy=span(0, 5))
    held = Held("digits", active, policies=(a_policy(3, NOW - 1), newest, older), in_force=3)
    assert chosen(held, NOW + 2) == ("A", 0, 5, "fits")
    held = replace(held, active=OLD_ONLY)
    assert chosen(held, NOW + 2) == ("A", 0, 3, "fits"), "a newer one stands behind it"
    assert chosen(held, NOW + HOUR)[2] == 6


def test_a_node_that_never_served_does_not_begin_with_less_than_the_policies_it_holds() -> None:
    picky = replace(a_release("T", "1.1.0", policy=span(0, 3)), config=None)
    assert chosen(Held("digits", directed=picky, policies=(a_policy(4),))) == ("-", 0, 0, "stopped")
    assert chosen(Held("digits", directed=picky)) == ("T", 0, 0, "fits")
    assert chosen(Held("digits", picky, policies=(a_policy(4),))) == ("T", 0, 0, "fits"), (
        "what serves goes on meanwhile"
    )


def test_a_release_does_not_begin_without_a_config_where_there_are_some() -> None:
    new = replace(a_release("T", "1.1.0"), config=None, generations=(2,))
    assert chosen(Held("digits", ACTIVE, new, configs=(HeldConfig(1, 1),))) == ("A", 1, 0, "fits")
    assert chosen(Held("digits", ACTIVE, new, configs=(HeldConfig(1, 1), HeldConfig(2, 2)))) == ("T", 2, 0, "fits")
    assert chosen(Held("digits", ACTIVE, new)) == ("T", 0, 0, "fits")


# --- going back -------------------------------------------------------------------------------------------------------


def test_rolling_back_restores_the_release_with_its_config_and_the_choice_leaves_it_so() -> None:
    restored = replace(FALLBACK, config=1, passed_over=2)
    held = Held("digits", restored, None, (), (HeldConfig(1), HeldConfig(2)), (a_policy(4),), in_force=4)
    assert chosen(held) == ("F", 1, 4, "fits")
    assert chosen(replace(held, active=replace(restored, passed_over=0))) == ("F", 2, 4, "fits")
    assert chosen(replace(held, configs=(*held.configs, HeldConfig(3)))) == ("F", 3, 4, "fits"), "what came since"


def test_a_config_passed_over_is_taken_where_a_newer_policy_fits_no_other() -> None:
    active = replace(FALLBACK, config=1, passed_over=2)
    strict = a_policy(5, compatible={"0.9.0": Compatible(config=span(2))})
    held = Held("digits", active, None, (), (HeldConfig(1), HeldConfig(2)), (a_policy(4), strict), in_force=4)
    assert chosen(held) == ("F", 2, 5, "fits")


def test_rolling_back_takes_the_newest_config_that_fits_where_its_own_does_not() -> None:
    strict = a_policy(4, compatible={"0.9.0": Compatible(config=span(2, 3))})
    configs = tuple(HeldConfig(number) for number in (1, 2, 3, 4))
    restored = replace(FALLBACK, config=1, passed_over=4)
    assert chosen(Held("digits", restored, None, (), configs, (strict,), in_force=4)) == ("F", 3, 4, "fits")


def test_what_is_rolled_back_to_and_fits_no_policy_in_force_gives_way_to_the_next_fallback() -> None:
    held = Held("digits", OLD_ONLY, None, (FALLBACK,), policies=(a_policy(4),), in_force=4)
    assert chosen(held) == ("F", 0, 4, "fits")
    assert chosen(replace(held, fallbacks=())) == ("A", 0, 4, "flagged")
    assert chosen(Held("digits", policies=(a_policy(4),), in_force=4)) == ("-", 0, 4, "stopped")


# --- what is waited for and asked for --------------------------------------------------------------------------------


def test_what_waits_is_said_with_document_field_and_both_values() -> None:
    new = replace(a_release("T", "1.1.0", config=span(3)), config=None)
    held = Held("digits", OLD_ONLY, new, configs=(HeldConfig(2),), policies=(a_policy(3), a_policy(4)), in_force=3)
    assert choose(held, NOW).waits == (
        "config/digits is 2, compatible.config.min of digits@1.1.0 wants 3 or newer",
        "policy 4 is held back: policy is 4, compatible.policy.max of digits@1.0.0 wants 3 or older",
    )
    done = Held("digits", ACTIVE, ACTIVE, configs=(HeldConfig(2),), policies=(a_policy(3),), in_force=3)
    assert choose(done, NOW).waits == ()


def test_a_config_held_back_and_a_release_outside_the_matrix_say_why() -> None:
    picky = replace(ACTIVE, generations=(1,), config=1)
    held = Held("digits", picky, configs=(HeldConfig(1, 1), HeldConfig(2, 2)))
    assert choose(held, NOW).waits == (
        "config/digits 2 is held back: generation of config/digits 2 is 2, schema.generations of digits@1.0.0 wants 1",
    )
    back = Held("digits", replace(ACTIVE, config=1, passed_over=2), configs=(HeldConfig(1), HeldConfig(2)))
    assert choose(back, NOW).waits == (
        "config/digits 2 is held back: config 2 was rolled back from, what is newer is taken",
    )
    forced = Held("digits", OLD_ONLY, policies=(a_policy(4),), in_force=4)
    assert choose(forced, NOW).waits == ("policy is 4, compatible.policy.max of digits@1.0.0 wants 3 or older",)


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        (Held("digits"), Lacks()),
        (Held("digits", ACTIVE), Lacks()),
        (Held("digits", ACTIVE, configs=(HeldConfig(7),)), Lacks()),
        # The newest is too new: the newest that fits is asked for.
        (Held("digits", None, a_release("T", "1.1.0", span(2, 4)), configs=(HeldConfig(7),)), Lacks(config=4)),
        # 3 was the answer, of another generation: the question goes on below it.
        (Held("digits", None, replace(a_release("T", "1.1.0", span(2, 4)), generations=(1,)),
              configs=(HeldConfig(7), HeldConfig(3, 2, newest_until=4))), Lacks(config=2)),
        (Held("digits", None, replace(a_release("T", "1.1.0", span(2, 4)), generations=(1,)),
              configs=(HeldConfig(7), HeldConfig(3, 2, newest_until=4), HeldConfig(2, 2))), Lacks()),
        (Held("digits", None, a_release("T", "1.1.0", span(2, 4)), configs=(HeldConfig(7), HeldConfig(4))), Lacks()),
        (Held("digits", None, a_release("T", "1.1.0", span(8)), configs=(HeldConfig(7),)), Lacks()),
        # A policy between that in force and the newest may fit.
        (Held("digits", OLD_ONLY, policies=(a_policy(3), a_policy(6)), in_force=3), Lacks(policy=5)),
        (Held("digits", OLD_ONLY, policies=(a_policy(3), a_policy(4), a_policy(6)), in_force=3), Lacks(policy=5)),
        (Held("digits", OLD_ONLY, policies=(a_policy(3), a_policy(4)), in_force=3), Lacks()),
        (Held("digits", ACTIVE, policies=(a_policy(3), a_policy(6)), in_force=3), Lacks()),
        (Held("digits", OLD_ONLY, policies=(a_policy(6),), in_force=6), Lacks()),
        # Not staged yet counts: its documents come meanwhile.
        (Held("digits", ACTIVE, replace(a_release("T", "1.1.0", span(2, 4)), is_staged=False),
              configs=(HeldConfig(7),)), Lacks(config=4)),
    ],
)  # fmt: skip
def test_which_older_documents_are_asked_for(held: Held, wanted: Lacks) -> None:
    assert lacks(held) == wanted


def test_a_number_that_was_never_published_hides_no_other() -> None:
    # Policy 5 wants config 1, which doesn't exist; policy 4 wants 5 or 6. The higher question is asked.
    one = a_policy(5, compatible={"1.0.0": Compatible(config=span(1, 1))})
    other = a_policy(4, compatible={"1.0.0": Compatible(config=span(5, 6))})
    active = replace(ACTIVE, config=7)
    held = Held("digits", active, configs=(HeldConfig(7),), policies=(a_policy(2), other, one), in_force=2)
    assert lacks(held).config == 6


def test_whether_a_release_could_be_activated_with_what_is_held() -> None:
    held = Held("digits", ACTIVE, configs=(HeldConfig(2),), policies=(a_policy(3),), in_force=3)
    assert fitting(held, ACTIVE) == (HeldConfig(2), a_policy(3))
    assert fitting(held, NEW_ONLY) is None


def test_the_newest_config_replaces_the_one_that_serves() -> None:
    active = replace(ACTIVE, config=1)
    assert choose(Held(model="digits", active=active, configs=(HeldConfig(1), HeldConfig(2))), NOW).config == 2

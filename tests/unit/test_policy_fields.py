"""Every field of policy and config, and every sentence on being off line, has tests that name what it does.

The tables say which. A test holds them to the fields and sentences there are, and to the tests there are.
"""

import re
import tomllib
from pathlib import Path

import pytest

from heliograph.policy import CONFIG_FIELDS, FIELDS, config_from_table, explain, explain_config, policy_from_table

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "shared" / "POLICY.md").read_text()

UNIT = "tests/unit"
TUPLES, ECONOMY, RULES = (f"{UNIT}/test_{name}.py" for name in ("tuples", "economy", "rules"))
POLICY, ANY_ORDER = f"{UNIT}/test_policy.py", f"{UNIT}/test_tuples_in_any_order.py"

_CRIT = f"{POLICY}::test_an_unknown_field_is_ignored_unless_crit_names_it"
_MATRIX = f"{TUPLES}::test_what_may_meet_and_why_not"
_WINDOW = f"{ECONOMY}::test_a_window_is_open_from_its_time_for_as_long_as_it_says"
_DST = f"{ECONOMY}::test_a_window_follows_the_clocks_of_the_site_when_they_change"
_BUDGET = f"{ECONOMY}::test_what_is_left_of_a_budget_and_when_there_is_more"
_PACED = f"{ECONOMY}::test_who_has_to_wait_for_the_others"
_MODEL = f"{RULES}::test_what_is_said_of_a_model_goes_before_what_is_said_of_the_ring"
_GATES = f"{RULES}::test_a_policy_tightens_gates_and_never_loosens_one"
_REDACTED = f"{RULES}::test_what_may_not_leave_the_site_is_left_out_before_it_is_stored"
_LIMITS = f"{RULES}::test_every_class_of_work_has_the_limits_of_the_policy_or_none"
_OFFLINE = f"{RULES}::test_after_too_long_without_the_hubs_word_the_node_does_what_its_policy_says"
_IMMEDIATE = f"{RULES}::test_an_immediate_item_is_overdue_where_its_policy_is_not_in_force_in_time"
_VERSIONS = f"{RULES}::test_versions_behind_are_counted_in_minor_versions_that_are_admissible"
_SECURITY = f"{RULES}::test_a_security_release_or_a_newer_one_must_serve_in_time"
_CADENCE = f"{ECONOMY}::test_the_cadence_holds_back_what_is_new_and_no_security_release"
_CONFIG = f"{POLICY}::test_a_config_file_is_the_document_that_it_states"
_COMPATIBLE = "models.<model>.compatible.<version>"

_TUNED = "tests/integration/test_tuned.py::test_what_answers_is_tuned_in_place_and_nothing_else_is"
_NO_HUB = "tests/integration/test_offline.py"
_SERVES_ON = f"{_NO_HUB}::test_it_serves_on_keeps_its_fallback_judges_health_rolls_back_and_records_all_alone"
_AWAY = f"{_NO_HUB}::test_policy_at_max_offline_s_it_does_what_policy_says_until_the_hub_is_heard"
_LATE = f"{_NO_HUB}::test_policy_staleness_is_judged_alone_and_told_when_it_begins_and_ends"
_DECLINED = (
    f"{UNIT}/test_versions.py::test_a_policy_or_config_that_an_agent_can_not_obey_is_declined_and_told_with_its_number"
)
_OFFERED = f"{UNIT}/test_offers.py::test_what_policy_says_is_what_the_next_node_is_told_also_after_a_restart"
_SIMULATED = f"{UNIT}/test_simulation.py::test_what_a_document_does_to_a_node"
_ALLOWANCE, _ALLOWED, _OUTBOX = (
    f"{UNIT}/test_allowance.py",
    "tests/integration/test_allowed.py",
    f"{UNIT}/test_outbox.py",
)
_ACTIVATING = f"{_ALLOWANCE}::test_policy_cadence_s_and_windows_hold_activating_back"
_STANDS_IN = (
    f"{UNIT}/test_machine_aside.py::test_the_fallback_stands_in_and_what_is_committed_comes_back_and_nothing_is_refused"
)

SHOWN_BY: dict[str, list[str]] = {
    "crit": [_CRIT],
    "min_agent": [_DECLINED],
    "hold_max_s": [
        f"{TUPLES}::test_a_policy_that_nothing_fits_is_held_for_its_time_and_no_longer",
        f"{TUPLES}::test_an_immediate_policy_is_not_held_at_all",
        _SIMULATED,
    ],
    "fail_mode": [
        f"{TUPLES}::test_with_nothing_that_fits_the_fail_mode_counts_that_of_the_policy_first",
        f"{UNIT}/test_tasks.py::test_policy_fail_mode_goes_before_the_manifests",
    ],
    "max_offline_s": [_OFFLINE, _AWAY],
    "at_max_offline": [_OFFLINE, _STANDS_IN, _AWAY],
    "unproven": [
        f"{RULES}::test_unproven_is_extended_or_returned_as_the_policy_says",
        f"{UNIT}/test_machine_aside.py::test_policy_unproven_return_goes_back_to_the_fallback_if_there_is_one",
    ],
    "authority": [
        f"{RULES}::test_who_may_act_on_a_site",
        f"{_ALLOWED}::test_policy_authority_says_what_a_site_may_do_by_itself_and_a_refusal_names_the_policy",
    ],
    "cadence_s": [_CADENCE, _ACTIVATING],
    "windows[]": [
        _WINDOW,
        f"{ECONOMY}::test_of_several_windows_any_will_do_and_the_longest_counts",
        f"{_ALLOWANCE}::test_policy_windows_guard_fetching_in_the_sites_time_zone",
        f"{_ALLOWED}::test_policy_windows_that_close_in_mid_fetch_pause_it_and_it_goes_on_by_itself_when_the_next_opens",
    ],
    "windows[].opens": [_WINDOW, _DST],
    "windows[].for_s": [_WINDOW],
    "windows[].guards": [f"{ECONOMY}::test_without_a_window_that_guards_it_anything_goes", _ACTIVATING],
    "budget": [_BUDGET],
    "budget.day_bytes": [
        _BUDGET,
        f"{ECONOMY}::test_a_fetch_larger_than_a_days_budget_is_spread_over_days_and_ends",
        f"{_ALLOWANCE}::test_policy_budget_day_bytes_are_counted_in_the_sites_own_day",
        f"{_ALLOWED}::test_policy_budget_day_bytes_that_end_in_mid_fetch_stop_it_through_kills_until_there_is_more",
        f"{UNIT}/test_offers.py::test_a_site_whose_budget_is_spent_is_sent_nothing_more_until_its_day_turns",
    ],
    "budget.month_bytes": [_BUDGET, f"{_ALLOWANCE}::test_policy_budget_month_bytes_wait_for_the_month", _OFFERED],
    "budget.full": [
        f"{ECONOMY}::test_what_is_done_where_only_the_full_image_will_do",
        f"{UNIT}/test_asking.py::test_policy_budget_full_says_what_follows_where_only_the_full_image_will_do",
    ],
    "pacing": [_PACED],
    "pacing.nodes_at_once": [_PACED, _OFFERED],
    "pacing.nodes_per_hour": [_PACED, _OFFERED],
    "pacing.bytes_per_hour": [_PACED, _OFFERED],
    "staleness": [_LATE, f"{RULES}::test_a_node_without_limits_is_never_stale"],
    "staleness.max_minor_behind": [_VERSIONS, _SIMULATED],
    "staleness.within_s": [
        f"{RULES}::test_a_directed_release_must_serve_in_time",
        f"{UNIT}/test_gaps.py::test_a_gap_is_within_policy_until_the_time_it_allows_is_over",
    ],
    "staleness.security_within_s": [_SECURITY, f"{UNIT}/test_gaps.py::test_security_releases_have_a_time_of_their_own"],
    "telemetry": [_REDACTED],
    "telemetry.lanes": [_REDACTED, f"{_OUTBOX}::test_policy_telemetry_lanes_that_may_not_leave_are_not_written"],
    "telemetry.redact": [
        _REDACTED,
        f"{RULES}::test_a_redacted_name_is_nowhere_in_what_is_kept",
        f"{_OUTBOX}::test_policy_telemetry_redact_leaves_fields_out_at_any_depth_before_they_are_stored",
    ],
    "telemetry.keep_days": [
        f"{RULES}::test_records_are_kept_for_as_many_days_as_the_policy_says",
        f"{_OUTBOX}::test_policy_telemetry_keep_days_loses_what_is_older_counted_in_a_gap",
        f"{UNIT}/test_retention.py::test_records_older_than_policy_keeps_them_are_dropped_and_counted",
    ],
    "limits.<class>": [_LIMITS],
    "limits.<class>.concurrency": [_LIMITS],
    "limits.<class>.queue": [_LIMITS],
    "limits.<class>.deadline_ms": [_LIMITS],
    "immediate[]": [_IMMEDIATE],
    "immediate[].item": [_IMMEDIATE],
    "immediate[].converge_s": [
        _IMMEDIATE,
        f"{UNIT}/test_gaps.py::test_a_policy_with_an_immediate_item_is_tolerated_only_until_its_time",
        f"{UNIT}/test_simulation.py::test_who_lacks_an_immediate_policy_is_named_with_what_is_late_and_why",
    ],
    "drills": [f"{RULES}::test_a_drill_is_due_so_many_days_after_the_last"],
    "drills.every_days": [f"{RULES}::test_a_drill_is_due_so_many_days_after_the_last"],
    "models.<model>": [_MODEL],
    "models.<model>.floor": [_MATRIX, f"{RULES}::test_a_floor_is_compared_by_number", _OFFERED, _SIMULATED],
    "models.<model>.security": [_SECURITY, _CADENCE],
    "models.<model>.gates[]": [_GATES],
    "models.<model>.gates[].name": [_GATES],
    "models.<model>.gates[].limit": [
        _GATES,
        f"{UNIT}/test_tasks.py::test_policy_gates_tighten_what_the_manifest_promises_and_never_loosen_it",
    ],
    "models.<model>.gates[].min_samples": [_GATES],
    _COMPATIBLE: [_MATRIX],
    f"{_COMPATIBLE}.config": [_MATRIX],
    f"{_COMPATIBLE}.config.min": [_MATRIX],
    f"{_COMPATIBLE}.config.max": [f"{TUPLES}::test_a_number_that_was_never_published_hides_no_other"],
    f"{_COMPATIBLE}.policy": [_MATRIX],
    f"{_COMPATIBLE}.policy.min": [_MATRIX],
    f"{_COMPATIBLE}.policy.max": [_MATRIX],
    "models.<model>.authority": [f"{RULES}::test_the_authority_of_a_model_goes_before_the_rings"],
    "models.<model>.fail_mode": [_MODEL, f"{RULES}::test_the_fail_mode_of_a_policy_overrides_the_manifests"],
    "models.<model>.max_offline_s": [_MODEL],
    "models.<model>.at_max_offline": [_MODEL],
    "models.<model>.unproven": [_MODEL],
    "models.<model>.cadence_s": [_MODEL, _CADENCE],
}

CONFIG_SHOWN_BY: dict[str, list[str]] = {
    "crit": [_CRIT],
    "min_agent": [_DECLINED],
    "generation": [_MATRIX],
    "thresholds": [_CONFIG, _TUNED],
    "flags": [_CONFIG, _TUNED],
    "pre": [_CONFIG, _TUNED],
    "post": [_CONFIG, _TUNED],
}

_ALONE = "tests/integration/test_serving_alone.py::test_it_boots_alone_and_warms_the_fallback"

OFFLINE_SHOWN_BY: dict[str, list[str]] = {
    "A node that hears nothing keeps serving its active release.": [
        "tests/integration/test_agent.py::test_a_node_restarts_and_serves_with_no_hub_and_tells_of_it_later",
        _ALONE,
        _SERVES_ON,
    ],
    "It keeps its fallback warm, keeps judging health and rolls back by itself.": [
        _ALONE,
        _SERVES_ON,
        "tests/e2e/test_slow_release.py"
        "::test_a_release_that_is_right_but_slow_is_rolled_back_by_itself_without_a_failed_request",
        "tests/faults/test_kills.py"
        "::test_a_power_cut_on_probation_is_forgiven_once_and_the_second_ends_it_without_a_hub",
    ],
    "It keeps recording into a bounded outbox that thins old records instead of losing them silently, and counts what "
    "it thinned.": [
        "tests/unit/test_outbox.py::test_metrics_decay_to_hours_then_days_before_anything_is_lost",
        _SERVES_ON,
        "tests/unit/test_outbox.py::test_how_long_a_node_may_be_away_is_documented_as_measured",
    ],
    "It installs nothing new once the signed freshness it holds has expired.": [
        f"{_NO_HUB}::test_it_installs_nothing_new_once_its_signed_freshness_has_expired",
        "tests/unit/test_vouching_attacks.py::test_an_expired_duty_blocks_what_is_new_and_keeps_what_was_seen_in_time",
        "tests/unit/test_trust_attacks.py::test_freeze_an_expired_set_brings_nothing_new",
    ],
    "After the model's `max_offline_s` it does what `at_max_offline` says: serve and flag, fall back, or stop.": [
        _OFFLINE,
        _STANDS_IN,
        _AWAY,
    ],
    "Back on line it reads denials first, policy second, desired state third; then it reports, then it fetches.": [
        "tests/integration/test_agent_denials.py::test_a_node_that_returns_learns_of_denials_before_anything_else",
        "tests/integration/test_hub_denials.py::test_denials_come_first_in_a_reply_and_once_more_behind_a_set",
    ],
}


def _missing(tests: list[str]) -> list[str]:
    found = []
    for test in tests:
        file, _, name = test.partition("::")
        path = ROOT / file
        if not path.is_file() or not re.search(rf"^(async )?def {name}\(", path.read_text(), re.MULTILINE):
            found.append(test)
    return found


@pytest.mark.parametrize(
    ("shown_by", "fields"), [(SHOWN_BY, FIELDS), (CONFIG_SHOWN_BY, CONFIG_FIELDS)], ids=["policy", "config"]
)
def test_every_field_is_shown_by_tests_that_exist(shown_by: dict[str, list[str]], fields: dict[str, object]) -> None:
    assert shown_by.keys() == fields.keys()
    for field, tests in shown_by.items():
        assert tests, f"{field} is shown by no test"
        assert not _missing(tests), f"{field} is shown by a test that isn't there"


def test_every_sentence_on_being_off_line_is_shown_by_tests_that_exist() -> None:
    paragraph = " ".join(PAGE.split("<!-- offline -->")[1].split("<!-- end offline -->")[0].split())
    sentences = [sentence.strip() + "." for sentence in paragraph.split(". ") if sentence]
    sentences[-1] = sentences[-1].removesuffix(".")
    assert list(OFFLINE_SHOWN_BY) == sentences
    for sentence, tests in OFFLINE_SHOWN_BY.items():
        assert tests, sentence
        assert not _missing(tests), sentence


def test_the_page_has_every_field_with_its_default() -> None:
    for row in (*explain(), *explain_config()):
        assert f"| `{row.field}` | {row.type.replace('|', chr(92) + '|')} | {row.default} |" in PAGE


EXAMPLES = re.findall(r"^```toml\n# (policy|config): ([a-z]+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("kind", "name", "text"), EXAMPLES, ids=[name for _, name, _ in EXAMPLES])
def test_the_examples_of_the_page_are_documents(kind: str, name: str, text: str) -> None:
    read = policy_from_table if kind == "policy" else config_from_table
    document = read(tomllib.loads(text), realm="demo", number=1, at=1_795_000_000)
    assert type(document).decode(document.encode()) == document


def test_no_example_is_left_out() -> None:
    assert len(EXAMPLES) == PAGE.count("```toml") >= 4

"""Policy and config as documents: what operators may write, what is refused and how it is said."""

import re
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden import CONFIG, POLICY
from heliograph import policy
from heliograph.documents import Document
from heliograph.errors import ConfigError, IntegrityError
from heliograph.fields import table_in
from heliograph.policy import Config, Policy, config_from_table, no_config, no_policy, policy_from_table
from heliograph.wire import pack, unpack

AT = 1_795_000_000


def read_policy(text: str) -> Policy:
    return policy_from_table(tomllib.loads(text), realm="demo", number=4, at=AT)


def read_config(text: str) -> Config:
    return config_from_table(tomllib.loads(text), realm="demo", number=2, at=AT)


# --- the table of fields ----------------------------------------------------------------------------------------------


def _fields(model: type[Document], prefix: str = "") -> set[str]:
    """Every field as the table should call it, worked out from the models alone."""
    found = set()
    for name, field in model.model_fields.items():
        if not prefix and name in policy.GIVEN:
            continue
        inner = table_in(field.annotation)
        shown = prefix + name
        if inner is not None:
            shape = str(field.annotation)
            key = {"limits": "<class>", "models": "<model>", "compatible": "<version>"}.get(name)
            shown += f".{key}" if shape.startswith("dict[") else "[]" if shape.startswith("tuple[") else ""
            found |= _fields(inner, shown + ".")
        found.add(shown)
    return found


@pytest.mark.parametrize(
    ("model", "meanings"), [(Policy, policy.FIELDS), (Config, policy.CONFIG_FIELDS)], ids=["policy", "config"]
)
def test_every_field_has_a_meaning_and_every_meaning_a_field(
    model: type[Document], meanings: dict[str, policy.Meaning]
) -> None:
    assert meanings.keys() == _fields(model)
    for field, meaning in meanings.items():
        assert meaning.says, field
        assert meaning.by in {"", "node", "hub", "node and hub", "people", "programs"}, field


def test_the_explanation_has_every_field_with_the_default_that_counts() -> None:
    rows = {row.field: row for row in policy.explain()}
    assert list(rows) == list(policy.FIELDS), "in the same order"
    default = no_policy("demo", "canary")
    assert rows["hold_max_s"].default == str(default.hold_max_s)
    assert rows["authority"].default == f'"{default.authority}"'
    assert rows["max_offline_s"][1:3] == ("integer", "2592000")
    assert rows["windows[].guards"].default == '["fetch", "activate"]'
    assert rows["windows[].opens"].default == "required"
    assert rows["budget.day_bytes"].default == ""
    assert [row.field for row in policy.explain_config()] == list(policy.CONFIG_FIELDS)


def test_only_what_groups_other_fields_is_enforced_by_nobody() -> None:
    for field, meaning in policy.FIELDS.items():
        has_parts = any(other.startswith(field + ".") for other in policy.FIELDS)
        assert bool(meaning.by) or has_parts, field
        assert bool(meaning.offline) or not meaning.by or field == "immediate[].item", field


# --- what operators write ---------------------------------------------------------------------------------------------


def test_a_file_with_every_field_is_the_document_that_it_states() -> None:
    text = """
        ring = "early"
        min_agent = "0.1.0"
        hold_max_s = 0
        fail_mode = "closed"
        max_offline_s = 604800
        at_max_offline = "fall-back"
        unproven = "return"
        authority = "central"
        cadence_s = 86400
        windows = [{ opens = "0 2 * * 1-5", for_s = 7200 }, { opens = "30 4 * * 6", for_s = 60, guards = ["fetch"] }]
        budget = { day_bytes = 2_000_000, month_bytes = 20_000_000, full = "wait" }
        pacing = { nodes_at_once = 10, nodes_per_hour = 60, bytes_per_hour = 1_073_741_824 }
        staleness = { max_minor_behind = 2, within_s = 604800, security_within_s = 86400 }
        telemetry = { lanes = ["incident", "audit"], redact = ["who", "audit.why"], keep_days = 90 }
        immediate = [{ item = "safety filter of digits", converge_s = 900 }]
        drills.every_days = 90
        [limits]
        realtime = { concurrency = 2, queue = 8, deadline_ms = 150 }
        batch = { queue = 0 }
        [models.digits]
        floor = "1.2.0"
        security = { "1.4.1" = 2026-11-18T04:26:40+01:00 }
        gates = [{ name = "p95-ms", limit = 15, min_samples = 100 }]
        authority = "hybrid"
        fail_mode = "safe"
        max_offline_s = 3600
        at_max_offline = "stop"
        unproven = "extend"
        cadence_s = 0
        [models.digits.compatible."1.4.0"]
        config = { min = 2, max = 9 }
        policy.min = 4
        [models.faces]
    """
    read = read_policy(text)
    at = read.models["digits"].security["1.4.1"]
    want = POLICY.models["digits"].model_copy(update={"security": {"1.4.1": at}})
    assert read == POLICY.model_copy(update={"models": {"digits": want, "faces": POLICY.models["faces"]}})
    assert Policy.decode(read.encode()) == read


def test_a_config_file_is_the_document_that_it_states() -> None:
    text = """
        model = "digits"
        generation = 1
        thresholds.accept = 0.85
        flags.show-alternatives = false
        pre = { invert = true, gain = 1.5, size = 16, mode = "centre" }
        post.top = 3
    """
    read = read_config(text)
    assert read == CONFIG
    assert [type(value) for value in read.pre.values()] == [bool, float, int, str], "kept as written"
    assert Config.decode(read.encode()) == read


def test_a_security_date_is_a_day_in_utc_or_an_instant_with_its_zone() -> None:
    def at(value: str) -> int:
        read = read_policy(f'ring = "early"\nmodels.digits.security = {{ "1.0.0" = {value} }}')
        return read.models["digits"].security["1.0.0"]

    assert at("2026-11-22") == at("2026-11-22T00:00:00Z") == at("2026-11-22T01:00:00+01:00") == 1_795_305_600
    with pytest.raises(ConfigError, match="says no time zone: write it as 2026-11-22T00:00:00Z"):
        at("2026-11-22T00:00:00")


REFUSED = [
    ("", "policy names no ring"),
    ('ring = "moon"', "policy field ring"),
    ('ring = "early"\nnumber = 3', "policy field number is filled in when it is set"),
    ('ring = "early"\nrealm = "other"', "policy field realm is filled in"),
    ('ring = "early"\nat = 3', "policy field at is filled in"),
    ('ring = "early"\nfailmode = "safe"', "policy has no field failmode"),
    ('ring = "early"\nfail_mode = "open"', "policy field fail_mode"),
    ('ring = "early"\nbudget.day = 5', "policy has no field budget.day"),
    ('ring = "early"\nbudget.day_byte = 5', "no field budget.day_byte: is it budget.day_bytes. see the table"),
    ('ring = "early"\nfloor = "1.0.0"', "policy has no field floor: is it models.<model>.floor. see the table"),
    ('ring = "early"\nspeed = 5', "policy has no field speed: see the table in shared/POLICY.md$"),
    ('ring = "early"\nbudget.day_bytes = -5', "policy field budget.day_bytes"),
    ('ring = "early"\nbudget.day_bytes = 5.0', "policy field budget.day_bytes"),
    ('ring = "early"\nbudget.full = "maybe"', "policy field budget.full"),
    ('ring = "early"\nmax_offline_s = true', "policy field max_offline_s"),
    ('ring = "early"\n[[windows]]\nopens = "0 2 * * *"', "policy field windows.0.for_s"),
    ('ring = "early"\n[[windows]]\nopens = "0 2 * *"\nfor_s = 60', "is not five fields"),
    ('ring = "early"\n[[windows]]\nopens = "0 0 2 * * *"\nfor_s = 60', "is not five fields"),
    ('ring = "early"\n[[windows]]\nopens = "0 25 * * *"\nfor_s = 60', "opens: '0 25 . . .' is no time that cron knows"),
    ('ring = "early"\n[[windows]]\nopens = "0 0 */31 * 1#2"\nfor_s = 60', "opens: '0 0 ./31 . 1#2' never comes"),
    ('ring = "early"\n[[windows]]\nopens = "0 0 30 2 *"\nfor_s = 60', "no time that cron knows: Bad day-of-month"),
    ('ring = "early"\n[[windows]]\nopens = "0 2 * * *"\nfor_s = 59', "policy field windows.0.for_s"),
    ('ring = "early"\n[[windows]]\nopens = "0 2 * * *"\nfor_s = 60\nguards = []', "policy field windows.0.guards"),
    ('ring = "early"\n[[windows]]\nopens = "0 2 * * *"\nfor_s = 60\nuntil = 3', "no field windows\\[0\\].until"),
    ('ring = "early"\nlimits.urgent.queue = 1', "policy field limits.urgent"),
    ('ring = "early"\nlimits.batch.depth = 1', "policy has no field limits.batch.depth"),
    ('ring = "early"\ntelemetry.lanes = ["all"]', "policy field telemetry.lanes.0"),
    ('ring = "early"\ntelemetry.keep_days = 0', "policy field telemetry.keep_days"),
    ('ring = "early"\n[models.digits]\nfloor = "1.2"', "floor: not a version: write MAJOR.MINOR.PATCH, such"),
    ('ring = "early"\n[models.Digits]', "policy field models.Digits"),
    ('ring = "early"\n[models.digits.compatible."1.x"]', "policy field models.digits.compatible.1.x"),
    ('ring = "early"\n[models.digits.compatible."1.0.0"]\nconfig.from = 1',
     "policy has no field models.digits.compatible.1.0.0.config.from"),
    ('ring = "early"\nmodels.digits.gates = [{ name = "p95ms", limit = 1 }]', "no gate is called p95ms: p95-ms"),
    ('ring = "early"\nmodels.digits.gates = [{ name = "p95-ms", limit = nan }]', "policy field models.digits.gates.0"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), REFUSED, ids=[said[:50] for _, said in REFUSED])
def test_what_a_policy_file_gets_wrong_is_said_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_policy(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "config names no model"),
        ('model = "digits"\nring = "early"', "config has no field ring"),
        ('model = "digits"\nthreshold.accept = 1', "config has no field threshold: is it thresholds. see"),
        ('model = "digits"\nnumber = 1', "config field number is filled in"),
        ('model = "digits"\nthresholds.accept = "high"', "config field thresholds.accept"),
        ('model = "digits"\nthresholds.accept = inf', "config field thresholds.accept"),
        ('model = "digits"\nthresholds.Accept = 1.0', "config field thresholds.Accept"),
        ('model = "digits"\nflags.on = 1', "config field flags.on"),
        ('model = "digits"\npre.size = [1]', "config field pre.size"),
        ('model = "digits"\ngeneration = -1', "config field generation"),
    ],
)
def test_what_a_config_file_gets_wrong_is_said_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_config(text)


TOML = st.recursive(
    st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=4) | st.dates() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*Policy.model_fields, "zz"]), TOML, max_size=4))
def test_whatever_a_file_says_it_is_a_policy_or_our_error(table: dict[str, Any]) -> None:
    try:
        read = policy_from_table({"ring": "early"} | table, realm="demo", number=1, at=AT)
    except ConfigError as error:
        assert re.search(r"^policy |says no time zone", str(error))
    else:
        assert Policy.decode(read.encode()) == read


# --- documents --------------------------------------------------------------------------------------------------------


def test_number_0_is_every_default() -> None:
    none = no_policy("demo", "general")
    assert (none.number, none.at, none.ring) == (0, 0, "general")
    assert none == policy_from_table({"ring": "general"}, realm="demo", number=0, at=0)
    assert no_config("demo", "digits") == config_from_table({"model": "digits"}, realm="demo", number=0, at=0)


@pytest.mark.parametrize("document", [POLICY, CONFIG], ids=["policy", "config"])
def test_an_unknown_field_is_ignored_unless_crit_names_it(document: Policy | Config) -> None:
    value = unpack(document.encode())
    newer = value | {"quorum": 3}
    assert type(document).decode(pack(newer)) == document
    with pytest.raises(IntegrityError, match="needs quorum, which"):
        type(document).decode(pack(newer | {"crit": ["quorum"]}))


def test_a_window_that_never_opens_makes_a_policy_unreadable_from_the_wire_too() -> None:
    value = unpack(POLICY.encode())
    value["windows"][0]["opens"] = "0 0 31 2 *"
    with pytest.raises(IntegrityError, match=r"windows.0.opens: .* no time that cron knows"):
        Policy.decode(pack(value))


@pytest.mark.parametrize("part", ["windows", "immediate"])
def test_lists_of_a_policy_are_bounded(part: str) -> None:
    value = unpack(POLICY.encode())
    value[part] = value[part][:1] * 33
    with pytest.raises(IntegrityError, match=part):
        Policy.decode(pack(value))

"""Policy and config as documents: what is allowed in a ring, and how a model is to be served there.

Both are numbered statements on channels of their own, never part of a release. Operators write TOML with the same
names; `policy_from_table` and `config_from_table` refuse what is unknown. What a field makes a node or the hub do is
decided by one pure function each (`heliograph.tuples`, `heliograph.economy`, `heliograph.rules`); nothing is decided
here. Without a document, number 0 is in force: every field at its default.

`FIELDS` says of every field its unit, who enforces it and what a node does with it while it is off line; a test holds
it to the models, and the table in shared/POLICY.md is made from it.
"""

import difflib
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field, ValidationError

from heliograph.documents import At, Broadcast, Count, Document, Lane, ModelName, Part, Text
from heliograph.errors import ConfigError
from heliograph.fields import is_map, rows, table_in
from heliograph.manifest import GATES, Compatible, Gate
from heliograph.names import VERSION_PATTERN, Name, Ring, Version

DAY_S = 86400
MAX_DOCUMENT_BYTES = 48 * 1024
"""Largest payload of a policy or config: with its signatures it must fit one signed reply."""

Authority = Literal["central", "hybrid", "local"]
FailModeRule = Literal["safe", "closed"]
OfflineAction = Literal["serve", "fall-back", "stop"]
OnlyFull = Literal["full", "wait", "fail"]
UnprovenAction = Literal["extend", "return"]
Guarded = Literal["fetch", "activate"]
WorkClass = Literal["realtime", "policy", "sync", "telemetry", "validation", "batch"]
Seconds = Annotated[int, Field(ge=0, le=100 * 366 * DAY_S)]


def _cron(value: str) -> str:
    """Returns the five fields if cron knows a time that they name.

    Raises:
        ValueError: otherwise.
    """
    if len(value.split()) != 5:
        raise ValueError(f"{value!r} is not five fields: minute hour day month weekday")
    try:
        next(CronSim(value, datetime(2024, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise ValueError(f"{value!r} is no time that cron knows: {error}") from error
    except StopIteration:
        raise ValueError(f"{value!r} never comes") from None
    return value


Cron = Annotated[str, Field(max_length=80), AfterValidator(_cron)]
Scalar = str | int | float | bool


class Window(Part):
    """When something may be begun: from each time that `opens` names, for so long; in the site's time zone."""

    opens: Cron
    for_s: Annotated[int, Field(ge=60, le=7 * DAY_S)]
    guards: Annotated[tuple[Guarded, ...], Field(min_length=1)] = ("fetch", "activate")


class Budget(Part):
    """Bytes of content that a site's link may carry, and what happens where no delta will do."""

    day_bytes: Count | None = None
    month_bytes: Count | None = None
    full: OnlyFull = "full"


class Pacing(Part):
    """How fast a release goes through the ring."""

    nodes_at_once: Annotated[int, Field(gt=0)] | None = None
    nodes_per_hour: Annotated[int, Field(gt=0)] | None = None
    bytes_per_hour: Annotated[int, Field(gt=0)] | None = None


class Staleness(Part):
    """How far behind a node may be."""

    max_minor_behind: Count | None = None
    within_s: Seconds | None = None
    security_within_s: Seconds | None = None


class Telemetry(Part):
    """What may leave the site, and how long it is kept."""

    lanes: tuple[Lane, ...] = ("incident", "audit", "metric", "sample")
    redact: tuple[Text, ...] = ()
    keep_days: Annotated[int, Field(gt=0, le=3660)] = 400


class Limits(Part):
    """What one class of work may take."""

    concurrency: Annotated[int, Field(gt=0)] | None = None
    queue: Count | None = None
    deadline_ms: Annotated[int, Field(gt=0)] | None = None


class Immediate(Part):
    """Something in this policy that must be in force everywhere soon."""

    item: Text
    converge_s: Seconds


class Drills(Part):
    """Rollbacks done on purpose."""

    every_days: Annotated[int, Field(gt=0)] | None = None


class ModelRules(Part):
    """What holds for one model: each field that is given replaces the ring's."""

    floor: Version | None = None
    security: dict[Version, At] = {}
    gates: tuple[Gate, ...] = ()
    compatible: dict[Version, Compatible] = {}
    authority: Authority | None = None
    fail_mode: FailModeRule | None = None
    max_offline_s: Seconds | None = None
    at_max_offline: OfflineAction | None = None
    unproven: UnprovenAction | None = None
    cadence_s: Seconds | None = None


class Policy(Broadcast):
    """What is allowed in one ring."""

    realm: Name
    ring: Ring
    number: Count
    at: At
    min_agent: Text = "0"
    hold_max_s: Seconds = 3600
    fail_mode: FailModeRule | None = None
    max_offline_s: Seconds = 30 * DAY_S
    at_max_offline: OfflineAction = "serve"
    unproven: UnprovenAction = "extend"
    authority: Authority = "hybrid"
    cadence_s: Seconds = 0
    windows: Annotated[tuple[Window, ...], Field(max_length=32)] = ()
    budget: Budget = Budget()
    pacing: Pacing = Pacing()
    staleness: Staleness = Staleness()
    telemetry: Telemetry = Telemetry()
    limits: dict[WorkClass, Limits] = {}
    immediate: Annotated[tuple[Immediate, ...], Field(max_length=32)] = ()
    drills: Drills = Drills()
    models: dict[ModelName, ModelRules] = {}


class Config(Broadcast):
    """How one model is to be served: its programs and its worker read this, the node doesn't."""

    realm: Name
    model: ModelName
    number: Count
    at: At
    min_agent: Text = "0"
    generation: Count | None = None
    thresholds: dict[Name, float] = {}
    flags: dict[Name, bool] = {}
    pre: dict[Name, Scalar] = {}
    post: dict[Name, Scalar] = {}


@lru_cache(8)
def no_policy(realm: str, ring: Ring) -> Policy:
    """What is in force without a document: number 0, every field at its default."""
    return Policy(realm=realm, ring=ring, number=0, at=0)


@lru_cache(64)
def no_config(realm: str, model: str) -> Config:
    """As `no_policy`, of a model."""
    return Config(realm=realm, model=model, number=0, at=0)


# --- what a field means -------------------------------------------------------------------------------------------


class Meaning(NamedTuple):
    """One field in the operator's words.

    Attributes:
        says: what it sets.
        unit: of its value; empty where it has none.
        by: who enforces it: `node`, `hub`, both, or `people` (shown only).
        offline: what the node does with it while it hears nothing.
    """

    says: str
    unit: str
    by: str
    offline: str


_SAME = "the same"
_BOTH = "node and hub"
_HUB = "nothing: the hub's alone"

#: What each field of a policy means. A test compares the keys with the model, and names a test for each.
FIELDS: dict[str, Meaning] = {
    "crit": Meaning("fields that an agent must know to obey this policy", "", "node", _SAME),
    "min_agent": Meaning("oldest agent that may obey it; an older one declines and says so", "version", "node", _SAME),
    "hold_max_s": Meaning(
        "how long a node holds it back while none of its releases fits; 0: not at all", "s", "node", "the time runs on"
    ),
    "fail_mode": Meaning(
        "with nothing left that fits: serve on with an alarm, or stop; left out: as the manifest says",
        "",
        "node",
        _SAME,
    ),
    "max_offline_s": Meaning(
        "how long a node may be without the hub's word", "s", "node", "judged by its own estimate of the time"
    ),
    "at_max_offline": Meaning(
        "what it does then: serve on and flag it, serve its fallback, or stop",
        "",
        "node",
        "done, until the hub is heard",
    ),
    "unproven": Meaning(
        "what follows a probation without enough traffic: go on as unproven, or return to the fallback",
        "",
        "node",
        _SAME,
    ),
    "authority": Meaning(
        "who may act on a site: the hub alone, the site in an emergency too, the site as it likes", "", "node", _SAME
    ),
    "cadence_s": Meaning(
        "least time between two activations of a model on a node, security releases excepted", "s", "node", _SAME
    ),
    "windows[]": Meaning("when work may be begun; none: always", "", "node", "judged by its own estimate of the time"),
    "windows[].opens": Meaning("minute hour day month weekday, as cron has them", "site's time zone", "node", _SAME),
    "windows[].for_s": Meaning("how long it stays open", "s", "node", _SAME),
    "windows[].guards": Meaning("what needs it open: fetching, activating, or both", "", "node", _SAME),
    "budget": Meaning("content that the link of a site may carry", "", "", ""),
    "budget.day_bytes": Meaning("in one day of the site's time zone", "bytes", _BOTH, "nothing is fetched"),
    "budget.month_bytes": Meaning("in one month of it", "bytes", _BOTH, "nothing is fetched"),
    "budget.full": Meaning(
        "where only the full image will do: take it, wait for a delta, or refuse the release",
        "",
        "node",
        "nothing is fetched",
    ),
    "pacing": Meaning("how fast a release goes through the ring", "", "", ""),
    "pacing.nodes_at_once": Meaning("nodes that fetch at a time", "nodes", "hub", _HUB),
    "pacing.nodes_per_hour": Meaning("nodes that begin in any hour", "nodes", "hub", _HUB),
    "pacing.bytes_per_hour": Meaning("content sent to the ring in any hour", "bytes", "hub", _HUB),
    "staleness": Meaning("how far behind a node may be", "", "", ""),
    "staleness.max_minor_behind": Meaning(
        "minor versions between what it serves and the newest admissible release",
        "minor versions",
        _BOTH,
        "judged by the releases it knows of",
    ),
    "staleness.within_s": Meaning(
        "time from a directive to serving its release", "s", _BOTH, "judged by the directives it knows of"
    ),
    "staleness.security_within_s": Meaning(
        "time from a security release's date to serving it or a newer one", "s", _BOTH, "judged by the policy it has"
    ),
    "telemetry": Meaning("what may leave the site, and how long it is kept", "", "", ""),
    "telemetry.lanes": Meaning("lanes of records that may leave", "", "node", "records of other lanes aren't kept"),
    "telemetry.redact": Meaning(
        "fields of records that stay at the site: a name, or lane.name",
        "",
        "node",
        "left out before anything is stored",
    ),
    "telemetry.keep_days": Meaning("how long records are kept", "days", _BOTH, "older ones are dropped and counted"),
    "limits.<class>": Meaning(
        "what a class of work may take: realtime, policy, sync, telemetry, validation, batch", "", "", ""
    ),
    "limits.<class>.concurrency": Meaning("requests worked on at a time", "requests", "people", _SAME),
    "limits.<class>.queue": Meaning("requests that may wait", "requests", "people", _SAME),
    "limits.<class>.deadline_ms": Meaning("after which a request is refused", "ms", "people", _SAME),
    "immediate[]": Meaning("what in this policy must be in force everywhere soon", "", "", ""),
    "immediate[].item": Meaning("what it is: a safety filter, a compliance rule", "", "people", ""),
    "immediate[].converge_s": Meaning(
        "time from its signing in which every node of the ring must have it in force",
        "s",
        "hub",
        "the hub shows it as missing",
    ),
    "drills": Meaning("rollbacks done on purpose", "", "", ""),
    "drills.every_days": Meaning("how often each site is to have one", "days", "people", _SAME),
    "models.<model>": Meaning("what holds for one model; a field given here replaces the ring's", "", "", ""),
    "models.<model>.floor": Meaning(
        "the lowest version that may be activated or fallen back to", "version", _BOTH, _SAME
    ),
    "models.<model>.security": Meaning(
        "security releases: version and the date from which time is counted", "UTC", _BOTH, _SAME
    ),
    "models.<model>.gates[]": Meaning("gates that tighten the manifest's, or are added to them", "", "node", _SAME),
    "models.<model>.gates[].name": Meaning("as in release.toml", "", "node", _SAME),
    "models.<model>.gates[].limit": Meaning("the lower of this and the manifest's counts", "", "node", _SAME),
    "models.<model>.gates[].min_samples": Meaning("the higher of this and the manifest's counts", "", "node", _SAME),
    "models.<model>.compatible.<version>": Meaning(
        "ranges that replace those of one version's manifest", "", _BOTH, _SAME
    ),
    "models.<model>.compatible.<version>.config": Meaning("config numbers", "", _BOTH, _SAME),
    "models.<model>.compatible.<version>.config.min": Meaning("the lowest", "", _BOTH, _SAME),
    "models.<model>.compatible.<version>.config.max": Meaning("the highest; left out: any newer", "", _BOTH, _SAME),
    "models.<model>.compatible.<version>.policy": Meaning("policy numbers", "", _BOTH, _SAME),
    "models.<model>.compatible.<version>.policy.min": Meaning("the lowest", "", _BOTH, _SAME),
    "models.<model>.compatible.<version>.policy.max": Meaning("the highest; left out: any newer", "", _BOTH, _SAME),
    "models.<model>.authority": Meaning("as above, of this model", "", "node", _SAME),
    "models.<model>.fail_mode": Meaning("as above, of this model", "", "node", _SAME),
    "models.<model>.max_offline_s": Meaning("as above, of this model", "s", "node", _SAME),
    "models.<model>.at_max_offline": Meaning("as above, of this model", "", "node", _SAME),
    "models.<model>.unproven": Meaning("as above, of this model", "", "node", _SAME),
    "models.<model>.cadence_s": Meaning("as above, of this model", "s", "node", _SAME),
}

#: The same of a config.
CONFIG_FIELDS: dict[str, Meaning] = {
    "crit": Meaning("fields that an agent must know to use this config", "", "node", _SAME),
    "min_agent": Meaning("oldest agent that may use it; an older one declines and says so", "version", "node", _SAME),
    "generation": Meaning(
        "generation of the feature schema that this preprocessing makes; left out: any", "", "node", _SAME
    ),
    "thresholds": Meaning(
        "names and numbers for the programs that decide by the model's outputs", "", "programs", _SAME
    ),
    "flags": Meaning("names and truth values", "", "programs", _SAME),
    "pre": Meaning("parameters of what is done before the model", "", "programs", _SAME),
    "post": Meaning("parameters of what is done after it", "", "programs", _SAME),
}

GIVEN = frozenset({"realm", "ring", "model", "number", "at"})
"""Fields that `policy set` and `config set` fill in; a file names `ring`, or `model`, as well."""


class Row(NamedTuple):
    """One field as documents show it; `default` is the value in TOML's spelling, empty for tables and what is unset."""

    field: str
    type: str
    default: str
    meaning: Meaning


def explain() -> list[Row]:
    """Every field of a policy, in the model's order."""
    return _explained(Policy, FIELDS)


def explain_config() -> list[Row]:
    """Every field of a config, in the model's order."""
    return _explained(Config, CONFIG_FIELDS)


_KEYS = {"limits": "<class>", "models": "<model>", "compatible": "<version>"}
"""What the names in a table of tables stand for."""


def _explained(model: type[Document], meanings: Mapping[str, Meaning]) -> list[Row]:
    return [Row(*row, meanings[row.field]) for row in rows(model, GIVEN, _KEYS)]


# --- operator files -----------------------------------------------------------------------------------------------


def policy_from_table(table: Mapping[str, Any], *, realm: str, number: int, at: int) -> Policy:
    """The policy that an operator's TOML (parsed) states; `ring` is named in it.

    Raises:
        ConfigError: an unknown field or gate, a wrong value or a missing `ring`, named with its place.
    """
    document = _from_table(Policy, table, "ring", realm=realm, number=number, at=at)
    assert isinstance(document, Policy)
    for model, rules in document.models.items():
        for gate in rules.gates:
            if gate.name not in GATES:
                raise ConfigError(
                    f"policy field models.{model}.gates: no gate is called {gate.name}: {', '.join(GATES)}"
                )
    return document


def config_from_table(table: Mapping[str, Any], *, realm: str, number: int, at: int) -> Config:
    """The config that an operator's TOML (parsed) states; `model` is named in it.

    Raises:
        ConfigError: as `policy_from_table`.
    """
    document = _from_table(Config, table, "model", realm=realm, number=number, at=at)
    assert isinstance(document, Config)
    return document


def _from_table(model: type[Broadcast], table: Mapping[str, Any], scope: str, **given: Any) -> Broadcast:
    kind = model.__name__.lower()
    for where in _unknown(model, table, ""):
        raise ConfigError(f"{kind} has no field {where}: {_meant(kind, where)}")
    for name in sorted(GIVEN - {scope}):
        if name in table:
            raise ConfigError(f"{kind} field {name} is filled in when it is set: take it out of the file")
    if scope not in table:
        raise ConfigError(f'{kind} names no {scope}: write {scope} = "..." at its top')
    try:
        return model.model_validate({**_plain(table), **given}, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{kind} field {where}: {_said(first)}") from error


def _meant(kind: str, where: str) -> str:
    """The field with this name or one like it, if there is one, and where all stand."""
    fields = [row.field for row in (explain() if kind == "policy" else explain_config())]
    names = {field.rpartition(".")[2].rstrip("[]"): field for field in reversed(fields)}
    near = difflib.get_close_matches(where.rpartition(".")[2], names, n=1, cutoff=0.75)
    return (f"is it {names[near[0]]}? " if near else "") + "see the table in shared/POLICY.md"


def _said(error: Any) -> str:
    """What pydantic found, for people: without its own words where they help nobody."""
    match error["type"]:
        case "value_error":
            return str(error["ctx"]["error"])
        case "string_pattern_mismatch" if error["ctx"]["pattern"] == VERSION_PATTERN:
            return "not a version: write MAJOR.MINOR.PATCH, such as 1.0.0"
        case _:
            return str(error["msg"])


def _unknown(model: type[Document], value: Any, prefix: str) -> Iterator[str]:
    """Places in the table that the model has no field for."""
    if not isinstance(value, Mapping):
        return
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for key, inner in value.items():
        if key not in fields:
            yield prefix + key
            continue
        part = table_in(fields[key].annotation)
        if part is None:
            continue
        if isinstance(inner, list):
            for index, item in enumerate(inner):
                yield from _unknown(part, item, f"{prefix}{key}[{index}].")
        elif isinstance(inner, Mapping) and is_map(fields[key].annotation):
            for name, item in inner.items():
                yield from _unknown(part, item, f"{prefix}{key}.{name}.")
        else:
            yield from _unknown(part, inner, f"{prefix}{key}.")


def _plain(value: Any) -> Any:
    """TOML's values as documents have them: arrays as tuples, instants as seconds since 1970, days as they begin."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ConfigError(f"{value.isoformat()} says no time zone: write it as {value.isoformat()}Z")
        return int(value.timestamp())
    return value

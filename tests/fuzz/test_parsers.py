"""Hostile bytes, at every parser: only its own errors come out, within 64 MiB and 5 s an input.

The table is `fuzzing.parsers`; inputs come from chance (the same from the same seed), from Hypothesis, and from
libFuzzer. CI tries some 10^4, `scripts/test --full` 10^6. What was found is told with the input that does it again.
"""

import importlib
import inspect
import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzzing.driver import MAX_RSS_BYTES, Tried, mutated
from fuzzing.parsers import PARSERS, Parser, complaint
from heliograph.errors import IntegrityError
from heliograph.wire import pack, unpack

ROOT = Path(__file__).parents[2]
CI_INPUTS = 450
"""Of each parser: 14,000 in all."""
FULL_MUTATED, FULL_GUIDED = 30_000, 10_000
"""Of each parser: more than 10^6 in all."""
GUIDED_IN_CI = ("documents",)

PARSE_LIKE = re.compile(
    r"(parse|decode|load|open|unpack|decompress|recall|read|json_object|rebuild_segment|check_page|check_raw|opened)(_\w+)?"
    r"|from_(bytes|json|toml|table|text)|\w+_from_(bytes|json|toml|table|text)"
    r"|with_(root|set|head|list|statement|timestamp|snapshot|targets|delegated)(_before)?|bootstrap"
)
# What is called so and takes nothing from outside, or is the same function by another name.
NO_PARSERS = {
    "heliograph.economy:open_until": "windows, not bytes",
    "heliograph.window:Window.open": "a window of bytes",
    "heliograph_hub.enrolment:open_tokens": "rows of the database",
    "heliograph_site.gates:look_from_row": "rows of our own server",
}


def parse_like() -> Iterator[str]:
    """Public functions of pure modules whose names say that they make something of bytes or text."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = table["tool"]["importlinter"]["contracts"]
    for module in next(contract for contract in contracts if contract["id"] == "pure")["source_modules"]:
        content = vars(importlib.import_module(module))
        for name, value in content.items():
            if name.startswith("_") or getattr(value, "__module__", "") != module:
                continue
            if inspect.isfunction(value) and PARSE_LIKE.fullmatch(name):
                yield f"{module}:{name}"
            if inspect.isclass(value):
                for inner, method in vars(value).items():
                    function = method.__func__ if isinstance(method, classmethod | staticmethod) else method
                    if inspect.isfunction(function) and PARSE_LIKE.fullmatch(inner):
                        yield f"{module}:{name}.{inner}"


def test_every_parse_like_function_of_a_pure_module_stands_in_the_table() -> None:
    covered = {name for parser in PARSERS.values() for name in parser.covers}
    found = set(parse_like())
    assert found - covered - NO_PARSERS.keys() == set(), "add them to tests/fuzzing/parsers.py"
    for name in covered:
        module, _, inner = name.partition(":")
        value: Any = importlib.import_module(module)
        for part in inner.split("."):
            value = getattr(value, part)  # a function that is gone stands for nothing


def test_only_one_module_reads_toml_so_that_its_bounds_can_not_be_forgotten() -> None:
    sources = [path for folder in ("shared", "hub", "site") for path in (ROOT / folder).rglob("*.py")]
    readers = {path.name for path in sources if re.search(r"^\s*(import|from) tomllib", path.read_text(), re.MULTILINE)}
    assert readers == {"toml.py"}


@pytest.mark.parametrize("name", PARSERS)
def test_good_inputs_are_taken_so_that_what_is_spoilt_gets_past_the_door(name: str) -> None:
    parser = PARSERS[name]
    taken = 0
    for data in parser.seeds():
        assert complaint(parser, data) is None
        try:
            parser.parse(data)
            taken += 1
        except parser.errors:
            pass
    assert taken, "no seed of it is good"


def tell(tried: list[Tried]) -> None:
    inputs, seconds = sum(one.inputs for one in tried), sum(one.seconds for one in tried)
    worst = max(tried, key=lambda one: one.rss_bytes)
    print(f"{inputs} inputs, {inputs / max(seconds, 1e-9):.0f}/s, slowest {max(one.slowest_s for one in tried):.3f} s, "
          f"most memory {worst.rss_bytes / (1 << 20):.1f} MiB ({worst.parser})")  # fmt: skip
    broken = "\n".join(f"{one.parser}: {one.found}\ninput: {one.input}" for one in tried if not one.is_sound)
    assert not broken, broken
    assert all(one.inputs and one.rss_bytes <= MAX_RSS_BYTES for one in tried)


def fuzzed(*args: object, timeout_s: float) -> list[Tried]:
    """What a process of its own finds, so that what else this one holds is in nobody's way."""
    done = subprocess.run(
        [sys.executable, "-m", "fuzzing", *map(str, args)],
        cwd=ROOT / "tests", capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip
    tried = [Tried(**json.loads(line)) for line in done.stdout.splitlines()]
    assert tried, done.stderr
    return tried


def test_spoilt_inputs_give_only_errors_of_ours_in_bounded_time_and_memory(seed: int) -> None:
    tried = fuzzed(CI_INPUTS, seed, timeout_s=550)
    assert [one.parser for one in tried] == list(PARSERS)
    tell(tried)


def has_guide() -> bool:
    return find_spec("atheris") is not None


@pytest.mark.skipif(not has_guide(), reason="there is no wheel of atheris for this machine")
@pytest.mark.parametrize("name", GUIDED_IN_CI)
def test_inputs_that_reach_new_lines_give_only_errors_of_ours(name: str, seed: int) -> None:
    tell(fuzzed("--guided", 1500, seed, name, timeout_s=550))


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", PARSERS)
def test_a_million_inputs_give_only_errors_of_ours(name: str, seed: int) -> None:
    tell(fuzzed(int(FULL_MUTATED / PARSERS[name].share), seed + 1, name, timeout_s=3500))
    if has_guide():
        tell(fuzzed("--guided", int(FULL_GUIDED / PARSERS[name].share), seed + 1, name, timeout_s=3500))


# --- shapes that are right but for one value --------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=50)
    | st.binary(max_size=50) | st.sampled_from(["crit", 1 << 63, b"\0" * 32, "canary", -1, 0]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def changed(value: Any, draw: st.DataObject, depth: int = 0) -> Any:
    """The value with one place of it, at any depth, replaced by anything."""
    if depth < 6 and isinstance(value, dict) and value and draw.draw(st.booleans()):
        key = draw.draw(st.sampled_from(sorted(value, key=repr)))
        return value | {key: changed(value[key], draw, depth + 1)}
    if depth < 6 and isinstance(value, list) and value and draw.draw(st.booleans()):
        at = draw.draw(st.integers(0, len(value) - 1))
        return [*value[:at], changed(value[at], draw, depth + 1), *value[at + 1 :]]
    return draw.draw(ANYTHING)


@settings(max_examples=150)
@given(data=st.data())
def test_documents_with_anything_in_one_place_are_read_or_refused(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(PARSERS["documents"].seeds()))
    try:
        spoilt = whole[:1] + pack(changed(unpack(whole[1:]), data))
    except (OverflowError, ValueError):
        return  # msgpack can't say it, so nobody can send it
    error = complaint(PARSERS["documents"], spoilt)
    assert error is None, (spoilt, error)


@settings(max_examples=100)
@given(data=st.data())
def test_infer_requests_with_anything_in_one_place_are_read_or_refused(data: st.DataObject) -> None:
    value = changed(json.loads(PARSERS["inference"].seeds()[0][1:]), data)
    try:
        spoilt = b"\0" + json.dumps(value).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError):
        return
    error = complaint(PARSERS["inference"], spoilt)
    assert error is None, (spoilt, error)


# --- the fuzzer itself ------------------------------------------------------------------------------------------------


def planted(parse: Any) -> dict[str, Parser]:
    return {"planted": replace(PARSERS["msgpack"], parse=parse)}


def test_an_error_that_is_not_the_parsers_own_is_found_with_its_input() -> None:
    def wrong(data: bytes) -> None:
        if unpack(data) == [1, 2, 3, 7]:
            raise KeyError("planted")

    parsers = planted(wrong)
    parsers["planted"] = replace(parsers["planted"], seeds=lambda: [pack([1, 2, 3, 6])])
    tried = mutated("planted", 20_000, 1, parsers)
    assert "planted" in tried.found and unpack(bytes.fromhex(tried.input)) == [1, 2, 3, 7]


def test_memory_beyond_the_bound_is_found_though_it_is_given_back() -> None:
    def hungry(data: bytes) -> None:
        held = bytearray(80 << 20)
        held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
        raise IntegrityError("no")

    parsers = planted(hungry)
    assert "of memory" in mutated("planted", 3, 1, parsers).found


def test_time_beyond_the_bound_is_found() -> None:
    def slow(data: bytes) -> None:
        until = time.process_time() + 0.03
        while time.process_time() < until:
            pass

    assert "took 0.0 s" in mutated("planted", 2, 1, planted(slow), max_seconds=0.01).found

"""The table of attacks in THREATS.md and the tests it names are kept in step; and bombs that no other test names."""

import ast
import re
import time
from pathlib import Path

import pytest

from fuzzing.parsers import PARSERS
from heliograph.errors import ConfigError, HeliographError
from heliograph.toml import MAX_KEY_PARTS, parse_toml

ROOT = Path(__file__).parents[2]
THREATS = (ROOT / "shared" / "THREATS.md").read_text()

# The attacks that must have a row, by a word of their own.
ATTACKS = (
    "unsigned", "threshold minus one", "metadata rollback", "fast-forward", "downgrade", "1970", "2040", "withheld",
    "mix and match", "partial set", "partial bundle", "endless data", "slow retrieval", "swapped", "single stolen key",
    "ten root rotations", "hostile broker", "eavesdropping", "listener reads",
    "a removed node reads", "copied disk", "sealed leaves", "bits flipped", "yesterday's database", "pointer edited",
    "links swapped", "hostile bundles", "bombs", "patch ranges", "topic injection", "retained poisoning", "forged will",
    "replay, three times", "session outliving", "quota exhaustion",
)  # fmt: skip


def rows() -> list[tuple[str, str, list[str]]]:
    """(attack, what holds, tests) of the table of attacks."""
    part = THREATS.partition("\n## Attacks\n")[2].partition("\n### ")[0]
    found = re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", part, re.MULTILINE)
    return [(attack, holds, re.findall(r"`(test_\w+)`", tests)) for attack, holds, tests in found[2:]]


def collected() -> set[str]:
    """Names of the test functions that pytest finds: in files called so, at the top."""
    names: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text())
        names |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return names


def test_every_attack_has_a_row_and_every_row_names_tests_that_exist() -> None:
    attacks = " | ".join(attack for attack, _, _ in rows())
    assert [word for word in ATTACKS if word not in attacks] == []
    known = collected()
    for attack, holds, tests in rows():
        assert tests, f"{attack} names no test"
        assert holds
        assert [test for test in tests if test not in known] == [], attack


BOMBS = {
    "a dotted key": ("policy, config, profile", b"\0" + b"a." * 60_000 + b"a = 1"),
    "nested arrays in TOML": ("policy, config, profile", b"\0a = " + b"[" * 100_000),
    "inline tables": ("policy, config, profile", b"\0a = " + b"{a=" * 60_000),
    "brackets in a request": ("inference", b"\0" + b"[" * 500_000),
    "empty lists in a request": ("inference", b'\0{"inputs": [' + b"[]," * 300_000 + b"[]]}"),
    "empty maps in a manifest": ("manifest", b"\xdd\0\x0f\xff\xf0" + b"\x80" * 1_048_560),
    "nested msgpack": ("documents", b"\0" + b"\x91" * 65_000),
    "nested metadata": ("metadata", b"\3" + b'{"signed":' * 90_000),
    "lists in metadata": ("metadata", b'\3{"signatures": [' + b"[]," * 300_000 + b"[]]}"),
    "a join string without end": ("join string", b"heliograph1:" + b"A" * 60_000),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_of_keys_brackets_and_maps_are_refused_at_once(bomb: str) -> None:
    name, data = BOMBS[bomb]
    began = time.process_time()
    with pytest.raises(HeliographError) as refused:
        PARSERS[name].parse(data)
    assert isinstance(refused.value, PARSERS[name].errors)
    assert time.process_time() - began < 5


def test_a_key_of_many_parts_is_refused_and_text_with_many_dots_is_not() -> None:
    parts = ".".join(["a"] * MAX_KEY_PARTS)
    assert parse_toml(f"{parts} = 1", "file")
    for key in (f"{parts}.b", " . ".join(['"a"'] * 40), ".".join(["'a b'"] * 40)):
        with pytest.raises(ConfigError, match="dotted name"):
            parse_toml(f"{key} = 1", "file")
    assert parse_toml('a = "one. two. three. and so on, sentence by sentence. ' + "more words. " * 40 + '"', "file")


def test_a_manifest_of_many_maps_is_refused_while_it_is_unpacked() -> None:
    with pytest.raises(HeliographError, match="too many maps and arrays"):
        PARSERS["manifest"].parse(b"\xdd\0\0\xc3\x50" + b"\x80" * 50_000)

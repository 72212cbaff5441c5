"""The paragraph on being off line: every sentence of it names a test, and every test that it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "shared" / "POLICY.md").read_text()


def between(mark: str, end: str) -> str:
    return TEXT.split(f"<!-- {mark} -->\n")[1].split(f"<!-- {end} -->")[0]


def test_every_sentence_of_the_offline_paragraph_is_shown_by_tests_that_exist() -> None:
    sentences = re.findall(r"[^.]+\.", between("offline", "end offline"))
    rows = between("offline tests", "end offline tests").splitlines()[2:]
    assert len(rows) == len(sentences) == 6
    for row in rows:
        named = re.findall(r"`(tests/[a-z_/]+\.py)::(test_\w+)`", row)
        assert named or "the same" in row, row
        for path, name in named:
            assert f"def {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"

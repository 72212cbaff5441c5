"""Bugs planted in what tells the time, one at a time: the test that is named beside each must find it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"heliograph": "shared", "heliograph_hub": "hub", "heliograph_site": "site"}
RECKONING, ESTIMATE = "heliograph_site/reckoning.py", "heliograph_site/estimate.py"
MATRIX = "test_clocks.py::test_no_clock_makes_a_node_take_what_expired_or_stop_serving"

#: (what is broken, file, text that stands there once, what is put in its place, the test that finds it)
PLANTED: tuple[tuple[str, str, str, str, str], ...] = (
    (
        "a wall clock that is behind is believed",
        RECKONING,
        "is not None and now <= wall <= self.bound",
        "is not None and wall <= self.bound",
        "test_reckoning.py::test_the_wall_clock_counts_from_the_estimate_to_max_offline_later",
    ),
    (
        "a wall clock of 2040 is believed",
        RECKONING,
        "<= wall <= self.bound(boottime_s, max_offline_s)",
        "<= wall",
        f"{MATRIX}[2040-fresh]",
    ),
    (
        "the hub's answer contradicts no wall clock",
        RECKONING,
        "if self.proof is None:",
        "if self.proof is None or max_offline_s:",
        f"{MATRIX}[jumps ahead in mid-flight-fresh]",
    ),
    (
        "the hub's answer counts from when it came",
        ESTIMATE,
        "self._boot, self._asked[1])",
        "self._boot, self._boottime_s())",
        "test_clocks.py::test_a_reply_that_was_held_back_does_not_make_a_right_clock_look_wrong",
    ),
    (
        "another boot's clock goes on",
        RECKONING,
        "is_same = mark.boot == boot and mark.boottime_s <= boottime_s",
        "is_same = mark.boottime_s <= boottime_s",
        "test_reckoning.py::test_a_start_adds_what_one_boot_measured_and_no_time_between_boots",
    ),
    (
        "a rotation forgets no time",
        RECKONING,
        "sum(keyid in keyids for keyid in mark.keyids) >= threshold",
        "threshold > 0",
        "test_stolen_keys.py",
    ),
    (
        "an earlier signed time sets it back",
        RECKONING,
        "if at <= (before.reads(boottime_s) if before else 0):",
        "if at <= 0:",
        "test_reckoning.py::test_only_a_later_time_moves_it_and_what_has_passed_is_added",
    ),
    (
        "an answer from before the estimate makes a right wall clock look wrong",
        RECKONING,
        "max(now, asked) + TOLERANCE_S",
        "asked + TOLERANCE_S",
        "test_reckoning.py::test_an_answer_older_than_the_estimate_takes_nothing_from_it",
    ),
    (
        "what has passed is hardly ever written",
        ESTIMATE,
        ">= SAVE_EVERY_S:",
        ">= 100 * SAVE_EVERY_S:",
        "test_clocks.py::test_the_estimate_is_on_disk_every_ten_minutes_and_a_power_cut_loses_no_more",
    ),
    (
        "the hub was heard later than now",
        ESTIMATE,
        "at = min(at, self.now())",
        "at = int(at)",
        "test_agent.py::test_the_hub_is_heard_when_it_answers_and_when_it_signs_anew",
    ),
    (
        "what ends is judged by the estimate",
        "heliograph_site/belief.py",
        "self._now, self._latest = now, latest or now",
        "self._now, self._latest = now, now",
        f"{MATRIX}[right-expired_after_nine_days_without_power]",
    ),
    (
        "what begins is judged by the wall clock",
        "heliograph/vouching.py",
        "if now < order.not_before:",
        "if latest < order.not_before:",
        "test_clocks.py::test_not_before_is_judged_by_what_was_signed_however_late_the_wall_clock_says_it_is",
    ),
    (
        "whether to go on serving is judged by the wall clock",
        "heliograph_site/vigil.py",
        "self._time.heard_at, self._time.now())",
        "self._time.heard_at, self._time.latest(1 << 40))",
        "test_clocks.py::test_after_max_offline_by_what_was_measured_policy_decides_whatever_the_wall_clock_says",
    ),
    (
        "a signed time counts beyond what is signed offline",
        "heliograph/trust.py",
        "return min(at, *bounds)",
        "return at if bounds else 0",
        "test_clocks.py::test_a_hub_that_says_2040_moves_no_node_beyond_what_is_signed_offline",
    ),
    (
        "an expired timestamp is good enough to activate by",
        "heliograph/trust.py",
        "return self.is_complete and now < self.fresh_until",
        "return self.is_complete",
        f"{MATRIX}[none-withheld]",
    ),
    (
        "a head tells no time",
        "heliograph_site/hearing.py",
        "self.see_time(*news.at)",
        "pass",
        f"{MATRIX}[none-withheld_while_heads_come]",
    ),
    (
        "any reply tells the time",
        "heliograph_site/link.py",
        "return reply.nonce == self.nonce",
        "return bool(reply.nonce)",
        "test_agent.py::test_a_reply_that_comes_after_the_next_hello_brings_its_news_and_tells_no_time",
    ),
    (
        "the hub signs an earlier time than its last",
        "heliograph_hub/authority.py",
        "if now < last - MAX_BEHIND_S:",
        "if last < 0:",
        "test_authority.py::test_a_clock_that_went_back_signs_no_earlier_time_than_the_last",
    ),
)


@pytest.mark.parametrize(
    ("file", "text", "instead", "killer"),
    [
        # Each costs seconds. Those in the core and its shell are tried every time.
        pytest.param(*row[1:], id=row[0], marks=() if row[1] in (RECKONING, ESTIMATE) else pytest.mark.full)
        for row in PLANTED
    ],
)
def test_every_bug_planted_in_the_time_is_found(
    tmp_path: Path, file: str, text: str, instead: str, killer: str
) -> None:
    for package, folder in PACKAGES.items():
        shutil.copytree(ROOT / folder / package, tmp_path / package)
    planted = tmp_path / file
    content = planted.read_text()
    assert content.count(text) == 1, "the planted bug is stale: its text has changed"
    planted.write_text(content.replace(text, instead))
    run = subprocess.run(
        [sys.executable, "-c", RUNNER, str(tmp_path), f"tests/unit/{killer}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 1, f"{run.stdout[-2000:]}\n{run.stderr[-2000:]}"


RUNNER = """
import sys
from pathlib import Path
import heliograph, heliograph_hub, heliograph_site
for package in (heliograph, heliograph_hub, heliograph_site):
    assert Path(package.__file__).parent.parent == Path(sys.argv[1]), package.__file__
import pytest
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", sys.argv[2]]))
"""

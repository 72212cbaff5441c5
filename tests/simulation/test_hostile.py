"""Worlds whose broker wants harm: it drops, repeats, holds back, spoils, replays and crosses what passes it.

Whatever the seed, everything in `simulator.oracle.INVARIANTS` holds but the bytes spent, which such a broker may waste:
no committed set goes back, nothing unapproved is activated, and when the broker does its work all come to rest where
they are told. CI lives 300 worlds, `scripts/test --full` another 10,000.
"""

from pathlib import Path

import pytest

from simulator.many import Summary, run_many
from simulator.mutants import Mutant, hunt
from simulator.world import run

WORLDS = 300
SHARDS, SHARD_WORLDS = 10, 1_000
REGRESSIONS = (2009756,)
"""Worlds that broke once."""

WAYS = ("to nodes", "to the hub")
HARMS = {
    *(f"broker {harm} {way}" for harm in ("drops", "repeats", "holds back", "replays") for way in WAYS),
    "broker spoils", "broker crosses topics", "broker crosses nodes", "broker forges who speaks",
}  # fmt: skip

PLANTED = Mutant(
    "an older set is taken",
    ("set",),
    tuple(
        ("heliograph/workflow.py", f"            {line}\n", "")
        for line in (
            'require_not_older("timestamp", held.signed, new.signed)  # 5.4.3.1',
            'require_not_older("snapshot", held.signed.snapshot_meta, new.signed.snapshot_meta)  # 5.4.3.2',
        )
    ),
)


def settle_or_tell(summary: Summary) -> None:
    print(summary)
    assert not summary.broken, summary.failures()


@pytest.mark.timeout(900)  # a busy machine must not be mistaken for a broken world
def test_a_hostile_broker_takes_no_node_back_activates_nothing_and_keeps_none_from_rest() -> None:
    summary = run_many(range(WORLDS), is_hostile=True)
    settle_or_tell(summary)
    missed = HARMS - {what for what, count in summary.met.items() if count}
    assert not missed, f"{WORLDS} worlds never met {sorted(missed)}"


def test_worlds_that_broke_once_hold() -> None:
    settle_or_tell(run_many(REGRESSIONS, is_hostile=True))


def test_a_world_without_a_hostile_broker_is_the_world_that_it_was() -> None:
    assert not any(what.startswith("broker ") and what in HARMS for what in run(5).met)
    first, second = run(5, is_told=True, is_hostile=True), run(5, is_told=True, is_hostile=True)
    assert first == second and first.trace


@pytest.mark.timeout(600)
def test_an_older_set_that_is_taken_is_found(tmp_path: Path) -> None:
    killer, seed = hunt(PLANTED, tmp_path, 200, "--hostile")
    print(f"{killer} in world {seed}")
    assert killer in PLANTED.killers, f"found by {killer!r} in world {seed}"


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_ten_thousand_worlds_with_a_hostile_broker_hold(shard: int) -> None:
    first = 2_000_000 + shard * SHARD_WORLDS
    settle_or_tell(run_many(range(first, first + SHARD_WORLDS), is_hostile=True))

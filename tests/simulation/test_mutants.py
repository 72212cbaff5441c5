"""The worlds find what is planted: every mutant is killed, and by an invariant that names its bug."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from simulator.mutants import MUTANTS, SEEN, Mutant, StaleError, hunt, plant

WORLDS = 400
"""A mutant that so many worlds don't find is one that they can't see."""


def test_there_are_enough_of_them_and_each_has_a_name_of_its_own() -> None:
    names = {mutant.name for mutant in MUTANTS}
    assert len(names) == len(MUTANTS) >= 15
    assert SEEN.keys() <= names


@pytest.mark.timeout(900)  # a busy machine must not be mistaken for a mutant that lives
def test_every_mutant_is_killed_by_an_invariant_that_names_its_bug(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(len(MUTANTS))]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(2) as two:
        found = list(two.map(hunt, MUTANTS, folders, [WORLDS] * len(MUTANTS)))
    for mutant, (killer, seed) in zip(MUTANTS, found, strict=True):
        print(f"{killer or 'ALIVE':10} world {seed:3}  {mutant.name}")
    alive = [mutant.name for mutant, (killer, _) in zip(MUTANTS, found, strict=True) if not killer]
    assert not alive, f"{WORLDS} worlds did not find: {alive}"
    odd = {m.name: killer for m, (killer, _) in zip(MUTANTS, found, strict=True) if killer not in m.killers}
    assert not odd, f"found by another invariant than those that name the bug: {odd}"


def test_a_mutant_whose_text_is_gone_is_not_taken_for_killed(tmp_path: Path) -> None:
    stale = Mutant("stale", ("end",), (("heliograph_site/machine.py", "this stands nowhere", ""),))
    with pytest.raises(StaleError, match="occurs 0 times"):
        plant(stale, tmp_path)

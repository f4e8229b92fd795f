"""The catalogue of mutants fits the code: a guard that moved or was reworded must be found again there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.catalogue import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_guard_stands_once_where_the_catalogue_says(mutant: Mutant) -> None:
    assert (ROOT / mutant.path).read_text().count(mutant.guard) == 1
    assert mutant.without != mutant.guard
    named = [argument for argument in mutant.tests if argument.startswith("tests/")]
    assert named
    assert all((ROOT / path).exists() for path in named)


def test_no_two_mutants_are_the_same() -> None:
    assert len(MUTANTS) >= 12
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1
    assert max(Counter((mutant.path, mutant.guard) for mutant in MUTANTS).values()) == 1

"""Jain's index, against values worked out by hand and the properties it is known for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.reports.rules import jain_index


@pytest.mark.parametrize(
    ("shares", "index"),
    [
        ([], None),
        ([0, 0, 0], None),
        ([7], 1.0),
        ([3, 3, 3], 1.0),
        ([9, 0, 0], 1 / 3),
        ([1, 2, 3], 36 / 42),
        ([1, 1, 0, 0], 0.5),
    ],
)
def test_the_index_of_known_shares(shares: list[int], index: float | None) -> None:
    assert jain_index(shares) == (None if index is None else pytest.approx(index))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60).filter(any), st.integers(1, 1000))
def test_the_index_lies_between_one_nth_and_one_and_knows_neither_order_nor_unit(shares: list[int], unit: int) -> None:
    index = jain_index(shares)
    assert index is not None
    assert 1 / len(shares) - 1e-9 <= index <= 1 + 1e-9
    assert jain_index(sorted(shares)) == index
    assert jain_index([share * unit for share in shares]) == pytest.approx(index)


@given(st.integers(1, 50), st.integers(1, 50))
def test_when_k_of_n_share_evenly_it_is_k_of_n(k: int, more: int) -> None:
    assert jain_index([5] * k + [0] * more) == pytest.approx(k / (k + more))

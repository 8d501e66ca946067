"""AJCC's 7th edition at its own limits."""

from __future__ import annotations

import pytest

from hmvnet.ajcc import n_by_nodes, t_by_size


@pytest.mark.parametrize(
    ("mm", "stage"), [(5, "T1"), (20, "T1"), (20.1, "T2"), (40, "T2"), (40.1, "T3")]
)
def test_t_goes_up_at_2_and_4_cm(mm: float, stage: str) -> None:
    assert t_by_size(mm) == stage


@pytest.mark.parametrize(
    ("sizes", "sides", "primary", "stage"),
    [
        ((), (), 1, "N0"),
        ((30,), (1,), 1, "N1"),
        ((30,), (0,), 1, "N1"),  # a node on the midline is ipsilateral
        ((30,), (-1,), 0, "N1"),  # so is one side of a primary on neither
        ((30.1,), (1,), 1, "N2"),
        ((10,), (-1,), 1, "N2"),
        ((10, 10), (1, 1), 1, "N2"),
        ((60, 10), (1, -1), 1, "N2"),
        ((10, 60.1), (1, 1), 1, "N3"),
    ],
)
def test_n_by_number_size_and_side(sizes, sides, primary: int, stage: str) -> None:
    assert n_by_nodes(sizes, sides, primary) == stage

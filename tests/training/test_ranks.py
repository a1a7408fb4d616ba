"""Ranks: which part of a batch is whose, and who writes."""

import pytest
import torch

from clip_core.training.ranks import Rank, gather


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_parts_of_all_ranks_are_the_whole_in_order(size: int) -> None:
    rows = list(range(8))
    assert [row for number in range(size) for row in rows[Rank(number, size).part(8)]] == rows


def test_rank_0_alone_writes() -> None:
    assert [Rank(number, 3).writes for number in range(3)] == [True, False, False]
    assert Rank().writes


@pytest.mark.parametrize(("rank", "size"), [(1, 1), (-1, 2), (0, 0)])
def test_a_rank_that_is_none_of_the_processes_is_refused(rank: int, size: int) -> None:
    with pytest.raises(ValueError, match="is not one of"):
        Rank(rank, size)


def test_one_process_gathers_its_own_rows_without_a_copy() -> None:
    own = torch.ones(2, 3)
    assert gather(own, Rank()) is own

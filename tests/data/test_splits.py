"""Splits that a data set states: who is trained on, who is for validation, and what is said of the others."""

import pytest

from clip_core.data.pairs import Pair
from clip_core.data.splits import split_counts, split_training, split_validation

COLUMN = {"image": "file", "caption": "text", "split": "split"}


def pairs(**counts: int) -> list[Pair]:
    """So many pairs of each split; `none` states none."""
    splits = [None if name == "none" else name for name, count in counts.items() for _ in range(count)]
    return [Pair(f"/{n}.png", str(n), n, split=split) for n, split in enumerate(splits, 1)]


@pytest.mark.parametrize(
    ("counts", "used", "said"),
    [
        (
            {"train": 7, "val": 2, "test": 3},
            (7, 2),
            "split column: 7 train, 2 val for validation, 3 test not used",
        ),
        ({"test": 3, "train": 7}, (7, 3), "split column: 7 train, 3 test for validation"),
        (
            {"train": 7, "val": 2, "none": 4},
            (11, 2),
            "split column: 7 train, 4 without a split for training, 2 val for validation",
        ),
        (
            {"train": 1200},
            (1200, None),
            "split column: 1,200 train; no val or test, so the validation set is split from the images",
        ),
        ({"val": 2, "test": 3}, (5, None), "split column ignored, it has no train pairs: 2 val, 3 test"),
        ({"none": 5}, (5, None), None),
    ],
)
def test_train_is_for_training_and_val_or_else_test_for_validation(
    counts: dict[str, int], used: tuple[int, int | None], said: str | None
) -> None:
    split = split_training(pairs(**counts), COLUMN, val_file=False)
    assert (len(split.train), split.val and len(split.val)) == used
    assert split.said == said
    assert {pair.split for pair in split.val or []} <= {"val", "test"}


def test_a_validation_file_leaves_val_and_test_unused_and_says_so() -> None:
    split = split_training(pairs(train=7, val=2, test=3), {}, val_file=True)
    assert (len(split.train), split.val) == (7, None)
    assert split.said == "splits: 7 train, 2 val not used, 3 test not used; --val-file is the validation set"


@pytest.mark.parametrize(
    ("counts", "count", "said"),
    [
        ({"train": 7, "val": 2, "test": 3}, 2, "splits: 2 val for validation, 7 train not used, 3 test not used"),
        ({"train": 7, "test": 3}, 3, "splits: 3 test for validation, 7 train not used"),
        ({"val": 2}, 2, None),
        ({"train": 7}, 7, "splits ignored, all pairs are for validation: 7 train"),
        ({"none": 4}, 4, None),
    ],
)
def test_a_validation_file_with_splits_is_read_for_its_own_validation_pairs(
    counts: dict[str, int], count: int, said: str | None
) -> None:
    split = split_validation(pairs(**counts), {})
    assert (len(split.val or []), split.said) == (count, said)


def test_splits_are_counted_only_where_there_are_any() -> None:
    assert split_counts(pairs(test=1, train=2, none=3)) == {"train": 2, "test": 1, "none": 3}
    assert split_counts(pairs(none=3)) == {}

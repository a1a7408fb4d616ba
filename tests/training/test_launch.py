"""What the launcher of `--devices` makes of the exit codes of its processes."""

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from clip_core.errors import MISTAKE
from clip_core.training.launch import _exit_code


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([MISTAKE + 2, -15], (2, True)),  # a sentence was said
        ([-15, MISTAKE + 2], (2, True)),
        ([1, -15], (1, False)),
        ([-9, -15], (1, False)),
        ([130, -15], (130, False)),  # larger than a mistake, and none
        ([134], (134, False)),
    ],
)
def test_only_a_sentence_is_a_mistake(codes: list[int], expected: tuple[int, bool]) -> None:
    failures = {rank: ProcessFailure(rank, 1, code, "none") for rank, code in enumerate(codes)}
    assert _exit_code(ChildFailedError("train", failures)) == expected

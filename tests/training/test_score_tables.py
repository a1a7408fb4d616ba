"""Tables of scores take labels and formats from the metric table."""

from clip_core.config import RECALL_AT
from clip_core.run.metrics import WAYS, second
from clip_core.run.records import Blend
from clip_core.training.score_tables import aligned, before_and_after, blend_table

SCORES = {f"{way}_recall@{k}": 0.125 * (1 + number) for number, way in enumerate(WAYS) for k in RECALL_AT}
SCORES |= {"mean_recall": 0.1875, "val_loss": 2.0}


def test_a_row_for_each_recall_of_both_validation_sets() -> None:
    later = {key: value + 0.5 for key, value in SCORES.items()}
    table = before_and_after([("before", SCORES | second(SCORES)), ("after 10 steps", later)])
    assert table[0].split() == ["before", "after", "10", "steps"]
    assert len(table) == 1 + 2 * 7
    assert table[1].split() == ["recall@1", "image", "to", "text", "12.5%", "62.5%"]
    assert table[7].split() == ["mean", "recall", "18.8%", "68.8%"]
    assert table[8].split() == ["second", "validation", "set,", "recall@1", "image", "to", "text", "12.5%"]


def test_the_chosen_blend_is_marked() -> None:
    table = blend_table([Blend(share=share, scores=SCORES) for share in (0.0, 0.5, 1.0)], 0.5)
    assert [row.split()[0] for row in table] == ["blend", "0", "0.5", "1"]
    assert [row.split("  ")[-1].strip() for row in table[1:]] == ["initial weights", "chosen", "fine-tuned weights"]
    assert "second" not in table[0]


def test_columns_are_aligned() -> None:
    assert aligned([["a", "1"], ["long", "22"]]) == ["a      1", "long  22"]

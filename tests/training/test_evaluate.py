"""What the best checkpoint is chosen by."""

from clip_core.training.evaluate import quality


def test_with_classes_the_better_classifier_wins_whatever_the_recall_among_few_captions() -> None:
    early = {"zero_shot_top1": 0.65, "mean_recall": 0.94, "val_loss": 3.0}
    late = {"zero_shot_top1": 0.77, "mean_recall": 0.93, "val_loss": 3.8}
    assert quality(late) > quality(early)


def test_without_classes_recall_decides_and_the_lower_loss_between_equals() -> None:
    assert quality({"mean_recall": 0.3, "val_loss": 9.0}) > quality({"mean_recall": 0.2, "val_loss": 1.0})
    assert quality({"mean_recall": 0.3, "val_loss": 1.0}) > quality({"mean_recall": 0.3, "val_loss": 2.0})

"""Which measurements are drawn together, and how the rest is named."""

from clip_tui.watcher import Snapshot
from clip_tui.widgets.plot import Chart, Line

# title, whether the values are shares, (metric, its short name) in the order of the colours
GROUPS: tuple[tuple[str, bool, tuple[tuple[str, str], ...]], ...] = (
    ("Loss", False, (("loss", "train"), ("val_loss", "held out"))),
    (
        "Recall@1",
        True,
        (("image_to_text_recall@1", "i→t"), ("text_to_image_recall@1", "t→i"), ("zero_shot_top1", "zero-shot")),
    ),
    ("In batch", True, (("image_to_text_top1", "i→t"), ("text_to_image_top1", "t→i"), ("data_wait", "data wait"))),
    ("Learning rate", False, (("lr", "lr"),)),
    ("Gradient norm", False, (("grad_norm", "norm"),)),
    ("Temperature", False, (("temperature", "temperature"),)),
    ("Speed", False, (("images_per_second", "images/s"),)),
    ("Recall@5/10", True, (("image_to_text_recall@5", "5 i→t"), ("image_to_text_recall@10", "10 i→t"),
                           ("text_to_image_recall@5", "5 t→i"), ("text_to_image_recall@10", "10 t→i"))),
)  # fmt: skip

_DRAWN = {metric for _, _, metrics in GROUPS for metric, _ in metrics}


def charts(snapshot: Snapshot, *, log_loss: bool) -> list[Chart]:
    """A chart a group, then one for every other metric that the run reports."""
    step = snapshot.step
    known = [
        Chart(
            title,
            tuple(_line(snapshot, metric, name) for metric, name in metrics if metric in snapshot.curves),
            share=share,
            log=log_loss and title == "Loss",
            last_step=step,
        )
        for title, share, metrics in GROUPS
    ]
    others = sorted(set(snapshot.curves) - _DRAWN)
    return known + [Chart(name, (_line(snapshot, name, ""),), last_step=step) for name in others]


def _line(snapshot: Snapshot, metric: str, name: str) -> Line:
    value = snapshot.train.get(metric, snapshot.evaluation.get(metric, snapshot.system.get(metric)))
    return Line(name, snapshot.curves[metric], value if isinstance(value, int | float) else None)

"""Run directories made by the real writer, with the worst texts that a file may hold, and the app on top of them."""

import math
import os
from pathlib import Path

import pytest
from PIL import Image

from clip_core.config import TrainConfig
from clip_core.files import write_json
from clip_core.presets import architecture
from clip_core.run.paths import META, RunPaths, checkpoint_name
from clip_core.run.records import (
    DataFacts,
    Parameters,
    Probe,
    Recipe,
    RunRecord,
    State,
    ValidationPair,
    ValidationPairs,
)
from clip_core.run.writer import RunWriter

SIZES = [(80, 24), (160, 50)]

HOSTILE = (
    "[red]not red[/red] [@click=app.quit]press[/]",
    "bell\x07 clear\x1b[2J title\x1b]0;owned\x07 c1\x9b31m",
    "right\u202eto left\u2066 and a [/] closing nothing",
    "emoji 🦊 wide 漢字 combining e\u0301\nsecond line\r\x1b[1A",
)
BEST_STEP = 30  # of the best checkpoint; later evaluations have higher values of other metrics
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)


def make_run(
    path: Path, *, state: State = State.RUNNING, steps: int = 40, hostile: bool = False, prefix: str = ""
) -> Path:
    """A run with images, curves, probes, events and a log, as a trainer would leave it.

    Args:
        hostile: with the worst texts, in every field but the names of the images.
        prefix: of the names of the images.
    """
    folder = path.parent / "images"
    pairs = [(str(_image(folder / f"{prefix}{name}.png", name)), f"a {name} square") for name in COLOURS]
    if hostile:
        pairs = [(image, HOSTILE[index % len(HOSTILE)]) for index, (image, _) in enumerate(pairs)]
    captions = [caption for _, caption in pairs]
    writer = RunWriter(path)
    paths = RunPaths(path)
    _record(pairs, captions).write(paths.config)
    validation = ValidationPairs(pairs=[ValidationPair(image=image, caption=caption) for image, caption in pairs])
    validation.write(paths.validation)
    write_json(path.parent / "pairs.json", validation.model_dump(mode="json")["pairs"])
    writer.status(state=state, step=steps, steps=100, epoch=2, epochs=5, pid=os.getpid())
    for step in range(1, steps + 1):
        spike = 9.0 if step == 17 else 0.0
        writer.metric(
            "train", step, epoch=1, loss=3 * math.exp(-step / 20) + spike, lr=1e-3 * (1 - step / 100),
            temperature=0.07, grad_norm=1.5, image_to_text_top1=step / 100, text_to_image_top1=step / 110,
            images_per_second=1234.5, data_wait=0.03, memory_mb=812.0,
            **({"[red]odd\x1b[2J": step} if hostile else {}),
        )  # fmt: skip
        if step % 10 == 0:
            scores = {f"{way}_recall@{k}": min(1.0, step / 60 * k) for way in WAYS for k in (1, 5, 10)}
            scores |= {"mean_recall": step / 100, "val_loss": 2.0 - step / 50}
            writer.metric("eval", step, epoch=1, **scores)
            if step == BEST_STEP:
                writer.point_best(_checkpoint(paths, step), step, scores)
            writer.point_latest(_checkpoint(paths, step), step)
    writer.event(steps, HOSTILE[1] if hostile else "checkpoint written")
    if hostile:
        writer.event(steps, HOSTILE[0], health=True)
        writer.event(steps, HOSTILE[2], request="x\x1b[2J", outcome="refused")
    rows = range(len(pairs))
    writer.probe(
        Probe(
            step=steps,
            images=[image for image, _ in pairs],
            captions=captions,
            similarity=[[0.9 if a == b else 0.1 * b for b in rows] for a in rows],
            image_to_text=[[a, *(b for b in rows if b != a)][:5] for a in rows],
            text_to_image=[[a, *(b for b in rows if b != a)][:5] for a in rows],
        )
    )
    log = [HOSTILE[0], HOSTILE[1], HOSTILE[2]] if hostile else [f"step {n}  loss 1.{n}" for n in range(1, 60)]
    paths.log.write_text("\n".join(log) + "\n", encoding="utf-8")
    writer.close()
    return path


WAYS = ("image_to_text", "text_to_image")


def _checkpoint(paths: RunPaths, step: int) -> str:
    """A checkpoint's folder, without weights; returns its name."""
    paths.checkpoint(step).mkdir(parents=True, exist_ok=True)
    (paths.checkpoint(step) / META).write_text("{}")
    return checkpoint_name(step)


def _record(pairs: list[tuple[str, str]], captions: list[str]) -> RunRecord:
    config = TrainConfig()
    data_file = Path(pairs[0][0]).parent.parent / "pairs.json"
    return RunRecord(
        config=config.model_copy(update={"data": config.data.model_copy(update={"data_file": data_file})}),
        resolved=Recipe(
            device="cpu", precision="fp32", batch_size=64, lr=0.001, steps_per_epoch=20, steps=100, warmup_steps=5,
            eval_every=10, checkpoint_every=10, weight_decay=0.1, layer_decay=1.0,
        ),
        model=architecture(config.model, vocab_size=300, end_token=1, context_length=32),
        parameters=Parameters(image=4_800_000, text=4_700_000, trainable=9_500_000),
        data=DataFacts(
            train_pairs=54, train_images=54, val_pairs=len(pairs), val_images=len(pairs), classes=captions
        ),
        device_name="cpu, 2 cores",
        versions={"python": "3.11", "torch": "2.10"},
        seed=0,
    )  # fmt: skip


def _image(path: Path, colour: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (48, 32), colour)
    image.paste((255, 255, 255), (16, 8, 32, 24))
    image.save(path)
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A directory with three runs: one that trains, one that is done, one full of hostile texts."""
    root = tmp_path / "runs"
    make_run(root / "older", state=State.FINISHED)
    make_run(root / "hostile", hostile=True)
    make_run(root / "live")
    return root

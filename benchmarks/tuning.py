"""What tuning gains and what it forgets, on a stand-in for published weights.

    python -m benchmarks.tuning NOTO_FOLDER OPENSTAX_FOLDER OUT [PRETRAINING_EPOCHS [TUNING_EPOCHS]]

A small network in the shape of OpenAI's is trained on the first set, written as an open_clip folder, and tuned from
that folder on the second set in several ways; the first set's validation pairs are the second validation set. The
initial random weights are an open_clip folder, too, so that the tokenizer is CLIP's: open_clip must be installed for
its vocabulary.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.train_run import header, row, train
from clip_core.files import write_json
from clip_core.model.clip import CLIP
from clip_core.model.weight_maps import to_open_clip
from clip_core.network import ClipConfig, ImageTower, Pooling, Preprocessing, TextTower
from clip_core.run.metrics import SECOND
from clip_core.run.reader import RunReader

SIDE, PATCH, WIDTH, HEADS = 64, 16, 256, 4
IMAGE_LAYERS, TEXT_LAYERS = 3, 2
VOCABULARY, CONTEXT = 49408, 32
FROM_SCRATCH = ["--lr", "1e-3", "--weight-decay", "0.1", "--layer-decay", "1"]
WAYS: dict[str, list[str]] = {
    "full, at the rate from scratch": FROM_SCRATCH,
    "full, the new defaults": ["--blend", "0.5"],
    "image tower locked": ["--lock", "image"],
    "LoRA, rank 8": ["--lora", "8"],
}
EVALUATED = ["--eval-every", "48"]  # steps: about ten times a run
_AT = (1, 5, 10)


def main(noto: Path, photos: Path, out: Path, pretraining_epochs: int, tuning_epochs: int | None) -> None:
    random = write_random(out / "random")
    pretrained = out / "pretrained"
    train(pretrained, *pairs_of(noto), "--init", str(random), *FROM_SCRATCH, "--epochs", str(pretraining_epochs))
    standin = out / "standin"
    command = [sys.executable, "-m", "export.cli", str(pretrained), "--format", "open_clip", "--out", str(standin)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    names = [f"{photos.name}, mean recall@{k}" for k in _AT] + [f"{noto.name}, mean recall@{k}" for k in _AT]
    print(header("way", "peak learning rate", "seconds", *names), flush=True)
    for number, (way, flags) in enumerate(WAYS.items()):
        run = out / f"tuned_{number}"
        guard = ["--guard-data", str(noto / "val.json")]
        epochs = ["--epochs", str(tuning_epochs)] if tuning_epochs else []
        lines = train(run, *pairs_of(photos), *guard, "--init", str(standin), *flags, *epochs, *EVALUATED)
        if number == 0:
            print(row("before", "", "", *recalls(lines[0])), flush=True)
        rate = f"{RunReader(run).record().resolved.lr:g}"
        print(row(way, rate, f"{lines[-1]['train_seconds']:.0f}", *recalls(lines[-1])), flush=True)
        if (run / "blends.json").is_file():
            print_blends(way, json.loads((run / "blends.json").read_text(encoding="utf-8")))


def write_random(folder: Path) -> Path:
    """Random weights in the shape of OpenAI's, as an open_clip folder: what pre-training starts from."""
    torch.manual_seed(0)
    config = ClipConfig(
        embed_dim=WIDTH,
        image=ImageTower(
            image_size=SIDE,
            patch_size=PATCH,
            width=WIDTH,
            heads=HEADS,
            layers=IMAGE_LAYERS,
            pooling=Pooling.CLASS_TOKEN,
            pre_norm=True,
            patch_bias=False,
        ),
        text=TextTower(
            vocab_size=VOCABULARY,
            end_token=VOCABULARY - 1,
            context_length=CONTEXT,
            width=WIDTH,
            heads=HEADS,
            layers=TEXT_LAYERS,
        ),
        preprocessing=Preprocessing(image_size=SIDE),
    )
    folder.mkdir(parents=True)
    weights = to_open_clip(CLIP(config).state_dict(), config)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "open_clip_model.safetensors")
    vision = {
        "image_size": SIDE,
        "layers": IMAGE_LAYERS,
        "width": WIDTH,
        "head_width": WIDTH // HEADS,
        "patch_size": PATCH,
    }
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": WIDTH, "heads": HEADS, "layers": TEXT_LAYERS}
    prepared = config.preprocessing
    write_json(
        folder / "open_clip_config.json",
        {
            "model_cfg": {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text},
            "preprocess_cfg": {"mean": prepared.mean, "std": prepared.std},
        },
    )
    return folder


def pairs_of(folder: Path) -> list[str]:
    return ["--data-file", str(folder / "train.json"), "--val-file", str(folder / "val.json")]


def recalls(scores: Mapping[str, Any]) -> list[str]:
    """The mean of both directions at 1, 5 and 10, of the tuned set and of the second validation set."""
    return [
        f"{(scores[f'{prefix}image_to_text_recall@{k}'] + scores[f'{prefix}text_to_image_recall@{k}']) / 2:.1%}"
        for prefix in ("", SECOND)
        for k in _AT
    ]


def print_blends(way: str, stored: Mapping[str, Any]) -> None:
    for blend in stored["blends"]:
        print(row(f"{way}, blend {blend['share']:g}", "", "", *recalls(blend["scores"])), flush=True)


if __name__ == "__main__":
    folders, epochs = [Path(value) for value in sys.argv[1:4]], [int(value) for value in sys.argv[4:]]
    main(folders[0], folders[1], folders[2], epochs[0] if epochs else 20, epochs[1] if len(epochs) > 1 else None)

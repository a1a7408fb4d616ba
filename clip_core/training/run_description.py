"""The description of a run: config.json, validation.json, and the first lines of the log."""

import platform
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from clip_core.config import TrainConfig
from clip_core.data.dataset import Data
from clip_core.data.tokenizer import Tokenizer
from clip_core.model.clip import CLIP
from clip_core.model.model_size import parameters
from clip_core.run.records import (
    DataFacts,
    Decision,
    InitialWeights,
    Parameters,
    Recipe,
    RunRecord,
    ValidationPair,
    ValidationPairs,
)
from clip_core.run.writer import RunWriter
from clip_core.text import printable
from clip_core.training.device import describe
from clip_core.training.initial_weights import Start
from clip_core.training.log import Log
from clip_core.training.trainable import trainable_parameters

_LIBRARIES = ("clip-tui", "torch", "tokenizers", "numpy", "pillow", "safetensors", "simplejpeg")

_AUGMENTATIONS = {
    "images": "random crops of at least 80% of a side",
    "captions": "keyword lists shuffled and thinned",
}
_PHRASES: dict[str, str | Callable[[Any], str]] = {
    "model_size": "preset {}",
    "head": "{} projection heads",
    "head_width": "hidden width {} of the heads",
    "head_dropout": "dropout {:g} of the heads",
    "embed_dim": "embedding of {}",
    "image_size": "images of {} px",
    "tokenizer": "character tokenizer",
    "vocab_size": "BPE vocabulary of {:,} tokens",
    "batch_size": "batch size {}",
    "precision": "{}",
    "optimizer": lambda value: {"muon": "Muon", "adamw": "AdamW"}[value],
    "loss": "{} loss",
    "lr": "peak learning rate {:g}",
    "min_lr": lambda value: "constant learning rate" if value == 1 else f"cosine decay to {value:g} of the peak",
    "warmup": "{:.0%} linear warm-up",
    "weight_decay": lambda value: f"weight decay {value:g}" if value else "no weight decay",
    "layer_decay": "layer-wise learning rate decay {:g}",
    "augment": lambda value: ", ".join(_AUGMENTATIONS[part] for part in _AUGMENTATIONS if value in (True, part)),
    "patch_dropout": "patch dropout {:g}",
    "word_dropout": "word dropout {:g}",
    "bpe_dropout": "BPE dropout {:g}",
    "label_smoothing": "label smoothing {:g}",
    "ema": "EMA of the weights, decay {:g}",
    "epochs": "{} epochs",
}


def decision_line(decision: Decision) -> str:
    """A default and its reason in one line: `preset nano (fewer than 50,000 pairs)`."""
    phrase = _PHRASES.get(decision.setting, decision.setting.replace("_", " ") + " {}")
    text = phrase.format(decision.value) if isinstance(phrase, str) else phrase(decision.value)
    return f"{text} ({decision.reason})" if decision.reason else text


def recipe_line(recipe: Recipe) -> str:
    """Steps, batch size, learning rate and device in one line."""
    timed = recipe.seconds is not None
    steps = f"{recipe.seconds / 60:g} minutes" if recipe.seconds is not None else f"{recipe.steps} steps"
    share, few = recipe.warmup_steps / max(recipe.steps, 1), "step" if recipe.warmup_steps == 1 else "steps"
    warmup = f"{share:.0%}" if timed else f"{recipe.warmup_steps} {few}"
    return (
        f"{steps} of {recipe.batch_size} pairs ({recipe.steps_per_epoch} per epoch), peak learning rate "
        f"{recipe.lr:g}, {warmup} of warm-up, {recipe.precision} on {recipe.device}"
        + ("" if timed else f", evaluation every {recipe.eval_every} steps")
        + (", sigmoid loss" if recipe.loss == "sigmoid" else "")
    )


def trainable_line(model: CLIP) -> str:
    """`16,939,265 trainable parameters (all)`, or how many of how many."""
    trainable, total = trainable_parameters(model), parameters(model)
    if trainable == total:
        return f"{total:,} trainable parameters (all)"
    return f"{trainable:,} trainable parameters of {total:,}"


def write_record(
    writer: RunWriter,
    config: TrainConfig,
    recipe: Recipe,
    decisions: Sequence[Decision],
    model: CLIP,
    data: Data,
    start: Start | None,
) -> None:
    """Write validation.json and config.json: configuration, recipe, data and versions, enough to repeat the run."""
    write_validation_pairs(writer, data)
    init = None
    if start:
        init = InitialWeights(source=start.source, given=start.given, model=config.tune.init_model)
    RunRecord(
        config=config,
        resolved=recipe,
        decisions=list(decisions),
        model=model.config,
        parameters=Parameters(
            image=parameters(model.image), text=parameters(model.text), trainable=trainable_parameters(model)
        ),
        init=init,
        data=DataFacts(
            train_pairs=data.train_pairs,
            train_images=None if data.streamed_pairs else len(data.train.images),
            val_pairs=len(data.val),
            val_images=len(data.val.images),
            classes=data.classes,
            fingerprint=data.fingerprint,
        ),
        device_name=describe(torch.device(recipe.device)),
        git=_git_version(),
        versions=_versions(),
        seed=config.run.seed,
    ).write(writer.paths.config)


def write_validation_pairs(writer: RunWriter, data: Data) -> None:
    val = data.val
    ValidationPairs(
        pairs=[
            ValidationPair(image=str(val.images[i]), caption=val.captions[c])
            for i, c in zip(val.pair_images, val.pair_captions, strict=True)
        ]
    ).write(writer.paths.validation)


def log_start(
    log: Log,
    run: Path,
    data: Data,
    tokenizer: Tokenizer,
    recipe: Recipe,
    decisions: Sequence[Decision],
    model: CLIP,
    start: Start | None,
) -> None:
    """The first lines of the log: the recipe, the defaults that were chosen and why, data and model."""
    log.say(f"run {run}: {recipe_line(recipe)}")
    if start is not None:
        log.say(f"initial weights: {start.source}")
        for note in start.notes:
            log.say(printable(f"note: {note}"))
    if decisions:
        log.say(f"defaults chosen for {data.train_pairs:,} pairs on {recipe.device}:")
    for decision in decisions:
        log.say(f"  {decision_line(decision)}")
    images = f" of {len(data.train.images):,} images" if data.streamed_pairs is None else ""
    log.say(
        f"{data.train_pairs:,} training pairs{images}, "
        f"{len(data.val):,} validation pairs of {len(data.val.images):,} images"
    )
    log.say(
        f"{trainable_line(model)}; image tower {parameters(model.image):,}, text tower {parameters(model.text):,}, "
        f"vocabulary {tokenizer.vocab_size:,} ({tokenizer.kind}); {describe(torch.device(recipe.device))}"
    )
    truncated = tokenizer.count_truncated(data.train.captions)
    if truncated:
        remedy = (
            "raise --context-length to keep them whole" if start is None else "the pretrained weights allow no more"
        )
        log.say(
            f"{truncated:,} of {len(data.train.captions):,} captions are longer than {tokenizer.context_length} tokens "
            f"and are truncated; {remedy}"
        )


def _git_version() -> str | None:
    """The commit of the code, where it is in a git checkout."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True, text=True, timeout=5, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found

"""What a run is, for the next person: config.json, val_pairs.json and the first lines of the log."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from clip_core.config import TrainConfig
from clip_core.data.dataset import Data
from clip_core.data.tokenizer import Tokenizer
from clip_core.model.clip import CLIP
from clip_core.model.model_size import parameters
from clip_core.run.records import (
    DataFacts,
    InitialWeights,
    Parameters,
    Recipe,
    RunRecord,
    ValidationPair,
    ValidationPairs,
)
from clip_core.run.writer import RunWriter
from clip_core.training.device import describe
from clip_core.training.freezing import trained_parameters
from clip_core.training.log import Log
from clip_core.training.recipe import sentence
from clip_core.training.tuning import Start

_LIBRARIES = ("clip-tui", "torch", "torchvision", "tokenizers", "numpy", "pillow", "safetensors")


def describe_run(
    writer: RunWriter, config: TrainConfig, recipe: Recipe, model: CLIP, data: Data, start: Start | None
) -> None:
    """config.json and val_pairs.json: all that another person needs to know what this run is."""
    val = data.val
    ValidationPairs(
        pairs=[
            ValidationPair(image=str(val.images[i]), caption=val.captions[c])
            for i, c in zip(val.pair_images, val.pair_captions, strict=True)
        ]
    ).write(writer.paths.validation)
    init = None
    if start and config.tune.init:
        init = InitialWeights(source=start.source, given=config.tune.init, model=config.tune.init_model)
    RunRecord(
        config=config,
        resolved=recipe,
        model=model.config,
        parameters=Parameters(
            image=parameters(model.image), text=parameters(model.text), trainable=trained_parameters(model)
        ),
        init=init,
        data=DataFacts(
            train_pairs=len(data.train.pair_images),
            train_images=len(data.train.images),
            val_pairs=len(val.pair_images),
            val_images=len(val.images),
            classes=data.classes,
        ),
        device_name=describe(torch.device(recipe.device)),
        git=_git_version(),
        versions=_versions(),
        seed=config.run.seed,
    ).write(writer.paths.config)


def introduce(
    log: Log, run: Path, data: Data, tokenizer: Tokenizer, recipe: Recipe, model: CLIP, start: Start | None
) -> None:
    """The first lines of the log: what will happen, with what, and why."""
    log.say(f"run {run}: {sentence(recipe)}")
    if start is not None:
        log.say(f"starting from {start.source}: {trained_parameters(model):,} of {parameters(model):,} parameters move")
    log.say(
        f"{len(data.train.pair_images)} training pairs of {len(data.train.images)} images, "
        f"{len(data.val.pair_images)} validation pairs of {len(data.val.images)} images; "
        f"{parameters(model.image):,} + {parameters(model.text):,} parameters, "
        f"vocabulary {tokenizer.vocab_size} ({tokenizer.kind}); {describe(torch.device(recipe.device))}"
    )
    truncated = tokenizer.count_truncated(data.train.captions)
    if truncated:
        mend = "raise --context-length to keep them whole" if start is None else "as the weights have no more positions"
        log.say(
            f"{truncated} of {len(data.train.captions)} captions are longer than {tokenizer.context_length} tokens "
            f"and are cut there; {mend}"
        )


def _git_version() -> str | None:
    """The commit that the code was at, where it lies in a git checkout."""
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

"""What the drawn shapes of `--guard-data builtin` add to an evaluation, in CPU seconds, beside a training step.

    python -m benchmarks.second_validation [PRESET ...]

CPU time of the process, so that other work on the machine does not count; random weights.
"""

import sys
import time

from benchmarks.memory_estimate import LENGTH, random_batch
from benchmarks.train_run import header, row
from clip_core.config import DataConfig, TrainConfig, TuneConfig
from clip_core.data.clip_bpe import find_clip_tokenizer
from clip_core.files import cache_folder
from clip_core.model.clip import CLIP
from clip_core.presets import architecture
from clip_core.training.evaluate import evaluate
from clip_core.training.loss import make_loss
from clip_core.training.recipe import resolve_recipe
from clip_core.training.second_validation import load_second_validation
from clip_core.training.train_step import TrainStep

PRESETS = ("nano", "ViT-B-32")
BATCH = 8


def main(presets: list[str]) -> None:
    print(header("preset", "CPU s an evaluation", f"CPU s a step of {BATCH} pairs", "steps an evaluation costs"))
    for preset in presets or PRESETS:
        evaluation, step = seconds(preset)
        print(row(preset, f"{evaluation:.1f}", f"{step:.1f}", f"{evaluation / step:.1f}"), flush=True)


def seconds(preset: str) -> tuple[float, float]:
    """CPU seconds of one evaluation on the drawn shapes, and of one training step."""
    config = TrainConfig.model_validate(
        {"model": {"model_size": preset}, "optim": {"batch_size": BATCH}, "run": {"device": "cpu"}}
    )
    network = architecture(config.model, vocab_size=49408, end_token=49407, context_length=LENGTH)
    recipe, _ = resolve_recipe(config, 100_000, network, epoch_pairs=100_000)
    tokenizer = find_clip_tokenizer(cache_folder(), LENGTH, fixed_length=False)
    tune = TuneConfig.model_validate({"init": "weights"})
    shapes = load_second_validation(tune, DataConfig(), network.preprocessing, tokenizer, lambda line: None)
    assert shapes is not None
    step = TrainStep(CLIP(network, 0.07), recipe, config)
    batch = random_batch(BATCH, network.preprocessing.image_size)
    started = time.process_time()
    evaluate(step.model, shapes, make_loss(recipe.loss), recipe.precision)
    evaluated = time.process_time()
    step(batch, 0, recipe.lr)
    return evaluated - started, time.process_time() - evaluated


if __name__ == "__main__":
    main(sys.argv[1:])

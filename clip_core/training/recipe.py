"""What a run will do, worked out from the configuration, the data and the hardware."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from clip_core.config import FEW_PAIRS, PRESETS, LossName, TrainConfig, TuneConfig, preprocessing, preset_for
from clip_core.data.pairs import Pair, distinct_images
from clip_core.data.preprocess import typical_side
from clip_core.errors import UsageError
from clip_core.network import ClipConfig, Preprocessing
from clip_core.training.device import choose_device, choose_precision

# Peak learning rates that train from scratch without diverging; larger networks want smaller steps.
_PEAK_LR = {"nano": 1e-3, "tiny": 1e-3, "small": 7e-4, "base": 5e-4, "large": 3e-4}
_VIT_PEAK_LR = 5e-4  # what CLIP's own ViT-B was trained with (Radford et al. 2021)
_STEPS = 1000  # from scratch, and between so many passes over the data
_EPOCHS = (10, 60)
_WEIGHT_DECAY = 0.1
_EVALUATIONS = 30
_LABEL_SMOOTHING = 0.1
_VERY_FEW = 1000  # pairs: so few are known by heart within minutes, unless they never look the same
_IN_PIECES = 0.1  # of the tokens
_DETAIL, _DETAILED = 128, 96  # side of the images seen where most have at least so many pixels
_LEFT_OUT = 0.5  # of their patches and of their words
_MIN_LR = 0.01  # share of the peak
_EMA = 0.9999  # shorter at first: until 90,000 steps the average is over a ninth of the steps so far

# With weights that are there. The rate is that of a network 768 wide (ViT-B), as in Wortsman et al. 2022.
_TUNE_LR = 1e-5
_TUNE_WIDTH = 768
_LOCKED_TIMES = 3  # the locked tower holds the space in place, so the other may move further
_LORA_TIMES = 10  # adapters start at nothing and are few
_TUNE_LAYER_DECAY = 0.8
_TUNE_STEPS = 1000
_TUNE_EPOCHS = (5, 30)


@dataclass(frozen=True)
class Recipe:
    """Every default that depends on something else, as it became. Stored as `resolved` in config.json."""

    device: str
    precision: str
    batch_size: int
    lr: float
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    eval_every: int
    checkpoint_every: int
    weight_decay: float
    layer_decay: float
    why: str = ""
    seconds: float | None = None  # of training, where that is what was asked for; then `steps` is foreseen, not fixed
    loss: LossName = "softmax"
    optimizer: str = "adamw"
    label_smoothing: float = 0.0
    ema: float | None = None  # decay of the moving average that is judged and saved
    min_lr: float = _MIN_LR  # where the rate ends, as a share of the peak
    patch_dropout: float = 0.0
    word_dropout: float = 0.0
    bpe_dropout: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def epochs(self) -> int:
        return self.steps // self.steps_per_epoch

    def sentence(self) -> str:
        steps = f"{self.steps} steps" if self.seconds is None else f"{self.seconds / 60:g} minutes"
        return (
            f"{steps} of {self.batch_size} pairs ({self.steps_per_epoch} an epoch), peak learning rate "
            f"{self.lr:g} after {_warmup(self)} of warm-up, {self.precision} on {self.device}"
            + (f", evaluated every {self.eval_every} steps" if self.seconds is None else "")
            + (", sigmoid loss" if self.loss == "sigmoid" else "")
        )


def work_out(
    config: TrainConfig, train_pairs: int, network: ClipConfig, *, epoch_pairs: int, classes: bool = False
) -> Recipe:
    """Fill in what the user left open.

    Args:
        epoch_pairs: fewer than there are where captions are sampled.
        classes: the captions are few classes.

    Batch size: the power of two that gives about sixteen steps an epoch, between 16 and 128 on a CPU, 256 on a GPU.
    """
    device = choose_device(config.run.device)
    optim, tuning = config.optim, config.tune.init is not None
    largest = 128 if device.type == "cpu" else 256
    by_data = 2 ** int(math.log2(max(epoch_pairs / 16, 1)))
    batch_size = min(optim.batch_size or min(max(by_data, 16), largest), epoch_pairs)
    steps_per_epoch = epoch_pairs // batch_size
    wanted, bounds = (_TUNE_STEPS, _TUNE_EPOCHS) if tuning else (_STEPS, _EPOCHS)
    steps = steps_per_epoch * (optim.epochs or _passes(steps_per_epoch, wanted, bounds))
    precision = choose_precision(device, config.run.precision)
    loss: LossName = optim.loss or ("sigmoid" if tuning and network.logit_bias else "softmax")
    if loss == "sigmoid" and optim.label_smoothing is not None:
        raise UsageError(
            "--label-smoothing belongs to the softmax loss, and these weights were trained with the sigmoid loss; "
            "leave it out, or add --loss softmax."
        )
    few = train_pairs < FEW_PAIRS and not tuning and not classes
    # Spread over the other classes, a share of the target would teach that a red square is no more like a red circle
    # than a green triangle is: combinations never seen fall from 70 to 25 % on the drawn shapes.
    smoothed = loss == "softmax" and few
    left_out = _LEFT_OUT if few and train_pairs < _VERY_FEW else 0.0
    learnt = config.data.tokenizer in ("bpe", None) and not config.data.reads_characters
    in_pieces = learnt and few
    ema = _given(config.tune.ema, 0.0 if tuning else _EMA) or None
    recipe = Recipe(
        device=str(device),
        precision=precision,
        optimizer=optim.optimizer or ("muon" if precision == "bf16" and not tuning else "adamw"),
        batch_size=batch_size,
        lr=optim.lr or (_tune_lr(network, config.tune) if tuning else _scratch_lr(config, train_pairs)),
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        warmup_steps=0,
        eval_every=0,
        checkpoint_every=0,
        weight_decay=_given(optim.weight_decay, 0.0 if tuning else _WEIGHT_DECAY),
        layer_decay=_given(config.tune.layer_decay, _tune_layer_decay(config.tune) if tuning else 1.0),
        label_smoothing=_given(optim.label_smoothing, _LABEL_SMOOTHING if smoothed else 0.0),
        ema=ema,
        min_lr=_given(optim.min_lr, 1.0 if few and ema else _MIN_LR),
        loss=loss,
        patch_dropout=_given(optim.patch_dropout, left_out),
        word_dropout=_given(optim.word_dropout, left_out),
        bpe_dropout=_given(optim.bpe_dropout, _IN_PIECES if in_pieces else 0.0),
    )
    why = _why_tuned(recipe, config) if tuning else _why_scratch(recipe, config, train_pairs, network)
    seconds = None if optim.minutes is None else 60 * optim.minutes
    return replace(planned(recipe, config, steps), why=why, seconds=seconds)


def planned(recipe: Recipe, config: TrainConfig, steps: int) -> Recipe:
    """The recipe over so many steps: warm-up is a share of them, evaluations are spread over them."""
    epoch = recipe.steps_per_epoch
    eval_every = config.run.eval_every or max(epoch, math.ceil(steps / _EVALUATIONS / epoch) * epoch)
    return replace(
        recipe,
        steps=steps,
        warmup_steps=round(config.optim.warmup * steps),
        eval_every=eval_every,
        checkpoint_every=config.run.checkpoint_every or eval_every,
    )


def _warmup(recipe: Recipe) -> str:
    if recipe.seconds is None:
        return f"{recipe.warmup_steps} steps"
    return f"{recipe.warmup_steps / max(recipe.steps, 1):.0%} of them"


def _given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _scratch_lr(config: TrainConfig, train_pairs: int) -> float:
    return _PEAK_LR.get(preset_for(config.model, train_pairs), _VIT_PEAK_LR)


def prepare(config: TrainConfig, pairs: Sequence[Pair]) -> Preprocessing:
    """How images are prepared for a new network: larger where they show more and convolutions make it cheap."""
    model = config.model
    patches_grow = PRESETS[preset_for(model, len(pairs))].patch_size is None and model.stem != "patch"
    left_open = model.image_size is None and model.patch_size is None
    detailed = left_open and patches_grow and typical_side(distinct_images(pairs)) >= _DETAILED
    return preprocessing(model.model_copy(update={"image_size": _DETAIL}) if detailed else model)


def _tune_lr(network: ClipConfig, tune: TuneConfig) -> float:
    """About a fiftieth of the rate from scratch, lower for wider networks; higher where less of it moves."""
    times = _LORA_TIMES if tune.lora else _LOCKED_TIMES if tune.lock != "none" else 1
    return float(f"{times * _TUNE_LR * _TUNE_WIDTH / network.image.width:.1g}")


def _tune_layer_decay(tune: TuneConfig) -> float:
    return 1.0 if tune.lora else _TUNE_LAYER_DECAY


def _passes(steps_per_epoch: int, wanted: int, bounds: tuple[int, int]) -> int:
    """How many epochs make about as many steps as are wanted, within bounds."""
    fewest, most = bounds
    return min(max(math.ceil(wanted / steps_per_epoch), fewest), most)


def _why_scratch(recipe: Recipe, config: TrainConfig, train_pairs: int, network: ClipConfig) -> str:
    """The reasons of a recipe from scratch, for what the user left open; one after another, parted by semicolons."""
    model, optim, data = config.model, config.optim, config.data
    reasons = []
    if model.model_size is None:
        preset = preset_for(model, train_pairs)
        learns = {
            "nano": f"few pairs ({train_pairs:,}) teach a network of few layers more",
            "tiny": f"there is enough to learn from ({train_pairs:,} pairs)",
        }
        reasons.append(f"preset {preset}, as {learns[preset]}")
    side = network.preprocessing.image_size
    if model.image_size is None and side == _DETAIL:
        reasons.append(f"images of {side} px, as most have as much to show")
    if data.tokenizer is None:
        reasons.append(
            "characters for tokens, as drawn shapes have few words"
            if data.create_synthetic
            else f"{network.text.vocab_size:,} tokens learnt from the captions, as so many are seen often enough"
        )
    if optim.batch_size is None:
        reasons.append(f"{recipe.batch_size} pairs a step, for about sixteen steps an epoch or what the device takes")
    if optim.optimizer is None:
        reasons.append(
            "Muon for the matrices, as it learns the same in half the steps"
            if recipe.optimizer == "muon"
            else "AdamW, as Muon would be slow without bf16"
        )
    if optim.lr is None:
        reasons.append(f"peak learning rate {recipe.lr:g}, as a network of this size bears")
    if recipe.min_lr == 1 and optim.min_lr is None:
        reasons.append("a learning rate that does not fall, as the moving average settles without that")
    if optim.warmup:
        reasons.append(f"{optim.warmup:.0%} of the steps for warm-up, as the first ones know no direction yet")
    if optim.weight_decay is None:
        reasons.append(f"weight decay {recipe.weight_decay:g}, so that what no pair asks for fades")
    if optim.augment:
        reasons.append(
            "crops of at least 80% of a side, and keyword lists shuffled and thinned, as captions stay true of them"
        )
    if recipe.patch_dropout and optim.patch_dropout is None:
        reasons.append(
            f"{recipe.patch_dropout:.0%} of an image's patches left out, others at each step, "
            f"as few pairs ({train_pairs:,}) soon look familiar"
        )
    if recipe.word_dropout and optim.word_dropout is None:
        reasons.append(f"{recipe.word_dropout:.0%} of a caption's words left out, for the same reason")
    if recipe.bpe_dropout and optim.bpe_dropout is None:
        reasons.append(f"{recipe.bpe_dropout:.0%} of the tokens read in pieces, as new words are made of such pieces")
    if recipe.label_smoothing and optim.label_smoothing is None:
        reasons.append(f"label smoothing {recipe.label_smoothing:g}, as few pairs are soon known by heart")
    if config.tune.ema is None:
        reasons.append("the moving average of the weights is judged and saved, as it is the better model at any time")
    if optim.epochs is None and optim.minutes is None:
        reasons.append(f"{recipe.epochs} epochs, for about {_STEPS:,} steps in {_EPOCHS[0]} to {_EPOCHS[1]} passes")
    return "; ".join(reasons)


def _why_tuned(recipe: Recipe, config: TrainConfig) -> str:
    """The reasons of a tuning recipe, for what the user left open."""
    optim, tune = config.optim, config.tune
    reasons = []
    if optim.loss is None and recipe.loss == "sigmoid":
        reasons.append("the sigmoid loss, as their logits have a bias")
    if optim.lr is None:
        moved = "adapters start at nothing" if tune.lora else "the rate from scratch would overwrite what they know"
        reasons.append(f"peak learning rate {recipe.lr:g}, as {moved}")
    if tune.layer_decay is None and recipe.layer_decay < 1:
        reasons.append(
            f"{recipe.layer_decay:g} of it from each layer to the one below, as early layers serve any image"
        )
    if optim.weight_decay is None:
        reasons.append("no weight decay, which would pull them to zero")
    if optim.epochs is None and optim.minutes is None:
        reasons.append(f"{recipe.epochs} epochs, which is {recipe.steps} steps, as a small set soon repeats itself")
    return "; ".join(reasons)

"""What a run will do, worked out from the configuration, the data and the hardware."""

import math
from collections.abc import Sequence

from clip_core.config import FEW_PAIRS, PRESETS, LossName, TrainConfig, TuneConfig, preprocessing, preset_for
from clip_core.data.pairs import Pair, distinct_images
from clip_core.data.preprocess import typical_side
from clip_core.errors import UsageError
from clip_core.network import ClipConfig, Preprocessing
from clip_core.run.records import Recipe
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


def sentence(recipe: Recipe) -> str:
    """The plan in one line."""
    steps = f"{recipe.steps} steps" if recipe.seconds is None else f"{recipe.seconds / 60:g} minutes"
    return (
        f"{steps} of {recipe.batch_size} pairs ({recipe.steps_per_epoch} an epoch), peak learning rate "
        f"{recipe.lr:g} after {_warmup(recipe)} of warm-up, {recipe.precision} on {recipe.device}"
        + (f", evaluated every {recipe.eval_every} steps" if recipe.seconds is None else "")
        + (", sigmoid loss" if recipe.loss == "sigmoid" else "")
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
    seconds = None if optim.minutes is None else 60 * optim.minutes
    return planned(recipe, config, steps).model_copy(update={"seconds": seconds})


def planned(recipe: Recipe, config: TrainConfig, steps: int) -> Recipe:
    """The recipe over so many steps: warm-up is a share of them, evaluations are spread over them."""
    epoch = recipe.steps_per_epoch
    eval_every = config.run.eval_every or max(epoch, math.ceil(steps / _EVALUATIONS / epoch) * epoch)
    return recipe.model_copy(
        update={
            "steps": steps,
            "warmup_steps": round(config.optim.warmup * steps),
            "eval_every": eval_every,
            "checkpoint_every": config.run.checkpoint_every or eval_every,
        }
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

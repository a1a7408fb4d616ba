"""The policy for every setting that depends on the data or the hardware: values, and the reason for each default."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from clip_core.config import LossName, TrainConfig, TuneConfig
from clip_core.data.pairs import Pair, distinct_images
from clip_core.data.preprocess import typical_side
from clip_core.errors import DataError, UsageError
from clip_core.network import ClipConfig, ExternalTower, ImageTower, Preprocessing
from clip_core.presets import FEW_PAIRS, PRESETS, preprocessing, preset_for
from clip_core.run.records import Decision, Recipe
from clip_core.training.device import choose_device, choose_precision
from clip_core.training.schedule import intervals

# Peak learning rates that train from scratch without diverging; larger networks need lower ones.
_PEAK_LR = {"nano": 1e-3, "tiny": 1e-3, "small": 7e-4, "base": 5e-4, "large": 3e-4}
_VIT_PEAK_LR = 5e-4  # of CLIP's own ViT-B (Radford et al. 2021)
_STEPS = 1000
_EPOCHS = {"scratch": (10, 60), "fine-tune": (5, 30), "aligned": (3, 20)}
_STEPS_PER_EPOCH = 16
_SMALLEST_BATCH, _LARGEST_BATCH, _LARGEST_BATCH_GPU = 16, 128, 256
_WEIGHT_DECAY = {"scratch": 0.1, "fine-tune": 0.0, "aligned": 1.0}
_LABEL_SMOOTHING = 0.1
_VERY_FEW = 1000  # pairs, below which a run overfits within minutes without dropout of patches and words
_PATCH_AND_WORD_DROPOUT = 0.5
_BPE_DROPOUT = 0.1
_LARGER_IMAGES, _LARGE_SIDE = 128, 96  # image size, where most images have this many pixels a side
_MIN_LR = 0.01  # share of the peak
_EMA = 0.9999  # shorter at first: until step 90,000 the EMA is over a ninth of the steps so far

# Fine-tuning. The learning rate is that of a network of width 768 (ViT-B), as in Wortsman et al. 2022.
_TUNE_LR = 1e-5
_TUNE_WIDTH = 768
_LOCKED_TIMES = 3  # one tower is frozen, so the other may change more
_LORA_TIMES = 10  # adapters start at zero and are small
_TUNE_LAYER_DECAY = 0.8

# Aligning frozen encoders (docs/log.md).
_HEAD_LR = 1e-3
_ALIGN_STEPS = 200
_ALIGN_STEPS_PER_EPOCH = 8
_LARGEST_ALIGNED_BATCH = 1024

# Reasons for the defaults, by setting and case; run_description.py puts setting, value and reason into a line.
_FEW = f"fewer than {FEW_PAIRS:,} pairs"
_MANY = f"{FEW_PAIRS:,} pairs or more"
_ABOUT_STEPS = f"about {_STEPS_PER_EPOCH} steps per epoch"
_REASONS: dict[tuple[str, str], str] = {
    ("model_size", "nano"): _FEW,
    ("model_size", "tiny"): _MANY,
    ("image_size", "large"): f"most images have at least {_LARGE_SIDE} px a side",
    ("tokenizer", "char"): "synthetic captions have few words",
    ("vocab_size", "bpe"): "learned from the captions",
    ("batch_size", "cpu"): f"{_ABOUT_STEPS}, {_SMALLEST_BATCH} to {_LARGEST_BATCH} on a CPU",
    ("batch_size", "gpu"): f"{_ABOUT_STEPS}, {_SMALLEST_BATCH} to {_LARGEST_BATCH_GPU} on a GPU",
    ("precision", "bf16"): "supported by the hardware",
    ("precision", "fp32"): "no bf16 support in the hardware",
    ("optimizer", "muon"): "about half the steps of AdamW",
    ("optimizer", "adamw"): "Muon is slow without bf16",
    ("optimizer", "fine-tune"): "default for fine-tuning",
    ("lr", "fine-tune"): "a learning rate for training from scratch overwrites pretrained weights",
    ("lr", "lora"): "adapters start at zero",
    ("min_lr", "constant"): "EMA replaces decay",
    ("min_lr", "no ema"): "no EMA",
    ("min_lr", "fine-tune"): "default for fine-tuning",
    ("min_lr", "classes"): "the captions are classes",
    ("min_lr", "many"): _MANY,
    ("precision", "aligned"): "projection heads are small",
    ("batch_size", "aligned"): f"about {_ALIGN_STEPS_PER_EPOCH} steps per epoch, at most {_LARGEST_ALIGNED_BATCH}",
    ("optimizer", "aligned"): "default for projection heads",
    ("lr", "aligned"): "default for projection heads",
    ("weight_decay", "aligned"): "default for projection heads",
    ("ema", "aligned"): "evaluated and saved in place of the raw weights",
    ("weight_decay", "scratch"): "default for training from scratch",
    ("weight_decay", "fine-tune"): "it pulls towards zero, not towards the pretrained weights",
    ("layer_decay", "fine-tune"): "early layers are general",
    ("augment", "on"): "captions remain correct",
    ("patch_dropout", "very few"): f"fewer than {_VERY_FEW:,} pairs",
    ("word_dropout", "very few"): f"fewer than {_VERY_FEW:,} pairs",
    ("label_smoothing", "few"): _FEW,
    ("ema", "scratch"): "evaluated and saved in place of the raw weights",
    ("loss", "sigmoid"): "the pretrained weights have a logit bias",
} | {
    ("epochs", start): f"about {_ALIGN_STEPS if start == 'aligned' else _STEPS:,} steps, {fewest} to {most} epochs"
    for start, (fewest, most) in _EPOCHS.items()
}

T = TypeVar("T")


@dataclass
class _Decisions:
    """The defaults that were chosen automatically."""

    made: list[Decision] = field(default_factory=list)

    def note(self, setting: str, value: Any, case: str) -> None:
        self.made.append(Decision(setting=setting, value=value, reason=_REASONS.get((setting, case), case)))

    def choose(self, setting: str, given: T | None, value: T, case: str, *, off: T | None = None) -> T:
        """The given value, else `value`, which is recorded unless it switches the setting off."""
        if given is not None:
            return given
        if value != off:
            self.note(setting, value, case)
        return value


def choose_preprocessing(config: TrainConfig, pairs: Sequence[Pair], count: int | None = None) -> Preprocessing:
    """Preprocessing of a new network: a larger image size where the images have the pixels and the stem is cheap.

    Args:
        count: of the training pairs, where `pairs` are some of them.
    """
    model = config.model
    conv_stem = PRESETS[preset_for(model, count or len(pairs))].patch_size is None and model.stem != "patch"
    left_open = model.image_size is None and model.patch_size is None
    larger = left_open and conv_stem and typical_side(distinct_images(pairs)) >= _LARGE_SIDE
    return preprocessing(model.model_copy(update={"image_size": _LARGER_IMAGES}) if larger else model)


def resolve_recipe(
    config: TrainConfig,
    train_pairs: int,
    network: ClipConfig,
    *,
    epoch_pairs: int,
    classes: bool = False,
    processes: int = 1,
) -> tuple[Recipe, list[Decision]]:
    """Resolve every setting that was not given.

    Args:
        epoch_pairs: pairs of an epoch; fewer than `train_pairs` where one caption an image is sampled.
        classes: the captions are a few classes.
        processes: that divide each batch among them.
    Returns:
        The recipe, and a record of each default that was chosen automatically.
    Raises:
        DataError: if there are too few pairs for a contrastive loss.
        UsageError: if a flag does not fit the loss of the pretrained weights.
    """
    if epoch_pairs < 2:
        raise DataError(
            f"a contrastive loss needs at least 2 training pairs, and there is {epoch_pairs}; add pairs"
            + ("." if config.data.val_file else ", or give the validation set with --val-file.")
        )
    case = _case_of(config, network, train_pairs, classes=classes)
    decide = _Decisions(_of_model(config, network, train_pairs, case))
    device = choose_device(config.run.device)
    precision = choose_precision(device, config.run.precision)
    if case.start == "aligned" and config.run.precision is None:
        precision = "fp32"
    decide.choose("precision", config.run.precision, precision, "aligned" if case.start == "aligned" else precision)
    batch_size = min(
        decide.choose("batch_size", config.optim.batch_size, *_batch_size(epoch_pairs, device.type, case)), epoch_pairs
    )
    batch_size = _divided(batch_size, config.optim.batch_size, processes)
    steps_per_epoch = epoch_pairs // batch_size
    loss = _loss(config, network, decide)
    values: dict[str, Any] = {"device": str(device), "precision": precision, "loss": loss, "batch_size": batch_size}
    values |= {"processes": processes, "shard": config.run.shard}
    values |= _optimisation(config, network, train_pairs, case, precision, decide)
    values |= _regularisation(config, network, case, loss, decide)
    # The EMA's line stands after those of regularisation; its decay was chosen with the learning rate.
    decide.choose("ema", config.tune.ema, values["ema"] or 0.0, case.start, off=0.0)
    epochs = config.optim.epochs or _epochs(steps_per_epoch, case.start)
    if config.optim.minutes is None:
        decide.choose("epochs", config.optim.epochs, epochs, case.start)
    seconds = None if config.optim.minutes is None else 60 * config.optim.minutes
    schedule = intervals(config, steps_per_epoch * epochs, steps_per_epoch)
    return Recipe(**values, seconds=seconds, steps_per_epoch=steps_per_epoch, **schedule), decide.made


def _divided(batch_size: int, given: int | None, processes: int) -> int:
    """The batch size, or the next lower one that the processes can divide.

    Raises:
        UsageError: if it was given and cannot be divided, or there are fewer pairs than processes.
    """
    if given is not None and given % processes:
        raise UsageError(f"--batch-size {given} cannot be divided among {processes} processes; use a multiple of it.")
    if batch_size < processes:
        raise UsageError(f"a batch has {batch_size} pairs, fewer than the {processes} processes; start fewer of them.")
    return batch_size // processes * processes


class _Case(NamedTuple):
    """What the defaults depend on. `few`, `very_few`: pairs to train a whole network on."""

    start: Literal["scratch", "aligned", "fine-tune"]
    few: bool
    very_few: bool
    classes: bool


def _case_of(config: TrainConfig, network: ClipConfig, train_pairs: int, *, classes: bool) -> _Case:
    if len(network.external) == 2 and not any(tower.unfrozen for tower in network.external):
        return _Case("aligned", few=False, very_few=False, classes=classes)
    if config.tune.init is not None:
        return _Case("fine-tune", few=False, very_few=False, classes=classes)
    few = train_pairs < FEW_PAIRS and not classes
    return _Case("scratch", few=few, very_few=few and train_pairs < _VERY_FEW, classes=classes)


def _of_model(config: TrainConfig, network: ClipConfig, train_pairs: int, case: _Case) -> list[Decision]:
    """Defaults of a new network, or of the projection heads."""
    if case.start == "fine-tune":
        return []
    return _of_heads(config, network) if case.start == "aligned" else _of_network(config, network, train_pairs)


def _optimisation(
    config: TrainConfig, network: ClipConfig, train_pairs: int, case: _Case, precision: str, decide: _Decisions
) -> dict[str, Any]:
    """Optimiser, learning rate and its schedule, EMA, weight decay."""
    optim, tune, start = config.optim, config.tune, case.start
    muon = precision == "bf16" and start == "scratch"
    optimizer = decide.choose(
        "optimizer", optim.optimizer, "muon" if muon else "adamw",
        start if start != "scratch" else "muon" if muon else "adamw",
    )  # fmt: skip
    if start == "fine-tune":
        rate, why = tune_lr(network, tune), "lora" if tune.lora else "fine-tune"
    elif start == "aligned":
        rate, why = _HEAD_LR, "aligned"
    else:
        rate, why = _scratch_lr(config, train_pairs)
    lr = decide.choose("lr", optim.lr, rate, why)
    decay_by_layer = _TUNE_LAYER_DECAY if start == "fine-tune" and not tune.lora else 1.0
    layer_decay = decide.choose("layer_decay", tune.layer_decay, decay_by_layer, start, off=1.0)
    ema = tune.ema if tune.ema is not None else 0.0 if start == "fine-tune" else _EMA
    min_lr = decide.choose("min_lr", optim.min_lr, *_min_lr(case, ema=bool(ema)))
    if optim.warmup == type(optim).model_fields["warmup"].default:
        decide.note("warmup", optim.warmup, "")
    weight_decay = decide.choose("weight_decay", optim.weight_decay, _WEIGHT_DECAY[start], start)
    return {
        "optimizer": optimizer, "lr": lr, "min_lr": min_lr, "weight_decay": weight_decay, "layer_decay": layer_decay,
        "ema": ema or None,
    }  # fmt: skip


def _regularisation(
    config: TrainConfig, network: ClipConfig, case: _Case, loss: LossName, decide: _Decisions
) -> dict[str, Any]:
    """Augmentation, dropout and label smoothing; what is of images or captions, where features do not replace them."""
    optim = config.optim
    images, captions = (
        not isinstance(tower, ExternalTower) or tower.unfrozen > 0 for tower in (network.image, network.text)
    )
    if optim.augment and (images or captions):
        decide.note("augment", True if images and captions else "images" if images else "captions", "on")
    own_image = isinstance(network.image, ImageTower)
    own_text = not isinstance(network.text, ExternalTower)
    dropout = _PATCH_AND_WORD_DROPOUT if case.very_few else 0.0
    patch_dropout = decide.choose(
        "patch_dropout", optim.patch_dropout, dropout if own_image else 0.0, "very few", off=0.0
    )
    word_dropout = decide.choose("word_dropout", optim.word_dropout, dropout if own_text else 0.0, "very few", off=0.0)
    trains_bpe = own_text and config.data.tokenizer in ("bpe", None) and not config.data.reads_characters
    bpe_dropout = decide.choose(
        "bpe_dropout", optim.bpe_dropout, _BPE_DROPOUT if trains_bpe and case.few else 0.0, "", off=0.0
    )
    # Not for classes: smoothing over the other classes would teach that a red square is no closer to a red circle than
    # a green triangle is. Unseen combinations of the synthetic shapes fall from 70 to 25 %.
    smoothing = _LABEL_SMOOTHING if loss == "softmax" and case.few else 0.0
    label_smoothing = decide.choose("label_smoothing", optim.label_smoothing, smoothing, "few", off=0.0)
    return {
        "patch_dropout": patch_dropout, "word_dropout": word_dropout, "bpe_dropout": bpe_dropout,
        "label_smoothing": label_smoothing,
    }  # fmt: skip


def _of_network(config: TrainConfig, network: ClipConfig, train_pairs: int) -> list[Decision]:
    """Defaults of a new network: preset, image size, tokenizer."""
    decide = _Decisions()
    preset = preset_for(config.model, train_pairs)
    decide.choose("model_size", config.model.model_size, preset, preset)
    size = network.preprocessing.image_size
    if not isinstance(network.image, ExternalTower) and config.model.image_size is None and size == _LARGER_IMAGES:
        decide.note("image_size", size, "large")
    if not isinstance(network.text, ExternalTower) and config.data.tokenizer is None:
        if config.data.reads_characters:
            decide.note("tokenizer", "char", "char")
        elif config.data.vocab_size is None:
            decide.note("vocab_size", network.text.vocab_size, "bpe")
    return decide.made


def _of_heads(config: TrainConfig, network: ClipConfig) -> list[Decision]:
    """Defaults of the projection heads."""
    decide, given = _Decisions(), config.encoders
    if config.tune.init is None:
        head = network.external[0].head
        decide.choose("head", given.head, head.kind, "")
        decide.choose("head_width", given.head_width, head.hidden, "")
        decide.choose("head_dropout", given.head_dropout, head.dropout, "")
        decide.choose("embed_dim", given.embed_dim, network.embed_dim, "")
    return decide.made


def _batch_size(epoch_pairs: int, device: str, case: _Case) -> tuple[int, str]:
    """The power of two that gives about so many steps an epoch, within what the device computes efficiently."""
    if case.start == "aligned":  # a step on features costs little
        steps, largest, why = _ALIGN_STEPS_PER_EPOCH, _LARGEST_ALIGNED_BATCH, "aligned"
    else:
        steps = _STEPS_PER_EPOCH
        largest, why = (_LARGEST_BATCH, "cpu") if device == "cpu" else (_LARGEST_BATCH_GPU, "gpu")
    by_data = 1 << int(math.log2(max(epoch_pairs / steps, 1)))
    return min(max(by_data, _SMALLEST_BATCH), largest), why


def _loss(config: TrainConfig, network: ClipConfig, decide: _Decisions) -> LossName:
    sigmoid = config.tune.init is not None and network.logit_bias
    default: LossName = "sigmoid" if sigmoid else "softmax"
    loss = decide.choose("loss", config.optim.loss, default, "sigmoid", off="softmax")
    if loss == "sigmoid" and config.optim.label_smoothing is not None:
        raise UsageError(
            "--label-smoothing applies to the softmax loss, and these weights were trained with the sigmoid loss; "
            "leave it out, or add --loss softmax."
        )
    return loss


def _min_lr(case: _Case, *, ema: bool) -> tuple[float, str]:
    """The last learning rate as a share of the peak, and the reason."""
    if ema and (case.few or case.start == "aligned"):
        return 1.0, "constant"
    why = "no ema" if not ema else "fine-tune" if case.start == "fine-tune" else "classes" if case.classes else "many"
    return _MIN_LR, why


def _scratch_lr(config: TrainConfig, train_pairs: int) -> tuple[float, str]:
    preset = preset_for(config.model, train_pairs)
    return _PEAK_LR.get(preset, _VIT_PEAK_LR), f"default for {preset}"


def tune_lr(network: ClipConfig, tune: TuneConfig) -> float:
    """About a fiftieth of the rate from scratch, lower for wider networks; higher where fewer weights are trainable."""
    times = _LORA_TIMES if tune.lora else _LOCKED_TIMES if tune.lock != "none" else 1
    image = network.image
    width = image.head_input if isinstance(image, ExternalTower) else getattr(image, "width", _TUNE_WIDTH)
    return float(f"{times * _TUNE_LR * _TUNE_WIDTH / width:.1g}")


def _epochs(steps_per_epoch: int, start: str) -> int:
    """The number of epochs with about as many steps as are usual, within bounds."""
    steps = _ALIGN_STEPS if start == "aligned" else _STEPS
    fewest, most = _EPOCHS[start]
    return min(max(math.ceil(steps / steps_per_epoch), fewest), most)

"""The one configuration: flags, the TUI's form, config.json and the documentation are made from these models.

`TrainConfig` is what a user says; `ClipConfig` (network.py) is what a network is. A None in `TrainConfig` means
"worked out from the data and the hardware"; what it became is stored under `resolved` in config.json.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from clip_core.errors import UsageError
from clip_core.network import ClipConfig, Frozen, ImageTower, Pooling, Preprocessing, Stem, TextTower

_HEAD_WIDTH = 64  # as in CLIP


class Shape(NamedTuple):
    width: int
    layers: int

    @property
    def heads(self) -> int:
        return self.width // _HEAD_WIDTH

    def changed(self, width: int | None, layers: int | None) -> "Shape":
        """With another width, or other layers; None leaves either as it is."""
        return Shape(width or self.width, layers or self.layers)


class Preset(NamedTuple):
    """Shapes of both towers.

    `patch_size`: None is the largest power of two that leaves four patches a side; convolutions make large ones cheap.
    `published`: the traits of OpenAI's image tower (class token, pre-norm, no patch bias).
    """

    embed_dim: int
    image: Shape
    text: Shape
    image_size: int = 64
    patch_size: int | None = 8
    stem: Stem = Stem.PATCH
    published: bool = False

    def patch_at(self, image_size: int) -> int:
        return self.patch_size or 1 << (image_size // 4).bit_length() - 1


def _own(width: int, layers: int) -> Preset:
    return Preset(width, Shape(width, layers), Shape(width, layers))


def _published(embed_dim: int, patch_size: int, image: Shape, text: Shape) -> Preset:
    return Preset(embed_dim, image, text, 224, patch_size, published=True)


PRESETS: dict[str, Preset] = {
    "nano": Preset(256, Shape(256, 3), Shape(256, 1), patch_size=None, stem=Stem.CONV),
    "tiny": _own(256, 6),
    "small": _own(384, 8),
    "base": _own(512, 12),
    "large": _own(768, 24),
    "ViT-B-32": _published(512, 32, Shape(768, 12), Shape(512, 12)),
    "ViT-B-16": _published(512, 16, Shape(768, 12), Shape(512, 12)),
    "ViT-L-14": _published(768, 14, Shape(1024, 24), Shape(768, 12)),
}


# ---------------------------------------------------------------- what a user says


DataFormat = Literal["json", "jsonl", "csv", "flickr", "coco", "text-beside", "class-folders", "webdataset"]

Captions = Literal["all", "sample"]


class DataConfig(Frozen):
    """Where the pairs come from and how they are split."""

    data_file: Path | None = Field(
        None, description="the pairs: a JSON, JSONL, CSV, COCO or Flickr list, a folder of images, or tar shards"
    )
    format: DataFormat | None = Field(None, description="what the pairs are in (default: recognised)")
    image_column: str | None = Field(None, description="column or key of the images (default: found)")
    caption_column: str | None = Field(None, description="column or key of the captions (default: found)")
    class_template: str = Field("a photo of a {}", description="caption of a folder's images; {} is its name")
    image_root: Path | None = Field(None, description="folder the image paths start from (default: beside the list)")
    val_file: Path | None = Field(None, description="pairs to evaluate on (default: a share of the images)")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="share of the images held out for evaluation")
    captions: Captions = Field(
        "all",
        description="what an epoch takes of an image's captions: all of them, or one, drawn anew each time (sample)",
    )
    create_synthetic: bool = Field(False, description="draw coloured shapes where the data file is not there yet")
    synthetic_count: int = Field(1800, ge=18, le=1_000_000, description="how many shapes to draw")
    synthetic_size: int = Field(64, ge=16, le=1024, description="side of a drawn image, pixels")
    holdout_combinations: int = Field(
        0, ge=0, le=12, description="colour-shape combinations kept out of training entirely"
    )
    tokenizer: Literal["char", "bpe"] | Path | None = Field(
        None, description="char, bpe (trained on the captions) or a tokenizer.json (default: by the captions)"
    )
    vocab_size: int | None = Field(
        None,
        ge=300,
        le=200_000,
        description="largest vocabulary of a trained BPE (default: 3000 or more, by the captions)",
    )
    context_length: int = Field(77, ge=3, le=4096, description="longest caption, in tokens")
    bad_pairs: Literal["skip", "refuse"] = Field("skip", description="what to do with unusable pairs")
    max_bad_share: float = Field(0.05, ge=0, le=1, description="share of unusable pairs past which training refuses")
    cache_gb: float = Field(4.0, ge=0, description="decoded images kept on disk, for all runs, up to this many GB")
    workers: int | None = Field(None, ge=1, le=256, description="decoding threads (default: the cores)")

    @property
    def reads_characters(self) -> bool:
        """Whether a new tokenizer will have characters for tokens; drawn shapes have few words."""
        return self.tokenizer == "char" or (self.tokenizer is None and self.create_synthetic)


PresetName = Literal["nano", "tiny", "small", "base", "large", "ViT-B-32", "ViT-B-16", "ViT-L-14"]
FEW_PAIRS = 50_000  # to train on; below, small data has its own presets and habits


class ModelConfig(Frozen):
    """The network to train from scratch."""

    model_size: PresetName | None = Field(None, description="preset of both towers (default: by the number of pairs)")
    image_size: int | None = Field(
        None,
        ge=16,
        le=1024,
        description="side of the image the model sees, pixels (default: 64 or 128, by the data; ViT presets: 224)",
    )
    patch_size: int | None = Field(None, ge=2, le=128, description="side of a patch, pixels (default: the preset's)")
    stem: Literal["patch", "conv"] | None = Field(
        None, description="how patches are embedded: one linear map, or small convolutions (default: the preset's)"
    )
    layers: int | None = Field(None, ge=1, le=48, description="layers of each tower (default: the preset's)")
    width: int | None = Field(
        None, ge=64, le=4096, multiple_of=64, description="width of all layers and embeddings (default: the preset's)"
    )


class TuneConfig(Frozen):
    """Weights to start from, and what keeps them alive while they learn."""

    init: str | None = Field(None, description="start from published weights (file, folder or hub name) or a run")
    init_model: str | None = Field(None, description="open_clip's name of the model, where --init does not say")
    lock: Literal["none", "image", "text"] = Field("none", description="keep a tower as it is")
    unlock_last: int = Field(0, ge=0, le=100, description="blocks of the locked tower that learn, counted from its end")
    lora: int | None = Field(None, ge=1, le=1024, description="train low-rank adapters of this rank, nothing else")
    lora_alpha: float | None = Field(None, gt=0, le=4096, description="weight of the adapters (default: 2 x rank)")
    ema: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="decay of the moving average that is judged and saved; 0: none (default: 0.9999; init: 0)",
    )
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="learning rate of a layer over the next one's (default: 1; init: below 1)"
    )
    blend: float | None = Field(None, ge=0, le=1, description="end with a blend: 0 the start, 1 the tuned; try 0.5")
    guard_data: Path | None = Field(None, description="second pair list, judged alongside, so that forgetting is seen")
    guard_root: Path | None = Field(None, description="folder of the guard's images (default: beside its list)")


LossName = Literal["softmax", "sigmoid"]


class OptimConfig(Frozen):
    """How the weights are moved."""

    loss: LossName | None = Field(
        None, description="CLIP's or SigLIP's (default: softmax; init: sigmoid where the weights have a logit bias)"
    )
    label_smoothing: float | None = Field(
        None, ge=0, lt=1, description="share of the softmax loss's target spread over the batch (default: by the data)"
    )
    epochs: int | None = Field(
        None, ge=1, le=1_000_000, description="passes over the training pairs (default: by the data)"
    )
    minutes: float | None = Field(
        None, gt=0, le=100_000, description="train for so long instead, and land the schedule there"
    )
    batch_size: int | None = Field(None, ge=2, le=65536, description="pairs a step (default: by the data)")
    lr: float | None = Field(
        None, gt=0, le=1, description="peak learning rate (default: by the model size; far lower with --init)"
    )
    optimizer: Literal["muon", "adamw"] | None = Field(
        None, description="what moves the weights (default: muon from scratch in bf16, else adamw)"
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the run over which the learning rate rises")
    min_lr: float | None = Field(
        None, ge=0, le=1, description="share of the peak that a cosine falls to; 1: it stays (default: by the data)"
    )
    weight_decay: float | None = Field(
        None, ge=0, le=10, description="decay of matrices; norms, biases, temperature have none (default: 0.1; init: 0)"
    )
    beta2: float = Field(0.98, gt=0, lt=1, description="AdamW's second moment decay")
    grad_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    temperature: float | None = Field(
        None,
        ge=0.01,
        le=1,
        description="initial temperature, 1 / logit scale (default: 0.07; sigmoid: 0.1; init: its own)",
    )
    patch_dropout: float | None = Field(
        None, ge=0, lt=1, description="share of an image's patches that a step leaves out (default: by the data)"
    )
    word_dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of a caption's words that a step leaves out; not of lists (default: by the data)",
    )
    bpe_dropout: float | None = Field(
        None, ge=0, lt=1, description="share of the tokens read as the two they were merged from (default: by the data)"
    )
    augment: bool = Field(
        True, description="random crops, and lists of keywords shuffled and thinned; never flips or changes colour"
    )


class RunConfig(Frozen):
    """Where the run is written, on what it computes, and how often it reports."""

    run_dir: Path | None = Field(None, description="the run's directory (default: runs/DATE-TIME)")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of weights, order, crops and split")
    device: str | None = Field(None, description="cuda, cuda:N, mps or cpu (default: the first there is)")
    precision: Literal["fp32", "bf16"] | None = Field(None, description="default: bf16 where the hardware has it")
    eval_every: int | None = Field(
        None, ge=1, description="steps between evaluations (default: once an epoch, at most about 30 a run)"
    )
    checkpoint_every: int | None = Field(None, ge=1, description="steps between checkpoints (default: at evaluations)")
    keep_checkpoints: int = Field(2, ge=1, description="how many latest checkpoints to keep beside the best")
    log_every: int = Field(10, ge=1, description="steps between train lines in metrics.jsonl")


class TrainConfig(Frozen):
    """Everything that a training run is told."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    tune: TuneConfig = TuneConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _tuning_fits(self) -> Self:
        """What belongs to weights that are there cannot be chosen; what needs such weights needs --init."""
        tune = self.tune
        if tune.init is None:
            why = "needs weights to start from; add --init PATH"
            _refuse(tune, ("init_model", "lock", "unlock_last", "lora", "lora_alpha", "blend"), why)
        else:
            why = "cannot be chosen with --init, whose weights bring their own; leave it out"
            _refuse(self.model, ("model_size", "patch_size", "stem", "layers", "width"), why)
            _refuse(self.data, ("tokenizer", "vocab_size"), why)
            _refuse(self.optim, ("temperature",), why)
        if self.optim.minutes is not None:
            _refuse(self.optim, ("epochs",), "says how long to train, and so does --minutes; leave one of them out")
        if self.optim.loss == "sigmoid":
            _refuse(self.optim, ("label_smoothing",), "belongs to the softmax loss; leave it out with --loss sigmoid")
        if self.data.reads_characters:
            _refuse(self.optim, ("bpe_dropout",), "needs tokens that were merged; add --tokenizer bpe, or leave it out")
        if tune.lock == "none":
            _refuse(tune, ("unlock_last",), "opens the end of a locked tower; add --lock image or --lock text")
        if tune.lora is None:
            _refuse(tune, ("lora_alpha",), "weighs adapters; add --lora RANK")
        if tune.guard_data is None:
            _refuse(tune, ("guard_root",), "is the folder of the guard's images; add --guard-data FILE")
        return self


def _refuse(section: Frozen, fields: tuple[str, ...], why: str) -> None:
    """Raise ValueError for the first of these fields that is not at its default."""
    for name in fields:
        if getattr(section, name) != type(section).model_fields[name].default:
            raise ValueError(f"{flag(name)} {why}")


# Fields with more than one spelling on the command line; the field's own stays.
SPELLINGS: dict[str, tuple[str, ...]] = {"data_file": ("--data", "--data-file")}

SECTIONS: tuple[str, ...] = tuple(TrainConfig.model_fields)


def flag(field: str) -> str:
    """The command-line spelling of a field: `batch_size` -> `--batch-size`."""
    return "--" + field.replace("_", "-")


def explain(error: ValidationError) -> UsageError:
    """A validation error as one sentence per mistake: the flag, what it was, what it may be."""
    sentences = []
    for mistake in error.errors(include_url=False):
        names = [str(part) for part in mistake["loc"] if str(part) in _FIELDS] or [str(p) for p in mistake["loc"][-1:]]
        message = mistake["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if mistake["type"] == "extra_forbidden":
            sentences.append(f"unknown setting {'.'.join(str(p) for p in mistake['loc'])}")
        elif mistake["type"] == "value_error" or not names:
            sentences.append(message)
        else:
            sentences.append(f"{flag(names[-1])} is {mistake['input']!r}; it {message}")
    return UsageError("; ".join(dict.fromkeys(sentences)) + ".")


_FIELDS = frozenset(
    name for section in (DataConfig, ModelConfig, TuneConfig, OptimConfig, RunConfig) for name in section.model_fields
)


def parse_config(values: dict[str, Any]) -> TrainConfig:
    """A nested dict, as config.json holds it, as a TrainConfig.

    Raises:
        UsageError: naming each flag that is unknown or out of range.
    """
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise explain(error) from None


def preset_for(model: ModelConfig, pairs: int) -> PresetName:
    """The preset that was asked for, or the one for so many training pairs.

    From few pairs a network learns most where it has little to find out: convolutions before few layers, and one layer
    to read captions with. See docs/log.md.
    """
    return model.model_size or ("tiny" if pairs >= FEW_PAIRS else "nano")


def preprocessing(model: ModelConfig) -> Preprocessing:
    """How images are prepared for a network trained from scratch; presets chosen by the data agree on 64 px."""
    return Preprocessing(image_size=model.image_size or PRESETS[model.model_size or "tiny"].image_size)


def architecture(
    model: ModelConfig, *, vocab_size: int, end_token: int, context_length: int, pairs: int = 0
) -> ClipConfig:
    """The network that a preset names, for a tokenizer's vocabulary.

    Args:
        pairs: of the training, by which the preset is chosen where none is named.
    Raises:
        UsageError: if the image size is not a multiple of the patch size.
    """
    preset = PRESETS[preset_for(model, pairs)]
    prepared = preprocessing(model)
    patch_size = model.patch_size or preset.patch_at(prepared.image_size)
    if prepared.image_size % patch_size:
        raise UsageError(f"--image-size {prepared.image_size} is not a multiple of --patch-size {patch_size}.")
    traits: dict[str, Any] = (
        {"pooling": Pooling.CLASS_TOKEN, "pre_norm": True, "patch_bias": False} if preset.published else {}
    )
    image, text = (shape.changed(model.width, model.layers) for shape in (preset.image, preset.text))
    try:
        return ClipConfig(
            embed_dim=model.width or preset.embed_dim,
            image=ImageTower(
                image_size=prepared.image_size,
                patch_size=patch_size,
                width=image.width,
                heads=image.heads,
                layers=image.layers,
                stem=Stem(model.stem or preset.stem),
                **traits,
            ),
            text=TextTower(
                vocab_size=vocab_size,
                end_token=end_token,
                context_length=context_length,
                width=text.width,
                heads=text.heads,
                layers=text.layers,
            ),
            preprocessing=prepared,
        )
    except ValidationError as error:
        raise explain(error) from None

"""The one configuration: flags, the TUI's form, config.json and the documentation are made from these models.

`TrainConfig` is the configuration of a run; `ClipConfig` (network.py) that of a network. A None in `TrainConfig` means
"chosen automatically from the data and the hardware"; config.json has the value under `resolved`, and the reason under
`decisions`.
"""

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from clip_core.conflicts import find_conflict
from clip_core.errors import UsageError
from clip_core.flags import flag
from clip_core.network import Frozen


class Section(Frozen):
    """A part of the configuration."""

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        """An empty string would be read as the current folder where a path is expected."""
        if value == "":
            raise PydanticCustomError("empty", "should not be empty")
        return value


DataFormat = Literal[
    "json", "jsonl", "csv", "parquet", "flickr", "coco", "imagefolder", "sidecar", "class-folders", "webdataset"
]

Captions = Literal["all", "sample"]


_SCHEME = re.compile(r"(?:^|(?<=::))([a-z][a-z0-9+.-]+):/+(?=[^/])", re.I)


def streamed_pattern(path: Path) -> str | None:
    """The pattern that a path spells if it can only be a stream: a URL, or patterns joined by `::`; else None.

    `Path` makes https:/host of https://host; the second slash is put back.
    """
    text = _SCHEME.sub(lambda found: "file:///" if found[1] == "file" else f"{found[1]}://", str(path))
    return text if "://" in text or "::" in text else None


def spelt(path: Path) -> str:
    """A path, or the URL that it was made of."""
    return streamed_pattern(path) or str(path)


def is_streamed(path: Path | None, stream: bool) -> bool:
    """The one rule: a URL and joined patterns are streamed, local shards with --stream, everything else is indexed."""
    return path is not None and (stream or streamed_pattern(path) is not None)


class DataConfig(Section):
    """The data set and its split."""

    data_file: Path | None = Field(
        None,
        description="training pairs: a JSON, JSONL, CSV, Parquet, COCO or Flickr list, a folder of images, or shards",
    )
    format: DataFormat | None = Field(None, description="data format (default: detected)")
    image_column: str | None = Field(None, description="column or key of the images (default: detected)")
    caption_column: str | None = Field(None, description="column or key of the captions (default: detected)")
    class_template: str = Field("a photo of a {}", description="caption for a class folder; {} is the class name")
    image_root: Path | None = Field(
        None, description="folder that image paths are relative to (default: the folder of the list)"
    )
    val_file: Path | None = Field(None, description="validation set (default: split from the training images)")
    leave_out: Path | None = Field(None, description="pairs to leave out of training and validation: a flags.json")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="fraction of the images in the validation set")
    captions: Captions = Field(
        "all",
        description="captions per image in an epoch: all of them, or one at random (sample)",
    )
    create_synthetic: bool = Field(
        False, description="create synthetic data (coloured shapes) if the data file does not exist"
    )
    synthetic_count: int = Field(1800, ge=18, le=1_000_000, description="number of synthetic images")
    synthetic_size: int = Field(64, ge=16, le=1024, description="size of a synthetic image, pixels")
    holdout_combinations: int = Field(0, ge=0, le=12, description="colour-shape combinations excluded from training")
    tokenizer: Literal["char", "bpe"] | Path | None = Field(
        None,
        description="char, bpe (trained on the captions) or a tokenizer.json (default: bpe; char for synthetic data)",
    )
    vocab_size: int | None = Field(
        None,
        ge=300,
        le=200_000,
        description="maximum size of a trained BPE vocabulary (default: 3000 or more, by the number of captions)",
    )
    context_length: int = Field(77, ge=3, le=4096, description="context length of the text tower, tokens")
    bad_pairs: Literal["skip", "refuse"] = Field("skip", description="skip invalid pairs, or refuse to start")
    max_bad_share: float = Field(0.05, ge=0, le=1, description="maximum fraction of invalid pairs")
    cache_gb: float = Field(
        4.0, ge=0, description="size of the cache of decoded images on disk, shared by all runs, GB"
    )
    workers: int | None = Field(None, ge=1, le=256, description="decoding threads (default: one per core)")
    stream: bool = Field(
        False,
        description="read WebDataset shards from front to back while training, without an index; URLs always are",
    )
    shuffle_buffer: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="stream: pairs in the shuffle buffer of each process (default: 5,000, at most 1 GB of images)",
    )
    readers: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="stream: shards read at the same time by all processes together (default: 4 by each)",
    )
    epoch_pairs: int | None = Field(
        None,
        ge=2,
        description="stream: pairs that count as an epoch (default: a sizes.json, else estimated by the first pairs)",
    )
    val_pairs: int | None = Field(
        None,
        ge=2,
        le=1_000_000,
        description="stream: first pairs that are the validation set (default: --val-fraction of all, at most 2,000)",
    )

    @property
    def streamed(self) -> bool:
        """Whether the training pairs are read from front to back."""
        return is_streamed(self.data_file, self.stream)

    @property
    def reads_characters(self) -> bool:
        """Whether a new tokenizer has characters for tokens, as for synthetic captions, which have few words."""
        return self.tokenizer == "char" or (self.tokenizer is None and self.create_synthetic)


PresetName = Literal["nano", "tiny", "small", "base", "large", "ViT-B-32", "ViT-B-16", "ViT-L-14"]


class ModelConfig(Section):
    """The network, where it is trained from scratch."""

    model_size: PresetName | None = Field(None, description="preset (default: nano below 50,000 pairs, else tiny)")
    image_size: int | None = Field(
        None,
        ge=16,
        le=1024,
        description="input image size, pixels (default: 64, 128 for large images; ViT presets: 224)",
    )
    patch_size: int | None = Field(None, ge=2, le=128, description="patch size, pixels (default: that of the preset)")
    stem: Literal["patch", "conv"] | None = Field(
        None,
        description="patch embedding: one linear layer (patch) or convolutions (conv) (default: that of the preset)",
    )
    layers: int | None = Field(None, ge=1, le=48, description="layers of each tower (default: that of the preset)")
    width: int | None = Field(
        None,
        ge=64,
        le=4096,
        multiple_of=64,
        description="width of both towers and of the embedding (default: that of the preset)",
    )


class TuneConfig(Section):
    """Pretrained weights, and how they are fine-tuned."""

    init: str | None = Field(None, description="pretrained weights to fine-tune: a file, a folder, a hub name or a run")
    init_model: str | None = Field(
        None,
        description="open_clip model name where the weights do not include it, or gelu or quickgelu alone",
    )
    lock: Literal["none", "image", "text"] = Field("none", description="freeze a tower")
    unlock_last: int = Field(0, ge=0, le=100, description="last blocks of the frozen tower that stay trainable")
    lora: int | None = Field(None, ge=1, le=1024, description="train LoRA adapters of this rank only")
    lora_alpha: float | None = Field(None, gt=0, le=4096, description="LoRA alpha (default: 2 x rank)")
    ema: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="decay of the EMA of the weights, evaluated and saved; 0: no EMA (default: 0.9999; init: 0)",
    )
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="layer-wise learning rate decay (default: 1; init: 0.8, with LoRA 1)"
    )
    blend: float | None = Field(
        None,
        ge=0,
        le=1,
        description="interpolate at the end between initial (0) and fine-tuned weights (1), as in WiSE-FT; try 0.5",
    )
    guard_data: Path | None = Field(
        None,
        description="second validation set, to detect forgetting: pairs, builtin[,FOLDER] or none "
        "(default: none; init: builtin)",
    )
    guard_root: Path | None = Field(
        None, description="image root of the second validation set (default: the folder of its list)"
    )


class EncoderConfig(Section):
    """Pretrained encoders, frozen; projection heads on their features are trained."""

    image_encoder: str | None = Field(
        None, description="pretrained image encoder: timm name, Hugging Face folder or name, .onnx file, a CLIP, a run"
    )
    text_encoder: str | None = Field(
        None, description="pretrained text encoder: Hugging Face folder or name, token vectors, a CLIP, a run"
    )
    encoder_preprocessing: str | None = Field(
        None,
        description="preprocessing of the image encoder, where its files have none: imagenet, imagenet-squash, clip or "
        "half",
    )
    encoder_image_size: int | None = Field(
        None, ge=8, le=1024, description="image size of the image encoder, pixels (default: its own)"
    )
    image_features: Literal["pooled", "class_token", "mean", "patches"] | None = Field(
        None,
        description="features of an image: as its authors pool them (pooled), class_token, mean of the patches, or all "
        "patches with attention pooling in the head (default: pooled)",
    )
    head: Literal["linear", "mlp", "residual"] | None = Field(
        None, description="projection heads: one layer, an MLP, or both added (default: residual)"
    )
    head_width: int | None = Field(None, ge=8, le=65536, description="hidden width of the heads (default: 2048)")
    head_dropout: float | None = Field(None, ge=0, lt=1, description="dropout of the heads (default: 0.5)")
    embed_dim: int | None = Field(None, ge=8, le=8192, description="width of the embedding (default: 512)")
    normalise_features: bool = Field(True, description="L2-normalise the features before the heads")
    views: int | None = Field(
        None,
        ge=1,
        le=64,
        description="augmented views of an image to compute features of (default: 1, the image alone)",
    )
    structure: float = Field(
        0.0, ge=0, description="weight of the structure-preserving regularisation (arXiv 2506.16895)"
    )
    cyclip: float = Field(0.0, ge=0, description="weight of CyCLIP's consistency terms (arXiv 2205.14459)")
    unfreeze_last: int = Field(
        0, ge=0, le=100, description="fine-tune the last blocks of both encoders, from an aligned run: --init RUN"
    )

    @property
    def given(self) -> bool:
        """Whether a pretrained encoder is to be aligned."""
        return self.image_encoder is not None or self.text_encoder is not None


LossName = Literal["softmax", "sigmoid"]
OptimizerName = Literal["muon", "adamw"]
Precision = Literal["fp32", "bf16"]
RECALL_AT = (1, 5, 10)  # k of the recalls of an evaluation


class OptimConfig(Section):
    """Loss, optimiser, schedule and regularisation."""

    loss: LossName | None = Field(
        None,
        description="CLIP's softmax or SigLIP's sigmoid (default: softmax; init: sigmoid with a logit bias)",
    )
    label_smoothing: float | None = Field(
        None, ge=0, lt=1, description="label smoothing of the softmax loss (default: 0.1 below 50,000 pairs, else 0)"
    )
    hard_negatives: bool = Field(
        False,
        description="one wrong caption a pair, made from its words, as a further negative of the images (NegCLIP)",
    )
    epochs: int | None = Field(None, ge=1, le=1_000_000, description="epochs (default: about 1,000 steps)")
    minutes: float | None = Field(
        None, gt=0, le=100_000, description="training time in place of --epochs; the schedule ends with it"
    )
    batch_size: int | None = Field(
        None,
        ge=2,
        le=65536,
        description="pairs per step (default: about 16 steps per epoch, within 16 to 128; GPU: to 256)",
    )
    chunk_size: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="pairs in a forward pass, with the gradient of the whole batch (default: all that fit into memory)",
    )
    lr: float | None = Field(
        None, gt=0, le=1, description="peak learning rate (default: by the preset; init: about a fiftieth)"
    )
    optimizer: OptimizerName | None = Field(
        None, description="optimiser (default: muon from scratch in bf16, else adamw)"
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="linear warm-up, fraction of the steps")
    min_lr: float | None = Field(
        None,
        ge=0,
        le=1,
        description="end of the cosine decay, fraction of the peak; 1: constant (default: 1 below 50,000 pairs)",
    )
    weight_decay: float | None = Field(
        None, ge=0, le=10, description="weight decay; not of norms, biases and temperature (default: 0.1; init: 0)"
    )
    beta2: float = Field(0.98, gt=0, lt=1, description="AdamW beta2")
    grad_clip: float = Field(1.0, gt=0, description="maximum gradient norm")
    temperature: float | None = Field(
        None,
        ge=0.01,
        le=1,
        description="initial temperature, 1 / logit scale (default: 0.07; sigmoid: 0.1; init: that of the weights)",
    )
    patch_dropout: float | None = Field(
        None, ge=0, lt=1, description="patch dropout (default: 0.5 below 1,000 pairs, else 0)"
    )
    word_dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="word dropout of captions; not of keyword lists (default: 0.5 below 1,000 pairs, else 0)",
    )
    bpe_dropout: float | None = Field(
        None, ge=0, lt=1, description="BPE dropout (default: 0.1 below 50,000 pairs, else 0)"
    )
    augment: bool = Field(
        True, description="random crops, keyword lists shuffled and thinned; no flips, no colour changes"
    )

    @field_validator("warmup", mode="before")
    @classmethod
    def _warmup_is_no_number_of_steps(cls, value: Any) -> Any:
        if isinstance(value, int | float) and value >= 1:
            raise PydanticCustomError("fraction", "should be a fraction of the steps, less than 1 (default 0.1)")
        return value


LoggerName = Literal["tensorboard", "wandb", "trackio"]
OnNan = Literal["stop", "rollback"]


class RunConfig(Section):
    """Run directory, device, precision, and how often the run reports and saves."""

    run_dir: Path | None = Field(None, description="run directory (default: runs/DATE-TIME)")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of weights, order, augmentation and split")
    device: str | None = Field(None, description="cuda, cuda:N, mps or cpu (default: the first available)")
    devices: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="processes on this machine, each on its own GPU, or on the CPU (default: one)",
    )
    restarts: int = Field(
        0, ge=0, le=1000, description="times that --devices starts its processes again where one has died; they resume"
    )
    shard: bool = Field(
        False, description="divide weights, gradients and optimiser state among the processes (FSDP2): more exchange"
    )
    checkpoint_activations: bool = Field(
        False, description="compute the activations of each block again in the backward pass: less memory, more time"
    )
    precision: Precision | None = Field(None, description="fp32 or bf16 (default: bf16 where the hardware supports it)")
    eval_every: int | None = Field(
        None, ge=1, description="steps between evaluations (default: one epoch or more, about 30 evaluations a run)"
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between checkpoints (default: that of --eval-every)"
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="number of latest checkpoints to keep, besides the best and those saved by request"
    )
    on_nan: OnNan = Field(
        "stop",
        description="at a loss or gradient that is not finite: stop, or roll back to the last checkpoint and skip the "
        "batches since then (rollback)",
    )
    log_every: int = Field(10, ge=1, description="steps between training metrics")
    log_to: tuple[LoggerName, ...] | None = Field(
        None, description="loggers besides the run directory: tensorboard, wandb, trackio, or several of them"
    )

    @field_validator("log_to", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """Several names in one text, as a form has them."""
        return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


class TrainConfig(Frozen):
    """The configuration of a training run, by section."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    encoders: EncoderConfig = EncoderConfig()
    tune: TuneConfig = TuneConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _without_conflicts(self) -> Self:
        conflict = find_conflict(self)
        if conflict is not None:
            raise ValueError(conflict)
        return self


SECTIONS: tuple[str, ...] = tuple(TrainConfig.model_fields)
TITLES = {  # of the sections, in help and forms
    "data": "Data",
    "model": "Model",
    "encoders": "Pretrained encoders",
    "tune": "Fine-tuning",
    "optim": "Optimiser",
    "run": "Run",
}


def explain(error: ValidationError) -> UsageError:
    """A validation error as one sentence per mistake: the flag, its value, and what is allowed."""
    sentences = []
    for mistake in error.errors(include_url=False):
        names = [str(part) for part in mistake["loc"] if str(part) in _FIELDS] or [str(p) for p in mistake["loc"][-1:]]
        message = mistake["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if mistake["type"] == "extra_forbidden":
            sentences.append(f"unknown setting {'.'.join(str(p) for p in mistake['loc'])}")
        elif mistake["type"] == "value_error" or not names:
            sentences.append(message)
        else:
            allowed = "should be a whole number" if mistake["type"] in _NOT_WHOLE else message
            sentences.append(f"{flag(names[-1])} is {_typed(mistake['input'])}; it {allowed}")
    return UsageError("; ".join(dict.fromkeys(sentences)) + ".")


_NOT_WHOLE = ("int_parsing", "int_from_float", "int_type")


def _typed(value: object) -> str:
    """A value as it was typed: a number bare, other text in quotes."""
    try:
        float(str(value))
    except ValueError:
        return repr(value)
    return str(value)


_FIELDS = frozenset(
    name
    for section in (DataConfig, ModelConfig, EncoderConfig, TuneConfig, OptimConfig, RunConfig)
    for name in section.model_fields
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

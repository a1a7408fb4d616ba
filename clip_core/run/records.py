"""The schemas of a run directory's JSON files, as typed models. docs/run-directory.md describes each field."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clip_core.config import LossName, TrainConfig
from clip_core.errors import RunError
from clip_core.files import read_json, write_json
from clip_core.network import ClipConfig

SCHEMA_VERSION = 2
HEARTBEAT_SECONDS = 2.0
STALLED_AFTER = 30.0  # seconds without a heartbeat


class State(StrEnum):
    """What a run, or an export, is doing; STALLED and KILLED are concluded by the reader."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    STALLED = "stalled"
    KILLED = "killed"

    @property
    def alive(self) -> bool:
        return self in (State.STARTING, State.RUNNING, State.PAUSED, State.STALLED)


class Record(BaseModel):
    """A file of the run directory. Fields that a later version added are ignored by readers."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record that a file holds.

        Raises:
            RunError: if there is no such file, or it is not a record of this kind.
        """
        values = read_json(path)
        if values is None:
            raise RunError(f"{path} cannot be read: there is no such file, or it is not JSON.")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the file"
            raise RunError(f"{path} is invalid at {place}: {first['msg']}.") from None

    @classmethod
    def find(cls, path: Path) -> Self | None:
        """The record that a file holds, or None where there is none or it cannot be read."""
        try:
            return cls.read(path)
        except RunError:
            return None

    def write(self, path: Path) -> None:
        """Replace the file atomically."""
        write_json(path, self.model_dump(mode="json", exclude_none=True))


class Status(Record):
    """status.json and export.json: what the writing process does; replaced at every heartbeat."""

    state: State = State.STARTING
    pid: int = 0
    host: str = ""
    message: str | None = None  # export.json: what it does now
    step: int = 0
    steps: int = 0
    epoch: int = 0
    epochs: int = 0
    heartbeat: float = 0.0  # seconds since 1970
    started: float = 0.0
    train_seconds: float = 0.0  # of training, without stops, pauses and evaluations
    error: str | None = None


class Decision(Record):
    """A default that was chosen automatically."""

    setting: str  # a field of TrainConfig, or what a person calls it
    value: Any
    reason: str


class Recipe(Record):
    """Every setting that depends on the data or the hardware, as it was resolved."""

    device: str
    precision: Literal["fp32", "bf16"]
    batch_size: int
    lr: float
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    eval_every: int
    checkpoint_every: int
    weight_decay: float
    layer_decay: float
    seconds: float | None = None  # of training, where --minutes was given; `steps` is then an estimate
    loss: LossName = "softmax"
    optimizer: Literal["muon", "adamw"] = "adamw"
    label_smoothing: float = 0.0
    ema: float | None = None  # decay of the EMA of the weights; None without one
    min_lr: float = 0.01  # the last learning rate, as a share of the peak
    patch_dropout: float = 0.0
    word_dropout: float = 0.0
    bpe_dropout: float = 0.0

    @property
    def epochs(self) -> int:
        return self.steps // self.steps_per_epoch


class Parameters(Record):
    image: int
    text: int
    trainable: int


class InitialWeights(Record):
    """What --init named."""

    source: str  # as it was found, in words
    given: str  # as it was typed
    model: str | None = None  # --init-model


class DataFacts(Record):
    """What the run was trained on."""

    train_pairs: int
    train_images: int
    val_pairs: int
    val_images: int
    classes: list[str] | None = None  # where the captions are classes
    fingerprint: str = ""  # sha256 of the pairs' names and captions, to recognise the same data elsewhere


class RunRecord(Record):
    """config.json: everything that was decided when the run began."""

    schema_version: int = Field(SCHEMA_VERSION, alias="schema")
    config: TrainConfig
    resolved: Recipe
    decisions: list[Decision] = []
    model: ClipConfig
    parameters: Parameters
    init: InitialWeights | None = None
    data: DataFacts
    device_name: str
    git: str | None = None
    versions: dict[str, str] = {}
    seed: int

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), populate_by_name=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        values = read_json(path)
        schema = values.get("schema") if values else None
        if isinstance(schema, int) and schema != SCHEMA_VERSION:
            age = "a newer" if schema > SCHEMA_VERSION else "an older"
            raise RunError(
                f"{path} was written by {age} version of clip-tui (schema {schema}, this one reads {SCHEMA_VERSION}); "
                f"use that version, or train again."
            )
        return super().read(path)

    def write(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json", by_alias=True))


class ValidationPair(Record):
    image: str  # a path, absolute; may be a member of a tar shard
    caption: str


class ValidationPairs(Record):
    """validation.json: the validation pairs, in the order in which they are evaluated."""

    pairs: list[ValidationPair]


class Probe(Record):
    """probes/STEP.json: a few validation pairs, every image against every caption."""

    step: int
    images: list[str]
    captions: list[str]
    similarity: list[list[float]]  # cosines, images in rows
    image_to_text: list[list[int]]  # for each image, its captions in `captions`, nearest first
    text_to_image: list[list[int]]


class Pointer(Record):
    """latest.json and best.json: the checkpoint that is the latest, or the best."""

    checkpoint: str  # its folder's name below checkpoints/
    step: int
    metric: str | None = None  # best.json: what it was chosen by
    scores: dict[str, float] = {}
    blend: float | None = None  # where it is a blend of the initial and the final weights


class Blend(Record):
    share: float  # 0 the initial weights, 1 the final ones
    scores: dict[str, float]


class Blends(Record):
    """blends.json: scores on the line between the initial and the final weights."""

    chosen: float
    step: int
    blends: list[Blend]


def shares(scores: Mapping[str, float], digits: int = 6) -> dict[str, float]:
    """Scores rounded for a file."""
    return {key: round(value, digits) for key, value in scores.items()}

"""The schemas of a run directory's JSON files, as typed models. docs/run-directory.md describes each field."""

import os
import time
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clip_core.config import LossName, OptimizerName, Precision, TrainConfig
from clip_core.errors import RunError
from clip_core.files import kind_of, read_json, write_json
from clip_core.network import ClipConfig
from clip_core.text import printable

SCHEMA_VERSION = 2
HEARTBEAT_SECONDS = 2.0
STALLED_AFTER = 30.0  # seconds without a heartbeat


class State(StrEnum):
    """The state of a run or an export; STALLED and KILLED are never written, a reader finds them."""

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
            if os.path.lexists(path) and not path.is_file():
                kind = kind_of(path)
                raise RunError(printable(f"{path} is {kind}, and only a regular file is read; put the file back."))
            problem = "is not a JSON file" if os.path.lexists(path) else "does not exist"
            raise RunError(printable(f"{path} {problem}; is {path.parent} a run directory?"))
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"] if "(" not in str(part)) or "the file"
            if first["type"] == "extra_forbidden":
                problem = f"has the unknown setting {place}; use the version of clip-tui that wrote it"
            else:
                problem = f"is invalid at {place}: {first['msg']}; restore it, or train again"
            raise RunError(printable(f"{path} {problem}.")) from None

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
    """status.json and export.json: the state of the writing process; replaced at every heartbeat."""

    state: State = State.STARTING
    pid: int = 0
    host: str = ""
    message: str | None = None  # export.json: what it does now
    step: int = 0
    steps: int = 0
    epoch: int = 0
    epochs: int = 0
    heartbeat: float = 0.0  # seconds since 1970
    started: float = 0.0  # seconds since 1970
    train_seconds: float = 0.0  # of training, without stops, pauses and evaluations
    error: str | None = None  # why it failed, complete


class Decision(Record):
    """A default that was chosen automatically."""

    setting: str  # a field of TrainConfig, or a name for several
    value: Any
    reason: str


class Recipe(Record):
    """Every setting that depends on the data or the hardware, with the value that is used."""

    device: str
    precision: Precision
    batch_size: int  # of all processes together
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
    optimizer: OptimizerName = "adamw"
    label_smoothing: float = 0.0
    ema: float | None = None  # decay of the EMA of the weights; None without one
    min_lr: float = 0.01  # the last learning rate, as a fraction of the peak
    patch_dropout: float = 0.0
    word_dropout: float = 0.0
    bpe_dropout: float = 0.0
    processes: int = 1  # that the run began with
    shard: bool = False  # whether they divided the network among them

    @property
    def epochs(self) -> int:
        return self.steps // self.steps_per_epoch


class Parameters(Record):
    """Numbers of parameters."""

    image: int
    text: int
    trainable: int


class InitialWeights(Record):
    """The weights that --init named."""

    source: str  # a description: file, format, model
    given: str  # --init as it was typed
    model: str | None = None  # --init-model


class DataFacts(Record):
    """The data of a run."""

    train_pairs: int
    train_images: int | None = None  # unknown of a stream
    val_pairs: int
    val_images: int
    classes: list[str] | None = None  # where the captions are classes
    fingerprint: str = ""  # sha256 of the pairs' names and captions, to recognise the same data elsewhere


class RunRecord(Record):
    """config.json: configuration, decisions and environment, written when the run begins."""

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
            problem = f"was written by {age} version of clip-tui (schema {schema}, this one reads {SCHEMA_VERSION})"
            raise RunError(printable(f"{path} {problem}; use that version, or train again."))
        return super().read(path)

    def write(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json", by_alias=True))


class StreamRecord(Record):
    """stream.json: the shards of a run on a stream, and how they are read."""

    shards: list[str]  # in their order, below the folder that all are in
    lanes: int  # shards read at the same time by all processes
    buffer_size: int  # pairs in the shuffle buffer of a lane
    buffer_bytes: int  # of images in it, at most
    first: int  # the shard at which the training pairs begin; those before are the validation set
    offset: int  # the byte in that shard
    epoch_pairs: int  # pairs that count as an epoch
    counted: str  # where that number is from
    left_out: str | None = None  # sha256 of left_out.json, if there is one
    words: dict[str, list[str]] | None = None  # of hard negatives, by class; null without them


class ValidationPair(Record):
    """One pair."""

    image: str  # absolute path, or a member of a tar shard
    caption: str


class ValidationPairs(Record):
    """validation.json: the validation pairs, in the order in which they are evaluated."""

    pairs: list[ValidationPair]


class Probe(Record):
    """probes/STEP.json: up to 8 validation pairs, every image against every caption."""

    step: int
    images: list[str]
    captions: list[str]
    similarity: list[list[float]]  # cosines, images in rows
    image_to_text: list[list[int]]  # for each image, its captions in `captions`, nearest first
    text_to_image: list[list[int]]


class FlaggedPair(Record):
    """A pair that a person flagged as bad."""

    image: str  # absolute path, or a member of a tar shard
    caption: str
    time: float = 0.0  # seconds since 1970


class Flags(Record):
    """flags.json: pairs flagged as bad; `clip-train --leave-out` leaves them out."""

    pairs: list[FlaggedPair]

    def toggled(self, image: str, caption: str) -> "Flags":
        """With the pair, or without it where it was flagged already."""
        kept = [pair for pair in self.pairs if (pair.image, pair.caption) != (image, caption)]
        if len(kept) < len(self.pairs):
            return Flags(pairs=kept)
        return Flags(pairs=[*kept, FlaggedPair(image=image, caption=caption, time=round(time.time(), 3))])

    def changed(self, pairs: Iterable[tuple[str, str]], *, flag: bool) -> "Flags":
        """With all of these pairs, or without them."""
        chosen = dict.fromkeys(pairs)
        there = {(pair.image, pair.caption) for pair in self.pairs}
        if not flag:
            return Flags(pairs=[pair for pair in self.pairs if (pair.image, pair.caption) not in chosen])
        now = round(time.time(), 3)
        added = [FlaggedPair(image=i, caption=c, time=now) for i, c in chosen if (i, c) not in there]
        return Flags(pairs=[*self.pairs, *added])


class Pointer(Record):
    """latest.json and best.json: the latest checkpoint, and the best one."""

    checkpoint: str  # the name of its folder in checkpoints/
    step: int
    metric: str | None = None  # best.json: key of the metric that it was chosen by
    scores: dict[str, float] = {}  # best.json: its evaluation
    blend: float | None = None  # fraction of the final weights, if it is a blend of initial and final weights


class Label(Record):
    """label.json: what a user says about the run; the trainer neither writes nor reads it."""

    name: str = ""  # in lists, in place of the folder's
    note: str = ""
    pinned: bool = False  # first in lists

    @classmethod
    def called(cls, run: Path) -> str:
        """The name of a run directory that a user gave it, else the folder's."""
        label = cls.find(run / "label.json")
        return (label.name if label else "") or run.name


class Blend(Record):
    """One blend of initial and final weights."""

    share: float  # fraction of the final weights
    scores: dict[str, float]


class Blends(Record):
    """blends.json: scores of blends of the initial and the final weights."""

    chosen: float  # the share of the blend that became the best checkpoint
    step: int
    blends: list[Blend]

"""From a configuration to a trainer before its first step: data, plan, batches, model, and what is said of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from clip_core.config import TrainConfig
from clip_core.data.dataset import Data
from clip_core.data.pairs import pair_hashes
from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import RunError
from clip_core.model.clip import CLIP
from clip_core.model.cpu_speed import keep_freed_memory, use_all_cores
from clip_core.network import ClipConfig, Preprocessing
from clip_core.presets import architecture
from clip_core.run.reader import RunReader
from clip_core.run.records import Decision, Recipe, RunRecord
from clip_core.run.writer import RunWriter
from clip_core.training.aligned import (
    Encoders,
    alternative,
    at_their_places,
    compute_features,
    find_encoders,
    initialise_heads,
    say_encoders,
    with_encoders,
)
from clip_core.training.batch_order import pairs_an_epoch
from clip_core.training.batches import BatchMaker
from clip_core.training.caption_augmentation import CaptionAugmentation
from clip_core.training.caption_inputs import CaptionInputs
from clip_core.training.evaluate import ValidationSet
from clip_core.training.frozen_features import CaptionFeatures
from clip_core.training.initial_model import initial_model, refuse_other_dropout, refuse_sharding
from clip_core.training.initial_weights import Start
from clip_core.training.log import Log
from clip_core.training.negative_captions import IndexedNegatives, indexed_negatives
from clip_core.training.preflight import settings_of, with_absolute_paths
from clip_core.training.processes import Processes
from clip_core.training.ranks import Rank
from clip_core.training.recipe import resolve_recipe
from clip_core.training.request_queue import RequestQueue
from clip_core.training.run_description import log_start, write_record, write_validation_pairs
from clip_core.training.same_pairs import store_hashes
from clip_core.training.second_validation import load_second_validation
from clip_core.training.stream_batches import StreamBatches
from clip_core.training.stream_start import StreamStart, stream_negatives, stream_shards, write_stream
from clip_core.training.trainer import Trainer
from clip_core.training.training_data import find_stream, load_training_data, make_tokenizer, warn_of_leaks

_CAPTION_GROUPS = 4  # of like length, on a CPU; a GPU is faster with one large product


class Plan(NamedTuple):
    """The network and how it will be trained."""

    network: ClipConfig
    recipe: Recipe
    decisions: list[Decision]


@dataclass(frozen=True)
class Inputs:
    """What a run begins with: its data and all that is made of them once, and the plan.

    Attributes:
        start: the pretrained weights to fine-tune, if there are any.
        record: config.json of a run that is resumed.
        stream: None where the data are indexed.
        negatives: hard negatives of indexed pairs, if there are any.
        captions: what makes the inputs of the text tower: the tokenizer, or the features of a frozen encoder.
        preprocessing: of the images, also where features stand for them.
        encoders: the pretrained encoders, if there are any.
        second: the second validation set, if there is one.
        recipe: that of the plan, with the device of this process.
    """

    start: Start | None
    record: RunRecord | None
    stream: StreamStart | None
    data: Data
    tokenizer: Tokenizer
    captions: Tokenizer | CaptionFeatures
    negatives: IndexedNegatives | None
    preprocessing: Preprocessing
    encoders: Encoders | None
    second: ValidationSet | None
    plan: Plan
    recipe: Recipe


def build_trainer(
    config: TrainConfig,
    start: Start | None,
    writer: RunWriter,
    log: Log,
    requests: RequestQueue,
    *,
    resume: bool,
    processes: Processes | None = None,
) -> Trainer:
    """Everything before the first step, of a new run or a resumed one.

    Args:
        processes: those of the run; their number is that of config.json, or one that divides its batches.
    """
    processes = processes or Processes()
    rank = processes.rank
    use_all_cores()
    record = RunReader(writer.path).record() if resume else None
    stream = find_stream(config, writer, log, resume=resume, processes=processes)
    with processes.first_on_machine():
        inputs = _prepare(config, start, record, stream, writer, log, processes)
    data, captions, plan, recipe = inputs.data, inputs.captions, inputs.plan, inputs.recipe
    batches: BatchMaker | StreamBatches
    if stream is None:
        batches = _batches(config, data, captions, recipe, rank, inputs.negatives)
    else:
        batches = _stream_batches(
            config, stream, inputs.tokenizer, inputs.preprocessing, recipe, rank, writer.path, log
        )
    torch.manual_seed(config.run.seed)  # not before: libraries draw weights for the encoders that they then load
    model = initial_model(config, plan.network, recipe, start, writer.path if rank.writes else None, batches, rank)
    if inputs.encoders is not None:
        initialise_heads(model, inputs.encoders, data, captions, fit=start is None)
    if record is not None:
        refuse_other_dropout(record, model, rank, writer.path)
    if config.run.shard:
        refuse_sharding(model)
    stored = with_absolute_paths(config)  # so that the run can be resumed from any folder
    if rank.writes:
        _write_description(writer, stored, inputs, model, batches)
    _log_start(log, writer.path, config, inputs, model, rank)
    processes.exchange(None)  # all are ready, or the run ends here
    validation = ValidationSet(data.val, data.val_store, data.classes, captions, inputs.preprocessing)
    return Trainer(
        model, batches, validation, writer, log, requests, recipe=recipe, config=config,
        second_validation=inputs.second, processes=processes, settings=settings_of(stored, plan.recipe, plan.network),
    )  # fmt: skip


def _prepare(
    config: TrainConfig,
    start: Start | None,
    record: RunRecord | None,
    stream: StreamStart | None,
    writer: RunWriter,
    log: Log,
    processes: Processes,
) -> Inputs:
    """Load the data and all that is made of it once; what other processes of this machine then find in the cache."""
    rank = processes.rank
    encoders = find_encoders(config, record.model if record else start.network if start else None)
    if encoders is not None:
        say_encoders(encoders, config.encoders, log.say)
    data = load_training_data(config, start, encoders, record, writer, log, stream)
    if record is None and rank.writes and stream is None:  # whose training images are not at hand
        warn_of_leaks(data, log)
    preprocessing = data.train_store.preprocessing
    tokenizer = make_tokenizer(
        config, writer.path, data, start, encoders, stored=record is not None or not rank.writes, store=rank.writes
    )
    second = load_second_validation(config.tune, config.data, preprocessing, tokenizer, log.say)
    plan = _plan(config, data, tokenizer, start, encoders, record, rank)
    recipe = plan.recipe.model_copy(update={"device": processes.device(plan.recipe.device)})
    if recipe.device == "cpu":
        keep_freed_memory()
    captions: Tokenizer | CaptionFeatures = tokenizer
    if encoders is not None:
        data, captions, second = compute_features(
            encoders, data, tokenizer, second, plan.network, views=config.encoders.views or 1,
            device=recipe.device, say=log.say,
        )  # fmt: skip
    negatives = None
    if config.optim.hard_negatives and stream is None:
        negatives = indexed_negatives(data.train, captions, config.run.seed, log.say)
    return Inputs(
        start=start, record=record, stream=stream, data=data, tokenizer=tokenizer, captions=captions,
        negatives=negatives, preprocessing=preprocessing, encoders=encoders, second=second, plan=plan, recipe=recipe,
    )  # fmt: skip


def _plan(
    config: TrainConfig,
    data: Data,
    tokenizer: Tokenizer,
    start: Start | None,
    encoders: Encoders | None,
    record: RunRecord | None,
    rank: Rank,
) -> Plan:
    """What was decided when a resumed run began, else what is decided now.

    Raises:
        RunError: if the processes cannot divide the batches of a resumed run.
    """
    if record is not None:
        if record.resolved.batch_size % rank.size:
            raise RunError(
                f"{rank.size} processes cannot divide the batches of this run, {record.resolved.batch_size} pairs; "
                f"resume it with {record.resolved.processes}, or with another number that divides them."
            )
        return Plan(at_their_places(record.model, config.encoders), record.resolved, record.decisions)
    size = data.train_store.preprocessing.image_size
    if start is not None:
        network = start.network
    else:
        external = encoders is not None and encoders.image is not None
        network = architecture(
            config.model if external else config.model.model_copy(update={"image_size": size}),
            vocab_size=tokenizer.vocab_size,
            end_token=tokenizer.end_token,
            context_length=tokenizer.context_length,
            pairs=data.train_pairs,
        )
        if encoders is not None:
            network = with_encoders(network, encoders, config.encoders)
    epoch_pairs = data.streamed_pairs or pairs_an_epoch(data.train, config.data.captions)
    classes = data.classes is not None
    recipe, decisions = resolve_recipe(
        config, data.train_pairs, network, epoch_pairs=epoch_pairs, classes=classes, processes=rank.size
    )
    if recipe.loss == "sigmoid":
        network = network.model_copy(update={"logit_bias": True})
    return Plan(network, recipe, decisions)


def _batches(
    config: TrainConfig,
    data: Data,
    tokenizer: Tokenizer | CaptionFeatures,
    recipe: Recipe,
    rank: Rank,
    negatives: IndexedNegatives | None,
) -> BatchMaker:
    sharded = config.run.shard and rank.size > 1
    return BatchMaker(
        data.train,
        data.train_store,
        tokenizer,
        batch_size=recipe.batch_size,
        seed=config.run.seed,
        captions=config.data.captions,
        augmentation=CaptionAugmentation(lists=config.optim.augment, word_dropout=recipe.word_dropout),
        bpe_dropout=recipe.bpe_dropout,
        groups=_CAPTION_GROUPS if recipe.device == "cpu" and not sharded else 1,
        rank=rank,
        equal=sharded,
        negatives=negatives,
    )


def _stream_batches(
    config: TrainConfig,
    stream: StreamStart,
    tokenizer: Tokenizer,
    preprocessing: Preprocessing,
    recipe: Recipe,
    rank: Rank,
    run: Path,
    log: Log,
) -> StreamBatches:
    sharded = config.run.shard and rank.size > 1
    captions = CaptionInputs(
        tokenizer,
        groups=_CAPTION_GROUPS if recipe.device == "cpu" and not sharded else 1,
        augmentation=CaptionAugmentation(lists=config.optim.augment, word_dropout=recipe.word_dropout),
        bpe_dropout=recipe.bpe_dropout,
    )
    shards = stream_shards(config, stream, recipe.batch_size, rank, log.say)
    negatives = None
    if config.optim.hard_negatives:
        negatives = stream_negatives(stream, run, config.run.seed, tokenizer, log.say)
    return StreamBatches(
        shards, captions, preprocessing, config.data, log,
        batch_size=recipe.batch_size, epoch_pairs=stream.epoch_pairs, rank=rank, equal=sharded,
        negatives=negatives,
    )  # fmt: skip


def _write_description(
    writer: RunWriter, config: TrainConfig, inputs: Inputs, model: CLIP, batches: BatchMaker | StreamBatches
) -> None:
    """Write what a run is, by which it is resumed; of one that is resumed, where its data and encoders are now.

    Args:
        config: with absolute paths.
    """
    data, plan, record = inputs.data, inputs.plan, inputs.record
    if record is None:
        if inputs.stream is not None and isinstance(batches, StreamBatches):
            write_stream(writer.path, inputs.stream, batches.shards, batches.negatives)
        else:
            store_hashes(writer.path, pair_hashes(data.report.good))
        write_record(writer, config, plan.recipe, plan.decisions, model, data, inputs.start)
    elif record.config != config:
        write_validation_pairs(writer, data)
        record.model_copy(update={"config": config, "model": plan.network}).write(writer.paths.config)


def _log_start(log: Log, run: Path, config: TrainConfig, inputs: Inputs, model: CLIP, rank: Rank) -> None:
    """The first lines of the log: plan, data and model, what else could be done, and the processes."""
    plan, data = inputs.plan, inputs.data
    log_start(log, run, data, inputs.tokenizer, plan.recipe, plan.decisions, model, inputs.start)
    if inputs.record is None and inputs.stream is None and (other := alternative(config, data.train_pairs)):
        log.say(other)
    if rank.size > 1:
        divided = ", which divide the network among them" if config.run.shard else ""
        log.say(f"{rank.size} processes, each with {plan.recipe.batch_size // rank.size} pairs of a batch{divided}")
    elif config.run.shard:
        log.say("one process, which has the whole network: --shard, with which this run began, divides nothing")

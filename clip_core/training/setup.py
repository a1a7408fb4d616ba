"""From a configuration to a trainer before its first step: data, tokenizer, network, recipe, batches, model."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from clip_core.config import LossName, TrainConfig
from clip_core.data.dataset import Data, load_data, read_lists
from clip_core.data.near_duplicates import leaked
from clip_core.data.pairs import pair_hashes
from clip_core.data.store import EXACT, ImageStore
from clip_core.data.tokenizer import Tokenizer, train_bpe, train_characters
from clip_core.errors import DataError, RunError, UsageError
from clip_core.model.clip import CLIP, attach_encoders, uninitialised_clip
from clip_core.model.cpu_speed import keep_freed_memory, use_all_cores
from clip_core.network import ClipConfig, Preprocessing
from clip_core.presets import architecture
from clip_core.run.paths import RunPaths
from clip_core.run.reader import RunReader
from clip_core.run.records import Decision, Recipe, RunRecord
from clip_core.run.writer import RunWriter
from clip_core.text import printable
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
from clip_core.training.batches import Batch, BatchMaker
from clip_core.training.blend import store_initial_weights
from clip_core.training.caption_augmentation import CaptionAugmentation
from clip_core.training.caption_inputs import CaptionInputs
from clip_core.training.evaluate import ValidationSet
from clip_core.training.fast_decode import FAST
from clip_core.training.frozen_features import CaptionFeatures
from clip_core.training.image_augmentation import network_input
from clip_core.training.initial_weights import Start
from clip_core.training.log import Log
from clip_core.training.loss import best_bias, matching_pairs
from clip_core.training.preflight import settings_of, with_absolute_paths
from clip_core.training.processes import Processes
from clip_core.training.ranks import Rank
from clip_core.training.recipe import choose_preprocessing, resolve_recipe
from clip_core.training.request_queue import RequestQueue
from clip_core.training.run_description import log_start, write_record, write_validation_pairs
from clip_core.training.same_pairs import refuse_other_pairs, store_hashes
from clip_core.training.second_validation import load_second_validation
from clip_core.training.stream_batches import StreamBatches
from clip_core.training.stream_start import (
    StreamStart,
    begin_stream,
    continue_stream,
    load_stream,
    stream_shards,
    write_stream,
)
from clip_core.training.trainable import choose_trainable
from clip_core.training.trainer import Trainer

_CAPTION_GROUPS = 4  # of like length, on a CPU; a GPU is faster with one large product
# Of CLIP's own training (Radford et al. 2021) and of SigLIP's (Zhai et al. 2023).
_TEMPERATURE: dict[LossName, float] = {"softmax": 0.07, "sigmoid": 0.1}


class Plan(NamedTuple):
    """The network and how it will be trained."""

    network: ClipConfig
    recipe: Recipe
    decisions: list[Decision]


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
    torch.manual_seed(config.run.seed)
    record = RunReader(writer.path).record() if resume else None
    stream = _stream(config, writer, log, resume=record is not None, processes=processes)
    with processes.first_on_machine():
        encoders = find_encoders(config, record.model if record else start.network if start else None)
        if encoders is not None:
            say_encoders(encoders, config.encoders, log.say)
        data = _load(config, start, encoders, record, writer, log, stream)
        if record is None and rank.writes:
            _warn_of_leaks(data, log)
        preprocessing = data.train_store.preprocessing
        tokenizer = _tokenizer(
            config, writer.path, data, start, encoders, stored=resume or not rank.writes, store=rank.writes
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
    batches: BatchMaker | StreamBatches
    if stream is None:
        batches = _batches(config, data, captions, recipe, rank)
        if batches.negatives is not None:
            log.say(
                f"hard negatives for {batches.negatives.share():.0%} of the captions: words swapped, replaced, shuffled"
            )
    else:
        batches = _stream_batches(config, stream, tokenizer, preprocessing, recipe, rank, log)
    model = _model(config, plan._replace(recipe=recipe), start, writer.path if rank.writes else None, batches, rank)
    if encoders is not None:
        initialise_heads(model, encoders, data, captions, fit=start is None)
    if record is not None:
        _refuse_other_dropout(record, model, rank, writer.path)
    if config.run.shard:
        _refuse_sharding(model)
    stored = with_absolute_paths(config)  # so that the run can be resumed from any folder
    if not rank.writes:
        pass  # rank 0 alone describes the run
    elif record is None:
        if stream is not None and isinstance(batches, StreamBatches):
            write_stream(writer.path, stream, batches.shards)
        else:
            store_hashes(writer.path, pair_hashes(data.report.good))
        write_record(writer, stored, plan.recipe, plan.decisions, model, data, start)
    elif record.config != stored:  # its data or its encoders were moved
        write_validation_pairs(writer, data)
        record.model_copy(update={"config": stored, "model": plan.network}).write(writer.paths.config)
    log_start(log, writer.path, data, tokenizer, plan.recipe, plan.decisions, model, start)
    other = alternative(config, data.train_pairs) if record is None and stream is None else None
    if other is not None:
        log.say(other)
    validation = ValidationSet(data.val, data.val_store, data.classes, captions, preprocessing)
    if rank.size > 1:
        divided = ", which divide the network among them" if config.run.shard else ""
        log.say(f"{rank.size} processes, each with {recipe.batch_size // rank.size} pairs of a batch{divided}")
    elif config.run.shard:
        log.say("one process, which has the whole network: --shard, with which this run began, divides nothing")
    processes.exchange(None)  # all are ready, or the run ends here
    return Trainer(
        model, batches, validation, writer, log, requests, recipe=recipe, config=config, second_validation=second,
        processes=processes, settings=settings_of(stored, plan.recipe, plan.network),
    )  # fmt: skip


def _stream(
    config: TrainConfig, writer: RunWriter, log: Log, *, resume: bool, processes: Processes
) -> StreamStart | None:
    """The stream to train on, which rank 0 looks at for all; None for indexed data."""
    if not config.data.streamed:
        return None
    if not processes.rank.writes:
        return processes.of_first(None)
    begin = continue_stream if resume else begin_stream
    return processes.of_first(begin(config, writer.path, log.say))


def _load(
    config: TrainConfig,
    start: Start | None,
    encoders: Encoders | None,
    record: RunRecord | None,
    writer: RunWriter,
    log: Log,
    stream: StreamStart | None = None,
) -> Data:
    """The pairs and their decoded images.

    Raises:
        DataError: if they cannot be trained on.
        RunError: if they are not those that a resumed run began with.
    """
    lists = [] if stream else read_lists(config.data, config.run.seed, log.say)
    network = start.network if start else record.model if record else None
    if network is not None:
        preprocessing = network.preprocessing
    elif stream is not None:
        preprocessing = choose_preprocessing(config, stream.val, stream.epoch_pairs)
    else:
        preprocessing = choose_preprocessing(config, lists[0].pairs)
    if stream is not None:
        return load_stream(config.data, stream, preprocessing, log.say)
    if encoders is not None and encoders.image is not None:
        preprocessing = encoders.image.info.preprocessing or preprocessing
    decoder = EXACT if encoders is not None and encoders.image is not None else FAST  # both sets share the features
    data = load_data(config.data, preprocessing, config.run.seed, log.say, decoder, lists)
    if record is not None:
        refuse_other_pairs(writer.path, record.data.fingerprint, lists[0].file, data)
    train = data.train
    what = "image" if len(train.images) == 1 else "caption" if len(train.captions) == 1 else None
    if what is not None and len(train) > 1:
        raise DataError(
            f"all {len(train):,} training pairs have the same {what}, so there is nothing to learn from them; "
            f"add pairs with other {what}s."
        )
    return data


def _warn_of_leaks(data: Data, log: Log) -> None:
    """Say how many validation images look nearly like training images, where the pixels are at hand."""
    train, val = data.train_store, data.val_store
    if not (isinstance(train, ImageStore) and isinstance(val, ImageStore) and train.cached and val.cached):
        return
    found = leaked(train.get, val.get, (len(train.paths), len(val.paths)))
    if len(found.pairs):
        first, second = train.paths[found.pairs[0, 0]], val.paths[found.pairs[0, 1]]
        count, compared = len(np.unique(found.pairs[:, 1])), found.compared[1]
        log.say(
            f"warning: {count:,} of {compared:,} validation images look nearly like a training image "
            f"({printable(second.name)}, {printable(first.name)}), which makes validation look better than it is; "
            "clip-data check shows them, and --leave-out leaves them out"
        )


def _tokenizer(
    config: TrainConfig,
    run: Path,
    data: Data,
    start: Start | None,
    encoders: Encoders | None,
    *,
    stored: bool,
    store: bool,
) -> Tokenizer:
    """`stored`: the run may have it already; `store`: it is written to the run."""
    path = RunPaths(run).tokenizer
    if stored and path.exists():
        return Tokenizer.load(path)
    requested, captions = config.data.tokenizer, data.train.captions
    length = config.data.context_length
    if start is not None:
        tokenizer = start.tokenizer
    elif encoders is not None and encoders.text is not None and encoders.text.tokenizer is not None:
        tokenizer = encoders.text.tokenizer
    elif isinstance(requested, Path):
        tokenizer = Tokenizer.load(requested)
    elif config.data.reads_characters:
        tokenizer = train_characters(captions, length)
    else:
        tokenizer = train_bpe(captions, config.data.vocab_size, length)
    if store:
        tokenizer.save(path)
    return tokenizer


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


def _refuse_other_dropout(record: RunRecord, model: CLIP, rank: Rank, run: Path) -> None:
    """Refuse another number of processes than the run began with, where each draws dropout of its own.

    Raises:
        RunError: naming both numbers.
    """
    before = record.resolved.processes
    if rank.size != before and any(isinstance(part, torch.nn.Dropout) and part.p for part in model.modules()):
        raise RunError(
            f"{run} has dropout in its network, which each process draws for itself: {rank.size} would train "
            f"otherwise than the {before} that it began with; resume it with --devices {before}."
        )


def _refuse_sharding(model: CLIP) -> None:
    """Refuse to divide networks that FSDP2 would change, or that are too small for it.

    Raises:
        UsageError: naming the flag.
    """
    if model.config.external:
        raise UsageError(
            "--shard divides towers that are trained, and here projection heads are, on the features of pretrained "
            "encoders; leave it out."
        )
    if any(isinstance(part, _BatchNorm) for part in model.modules()):
        raise UsageError(
            "--shard cannot be combined with batch normalisation, whose statistics are those of a whole layer; "
            "leave it out, or choose another image tower."
        )


def _batches(
    config: TrainConfig, data: Data, tokenizer: Tokenizer | CaptionFeatures, recipe: Recipe, rank: Rank
) -> BatchMaker:
    sharded = config.run.shard and rank.size > 1
    if config.optim.hard_negatives and isinstance(tokenizer, CaptionFeatures):
        raise UsageError(
            "--hard-negatives needs a text tower that is trained, and this one is frozen: features of its captions are "
            "computed once; leave it out, or add --unfreeze-last."
        )
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
        hard_negatives=config.optim.hard_negatives,
    )


def _stream_batches(
    config: TrainConfig,
    stream: StreamStart,
    tokenizer: Tokenizer,
    preprocessing: Preprocessing,
    recipe: Recipe,
    rank: Rank,
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
    return StreamBatches(
        shards, captions, preprocessing, config.data, log,
        batch_size=recipe.batch_size, epoch_pairs=stream.epoch_pairs, rank=rank, equal=sharded,
    )  # fmt: skip


def _model(
    config: TrainConfig,
    plan: Plan,
    start: Start | None,
    run: Path | None,
    batches: BatchMaker | StreamBatches,
    rank: Rank,
) -> CLIP:
    """The network with its initial weights, stored in `run`; frozen parameters and adapters as configured.

    Where it is sharded, rank 0 alone has weights, in the memory of the host, of which it gives the others their rows.
    """
    network, recipe = plan.network, plan.recipe
    sharded = config.run.shard and rank.size > 1
    if sharded and not rank.writes:
        return _trainable(uninitialised_clip(network), config, recipe)
    model = CLIP(network, config.optim.temperature or _TEMPERATURE[recipe.loss])
    if any(tower.unfrozen for tower in network.external):
        attach_encoders(model)
    weights = start.weights if start is not None else {}
    if weights is not None:  # else a checkpoint of this run has them
        new_bias = network.logit_bias and "logit_bias" not in weights
        if weights:
            model.load_state_dict(weights | ({"logit_bias": torch.zeros(())} if new_bias else {}), strict=True)
            weights.clear()  # frees memory
        if new_bias and sharded and recipe.device != "cpu":  # which has no room for the network
            model.get_parameter("logit_bias").data.fill_(-math.log(max(recipe.batch_size - 1, 1)))
        elif new_bias:
            _fit_bias(model.to(recipe.device), batches(0, whole=True))
        if config.tune.blend is not None and run is not None:
            store_initial_weights(run, model.state_dict())
    return _trainable(model, config, recipe)


def _trainable(model: CLIP, config: TrainConfig, recipe: Recipe) -> CLIP:
    choose_trainable(model, config.tune, recipe.loss)
    return model


@torch.no_grad()
def _fit_bias(model: CLIP, batch: Batch) -> None:
    """Set the logit bias that fits the first batch best, so that training need not begin with correcting it."""
    batch = batch.to(model.log_logit_scale.device)
    model.eval()
    images = model.encode_image(network_input(batch.images, model.config.preprocessing))
    texts = torch.cat([model.encode_text(group) for group in batch.input_ids])
    logits = model.logit_scale() * images @ texts[batch.text_rows].T
    matches = matching_pairs(batch.image_ids, batch.caption_ids)
    model.get_parameter("logit_bias").copy_(best_bias(logits.cpu(), matches.cpu()))

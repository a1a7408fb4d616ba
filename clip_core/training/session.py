"""A training run from its configuration to its last line: data, model, trainer, and the directory around them."""

import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import torch

from clip_core.config import LossName, TrainConfig, architecture, flag
from clip_core.data.dataset import Data, load_data
from clip_core.data.formats.recognise import is_there, recognise
from clip_core.data.formats.source import Wishes
from clip_core.data.tokenizer import Tokenizer, train_bpe, train_characters
from clip_core.errors import ClipError, DataError, RunError, UsageError
from clip_core.model.clip import CLIP
from clip_core.network import ClipConfig
from clip_core.run.paths import RunPaths, checkpoint_name, is_run
from clip_core.run.reader import RunReader
from clip_core.run.records import HEARTBEAT_SECONDS, Recipe, State
from clip_core.run.writer import RunWriter
from clip_core.training.about import describe_run, introduce
from clip_core.training.batch_order import pairs_an_epoch
from clip_core.training.batches import Batch, BatchMaker
from clip_core.training.blend import blend_name, finish_with_blend, keep_start
from clip_core.training.caption_augmentation import CaptionAugmentation
from clip_core.training.control import Signals
from clip_core.training.curves import draw_curves
from clip_core.training.device import choose_device, choose_precision, keep_freed_memory, use_all_cores
from clip_core.training.evaluate import ValidationSet
from clip_core.training.fast_decode import FAST
from clip_core.training.guard import load_guard, read_guard
from clip_core.training.image_augmentation import to_pixel_values
from clip_core.training.log import Log
from clip_core.training.loss import best_bias, matching_pairs
from clip_core.training.recipe import prepare, work_out
from clip_core.training.report import before_and_after, line_of_blends
from clip_core.training.trainable import choose_trainable
from clip_core.training.trainer import Trainer
from clip_core.training.tuning import Start, find_start, stored_network

_TEXT_GROUPS = 4
# Of CLIP's own training (Radford et al. 2021) and of SigLIP's (Zhai et al. 2023).
_TEMPERATURE: dict[LossName, float] = {"softmax": 0.07, "sigmoid": 0.1}


def run_training(config: TrainConfig, *, resume: bool) -> int:
    """Train as configured, or go on with a run; returns the exit code.

    Raises:
        ClipError: for every mistake of the user's; status.json says `failed` and why, if the run had begun.
    """
    log = Log()
    run = _choose_run(config, resume)
    if resume:
        config = _stored_config(config, run)
    _check_before_writing(config)
    start = find_start(config, run, resume=resume)
    writer = RunWriter(run)
    try:
        log.to_file(writer.paths.log)
        with Signals() as signals:
            trainer = _begin(config, start, writer, log, resume=resume)
            state = trainer.train(signals)
            _finish(config, log, trainer, state)
        return signals.exit_code if state is State.STOPPED else 0
    except (ClipError, OSError, KeyboardInterrupt) as error:
        _failed(writer, log, str(error) or "interrupted")
        raise
    except Exception as error:
        log.say(traceback.format_exc().replace("\n", " | "))
        _failed(writer, log, f"{type(error).__name__}: {error}")
        raise
    finally:
        log.close()
        writer.close()


# ---------------------------------------------------------------- before the first step


def _begin(config: TrainConfig, start: Start | None, writer: RunWriter, log: Log, *, resume: bool) -> Trainer:
    """Everything that stands before the first step, or where the run stopped."""
    use_all_cores()
    torch.manual_seed(config.run.seed)
    writer.status(state=State.STARTING)
    run = writer.path
    with _beating(writer):
        known = start.network if start else stored_network(run) if resume else None
        data = load_data(
            config.data,
            known.preprocessing if known else lambda pairs: prepare(config, pairs),
            config.run.seed,
            log.say,
            FAST,
        )
        prepared = data.train_store.preprocessing
        tokenizer = _tokenizer(config, run, data, start, resume=resume)
        guard = load_guard(config.tune, config.data, prepared, tokenizer, log.say)
        epoch_pairs = pairs_an_epoch(data.train, config.data.captions)
        train_pairs, classes = len(data.train.pair_images), data.classes is not None
        network = known or architecture(
            config.model.model_copy(update={"image_size": prepared.image_size}),
            vocab_size=tokenizer.vocab_size,
            end_token=tokenizer.end_token,
            context_length=tokenizer.context_length,
            pairs=train_pairs,
        )
        recipe = work_out(config, train_pairs, network, epoch_pairs=epoch_pairs, classes=classes)
        if resume:
            recipe = _stored_recipe(config, run, recipe)
        if recipe.device == "cpu":
            keep_freed_memory()
        if recipe.loss == "sigmoid":
            network = network.model_copy(update={"logit_bias": True})
        batches = _make_batches(config, data, tokenizer, recipe)
        model = _make_model(config, network, recipe, start, run, batches)
        if not resume:
            describe_run(writer, config, recipe, model, data, start)
        introduce(log, run, data, tokenizer, recipe, model, start)
    trainer = Trainer(
        model,
        batches,
        ValidationSet(data.val, data.val_store, data.classes, tokenizer, prepared),
        writer,
        log,
        recipe=recipe,
        config=config,
        guard=guard,
    )
    writer.status(steps=recipe.steps, epochs=recipe.epochs, error=None)
    if resume:
        trainer.resume()
        log.say(f"resuming at step {trainer.progress.step}")
        writer.event(trainer.progress.step, "resumed")
    return trainer


def _make_batches(config: TrainConfig, data: Data, tokenizer: Tokenizer, recipe: Recipe) -> BatchMaker:
    return BatchMaker(
        data.train,
        data.train_store,
        tokenizer,
        batch_size=recipe.batch_size,
        seed=config.run.seed,
        captions=config.data.captions,
        augmentation=CaptionAugmentation(lists=config.optim.augment, word_dropout=recipe.word_dropout),
        bpe_dropout=recipe.bpe_dropout,
        groups=_TEXT_GROUPS if recipe.device == "cpu" else 1,  # a GPU would rather have one large product
    )


def _make_model(
    config: TrainConfig, network: ClipConfig, recipe: Recipe, start: Start | None, run: Path, batches: BatchMaker
) -> CLIP:
    """The network with the weights it starts from, and those that may not move locked."""
    model = CLIP(network, config.optim.temperature or _TEMPERATURE[recipe.loss])
    given = start.weights if start is not None else {}
    if given is not None:  # no checkpoint of this run has them
        new_bias = network.logit_bias and "logit_bias" not in given
        if given:
            model.load_state_dict(given | ({"logit_bias": torch.zeros(())} if new_bias else {}), strict=True)
            given.clear()  # their memory is wanted
        if new_bias:
            _fit_bias(model.to(recipe.device), batches(0))
        if config.tune.blend is not None:
            keep_start(run, model.state_dict())
    choose_trainable(model, config.tune, recipe.loss)
    return model


@torch.no_grad()
def _fit_bias(model: CLIP, batch: Batch) -> None:
    """Let the bias be the one that fits the first batch best, so that training need not begin with correcting it."""
    batch = batch.to(model.log_logit_scale.device)
    model.eval()
    images = model.encode_image(to_pixel_values(batch.images, model.config.preprocessing))
    texts = torch.cat([model.encode_text(group) for group in batch.input_ids])
    logits = model.logit_scale() * images @ texts[batch.text_rows].T
    matches = matching_pairs(batch.image_ids, batch.caption_ids)
    model.get_parameter("logit_bias").copy_(best_bias(logits.cpu(), matches.cpu()))


def _choose_run(config: TrainConfig, resume: bool) -> Path:
    run = config.run.run_dir
    if run is None:
        if resume:
            raise UsageError("--resume needs to know which run: add --run-dir RUN.")
        return Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    if resume and not is_run(run):
        raise RunError(f"there is no run at {run} to resume; leave out --resume to start one there.")
    if not resume and is_run(run):
        raise RunError(f"{run} already holds a run: add --resume to go on with it, or choose another --run-dir.")
    return run


def _check_before_writing(config: TrainConfig) -> None:
    """Refuse what is known to fail before anything is written.

    Raises:
        UsageError, DataError: naming the flag.
    """
    choose_precision(choose_device(config.run.device), config.run.precision)
    if config.tune.init is None:
        architecture(config.model, vocab_size=300, end_token=2, context_length=config.data.context_length)
    data = config.data
    if data.data_file is None and not data.create_synthetic:
        raise UsageError("no pairs to train on: give --data PATH (or --data-file), or --create-synthetic to draw some.")
    for name, path in (("--data", data.data_file), ("--val-file", data.val_file)):
        drawn = name == "--data" and data.create_synthetic
        if path is not None and not drawn and not is_there(path):
            raise DataError(f"{name} {path}: there is no such file, folder or shard.")
        if path is not None and is_there(path):
            recognise(path, Wishes.of(data))
    if isinstance(data.tokenizer, Path) and not data.tokenizer.is_file():
        raise DataError(f"--tokenizer {data.tokenizer}: there is no such file.")
    read_guard(config.tune)


def _stored_config(given: TrainConfig, run: Path) -> TrainConfig:
    """The run's own configuration; a flag that would change it is refused.

    Raises:
        UsageError: if any flag but --run-dir was given.
    """
    defaults = TrainConfig()
    changed = [
        name
        for section in TrainConfig.model_fields
        for name, value in getattr(given, section)
        if name != "run_dir" and value != getattr(getattr(defaults, section), name)
    ]
    if changed:
        flags = ", ".join(flag(name) for name in changed)
        raise UsageError(f"--resume goes on with what {run}/config.json says; leave out {flags}.")
    return RunReader(run).record().config


def _stored_recipe(config: TrainConfig, run: Path, now: Recipe) -> Recipe:
    """What was worked out when the run began, so that a resumed run is the same run.

    Raises:
        UsageError: if the device it began on is not there.
        RunError: if pairs have gone since.
    """
    stored = RunReader(run).record().resolved
    choose_device(stored.device)
    if stored.steps_per_epoch * stored.batch_size > now.steps_per_epoch * now.batch_size + now.batch_size:
        raise RunError(f"the training pairs of {run} are fewer than when it began; put them back, or start anew.")
    return stored


def _tokenizer(config: TrainConfig, run: Path, data: Data, start: Start | None, *, resume: bool) -> Tokenizer:
    path = RunPaths(run).tokenizer
    if resume and path.exists():
        return Tokenizer.load(path)
    if start is not None:
        start.tokenizer.save(path)
        return start.tokenizer
    wanted, captions = config.data.tokenizer, data.train.captions
    length = config.data.context_length
    if isinstance(wanted, Path):
        tokenizer = Tokenizer.load(wanted)
    elif config.data.reads_characters:
        tokenizer = train_characters(captions, length)
    else:
        tokenizer = train_bpe(captions, config.data.vocab_size, length)
    tokenizer.save(path)
    return tokenizer


@contextmanager
def _beating(writer: RunWriter) -> Iterator[None]:
    """Heartbeats from a thread, for work that has no steps to beat at."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            writer.heartbeat()

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


# ---------------------------------------------------------------- after the last step


def _finish(config: TrainConfig, log: Log, trainer: Trainer, state: State) -> None:
    run, progress = trainer.writer.path, trainer.progress
    best = progress.best_checkpoint or "none yet"
    if state is State.FINISHED and trainer.tuning:
        columns = [("before", progress.before), (f"after {progress.step} steps", progress.scores)]
        best_scores = trainer.best_scores()
        if best_scores and progress.best_checkpoint != checkpoint_name(progress.step):
            columns.append((f"best, {progress.best_checkpoint}", best_scores))
        for line in before_and_after(columns):
            log.say(line)
        if config.tune.blend is not None:
            best = _blend(config.tune.blend, log, trainer)
    draw_curves(run)
    trainer.status(state)
    trainer.writer.event(progress.step, str(state))
    log.say(
        f"{state} at step {progress.step} after {progress.train_seconds:.1f} s of training; "
        f"best checkpoint {best}; in {run}"
    )


def _blend(share: float, log: Log, trainer: Trainer) -> str:
    """Judge the line of blends, keep the one asked for, and say so; returns its name."""
    blends = finish_with_blend(
        trainer.writer,
        trainer.learner.eval_weights.ready(),
        share,
        lambda model: trainer.judge(model)[0],
        step=trainer.progress.step,
        epoch=trainer.epoch,
    )
    for line in line_of_blends(blends, share):
        log.say(line)
    name = blend_name(share)
    log.say(
        f"the chosen checkpoint is {name}, {share:g} of the way from the start to the end, as --blend asks; "
        f"best.json names it, in place of {trainer.progress.best_checkpoint}"
    )
    return name


def _failed(writer: RunWriter, log: Log, sentence: str) -> None:
    with suppress(OSError):  # the disk may be what failed
        writer.status(state=State.FAILED, error=sentence)
    log.say(f"failed: {sentence}")

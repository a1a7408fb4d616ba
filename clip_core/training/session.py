"""A training run from its configuration to its last line: data, model, trainer, and the directory around them."""

import platform
import subprocess
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from clip_core.config import SCHEMA_VERSION, ClipConfig, TrainConfig, architecture, parse_config, preprocessing
from clip_core.data.dataset import Data, load_data
from clip_core.data.formats.recognise import is_there, recognise
from clip_core.data.formats.source import Wishes
from clip_core.data.tokenizer import Tokenizer, train_bpe, train_characters
from clip_core.errors import ClipError, DataError, RunError, UsageError
from clip_core.files import write_json
from clip_core.model.clip import CLIP
from clip_core.model.size import parameters
from clip_core.run_dir import HEARTBEAT_SECONDS, RunReader, RunWriter, State, is_run
from clip_core.training.batches import BatchMaker
from clip_core.training.control import Signals
from clip_core.training.curves import draw_curves
from clip_core.training.device import choose_device, choose_precision, describe
from clip_core.training.evaluate import HeldOut
from clip_core.training.fast_decode import FAST
from clip_core.training.log import Log
from clip_core.training.recipe import Recipe, use_all_cores, work_out
from clip_core.training.trainer import Trainer

_LIBRARIES = ("clip-tui", "torch", "torchvision", "tokenizers", "numpy", "pillow", "safetensors")


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
    writer = RunWriter(run)
    try:
        log.to_file(run / "train.log")
        with Signals() as signals:
            state = _train(config, run, writer, log, signals, resume=resume)
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


def _train(config: TrainConfig, run: Path, writer: RunWriter, log: Log, signals: Signals, *, resume: bool) -> State:
    use_all_cores()
    torch.manual_seed(config.run.seed)
    writer.status(state=State.STARTING)
    with _beating(writer):
        data = load_data(config.data, preprocessing(config.model), config.run.seed, log.say, FAST)
        tokenizer = _tokenizer(config, run, data, resume=resume)
        recipe = work_out(config, len(data.train.pair_images))
        if resume:
            recipe = _stored_recipe(run, recipe)
        network = architecture(
            config.model,
            vocab_size=tokenizer.vocab_size,
            end_token=tokenizer.end_token,
            context_length=tokenizer.context_length,
        )
        model = CLIP(network, config.optim.temperature)
        if not resume:
            _describe_run(run, writer, config, recipe, network, model, data)
    _introduce(log, run, data, tokenizer, recipe, model)
    trainer = Trainer(
        model,
        BatchMaker(data.train, data.train_store, tokenizer, batch_size=recipe.batch_size, seed=config.run.seed),
        HeldOut(data.val, data.val_store, data.classes, tokenizer, network.preprocessing),
        writer,
        log,
        recipe=recipe,
        optim=config.optim,
        seed=config.run.seed,
        log_every=config.run.log_every,
        keep_checkpoints=config.run.keep_checkpoints,
    )
    writer.status(steps=recipe.steps, epochs=config.optim.epochs, error=None)
    if resume:
        trainer.resume()
        log.say(f"resuming at step {trainer.progress.step}")
        writer.event(trainer.progress.step, "resumed")
    state = trainer.train(signals)
    _finish(run, log, trainer, state)
    return state


# ---------------------------------------------------------------- before the first step


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
        flags = ", ".join("--" + name.replace("_", "-") for name in changed)
        raise UsageError(f"--resume goes on with what {run}/config.json says; leave out {flags}.")
    return parse_config(RunReader(run).config()["config"])


def _stored_recipe(run: Path, now: Recipe) -> Recipe:
    """What was worked out when the run began, so that a resumed run is the same run.

    Raises:
        UsageError: if the device it began on is not there.
        RunError: if pairs have gone since.
    """
    stored = RunReader(run).config()["resolved"]
    choose_device(stored["device"])
    if stored["steps_per_epoch"] * stored["batch_size"] > now.steps_per_epoch * now.batch_size + now.batch_size:
        raise RunError(f"the training pairs of {run} are fewer than when it began; put them back, or start anew.")
    return Recipe(**stored)


def _tokenizer(config: TrainConfig, run: Path, data: Data, *, resume: bool) -> Tokenizer:
    path = run / "tokenizer.json"
    if resume and path.exists():
        return Tokenizer.load(path)
    wanted, captions = config.data.tokenizer, data.train.captions
    length = config.data.context_length
    if isinstance(wanted, Path):
        tokenizer = Tokenizer.load(wanted)
    elif wanted == "char" or (wanted is None and config.data.create_synthetic):
        tokenizer = train_characters(captions, length)
    else:
        tokenizer = train_bpe(captions, config.data.vocab_size, length)
    tokenizer.save(path)
    return tokenizer


def _describe_run(
    run: Path,
    writer: RunWriter,
    config: TrainConfig,
    recipe: Recipe,
    network: ClipConfig,
    model: CLIP,
    data: Data,
) -> None:
    """config.json and val_pairs.json: all that another person needs to know what this run is."""
    val = data.val
    write_json(
        run / "val_pairs.json",
        [
            {"image": str(val.images[i]), "caption": val.captions[c]}
            for i, c in zip(val.pair_images, val.pair_captions, strict=True)
        ],
    )
    writer.write_config(
        {
            "schema": SCHEMA_VERSION,
            "config": config.model_dump(mode="json"),
            "resolved": recipe.as_json(),
            "model": network.model_dump(mode="json"),
            "parameters": {"image": parameters(model.image), "text": parameters(model.text)},
            "data": {
                "train_pairs": len(data.train.pair_images),
                "train_images": len(data.train.images),
                "val_pairs": len(val.pair_images),
                "val_images": len(val.images),
                "classes": data.classes,
                "val_list": "val_pairs.json",
            },
            "device_name": describe(torch.device(recipe.device)),
            "git": _git_version(),
            "versions": _versions(),
            "seed": config.run.seed,
        }
    )


def _introduce(log: Log, run: Path, data: Data, tokenizer: Tokenizer, recipe: Recipe, model: CLIP) -> None:
    log.say(f"run {run}: {recipe.sentence()}")
    log.say(
        f"{len(data.train.pair_images)} training pairs of {len(data.train.images)} pictures, "
        f"{len(data.val.pair_images)} held-out pairs of {len(data.val.images)} pictures; "
        f"{parameters(model.image):,} + {parameters(model.text):,} parameters, "
        f"vocabulary {tokenizer.vocab_size} ({tokenizer.kind}); {describe(torch.device(recipe.device))}"
    )
    truncated = tokenizer.count_truncated(data.train.captions)
    if truncated:
        log.say(
            f"{truncated} of {len(data.train.captions)} captions are longer than {tokenizer.context_length} tokens "
            "and are cut there; raise --context-length to keep them whole"
        )


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


def _git_version() -> str | None:
    """The commit that the code was at, where it lies in a git checkout."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True, text=True, timeout=5, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


# ---------------------------------------------------------------- after the last step


def _finish(run: Path, log: Log, trainer: Trainer, state: State) -> None:
    draw_curves(run)
    trainer.status(state)
    trainer.writer.event(trainer.progress.step, str(state))
    best = trainer.progress.best_checkpoint or "none yet"
    log.say(
        f"{state} at step {trainer.progress.step} after {trainer.progress.train_seconds:.1f} s of training; "
        f"best checkpoint {best}; in {run}"
    )


def _failed(writer: RunWriter, log: Log, sentence: str) -> None:
    with suppress(OSError):  # the disk may be what failed
        writer.status(state=State.FAILED, error=sentence)
    log.say(f"failed: {sentence}")

"""What is checked before anything is written: the run directory, the flags, the data, and what --resume may change."""

import os
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

from clip_core.config import TrainConfig, is_streamed
from clip_core.data.formats.detect import detect, is_there
from clip_core.data.formats.source import ReadOptions
from clip_core.data.formats.unsupported import not_found
from clip_core.data.stream.shard_list import absolute_pattern, list_shards
from clip_core.data.stream.source import check_protocol, is_remote
from clip_core.data.synthetic import DEFAULT_SYNTHETIC
from clip_core.errors import DataError, RunError, UsageError
from clip_core.flags import flag
from clip_core.model.checkpoint import valid_checkpoints
from clip_core.model.encoders.files import absolute
from clip_core.network import ClipConfig
from clip_core.presets import architecture
from clip_core.run.paths import RunPaths, is_run
from clip_core.run.reader import RunReader
from clip_core.run.records import Flags, Recipe
from clip_core.text import printable
from clip_core.training.device import choose_device, choose_precision
from clip_core.training.initial_weights import Start
from clip_core.training.loggers import check_loggers
from clip_core.training.recipe import tune_lr
from clip_core.training.second_validation import guard_of, read_second_validation

Settings = dict[str, Any]  # by their place in config.json: {"resolved.lr": 0.001}

_TIMES_LR = 20  # the default learning rate of a fine-tuning, at most
_LONGEST_WARMUP = 0.5  # of the steps
_NAMED = 3  # settings in a message

# What --resume takes: where data and encoders are now, what changes no result but its rounding, and what happens at a
# loss that is not finite.
_PLACES = {
    "data": ("data_file", "image_root", "val_file"),
    "encoders": ("image_encoder", "text_encoder"),
    "tune": ("guard_data", "guard_root"),
    "optim": ("chunk_size",),
    "run": ("run_dir", "devices", "log_to", "checkpoint_activations", "shard", "restarts", "on_nan"),
}


def choose_run_dir(config: TrainConfig, *, resume: bool) -> Path:
    """The requested run directory, or one named by date and time.

    Raises:
        UsageError: if --resume has no --run-dir.
        RunError: if there is nothing to resume, or a run that must not be overwritten.
    """
    run = config.run.run_dir
    if run is None:
        if resume:
            longer = _train_longer(config, "RUN", "DATA")
            raise UsageError(f"--resume needs the run directory: add --run-dir RUN{longer}.")
        return _free_name(Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S"))
    if resume and not is_run(run):
        raise RunError(f"there is no run at {run} to resume; leave out --resume to start one there.")
    if resume and not os.path.lexists(RunPaths(run).config):
        raise RunError(f"{run} ended before its first step{_why(run)}; start it again without --resume.")
    if not resume and _has_begun(run):
        raise RunError(f"{run} already holds a run: add --resume to continue it, or choose another --run-dir.")
    return run


def check_new_run(config: TrainConfig) -> None:
    """Refuse a configuration that cannot be trained.

    Raises:
        UsageError, DataError: naming the flag.
    """
    choose_precision(choose_device(config.run.device), config.run.precision)
    check_loggers(config.run.log_to or ())
    if config.tune.init is None:
        architecture(config.model, vocab_size=300, end_token=2, context_length=config.data.context_length)
    data = config.data
    if data.data_file is None and not data.create_synthetic:
        raise UsageError("no training pairs: give --data PATH, or --create-synthetic.")
    _check_places(config)
    if isinstance(data.tokenizer, Path) and not data.tokenizer.is_file():
        raise DataError(f"--tokenizer {data.tokenizer}: no such file.")


def refuse_ruinous(config: TrainConfig, start: Start) -> None:
    """Refuse settings for training from scratch, which overwrite pretrained weights (open_clip#739).

    Raises:
        UsageError: naming the limit.
    """
    usual = tune_lr(start.network, config.tune)
    most, lr, warmup = _TIMES_LR * usual, config.optim.lr, config.optim.warmup
    if lr is not None and lr > most:
        raise UsageError(
            f"--lr is {lr:g}, a learning rate for training from scratch, which would overwrite the pretrained weights; "
            f"the limit is {most:g} (default {usual:g}); add --force to train with it."
        )
    if warmup > _LONGEST_WARMUP:
        raise UsageError(
            f"--warmup is {warmup:g} of the steps; pretrained weights need little, and the limit is "
            f"{_LONGEST_WARMUP:g} (default 0.1); add --force to train with it."
        )


def resumed_config(given: TrainConfig, run: Path) -> TrainConfig:
    """The configuration of a run, with new places of its data where they were given.

    Raises:
        UsageError: if a flag would change anything else, or the device of the run is not available.
        DataError: if the data are no longer where they were.
    """
    defaults = TrainConfig()
    changed = {
        section: {
            name: value
            for name, value in getattr(given, section)
            if value != getattr(getattr(defaults, section), name)
            or (name in getattr(given, section).model_fields_set and name in _PLACES.get(section, ()))
        }
        for section in TrainConfig.model_fields
    }
    refused = [flag(n) for section, names in changed.items() for n in names if n not in _PLACES.get(section, ())]
    record = RunReader(run).record()
    if refused:
        data = shlex.quote(str(given.data.data_file or record.config.data.data_file or "DATA"))
        longer = _train_longer(given, shlex.quote(str(run)), data)
        left_out = ", ".join(refused)
        raise UsageError(f"--resume continues with the settings of {run}/config.json; leave out {left_out}{longer}.")
    choose_device(record.resolved.device)
    check_loggers(given.run.log_to or record.config.run.log_to or ())
    if record.config.data.streamed:
        changed["data"]["stream"] = True  # wherever its shards are now
    config = _updated(record.config, changed)
    try:
        # the flags of a stream are in the run, wherever those are that it began with
        _check_places(_updated(config, {"data": {"leave_out": None}}) if config.data.streamed else config)
    except DataError as error:
        raise DataError(
            f"{str(error).rstrip('.')}; if the data of {run} were moved, give their new path with --data."
        ) from None
    return config


def settings_of(config: TrainConfig, recipe: Recipe, network: ClipConfig) -> Settings:
    """What must be the same for a resumed run to be the run that was never stopped; no places, and no hardware."""
    places = {name for names in _PLACES.values() for name in names} | {"init", "workers", "cache_gb"}
    sections = {name: getattr(config, name) for name in TrainConfig.model_fields if name != "run"}
    found = {
        f"config.{section}.{name}": value
        for section, fields in sections.items()
        for name, value in fields.model_dump(mode="json").items()
        if name not in places and not isinstance(getattr(fields, name), Path)
    }
    found["config.run.seed"] = config.run.seed
    found |= {f"resolved.{name}": value for name, value in recipe.model_dump(mode="json").items()}
    for name in ("device", "processes"):
        del found[f"resolved.{name}"]
    for name, value in network.model_dump(mode="json").items():
        parts = value if isinstance(value, dict) else {"": value}
        found |= {f"model.{name}.{part}".rstrip("."): each for part, each in parts.items() if part != "encoder"}
    return found


def refuse_other_settings(run: Path, before: Settings, now: Settings) -> None:
    """Refuse a config.json that was changed since a checkpoint was written.

    Raises:
        RunError: naming what differs.
    """
    other = [name for name in before if name in now and before[name] != now[name]]
    if other:
        said = [f"{name} is {now[name]!r} and was {before[name]!r}" for name in other[:_NAMED]]
        more = f", and {len(other) - _NAMED} more differ" if len(other) > _NAMED else ""
        raise RunError(
            f"{run}/config.json was changed since the last checkpoint: {printable(', '.join(said), 300)}{more}; "
            "change it back, or start a new run."
        )


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """As stored in config.json, so that a run can be resumed from any folder."""
    data = config.data
    if data.data_file is None and data.create_synthetic:
        data = data.model_copy(update={"data_file": DEFAULT_SYNTHETIC})
    paths: dict[str, dict[str, Any]] = {
        section: {name: absolute_pattern(value) for name, value in values if isinstance(value, Path)}
        for section, values in (("data", data), ("tune", config.tune), ("run", config.run))
    }
    if data.streamed:
        paths["data"]["stream"] = True  # wherever its shards will be
    if config.tune.guard_data is not None:
        guard = guard_of(config.tune)
        placed = guard._replace(data=guard.data.absolute() if guard.data else None)
        paths["tune"]["guard_data"] = Path(str(placed))
    paths["encoders"] = {
        name: absolute(value)
        for name in ("image_encoder", "text_encoder")
        if (value := getattr(config.encoders, name)) is not None
    }
    init = config.tune.init
    if init is not None and Path(init).expanduser().exists():
        paths["tune"]["init"] = str(Path(init).expanduser().absolute())
    return _updated(config, paths)


def _check_places(config: TrainConfig) -> None:
    """Refuse data that do not exist, or whose format is unsupported.

    Raises:
        DataError: naming the flag.
    """
    data = config.data
    for name, path in (("--data", data.data_file), ("--val-file", data.val_file)):
        created = name == "--data" and data.create_synthetic
        if is_streamed(path, data.stream and name == "--data"):
            assert path is not None
            shards = list_shards(path)
            check_protocol(shards.urls[0])
            missing = next((url for url in shards.urls if not is_remote(url) and not Path(url).is_file()), None)
            if missing is not None:
                raise DataError(f"{name}: there is no shard at {printable(missing)}; fetch it, or correct the pattern.")
            continue
        if path is not None and not created and not is_there(path):
            raise DataError(f"{name} {not_found(path)}")
        if path is not None and is_there(path):
            detect(path, ReadOptions.of(data))
    if data.leave_out is not None and not data.leave_out.exists():
        raise DataError(f"--leave-out {not_found(data.leave_out)}")
    if data.leave_out is not None and Flags.find(data.leave_out) is None:
        file = printable(str(data.leave_out))
        raise DataError(
            f"--leave-out {file} is not the flags.json of a run (f on the Live screen) or of clip-data check --flags."
        )
    read_second_validation(config.tune)


def _train_longer(given: TrainConfig, run: str, data: str) -> str:
    """How to train on from a run, where --epochs or --minutes ask for it."""
    epochs, minutes = given.optim.epochs, given.optim.minutes
    wanted = f"--epochs {epochs}" if epochs is not None else f"--minutes {minutes:g}" if minutes is not None else None
    return f", or train on from its weights in a new run: --init {run} --data {data} {wanted}" if wanted else ""


def _updated(config: TrainConfig, changed: dict[str, dict[str, Any]]) -> TrainConfig:
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in changed.items()}
    return config.model_copy(update=sections)


def _has_begun(run: Path) -> bool:
    """Whether a run at this place got as far as its first step, so that it must not be overwritten."""
    return is_run(run) and (os.path.lexists(RunPaths(run).config) or bool(valid_checkpoints(run)))


def _why(run: Path) -> str:
    status = RunReader(run).status()
    return f" ({status.error.rstrip('.')})" if status and status.error else ""


def _free_name(run: Path) -> Path:
    return next(path for n in range(1, 1000) if not (path := run if n == 1 else Path(f"{run}-{n}")).exists())

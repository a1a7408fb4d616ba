"""clip-train: train a CLIP model, or resume a run."""

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from cyclopts import App, Parameter, Token

from clip_core.cli.app import run_app
from clip_core.config import SECTIONS, TITLES, RunConfig, TrainConfig, parse_config
from clip_core.errors import UsageError
from clip_core.flags import SPELLINGS, spell
from clip_core.presets import PRESETS, architecture
from clip_core.run.paths import RunPaths
from clip_core.run.records import RunRecord

_HELP = "Train a CLIP model on captioned images, or resume a run."
_RESUME = "resume the run at --run-dir; with --data, --image-root or --val-file where its data were moved"
_FORCE = "fine-tune with a learning rate or warm-up of training from scratch, which overwrites pretrained weights"
app = App(name="clip-train", help=_HELP, version_flags=[])

_MODELS = [(name, type(getattr(TrainConfig(), name))) for name in SECTIONS]


def train(**flags: Any) -> int:
    """Called with the flags that were given, out of those of `_signature`."""
    resume, list_models = flags.pop("resume", False), flags.pop("list_models", False)
    force, list_encoders = flags.pop("force", False), flags.pop("list_encoders", False)
    config = from_flags(flags)
    if list_models:
        return _list_models(config)
    if list_encoders:
        return _list_encoders(config)
    before = _started_with(config.run.run_dir) if resume else RunConfig()
    devices = config.run.devices or before.devices or 1
    if devices > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        from clip_core.training.launch import launch

        switches = [f"--{name}" for name, on in (("resume", resume), ("force", force)) if on]
        typed = [word for name, value in flags.items() for word in spell(name, value)]
        restarts = config.run.restarts or before.restarts
        if restarts and config.run.run_dir is None:
            raise UsageError("--restarts needs --run-dir, by which the run finds its checkpoint.")
        return launch(devices, config.run.device, [*typed, *switches], restarts=restarts)
    from clip_core.training.session import run_training

    return run_training(config, resume=resume, force=force)


def _started_with(run: Path | None) -> RunConfig:
    """What a run was started with; its own reader refuses what is no run."""
    record = RunRecord.find(RunPaths(run).config) if run is not None else None
    return record.config.run if record is not None else RunConfig()


def from_flags(flags: Mapping[str, Any]) -> TrainConfig:
    """The configuration of the given flags; each belongs to the section that has a field of its name."""
    return parse_config({name: {k: v for k, v in flags.items() if k in model.model_fields} for name, model in _MODELS})


def _signature() -> inspect.Signature:
    """Every field of the configuration as a flag.

    Made from the fields rather than by handing the models to the parser, which would read the source of each model's
    ancestors for its help: 0.2 s of every start.
    """
    flags = [
        _flag(field, info.annotation, info.default, TITLES[name], info.description or "")
        for name, model in _MODELS
        for field, info in model.model_fields.items()
    ]
    flags.append(_flag("resume", bool, False, "Run", _RESUME, negative=""))
    flags.append(_flag("force", bool, False, "Fine-tuning", _FORCE, negative=""))
    description = "print parameters and FLOPs of each preset, and exit"
    flags.append(_flag("list_models", bool, False, "Model", description, negative=""))
    description = "print what --image-encoder and --text-encoder are, or which kinds there are, and exit"
    flags.append(_flag("list_encoders", bool, False, TITLES["encoders"], description, negative=""))
    return inspect.Signature(flags)


def _flag(name: str, kind: Any, default: object, group: str, description: str, **traits: Any) -> inspect.Parameter:
    if name in SPELLINGS:
        traits["name"] = SPELLINGS[name]
    kinds = (kind, *get_args(kind))
    if any(get_origin(one) is tuple for one in kinds):
        kind, kinds, traits["consume_multiple"] = tuple[str, ...] | None, (), True
    if int in kinds or Path in kinds:
        traits["converter"] = _whole_number if int in kinds else _as_typed
    annotation = Annotated[kind, Parameter(group=group, help=description, **traits)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _whole_number(kind: Any, tokens: Sequence[Token]) -> int:
    """The parser itself would round 1.5 to 2."""
    value = tokens[-1].value
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"{tokens[-1].keyword} is {value!r}; it should be a whole number.") from None


def _as_typed(kind: Any, tokens: Sequence[Token]) -> str:
    """Left to the configuration, which refuses an empty path; the parser would take it for the current folder."""
    return tokens[-1].value


def _list_models(config: TrainConfig) -> int:
    """The presets with the parameters and FLOPs of each tower, at the given image and patch size."""
    from clip_core.data.tokenizer import vocabulary_for
    from clip_core.model.model_size import measure

    model, context_length = config.model, config.data.context_length
    vocab_size = config.data.vocab_size or vocabulary_for(0)
    print(f"context length {context_length}, vocabulary {vocab_size}")
    print(
        f"{'':9}{'width':>10}{'heads':>7}{'layers':>8}{'image':>9}{'patch':>6}"
        f"{'image tower':>14}{'text tower':>13}{'GFLOPs/image':>16}{'GFLOPs/caption':>16}"
    )
    for name in PRESETS:
        sized = model.model_copy(update={"model_size": name})
        network = architecture(sized, vocab_size=vocab_size, end_token=1, context_length=context_length)
        image, text, size = network.own_image, network.own_text, measure(network)
        print(
            f"{name:9}{_both(image.width, text.width):>10}{_both(image.heads, text.heads):>7}"
            f"{_both(image.layers, text.layers):>8}{image.image_size:9}{image.patch_size:6}"
            f"{size.image_parameters:14,}{size.text_parameters:13,}"
            f"{size.image_flops / 1e9:16.2f}{size.text_flops / 1e9:16.2f}"
        )
    return 0


def _list_encoders(config: TrainConfig) -> int:
    """What the given encoders resolve to; without any, the kinds that are understood."""
    from clip_core.model.encoders.describe import describe_encoders

    image, text = config.encoders.image_encoder, config.encoders.text_encoder
    if image is None and text is None:
        print(describe_encoders())
    if image is not None:
        print(describe_encoders(image, "image"))
    if text is not None:
        print(describe_encoders(text, "text"))
    return 0


def _both(image: int, text: int) -> str:
    """A number of both towers: once where they are equal."""
    return str(image) if image == text else f"{image}/{text}"


def run(argv: Sequence[str] | None = None) -> int:
    return run_app(app, argv)


vars(train)["__signature__"] = _signature()
app.default(train)

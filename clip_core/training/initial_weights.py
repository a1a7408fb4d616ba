"""Pretrained weights to fine-tune: network, tokenizer and tensors of --init, or of a run that was started with it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from clip_core.config import DataConfig, TrainConfig
from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import UsageError
from clip_core.model.checkpoint import LoadedModel, load_model, valid_checkpoints
from clip_core.model.hub import local_source
from clip_core.model.image_encoder import interpolate_positions
from clip_core.model.projection import ExternalEncoder
from clip_core.model.published import read_published
from clip_core.model.timm_image import TimmImageEncoder
from clip_core.model.transformers_text import layers_of
from clip_core.network import (
    LIBRARY_TOWERS,
    ClipConfig,
    ExternalTower,
    TimmTower,
    TransformersTower,
)
from clip_core.run.paths import RunPaths, is_run
from clip_core.run.reader import RunReader
from clip_core.text import printable

_STAYS = "towers of timm and transformers train without dropout and with the batch statistics of their pretraining"
_DEFAULT_LENGTH = DataConfig().context_length


@dataclass(frozen=True)
class Start:
    """A network with its tokenizer and weights.

    Args:
        source: where it was found, in words; `given`: --init as typed.
        weights: None where a checkpoint of the run has them.
        notes: what was taken, assumed or ignored in published weights, a line each.
    """

    network: ClipConfig
    tokenizer: Tokenizer
    source: str
    given: str
    weights: dict[str, Tensor] | None
    notes: tuple[str, ...] = ()


def find_start(config: TrainConfig, run: Path, *, resume: bool) -> Start | None:
    """The weights of --init, or what a resumed run stored of them; None for a run from scratch.

    Raises:
        ClipError: if there are no such weights, or the flags do not fit them.
    """
    if config.tune.init is None:
        return None
    if resume and valid_checkpoints(run):
        return stored_start(run)
    start = _read(config.tune.init, config)
    if start.network.external:
        return start
    _refuse_for_libraries(start, config)
    layers = _blocks(start.network, config.tune.lock) if config.tune.unlock_last else 0
    if config.tune.unlock_last > layers:
        raise UsageError(
            f"--unlock-last is {config.tune.unlock_last}, and "
            f"the {config.tune.lock} tower of {start.source} has {layers} blocks."
        )
    return start


def _blocks(network: ClipConfig, side: str) -> int:
    """The number of blocks of a tower whose weights are in the network."""
    tower = network.image if side == "image" else network.text
    if isinstance(tower, TransformersTower):
        return layers_of(tower.settings)
    if isinstance(tower, TimmTower):
        with torch.device("meta"):
            return len(TimmImageEncoder(tower, network.embed_dim).blocks)
    assert not isinstance(tower, ExternalTower)
    return tower.layers


def _refuse_for_libraries(start: Start, config: TrainConfig) -> None:
    """Refuse what has no meaning for the towers that another library builds.

    Raises:
        UsageError: naming the flag and the way out.
    """
    network, tune, optim = start.network, config.tune, config.optim
    known = [printable(each.architecture) for each in (network.image, network.text) if isinstance(each, LIBRARY_TOWERS)]
    has = f"{start.source} has the tower {' and '.join(known)}"
    if tune.lora and known:
        raise UsageError(
            f"--lora is not supported here: {has}; leave it out, or train less with --lock image or --lock text and "
            "--unlock-last N."
        )
    if optim.patch_dropout and isinstance(network.image, TimmTower):
        raise UsageError(f"--patch-dropout is not supported here: {has}, which takes whole images; leave it out.")
    if config.encoders.unfreeze_last:
        raise UsageError(
            f"--unfreeze-last is not supported here: it is for aligned encoders, and {start.source} is a whole CLIP; "
            "use --lock image or --lock text with --unlock-last N."
        )


def stored_start(run: Path) -> Start:
    """Network and tokenizer of a run whose checkpoints hold the weights.

    Raises:
        RunError, TokenizerError: if config.json or tokenizer.json cannot be read.
    """
    init = RunReader(run).record().init
    source, given = (init.source, init.given) if init else ("initial weights", "")
    return Start(stored_network(run), Tokenizer.load(RunPaths(run).tokenizer), source, given, None)


def stored_network(run: Path) -> ClipConfig:
    """The network of a run, as it was when the run began.

    Raises:
        RunError: if config.json does not describe one.
    """
    return RunReader(run).record().model


def _read(init: str, config: TrainConfig) -> Start:
    """Weights of a run, of a checkpoint or published ones, with positions interpolated for --image-size."""
    path, size, length = local_source(Path(init).expanduser()), config.model.image_size, config.data.context_length
    if not is_run(path) and not (path / "meta.json").is_file():
        published = read_published(
            path,
            model_name=config.tune.init_model,
            image_size=size,
            context_length=None if length == _DEFAULT_LENGTH else length,
        )
        notes = published.notes
        if any(isinstance(tower, LIBRARY_TOWERS) for tower in (published.config.image, published.config.text)):
            notes = (*notes, _STAYS)
        return Start(published.config, published.tokenizer, published.source, init, published.weights, notes)
    if config.tune.init_model is not None:
        raise UsageError(
            f"--init-model applies to published weights, and {path} is a run or a checkpoint of one; leave it out."
        )
    loaded = load_model(path)
    network, weights = loaded.config, dict(loaded.model.state_dict())
    if network.external:
        return _external(init, loaded, config)
    if length not in (_DEFAULT_LENGTH, network.text.context_length):
        raise UsageError(
            f"--context-length is {length}; {path} was trained with {network.text.context_length} tokens; leave it out."
        )
    if size is not None and size != network.image.image_size:
        if isinstance(network.image, TimmTower):
            raise UsageError(
                f"--image-size is not supported for the timm trunk {printable(network.image.architecture, 60)}, whose "
                f"images have {network.image.image_size} pixels; leave it out."
            )
        network = _with_image_size(network, size)
        tower = network.own_image
        weights["image.positions"] = interpolate_positions(
            weights["image.positions"], tower.grid, class_token=tower.has_class_token
        )
    return Start(network, loaded.tokenizer, str(loaded.folder), init, weights)


def _external(init: str, loaded: LoadedModel, config: TrainConfig) -> Start:
    """An aligned run to go on from: its heads, and with --unfreeze-last its encoders, which become part of the network.

    Raises:
        UsageError: if a flag cannot be applied to external encoders, or an encoder has no blocks to unfreeze.
    """
    tune, unfreeze = config.tune, config.encoders.unfreeze_last
    for name, given in (
        ("--image-size", config.model.image_size), ("--lora", tune.lora), ("--blend", tune.blend),
        ("--lock", None if tune.lock == "none" else tune.lock), ("--patch-dropout", config.optim.patch_dropout),
        ("--word-dropout", config.optim.word_dropout), ("--bpe-dropout", config.optim.bpe_dropout),
    ):  # fmt: skip
        if given is not None:
            raise UsageError(
                f"{name} is not supported for external encoders, and {loaded.folder} has them; leave it out, or "
                "fine-tune their last blocks with --unfreeze-last N."
            )
    network, weights, notes = loaded.config, dict(loaded.model.state_dict()), list(loaded.notes)
    for side in ("image", "text"):
        tower, module = getattr(network, side), getattr(loaded.model, side)
        if not isinstance(module, ExternalEncoder) or not unfreeze or module.encoder is None:
            continue
        blocks = len(module.encoder.blocks())
        if not blocks:
            notes.append(
                f"the {side} encoder {printable(tower.encoder.name)} stays frozen: it has no blocks to unfreeze"
            )
            continue
        if unfreeze > blocks:
            raise UsageError(
                f"--unfreeze-last is {unfreeze}, and the {side} encoder {printable(tower.encoder.name)} has "
                f"{blocks} blocks."
            )
        network = network.model_copy(update={side: tower.model_copy(update={"unfrozen": unfreeze})})
        weights |= {f"{side}.unfrozen.{name}": value for name, value in module.encoder.state_dict().items()}
    if unfreeze and not any(tower.unfrozen for tower in network.external):
        raise UsageError(f"--unfreeze-last is {unfreeze}, and no encoder of {init} has blocks that can be unfrozen.")
    return Start(network, loaded.tokenizer, str(loaded.folder), init, weights, tuple(notes))


def _with_image_size(network: ClipConfig, size: int) -> ClipConfig:
    patch_size = network.own_image.patch_size
    if size % patch_size:
        raise UsageError(f"--image-size is {size}; it should be a multiple of the patch size, {patch_size}.")
    return network.model_copy(
        update={
            "image": network.image.model_copy(update={"image_size": size}),
            "preprocessing": network.preprocessing.model_copy(update={"image_size": size}),
        }
    )

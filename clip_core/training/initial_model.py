"""The network of a run before its first step: its initial weights, what of it is trained, and what it rules out."""

import math
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from clip_core.config import LossName, TrainConfig
from clip_core.errors import RunError, UsageError
from clip_core.model.clip import CLIP, attach_encoders, uninitialised_clip
from clip_core.network import ClipConfig
from clip_core.run.records import Recipe, RunRecord
from clip_core.training.batches import Batch, BatchMaker
from clip_core.training.blend import store_initial_weights
from clip_core.training.image_augmentation import network_input
from clip_core.training.initial_weights import Start
from clip_core.training.loss import best_bias, matching_pairs
from clip_core.training.ranks import Rank
from clip_core.training.stream_batches import StreamBatches
from clip_core.training.trainable import choose_trainable

# Of CLIP's own training (Radford et al. 2021) and of SigLIP's (Zhai et al. 2023).
_TEMPERATURE: dict[LossName, float] = {"softmax": 0.07, "sigmoid": 0.1}


def initial_model(
    config: TrainConfig,
    network: ClipConfig,
    recipe: Recipe,
    start: Start | None,
    run: Path | None,
    batches: BatchMaker | StreamBatches,
    rank: Rank,
) -> CLIP:
    """The network with its initial weights; frozen parameters and adapters as configured.

    Where it is sharded, rank 0 alone has weights, in the memory of the host, of which it gives the others their rows.

    Args:
        start: whose weights it takes, and frees.
        run: where they are stored for --blend; None to store none.
        batches: the first of which a new logit bias is fitted to.
    """
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


def refuse_other_dropout(record: RunRecord, model: CLIP, rank: Rank, run: Path) -> None:
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


def refuse_sharding(model: CLIP) -> None:
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

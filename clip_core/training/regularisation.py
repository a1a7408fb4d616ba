"""Terms beside the contrastive loss that keep the geometry of an embedding.

Shapes: b pairs of this process, F features, D embedding.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_NEVER = -1e4  # a logit whose probability is 0; an infinite one would make 0 x infinity
_SHARPNESS = 20.0  # 1 / temperature of the neighbourhoods that are compared


def structure_loss(features: Tensor, embeds: Tensor) -> Tensor:
    """How much the neighbourhoods among the embeddings differ from those among the pretrained features.

    Each row's softmax similarity to the other rows, of features and of embeddings, both centred and L2-normalised;
    the mean Jensen-Shannon divergence between the two, in nats.

    Args:
        features: (b, F), or (b, P, F), whose patches are averaged.
        embeds: (b, D).
    Returns:
        () in [0, ln 2].
    Source: Groeger et al. 2025, "With Limited Data for Multimodal Alignment, Let the STRUCTURE Guide You"
    (arXiv 2506.16895), with one level of neighbourhoods, and without a row itself among its neighbours, which takes
    nearly all the probability.
    """
    reference = features.float().mean(dim=1) if features.ndim == 3 else features.float()
    return _jensen_shannon(_neighbourhoods(reference), _neighbourhoods(embeds.float()))


def consistency_loss(image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """CyCLIP's two terms: similarities should not depend on which side asks, nor differ between the two modalities.

    (b, D), (b, D) -> (), the sum of both mean squares, times b
    Source: Goel et al. 2022, "CyCLIP: Cyclic Contrastive Language-Image Pretraining" (arXiv 2205.14459).
    """
    image, text = image_embeds.float(), text_embeds.float()
    across = image @ text.T
    symmetric = (across - across.T).square().mean()
    within = (image @ image.T - text @ text.T).square().mean()
    return len(image) * (symmetric + within)


def _neighbourhoods(rows: Tensor) -> Tensor:
    """Log-probabilities of each row's neighbours, which it is not one of itself.  (b, F) -> (b, b)"""
    centred = F.normalize(rows - rows.mean(dim=0), dim=-1)
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return (_SHARPNESS * centred @ centred.T).masked_fill(itself, _NEVER).log_softmax(dim=1)


def _jensen_shannon(one: Tensor, other: Tensor) -> Tensor:
    """Mean over the rows.  log-probabilities (b, b), (b, b) -> ()"""
    middle = torch.logaddexp(one, other) - math.log(2)
    halves = (F.kl_div(middle, side, reduction="batchmean", log_target=True) for side in (one, other))
    return torch.stack(list(halves)).mean()

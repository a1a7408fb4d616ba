"""The contrastive losses, with every matching pair a positive.

Shapes: B pairs in the batch, D embedding.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_core.config import LossName

_HALVINGS = 60
_BEYOND = 20.0  # logits further than this from a border are as good as certain


def matching_pairs(image_ids: Tensor, caption_ids: Tensor) -> Tensor:
    """Same image or same caption: what belongs together in a batch.  (B,), (B,) -> bool (B, B)"""
    return (image_ids[:, None] == image_ids) | (caption_ids[:, None] == caption_ids)


class CLIPLoss(nn.Module):
    """Symmetric cross-entropy over cosine x logit scale (Radford et al. 2021).

    Where several captions of the batch match an image, the target is spread evenly over them (as in UniCL, Yang et
    al. 2022), so that identical captions are never negatives of each other. Without such pairs it is CLIP's loss.

    Args:
        label_smoothing: share of the target that is spread over the whole batch, as captions are not always right and
            others may fit as well (Szegedy et al. 2016).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        logit_scale: Tensor,
        matches: Tensor,
        logit_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, D), (B, D), scalar, bool (B, B) -> the loss, and the logits (B, B), images in rows.

        `logit_bias`: left out, as a softmax is the same with and without.
        """
        logits = logit_scale * image_embeds.float() @ text_embeds.float().T
        targets = matches.float() / matches.sum(dim=1, keepdim=True)  # of captions too, as matches are symmetric
        image_to_text = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        text_to_image = F.cross_entropy(logits.T, targets, label_smoothing=self.label_smoothing)
        return (image_to_text + text_to_image) / 2, logits

    @staticmethod
    def chance(matches: Tensor) -> Tensor:
        """The loss of one same answer for every pair: ln B.  bool (B, B) -> scalar"""
        return torch.tensor(math.log(len(matches)))


class SigmoidLoss(nn.Module):
    """For each image and each caption of the batch on their own: do they belong together?

    -1/B sum_ij log sigmoid(y_ij (scale x cosine_ij + bias)), y_ij = 1 for pairs that match and -1 for all others
    (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", equation 1, where only i = j match).
    """

    def forward(
        self, image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, matches: Tensor, logit_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, D), (B, D), scalar, bool (B, B), scalar -> the loss, and the logits (B, B), images in rows."""
        logits = logit_scale * image_embeds.float() @ text_embeds.float().T + logit_bias
        return -F.logsigmoid(torch.where(matches, logits, -logits)).sum() / len(logits), logits

    @staticmethod
    def chance(matches: Tensor) -> Tensor:
        """The loss of one same answer for every pair, the best there is: B x the entropy of the share that match.

        bool (B, B) -> scalar; without repeated captions about ln B + 1.
        """
        share = matches.float().mean()
        return len(matches) * -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share))


ContrastiveLoss = CLIPLoss | SigmoidLoss


def make_loss(name: LossName, label_smoothing: float = 0.0) -> ContrastiveLoss:
    return SigmoidLoss() if name == "sigmoid" else CLIPLoss(label_smoothing)


@torch.no_grad()
def best_bias(logits: Tensor, matches: Tensor) -> Tensor:
    """The bias at which the sigmoid loss of these logits is least.  (B, B), bool (B, B) -> scalar

    There the probabilities add up to the number of pairs that match; they rise with the bias, so halving finds it.
    """
    logits, wanted = logits.double(), matches.sum()
    low, high = -logits.max() - _BEYOND, -logits.min() + _BEYOND
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        too_high = torch.sigmoid(logits + middle).sum() > wanted
        low, high = torch.where(too_high, low, middle), torch.where(too_high, middle, high)
    return ((low + high) / 2).float()


@torch.no_grad()
def batch_top1(logits: Tensor, matches: Tensor) -> tuple[Tensor, Tensor]:
    """Share of images whose best caption matches, and the reverse.  (B, B), (B, B) -> two scalars"""
    by_image = matches.gather(1, logits.argmax(dim=1, keepdim=True))
    by_text = matches.gather(0, logits.argmax(dim=0, keepdim=True))
    return by_image.float().mean(), by_text.float().mean()


@torch.no_grad()
def repeated_share(text_rows: Tensor) -> Tensor:
    """Share of a batch's pairs whose caption stands there more than once.  (B,) -> scalar"""
    return ((text_rows[:, None] == text_rows).sum(dim=1) > 1).float().mean()

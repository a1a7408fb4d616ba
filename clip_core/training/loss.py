"""The contrastive losses, with every matching pair a positive.

Shapes: b pairs of this process, B pairs of the batch of all processes, D embedding. With one process b = B.

Each process compares its own images with all captions and its own captions with all images. The mean of the losses of
the processes is the loss of the whole batch; so is the mean of the gradients, which is what DDP computes, where the
gradients of the gathered embeddings are summed over the processes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_core.config import LossName

_BISECTIONS = 60
_EXCLUDED = -1e4  # not infinite: 0 times it is 0
_SATURATED = 20.0  # the sigmoid of +-20 is 1 or 0 but for 2e-9


class Logits(NamedTuple):
    """Scaled similarities, each (b, B): own images against all captions, own captions against all images."""

    image: Tensor
    text: Tensor


class Gathered(NamedTuple):
    """The embeddings of all processes, each (B, D)."""

    image: Tensor
    text: Tensor


class Negatives(NamedTuple):
    """Hard negative captions of all pairs, as negatives of images alone.

    text: L2-normalised embeddings, (B, D).
    excluded: bool (b, B), which of them are no negatives of an image of this process.
    """

    text: Tensor
    excluded: Tensor

    def logits(self, image_embeds: Tensor, logit_scale: Tensor, logit_bias: Tensor | None) -> Tensor:
        """Own images against them, very low where they do not count.  -> (b, B), float32"""
        scaled = logit_scale * image_embeds.float() @ self.text.float().T
        scaled = scaled if logit_bias is None else scaled + logit_bias
        return scaled.masked_fill(self.excluded, _EXCLUDED)


def matching_pairs(
    image_ids: Tensor,
    caption_ids: Tensor,
    all_image_ids: Tensor | None = None,
    all_caption_ids: Tensor | None = None,
) -> Tensor:
    """Which pairs match: those that share the image or the caption.

    The relation is symmetric, so one mask applies to the rows of images and to the rows of captions.

    Args:
        image_ids, caption_ids: of the pairs in the rows, int64 (b,).
        all_image_ids, all_caption_ids: of the pairs in the columns, int64 (B,); None for those of the rows.
    Returns:
        bool (b, B).
    """
    columns = image_ids if all_image_ids is None else all_image_ids
    caption_columns = caption_ids if all_caption_ids is None else all_caption_ids
    return (image_ids[:, None] == columns) | (caption_ids[:, None] == caption_columns)


def captions_of_images(
    image_ids: Tensor, all_image_ids: Tensor, all_caption_ids: Tensor, caption_ids: Tensor
) -> Tensor:
    """Which images have which captions, by the pairs of the batch.

    Args:
        image_ids: in the rows, int64 (b,).
        all_image_ids, all_caption_ids: of the pairs of all processes, int64 (B,).
        caption_ids: in the columns, int64 (N,).
    Returns:
        bool (b, N).
    """
    known = all_caption_ids.sort().values
    first = torch.searchsorted(known, all_caption_ids)  # one column for each distinct caption
    pairs = (image_ids[:, None] == all_image_ids).int()
    has = torch.zeros_like(pairs).index_add_(1, first, pairs)
    place = torch.searchsorted(known, caption_ids).clamp(max=len(known) - 1)
    return (has[:, place] > 0) & (known[place] == caption_ids)


def make_logits(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    gathered: Gathered | None,
) -> Logits:
    """logit scale x cosine + logit bias.  (b, D), (b, D), (), (), 2 x (B, D) -> 2 x (b, B), float32"""

    def product(rows: Tensor, columns: Tensor) -> Tensor:
        scaled = logit_scale * rows.float() @ columns.float().T
        return scaled if logit_bias is None else scaled + logit_bias

    if gathered is None:
        logits = product(image_embeds, text_embeds)
        return Logits(logits, logits.T)
    return Logits(product(image_embeds, gathered.text), product(text_embeds, gathered.image))


class CLIPLoss(nn.Module):
    """Symmetric cross-entropy over cosine x logit scale (Radford et al. 2021).

    Where several captions of the batch match an image, the target is spread evenly over them (as in UniCL, Yang et
    al. 2022), so that identical captions are never negatives of each other. Without such pairs it is CLIP's loss.

    Args:
        label_smoothing: share of the target that is spread over the whole batch (Szegedy et al. 2016).
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
        gathered: Gathered | None = None,
        negatives: Negatives | None = None,
    ) -> tuple[Tensor, Logits]:
        """The loss of this process.

        Args:
            image_embeds, text_embeds: of the pairs of this process, L2-normalised, (b, D).
            logit_scale: ().
            matches: from `matching_pairs`, bool (b, B).
            logit_bias: unused: a softmax does not depend on it.
            gathered: the embeddings of all processes; None where this is the only one.
            negatives: further captions that each image is compared with (NegCLIP, Yuksekgonul et al. 2023). Label
                smoothing gives them nothing.
        Returns:
            The loss, () float32, and the logits.
        """
        logits = make_logits(image_embeds, text_embeds, logit_scale, None, gathered)
        targets = matches.float() / matches.sum(dim=1, keepdim=True)
        if negatives is None:
            image_to_text = F.cross_entropy(logits.image, targets, label_smoothing=self.label_smoothing)
        else:
            wrong = negatives.logits(image_embeds, logit_scale, None)
            smoothed = (1 - self.label_smoothing) * targets + self.label_smoothing / targets.shape[1]
            image_to_text = F.cross_entropy(
                torch.cat([logits.image, wrong], dim=1), torch.cat([smoothed, torch.zeros_like(wrong)], dim=1)
            )
        text_to_image = F.cross_entropy(logits.text, targets, label_smoothing=self.label_smoothing)
        return (image_to_text + text_to_image) / 2, logits

    @staticmethod
    def chance(matches: Tensor, negatives: Negatives | None = None) -> Tensor:
        """The loss of equal logits: ln B, or more for images with hard negatives.  bool (b, B) -> ()"""
        captions = torch.full((), math.log(matches.shape[1]), device=matches.device)
        if negatives is None:
            return captions
        return (captions + ((~negatives.excluded).sum(dim=1) + matches.shape[1]).log().mean()) / 2


class SigmoidLoss(nn.Module):
    """Binary cross-entropy of every image with every caption: do they match?

    -1/B sum_ij log sigmoid(y_ij (scale x cosine_ij + bias)), y_ij = 1 for pairs that match and -1 for all others
    (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", equation 1, where only i = j match).
    """

    def forward(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        logit_scale: Tensor,
        matches: Tensor,
        logit_bias: Tensor,
        gathered: Gathered | None = None,
        negatives: Negatives | None = None,
    ) -> tuple[Tensor, Logits]:
        """The loss of this process: its own images against all captions, which over all processes is every pair once.

        Arguments and results are those of `CLIPLoss`; `logit_bias` () is required.
        """
        logits = make_logits(image_embeds, text_embeds, logit_scale, logit_bias, gathered)
        total = -F.logsigmoid(torch.where(matches, logits.image, -logits.image)).sum()
        if negatives is not None:
            total = total - F.logsigmoid(-negatives.logits(image_embeds, logit_scale, logit_bias)).sum()
        return total / len(matches), logits

    @staticmethod
    def chance(matches: Tensor, negatives: Negatives | None = None) -> Tensor:
        """The least loss of equal logits: what an image is compared with x the entropy of the share that matches.

        bool (b, B) -> (); without repeated captions and hard negatives about ln B + 1.
        """
        compared = torch.full((), float(matches.shape[1]), device=matches.device)
        if negatives is not None:
            compared = compared + (~negatives.excluded).sum(dim=1).float().mean()
        share = matches.float().sum(dim=1).mean() / compared
        return compared * -(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share))


ContrastiveLoss = CLIPLoss | SigmoidLoss


def make_loss(name: LossName, label_smoothing: float = 0.0) -> ContrastiveLoss:
    """The loss of this name; label smoothing is of the softmax loss alone."""
    return SigmoidLoss() if name == "sigmoid" else CLIPLoss(label_smoothing)


@torch.no_grad()
def best_bias(logits: Tensor, matches: Tensor) -> Tensor:
    """The logit bias that minimises the sigmoid loss of these logits.  (B, B), bool (B, B) -> ()

    At the minimum the probabilities add up to the number of matching pairs; the sum rises with the bias, so bisection
    finds it.
    """
    logits, positives = logits.double(), matches.sum()
    low, high = -logits.max() - _SATURATED, -logits.min() + _SATURATED
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        too_high = torch.sigmoid(logits + middle).sum() > positives
        low, high = torch.where(too_high, low, middle), torch.where(too_high, middle, high)
    return ((low + high) / 2).float()


@torch.no_grad()
def batch_top1(logits: Logits, matches: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the images whose best caption matches, and of the captions whose best image does.  -> (), ()"""
    image_top1, text_top1 = (
        matches.gather(1, side.argmax(dim=1, keepdim=True)).float().mean() for side in (logits.image, logits.text)
    )
    return image_top1, text_top1


@torch.no_grad()
def repeated_share(caption_ids: Tensor, all_caption_ids: Tensor) -> Tensor:
    """Share of the pairs whose caption is in the batch more than once.  (b,), (B,) -> ()"""
    return ((caption_ids[:, None] == all_caption_ids).sum(dim=1) > 1).float().mean()

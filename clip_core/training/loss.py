"""The contrastive loss, with every matching pair a positive.

Shapes: B pairs in the batch, D embedding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def matching_pairs(image_ids: Tensor, caption_ids: Tensor) -> Tensor:
    """Same picture or same caption: what belongs together in a batch.  (B,), (B,) -> bool (B, B)"""
    return (image_ids[:, None] == image_ids) | (caption_ids[:, None] == caption_ids)


class CLIPLoss(nn.Module):
    """Symmetric cross-entropy over cosine x logit scale (Radford et al. 2021).

    Where several captions of the batch match a picture, the target is spread evenly over them (as in UniCL, Yang et
    al. 2022), so that identical captions are never negatives of each other. Without such pairs it is CLIP's loss.
    """

    def forward(
        self, image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, matches: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, D), (B, D), scalar, bool (B, B) -> the loss, and the logits (B, B), pictures in rows."""
        logits = logit_scale * image_embeds.float() @ text_embeds.float().T
        targets = matches.float()
        image_to_text = F.cross_entropy(logits, targets / targets.sum(dim=1, keepdim=True))
        text_to_image = F.cross_entropy(logits.T, targets / targets.sum(dim=1, keepdim=True))  # matches are symmetric
        return (image_to_text + text_to_image) / 2, logits


@torch.no_grad()
def batch_top1(logits: Tensor, matches: Tensor) -> tuple[Tensor, Tensor]:
    """Share of pictures whose best caption matches, and the reverse.  (B, B), (B, B) -> two scalars"""
    by_image = matches.gather(1, logits.argmax(dim=1, keepdim=True))
    by_text = matches.gather(0, logits.argmax(dim=0, keepdim=True))
    return by_image.float().mean(), by_text.float().mean()


@torch.no_grad()
def repeated_share(text_rows: Tensor) -> Tensor:
    """Share of a batch's pairs whose caption stands there more than once.  (B,) -> scalar"""
    return ((text_rows[:, None] == text_rows).sum(dim=1) > 1).float().mean()

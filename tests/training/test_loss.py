import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clip_core.training.loss import CLIPLoss, batch_top1, matching_pairs


def naive_loss(images: torch.Tensor, texts: torch.Tensor, scale: float, matches: torch.Tensor) -> float:
    """Each row by hand: the mean over its positives of -log softmax."""
    logits = (scale * images @ texts.T).double()
    total = 0.0
    for table, match in ((logits, matches), (logits.T, matches.T)):
        for row, positives in zip(table, match, strict=True):
            log_sum = math.log(sum(math.exp(float(v)) for v in row))
            total += sum(log_sum - float(v) for v in row[positives]) / int(positives.sum())
    return total / (2 * len(logits))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), pairs=st.integers(2, 12), scale=st.floats(1, 30))
def test_the_loss_equals_the_naive_one_with_any_matching_pairs(seed: int, pairs: int, scale: float) -> None:
    g = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(pairs, 6, generator=g), dim=-1)
    texts = F.normalize(torch.randn(pairs, 6, generator=g), dim=-1)
    ids = torch.randint(0, pairs, (2, pairs), generator=g)
    matches = matching_pairs(ids[0], ids[1])
    loss, _ = CLIPLoss()(images, texts, torch.tensor(scale), matches)
    assert float(loss) == pytest.approx(naive_loss(images, texts, scale, matches), rel=1e-4)


def test_without_matching_pairs_it_is_the_loss_of_the_clip_paper() -> None:
    images, texts = (F.normalize(torch.randn(8, 16), dim=-1) for _ in range(2))
    logits = 14.0 * images @ texts.T
    paper = (F.cross_entropy(logits, torch.arange(8)) + F.cross_entropy(logits.T, torch.arange(8))) / 2
    loss, _ = CLIPLoss()(images, texts, torch.tensor(14.0), torch.eye(8, dtype=torch.bool))
    torch.testing.assert_close(loss, paper)


def test_identical_captions_are_never_negatives_of_each_other() -> None:
    text = F.normalize(torch.randn(1, 8), dim=-1).expand(2, -1)
    image = text.clone().requires_grad_()
    matches = matching_pairs(torch.tensor([0, 1]), torch.tensor([5, 5]))
    loss, _ = CLIPLoss()(image, text, torch.tensor(50.0), matches)
    loss.backward()
    assert image.grad is not None
    assert image.grad.abs().max() < 1e-5  # nothing pushes a picture from a caption that is also its own


def test_same_picture_or_same_caption_match_and_nothing_else() -> None:
    matches = matching_pairs(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 2]))
    assert matches.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


def test_top1_in_batch_counts_any_match() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [5.0, 0.0, 0.0]])
    matches = matching_pairs(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]))
    by_image, by_text = batch_top1(logits, matches)
    assert float(by_image) == pytest.approx(2 / 3)
    assert float(by_text) == pytest.approx(1 / 3)

import math

import open_clip.loss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clip_core.training.loss import (
    CLIPLoss,
    ContrastiveLoss,
    Gathered,
    Logits,
    SigmoidLoss,
    batch_top1,
    best_bias,
    matching_pairs,
    repeated_share,
)


def naive_loss(images: torch.Tensor, texts: torch.Tensor, scale: float, matches: torch.Tensor) -> float:
    """Each row by hand: the mean over its positives of -log softmax."""
    logits = (scale * images @ texts.T).double()
    total = 0.0
    for table, match in ((logits, matches), (logits.T, matches.T)):
        for row, positives in zip(table, match, strict=True):
            log_sum = math.log(sum(math.exp(float(v)) for v in row))
            total += sum(log_sum - float(v) for v in row[positives]) / int(positives.sum())
    return total / (2 * len(logits))


def naive_sigmoid_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: float, bias: float, matches: torch.Tensor
) -> float:
    """Every pair by hand: -log of the probability that was given to what is true."""
    total = 0.0
    for row, image in enumerate(images.double()):
        for column, text in enumerate(texts.double()):
            logit = scale * float(image @ text) + bias
            against = -logit if matches[row, column] else logit
            total += max(against, 0.0) + math.log1p(math.exp(-abs(against)))
    return total / len(images)


def random_batch(seed: int, pairs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit vectors of images and captions, and matches among them."""
    g = torch.Generator().manual_seed(seed)
    images, texts = (F.normalize(torch.randn(pairs, 6, generator=g), dim=-1) for _ in range(2))
    ids = torch.randint(0, pairs, (2, pairs), generator=g)
    return images, texts, matching_pairs(ids[0], ids[1])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), pairs=st.integers(2, 12), scale=st.floats(1, 30))
def test_the_loss_equals_the_naive_one_with_any_matching_pairs(seed: int, pairs: int, scale: float) -> None:
    images, texts, matches = random_batch(seed, pairs)
    loss, _ = CLIPLoss()(images, texts, torch.tensor(scale), matches)
    assert float(loss) == pytest.approx(naive_loss(images, texts, scale, matches), rel=1e-4)


def test_without_matching_pairs_it_is_the_loss_of_the_clip_paper() -> None:
    images, texts = (F.normalize(torch.randn(8, 16), dim=-1) for _ in range(2))
    logits = 14.0 * images @ texts.T
    paper = (F.cross_entropy(logits, torch.arange(8)) + F.cross_entropy(logits.T, torch.arange(8))) / 2
    loss, _ = CLIPLoss()(images, texts, torch.tensor(14.0), torch.eye(8, dtype=torch.bool))
    torch.testing.assert_close(loss, paper)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), pairs=st.integers(2, 12), scale=st.floats(1, 300), bias=st.floats(-30, 10))
def test_the_sigmoid_loss_equals_the_naive_one_with_any_matching_pairs(
    seed: int, pairs: int, scale: float, bias: float
) -> None:
    images, texts, matches = random_batch(seed, pairs)
    loss, _ = SigmoidLoss()(images, texts, torch.tensor(scale), matches, torch.tensor(bias))
    assert float(loss) == pytest.approx(naive_sigmoid_loss(images, texts, scale, bias, matches), rel=1e-4, abs=1e-5)


def test_without_matching_pairs_the_sigmoid_loss_is_that_of_its_paper() -> None:
    images, texts, _ = random_batch(0, 8)
    labels = 2 * torch.eye(8) - torch.ones(8, 8)
    paper = -F.logsigmoid(labels * (10.0 * images @ texts.T - 10.0)).sum() / 8  # Zhai et al. 2023, algorithm 1
    loss, logits = SigmoidLoss()(images, texts, torch.tensor(10.0), labels > 0, torch.tensor(-10.0))
    torch.testing.assert_close(loss, paper)
    torch.testing.assert_close(logits.image, 10.0 * images @ texts.T - 10.0)
    assert torch.equal(logits.text, logits.image.T)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (117.3, -12.9), (1.0, 0.0)])
def test_without_matching_pairs_the_sigmoid_loss_is_open_clips(scale: float, bias: float) -> None:
    images, texts, _ = random_batch(1, 64)
    mine, theirs = ([part.clone().requires_grad_() for part in (images, texts)] for _ in range(2))
    weights = [torch.tensor(value, requires_grad=True) for value in (scale, bias, scale, bias)]
    loss, _ = SigmoidLoss()(*mine, weights[0], torch.eye(64, dtype=torch.bool), weights[1])
    reference = open_clip.loss.SigLipLoss()(*theirs, weights[2], weights[3])
    assert float(loss.detach()) == pytest.approx(float(reference.detach()), abs=1e-5)
    loss.backward()
    reference.backward()
    for one, other in zip([*mine, *weights[:2]], [*theirs, *weights[2:]], strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_sigmoid_loss_is_the_slope_of_the_naive_one() -> None:
    images, texts, matches = random_batch(2, 5)
    bias, scale, step = torch.tensor(-3.0, requires_grad=True), torch.tensor(12.0, requires_grad=True), 1e-4
    images.requires_grad_()
    loss, _ = SigmoidLoss()(images, texts, scale, matches, bias)
    loss.backward()

    def slope(of: str) -> float:
        values = []
        for sign in (1, -1):
            moved = images.detach().clone().double()
            moved[3, 2] += sign * step * (of == "image")
            by_scale, by_bias = 12.0 + sign * step * (of == "scale"), -3.0 + sign * step * (of == "bias")
            values.append(naive_sigmoid_loss(moved, texts.double(), by_scale, by_bias, matches))
        return (values[0] - values[1]) / (2 * step)

    assert images.grad is not None
    gradients = {"image": images.grad[3, 2], "scale": scale.grad, "bias": bias.grad}
    assert {name: float(g) for name, g in gradients.items() if g is not None} == pytest.approx(
        {name: slope(name) for name in gradients}, rel=1e-3, abs=1e-4
    )


def test_the_sigmoid_loss_stays_finite_where_it_is_certain_and_wrong() -> None:
    images = F.normalize(torch.randn(4, 8), dim=-1).requires_grad_()
    opposite = -images.detach()
    loss, _ = SigmoidLoss()(images, opposite, torch.tensor(1e6), torch.eye(4, dtype=torch.bool), torch.tensor(-10.0))
    loss.backward()
    assert float(loss.detach()) > 1e5
    assert torch.isfinite(loss)
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()


@pytest.mark.parametrize("seed", range(5))
def test_no_other_bias_fits_better_than_the_best_one(seed: int) -> None:
    images, texts, matches = random_batch(seed, 24)
    scale = torch.tensor(30.0)
    bias = best_bias(scale * images @ texts.T, matches)
    best, *others = (float(SigmoidLoss()(images, texts, scale, matches, bias + by)[0]) for by in (0, -2, -0.1, 0.1, 2))
    assert best < min(others)


def test_the_best_bias_of_a_batch_that_all_matches_is_finite() -> None:
    assert torch.isfinite(best_bias(torch.zeros(3, 3), torch.ones(3, 3, dtype=torch.bool)))


@pytest.mark.parametrize(("pairs", "captions"), [(64, 64), (64, 6), (2, 2)])
def test_chance_is_the_least_loss_of_one_answer_for_all(pairs: int, captions: int) -> None:
    ids = torch.arange(pairs)
    matches = matching_pairs(ids, ids % captions)
    nothing, one = torch.zeros(pairs, 4), torch.tensor(1.0)
    softmax, _ = CLIPLoss()(nothing, nothing, one, matches)
    sigmoid, _ = SigmoidLoss()(nothing, nothing, one, matches, best_bias(torch.zeros(pairs, pairs), matches))
    torch.testing.assert_close(softmax, CLIPLoss.chance(matches))
    torch.testing.assert_close(sigmoid, SigmoidLoss.chance(matches))


@pytest.mark.parametrize("contrastive", [CLIPLoss(), SigmoidLoss()])
def test_identical_captions_are_never_negatives_of_each_other(contrastive: ContrastiveLoss) -> None:
    text = F.normalize(torch.randn(1, 8), dim=-1).expand(2, -1)
    image = text.clone().requires_grad_()
    matches = matching_pairs(torch.tensor([0, 1]), torch.tensor([5, 5]))
    loss, _ = contrastive(image, text, torch.tensor(50.0), matches, torch.tensor(-10.0))
    loss.backward()
    assert image.grad is not None
    assert image.grad.abs().max() < 1e-5  # nothing pushes an image from a caption that is also its own


def test_same_image_or_same_caption_match_and_nothing_else() -> None:
    matches = matching_pairs(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 2]))
    assert matches.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]


def test_top1_in_batch_counts_any_match() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [5.0, 0.0, 0.0]])
    matches = matching_pairs(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]))
    by_image, by_text = batch_top1(Logits(logits, logits.T), matches)
    assert float(by_image) == pytest.approx(2 / 3)
    assert float(by_text) == pytest.approx(1 / 3)


def test_label_smoothing_spreads_a_share_of_the_target_over_the_whole_batch() -> None:
    images, texts = (F.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    matches = matching_pairs(torch.tensor([0, 0, 1, 2, 3, 4]), torch.tensor([0, 1, 2, 2, 3, 4]))
    logits = 9.0 * images @ texts.T
    even = matches.float() / matches.sum(dim=1, keepdim=True)
    targets = 0.8 * even + 0.2 / 6
    by_hand = -(targets * logits.log_softmax(1)).sum(1).mean() - (targets * logits.T.log_softmax(1)).sum(1).mean()
    loss, _ = CLIPLoss(label_smoothing=0.2)(images, texts, torch.tensor(9.0), matches)
    torch.testing.assert_close(loss, by_hand / 2)


# ---------------------------------------------------------------- several processes


LOSSES: dict[str, ContrastiveLoss] = {
    "softmax": CLIPLoss(),
    "softmax with label smoothing": CLIPLoss(label_smoothing=0.2),
    "sigmoid": SigmoidLoss(),
}


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_the_mean_over_processes_is_the_loss_of_the_whole_batch_and_so_is_its_gradient(
    name: str, ranks: int, seed: int
) -> None:
    """Every process has its own pairs, the embeddings of all, and the mean of losses and gradients, as by DDP."""
    loss = LOSSES[name]
    images, texts, _ = random_batch(seed, 8)
    ids = torch.randint(0, 6, (2, 8), generator=torch.Generator().manual_seed(seed))  # several positives a row
    leaves = [value.double().requires_grad_() for value in (images, texts, torch.tensor(9.0), torch.tensor(-4.0))]
    parts = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    whole_matches = matching_pairs(*ids)
    whole, logits = loss(*leaves[:3], whole_matches, leaves[3])
    whole.backward()

    each = 8 // ranks
    slices = [slice(number * each, (number + 1) * each) for number in range(ranks)]
    losses, tops, chances = [], [], []
    for own in slices:
        matches = matching_pairs(ids[0][own], ids[1][own], *ids)
        assert torch.equal(matches, whole_matches[own])
        everyone = Gathered(parts[0], parts[1])
        value, own_logits = loss(parts[0][own], parts[1][own], parts[2], matches, parts[3], everyone)
        assert own_logits.image.shape == own_logits.text.shape == (each, 8)
        losses.append(value)
        tops.append(torch.stack(batch_top1(own_logits, matches)))
        chances.append(loss.chance(matches))
    mean = torch.stack(losses).mean()
    torch.autograd.backward(mean)
    torch.testing.assert_close(mean, whole, rtol=2e-6, atol=1e-6)
    for part, leaf in zip(parts, leaves, strict=True):
        if leaf.grad is not None:  # the softmax loss has no bias
            torch.testing.assert_close(part.grad, leaf.grad, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(torch.stack(tops).mean(dim=0), torch.stack(batch_top1(logits, whole_matches)))
    if name != "sigmoid":
        torch.testing.assert_close(torch.stack(chances), loss.chance(whole_matches).expand(ranks))


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_the_mean_over_processes_is_the_naive_loss(seed: int, ranks: int) -> None:
    images, texts, matches = random_batch(seed, 8)
    everyone, each, scale, bias = Gathered(images, texts), 8 // ranks, torch.tensor(12.0), torch.tensor(-5.0)
    softmax, sigmoid = [], []
    for start in range(0, 8, each):
        own = slice(start, start + each)
        softmax.append(CLIPLoss()(images[own], texts[own], scale, matches[own], None, everyone)[0])
        sigmoid.append(SigmoidLoss()(images[own], texts[own], scale, matches[own], bias, everyone)[0])
    expected = naive_loss(images, texts, 12.0, matches)
    assert float(torch.stack(softmax).mean()) == pytest.approx(expected, rel=1e-5)
    expected = naive_sigmoid_loss(images, texts, 12.0, -5.0, matches)
    assert float(torch.stack(sigmoid).mean()) == pytest.approx(expected, rel=1e-5)


def test_repeated_captions_are_counted_in_the_whole_batch() -> None:
    captions = torch.tensor([0, 1, 2, 0])
    assert float(repeated_share(captions, captions)) == 0.5
    assert float(repeated_share(captions[:2], captions)) == 0.5
    assert float(repeated_share(captions[1:3], captions)) == 0.0

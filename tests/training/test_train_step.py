"""What a step computes with: weights in bf16 below those in fp32, captions in groups, Muon for the matrices."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from clip_core.config import DataConfig, parse_config
from clip_core.data.dataset import load_data
from clip_core.data.tokenizer import train_characters
from clip_core.model.clip import CLIP
from clip_core.model.transformer import attend
from clip_core.network import ClipConfig, ImageTower, Preprocessing, TextTower
from clip_core.training.image_augmentation import draw_kept_patches
from clip_core.training.batches import BatchMaker
from clip_core.training.train_step import TrainStep
from clip_core.training.optimiser import Optimiser
from clip_core.training.recipe import work_out
from clip_core.training.mixed_precision import MixedPrecision

CPU = torch.device("cpu")


def tiny_config() -> ClipConfig:
    image = ImageTower(image_size=32, patch_size=8, width=32, heads=2, layers=2)
    text = TextTower(vocab_size=20, end_token=2, context_length=8, width=32, heads=2, layers=2)
    return ClipConfig(embed_dim=16, image=image, text=text, preprocessing=Preprocessing(image_size=32))


def gradients(precision: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = CLIP(tiny_config())
    working = Working(model, precision)
    generator = torch.Generator().manual_seed(1)
    size = model.config.image.image_size
    pixel_values = torch.randn(8, 3, size, size, generator=generator)
    input_ids = torch.randint(3, 20, (8, 8), generator=generator)
    input_ids[:, -1] = model.config.text.end_token
    images, texts = working.refresh()(pixel_values.to(working.dtype), input_ids)
    assert images.dtype is texts.dtype is torch.float32
    F.cross_entropy(working.model.logit_scale() * images @ texts.T, torch.arange(8)).backward()
    working.hand_over()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradients_of_the_copy_in_bf16_are_those_of_fp32_but_for_rounding() -> None:
    exact, rounded = gradients("fp32"), gradients("bf16")
    assert exact.keys() == rounded.keys()
    for name, value in exact.items():
        assert rounded[name].dtype is torch.float32
        assert F.cosine_similarity(value.flatten(), rounded[name].flatten(), dim=0) > 0.99, name


def test_the_copy_follows_the_weights_that_move_and_leaves_the_others_alone() -> None:
    model = CLIP(tiny_config())
    model.image.requires_grad_(False)
    working = Working(model, "bf16")
    with torch.no_grad():
        model.text.projection.weight.add_(1.0)
    copy = working.refresh()
    assert torch.equal(copy.text.projection.weight, model.text.projection.weight.bfloat16())
    assert copy.log_logit_scale.dtype is torch.float32
    assert not copy.image.projection.weight.requires_grad


def test_in_fp32_there_is_no_copy() -> None:
    model = CLIP(tiny_config())
    assert Working(model, "fp32").refresh() is model


@pytest.mark.parametrize("causal", [True, False])
def test_attention_by_products_is_the_fused_one_but_for_rounding_and_so_is_its_gradient(causal: bool) -> None:
    random = torch.Generator().manual_seed(0)
    start, seen = torch.randn(3, 2, 4, 17, 16, generator=random), torch.randn(2, 4, 17, 16, generator=random)
    exact, rounded = start.clone().requires_grad_(), start.bfloat16().requires_grad_()
    values = [attend(qkv, causal=causal) for qkv in (exact, rounded)]
    torch.testing.assert_close(values[1].float(), values[0], atol=0.03, rtol=0)
    for value in values:
        value.backward(seen.to(value.dtype))
    assert exact.grad is not None
    assert rounded.grad is not None
    for of_exact, of_rounded in zip(exact.grad, rounded.grad.float(), strict=True):  # of q, of k, of v
        assert (of_rounded - of_exact).norm() < 0.02 * of_exact.norm()


def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = CLIP(tiny_config())
    optimiser = Optimiser(model, lr=1e-2, weight_decay=0.1, beta2=0.98, device=CPU, muon=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimiser.step()
    kept: dict[str, set[str]] = {}
    for name in optimiser.tensors():
        parameter, _, moment = name.rpartition("/")
        kept.setdefault(parameter, set()).add(moment)
    by_muon = {name for name, moments in kept.items() if moments == {"momentum_buffer"}}
    assert kept.keys() == dict(model.named_parameters()).keys()
    assert by_muon == {name for name, p in model.named_parameters() if ".blocks." in name and p.ndim == 2}


def test_a_step_of_muon_turns_a_matrix_alike_in_every_direction() -> None:
    model = CLIP(tiny_config())
    weight = model.image.blocks[0].get_parameter("attention.out.weight")
    before = weight.detach().clone()
    optimiser = Optimiser(model, lr=1e-2, weight_decay=0.0, beta2=0.98, device=CPU, muon=True)
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimiser.step()

    def spread(matrix: torch.Tensor) -> float:
        """How much further the largest quarter of the singular values reaches than the smallest."""
        values = torch.linalg.svdvals(matrix)
        return float(values[: len(values) // 4].mean() / values[-len(values) // 4 :].mean())

    assert spread(weight.grad) > 5
    assert spread(before - weight.detach()) < 2.5


@pytest.mark.parametrize("groups", [1, 4])
def test_every_pair_finds_its_caption_in_groups_of_like_length(shapes: Path, tmp_path: Path, groups: int) -> None:
    drawn = json.loads(shapes.read_text())
    pairs = [
        {"image": pair["image"], "caption": " ".join([pair["caption"]] * (1 + number % 7))}
        for number, pair in enumerate(drawn)
    ]
    (shapes.parent / "longer.json").write_text(json.dumps(pairs))
    data = load_data(DataConfig(data_file=shapes.parent / "longer.json"), Preprocessing(), 0, lambda line: None)
    tokenizer = train_characters(data.train.captions, context_length=77)
    make = BatchMaker(data.train, data.train_store, tokenizer, batch_size=64, seed=0, groups=groups)
    batch = make(1)
    rows = [row[row != tokenizer.pad_id].tolist() for group in batch.input_ids for row in group]
    for pair, caption in enumerate(batch.caption_ids):
        expected = tokenizer.encode([data.train.captions[int(caption)]])[0].tolist()
        assert rows[int(batch.text_rows[pair])] == expected
    widths = [group.shape[1] for group in batch.input_ids]
    assert len(widths) == groups
    assert widths == sorted(widths)
    assert all(width % 8 == 0 or width == 77 for width in widths)  # few shapes, as each costs a CPU memory
    assert all((group[:, -8:] != tokenizer.pad_id).any() for group in batch.input_ids)  # none is wider than it needs


def test_patch_dropout_looks_at_some_patches_of_each_image_and_at_all_of_them_it_changes_nothing() -> None:
    kept = kept_patches(5, 16, 0.5, torch.Generator().manual_seed(0))
    assert kept.shape == (5, 8)
    assert all(len(set(row)) == 8 and row == sorted(row) and max(row) < 16 for row in kept.tolist())
    assert len({tuple(row) for row in kept.tolist()}) == 5
    for class_token in (False, True):
        config = tiny_config().model_copy(update={"image": ImageTower(
            image_size=32, patch_size=8, width=32, heads=2, layers=2, class_token=class_token
        )})  # fmt: skip
        model = CLIP(config).eval()
        pixel_values = torch.randn(5, 3, 32, 32)
        whole = model.encode_image(pixel_values)
        torch.testing.assert_close(model.encode_image(pixel_values, torch.arange(16).expand(5, -1)), whole)
        changed = pixel_values.clone()
        changed[:, :, :8, :8] = 0  # the first patch
        without_it = torch.arange(1, 16).expand(5, -1)
        torch.testing.assert_close(
            model.encode_image(changed, without_it), model.encode_image(pixel_values, without_it)
        )
        assert not torch.allclose(model.encode_image(changed), whole)


@pytest.mark.parametrize("flags", [{}, {"optimizer": "muon", "patch_dropout": 0.5, "loss": "sigmoid"}])
def test_a_step_reads_nothing_back_from_the_device(shapes: Path, flags: dict[str, Any]) -> None:
    """On torch's device without memory, where a number that is asked for is an error, and not a wait as on a GPU."""
    config = parse_config(
        {
            "data": {"data_file": shapes},
            "optim": {"batch_size": 32, **flags},
            "run": {"precision": "bf16", "device": "cpu"},
        }
    )
    network = tiny_config().model_copy(update={"logit_bias": "loss" in flags})
    data = load_data(config.data, network.preprocessing, 0, lambda sentence: None)
    tokenizer = train_characters(data.train.captions, network.text.context_length)
    batches = BatchMaker(data.train, data.train_store, tokenizer, batch_size=32, seed=0)
    pairs = len(data.train)
    recipe = replace(work_out(config, pairs, network, epoch_pairs=pairs), device="meta")
    learner = Learner(CLIP(network), recipe, config)
    measured = [learner(batches(step).to(learner.device), step, recipe.lr) for step in range(2)]
    with pytest.raises(RuntimeError, match="meta"):
        float(measured[0]["loss"])
    with pytest.raises(RuntimeError, match="meta"):
        learner.refuse_non_finite()

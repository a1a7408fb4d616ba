"""Batches in chunks: the gradient of the whole batch, whatever the chunks, and less memory instead of another one."""

import ctypes
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clip_core.config import TuneConfig, parse_config
from clip_core.model.clip import CLIP
from clip_core.training.batches import Batch
from clip_core.training.cached_gradient import out_of_memory, split
from clip_core.training.memory import MemoryEstimate, choose_chunk, equal_chunks, estimate_memory, fits_by_trial
from clip_core.training.train_step import TrainStep
from clip_core.training.trainable import choose_trainable
from tests.conftest import clip_train
from tests.fake_cuda import CUDA, NoWaiting, fake_batch, fake_cuda
from tests.running import forked_with_torch, lines
from tests.training.tiny import tiny, tiny_batch, tiny_config, tiny_recipe

PAIRS = 11  # no multiple of a chunk


def step_with(chunk_size: int | None, tune: dict[str, Any] | None = None, **recipe: Any) -> TrainStep:
    values = tiny_recipe(**recipe)
    model = tiny(logit_bias=values.loss == "sigmoid")
    torch.manual_seed(1)
    choose_trainable(model, TuneConfig(init="x", **(tune or {})), values.loss)
    return TrainStep(model, values, parse_config({"optim": {"chunk_size": chunk_size}}))


def gradient(step: TrainStep, batch: Batch) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, measurements and the gradient of every parameter, of step 3."""
    loss, measured = step.gradients(batch, 3)
    return loss, measured, {n: p.grad for n, p in step.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("recipe", "tune"),
    [
        ({"label_smoothing": 0.1, "patch_dropout": 0.5}, {}),
        ({"loss": "sigmoid"}, {}),
        ({"loss": "sigmoid"}, {"lora": 2}),
        ({}, {"lock": "image"}),
        ({}, {"lock": "text"}),
    ],
)
def test_the_gradient_in_chunks_is_that_of_the_whole_batch(recipe: dict[str, Any], tune: dict[str, Any]) -> None:
    batch = tiny_batch(pairs=PAIRS)  # with 6 captions, so that many pairs match
    loss, measured, whole = gradient(step_with(None, tune, **recipe), batch)
    in_chunks = gradient(step_with(4, tune, **recipe), batch)
    assert in_chunks[2].keys() == whole.keys()
    for name, value in whole.items():
        assert float((in_chunks[2][name] - value).abs().max()) < 1e-5 * max(float(value.abs().max()), 1.0), name
    torch.testing.assert_close(in_chunks[0], loss.detach(), rtol=1e-6, atol=1e-6)
    for name, value in measured.items():
        torch.testing.assert_close(in_chunks[1][name], value, rtol=1e-5, atol=1e-6)


def test_in_bf16_the_chunks_are_summed_in_fp32() -> None:
    batch = tiny_batch(pairs=PAIRS)
    exact = gradient(step_with(None), batch)[2]
    whole, in_chunks = (gradient(step_with(size, precision="bf16"), batch)[2] for size in (None, 2))

    def error(of: dict[str, Tensor]) -> float:
        return float(sum((of[name] - value).square().sum() for name, value in exact.items()))

    assert all(value.dtype is torch.float32 for value in in_chunks.values())
    assert error(in_chunks) < 1.5 * error(whole)  # 6 sums rounded to bf16 would be several times as far off


def test_dropout_of_a_chunk_is_the_same_in_both_passes() -> None:
    """The gradient is that of the embeddings that the loss saw: equal to one graph over the same chunks."""

    def with_dropout(chunk_size: int | None) -> TrainStep:
        step = step_with(chunk_size)
        for tower in (step.model.image, step.model.text):
            tower.blocks[0].mlp.append(nn.Dropout(0.5))
        step.draws_in_network = True
        return step

    batch, step, again = tiny_batch(pairs=PAIRS), with_dropout(5), with_dropout(5)
    _, _, cached = gradient(step, batch)
    crops, parts = again.crops(batch, 3), []
    assert crops is not None
    for number, chunk in enumerate(split(PAIRS, batch.input_ids, 5)):
        again.seed_network(3, number)
        images = again.images(batch.rows(chunk.rows), crops[chunk.rows])
        parts.append(again.network(images, chunk.input_ids))
    image, text = (torch.cat([getattr(part, side) for part in parts]) for side in ("image", "text"))
    again.backward(again.loss_of(parts[-1]._replace(image=image, text=text[batch.text_rows]), batch)[0])
    for name, parameter in again.model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(cached[name], parameter.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("pairs", "captions", "size"), [(10, (7, 3), 4), (100, (2,), 7), (5, (3, 2), 1)])
def test_chunks_are_small_and_are_the_batch_in_its_order(pairs: int, captions: tuple[int, ...], size: int) -> None:
    groups = tuple(torch.arange(100 * n, 100 * n + count)[:, None] for n, count in enumerate(captions))
    chunks = split(pairs, groups, size)
    assert [row for chunk in chunks for row in range(pairs)[chunk.rows]] == list(range(pairs))
    assert torch.equal(torch.cat([part for chunk in chunks for part in chunk.input_ids]), torch.cat(groups))
    assert all(0 < len(range(pairs)[chunk.rows]) <= size for chunk in chunks)
    assert all(sum(map(len, chunk.input_ids)) <= size for chunk in chunks)
    assert chunks[-1].input_ids


# ---------------------------------------------------------------- out of memory


def limit(megabytes: int) -> None:
    """Let this process map so much more memory."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + megabytes * 2**20, resource.RLIM_INFINITY))


def in_little_memory(results: Any) -> None:
    """A gradient with little memory and then with enough, and trials of chunks; in a process of its own."""
    torch.set_num_threads(1)
    # Tensors are mapped and unmapped one by one: the limit is of addresses, which the heap would keep after a failure.
    ctypes.CDLL(None).mallopt(-3, 2**16)  # M_MMAP_THRESHOLD
    step, said, batch = step_with(None), [], tiny_batch(pairs=2000)
    step.say = said.append
    step.gradients(tiny_batch(), 0)  # what the first call loads
    step.model.zero_grad()
    limit(200)
    found = gradient(step, batch)[2]
    trials = [fits_by_trial(step, batch, size) for size in (2000, 8)]
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    whole = gradient(step_with(None), batch)[2]
    largest = max(float(value.abs().max()) for value in whole.values())
    apart = max(float((found[name] - value).abs().max()) for name, value in whole.items()) / max(largest, 1.0)
    results.put((said, step.chunk_size, apart, trials))


@pytest.fixture(scope="module")
def little_memory() -> tuple[list[str], int, float, list[bool]]:
    context = forked_with_torch()
    results = context.SimpleQueue()
    process = context.Process(target=in_little_memory, args=(results,))
    process.start()
    process.join()
    assert process.exitcode == 0
    found: tuple[list[str], int, float, list[bool]] = results.get()
    return found


@pytest.mark.fault("out of memory")
def test_out_of_memory_halves_the_chunk_says_so_and_keeps_the_gradient(little_memory: Any) -> None:
    said, chunk_size, apart, _ = little_memory
    assert said[0] == (
        "out of memory with 2000 pairs in a forward pass: chunks of 1000 from now on, "
        "with the gradient of the whole batch"
    )
    assert 0 < chunk_size <= 1000
    assert apart < 1e-5


@pytest.mark.fault("out of memory")
def test_the_trial_sees_what_does_not_fit(little_memory: Any) -> None:
    assert little_memory[3] == [False, True]


def test_the_trial_leaves_weights_and_gradients_alone() -> None:
    step, batch = step_with(None, precision="bf16"), tiny_batch(pairs=PAIRS)
    before = {name: value.clone() for name, value in step.model.state_dict().items()}
    assert fits_by_trial(step, batch, PAIRS)
    assert fits_by_trial(step, batch, 4)
    assert all(torch.equal(value, before[name]) for name, value in step.model.state_dict().items())
    assert all(p.grad is None for network in (step.model, step.network) for p in network.parameters())


@pytest.mark.parametrize("recipe", [{"patch_dropout": 0.5}, {"precision": "bf16", "loss": "sigmoid"}])
def test_activation_checkpointing_changes_no_gradient_and_saves_memory(recipe: dict[str, Any]) -> None:
    batch, whole = tiny_batch(), step_with(None, **recipe)
    config = parse_config({"run": {"checkpoint_activations": True}})
    step = TrainStep(tiny(logit_bias="loss" in recipe), whole.recipe, config)
    step.model.load_state_dict(whole.model.state_dict())
    choose_trainable(step.model, TuneConfig(), step.recipe.loss)
    step.mixed_precision.reload()
    calls: list[int] = []
    step.network.image.blocks[0].norm_1.register_forward_hook(lambda *_: calls.append(1))
    expected, found = gradient(whole, batch), gradient(step, batch)
    assert len(calls) == 2  # forward, and again in the backward pass
    assert found[2].keys() == expected[2].keys()
    for name, value in expected[2].items():
        torch.testing.assert_close(found[2][name], value)
    assert estimate_memory(step, batch).per_pair < 0.8 * estimate_memory(whole, batch).per_pair


def test_other_errors_are_not_taken_for_missing_memory() -> None:
    assert not out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not out_of_memory(KeyboardInterrupt())


def test_the_chunk_is_chosen_from_the_estimate_where_the_batch_does_not_fit() -> None:
    gb = 10**9
    estimate = MemoryEstimate(gb, gb, per_pair=10e6, available=4 * gb, batch_size=4096, embed_dim=512)
    chunk = estimate.largest_chunk
    assert estimate.of_chunks(chunk) <= 0.8 * estimate.available < estimate.of_chunks(1.2 * chunk)
    assert chunk == equal_chunks(4096, chunk)
    assert estimate.warning(chunk) is None
    assert f"use --chunk-size {chunk}" in str(estimate.warning())


def test_a_batch_that_fits_has_no_chunks_and_one_that_does_not_has_them() -> None:
    step, batch = step_with(None), tiny_batch()
    estimate = estimate_memory(step, batch)
    assert choose_chunk(step, batch, estimate) == 0
    half = int(estimate.of_step(8)) - int(estimate.per_pair * 4)
    assert 0 < choose_chunk(step, batch, replace(estimate, available=half)) < 8


@pytest.mark.parametrize("recipe", [{"patch_dropout": 0.5}, {"precision": "bf16", "loss": "sigmoid"}])
def test_a_step_in_chunks_never_waits_for_the_gpu(recipe: dict[str, Any]) -> None:
    with fake_cuda() as mode:
        values = tiny_recipe(device="cuda", **recipe)
        model = CLIP(tiny_config(logit_bias=values.loss == "sigmoid"))
        step = TrainStep(model, values, parse_config({"optim": {"chunk_size": 3}}))
        batch = fake_batch(tiny_batch(), mode)
        with NoWaiting():
            measured = step(batch, 0, 1e-3)
        assert measured["loss"].device == CUDA


def test_clip_train_trains_in_chunks_as_it_does_without_and_resumes_with_others(shapes: Path, tmp_path: Path) -> None:
    flags = ["--data", str(shapes), "--epochs", "1", "--batch-size", "64", "--image-size", "32", "--layers", "1",
             "--width", "64", "--device", "cpu", "--precision", "fp32", "--log-every", "1"]  # fmt: skip
    for name, more in (("whole", []), ("chunks", ["--chunk-size", "10"])):
        done = clip_train(*flags, *more, "--run-dir", str(tmp_path / name), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "chunks of 10 pairs, 7 a batch, with the gradient of the whole batch" in done.stdout
    whole, chunks = ([line["loss"] for line in lines(tmp_path / name, "train")] for name in ("whole", "chunks"))
    assert chunks == pytest.approx(whole, rel=1e-4)
    resumed = clip_train("--resume", "--run-dir", str(tmp_path / "chunks"), "--chunk-size", "20", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr

"""The step: its four parts, its repeatability, and two processes that train as one does."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn

from clip_core.config import TuneConfig, parse_config
from clip_core.errors import TrainingError
from clip_core.model.checkpoint import save_checkpoint
from clip_core.training import evaluate as evaluation
from clip_core.training.batches import Batch
from clip_core.training.evaluate import Divided, evaluate
from clip_core.training.loss import CLIPLoss
from clip_core.training.processes import Processes
from clip_core.training.ranks import Rank, local
from clip_core.training.sharding import shard
from clip_core.training.train_step import TrainStep
from clip_core.training.trainable import choose_trainable
from tests.running import forked_with_torch
from tests.training.test_evaluate import model_for, read_validation
from tests.training.tiny import END, tiny, tiny_batch, tiny_recipe

CONFIG = parse_config({"optim": {"augment": True, "grad_clip": 100.0}})


def make_step(
    rank: Rank | None = None,
    *,
    tune: dict[str, Any] | None = None,
    chunk_size: int | None = None,
    seed: int = 0,
    run: dict[str, Any] | None = None,
    **recipe: Any,
) -> TrainStep:
    values = tiny_recipe(**recipe)
    model = tiny(seed, logit_bias=values.loss == "sigmoid")
    torch.manual_seed(1)
    choose_trainable(model, TuneConfig(init="x", **(tune or {})), values.loss)
    optim = CONFIG.optim.model_copy(update={"chunk_size": chunk_size})
    running = CONFIG.run.model_copy(update=run or {})
    return TrainStep(model, values, CONFIG.model_copy(update={"optim": optim, "run": running}), rank or Rank())


class Counted(nn.Module):
    """Passes calls on, as DDP does, and counts them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *inputs: Any) -> Any:
        self.calls += 1
        return self.module(*inputs)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_is_one_call_of_the_network_and_nothing_goes_past_it(precision: str) -> None:
    step = make_step(precision=precision, patch_dropout=0.5)
    counted = Counted(step.network)
    for tower in (step.mixed_precision.network.image, step.mixed_precision.network.text):
        tower.register_forward_pre_hook(lambda *_: calls.append(counted.calls))
    calls: list[int] = []
    step.network = counted
    for number in range(3):
        step(tiny_batch(number), number, 1e-3)
    assert counted.calls == 3
    assert sorted(calls) == [1] * 3 + [2] * 3 + [3] * 3  # one group of images and two of captions a step


def test_the_four_parts_one_by_one_are_the_step() -> None:
    whole, parts = make_step(ema=0.9), make_step(ema=0.9)
    for number in range(3):
        batch = tiny_batch(number)
        measured = whole(batch, number, 1e-3)
        loss, _ = parts.loss_of(parts.embed(batch, number), batch)
        parts.backward(loss)
        grad_norm = parts.update(number, 1e-3)
        assert torch.equal(measured["loss"], loss)
        assert torch.equal(measured["grad_norm"], grad_norm)
    assert_same_weights(whole, parts)


def test_embeddings_are_of_pairs_whatever_the_groups_and_repeats_of_captions() -> None:
    step, batch = make_step(), tiny_batch()
    text = step.embed(batch, 0).text
    assert text is not None
    rows = [row for group in batch.input_ids for row in group]
    for pair, row in enumerate(batch.text_rows):
        torch.testing.assert_close(text[pair], step.model.encode_text(rows[int(row)][None])[0])


def test_the_loss_of_detached_embeddings_has_the_same_gradient_in_them() -> None:
    """As cached gradients need it: embeddings without a graph give the same gradient of the loss in them."""
    step, batch = make_step(loss="sigmoid"), tiny_batch()
    embeddings = step.embed(batch, 0)
    whole = torch.autograd.grad(step.loss_of(embeddings, batch)[0], embeddings.image, retain_graph=True)[0]
    leaves = embeddings._replace(image=embeddings.image.detach().requires_grad_(), text=embeddings.text.detach())
    (cached,) = torch.autograd.grad(step.loss_of(leaves, batch)[0], leaves.image)
    torch.testing.assert_close(cached, whole)


@pytest.mark.parametrize(
    ("recipe", "tune"),
    [
        ({"precision": "bf16", "optimizer": "muon", "ema": 0.9}, {}),
        ({"precision": "bf16", "loss": "sigmoid"}, {"lora": 2}),
        ({"ema": 0.9}, {"lock": "image"}),
    ],
)
def test_restored_from_a_checkpoint_it_goes_on_bit_for_bit(
    tmp_path: Path, recipe: dict[str, Any], tune: dict[str, Any]
) -> None:
    step, again = make_step(**recipe, tune=tune), make_step(**recipe, tune=tune)
    with torch.no_grad():
        again.model.image.positions.zero_()  # other weights than those it is given
    for number in range(2):
        step(tiny_batch(number), number, 1e-2)
    save_checkpoint(
        tmp_path / "checkpoint", model=step.eval_weights.ready(), tensors=step.tensors(), state={}, step=2, epoch=0,
        scores={},
    )  # fmt: skip
    network = again.network
    again.restore(tmp_path / "checkpoint")
    assert again.network is network  # a wrapper such as DDP stays around it
    for number in range(2, 5):
        for one in (step, again):
            one(tiny_batch(number), number, 1e-2)
    assert_same_weights(step, again)


def test_frozen_parameters_stay_and_trainable_ones_change_in_bf16_too() -> None:
    step = make_step(precision="bf16", tune={"lock": "image"})
    before = {name: value.clone() for name, value in step.network.state_dict().items()}
    for number in range(2):
        step(tiny_batch(number), number, 1e-2)
    for name, value in step.network.state_dict().items():
        if name != "logit_bias":
            assert torch.equal(value, before[name]) is name.startswith("image."), name


def test_a_non_finite_loss_is_refused_with_its_step_and_what_to_do() -> None:
    step = make_step()
    step(tiny_batch(), 0, 1e-3)
    step.refuse_non_finite()
    with torch.no_grad():
        step.model.image.projection.weight.fill_(float("nan"))
    step(tiny_batch(), 1, 1e-3)
    with pytest.raises(TrainingError, match=r"the loss is not finite at step 1 .*lower --lr or with --precision fp32"):
        step.refuse_non_finite()


def assert_same_weights(one: TrainStep, other: TrainStep) -> None:
    for mine, theirs in ((one.model, other.model), (one.eval_weights.ready(), other.eval_weights.ready())):
        weights = theirs.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in mine.state_dict().items())


# ---------------------------------------------------------------- two processes


def part_of(batch: Batch, rank: Rank) -> Batch:
    """The pairs of a rank, in a group of captions of its own."""
    own = rank.part(len(batch))
    longest = max(group.shape[1] for group in batch.input_ids)
    padded = [nn.functional.pad(group, (0, longest - group.shape[1]), value=END) for group in batch.input_ids]
    distinct, rows = torch.unique(batch.text_rows[own], return_inverse=True)
    return Batch(
        batch.images[own], (torch.cat(padded)[distinct],), rows, batch.image_ids[own], batch.caption_ids[own],
        batch.image_ids, batch.caption_ids,
    )  # fmt: skip


CASES: list[tuple[dict[str, Any], int | None]] = [
    ({"ema": 0.9, "patch_dropout": 0.5, "label_smoothing": 0.1}, None),
    ({"loss": "sigmoid", "precision": "bf16", "ema": 0.9}, None),
    ({"loss": "sigmoid", "patch_dropout": 0.5}, 1),
    ({"precision": "bf16"}, 1),
]


# Of a network that is divided among the processes.
SHARDED: list[dict[str, Any]] = [
    {"ema": 0.9, "patch_dropout": 0.5, "optimizer": "muon"},
    {"loss": "sigmoid", "chunk_size": 1, "run": {"checkpoint_activations": True}},
    {"tune": {"lora": 1}, "ema": 0.9},  # whose one row is on one rank
    {"tune": {"lock": "image", "unlock_last": 1}, "precision": "bf16"},
]


def train_as_rank(number: int, size: int, port: int, out: Path, shapes: Path) -> None:
    """Three steps of each case, in one process of several over gloo; weights and measurements to files."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=number, world_size=size)
    rank = Rank(number, size)
    for case, (recipe, chunk_size) in enumerate(CASES):
        step = make_step(rank, seed=number, chunk_size=chunk_size, **recipe)  # all train the weights of rank 0
        gradient = first_gradient(step, part_of(tiny_batch(), rank))
        measured = [step(part_of(tiny_batch(n), rank), n, 1e-3) for n in range(3)]
        torch.save({"weights": step.model.state_dict(), "ema": step.eval_weights.ready().state_dict(),
                    "measured": measured, "gradient": gradient}, out / f"{case}-{number}.pt")  # fmt: skip
    for case, options in enumerate(SHARDED if size == 2 else ()):  # four start slowly on two cores
        train_sharded(case, sharded(rank, options), sharded(rank, options), out)
    evaluate_as_rank(rank, out, shapes)
    step._unchecked.append((3, 1e-3, torch.tensor(float("nan") if number == 1 else 1.0), torch.tensor(1.0)))
    with pytest.raises(TrainingError, match="the loss is not finite at step 3"):  # on every rank
        step.refuse_non_finite()
    torch.distributed.destroy_process_group()


def evaluate_as_rank(rank: Rank, out: Path, shapes: Path) -> None:
    """Scores of a whole network and of a divided one; with more batches than processes, which do not divide them."""
    evaluation._BATCH = 5
    validation = read_validation(shapes)
    model = model_for(validation)
    found = [evaluate(model, validation, CLIPLoss(), "fp32", divided=Divided(Processes(rank)))]
    if rank.size == 2:
        shard(model, torch.device("cpu"), torch.float32, rank)
        divided = Divided(Processes(rank), together=True)
        found.append(evaluate(model, validation, CLIPLoss(), "fp32", divided=divided))
    assert rank.writes or found == [({}, None)] * len(found)
    if rank.writes:
        torch.save([scores for scores, _ in found], out / "scores.pt")


def sharded(rank: Rank, options: dict[str, Any]) -> TrainStep:
    return make_step(rank, **(options | {"seed": rank.rank, "run": {"shard": True} | options.get("run", {})}))


def train_sharded(case: int, step: TrainStep, again: TrainStep, out: Path) -> None:
    """Three steps, a checkpoint after the second; then the third once more, from the checkpoint."""
    largest = max(parameter.numel() for parameter in step.model.parameters())
    assert sum(local(parameter.detach()).numel() for parameter in step.model.parameters()) < largest + (
        sum(parameter.numel() for parameter in step.model.parameters()) / step.rank.size
    )
    measured = []
    for n in range(3):
        if n == 2:
            save(step, out / f"sharded-{case}")
        measured.append(step(part_of(tiny_batch(n), step.rank), n, 1e-3))
    torch.distributed.barrier()
    again.restore(out / f"sharded-{case}")
    again(part_of(tiny_batch(2), step.rank), 2, 1e-3)
    found = [one.checkpoint() for one in (step, again)]
    assert step.rank.writes or found == [({}, {}), ({}, {})]
    for first, second in zip(*found, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[name]) for name, value in first.items())
    if step.rank.writes:
        torch.save({"weights": found[0][0], "state": found[0][1], "measured": measured}, out / f"sharded-{case}.pt")


def save(step: TrainStep, folder: Path) -> None:
    weights, tensors = step.checkpoint()
    if step.rank.writes:
        model = step.eval_weights.model
        save_checkpoint(folder, model=model, weights=weights, tensors=tensors, state={}, step=2, epoch=0, scores={})


def first_gradient(step: TrainStep, batch: Batch) -> dict[str, Tensor]:
    """The gradient of each parameter; the step stays before its first update."""
    step.gradients(batch, 0)
    found = {name: p.grad.clone() for name, p in step.model.named_parameters() if p.grad is not None}
    step.optimiser.zero_grad()
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module", params=[2, 4])
def trained_by_several(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shapes: Path
) -> tuple[int, Path]:
    size, out = int(request.param), tmp_path_factory.mktemp("ranks")
    forked_with_torch()
    torch.multiprocessing.start_processes(
        train_as_rank, (size, free_port(), out, shapes), nprocs=size, start_method="forkserver"
    )
    return size, out


@pytest.mark.parametrize("case", range(len(CASES)))
def test_processes_train_as_one_does(trained_by_several: tuple[int, Path], case: int) -> None:
    """Pairs of one rank match pairs of another: captions 0 and 1 are there twice."""
    (size, out), (recipe, _) = trained_by_several, CASES[case]
    alone = make_step(**recipe)
    gradient = first_gradient(alone, tiny_batch())
    measured = [alone(tiny_batch(n), n, 1e-3) for n in range(3)]
    ranks = [torch.load(out / f"{case}-{number}.pt") for number in range(size)]
    for what in ("weights", "ema"):
        for rank in ranks[1:]:
            assert all(torch.equal(value, rank[what][name]) for name, value in ranks[0][what].items()), what
    exact = "precision" not in recipe  # bf16 rounds the gradients of each process by themselves
    for name, value in gradient.items():
        largest = max(float(value.abs().max()), 1e-3)
        apart = float((ranks[0]["gradient"][name] - value).abs().max())
        assert apart < (1e-5 if exact else 5e-2) * largest, name
    # The median, since some parameters (the bias of the keys) have no gradient but rounding, which AdamW scales up.
    for name, value in alone.model.state_dict().items():
        assert (ranks[0]["weights"][name] - value).abs().median() < (1e-6 if exact else 1e-4), name
    for number, of_step in enumerate(measured):
        all_of_them = [rank["measured"][number] for rank in ranks]
        for name in ("loss", "repeated_captions", *(("image_to_text_top1", "text_to_image_top1") if exact else ())):
            mean = torch.stack([measured[name] for measured in all_of_them]).mean()
            assert float(mean) == pytest.approx(float(of_step[name]), rel=1e-5 if exact else 2e-2), name
        assert float(all_of_them[0]["grad_norm"]) == pytest.approx(
            float(of_step["grad_norm"]), rel=1e-4 if exact else 0.1
        )


def test_processes_that_divide_an_evaluation_give_the_scores_of_one(
    trained_by_several: tuple[int, Path], shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_BATCH", 5)
    validation = read_validation(shapes)
    assert len(validation.store) % (2 * 5)
    scores, _ = evaluate(model_for(validation), validation, CLIPLoss(), "fp32")
    whole, *divided = torch.load(trained_by_several[1] / "scores.pt")
    assert whole == scores
    for other in divided:
        assert other == pytest.approx(scores, rel=1e-5)


@pytest.mark.parametrize("trained_by_several", [2], indirect=True)
@pytest.mark.parametrize("case", range(len(SHARDED)))
def test_a_sharded_network_trains_as_a_whole_one_and_either_goes_on_from_the_checkpoint_of_the_other(
    trained_by_several: tuple[int, Path], case: int
) -> None:
    (_, out), options = trained_by_several, SHARDED[case]
    alone, resumed = make_step(**options), make_step(**options)
    measured = [alone(tiny_batch(n), n, 1e-3) for n in range(3)]
    resumed.restore(out / f"sharded-{case}")
    resumed(tiny_batch(2), 2, 1e-3)
    found = torch.load(out / f"sharded-{case}.pt")
    exact = "precision" not in options
    for one in (alone, resumed):
        weights, state = one.checkpoint()
        assert found["weights"].keys() == weights.keys()
        assert {name: value.shape for name, value in found["state"].items()} == {k: v.shape for k, v in state.items()}
        for name, value in weights.items():
            assert (found["weights"][name] - value).abs().median() < (2e-6 if exact else 1e-4), name
        for name, value in state.items():
            if not name.endswith("/raw"):
                apart = float((found["state"][name] - value).abs().max())
                assert apart <= (1e-3 if exact else 0.2) * max(float(value.abs().max()), 1e-2), name
    norms = [[float(each["grad_norm"]) for each in some] for some in (found["measured"], measured)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4 if exact else 0.1)

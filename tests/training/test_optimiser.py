"""Muon and AdamW: which parameters each updates, and by how much; the learning rate schedule."""

import torch

from clip_core.training.optimiser import Optimiser
from tests.training.tiny import adamw, tiny, train

CPU = torch.device("cpu")


def test_muon_updates_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = tiny()
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


def test_an_update_of_muon_has_singular_values_of_like_size() -> None:
    model = tiny()
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


def test_layer_decay_gives_each_layer_a_share_of_the_learning_rate_of_the_next() -> None:
    model = tiny(layers=2)
    optimiser = adamw(model, layer_decay=0.5, lr=1.0)
    share = {id(p): group["lr_share"] for group in optimiser.groups for p in group["params"]}
    shares = {name: share[id(p)] for name, p in model.named_parameters()}
    assert shares["log_logit_scale"] == shares["image.projection.weight"] == shares["text.norm_final.bias"] == 1
    assert shares["image.blocks.1.mlp.0.weight"] == shares["text.blocks.1.norm_1.bias"] == 0.5
    assert shares["image.blocks.0.mlp.0.weight"] == 0.25
    assert shares["image.patches.weight"] == shares["text.tokens.weight"] == shares["text.positions"] == 0.125


def test_a_parameter_without_gradient_is_no_obstacle_to_a_step_nor_to_resuming() -> None:
    model = tiny(logit_bias=True)
    optimiser = train(model)
    tensors = {name: value.clone() for name, value in optimiser.tensors().items()}
    assert not [name for name in tensors if name.startswith("logit_bias")]
    again = tiny(logit_bias=True)
    again.load_state_dict(model.state_dict())
    other = adamw(again)
    other.restore(tensors)
    train(model, 2, optimiser)
    train(again, 2, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))

"""Blends of the initial and the final weights."""

import torch

from clip_core.training.blend import blend_weights
from tests.training.tiny import tiny


def test_blends_of_none_and_of_all_are_the_end_points() -> None:
    start, end = tiny(0).state_dict(), tiny(1).state_dict()
    assert all(torch.equal(value, start[name]) for name, value in blend_weights(start, end, 0.0).items())
    assert all(torch.equal(value, end[name]) for name, value in blend_weights(start, end, 1.0).items())
    halfway = blend_weights(start, end, 0.5)["image.positions"]
    torch.testing.assert_close(halfway, (start["image.positions"] + end["image.positions"]) / 2)

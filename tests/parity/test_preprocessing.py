"""Images reach the model as open_clip's own transform would hand them over: the same to the last bit."""

from typing import Any

import numpy as np
import open_clip
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_core.data.preprocess import load_image, normalise, resize_and_crop
from clip_core.network import Preprocessing

every_kind = pytest.mark.parametrize(
    "how",
    [
        {"resize_mode": mode, "interpolation": interpolation}
        for mode in ("shortest", "longest", "squash")
        for interpolation in ("bicubic", "bilinear")
    ],
    ids=lambda how: "-".join(how.values()),
)
SIZES = [(1, 1), (2, 3), (31, 32), (32, 32), (33, 32), (64, 32), (61, 90), (57, 19), (301, 7), (7, 301), (400, 399)]


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(width * 1000 + height).integers(0, 256, shape, dtype=np.uint8))


def assert_same(image: Image.Image, size: int, **how: Any) -> None:
    prepared = Preprocessing(image_size=size, **how)
    said = {key: value for key, value in how.items() if key != "fill"} | {"fill_color": prepared.fill}
    transform = open_clip.image_transform(size, is_train=False, **said)
    *steps, _, _ = transform.transforms  # without the steps to a tensor and to normal values
    theirs = image
    for step in steps:
        theirs = step(theirs)
    ours = resize_and_crop(load_image(image), prepared)
    np.testing.assert_array_equal(ours, np.asarray(theirs))
    difference = np.abs(normalise(ours[None], prepared)[0] - transform(image).numpy())
    assert difference.max() <= 1e-6


@every_kind
@pytest.mark.parametrize("sides", SIZES, ids=str)
def test_images_of_every_shape_are_open_clips(sides: tuple[int, int], how: dict[str, str]):
    if how["resize_mode"] == "longest" and min(sides) * 32 < max(sides):
        return  # open_clip resizes such an image to nothing, and fails
    assert_same(noise(*sides), 32, **how)


@every_kind
@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 500), height=st.integers(1, 500), size=st.sampled_from([16, 31, 48, 224]))
@example(width=111, height=444, size=50)
def test_any_image_is_open_clips(how: dict[str, str], width: int, height: int, size: int):
    if how["resize_mode"] == "longest":
        assume(min(width, height) * size >= max(width, height))
    assert_same(noise(width, height), size, **how)


def test_every_rounding_of_the_shorter_side_is_open_clips():
    for width in range(1, 140):
        for height in (97, 128, 200, 333):
            if width * 36 > height:
                assert_same(noise(width, height), 36, resize_mode="longest")


@pytest.mark.parametrize("fill", [0, 127, 255])
def test_the_padding_has_open_clips_colour(fill: int):
    assert_same(noise(40, 21), 32, resize_mode="longest", fill=fill)


def test_other_statistics_are_applied_alike():
    assert_same(noise(50, 40), 32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.4, 0.3))


def test_grey_images_are_open_clips():
    assert_same(noise(50, 41, "L"), 32)

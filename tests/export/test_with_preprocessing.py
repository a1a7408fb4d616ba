"""Resize, crop and normalisation inside the graph, against Pillow."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from clip_core.data.preprocess import preprocess
from clip_core.errors import ParityError
from clip_core.inference.clip import CLIPInference
from clip_core.inference.manifest import WITH_PREPROCESSING
from clip_core.network import Preprocessing
from export.convert import OPSET
from export.with_preprocessing import measure_preprocessing, preprocessing_graph, write_with_preprocessing
from tests.export.checkpoints import photographs
from tests.export.kinds import every_bundle, photos_in

__all__ = ["every_bundle"]
# Landscape, portrait, smaller and larger than the square, on it, odd margins, very narrow.
SIZES = [(40, 30), (61, 90), (90, 61), (32, 32), (33, 32), (19, 57), (9, 38), (333, 500), (301, 3), (1, 7), (640, 480)]
LIKE = onnx.helper.make_model(onnx.GraphProto(), opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=9)


def noise() -> list[Image.Image]:
    """The hardest images: every level next to any other."""
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


def levels_apart(settings: dict[str, Any], border: int = 0) -> tuple[float, float]:
    """The largest difference in levels, and the fraction of levels that differ, but for the pixels at the border."""
    how = Preprocessing(image_size=32, **settings)
    session = onnxruntime.InferenceSession(preprocessing_graph(how, LIKE).SerializeToString())
    std = np.array(how.std, np.float32)[:, None, None]
    apart = []
    for image in noise():
        found = session.run(None, {"image": np.asarray(image)})[0]
        expected = preprocess([image], how)
        assert found.shape == expected.shape
        apart.append((np.abs(found - expected)[0] * std * 255)[:, border : 32 - border, border : 32 - border])
    return max(float(each.max()) for each in apart), float(np.mean([(each > 0.5).mean() for each in apart]))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"crop_rounding": "floor", "resize_size": 37},
        {"resize_mode": "squash", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.4, 0.5)},
        {"resize_mode": "squash", "resize_size": 41},
        {"resize_mode": "longest", "fill": 127},
    ],
)
def test_it_prepares_any_image_as_pillow_does_but_for_a_level(settings: dict[str, Any]) -> None:
    largest, share = levels_apart(settings)
    assert largest < 2.5
    assert share < 0.001


def test_bilinear_differs_at_the_border_alone() -> None:
    largest, share = levels_apart({"interpolation": "bilinear", "resize_mode": "squash"}, border=1)
    assert largest < 1.5
    assert share < 0.01


def test_its_embedding_is_that_of_the_bundle(every_bundle: Path) -> None:
    session = onnxruntime.InferenceSession(every_bundle / WITH_PREPROCESSING)
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["height", "width", 3])
    photos = photographs()
    found = np.concatenate([session.run(None, {"image": np.asarray(photo)})[0] for photo in photos])
    expected = CLIPInference(every_bundle).encoder.encode_images(photos)
    assert (found * expected).sum(axis=1).min() > 0.9999


def test_a_graph_that_prepares_images_otherwise_is_refused(own_bundle: Path, tmp_path: Path) -> None:
    how = Preprocessing(image_size=32)
    write_with_preprocessing(own_bundle, how.model_copy(update={"resize_mode": "squash"}), 16)
    with pytest.raises(ParityError, match=r"differs from Pillow's: 4 images, .* export without --with-preprocessing"):
        measure_preprocessing(own_bundle, how, sorted(photos_in(tmp_path / "photos").iterdir()))

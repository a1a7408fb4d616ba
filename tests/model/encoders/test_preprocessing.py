"""Images reach an encoder as its own library prepares them: Hugging Face's Pillow processors, timm's transform."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from clip_core.data.preprocess import preprocess
from clip_core.errors import CheckpointError, UsageError
from clip_core.model.encoders.preprocessing import named_preprocessing, preprocessing_beside, timm_preprocessing
from clip_core.network import Preprocessing
from export.config_files import preprocessor_config
from export.example import pixel_values
from tests.encoders import PREPROCESSOR

SIZES = [(32, 32), (61, 90), (57, 19), (301, 40), (40, 301), (400, 399), (37, 38), (35, 64)]
SQUARE = {"height": 32, "width": 32}

PROCESSORS: dict[str, Any] = {
    "dinov2": BitImageProcessorPil(size={"shortest_edge": 37}, crop_size=SQUARE),
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE),
    "convnext": ConvNextImageProcessorPil(size={"shortest_edge": 32}),
    "convnext-384": ConvNextImageProcessorPil(size={"shortest_edge": 384}, crop_pct=1.0),
    "siglip": SiglipImageProcessorPil(size=SQUARE),
}


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_images_are_those_of_hugging_face_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    theirs = PROCESSORS[kind]
    theirs.save_pretrained(tmp_path)
    prepared = preprocessing_beside(tmp_path, None)
    for sides in SIZES:
        expected = theirs(noise(*sides), return_tensors="np")["pixel_values"]
        levels = np.abs(preprocess([noise(*sides)], prepared) - expected) * 255 * min(prepared.std)
        assert levels.max() < 1e-3, sides  # float rounding, and no 8-bit level


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
def test_images_are_those_of_timm_to_the_last_bit(crop_mode: str, crop_pct: float) -> None:
    said = {"input_size": (3, 32, 32), "crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": "bicubic",
            "mean": (0.5, 0.4, 0.5), "std": (0.5, 0.5, 0.3)}  # fmt: skip
    theirs: Any = create_transform(**said, is_training=False)
    prepared = timm_preprocessing("timm", said, None)
    for sides in SIZES:
        expected = theirs(noise(*sides)).numpy()[None]
        assert np.abs(preprocess([noise(*sides)], prepared) - expected).max() < 1e-6, sides


@pytest.mark.parametrize("rounding", ["round", "floor"])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_the_example_of_a_bundle_resizes_before_the_crop_alike(mode: Any, rounding: Any) -> None:
    prepared = Preprocessing(image_size=32, resize_size=37, resize_mode=mode, crop_rounding=rounding)
    settings = json.loads(json.dumps(preprocessor_config(prepared)))
    for sides in SIZES:
        ours, theirs = preprocess([noise(*sides)], prepared), pixel_values(noise(*sides), settings)
        np.testing.assert_allclose(theirs, ours, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "asked"),
    [({"do_rescale": False}, "do_rescale false"), ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
     ({"resample": 0}, "resample 0"), ({"crop_size": {"height": 32, "width": 16}}, "not square"),
     ({"image_mean": None}, "supported preprocessing")],
)  # fmt: skip
def test_an_unsupported_preprocessing_is_refused_in_one_sentence(
    change: dict[str, Any], asked: str, tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | change))
    with pytest.raises(CheckpointError, match=asked):
        preprocessing_beside(tmp_path, None)


def test_a_folder_without_preprocessing_says_which_file_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"put the encoder's preprocessor_config\.json there"):
        preprocessing_beside(tmp_path, None)


def test_an_unknown_name_of_a_preprocessing_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="it may be imagenet, imagenet-squash, clip, half"):
        named_preprocessing("imagenet2", 224)
    assert named_preprocessing("imagenet", 224).resize_size == 256

"""How the images of a pretrained encoder are prepared: the settings of Hugging Face, of timm, and named ones."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clip_core.errors import CheckpointError, UsageError
from clip_core.model.encoders.files import read_settings
from clip_core.network import Preprocessing
from clip_core.text import printable

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)
_FILTERS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_FILES = ("preprocessor_config.json", "processor_config.json")

# What an encoder without a file that says so may have been trained with; the size comes from elsewhere.
NAMED: dict[str, dict[str, Any]] = {
    "imagenet": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bilinear", "resize_mode": "shortest"},
    "imagenet-squash": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bilinear",
                        "resize_mode": "squash"},
    "clip": {},
    "half": {"mean": _HALF, "std": _HALF, "interpolation": "bilinear", "resize_mode": "squash"},
}  # fmt: skip
_IMAGENET_CROP = 224 / 256


def named_preprocessing(name: str, image_size: int) -> Preprocessing:
    """One of NAMED for an image size; `imagenet` resizes to 256 before a crop of 224, and in proportion.

    Raises:
        UsageError: if there is none of that name.
    """
    if name not in NAMED:
        raise UsageError(f"no preprocessing is called {printable(name, 40)!r}; it may be {', '.join(NAMED)}.")
    resize = {"resize_size": round(image_size / _IMAGENET_CROP)} if name == "imagenet" else {}
    return Preprocessing.model_validate({"image_size": image_size, **NAMED[name], **resize})


def preprocessing_beside(folder: Path, image_size: int | None) -> Preprocessing:
    """The preprocessing that preprocessor_config.json or processor_config.json in a folder describes.

    Args:
        image_size: of the network, which counts where the file has another or none.
    Raises:
        CheckpointError: if there is no such file, or it asks for what is not supported.
    """
    for name in _FILES:
        where = folder / name
        if where.is_file():
            said = read_settings(where)
            return _from_hugging_face(where, said.get("image_processor") or said, image_size)
    raise CheckpointError(
        f"{folder} does not say how images are prepared: put the encoder's preprocessor_config.json there, or name "
        f"one of {', '.join(NAMED)} with --encoder-preprocessing."
    )


def _from_hugging_face(where: Path, said: Mapping[str, Any], image_size: int | None) -> Preprocessing:
    """Source: the processors of transformers 5; ConvNeXt's has crop_pct in place of crop_size."""
    for key in ("do_resize", "do_rescale"):
        if said.get(key, True) is False:
            raise _unsupported(where, f"{key} false")
    factor = said.get("rescale_factor", 1 / 255)
    if not isinstance(factor, int | float) or not math.isclose(factor, 1 / 255, rel_tol=1e-6) or said.get("offset"):
        raise _unsupported(where, f"rescale_factor {factor!r:.20}")
    resample = said.get("resample", 3)
    if resample not in _FILTERS:
        raise _unsupported(where, f"resample {resample!r:.20}")
    try:
        values = _sizes(said, image_size) | {"interpolation": _FILTERS[resample], "crop_rounding": "floor"}
        if said.get("do_normalize", True):
            values |= {"mean": tuple(said["image_mean"]), "std": tuple(said["image_std"])}
        else:
            values |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        return _resized(Preprocessing.model_validate(values), image_size)
    except (KeyError, TypeError, ValueError) as error:
        raise _invalid(where, error) from None


def _sizes(said: Mapping[str, Any], image_size: int | None) -> dict[str, Any]:
    """image_size, resize_size and resize_mode."""
    size = said.get("size") or said.get("crop_size") or image_size
    crop_size = said.get("crop_size")
    if isinstance(crop_size, Mapping):
        if crop_size["height"] != crop_size["width"]:
            raise ValueError("a crop that is not square")
        crop_size = crop_size["height"]
    cropped = bool(said.get("do_center_crop", crop_size is not None))
    squashed = isinstance(size, int) and not cropped
    if isinstance(size, Mapping):
        squashed = "shortest_edge" not in size
        if squashed and size["height"] != size["width"]:
            raise ValueError("images that are not square")
        size = size["height"] if squashed else size["shortest_edge"]
    if not isinstance(size, int):
        raise ValueError("no size")
    if "ConvNext" in str(said.get("image_processor_type")) and not squashed and not cropped:
        if size >= 384:
            return {"image_size": size, "resize_mode": "squash"}
        resized = int(size / (said.get("crop_pct") or _IMAGENET_CROP))
        return {"image_size": size, "resize_mode": "shortest", "resize_size": resized}
    if not squashed and not cropped:
        raise ValueError("images that are not square: shortest_edge without do_center_crop")
    side = int(crop_size) if cropped and crop_size is not None else size
    mode = "squash" if squashed else "shortest"
    return {"image_size": side, "resize_mode": mode, "resize_size": None if size == side else size}


def timm_preprocessing(where: str, said: Mapping[str, Any], image_size: int | None) -> Preprocessing:
    """The evaluation transform of a pretrained_cfg of timm.

    Args:
        said: with timm's names: input_size, crop_pct, crop_mode, interpolation, mean, std.
    Raises:
        CheckpointError: for a setting that is not supported.
    Source: timm.data.transforms_factory.transforms_imagenet_eval.
    """
    mode = said.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise _unsupported(where, f"crop_mode {mode!r:.20}")
    try:
        channels, height, width = (int(size) for size in said["input_size"])
        if channels != 3 or height != width:
            raise ValueError(f"input_size {said['input_size']}")
        side = image_size or height
        resized = math.floor(side / float(said.get("crop_pct") or 0.875))
        return Preprocessing.model_validate(
            {
                "image_size": side,
                "resize_size": None if resized == side else resized,
                "resize_mode": "squash" if mode == "squash" else "shortest",
                "interpolation": said.get("interpolation") or "bicubic",
                "mean": tuple(said.get("mean") or IMAGENET_MEAN),
                "std": tuple(said.get("std") or IMAGENET_STD),
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _invalid(where, error) from None


def _resized(preprocessing: Preprocessing, image_size: int | None) -> Preprocessing:
    """For another image size, the crop being the same part of the image."""
    if image_size is None or image_size == preprocessing.image_size:
        return preprocessing
    resize = preprocessing.resize_size
    changes = {
        "image_size": image_size,
        "resize_size": None
        if resize is None
        else max(round(resize * image_size / preprocessing.image_size), image_size),
    }
    return Preprocessing.model_validate(preprocessing.model_dump() | changes)


def _unsupported(where: Path | str, trait: str) -> CheckpointError:
    return CheckpointError(
        f"{where} asks for {printable(trait, 60)}, which is not supported; name a preprocessing with "
        f"--encoder-preprocessing ({', '.join(NAMED)})."
    )


def _invalid(where: Path | str, error: Exception) -> CheckpointError:
    cause = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
    return CheckpointError(f"{where} does not describe a supported preprocessing ({printable(cause, 100)}).")

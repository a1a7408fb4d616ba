"""A folder for immich, read as immich reads it, against the model.

Source: immich's machine-learning/immich_ml/models/clip/visual.py, textual.py and models/transforms.py.
Shapes: N images, S image side, D embedding size.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from PIL import Image

from clip_core.data.preprocess import load_image, preprocess
from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import ImageError, ParityError
from clip_core.inference.onnx_encoder import make_session
from clip_core.model.clip import CLIP
from clip_core.scoring import FloatArray, IntArray
from clip_core.text import plural, printable
from export.parity import TOLERANCE, torch_encode

VISUAL, TEXTUAL, PREPROCESS = "visual/model.onnx", "textual/model.onnx", "visual/preprocess_cfg.json"
LEAST_COSINE = 0.99  # of an image that immich prepared: it resizes some to one pixel less
_CAPTIONS = ("a photo of a dog", "Two dogs,  running;\tit's FUN!", "word " * 600)
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_EARLIER = {"resize_mode": "shortest", "interpolation": "bicubic"}


@dataclass(frozen=True)
class ImmichParity:
    """immich's own steps against the model.

    `captions`: those with the model's embeddings; `otherwise`: those that immich reads as other tokens.
    `max_abs_diff`: of embeddings of the same pixels, and of captions. `least_cosine`: of images that immich prepared,
    with the corner of the crop rounded down in both, as immich does for every model; `crop_cosine`: the least with our
    own corner; `earlier_cosine`: with a version of immich that always resizes bicubically and crops.
    """

    images: int
    captions: int
    otherwise: tuple[str, ...]
    max_abs_diff: float
    least_cosine: float
    crop_cosine: float
    earlier_cosine: float


def measure(folder: Path, model: CLIP, tokenizer: Tokenizer, captions: list[str], images: list[Path]) -> ImmichParity:
    """Read `folder` as immich does, and compare it with the model.

    Args:
        images: files; immich gets them as upright RGB, as its previews are.
    Raises:
        ParityError: naming the caption or the number that differs.
    """
    differences, otherwise = _compare_texts(folder, model, tokenizer, [*_CAPTIONS, *captions])
    equal = len(differences)
    visual = make_session(folder / VISUAL, VISUAL)
    said = json.loads((folder / PREPROCESS).read_text(encoding="utf-8"))
    preprocessing = model.config.preprocessing
    rounded_down = preprocessing.model_copy(update={"crop_rounding": "floor"})
    encode = torch_encode(model.encode_image)
    cosines: list[tuple[float, float, float]] = []
    for path in images:
        try:
            image = load_image(path)
        except ImageError:
            continue
        own, lower = (preprocess([image], each) for each in (preprocessing, rounded_down))
        ours = encode(own)
        differences.append(float(np.abs(ours - visual.run(None, {"image": own})[0]).max()))
        theirs, earlier = (
            visual.run(None, {"image": immich_pixels(image, settings)})[0] for settings in (said, said | _EARLIER)
        )
        floored = encode(lower)
        cosines.append((float((floored * theirs).sum()), float((ours * theirs).sum()), float((ours * earlier).sum())))
    of_steps, of_crops, of_earlier = zip(*cosines, strict=True)
    parity = ImmichParity(
        images=len(cosines),
        captions=equal,
        otherwise=tuple(otherwise),
        max_abs_diff=float(np.max(differences)),  # NaN stays NaN
        least_cosine=float(np.min(of_steps)),
        crop_cosine=float(np.min(of_crops)),
        earlier_cosine=float(np.min(of_earlier)),
    )
    if not parity.max_abs_diff < TOLERANCE or not parity.least_cosine > LEAST_COSINE:
        raise ParityError(f"what immich computes differs from the model: {sentence(parity)}; nothing was kept.")
    return parity


def _compare_texts(folder: Path, model: CLIP, tokenizer: Tokenizer, texts: list[str]) -> tuple[list[float], list[str]]:
    """The difference of each caption that immich reads as the model does, and the captions that it does not.

    The latter have other letters than ASCII's, entities or special tokens, which a plain tokenizer reads otherwise.
    """
    session, encode = make_session(folder / TEXTUAL, TEXTUAL), torch_encode(model.encode_text)
    read = immich_tokenizer(folder)
    special = [token.content for token in read.get_added_tokens_decoder().values() if token.special]
    differences, otherwise = [], []
    for caption in texts:
        theirs = session.run(None, {"text": immich_ids(read, caption)})[0]
        apart = float(np.abs(encode(tokenizer.encode([caption])) - theirs).max())
        if apart < TOLERANCE:
            differences.append(apart)
        elif tokenizer.is_plain(caption) and not any(word in caption for word in special):
            raise ParityError(
                f"immich reads the caption {printable(caption, 60)!r} as other tokens than the model was trained with: "
                f"their embeddings differ by {apart:.1e}; nothing was kept."
            )
        else:
            otherwise.append(caption)
    return differences, otherwise


def immich_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """textual/tokenizer.json with immich's padding and truncation."""
    said = json.loads((folder / "textual" / "tokenizer_config.json").read_text(encoding="utf-8"))
    context = json.loads((folder / "config.json").read_text(encoding="utf-8"))["text_cfg"]["context_length"]
    inner = tokenizers.Tokenizer.from_file(str(folder / "textual" / "tokenizer.json"))
    inner.enable_padding(length=context, pad_token=said["pad_token"], pad_id=inner.token_to_id(said["pad_token"]))
    inner.enable_truncation(max_length=context)
    return inner


def immich_ids(inner: tokenizers.Tokenizer, caption: str) -> IntArray:
    """text, int32 (1, context)"""
    return np.array([inner.encode(" ".join(caption.split())).ids], dtype=np.int32)


def immich_pixels(image: Image.Image, settings: dict[str, Any]) -> FloatArray:
    """image, float32 (1, 3, S, S), from an RGB image and the contents of preprocess_cfg.json."""
    size, resample = settings["size"][0], _FILTERS[settings["interpolation"]]
    if settings["resize_mode"] == "squash":
        image = image.resize((size, size), resample)
    else:
        width, height = image.size
        sides = (size, int(height / width * size)) if width < height else (int(width / height * size), size)
        left, top = (int(side / 2 - size / 2) for side in sides)
        image = image.resize(sides, resample).crop((left, top, left + size, top + size))
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255)
    mean, std = np.float32(settings["mean"]), np.float32(settings["std"])
    return np.ascontiguousarray((pixels * (1 / std) - mean / std).transpose(2, 0, 1)[None])


def sentence(parity: ImmichParity) -> str:
    """The parity in words."""
    others = len(parity.otherwise)
    rest = f"; {plural(others, 'caption')} of other letters or special tokens read otherwise" if others else ""
    return (
        f"{parity.captions} captions and the pixels of {parity.images} images give embeddings at most "
        f"{parity.max_abs_diff:.1e} from the model's; least cosine of images that immich resizes and crops "
        f"{parity.least_cosine:.4f}, {parity.crop_cosine:.4f} where its crop lies a pixel beside the model's, "
        f"{parity.earlier_cosine:.4f} with versions that always crop{rest}"
    )

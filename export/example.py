"""Zero-shot classification of an image with numpy, Pillow, tokenizers and onnxruntime only.

    python example.py image.jpg "a red circle" "a blue square"

Prints, for each text and best first, the probability among these texts and the cosine similarity.
"""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before ONNX Runtime is imported

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tokenizers import Tokenizer

BUNDLE = Path(__file__).absolute().parent  # not resolved: in a hub cache this file is a link


def read_json(name: str) -> Any:
    return json.loads((BUNDLE / name).read_text(encoding="utf-8"))


def load_image(path: str) -> Image.Image:
    """Upright RGB, transparency on white."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def resize_and_crop(image: Image.Image, settings: dict[str, Any]) -> Image.Image:
    """Shortest side or both resized and centre crop; or longest side resized and padding."""
    side, (width, height) = settings["crop_size"]["width"], image.size
    if "shortest_edge" in settings["size"]:
        short = settings["size"]["shortest_edge"]
        long = int(short * max(width, height) / min(width, height))
        size = (short, long) if width <= height else (long, short)
    elif "longest_edge" in settings["size"]:
        ratio = max(width, height) / side
        size = (max(round(width / ratio), 1), max(round(height / ratio), 1))
    else:
        size = (settings["size"]["width"], settings["size"]["height"])
    image = image.resize(size, settings["resample"])
    if "longest_edge" in settings["size"]:
        square = Image.new("RGB", (side, side), (settings["fill"],) * 3)
        square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
        return square
    rounded = round if settings.get("crop_rounding") != "floor" else int
    left, top = rounded((size[0] - side) / 2), rounded((size[1] - side) / 2)
    return image.crop((left, top, left + side, top + side))


def pixel_values(image: Image.Image, settings: dict[str, Any]) -> NDArray[np.float32]:
    """float32 (1, 3, S, S): resized to a square, scaled to [0, 1], normalised."""
    pixels = np.asarray(resize_and_crop(image, settings), dtype=np.float32) / np.float32(255)
    mean, std = np.float32(settings["image_mean"]), np.float32(settings["image_std"])
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1)[None])


def input_ids(texts: list[str]) -> NDArray[np.int64]:
    """int64 (texts, tokens): start, tokens, end and padding, as tokenizer.json has them."""
    tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # a caption with the name of a special token has no special token
    return np.array([encoding.ids for encoding in tokenizer.encode_batch(texts)], dtype=np.int64)


def run(tower: str, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The image tower ("vision") or the text tower ("text") of the bundle's first variant."""
    model = BUNDLE / read_json("manifest.json")["variants"][0][tower]
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def main(path: str, *texts: str) -> None:
    manifest, settings = read_json("manifest.json"), read_json("preprocessor_config.json")
    image_embeds = run("vision", {"pixel_values": pixel_values(load_image(path), settings)})  # (1, D)
    text_embeds = run("text", {"input_ids": input_ids(list(texts))})  # (texts, D), both L2-normalised

    similarities = (image_embeds @ text_embeds.T)[0]
    logits = manifest["logit_scale"] * similarities
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    for row in np.argsort(-probabilities, kind="stable"):
        print(f"{probabilities[row]:.4f}  {similarities[row]:+.4f}  {texts[row]}")


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # "?" for what the terminal cannot show
    if len(sys.argv) < 3:
        sys.exit("usage: python example.py IMAGE TEXT [TEXT ...]")
    try:
        main(*sys.argv[1:])
    except OSError as error:  # an image that is missing or cannot be read
        sys.exit(f"example.py: {error}")

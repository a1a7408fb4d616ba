"""Parity of a written bundle's consumers: example.py and CLIPInference against the torch model, files in, vectors out.

parity.py compares the ONNX files alone; here each consumer reads the captions and image files itself, so that its
tokenizer and preprocessing are compared too.

Shapes: N captions or images, T tokens, D embedding size.
"""

import runpy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from clip_core.data.preprocess import load_image, preprocess
from clip_core.errors import ImageError, ParityError
from clip_core.files import scratch_folder
from clip_core.inference.manifest import EXAMPLE, Manifest
from clip_core.inference.onnx_encoder import OnnxEncoder
from clip_core.model.checkpoint import LoadedModel
from clip_core.scoring import FloatArray, IntArray
from clip_core.text import plural, printable
from export.parity import TOLERANCE

IMAGES = 8
_CAPTIONS = ("A Photo, of 2 dogs!", "it's <|endoftext|> here", "word " * 200)
_EIGHT_BIT = ("1", "L", "LA", "P", "RGB", "RGBA")  # modes that every reader takes for the same colours


class Consumer(NamedTuple):
    """How someone reads a bundle.  captions -> (N, T), (N, D); files -> (N, D)"""

    name: str
    token_ids: Callable[[list[str]], IntArray]
    texts: Callable[[list[str]], FloatArray]
    images: Callable[[list[Path]], FloatArray]


def check_consumers(
    loaded: LoadedModel, folder: Path, manifest: Manifest, captions: Iterable[str], images: Iterable[Path]
) -> str:
    """Compare what the bundle's consumers make of captions and image files with the torch model.

    Args:
        folder: of the bundle, complete.
        captions, images: some of the user's; words added to the tokenizer and special cases are added.
    Returns:
        One line for the user.
    Raises:
        ParityError: naming the consumer, what differs, and by how much.
    """
    tokenizer = loaded.tokenizer
    words = [f"a photo of {token}" for token in tokenizer.added_words[:IMAGES]]
    everything = list(dict.fromkeys([*words, *_CAPTIONS, *captions]))
    ordinary = [caption for caption in everything if tokenizer.is_plain(caption)]
    parity = manifest.parity  # of the variant that consumers use
    tolerance = max(TOLERANCE, (2 if parity.exact else 5) * parity.max_abs_diff)
    worst = 0.0
    with scratch_folder("export") as spare:
        files = _files(images, spare)
        image_embeds = _torch(loaded.model.encode_image, preprocess(files, loaded.config.preprocessing))
        for consumer, wanted in ((_example(folder), ordinary), (_clip_inference(folder), everything)):
            ids = tokenizer.encode(wanted)
            _same_ids(consumer, wanted, ids)
            text_embeds = _torch(loaded.model.encode_text, ids)
            for what, names, ours, theirs in (
                ("captions", wanted, text_embeds, consumer.texts(wanted)),
                ("images", files, image_embeds, consumer.images(files)),
            ):
                worst = max(worst, _difference(consumer, what, names, ours, theirs, tolerance))
    left = len(everything) - len(ordinary)
    reason = "have characters that its plain tokenizer may split differently"
    rest = f"; example.py was not compared on {left:,} of them, which {reason}" if left else ""
    return (
        f"consumers: example.py and CLIPInference give the model's embeddings of {plural(len(everything), 'caption')} "
        f"and {plural(len(files), 'image file')}, max |diff| {worst:.1e}{rest}"
    )


def _example(folder: Path) -> Consumer:
    """The functions of the bundle's own example.py, run as the file that was written."""
    module: dict[str, Any] = runpy.run_path(str(folder / EXAMPLE), run_name="bundle_example")
    settings = module["read_json"]("preprocessor_config.json")

    def texts(captions: list[str]) -> FloatArray:
        return np.asarray(module["run"]("text", {"input_ids": module["input_ids"](captions)}))

    def images(files: list[Path]) -> FloatArray:
        pixels = [module["pixel_values"](module["load_image"](str(file)), settings) for file in files]
        return np.asarray(module["run"]("vision", {"pixel_values": np.concatenate(pixels)}))

    return Consumer(EXAMPLE, module["input_ids"], texts, images)


def _clip_inference(folder: Path) -> Consumer:
    encoder = OnnxEncoder(folder)
    return Consumer("CLIPInference", encoder.tokenizer.encode, encoder.encode_texts, encoder.encode_images)


def _same_ids(consumer: Consumer, captions: list[str], ids: IntArray) -> None:
    theirs = consumer.token_ids(captions)
    for row, caption in enumerate(captions):
        if row >= len(theirs) or not np.array_equal(ids[row], theirs[row]):
            raise ParityError(
                f"{consumer.name} reads the caption {printable(caption, 60)!r} as other tokens than the model: "
                f"{_ids(theirs[row] if row < len(theirs) else [])} in place of {_ids(ids[row])}."
            )


def _difference(
    consumer: Consumer, what: str, names: list[Any], ours: FloatArray, theirs: FloatArray, tolerance: float
) -> float:
    """max |diff| of the embeddings, where it is within the tolerance."""
    if ours.shape != theirs.shape:
        raise ParityError(f"{consumer.name} gives embeddings {theirs.shape} of {what}, the model {ours.shape}.")
    each = np.nan_to_num(np.abs(ours - theirs), nan=np.inf).max(axis=1, initial=0)
    if each.max(initial=0) > tolerance:
        row = int(each.argmax())
        raise ParityError(
            f"{consumer.name} gives other embeddings of {what} than the model: max |diff| {each[row]:.1e} "
            f"(tolerance {tolerance:.0e}), for {printable(str(names[row]), 120)!r}."
        )
    return float(each.max(initial=0))


def _files(images: Iterable[Path], spare: Path) -> list[Path]:
    """Up to eight image files that any reader opens: the user's own, else copies as PNG (of members of shards)."""
    kept: list[Path] = []
    copies: list[Path] = []
    for path in images:
        if len(kept) == IMAGES:
            break
        if _plain_file(path):
            kept.append(path)
        elif len(copies) < IMAGES:
            try:
                load_image(path).save(spare / f"{len(copies)}.png")
            except ImageError:
                continue
            copies.append(spare / f"{len(copies)}.png")
    return kept or copies


def _plain_file(path: Path) -> bool:
    """Whether it is a file of 8 bits a channel in a format that needs no plug-in."""
    if not path.is_file():
        return False
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP", "BMP", "GIF")) as image:
            plain = image.mode in _EIGHT_BIT
        load_image(path)
    except (OSError, ImageError):
        return False
    return plain


def _torch(encode: Callable[[torch.Tensor], torch.Tensor], inputs: FloatArray | IntArray) -> FloatArray:
    with torch.inference_mode():
        return np.asarray(encode(torch.from_numpy(inputs)).float().numpy())


def _ids(row: Any) -> str:
    shown = ", ".join(str(number) for number in list(row)[:12])
    return f"[{shown}{', ...' if len(row) > 12 else ''}]"

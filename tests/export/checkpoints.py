"""Small checkpoints with every trait that a published format may or may not express."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from PIL import Image

from clip_core.data.clip_bpe import clip_tokenizer, find_clip_tokenizer
from clip_core.data.tokenizer import END, START, Tokenizer, train_characters
from clip_core.model.checkpoint import save_checkpoint
from clip_core.model.clip import CLIP
from clip_core.network import ClipConfig, ImageTower, Preprocessing, TextTower
from tests.published import shaken

CAPTIONS = ["a dog", "", "Two people, on a beach & a red kite!!", "it's 12 o'clock", "word " * 40]
CONTEXT, SIDE = 16, 32
IMAGE = {
    "image_size": SIDE, "patch_size": 16, "width": 32, "heads": 2, "layers": 2, "pooling": "class_token",
    "pre_norm": True, "patch_bias": False,
}  # fmt: skip
MEAN = {"pooling": "mean", "class_token": True}


@cache
def clip_bpe(fixed: bool = False, pad: str = "zero") -> Tokenizer:
    return find_clip_tokenizer(None, CONTEXT, pad=pad, fixed_length=fixed)


@cache
def small_clip_bpe() -> Tokenizer:
    """CLIP's kind of tokenizer with fewer merges, which open_clip does not carry."""
    content = json.loads(clip_bpe()._inner.to_str())["model"]
    merges = [tuple(pair) for pair in content["merges"][:50]]
    words = [*list(content["vocab"])[:512], *map("".join, merges), START, END]
    return clip_tokenizer({word: number for number, word in enumerate(words)}, merges, CONTEXT)


def ending_with_2() -> Tokenizer:
    """Characters with start and end numbered the other way round, as runs of earlier versions have them."""
    content = json.loads(train_characters(CAPTIONS, CONTEXT)._inner.to_str())
    words, specials = content["model"]["vocab"], content["post_processor"]["special_tokens"]
    words[START], words[END] = words[END], words[START]
    for word in (START, END):
        specials[word]["ids"] = [words[word]]
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)))


def checkpoint(
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    image: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    preprocessing: dict[str, Any] | None = None,
    logit_bias: bool = False,
) -> Path:
    """A checkpoint folder with every weight moved at random."""
    tokenizer = tokenizer or clip_bpe()
    content = {
        "vocab_size": tokenizer.vocab_size, "end_token": tokenizer.end_token, "context_length": CONTEXT,
        "width": 32, "heads": 2, "layers": 2,
    }  # fmt: skip
    config = ClipConfig(
        embed_dim=16,
        image=ImageTower(**(IMAGE | (image or {}))),
        text=TextTower(**(content | (text or {}))),
        preprocessing=Preprocessing(image_size=SIDE, **(preprocessing or {})),
        logit_bias=logit_bias,
    )
    model = shaken(CLIP(config))
    save_checkpoint(folder, model=model, tensors={}, state={}, step=3, epoch=1, scores={})
    tokenizer.save(folder / "tokenizer.json")
    return folder


def photographs(*, even: bool = False) -> list[Image.Image]:
    """Noise of several sizes; `even`: so that the same is cropped on both sides."""
    generator = np.random.default_rng(0)
    sizes = [(40, 32), (32, 32), (19, 57), (96, 64) if even else (90, 61)]
    noise = [generator.integers(0, 255, (height, width, 3), dtype=np.uint8) for width, height in sizes]
    return [Image.fromarray(pixels) for pixels in noise]


def unit(features: Any) -> np.ndarray:
    features = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(features, dim=-1).numpy()

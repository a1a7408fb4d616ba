"""What folders of published weights have in common: a file of weights, and the files of the tokenizer."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import RunError
from clip_core.files import write_json, write_text
from clip_core.network import TextTower
from export.describe import tokenizer_config


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """A safetensors file, marked as transformers wants it."""
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise RunError(f"the weights could not be written to {path.parent.parent} ({error}).") from None


def write_tokenizer(folder: Path, tokenizer: Tokenizer, text: TextTower, *, pad_with_end: bool) -> None:
    """The tokenizer's files, as transformers' AutoTokenizer reads them.

    Args:
        pad_with_end: CLIP's own BPE may pad with the number 0, which is "!": transformers would take every "!" of a
            caption for padding. A causal tower that is read at its end token gives the same answer for the end token.
    """
    path = folder / "tokenizer.json"
    tokenizer.save(path)
    if not tokenizer.is_clip:
        write_json(folder / "tokenizer_config.json", tokenizer_config(path, text))
        return
    if pad_with_end:
        Tokenizer.load(path, pad="end", fixed_length=False).save(path)
    said = tokenizer_config(path, text)
    said |= {"tokenizer_class": "CLIPTokenizer", "unk_token": said["eos_token"]}
    write_json(folder / "tokenizer_config.json", said)
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    write_json(folder / "vocab.json", model["vocab"])  # with merges.txt, for those who read no tokenizer.json
    merges = (" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"])
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))

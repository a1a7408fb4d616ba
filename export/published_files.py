"""Files that transformers and open_clip both read: the weights and the tokenizer."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import RunError
from clip_core.files import write_json, write_text
from clip_core.inference.manifest import TOKENIZER, TOKENIZER_CONFIG
from clip_core.network import TextTower, TransformersTower
from export.config_files import tokenizer_config


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """A safetensors file with the metadata that transformers requires."""
    try:
        save_file(weights, path, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise RunError(f"the weights could not be written to {path.parent.parent} ({error}).") from None


def write_tokenizer(
    folder: Path, tokenizer: Tokenizer, text: TextTower | TransformersTower, *, pad_with_end: bool
) -> None:
    """The tokenizer's files, as transformers' AutoTokenizer reads them.

    Args:
        pad_with_end: CLIP's own BPE may pad with the number 0, which is "!": transformers would take every "!" of a
            caption for padding. A causal tower pooled at its end token gives the same embedding with either padding.
    """
    path = folder / TOKENIZER
    tokenizer.save(path)
    if not tokenizer.is_clip:
        write_json(folder / TOKENIZER_CONFIG, tokenizer_config(path, text))
        return
    if pad_with_end:
        Tokenizer.load(path, pad="end", fixed_length=False).save(path)
    described = tokenizer_config(path, text)
    described |= {"tokenizer_class": "CLIPTokenizer", "unk_token": described["eos_token"]}
    write_json(folder / TOKENIZER_CONFIG, described)
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    write_json(folder / "vocab.json", model["vocab"])  # with merges.txt, for readers without tokenizer.json
    merges = (" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"])
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))

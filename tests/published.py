"""Small reference networks with random weights, made by open_clip and transformers themselves."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

VOCABULARY, END = 49408, 49407  # CLIP's own
SIDE = 32
VISION = {"layers": 2, "width": 64, "patch_size": 8, "image_size": SIDE}
TEXT = {"layers": 2, "width": 64, "heads": 1, "context_length": 16, "vocab_size": VOCABULARY}

CAPTIONS = ("a dog", "", "two people on a beach at sunset, and a red kite", "word " * 40)


def shaken(model: nn.Module, seed: int = 0) -> Any:
    """Every weight moved at random, so that no trait of the network is without effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "logit" not in name:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model.eval()


def open_clip_model(seed: int = 0, *, custom_text: bool = False, **settings: Any) -> Any:
    """A tiny network of open_clip; `vision` and `text` add to the towers' settings, the rest are its own."""
    torch.manual_seed(seed)
    network = CustomTextCLIP if custom_text else CLIP
    return shaken(network(**model_settings(**settings)), seed)


def model_settings(*, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **rest: Any) -> dict:
    return {"embed_dim": 32, "vision_cfg": VISION | (vision or {}), "text_cfg": TEXT | (text or {}), **rest}


def save_open_clip(folder: Path, model: nn.Module, preprocess: dict[str, Any] | None = None, **settings: Any) -> Path:
    """An open_clip hub folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": model_settings(**settings), "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def hugging_face_model(seed: int = 0, *, eos: int = END, act: str = "quick_gelu", eps: float = 1e-5) -> CLIPModel:
    torch.manual_seed(seed)
    shared = {
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": act,
        "layer_norm_eps": eps,
    }  # fmt: skip
    config = CLIPConfig(
        text_config={
            "hidden_size": 32, "vocab_size": VOCABULARY, "max_position_embeddings": 16, "eos_token_id": eos, **shared
        },
        vision_config={"hidden_size": 48, "image_size": SIDE, "patch_size": 16, **shared},
        projection_dim=24,
    )  # fmt: skip
    return shaken(CLIPModel(config), seed)


def ids(context_length: int = 16, *, padding: int = 0) -> Tensor:
    """CAPTIONS as open_clip's tokenizer has them: end tokens in different places, the last one cut."""
    numbers = open_clip.tokenize(list(CAPTIONS), context_length)
    after = (numbers == END).int().cumsum(1).bool() & (numbers != END)
    return numbers.masked_fill(after, padding)


def images(side: int = SIDE) -> Tensor:
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(5))

"""Tiny pretrained encoders with random weights, made by timm, transformers and onnx themselves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import tokenizers
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import nn

from tests.published import shaken

WORDS = "a the red blue dog cat runs on in park two people beach sun kite photo of".split()  # noqa: SIM905
CAPTIONS = ["a red dog", "two people on the beach", "the", "a photo of a blue cat in the park on the sun " * 3, ""]
SIDE = 32

_TEXT: dict[str, dict[str, Any]] = {
    "bert": {"pad_token_id": 0}, "distilbert": {"pad_token_id": 0}, "mpnet": {"pad_token_id": 1},
    "roberta": {"pad_token_id": 1}, "xlm-roberta": {"pad_token_id": 1}, "camembert": {"pad_token_id": 1},
}  # fmt: skip


def small_tokenizer(path: Path, *, bert: bool) -> tokenizers.Tokenizer:
    """A tokenizer.json with the special tokens of BERT, or of RoBERTa."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if bert else ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {word: number for number, word in enumerate([*names, *WORDS])}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=names[1] if bert else names[3]))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = ("[CLS]", "[SEP]") if bert else ("<s>", "</s>")
    inner.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])]
    )
    inner.add_special_tokens(names)
    inner.save(str(path))
    return inner


def text_folder(
    folder: Path, kind: str = "bert", *, positions: int = 20, pooling: str | None = None, **more: Any
) -> Path:
    """A Hugging Face text encoder; with `pooling`, a sentence-transformers folder that normalises."""
    folder.mkdir(parents=True)
    inner = small_tokenizer(folder / "tokenizer.json", bert=kind in ("bert", "distilbert"))
    offset = 2 if _TEXT[kind]["pad_token_id"] else 0
    shared = {"vocab_size": inner.get_vocab_size(), "max_position_embeddings": positions + offset, **_TEXT[kind]}
    if kind == "distilbert":
        shared |= {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2}
    else:
        shared |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **shared, **more)
    shaken(transformers.AutoModel.from_config(config)).save_pretrained(folder)
    if pooling is not None:
        modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
        (folder / "modules.json").write_text(
            json.dumps([{"idx": int(n), "name": n, "path": p, "type": f"sentence_transformers.models.{t}"}
                        for n, p, t in modules])
        )  # fmt: skip
        (folder / "1_Pooling").mkdir()
        chosen = {f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens", "max_tokens")}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **chosen}))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    return folder


_STAGES = {"image_size": SIDE, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
_IMAGE: dict[str, dict[str, Any]] = {
    "vit": {"image_size": SIDE, "patch_size": 16},
    "dinov2": {"image_size": SIDE, "patch_size": 8},
    "dinov2_with_registers": {"image_size": SIDE, "patch_size": 8, "num_register_tokens": 2},
    "dinov3_vit": {"image_size": SIDE, "patch_size": 16, "num_register_tokens": 2},
    "deit": {"image_size": SIDE, "patch_size": 16},
    "convnext": _STAGES,
    "convnextv2": _STAGES,
    "dinov3_convnext": _STAGES,
    "siglip_vision_model": {"image_size": SIDE, "patch_size": 16},
    "clip_vision_model": {"image_size": SIDE, "patch_size": 16},
}

PREPROCESSOR = {
    "do_resize": True, "size": {"shortest_edge": 37}, "resample": 3, "do_center_crop": True,
    "crop_size": {"height": SIDE, "width": SIDE}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip


def image_model(kind: str) -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    if kind == "siglip":  # both towers
        vision = sizes | _IMAGE["siglip_vision_model"]
        config = transformers.SiglipConfig(text_config=sizes | {"vocab_size": 20}, vision_config=vision)
    else:
        config = transformers.AutoConfig.for_model(
            kind, **(_IMAGE[kind] if "convnext" in kind else sizes | _IMAGE[kind])
        )
    model: nn.Module = shaken(transformers.AutoModel.from_config(config))
    return model


def image_folder(folder: Path, kind: str = "dinov2", **preprocessor: Any) -> Path:
    """A Hugging Face vision model with its preprocessor."""
    image_model(kind).save_pretrained(folder)  # type: ignore[operator]
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | preprocessor))
    return folder


TIMM_VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": SIDE, "patch_size": 8}


def timm_folder(folder: Path, architecture: str = "vit_tiny_patch16_224", **arguments: Any) -> Path:
    """A folder as timm saves one, with the classifier that nobody needs."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    arguments = arguments or (TIMM_VIT if architecture.startswith("vit") else {})
    model = shaken(timm.create_model(architecture, num_classes=5, **arguments))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    cfg = {
        "architecture": architecture, "input_size": [3, SIDE, SIDE], "crop_pct": 0.9, "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.4, 0.5], "license": "apache-2.0",
    }  # fmt: skip
    (folder / "config.json").write_text(
        json.dumps({"architecture": architecture, "num_classes": 5, "pretrained_cfg": cfg, "model_args": arguments})
    )
    return folder


def onnx_encoder(
    path: Path, *, external: bool = False, square: bool = True, opset: int = 18, inputs: int = 1, flat: bool = True
) -> Path:
    """A convolution, ReLU and the mean: float (batch, 3, 32, 32) -> (batch, 6), or (batch, 6, 1, 1) unless `flat`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    shape = ["batch", 3, SIDE, SIDE] if square else ["batch", SIDE, SIDE, 3]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)
    others = [helper.make_tensor_value_info(f"other{n}", TensorProto.FLOAT, [1]) for n in range(inputs - 1)]
    size = ["batch", 6] if flat else ["batch", 6, 1, 1]
    out = helper.make_tensor_value_info("features", TensorProto.FLOAT, size)
    weights = numpy_helper.from_array(rng.standard_normal((6, 3, 4, 4)).astype(np.float32), "weights")
    nodes = [
        helper.make_node("Conv", ["pixels", "weights"], ["maps"], strides=[4, 4]) if square
        else helper.make_node("Transpose", ["pixels"], ["maps"], perm=[0, 3, 1, 2]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["mean" if flat else "features"]),
        *([helper.make_node("Flatten", ["mean"], ["features"])] if flat else []),
    ]  # fmt: skip
    graph = helper.make_graph(nodes, "encoder", [pixels, *others], [out], initializer=[weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def static_folder(folder: Path, width: int = 8) -> Path:
    """Static token vectors."""
    folder.mkdir(parents=True)
    inner = small_tokenizer(folder / "tokenizer.json", bert=False)
    generator = torch.Generator().manual_seed(0)
    save_file(
        {"embedding.weight": torch.randn(inner.get_vocab_size(), width, generator=generator).half()},
        folder / "model.safetensors",
    )
    return folder

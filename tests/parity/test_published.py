"""Published weights answer here as they do in the library that wrote them: features and logits within 1e-5."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import convert_weights_to_lp, resize_pos_embed
from safetensors.torch import save_file
from torch import Tensor, nn

from clip_core.model.published import Published, read_published
from clip_core.network import Activation
from tests.published import (
    END,
    hugging_face_model,
    ids,
    images,
    open_clip_model,
    save_open_clip,
    shaken,
)

CLOSE = 1e-5

OPEN_CLIP = {
    "gelu": {},
    "quick_gelu": {"quick_gelu": True},
    "average": {"vision": {"pool_type": "avg"}},
    "average, norm after pooling": {"vision": {"pool_type": "avg", "final_ln_after_pool": True}},
    "no pre-norm": {"vision": {"no_ln_pre": True}},
    "other heads and mlp": {"vision": {"head_width": 16, "mlp_ratio": 3.3}, "text": {"heads": 4, "mlp_ratio": 2.6}},
    "eos": {"text": {"pool_type": "eos", "eos_id": END}},
    "first": {"text": {"pool_type": "first"}},
    "last": {"text": {"pool_type": "last"}},
    "not causal": {"text": {"no_causal_mask": True}},
    "projection bias": {"text": {"proj_bias": True}},
    "other epsilon": {"vision": {"norm_kwargs": {"eps": 1e-3}}, "text": {"norm_kwargs": {"eps": 1e-2}}},
    "tanh": {"vision": {"act_kwargs": {"approximate": "tanh"}}, "text": {"act_kwargs": {"approximate": "tanh"}}},
    "sigmoid loss": {
        "init_logit_bias": -10.0, "init_logit_scale": 3.0,
        "vision": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text": {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
    },
}  # fmt: skip


@torch.no_grad()
def differences(published: Published, theirs: tuple[Tensor, Tensor, Tensor], tokens: Tensor, side: int = 32) -> float:
    """The largest difference of image features, text features and logits."""
    model = published.build()
    image_embeds, text_embeds, *_ = model(images(side), tokens)
    logits = model.logit_scale() * image_embeds @ text_embeds.T
    if model.logit_bias is not None:
        logits = logits + model.logit_bias
    pairs = zip((image_embeds, text_embeds, logits), theirs, strict=True)
    return max(float((ours - other).abs().max()) for ours, other in pairs)


@torch.no_grad()
def open_clip_says(model: Any, tokens: Tensor, side: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    image_embeds, text_embeds = (model.encode_image(images(side), True), model.encode_text(tokens, True))
    return image_embeds, text_embeds, model.get_logits(images(side), tokens)[0]


@torch.no_grad()
def hugging_face_says(model: Any, tokens: Tensor, side: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    said = model(input_ids=tokens, pixel_values=images(side))
    return said.image_embeds, said.text_embeds, said.logits_per_image


@pytest.mark.parametrize("custom_text", [False, True], ids=["flat", "custom text"])
@pytest.mark.parametrize("traits", OPEN_CLIP)
def test_open_clip_folders(tmp_path: Path, traits: str, custom_text: bool) -> None:
    model = open_clip_model(custom_text=custom_text, **OPEN_CLIP[traits])
    published = read_published(save_open_clip(tmp_path, model, custom_text=custom_text, **OPEN_CLIP[traits]))
    assert differences(published, open_clip_says(model, ids()), ids()) < CLOSE


@pytest.mark.parametrize("traits", ["gelu", "not causal", "last"])
def test_captions_go_through_the_tokenizer_that_comes_along(tmp_path: Path, traits: str) -> None:
    model = open_clip_model(**OPEN_CLIP[traits])
    published = read_published(save_open_clip(tmp_path, model, **OPEN_CLIP[traits]))
    captions = ["a dog", "", "two people on a beach at sunset, and a red kite", "word " * 40]
    tokens = torch.from_numpy(published.tokenizer.encode(captions))
    with torch.no_grad():
        ours = published.build().encode_text(tokens)
        theirs = model.encode_text(ids(), normalize=True)
    assert float((ours - theirs).abs().max()) < CLOSE


def test_the_two_activations_can_be_told_apart(tmp_path: Path) -> None:
    quick = open_clip_model(quick_gelu=True)
    published = read_published(save_open_clip(tmp_path, quick))  # its configuration says nothing of QuickGELU
    assert published.config.image.activation is Activation.GELU
    assert differences(published, open_clip_says(quick, ids()), ids()) > 100 * CLOSE


@pytest.mark.parametrize("prefix", ["", "module."])
def test_training_checkpoints_of_open_clip(tmp_path: Path, prefix: str) -> None:
    model = open_clip_model()
    optimiser = torch.optim.AdamW(model.parameters())
    model(images(), ids())[0].sum().backward()
    optimiser.step()
    weights = {prefix + name: value for name, value in model.state_dict().items()}
    checkpoint = {"epoch": 3, "name": "x", "state_dict": weights, "optimizer": optimiser.state_dict()}
    torch.save(checkpoint, tmp_path / "epoch_3.pt")
    published = read_published(tmp_path / "epoch_3.pt")
    assert published.config.image.activation is Activation.GELU
    assert differences(published, open_clip_says(model, ids()), ids()) < CLOSE


def scripted(model: nn.Module, path: Path, how: str) -> None:
    model.register_buffer("input_resolution", torch.tensor(32))  # as OpenAI's archives have it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.trace(model, (images(), ids())) if how == "trace" else torch.jit.script(model)
        torch.jit.save(made, path)


@pytest.mark.parametrize("form", ["state dict", "older file", "fp16", "trace", "script", "fp16 trace"])
def test_the_forms_of_openai(tmp_path: Path, form: str) -> None:
    model = open_clip_model(quick_gelu=True)
    if form.startswith("fp16"):
        convert_weights_to_lp(model, torch.float16)
    path = tmp_path / "ViT.pt"
    stored = copy.deepcopy(model)
    model.float()
    if form in ("trace", "script"):
        scripted(stored, path, form)
    elif form == "fp16 trace":
        holder = nn.Module()
        holder.visual, holder.transformer = stored.visual, stored.transformer
        holder.token_embedding, holder.ln_final = stored.token_embedding, stored.ln_final
        for name in ("positional_embedding", "text_projection", "logit_scale"):
            holder.register_parameter(name, getattr(stored, name))
        torch.jit.save(torch.jit.script(holder), path)
    else:
        torch.save(stored.state_dict(), path, _use_new_zipfile_serialization=form != "older file")
    published = read_published(path)
    assert published.config.image.activation is published.config.text.activation is Activation.QUICK_GELU
    assert {value.dtype for value in published.weights.values()} == {torch.float32}
    for padding in (0, END):
        tokens = ids(padding=padding)
        assert differences(published, open_clip_says(model, tokens), tokens) < CLOSE


@pytest.mark.parametrize("form", ["safetensors", "sharded", "bin", "sharded bin"])
@pytest.mark.parametrize(("eos", "act"), [(2, "quick_gelu"), (END, "gelu")])
def test_hugging_face_folders(tmp_path: Path, form: str, eos: int, act: str) -> None:
    model = hugging_face_model(eos=eos, act=act, eps=1e-4)
    save_hugging_face(tmp_path, model, form)
    published = read_published(tmp_path)
    assert published.config.text.end_token == END
    for padding in (0, END):
        tokens = ids(padding=padding)
        assert differences(published, hugging_face_says(model, tokens), tokens) < CLOSE


def save_hugging_face(folder: Path, model: Any, form: str) -> None:
    model.save_pretrained(folder, max_shard_size="200KB" if form == "sharded" else "1GB")
    if form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    if form == "sharded bin":
        (folder / "model.safetensors").unlink()
        names, shards = (
            sorted(model.state_dict()),
            ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
        )
        where = {name: shards[number % 2] for number, name in enumerate(names)}
        for shard in shards:
            torch.save({n: v for n, v in model.state_dict().items() if where[n] == shard}, folder / shard)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.mark.parametrize("side", [16, 48, 56])
def test_positions_for_another_image_size_are_those_of_open_clip(tmp_path: Path, side: int) -> None:
    model = open_clip_model()
    folder = save_open_clip(tmp_path, model)
    other = open_clip_model(vision={"image_size": side})
    weights = dict(model.state_dict())
    resize_pos_embed(weights, other)
    other.load_state_dict(weights)
    published = read_published(folder, image_size=side)
    assert published.config.image.image_size == published.config.preprocessing.image_size == side
    assert differences(published, open_clip_says(other, ids(), side), ids(), side) < CLOSE


def test_a_shorter_context_is_the_beginning_of_the_longer_one(tmp_path: Path) -> None:
    model = open_clip_model()
    published = read_published(save_open_clip(tmp_path, model), context_length=7)
    short = published.tokenizer.encode(["a red kite"])
    assert published.tokenizer.context_length == published.config.text.context_length == 7
    with torch.no_grad():
        ours = published.build().encode_text(torch.from_numpy(short))
        theirs = model.encode_text(torch.nn.functional.pad(torch.from_numpy(short), (0, 16 - short.shape[1])), True)
    assert float((ours - theirs).abs().max()) < CLOSE


def test_a_bare_file_with_the_name_of_its_architecture(tmp_path: Path) -> None:
    model = shaken(open_clip.create_model("ViT-S-32-alt"))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    published = read_published(tmp_path / "weights.safetensors", model_name="ViT-S-32-alt")
    assert differences(published, open_clip_says(model, ids(77), 224), ids(77), 224) < CLOSE

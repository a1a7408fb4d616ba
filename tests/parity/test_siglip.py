"""SigLIP, SigLIP2 and MetaCLIP 2 answer here as they do in transformers, open_clip and timm: within 1e-5."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Siglip2Tokenizer

from clip_core.data.cleaning import Cleaning
from clip_core.data.tokenizer import Tokenizer
from clip_core.model.published import Published, read_published
from tests.parity.test_clip_bpe import CAPTIONS as CORPUS
from tests.parity.test_clip_bpe import spiced
from tests.parity.test_published import CLOSE, differences, hugging_face_says, open_clip_says
from tests.published_siglip import (
    CAPTIONS,
    gemma,
    metaclip_2_model,
    save_hugging_face,
    save_trunk,
    siglip_model,
    trunk_model,
    trunk_settings,
)

HUGGING_FACE = {
    "SigLIP": ("v1", {}),
    "SigLIP2": ("v2", {}),
    "other activations": ("v1", {"text": {"hidden_act": "gelu"}, "vision": {"hidden_act": "quick_gelu"}}),
    "other epsilon": ("v2", {"text": {"layer_norm_eps": 1e-3}, "vision": {"layer_norm_eps": 1e-2}}),
    "square patches": ("v1", {"vision": {"image_size": 32, "patch_size": 16}}),
}
TRUNKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "SigLIP": ("v1", "exact GELU", {}),
    "SigLIP2": ("v2", "tanh", {}),
    "linear projection": ("v1", "tanh", {"vision": {"timm_proj": "linear"}}),
    "QuickGELU text": ("v2", "exact GELU", {}),
    "class token, projection with bias": (
        "v1",
        "class token",
        {"vision": {"timm_pool": "token", "timm_proj": None}},
    ),
}


def tokens(published: Published) -> Tensor:
    return torch.from_numpy(published.tokenizer.encode(CAPTIONS))


def test_metaclip_2_of_transformers(tmp_path: Path) -> None:
    model = metaclip_2_model()
    published = read_published(save_hugging_face(tmp_path, model, "metaclip 2"))
    assert (published.config.text.end_token, published.tokenizer.pad_id) == (2, 1)
    ids = tokens(published)
    assert set(ids[:, 0].tolist()) == {0}
    assert differences(published, hugging_face_says(model, ids), ids) < CLOSE


@pytest.mark.parametrize("traits", HUGGING_FACE)
def test_siglip_of_transformers(tmp_path: Path, traits: str) -> None:
    kind, changes = HUGGING_FACE[traits]
    model = siglip_model(kind, **changes)
    published = read_published(save_hugging_face(tmp_path, model, kind))
    side = published.config.image.image_size
    ids = tokens(published)
    assert ids.shape == (len(CAPTIONS), 64)
    assert differences(published, hugging_face_says(model, ids, side), ids, side) < CLOSE


@pytest.mark.parametrize("traits", TRUNKS)
def test_open_clip_with_a_trunk_of_timm(tmp_path: Path, traits: str) -> None:
    kind, trunk, changes = TRUNKS[traits]
    config = trunk_settings(kind, trunk, **changes) | ({"quick_gelu": True} if traits == "QuickGELU text" else {})
    model = trunk_model(config)
    published = read_published(save_trunk(tmp_path, model, config, kind))
    side, ids = published.config.image.image_size, tokens(published)
    assert differences(published, open_clip_says(model, ids, side), ids, side) < CLOSE


def test_trimmed_captions_would_be_other_captions(tmp_path: Path) -> None:
    published = read_published(save_hugging_face(tmp_path, siglip_model(), "v1"))
    model, ids = published.build(), tokens(published)[:1]
    end = int((ids[0] == published.tokenizer.end_token).int().argmax()) + 1
    with torch.no_grad():
        cosine = float((model.encode_text(ids) * model.encode_text(ids[:, :end])).sum())
    assert end < 8
    assert cosine < 0.9


# ---------------------------------------------------------------- tokenizers


def whole(text: str) -> bool:
    """Whether it has no half surrogates, which transformers refuses."""
    return text.encode("utf-8", "ignore").decode() == text


WHOLE = [caption for caption in CORPUS if whole(caption)]
any_text = st.one_of(spiced.filter(whole), st.text(st.characters(exclude_categories=("Cs",)), max_size=60))


@pytest.fixture(scope="module", params=[("v1", "canonicalize"), ("v2", "canonicalize"), ("v1", "lower"), ("v2", None)])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """Our tokenizer of an open_clip folder, and open_clip's own."""
    kind, clean = request.param
    config = trunk_settings(kind)
    config["text_cfg"]["tokenizer_kwargs"] = {} if clean is None else {"clean": clean}
    folder = save_trunk(tmp_path_factory.mktemp("trunk"), trunk_model(config), config, kind)
    ours = read_published(folder).tokenizer
    assert ours.cleaning == (clean or "whitespace")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="</s>", eos_token="</s>")
    if kind == "v2":  # transformers' class of Gemma's tokenizer adds the end token, as its configuration asks for
        ours.save(folder / "framed.json")
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>")
        theirs.backend_tokenizer.post_processor = Tokenizer.load(folder / "framed.json")._inner.post_processor
    reader = open_clip.tokenizer.HFTokenizer.__new__(open_clip.tokenizer.HFTokenizer)
    reader.tokenizer_mode, reader.context_length, reader.strip_sep_token = "", 64, False
    reader.clean_fn, reader.tokenizer = open_clip.tokenizer.get_clean_fn(clean or "whitespace"), theirs
    return ours, reader


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(any_text, min_size=1, max_size=6))
def test_any_text_has_the_ids_of_open_clip(both: tuple[Tokenizer, Any], texts: list[str]) -> None:
    ours, theirs = both
    np.testing.assert_array_equal(ours.encode(texts), theirs(texts).numpy())


def test_the_corpus_has_the_ids_of_open_clip(both: tuple[Tokenizer, Any]) -> None:
    ours, theirs = both
    np.testing.assert_array_equal(ours.encode(WHOLE), theirs(WHOLE).numpy())


def test_siglip2_lower_cases_as_transformers_does(tmp_path: Path) -> None:
    ours = read_published(save_hugging_face(tmp_path, siglip_model("v2"), "v2")).tokenizer
    model = json.loads(gemma().to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    theirs = Siglip2Tokenizer(vocab=model["vocab"], merges=merges)
    assert ours.cleaning is Cleaning.SIGLIP2
    for caption, row in zip(WHOLE, ours.encode(WHOLE), strict=True):
        found = theirs(caption, add_special_tokens=False).input_ids[:63]
        assert row.tolist() == [*found, 1, *[0] * (63 - len(found))], caption
    assert (ours.encode(["A RED Kite"]) == ours.encode(["a red kite"])).all()


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [("A Photo, of a CAT!!", "a photo of a cat"), ("  snow_white\t& it's ", "snowwhite its"), ("ΟΔΟΣ", "οδος")],
)
def test_siglip_lower_cases_and_strips_punctuation(tmp_path: Path, caption: str, cleaned: str) -> None:
    ours = read_published(save_hugging_face(tmp_path, siglip_model(), "v1")).tokenizer
    assert ours.cleaning is Cleaning.SIGLIP
    np.testing.assert_array_equal(ours.encode([caption]), ours.encode([cleaned]))
    reloaded = tmp_path / "saved.json"
    ours.save(reloaded)
    np.testing.assert_array_equal(Tokenizer.load(reloaded).encode([caption]), ours.encode([cleaned]))

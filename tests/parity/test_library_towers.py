"""open_clip checkpoints with towers of timm and transformers answer here as they do there: within 1e-5."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_core.data.tokenizer import Tokenizer
from clip_core.model.published import read_published
from tests.parity.test_published import CLOSE, differences, open_clip_says
from tests.parity.test_siglip import WHOLE, any_text
from tests.published_siglip import CAPTIONS
from tests.published_towers import CONTEXT, SIDE, TEXTS, VISION, write_model

PAIRS = [*((vision, None) for vision in VISION), *((None, text) for text in TEXTS), ("ConvNeXt", "BERT, mean, lower")]
# What transformers takes for a special token wherever it stands; here it is text.
_SPECIAL = ("<", "[", "]", ">")


@pytest.mark.parametrize(("vision", "text"), PAIRS)
def test_features_and_logits_are_those_of_open_clip(vision: str | None, text: str | None, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", vision, text)
    published = read_published(tmp_path / "m")
    ours = torch.from_numpy(published.tokenizer.encode(CAPTIONS))
    whole = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'm'}")(list(CAPTIONS))
    theirs = open_clip_says(model, whole, SIDE)
    assert differences(published, theirs, ours, SIDE) < CLOSE  # trimmed to the longest caption
    assert differences(published, theirs, whole, SIDE) < CLOSE  # padded to the context
    cosines = theirs[1] @ theirs[1].T
    assert float(cosines.min()) < 0.99  # not all the same


@pytest.fixture(scope="module", params=["XLM-R, mean, MLP", "BERT, mean, lower"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, object]:
    """Our tokenizer of a folder, and open_clip's own."""
    folder = tmp_path_factory.mktemp("text") / "m"
    write_model(folder, None, request.param)
    return read_published(folder).tokenizer, open_clip.get_tokenizer(f"local-dir:{folder}")


def same(both: tuple[Tokenizer, object], texts: list[str]) -> None:
    ours, theirs = both[0].encode(texts), both[1](texts).numpy()  # type: ignore[operator]
    width = ours.shape[1]
    np.testing.assert_array_equal(ours, theirs[:, :width])
    assert theirs.shape[1] == CONTEXT
    assert (theirs[:, width:] == both[0].pad_id).all()


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(any_text.filter(lambda text: not any(c in text for c in _SPECIAL)), min_size=1, max_size=6))
def test_any_text_has_the_ids_of_open_clip(both: tuple[Tokenizer, object], texts: list[str]) -> None:
    same(both, texts)


def test_the_corpus_has_the_ids_of_open_clip(both: tuple[Tokenizer, object]) -> None:
    same(both, [caption for caption in WHOLE if not any(c in caption for c in _SPECIAL)])

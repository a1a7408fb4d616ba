"""Weighted search and the classification of a set, asked of a loaded model."""

from pathlib import Path

import numpy as np
import pytest

from clip_core.errors import UsageError
from clip_core.inference.clip import CLIPInference
from clip_core.inference.gallery import OpenGalleries
from clip_core.inference.gallery_store import INDEX
from clip_core.inference.search import ClassificationSet, Search, Term, query_of
from clip_core.scoring import l2_normalise, similarity
from clip_tui.gallery import read_gallery, stored_galleries
from tests.models import images_of


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> CLIPInference:
    return CLIPInference(tiny_run, "torch")


def _ask(model: CLIPInference, **values: object) -> dict:
    return Search(op="search", **values).answer(model, OpenGalleries(model.encoder), lambda done, total: None)


def test_one_term_ranks_as_retrieval_does(model: CLIPInference, tiny_run: Path) -> None:
    images = images_of(tiny_run)[:6]
    found = _ask(model, terms=[{"text": "a red circle"}], images=images, top_k=3)
    paths, values = model.text_image_retrieval("a red circle", images, 3)
    assert found["items"] == [str(path) for path in paths]
    assert np.allclose(found["similarities"], values, atol=1e-6)
    assert (found["total"], found["skipped"]) == (len(images), 0)


def test_terms_are_summed_with_their_weights(model: CLIPInference, tiny_run: Path) -> None:
    image = images_of(tiny_run)[0]
    encoder = model.encoder
    total = encoder.encode_texts(["a dog"]) + 2 * encoder.encode_images([image]) - 0.5 * encoder.encode_texts(["grass"])
    terms = [Term(text="a dog"), Term(image=image, weight=2), Term(text="grass", weight=-0.5)]
    assert np.allclose(query_of(encoder, terms), l2_normalise(total), atol=1e-5)


def test_the_rank_of_a_right_answer_is_known_however_far_down(model: CLIPInference) -> None:
    shapes = ("circle", "square", "triangle")
    texts = [f"a {colour} {shape}" for colour in ("red", "green", "blue", "yellow") for shape in shapes]
    scores = similarity(model.encoder.encode_texts(["a"]), model.encoder.encode_texts(texts))[0]
    last = texts[int(scores.argmin())]
    found = _ask(model, terms=[{"text": "a"}], texts=texts, expected=[last, "not in the gallery"], top_k=2)
    assert list(found["ranks"]) == [last]
    rank, score = found["ranks"][last]
    assert rank == len(texts)
    assert score == pytest.approx(scores.min(), abs=1e-5)
    first = _ask(model, terms=[{"text": "a"}], texts=texts, expected=[found["items"][0]], top_k=1)
    assert first["ranks"][found["items"][0]][0] == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"terms": [{"text": "a", "image": "b.png"}], "texts": ["a"]}, "either a text or an image"),
        ({"terms": [{"text": "a"}, {"text": "a", "weight": -1}], "texts": ["a"]}, "cancel each other"),
        ({"terms": [{"text": "a"}]}, "one of image_dir, images and texts"),
    ],
)
def test_a_query_that_means_nothing_is_one_sentence(model: CLIPInference, values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _ask(model, **values)


def test_a_set_is_classified_as_each_of_its_images_is(model: CLIPInference, tiny_run: Path, tmp_path: Path) -> None:
    images = images_of(tiny_run)[:5]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    classes = ["red", "green", "blue"]
    asked = ClassificationSet(op="classification_set", images=[*images, broken], classes=classes)
    found = asked.answer(model, OpenGalleries(model.encoder), lambda done, total: None)
    assert found["images"] == [str(image) for image in images]
    assert found["skipped"] == 1
    for image, predicted, probability in zip(images, found["predicted"], found["probabilities"], strict=True):
        best, share = model.zero_shot_classification(image, classes)[0]
        assert (best, pytest.approx(share, abs=1e-5)) == (classes[predicted], probability)


def test_a_stored_gallery_is_listed_and_read_without_its_embeddings(
    model: CLIPInference, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = images_of(tiny_run)[:5]
    model.gallery(images)
    ((place, line),) = stored_galleries()
    assert line == f"5 images of {place.about}"
    assert {str(Path(image).parent.resolve()) for image in images} == {str(Path(place.about).resolve())}
    assert sorted(read_gallery(tiny_run, place).images) == sorted(str(image) for image in images)
    assert place.path is not None
    (place.path / INDEX).write_bytes(b"damaged")
    assert stored_galleries() == []
    assert "is not a stored gallery" in (read_gallery(tiny_run, place).note or "")

"""CLIPInference: the same results from PyTorch and from ONNX Runtime."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_core.errors import BackendError, CheckpointError, ClipError, ImageError, UsageError
from clip_core.inference.clip import CLIPInference
from clip_core.model.checkpoint import load_model
from tests.models import ROOT, images_of, make_run, save

TEXTS = ["a red circle", "a blue square", "", "a red circle", "é 漢字 <|endoftext|>", "long " * 40]


@pytest.fixture(scope="module")
def onnx(tiny_bundle: Path) -> CLIPInference:
    return CLIPInference(tiny_bundle)


@pytest.fixture(scope="module")
def torch(tiny_run: Path) -> CLIPInference:
    return CLIPInference(tiny_run, device="cpu")


def test_a_run_uses_torch_and_its_bundle_onnx_and_both_can_be_asked_for(tiny_run: Path) -> None:
    assert CLIPInference(tiny_run).encoder.about.backend == "torch"
    assert CLIPInference(tiny_run, "onnx").encoder.about.backend == "onnx"
    assert CLIPInference(tiny_run / "bundle", "onnx").encoder.about.backend == "onnx"
    assert CLIPInference(str(tiny_run / "checkpoints" / "step_0000007")).encoder.about.step == 7


def test_both_backends_give_the_same_similarities(torch: CLIPInference, onnx: CLIPInference, tiny_run: Path) -> None:
    for image in images_of(tiny_run)[:5]:
        ours, theirs = (each.image_text_similarity(image, TEXTS) for each in (torch, onnx))
        assert ours.shape == (len(TEXTS),)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_both_backends_give_the_same_probabilities(torch: CLIPInference, onnx: CLIPInference, tiny_run: Path) -> None:
    image, templates = images_of(tiny_run)[0], ["a {}", "the {}"]
    ours = dict(torch.zero_shot_classification(image, ["red circle", "blue square"], templates))
    theirs = dict(onnx.zero_shot_classification(image, ["red circle", "blue square"], templates))
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert sum(ours.values()) == pytest.approx(1, abs=1e-6)


def test_similarities_keep_the_order_of_the_texts(onnx: CLIPInference, tiny_run: Path) -> None:
    values = onnx.image_text_similarity(images_of(tiny_run)[0], TEXTS)
    back = onnx.image_text_similarity(images_of(tiny_run)[0], TEXTS[::-1])
    np.testing.assert_allclose(values, back[::-1], atol=1e-6)
    assert values[0] == pytest.approx(values[3], abs=1e-6)


def test_an_ensemble_of_equal_templates_is_the_template(onnx: CLIPInference, tiny_run: Path) -> None:
    image, names = images_of(tiny_run)[0], ["red circle", "blue square"]
    once = onnx.zero_shot_classification(image, names, "a {}")
    assert dict(onnx.zero_shot_classification(image, names, ["a {}", "a {}"])) == pytest.approx(dict(once), abs=1e-5)


def test_retrieval_ranks_best_first_and_agrees_with_similarity(onnx: CLIPInference, tiny_run: Path) -> None:
    images = images_of(tiny_run)
    ranked, values = onnx.text_image_retrieval("a red circle", images, top_k=5)
    assert len(ranked) == len(values) == 5
    assert (np.diff(values) <= 0).all()
    singly = [float(onnx.image_text_similarity(path, ["a red circle"])[0]) for path in images]
    assert values[0] == pytest.approx(max(singly), abs=1e-5)
    assert singly[images.index(Path(str(ranked[0])))] == pytest.approx(max(singly), abs=1e-5)
    everything, _ = onnx.text_image_retrieval("a red circle", images)
    assert set(everything) == set(images)


def test_texts_are_ranked_for_an_image(onnx: CLIPInference, tiny_run: Path) -> None:
    image = images_of(tiny_run)[0]
    ranked, values = onnx.image_text_retrieval(image, TEXTS, top_k=100)
    assert sorted(ranked) == sorted(TEXTS)
    assert values[0] == onnx.image_text_similarity(image, TEXTS).max()


def test_a_path_an_image_and_an_array_are_the_same_image(onnx: CLIPInference, tiny_run: Path) -> None:
    path = images_of(tiny_run)[0]
    with Image.open(path) as image:
        embeds = onnx.encoder.encode_images([path, str(path), image, np.asarray(image.convert("RGB"))])
    np.testing.assert_allclose(embeds, embeds[[0, 0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_answers_do_not_depend_on_the_batch(tiny_run: Path, backend) -> None:
    encoder = CLIPInference(tiny_run, backend).encoder
    images = (images_of(tiny_run) * 4)[:130]
    together = encoder.encode_images(images)
    np.testing.assert_allclose(together[128], encoder.encode_images([images[128]])[0], atol=1e-5)
    texts = [f"a red circle {'x' * (n % 19)}" for n in range(130)]
    np.testing.assert_allclose(encoder.encode_texts(texts)[129], encoder.encode_texts(texts[129:])[0], atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_nothing_to_encode_is_an_empty_array(tiny_run: Path, backend) -> None:
    encoder = CLIPInference(tiny_run, backend).encoder
    assert encoder.encode_images([]).shape == encoder.encode_texts([]).shape == (0, 16)
    assert CLIPInference(tiny_run, backend).image_text_similarity(images_of(tiny_run)[0], []).shape == (0,)


def test_braces_in_a_class_are_text(onnx: CLIPInference, tiny_run: Path) -> None:
    ranked = onnx.zero_shot_classification(images_of(tiny_run)[0], ["{0.__class__}", "{}", "%s"], "a {}")
    assert {name for name, _ in ranked} == {"{0.__class__}", "{}", "%s"}


@pytest.mark.parametrize(
    ("ask", "kind", "message"),
    [
        (lambda clip, image: clip.zero_shot_classification(image, ["a"], "no place"), UsageError, "no place"),
        (lambda clip, image: clip.zero_shot_classification(image, []), UsageError, "at least one class"),
        (lambda clip, image: clip.zero_shot_classification(image, "dog"), UsageError, "list of strings"),
        (lambda clip, image: clip.image_text_similarity(image, "a dog"), UsageError, "list of strings"),
        (lambda clip, image: clip.image_text_retrieval(image, "a dog"), UsageError, "list of strings"),
        (lambda clip, image: clip.zero_shot_classification(image, ["a"], []), UsageError, "one template"),
        (lambda clip, image: clip.image_text_retrieval(image, ["a"], top_k=0), UsageError, "at least 1"),
        (lambda clip, image: clip.image_text_similarity("nowhere.png", ["a"]), ImageError, "nowhere.png"),
    ],
)
def test_a_mistake_in_a_question_is_one_sentence(onnx: CLIPInference, tiny_run: Path, ask, kind, message) -> None:
    with pytest.raises(kind, match=message) as caught:
        ask(onnx, images_of(tiny_run)[0])
    assert "\n" not in str(caught.value)


def closed(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda clip, image: clip.image_text_similarity(image, ["a", None]), r"texts\[1\] is None"),
        (lambda clip, image: clip.image_text_similarity(image, ["a", b"SECRET"]), r"texts\[1\] is of type bytes"),
        (lambda clip, image: clip.image_text_similarity(image, b"SECRET"), "texts is of type bytes"),
        (lambda clip, image: clip.image_text_similarity(image, 3), "texts is of type int"),
        (lambda clip, image: clip.image_text_similarity(image, {"a", "b"}), "set, which has no order"),
        (lambda clip, image: clip.image_text_similarity([image, image], ["a"]), "image is of type list"),
        (lambda clip, image: clip.image_text_similarity(b"SECRET", ["a"]), "an image is of type bytes"),
        (lambda clip, image: clip.image_text_similarity(None, ["a"]), "an image is of type NoneType"),
        (lambda clip, image: clip.image_text_similarity(closed(image), ["a"]), "has been closed"),
        (lambda clip, image: clip.zero_shot_classification(image, ["a"], [None]), r"template\[0\] is None"),
        (lambda clip, image: clip.text_image_retrieval(["a"], [image]), "text is of type list"),
        (lambda clip, image: clip.text_image_retrieval("a", image), "one path.*gallery"),
        (lambda clip, image: clip.text_image_retrieval("a", str(image)), "one path"),
        (lambda clip, image: clip.text_image_retrieval("a", np.zeros((9, 9, 3), np.uint8)), "one image"),
        (lambda clip, image: clip.text_image_retrieval("a", [image], top_k=1.5), "top_k is 1.5"),
        (lambda clip, image: clip.gallery(b"SECRET"), "images is of type bytes"),
        (lambda clip, image: clip.gallery([b"SECRET"]), r"images\[0\] is of type bytes"),
        (lambda clip, image: clip.gallery(None), "images is None"),
        (lambda clip, image: clip.encoder.encode_texts("dog"), "list of strings"),
    ],
)
def test_what_is_no_text_and_no_image_is_one_sentence(onnx: CLIPInference, tiny_run: Path, ask, message) -> None:
    with pytest.raises(ClipError, match=message) as caught:
        ask(onnx, images_of(tiny_run)[0])
    assert "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_any_iterable_of_texts_and_images_is_taken(onnx: CLIPInference, tiny_run: Path) -> None:
    paths, names = images_of(tiny_run)[:3], ["red circle", "blue square"]
    expected = onnx.image_text_similarity(paths[0], names)
    for texts in (tuple(names), np.array(names), iter(names), dict.fromkeys(names), dict.fromkeys(names).keys()):
        np.testing.assert_allclose(onnx.image_text_similarity(paths[0], texts), expected, atol=1e-6)
    assert dict(onnx.zero_shot_classification(paths[0], set(names))) == pytest.approx(
        dict(onnx.zero_shot_classification(paths[0], names)), abs=1e-6
    )
    ranked, values = onnx.text_image_retrieval("a", paths)
    for images in (iter(paths), (str(path) for path in paths), np.array([str(path) for path in paths])):
        again, same = onnx.text_image_retrieval("a", images)
        assert [Path(str(image)) for image in again] == ranked
        np.testing.assert_array_equal(same, values)


def test_a_gallery_is_named_as_a_string_or_by_a_generator_of_paths(onnx: CLIPInference, tiny_run: Path) -> None:
    folder = images_of(tiny_run)[0].parent
    assert len(onnx.gallery(str(folder))) == len(onnx.gallery(folder)) == 36
    assert len(onnx.gallery(folder.glob("*.png"))) == 36
    assert len(onnx.gallery(str(path) for path in folder.glob("*_red_*.png"))) == len([*folder.glob("*_red_*.png")]) > 0


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_forked_child_answers_as_its_parent(tiny_run: Path, tmp_path: Path, backend: str) -> None:
    code = """
import os, signal, sys
import numpy as np
from clip_core import CLIPInference
clip = CLIPInference(sys.argv[1], sys.argv[2], "cpu")
images = [sys.argv[3]] * 40
before = clip.encoder.encode_images(images)
child = os.fork()
if not child:
    signal.alarm(30)
    np.testing.assert_allclose(clip.encoder.encode_images(images), before, atol=1e-6)
    clip.encoder.encode_texts(["a"] * 40)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    threads = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", code, str(tiny_run), backend, str(images_of(tiny_run)[0])]
    done = subprocess.run(command, env=threads, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("path", "options", "kind", "message"),
    [
        ("nowhere", {}, CheckpointError, "no model at"),
        ("bundle", {"backend": "torch"}, BackendError, "is an ONNX bundle"),
        (".", {"backend": "onxx"}, BackendError, "onxx"),
        ("bundle", {"device": "cuda"}, BackendError, "CUDAExecutionProvider"),
        ("bundle", {"device": "abacus"}, BackendError, "abacus"),
        (".", {"device": "abacus"}, BackendError, "abacus"),
        (".", {"device": "cuda:x"}, BackendError, "cuda:x"),
        ("checkpoints", {}, CheckpointError, "checkpoints"),
    ],
)
def test_a_model_that_cannot_be_used_is_one_sentence(tiny_run: Path, path, options, kind, message) -> None:
    with pytest.raises(kind, match=message) as caught:
        CLIPInference(tiny_run / path, **options)
    assert "\n" not in str(caught.value)


def test_a_bundle_older_than_the_best_checkpoint_is_noted(tiny_run: Path, tmp_path: Path) -> None:
    assert CLIPInference(tiny_run, "onnx").note is None
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    save(run, load_model(run).model, step=9)
    for path in (run, run / "bundle"):
        assert CLIPInference(path, "onnx").note == "bundle of step 7, best checkpoint is step 9"
    assert CLIPInference(run, "torch").note is None
    shutil.copytree(run / "bundle", tmp_path / "elsewhere")
    assert CLIPInference(tmp_path / "elsewhere").note is None


def test_a_run_without_a_bundle_says_how_to_make_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "fresh")
    with pytest.raises(BackendError, match="clip-export"):
        CLIPInference(run, backend="onnx")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    other = make_run(tmp_path / "two", tokenizer="bpe")
    (other / "tokenizer.json").rename(run / "tokenizer.json")
    with pytest.raises(ClipError, match="is not the one that the checkpoint of step 7 was trained with"):
        CLIPInference(run)

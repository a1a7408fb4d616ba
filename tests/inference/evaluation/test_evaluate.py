"""clip-infer evaluate as a user runs it, on every kind of set."""

import csv
import io
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from clip_core.cli.infer import main
from clip_core.data.formats.clip_benchmark import read_benchmark
from clip_core.data.pairs import Pair, pair_hashes
from clip_core.errors import DataError
from clip_core.inference.clip import CLIPInference
from clip_core.inference.evaluation.embed import embed_texts
from clip_core.run.paths import RunPaths
from clip_core.scoring import class_prototypes, retrieval_scores, zero_shot_scores
from tests.models import ROOT, images_of, own_bundle, own_cache, python, tiny_bundle, tiny_run

__all__ = ["own_bundle", "own_cache", "tiny_bundle", "tiny_run"]

NAMES = ["circle", "square", "triangle"]


def evaluate(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    assert main(["evaluate", "--json", *map(str, words)]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def folders(tiny_run: Path, tmp_path: Path) -> Path:
    """Class folders with train and test."""
    for number, image in enumerate(images_of(tiny_run)):
        place = tmp_path / "folders" / ("test" if number % 3 == 0 else "train") / NAMES[number % 7 % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / image.name).symlink_to(image)
    return tmp_path / "folders"


def benchmark(folder: Path, images: list[Path], labels: list[tuple[str, bytes]], **files: str) -> Path:
    """A data set in CLIP_benchmark's layout."""
    (folder / "test").mkdir(parents=True)
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number, (image, (suffix, content)) in enumerate(zip(images, labels, strict=True)):
            for end, data in ((image.suffix, image.read_bytes()), (suffix, content)):
                member = tarfile.TarInfo(f"s{number:07d}{end}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (folder / "test" / "nshards.txt").write_text("1\n")
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_class_folders_give_the_accuracy_that_the_embeddings_say(
    folders: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "templates.txt").write_text("a {}\n\na red {c}\n")
    asked = ("--data", folders, "--model", tiny_bundle, "--templates", tmp_path / "templates.txt", "--knn", 3)
    images = sorted((folders / "test").rglob("*.png"))
    torn = folders / "test" / NAMES[1] / "0000_torn.png"  # between the others, so that rows move
    torn.write_bytes(images[0].read_bytes()[:60])
    found = evaluate(capsys, *asked, "--csv", tmp_path / "tables")
    assert list(found["data"]["unreadable"]) == [str(torn)]
    clip = CLIPInference(tiny_bundle)
    prompts = [f"{start}{name}" for start in ("a ", "a red ") for name in NAMES]
    classes = class_prototypes(clip.encoder.encode_texts(prompts), 3)
    labels = np.array([NAMES.index(image.parent.name) for image in images])
    expected = zero_shot_scores(clip.encoder.encode_images(images), classes, labels)
    scores = found["models"][0]["zero_shot"]
    assert found["data"]["images"] == len(images)
    assert scores["top1"] == pytest.approx(expected["zero_shot_top1"])
    assert scores["mean_per_class"] == pytest.approx(expected["zero_shot_mean_per_class"])
    assert found["models"][0]["knn"]["train_images"] == len(list((folders / "train").rglob("*.png")))
    with (tmp_path / "tables" / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(row["class"] == row["predicted_1"] for row in rows) / len(rows) == pytest.approx(scores["top1"])


def test_a_run_is_evaluated_on_its_validation_pairs_and_trained_pairs_are_named(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(capsys, "--model", tiny_run)
    held = json.loads(RunPaths(tiny_run).validation.read_text())["pairs"]
    assert found["data"]["pairs"] == len(held)
    assert "validation pairs of" in found["data"]["name"]
    run = tmp_path / "run"
    run.mkdir()
    for item in tiny_run.iterdir():
        (run / item.name).symlink_to(item)
    pairs = [Pair(str(image), f"caption {n}", n, image.name) for n, image in enumerate(images_of(tiny_run), start=1)]
    (tmp_path / "list.json").write_text(json.dumps([{"image": pair.path, "caption": pair.caption} for pair in pairs]))
    np.save(RunPaths(run).pair_hashes, pair_hashes(pairs[:5]))
    found = evaluate(capsys, "--model", run, "--data", tmp_path / "list.json", "--image-root", pairs[0].image.parent)
    assert f"WARNING: 5 of {len(pairs)} images were in the training set of {run}" in found["data"]["notes"]


def test_precisions_and_another_model_are_rows_compared_with_the_first(
    tiny_bundle: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--model", tiny_bundle, "--data", RunPaths(tiny_run).root.parent / f"{tiny_run.name}-shapes/dataset.json"]
    page = tmp_path / "e.html"
    found = evaluate(capsys, *asked, "--precision", "fp32", "--compare", tiny_run, "--html", page)
    assert [model["backend"] for model in found["models"]] == ["onnx", "torch"]
    figures = {each["what"]: each for each in found["comparisons"][0]["figures"]}
    assert set(figures) >= {"image_to_text_recall@1", "text_to_image_recall@1"}
    for each in figures.values():  # the same weights
        assert each["gained"] + each["lost"] <= 1
    text = page.read_text()
    assert "<script" not in text
    assert "Figures" in text
    assert main(["evaluate", *map(str, asked), "--precision", "fp32"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100 + len(str(tiny_bundle))


def test_clip_benchmarks_layout_is_read_in_all_its_kinds(
    tiny_run: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = images_of(tiny_run)[:6]
    names = {"classnames": "circle\nsquare\nred thing\n", "zeroshot_classification_templates": "a drawn {c}\nthe {c}\n"}
    single = benchmark(tmp_path / "single", images, [(".cls", str(n % 3).encode()) for n in range(6)], **names)
    found = evaluate(capsys, "--data", single, "--model", tiny_bundle)
    assert found["data"]["templates"] == ["a drawn {}", "the {}"]
    assert [row["images"] for row in found["models"][0]["zero_shot"]["per_class"]] == [2, 2, 2]
    several = [np.array([1, n % 2, 0]) for n in range(6)]
    arrays = []
    for label in several:
        buffer = io.BytesIO()
        np.save(buffer, label)
        arrays.append((".npy", buffer.getvalue()))
    multi = benchmark(tmp_path / "multi", images, arrays, dataset_type="multilabel", **names)
    scores = evaluate(capsys, "--data", multi, "--model", tiny_bundle)["models"][0]["zero_shot"]
    assert scores["top1"] is None
    assert scores["mean_average_precision"] > 0.5  # every image has the first class
    texts = [(".txt", f"one {n}\ntwo {n}\n".encode()) for n in range(6)]
    found = evaluate(
        capsys, "--data", benchmark(tmp_path / "pairs", images, texts, dataset_type="retrieval"), "--model", tiny_bundle
    )
    clip = CLIPInference(tiny_bundle)
    captions = [f"{word} {n}" for n in range(6) for word in ("one", "two")]
    expected = retrieval_scores(
        clip.encoder.encode_images(images),
        clip.encoder.encode_texts(captions),
        np.repeat(np.arange(6), 2),
        np.arange(12),
    )
    way = found["models"][0]["retrieval"]["text_to_image"]
    assert (way["queries"], way["recall"]["1"]) == (12, pytest.approx(expected["text_to_image_recall@1"]))


def test_a_damaged_benchmark_is_named_and_nothing_in_it_is_unpickled(tiny_run: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "exploded"),)

    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    images, names = images_of(tiny_run)[:2], {"classnames": "a\nb\n"}
    labels = [(".npy", buffer.getvalue()), (".npy", b"no array")]
    read = read_benchmark(benchmark(tmp_path / "bomb", images, labels, dataset_type="multilabel", **names))
    assert [sample.problem for sample in read.samples] == ["its .npy cannot be read"] * 2
    assert not (tmp_path / "exploded").exists()
    wrong = benchmark(tmp_path / "wrong", images, [(".cls", b"7"), (".cls", b"1")], **names)
    assert "none of the 2" in (read_benchmark(wrong).samples[0].problem or "")
    (wrong / "test" / "nshards.txt").write_text("2")
    with pytest.raises(DataError, match=r"1\.tar, which nshards\.txt counts"):
        read_benchmark(wrong)


def test_a_users_mistake_is_one_sentence(
    tiny_bundle: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = images_of(tiny_run)[:3]
    listed = tmp_path / "pairs.json"
    listed.write_text(json.dumps([{"image": str(path), "caption": f"c {n}"} for n, path in enumerate(images)]))
    (tmp_path / "bad.txt").write_text("a photo\n")
    for words, said in [
        (["--data", listed, "--split", "val"], "has no val pairs"),
        (["--data", listed, "--templates", tmp_path / "bad.txt"], "line 1: the template 'a photo' has no {}"),
        (["--data", listed, "--knn", "3"], "need images with one class each"),
        (["--data", listed, "--html", tmp_path / "no" / "e.html"], "there is no folder"),
        (["--data", tmp_path / "nowhere"], "nowhere"),
    ]:
        assert main(["evaluate", "--model", str(tiny_bundle), *map(str, words)]) in (1, 2)
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert said in error


def test_a_bundle_is_evaluated_where_torch_cannot_be_imported(tiny_bundle: Path, folders: Path, tmp_path: Path) -> None:
    asked = ("-m", "clip_core.cli.infer", "evaluate", "--model", tiny_bundle, "--data", folders)
    done = python(*asked, torch_free=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "zero-shot top-1" in done.stdout
    assert "CLIP's 80 templates" in done.stdout


def test_every_key_of_the_json_is_documented(
    tiny_bundle: Path, tiny_run: Path, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "evaluate.md").read_text()

    def keys(value: object) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(keys, value))
        if not isinstance(value, dict):
            return set()
        return {key for key in value if key.isidentifier()}.union(*map(keys, value.values()))

    pairs = tiny_run.parent / f"{tiny_run.name}-shapes" / "dataset.json"
    for words in ((folders, "--knn", 3), (pairs,)):
        found = evaluate(capsys, "--model", tiny_bundle, "--compare", tiny_bundle, "--data", *words)
        for name in keys(found):
            assert re.search(rf"[`.]{name}(\[\])?[`@]", page), name


def test_a_second_evaluation_embeds_nothing_and_another_text_tower_is_not_mixed_up(
    tiny_bundle: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = CLIPInference(tiny_bundle)
    asked: list[int] = []

    class Counting:
        about, tokenizer = clip.encoder.about, clip.encoder.tokenizer
        encode_pixels = staticmethod(clip.encoder.encode_pixels)

        def encode_texts(self, texts: list[str]) -> np.ndarray:
            asked.append(len(texts))
            return self.turned * clip.encoder.encode_texts(texts)

        turned = 1

    encoder = Counting()
    first = embed_texts(encoder, NAMES, ["a {}", "the {}"], tmp_path / "index", print)
    assert asked == [4, 6]
    again = embed_texts(encoder, NAMES, ["a {}", "the {}"], tmp_path / "index", print)
    assert asked == [4, 6, 4]  # only the fingerprint of the text tower
    assert np.array_equal(first, again)
    encoder.turned = -1  # the image tower, and with it the identity, stays
    assert np.allclose(embed_texts(encoder, NAMES, ["a {}", "the {}"], tmp_path / "index", print), -first)
    evaluate(capsys, "--model", tiny_bundle, "--data", folders, "--index", tmp_path / "index")
    found = evaluate(capsys, "--model", tiny_bundle, "--data", folders, "--index", tmp_path / "index")
    assert found["models"][0]["images_per_second"] is None

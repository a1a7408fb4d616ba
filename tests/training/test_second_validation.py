"""The second validation set: read and checked as the data are, evaluated beside the first under keys of its own."""

import json
from pathlib import Path

import pytest
from PIL import Image

from clip_core.config import DataConfig, TrainConfig, TuneConfig
from clip_core.data.tokenizer import Tokenizer, train_characters
from clip_core.errors import DataError
from clip_core.network import Preprocessing
from clip_core.run.metrics import SECOND
from clip_core.run.reader import RunReader
from clip_core.training.evaluate import ValidationSet
from clip_core.training.preflight import with_absolute_paths
from clip_core.training.second_validation import (
    Guard,
    chance,
    guard_of,
    load_second_validation,
    read_second_validation,
)
from tests.running import lines
from tests.training.conftest import Build, small_config

PREPROCESSING = Preprocessing(image_size=32)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_characters(["a red square"], 16)


def load(path: Path, tokenizer: Tokenizer, said: list[str], root: Path | None = None) -> ValidationSet | None:
    tune = TuneConfig(guard_data=path, guard_root=root)
    return load_second_validation(tune, DataConfig(), PREPROCESSING, tokenizer, said.append)


def test_without_guard_data_there_is_none(tokenizer: Tokenizer) -> None:
    said: list[str] = []
    assert load_second_validation(TuneConfig(), DataConfig(), PREPROCESSING, tokenizer, said.append) is None
    assert read_second_validation(TuneConfig()) == []
    assert said == []


@pytest.mark.parametrize(
    ("typed", "init", "builtin", "data"),
    [
        (None, None, False, None),
        (None, "weights", True, None),
        ("none", "weights", False, None),
        ("builtin", None, True, None),
        ("builtin,my/classes", "weights", True, Path("my/classes")),
        ("pairs,1.json", "weights", False, Path("pairs,1.json")),
    ],
)
def test_what_guard_data_means(typed: str | None, init: str | None, builtin: bool, data: Path | None) -> None:
    tune = TuneConfig(guard_data=None if typed is None else Path(typed), init=init)
    assert guard_of(tune) == Guard(builtin, data)
    assert typed is None or str(guard_of(tune)) == typed


def test_pretrained_weights_have_drawn_shapes_by_default_and_a_class_folder_adds_to_them(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    said: list[str] = []
    first = load_second_validation(TuneConfig(init="weights"), DataConfig(), PREPROCESSING, tokenizer, said.append)
    assert first is not None
    assert (len(first.pairs), len(first.pairs.captions)) == (72, 18)
    assert chance(first.pairs) == pytest.approx(1 / 18)
    assert said[0].startswith("second validation set builtin: 72 usable pairs")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40), "grey").save(tmp_path / name / "0.png")
    both = load(Path(f"builtin,{tmp_path}"), tokenizer, said)
    assert both is not None
    assert len(both.pairs) == 74
    assert {"a photo of a cat", "a photo of a dog"} <= set(both.pairs.captions)


def test_without_it_pretrained_weights_say_that_forgetting_is_not_measured(tokenizer: Tokenizer) -> None:
    said: list[str] = []
    tune = TuneConfig(init="weights", guard_data=Path("none"))
    assert load_second_validation(tune, DataConfig(), PREPROCESSING, tokenizer, said.append) is None
    assert "forgetting is not measured: add --guard-data builtin" in said[0]


def test_the_stored_place_of_a_class_folder_is_absolute_and_the_words_stay_words() -> None:
    def stored(typed: str) -> Path | None:
        tune = {"guard_data": Path(typed)}
        return with_absolute_paths(TrainConfig.model_validate({"tune": tune})).tune.guard_data

    assert stored("builtin") == Path("builtin")
    assert stored("none") == Path("none")
    assert stored("builtin,classes") == Path(f"builtin,{Path('classes').absolute()}")
    assert stored("pairs.json") == Path("pairs.json").absolute()


def test_its_rows_are_its_valid_pairs_and_the_others_are_reported(
    shapes: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    pairs = json.loads(shapes.read_text())[:40]
    pairs[0]["image"] = "missing.png"  # the rows of the store and those of the valid pairs then differ
    (tmp_path / "second.json").write_text(json.dumps(pairs))
    said: list[str] = []
    found = load(tmp_path / "second.json", tokenizer, said, root=shapes.parent)
    assert found is not None
    of_pair = zip(found.pairs.pair_images, found.pairs.pair_captions, strict=True)
    assert [(found.pairs.images[i].name, found.pairs.captions[c]) for i, c in of_pair] == [
        (Path(pair["image"]).name, pair["caption"]) for pair in pairs[1:]
    ]
    assert found.store.paths == list(found.pairs.images)
    assert not found.store.failures
    assert len(said) == 3
    assert "second.json read as json" in said[0]
    assert said[2].startswith(f"second validation set {tmp_path / 'second.json'}: 39 usable pairs with 39 images; 1 of")


def test_of_a_list_with_splits_only_the_validation_pairs_are_used_and_that_is_said(
    shapes: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    splits = ["train", "val", "test", "train"]
    pairs = [pair | {"split": split} for pair, split in zip(json.loads(shapes.read_text()), splits, strict=False)]
    (tmp_path / "second.json").write_text(json.dumps(pairs))
    said: list[str] = []
    found = load(tmp_path / "second.json", tokenizer, said, root=shapes.parent)
    assert found is not None
    assert [image.name for image in found.pairs.images] == [Path(pairs[1]["image"]).name]
    assert any("1 val for validation, 2 train not used, 1 test not used" in line for line in said)


def test_too_many_invalid_pairs_are_refused(shapes: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    pairs = json.loads(shapes.read_text())[:10]
    for pair in pairs[:5]:
        pair["image"] = f"missing-{pair['image']}"
    (tmp_path / "second.json").write_text(json.dumps(pairs))
    with pytest.raises(DataError, match=r"second.json, .*5 of 10 pairs are affected, more than --max-bad-share"):
        load(tmp_path / "second.json", tokenizer, [], root=shapes.parent)


def test_a_list_that_is_missing_or_no_list_is_refused_before_images_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "second.json").write_text('[{"image": 1}]')
    for name in ("second.json", "nowhere.json"):
        with pytest.raises(DataError, match=name):
            read_second_validation(TuneConfig(guard_data=tmp_path / name))


def test_its_recalls_have_keys_of_their_own_and_do_not_choose_the_best_checkpoint(
    build: Build, shapes: Path, tmp_path: Path
) -> None:
    """The validation pairs of a run as its second set: the same recalls twice."""
    build(small_config(shapes, tmp_path / "first"))
    pairs = [{"image": p.image, "caption": p.caption} for p in RunReader(tmp_path / "first").validation_pairs().pairs]
    (tmp_path / "second.json").write_text(json.dumps(pairs))
    tune = {"guard_data": tmp_path / "second.json", "guard_root": shapes.parent}
    trainer = build(small_config(shapes, tmp_path / "run", tune=tune))
    trainer.progress.step = 1
    trainer.evaluate()
    (line,) = lines(tmp_path / "run", "eval")
    recalls = {key: value for key, value in line.items() if "recall" in key and not key.startswith(SECOND)}
    assert len(recalls) == 7 + 4  # with the intervals of recall@1
    assert {key: value for key, value in line.items() if key.startswith(SECOND)} == {
        SECOND + key: value for key, value in recalls.items()
    }
    best = RunReader(tmp_path / "run").best()
    assert best is not None
    assert best.metric == "zero_shot_top1"  # of the first set, whose captions are classes
    assert "second validation set: recall@1 image to text" in (tmp_path / "run" / "train.log").read_text()

"""An export is accepted only if its consumers, tokenizer and preprocessing included, give the model's embeddings."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_core.errors import ParityError
from clip_core.inference.bundle import read_manifest
from clip_core.model.checkpoint import LoadedModel, load_model
from export import bundle as exporting
from export.bundle import export_bundle
from export.consumer_parity import check_consumers
from tests.inference.test_bundle import edit_manifest, relist
from tests.models import images_of


@pytest.fixture(scope="module")
def loaded(tiny_run: Path) -> LoadedModel:
    return load_model(tiny_run)


def check(loaded: LoadedModel, bundle: Path, images: list[Path]) -> str:
    return check_consumers(loaded, bundle, read_manifest(bundle), ["a red circle", "日本 🐕", "\ud800"], images)


def photographs(folder: Path) -> list[Path]:
    """Of the kinds that readers treat differently: turned, transparent, grey, a palette, tall, wide; and 16 bits."""
    generator, files = np.random.default_rng(0), [folder / f"{n}.png" for n in range(7)]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(generator.integers(0, 255, (90, 61, 4), np.uint8)).save(files[0], exif=exif)
    Image.fromarray(generator.integers(0, 255, (33, 97), np.uint8)).save(files[1])
    Image.fromarray(generator.integers(0, 255, (41, 32, 3), np.uint8)).quantize(16).save(files[2], transparency=3)
    Image.fromarray(generator.integers(0, 255, (19, 57, 3), np.uint8)).save(files[3])
    Image.fromarray(generator.integers(0, 2, (64, 35), np.uint8) * 255).convert("1").save(files[4])
    Image.fromarray(generator.integers(0, 65535, (40, 40), np.uint16)).save(files[5])
    files[6].write_text("no image")
    return files


def test_every_consumer_agrees_on_files_of_every_kind(loaded: LoadedModel, tiny_bundle: Path, tmp_path: Path) -> None:
    said = check(loaded, tiny_bundle, photographs(tmp_path))
    assert said.startswith(
        "consumers: example.py and CLIPInference give the model's embeddings of 6 captions and 5 image"
    )
    assert "example.py was not compared on 1 of them" in said


def test_members_of_shards_are_compared_as_files(loaded: LoadedModel, tiny_bundle: Path, tmp_path: Path) -> None:
    assert "and 1 image file," in check(loaded, tiny_bundle, photographs(tmp_path)[5:])


def keep_the_case(bundle: Path) -> None:
    said = json.loads((bundle / "tokenizer.json").read_text())
    said["normalizer"]["normalizers"] = said["normalizer"]["normalizers"][1:]
    (bundle / "tokenizer.json").write_text(json.dumps(said))
    relist(bundle, "tokenizer.json")


def crop_elsewhere(bundle: Path) -> None:
    said = json.loads((bundle / "preprocessor_config.json").read_text())
    (bundle / "preprocessor_config.json").write_text(json.dumps(said | {"size": {"shortest_edge": 40}}))
    relist(bundle, "preprocessor_config.json")


def change_example(bundle: Path, old: str, new: str) -> None:
    source = (bundle / "example.py").read_text()
    assert old in source
    (bundle / "example.py").write_text(source.replace(old, new))
    relist(bundle, "example.py")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (keep_the_case, r"example\.py reads the caption 'A Photo, of 2 dogs!' as other tokens than the model: \["),
        (crop_elsewhere, r"example\.py gives other embeddings of images .*\.png"),
        (lambda b: change_example(b, "ImageOps.exif_transpose(Image.open(path))", "Image.open(path)"), "of images"),
        (
            lambda b: edit_manifest(b, lambda m: m["preprocessing"].update(mean=[0.1, 0.2, 0.3])),
            "CLIPInference gives other embeddings of images",
        ),
        (
            lambda b: edit_manifest(b, lambda m: m["preprocessing"].update(interpolation="bilinear")),
            "CLIPInference gives other embeddings of images",
        ),
    ],
)
def test_the_consumer_that_differs_is_named(
    loaded: LoadedModel, own_bundle: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(own_bundle)
    with pytest.raises(ParityError, match=message) as caught:
        check(loaded, own_bundle, photographs(tmp_path))
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


def test_an_export_whose_example_differs_leaves_nothing(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = exporting.preprocessor_config
    monkeypatch.setattr(exporting, "preprocessor_config", lambda p: original(p) | {"image_mean": [0.1, 0.1, 0.1]})
    with pytest.raises(ParityError, match=r"example\.py gives other embeddings of images"):
        export_bundle(tiny_run, tmp_path / "out", images=images_of(tiny_run)[0].parent)
    assert not (tmp_path / "out").exists()

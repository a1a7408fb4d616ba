"""The images and captions that parity is measured on."""

from pathlib import Path

import pytest

from clip_core.errors import DataError
from clip_core.model.checkpoint import load_model
from export.parity_samples import MOST, find_samples
from tests.models import images_of, make_run


def test_a_run_gives_its_validation_images_and_distinct_captions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", count=90)
    images_of(run)[1].write_bytes(b"no image")
    samples = find_samples(load_model(run), None)
    assert MOST - 1 <= len(samples.pixel_values) <= MOST
    assert samples.pixel_values.shape[1:] == (3, 32, 32)
    assert len(set(samples.captions)) == len(samples.captions) == 18


def test_a_folder_replaces_the_images_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    loaded = load_model(run)
    assert len(find_samples(loaded, images_of(run)[0].parent).pixel_values) == 36
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="name a folder with --images"):
        find_samples(loaded, tmp_path / "empty")

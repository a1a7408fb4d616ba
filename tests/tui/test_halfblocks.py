"""An image as half blocks, or as ASCII characters."""

import os
from pathlib import Path

import pytest
from PIL import Image

from clip_core.errors import ImageError
from clip_tui.widgets.halfblocks import UPPER_HALF, strips_of


def test_a_half_block_holds_the_two_pixels_above_each_other(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 4), (255, 0, 0))
    image.paste((0, 0, 255), (0, 2, 2, 4))
    image.save(tmp_path / "two.png")
    strips = strips_of(tmp_path / "two.png", 10, 1, plain=False)
    (segment, *_) = strips[0]
    assert segment.text == UPPER_HALF
    assert segment.style is not None
    assert segment.style.color is not None
    assert segment.style.bgcolor is not None
    assert segment.style.color.get_truecolor().red > 200
    assert segment.style.bgcolor.get_truecolor().blue > 200


def test_a_plain_image_is_ascii_by_brightness(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    (strip, *_) = strips_of(tmp_path / "white.png", 8, 4, plain=True)
    assert strip.text == "@" * 8


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (3, 3)])
def test_an_image_of_any_proportion_fits_into_its_cells(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "odd.png")
    strips = strips_of(tmp_path / "odd.png", 12, 5, plain=False)
    assert 1 <= len(strips) <= 5
    assert all(1 <= strip.cell_length <= 12 for strip in strips)


def test_a_file_that_is_no_image_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("not an image")
    with pytest.raises(ImageError, match=r"no\.png"):
        strips_of(tmp_path / "no.png", 8, 4, plain=False)


def test_an_image_that_was_replaced_is_drawn_anew(tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    for stamp, colour in ((1, "white"), (2, "black")):
        Image.new("RGB", (8, 8), colour).save(file)
        os.utime(file, (stamp, stamp))
        (strip, *_) = strips_of(file, 8, 4, plain=True)
        assert strip.text == ("@" if colour == "white" else " ") * 8

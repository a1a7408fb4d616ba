"""Preprocessing: torchvision's result, bit for bit, on whatever a folder of images may hold."""

import io
import os
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from clip_core.data.preprocess import load_image, normalise, preprocess, resize_and_crop, typical_side
from clip_core.errors import ImageError
from clip_core.network import Preprocessing


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    """A smooth image whose four corners differ, which JPEG keeps nearly as it is."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 150), height=st.integers(1, 150), size=st.integers(8, 70))
def test_resize_and_crop_is_torchvisions_bit_for_bit(width: int, height: int, size: int):
    image = noise(width, height, seed=width * 1000 + height)
    resize = transforms.Resize(size, interpolation=InterpolationMode.BICUBIC)
    reference = transforms.Compose([resize, transforms.CenterCrop(size)])
    np.testing.assert_array_equal(resize_and_crop(image, Preprocessing(image_size=size)), np.asarray(reference(image)))


def test_pixel_values_are_torchvisions_bit_for_bit():
    config = Preprocessing(image_size=48)
    images = [noise(100, 61, 1), noise(48, 48, 2), noise(20, 33, 3)]
    reference = transforms.Compose([
        transforms.Resize(48, interpolation=InterpolationMode.BICUBIC), transforms.CenterCrop(48),
        transforms.ToTensor(), transforms.Normalize(config.mean, config.std),
    ])  # fmt: skip
    expected = torch.stack([reference(image) for image in images]).numpy()
    values = preprocess(images, config)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    np.testing.assert_array_equal(values, expected)


def test_normalise_of_no_images_is_empty():
    values = normalise(np.zeros((0, 16, 16, 3), np.uint8), Preprocessing(image_size=16))
    assert values.shape == (0, 3, 16, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int):
    upright = gradient()
    undo = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in (tmp_path / "turned.png", tmp_path / "turned.tiff"):
        stored.save(path, exif=exif)
        np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(upright))


def test_broken_exif_does_not_make_an_image_unusable(tmp_path: Path):
    gradient().save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff\x00\x01")
    assert load_image(tmp_path / "a.jpg").size == (40, 30)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_become_white(tmp_path: Path, mode: str):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((60, 60, 60, 255), (0, 0, 4, 8))
    path = tmp_path / "clear.png"
    if mode == "P":
        palette = Image.new("P", (8, 8), 1)
        palette.putpalette([60, 60, 60, 0, 0, 0])
        palette.paste(0, (0, 0, 4, 8))
        palette.save(path, transparency=1)
    else:
        image.convert(mode).save(path)
    pixels = np.asarray(load_image(path))
    assert (pixels[:, :4] == 60).all()
    assert (pixels[:, 4:] == 255).all()


def test_half_transparent_black_on_white_is_grey():
    pixels = np.asarray(load_image(Image.new("RGBA", (2, 2), (0, 0, 0, 128))))
    assert (np.abs(pixels.astype(int) - 127) <= 1).all()


def test_sixteen_bit_grey_keeps_its_range_instead_of_turning_white(tmp_path: Path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, axis=0)
    for name in ("deep.png", "deep.tiff"):
        Image.fromarray(ramp).save(tmp_path / name)
        pixels = np.asarray(load_image(tmp_path / name))
        np.testing.assert_array_equal(pixels[0, :, 0], np.arange(256))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "I", "F"])
def test_every_common_mode_becomes_rgb(mode: str):
    image = load_image(gradient().convert("L").convert(mode) if mode in "IF" else gradient().convert(mode))
    assert image.mode == "RGB"
    assert len(np.unique(np.asarray(image))) > 1


def test_float_images_with_infinities_are_read():
    values = np.array([[0.0, 0.5, 1.0, np.nan, np.inf, -np.inf]], dtype=np.float32)
    assert np.asarray(load_image(Image.fromarray(values)))[0, :, 0].tolist() == [0, 128, 255, 0, 0, 0]


def test_arrays_paths_and_images_give_the_same(tmp_path: Path):
    image = noise(30, 20)
    image.save(tmp_path / "a.png")
    config = Preprocessing(image_size=16)
    sources = [image, np.asarray(image), tmp_path / "a.png", str(tmp_path / "a.png")]
    values = preprocess(sources, config)
    for row in values[1:]:
        np.testing.assert_array_equal(row, values[0])


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3), np.float32), np.zeros((4,), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_an_array_that_is_no_image_is_refused_with_what_it_may_be(array: np.ndarray):
    with pytest.raises(ImageError, match=r"is not an image; give uint8 with shape \(H, W\)"):
        load_image(array)


def test_a_missing_image_a_folder_and_a_text_are_refused_by_name(tmp_path: Path):
    (tmp_path / "notes.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    for name, message in {
        "gone.png": "no image at .*gone.png", ".": "is not a file",
        "notes.png": "notes.png is not an image in a known format", "empty.png": "empty.png is not an image",
    }.items():  # fmt: skip
        with pytest.raises(ImageError, match=message):
            load_image(tmp_path / name)


def test_the_typical_side_is_the_median_shorter_one_of_what_can_be_read(tmp_path: Path):
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, (width, height) in zip(paths, [(40, 90), (70, 30), (200, 50), (60, 60)], strict=False):
        noise(width, height).save(path)
    paths[4].write_text("no image")
    assert typical_side(paths) == 45
    assert typical_side(paths[4:]) == typical_side([]) == 0


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="is not a file"):
        load_image(tmp_path / "pipe.png")


def test_a_path_no_file_system_can_hold_is_an_image_error():
    for name in ("a\0b.png", "x" * 5000 + ".png", "\ud800.png"):
        with pytest.raises(ImageError):
            load_image(name)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path):
    small = io.BytesIO()
    Image.new("L", (1, 1)).save(small, "BMP")
    header = bytearray(small.getvalue())
    for side in (9000, 60000):  # beyond our limit, and beyond Pillow's own
        header[18:22] = header[22:26] = side.to_bytes(4, "little")
        (tmp_path / "bomb.bmp").write_bytes(header)
        with pytest.raises(ImageError, match="more than 64 megapixels"):
            load_image(tmp_path / "bomb.bmp")


def test_an_image_too_narrow_to_resize_is_refused():
    with pytest.raises(ImageError, match="too narrow"):
        resize_and_crop(Image.new("RGB", (1, 20_000)), Preprocessing(image_size=64))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
def test_an_image_cut_short_is_refused_and_never_half_read(tmp_path: Path, suffix: str):
    noise(64, 64).save(tmp_path / f"whole.{suffix}")
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=f"cut.{suffix}"):
        load_image(tmp_path / f"cut.{suffix}")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tiff", "ico", "jp2"])
def test_damage_anywhere_is_an_image_or_an_image_error(tmp_path: Path, suffix: str):
    noise(32, 32).save(tmp_path / f"whole.{suffix}")
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    dice = random.Random(suffix)
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(dice.randint(1, 8)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        (tmp_path / "damaged").write_bytes(damaged[: dice.randint(1, len(damaged))])
        with suppress(ImageError):  # anything else that is raised fails the test
            assert load_image(tmp_path / "damaged").mode == "RGB"


def test_postscript_is_never_run(tmp_path: Path):
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(ImageError, match="not an image in a known format"):
        load_image(tmp_path / "a.eps")

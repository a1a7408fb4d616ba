"""The fast decoder: within one 8-bit level of the exact one, and the same verdict on every bad image."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_core.data.image_files import Member
from clip_core.data.store import EXACT
from clip_core.errors import ImageError
from clip_core.network import Preprocessing
from clip_core.training.fast_decode import FAST, _decode_jpeg, decode_fast

SQUARE = Preprocessing(image_size=32)


def photo(width: int = 90, height: int = 70, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height), 3)
    noise = rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8))


def difference(path: Path, preprocessing: Preprocessing = SQUARE) -> int:
    exact, fast = EXACT.decode(path, preprocessing), FAST.decode(path, preprocessing)
    assert exact.shape == fast.shape
    assert exact.dtype == fast.dtype == np.uint8
    return int(np.abs(exact.astype(int) - fast).max())


def verdict(decode, path: Path) -> str | None:
    try:
        decode(path, SQUARE)
    except ImageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("size", [(90, 70), (70, 91), (32, 32), (20, 33), (400, 31), (33, 500), (1000, 700)])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_at_most_one_level_off(tmp_path: Path, size: tuple[int, int], mode: str, interpolation: str):
    photo(*size).save(tmp_path / "a.jpg", quality=90)
    prepared = Preprocessing(image_size=32, resize_mode=mode, interpolation=interpolation)
    assert difference(tmp_path / "a.jpg", prepared) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_is_upright(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo().save(tmp_path / "a.jpg", exif=exif)
    assert difference(tmp_path / "a.jpg") <= 1


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 2, "quality": 30},
        {"optimize": True, "dpi": (300, 300), "comment": b"\xff\xd8 a comment"},
        {"restart_marker_blocks": 1},
        {"keep_rgb": True},
    ],
)
def test_every_kind_of_jpeg(tmp_path: Path, options: dict[str, object]):
    photo().save(tmp_path / "a.jpg", **options)
    assert difference(tmp_path / "a.jpg") <= 1


def test_images_of_other_kinds_are_decoded_exactly(tmp_path: Path):
    for name, image in [
        ("grey.jpg", photo().convert("L")),
        ("cmyk.jpg", photo().convert("CMYK")),
        ("a.png", photo()),
        ("clear.png", Image.new("RGBA", (40, 40), (10, 20, 30, 100))),
        ("a.webp", photo()),
        ("a.gif", photo()),
    ]:
        image.save(tmp_path / name)
        assert difference(tmp_path / name) <= (1 if name == "grey.jpg" else 0), name
    photo().save(tmp_path / "two.jpg", format="MPO", save_all=True, append_images=[photo(seed=1)])
    assert difference(tmp_path / "two.jpg") <= 1


def test_a_member_of_a_shard(tmp_path: Path):
    import tarfile

    content = io.BytesIO()
    photo().save(content, "JPEG")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = len(content.getvalue())
        tar.addfile(info, io.BytesIO(content.getvalue()))
    member = Member(tmp_path / "a.tar", 512, len(content.getvalue())).path("a.jpg")
    assert difference(member) <= 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_image_that_is_cut_or_damaged_gets_the_same_verdict(tmp_path: Path, data: st.DataObject):
    content = io.BytesIO()
    photo(60, 50).save(content, "JPEG", progressive=data.draw(st.booleans()))
    whole = content.getvalue()
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytes([whole[place] ^ 0x55]) + whole[place + 1 :]
    damaged = whole[:place] + data.draw(st.sampled_from([b"", b"\xff\xd9", flipped]))
    path = tmp_path / "a.jpg"
    path.write_bytes(damaged)
    assert verdict(decode_fast, path) == verdict(EXACT.decode, path)


def test_what_is_missing_a_folder_or_a_bomb_is_refused_in_the_same_words(tmp_path: Path):
    Image.new("L", (9000, 9000)).save(tmp_path / "bomb.jpg")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("gone.jpg", "folder", "empty.jpg", "bomb.jpg", "a\0b"):
        said = verdict(decode_fast, tmp_path / name)
        assert said is not None
        assert said == verdict(EXACT.decode, tmp_path / name)


def test_a_jpeg_is_decoded_by_the_fast_path(tmp_path: Path):
    photo().save(tmp_path / "a.jpg")
    assert FAST is not EXACT
    assert _decode_jpeg((tmp_path / "a.jpg").read_bytes()).shape == (3, 70, 90)


def test_the_two_decoders_keep_their_images_apart():
    assert FAST.name != EXACT.name

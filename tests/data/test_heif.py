"""HEIC through pillow-heif where it is installed, AVIF through Pillow alone."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from clip_core.data.formats.detect import read_data
from clip_core.data.preprocess import load_image
from tests.pairs import check_pairs

HEADER = b"\0\0\0\x18ftypheic" + bytes(60)


def corners() -> Image.Image:
    """64 x 48; its upper left quarter is red."""
    pixels = np.full((48, 64, 3), (20, 60, 200), dtype=np.uint8)
    pixels[:24, :32] = (220, 30, 30)
    return Image.fromarray(pixels)


def is_red(image: Image.Image, place: tuple[int, int]) -> bool:
    red, _, blue = np.asarray(image)[place[1], place[0]].tolist()
    return red > 150 and blue < 100


def test_avif_is_read_without_another_library(tmp_path: Path):
    corners().save(tmp_path / "1.avif")
    assert is_red(load_image(tmp_path / "1.avif"), (8, 8))


def test_heic_is_read_upright_from_a_folder(tmp_path: Path):
    import pillow_heif

    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for name, options in (("1.HEIC", {}), ("2.heif", {"exif": exif.tobytes()})):
        pillow_heif.from_pillow(corners()).save(tmp_path / name, **options)
        (tmp_path / name).with_suffix(".txt").write_text("a red corner")
    (tmp_path / "3.heic").write_bytes(HEADER)
    (tmp_path / "3.txt").write_text("cut short")
    reading = read_data(tmp_path)
    report = check_pairs(reading.pairs)
    assert [pair.name for pair in report.good] == ["1.HEIC", "2.heif"]
    assert [bad.pair.name for bad in report.bad] == ["3.heic"]
    upright, turned = (load_image(pair.image) for pair in report.good)
    assert (upright.size, is_red(upright, (8, 8))) == ((64, 48), True)
    assert (turned.size, is_red(turned, (40, 8))) == ((48, 64), True)
    assert reading.not_read == {}


WITHOUT = """
import sys
sys.modules["pillow_heif"] = None  # as if it were not installed
from pathlib import Path
from clip_core.data.formats.detect import read_data
from clip_core.data.preprocess import load_image
from clip_core.errors import ClipError
folder = Path(sys.argv[1])
for read in (lambda: read_data(folder).not_read, lambda: load_image(folder / "0.HEIC")):
    try:
        print(read())
    except ClipError as error:
        print(error)
"""


def test_without_pillow_heif_heic_is_counted_and_the_way_out_named(tmp_path: Path):
    def outputs() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT, str(tmp_path)], check=True, capture_output=True, text=True
        )
        return done.stdout.splitlines()

    for number in range(3):
        (tmp_path / f"{number}.HEIC").write_bytes(HEADER)
        (tmp_path / f"{number}.txt").write_text("a cat")
    assert "holds 3 HEIC images, which need pillow-heif: pip install 'clip-tui[heic]'" in outputs()[0]
    corners().save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a corner")
    listed, opened = outputs()
    assert ast.literal_eval(listed) == {".heic": 3, "files of captions without an image": 3}
    assert "0.HEIC is HEIC, which needs pillow-heif" in opened

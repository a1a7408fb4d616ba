"""Data sets of a few images, written for a test, and what is read of them."""

from pathlib import Path
from typing import Any

from PIL import Image

from clip_core.data.formats.detect import Reading, read_data
from clip_core.data.formats.source import ReadOptions
from tests.pairs import check_pairs


def image(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (number * 40, 100, 200)).save(path)
    return path


def write(path: Path, content: str | bytes = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def pairs_of(reading: Reading) -> list[tuple[str, str]]:
    """(name, caption) of the usable pairs, after every image was decoded."""
    return [(pair.name, pair.caption) for pair in check_pairs(reading.pairs).good]


def read(path: Path, **options: Any) -> Reading:
    return read_data(path, ReadOptions(**options))


def problem(path: Path, **options: Any) -> str:
    """What is wrong with the only bad pair."""
    (bad,) = [pair for pair in read(path, **options).pairs if pair.problem]
    return f"{bad.place}: {bad.problem}"

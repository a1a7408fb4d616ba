from pathlib import Path

import pytest

from tests.data.sets import image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """set/ with images/0.png to images/4.png below it."""
    for number in range(5):
        image(tmp_path / "set" / "images" / f"{number}.png", number)
    return tmp_path / "set"

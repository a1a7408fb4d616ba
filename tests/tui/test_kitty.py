"""Kitty's graphics: what is sent is the image, the screen has its placeholders, and nothing stays behind."""

import re
import zlib
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_tui.images import CELL, Way, choose, fitted
from clip_tui.widgets.kitty import DIACRITICS, KEPT, PLACEHOLDER, Kitty


def _image(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    return path


async def test_what_is_sent_is_the_image_and_the_cells_are_its_placeholders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TMUX", raising=False)
    file, sent = _image(tmp_path / "a.png"), list[str]()
    kitty = Kitty(sent.append)
    key, strips = await kitty.strips(file, 20, 10)
    await kitty.strips(file, 20, 10)
    (stream,) = sent  # the second time it is known
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", stream)
    assert all(len(data) <= 4096 for _, data in chunks)
    assert [head[-3:] for head, _ in chunks] == ["m=1"] * (len(chunks) - 1) + ["m=0"]
    head = dict(part.split("=") for part in chunks[0][0].split(","))
    pixels = zlib.decompress(b64decode("".join(data for _, data in chunks)))
    image, across, down = fitted(file, 20, 10, CELL)
    assert (pixels, head["s"], head["v"]) == (image.tobytes(), str(image.width), str(image.height))
    assert (head["c"], head["r"], across, down) == ("20", "10", 20, 10)
    number = int(head["i"])
    for y, strip in enumerate(strips):
        for x, (text, style, _) in enumerate(strip):
            assert text == PLACEHOLDER + DIACRITICS[y] + DIACRITICS[x]
            assert style is not None
            assert style.color is not None
            red, green, blue = style.color.get_truecolor()
            assert red << 16 | green << 8 | blue == number
    kitty.close()
    assert sent[1:] == [f"\x1b_Ga=d,d=I,i={number},q=2\x1b\\"]
    assert not kitty.has(key)


async def test_old_images_are_deleted_and_tmux_gets_an_envelope(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMUX", "x")
    file, sent = _image(tmp_path / "a.png"), list[str]()
    kitty = Kitty(sent.append)
    keys = [(await kitty.strips(file, 1 + number, 1))[0] for number in range(KEPT + 1)]
    assert not kitty.has(keys[0])
    assert all(kitty.has(key) for key in keys[1:])
    assert sent[-1].startswith("\x1bPtmux;\x1b\x1b_Ga=d,d=I,i=")
    assert sent[-1].endswith("\x1b\x1b\\\x1b\\")


@pytest.mark.parametrize("name", ["ascii_only", "no_color"])
def test_without_colour_or_unicode_the_option_is_ignored_in_one_line(name: str) -> None:
    flags = {"ascii_only": False, "no_color": False, "true_colour": True, "web": False} | {name: True}
    way, reason = choose(Way.KITTY, **flags)
    assert way is Way.HALFBLOCKS
    assert reason.startswith("--images kitty is ignored: ")

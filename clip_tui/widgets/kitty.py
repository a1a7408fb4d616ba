"""Images by Kitty's graphics protocol: the terminal gets the pixels once, the screen has placeholders for them.

A placeholder is an ordinary cell (U+10EEEE) whose foreground colour is the number of the image and whose two combining
characters are its row and column, so that the compositor and tmux move it like text.
https://sw.kovidgoyal.net/kitty/graphics-protocol/#unicode-placeholders
"""

import asyncio
import os
import random
import zlib
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from clip_tui.images import cell_size, fitted, stamp
from clip_tui.output import Key
from clip_tui.theme import DRAWN_COLOURS

PLACEHOLDER = "\U0010eeee"
KEPT = 64  # images in the terminal
_CHUNK = 4096  # characters, the most that one sequence may have

# The combining characters of class 230 without a decomposition, in Unicode 6.0: the n-th one stands for n.
_RANGES = """
305 30D-30E 310 312 33D-33F 346 34A-34C 350-352 357 35B 363-36F 483-487 592-595 597-599 59C-5A1 5A8-5A9 5AB-5AC 5AF 5C4
610-617 657-65B 65D-65E 6D6-6DC 6DF-6E2 6E4 6E7-6E8 6EB-6EC 730 732-733 735-736 73A 73D 73F-741 743 745 747 749-74A
7EB-7F1 7F3 816-819 81B-823 825-827 829-82D 951 953-954 F82-F83 F86-F87 135D-135F 17DD 193A 1A17 1A75-1A7C 1B6B
1B6D-1B73 1CD0-1CD2 1CDA-1CDB 1CE0 1DC0-1DC1 1DC3-1DC9 1DCB-1DCC 1DD1-1DE6 1DFE 20D0-20D1 20D4-20D7 20DB-20DC 20E1 20E7
20E9 20F0 2CEF-2CF1 2DE0-2DFF A66F A67C-A67D A6F0-A6F1 A8E0-A8F1 AAB0 AAB2-AAB3 AAB7-AAB8 AABE-AABF AAC1 FE20-FE26
10A0F 10A38 1D185-1D189 1D1AA-1D1AD 1D242-1D244
"""


def _characters() -> Iterator[str]:
    for part in _RANGES.split():
        first, _, last = part.partition("-")
        yield from map(chr, range(int(first, 16), int(last or first, 16) + 1))


DIACRITICS = tuple(_characters())


class Kitty:
    """The images that the terminal has of this app, at most 64; `write` sends to the terminal."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._tmux = bool(os.environ.get("TMUX"))
        self._images: OrderedDict[Key, tuple[int, list[Strip]]] = OrderedDict()
        self._taken = {red << 16 | green << 8 | blue for red, green, blue in DRAWN_COLOURS}  # a theme replaces these

    async def strips(self, path: Path, columns: int, rows: int) -> tuple[Key, list[Strip]]:
        """The placeholders of an image as large as fits, which is sent first if the terminal does not have it.

        Raises:
            ImageError: if the image cannot be decoded.
        """
        columns, rows = min(columns, len(DIACRITICS)), min(rows, len(DIACRITICS))
        key = (str(path), stamp(path), columns, rows)
        if not self.has(key):
            number = self._new_number()
            sequence, across, down = await asyncio.to_thread(_encoded, path, columns, rows, number)
            if not self.has(key):  # another widget may have sent it meanwhile
                self._write("".join(map(self._wrapped, sequence)))
                self._images[key] = number, _placeholders(number, across, down)
                while len(self._images) > KEPT:
                    self._delete(self._images.popitem(last=False)[1][0])
        return key, self._images[key][1]

    def has(self, key: Key) -> bool:
        """Whether the terminal has the image; it is then the last to be dropped."""
        if key in self._images:
            self._images.move_to_end(key)
            return True
        return False

    def close(self) -> None:
        """Delete all images of this app in the terminal."""
        while self._images:
            self._delete(self._images.popitem()[1][0])

    def _new_number(self) -> int:
        while True:  # a random one: other programs in the terminal have images too
            number = random.randrange(1 << 16, 1 << 24)
            if number not in self._taken:
                self._taken.add(number)
                return number

    def _delete(self, number: int) -> None:
        self._taken.discard(number)
        self._write(self._wrapped(f"\x1b_Ga=d,d=I,i={number},q=2\x1b\\"))

    def _wrapped(self, sequence: str) -> str:
        """tmux hands a sequence to the terminal around it only in an envelope."""
        return "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\" if self._tmux else sequence


def _encoded(path: Path, columns: int, rows: int, number: int) -> tuple[list[str], int, int]:
    """The sequences that send an image, and its columns and rows."""
    image, across, down = fitted(path, columns, rows, cell_size())
    data = b64encode(zlib.compress(image.tobytes(), 1)).decode("ascii")
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    head = f"a=T,U=1,q=2,f=24,o=z,s={image.width},v={image.height},i={number},c={across},r={down},"
    sequences = []
    for index, chunk in enumerate(chunks):
        more = int(index < len(chunks) - 1)
        sequences.append(f"\x1b_G{head if index == 0 else 'q=2,'}m={more};{chunk}\x1b\\")
    return sequences, across, down


def _placeholders(number: int, across: int, down: int) -> list[Strip]:
    style = Style(color=Color.from_rgb(number >> 16, number >> 8 & 255, number & 255))
    columns = DIACRITICS[:across]
    return [
        Strip([Segment(PLACEHOLDER + row + column, style) for column in columns], across) for row in DIACRITICS[:down]
    ]

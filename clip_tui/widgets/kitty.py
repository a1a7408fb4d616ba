"""Images by Kitty's graphics protocol: the terminal gets the pixels once, the screen has placeholders for them.

A placeholder is an ordinary cell (U+10EEEE) whose foreground colour is the number of the image and whose two combining
characters are its row and column, so that tmux moves it like text.
https://sw.kovidgoyal.net/kitty/graphics-protocol/#unicode-placeholders
"""

import asyncio
import os
import random
import zlib
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable, Collection, Set
from pathlib import Path

from PIL import Image
from rich.color import Color
from rich.style import Style
from textual.strip import Strip

from clip_core.errors import ImageError
from clip_tui.images import cell_size, fitted, scaled
from clip_tui.pixels import DIACRITICS, PLACEHOLDER, Cell, Known, Numbers, Part, Placed

KEPT = 64  # images in the terminal
KEPT_BYTES = 128 << 20  # of their pixels in the terminal, 4 bytes each; kitty has 320 MB for all programs in a window
_CHUNK = 4096  # characters, the most that one sequence may have


class Kitty:
    """The images that the terminal has of this app; those that it was made to drop are sent again when they are shown.

    `write` sends to the terminal, `say` tells the user, `visible` has the numbers of the images on the screen.
    """

    fragile = False

    def __init__(
        self,
        write: Callable[[str], None],
        say: Callable[[str], None] = lambda _: None,
        visible: Callable[[], Set[int]] = frozenset,
    ) -> None:
        self._write, self._say, self._visible = write, say, visible
        self._tmux = bool(os.environ.get("TMUX"))
        self._numbers = Numbers()
        self._names: dict[int, int] = {}  # the numbers that the terminal knows images by
        self._styles: dict[int, Style] = {}
        self._there: OrderedDict[int, int] = OrderedDict()  # images in the terminal, and their bytes
        self._bytes = 0
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._lost: set[int] = set()

    async def strips(self, path: Path, columns: int, rows: int) -> list[Strip]:
        """The placeholders of an image as large as fits, which is sent first if the terminal does not have it.

        Raises:
            ImageError: if the image cannot be decoded.
        """
        key, number = self._numbers.find(path, columns, rows)
        if number is None:
            image, across, down = await asyncio.to_thread(fitted, path, *key[2:], cell_size())
            _, number = self._numbers.find(path, columns, rows)  # another widget may have asked for it meanwhile
            if number is None:
                number = self._numbers.add(key, Known(path, across, down))
                await self._send(number, image)
        return self._numbers.strips(number)

    def cell(self, part: Part) -> Cell:
        """Kitty's placeholder, whose colour is the number of the image."""
        number, row, column = part
        if number not in self._numbers or row >= len(DIACRITICS):
            return " ", None
        return PLACEHOLDER + DIACRITICS[row] + DIACRITICS[column], self._style(number)

    def drawn(self, placed: Collection[Placed]) -> str:
        """Nothing: the placeholders draw themselves. Images that the terminal dropped are sent again."""
        for number in {part.number for _, _, part in placed if part.number in self._numbers}:
            if number in self._there:
                self._there.move_to_end(number)
            elif number not in self._tasks and number not in self._lost:
                self._tasks[number] = asyncio.create_task(self._send_again(number))
        return ""

    def close(self) -> None:
        """Delete all images of this app in the terminal."""
        for task in self._tasks.values():
            task.cancel()
        while self._there:
            self._delete(next(iter(self._there)))

    async def _send_again(self, number: int) -> None:
        known = self._numbers[number]
        try:
            await self._send(number, await asyncio.to_thread(scaled, *known, cell_size()))
        except ImageError as error:
            self._lost.add(number)
            self._say(str(error))
        finally:
            del self._tasks[number]

    async def _send(self, number: int, image: Image.Image) -> None:
        known = self._numbers[number]
        sequences = await asyncio.to_thread(_encoded, image, self._name(number), known.across, known.down)
        self._write("".join(map(self._wrapped, sequences)))
        size = 4 * image.width * image.height
        self._there[number] = size
        self._bytes += size
        if len(self._there) > KEPT or self._bytes > KEPT_BYTES:
            visible = self._visible() | {number}
            for old in [old for old in self._there if old not in visible]:
                if len(self._there) > KEPT or self._bytes > KEPT_BYTES:
                    self._delete(old)

    def _name(self, number: int) -> int:
        while number not in self._names:  # a random one: other programs in the terminal have images too
            name = random.randrange(1 << 16, 1 << 24)
            if name not in self._names.values():
                self._names[number] = name
        return self._names[number]

    def _style(self, number: int) -> Style:
        if number not in self._styles:
            name = self._name(number)
            self._styles[number] = Style(color=Color.from_rgb(name >> 16, name >> 8 & 255, name & 255))
        return self._styles[number]

    def _delete(self, number: int) -> None:
        self._bytes -= self._there.pop(number)
        self._write(self._wrapped(f"\x1b_Ga=d,d=I,i={self._name(number)},q=2\x1b\\"))

    def _wrapped(self, sequence: str) -> str:
        """tmux hands a sequence to the terminal around it only in an envelope."""
        return "\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\" if self._tmux else sequence


def _encoded(image: Image.Image, name: int, across: int, down: int) -> list[str]:
    """The sequences that send an image for so many columns and rows."""
    data = b64encode(zlib.compress(image.tobytes(), 1)).decode("ascii")
    chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    head = f"a=T,U=1,q=2,f=24,o=z,s={image.width},v={image.height},i={name},c={across},r={down},"
    sequences = []
    for index, chunk in enumerate(chunks):
        more = int(index < len(chunks) - 1)
        sequences.append(f"\x1b_G{head if index == 0 else 'q=2,'}m={more};{chunk}\x1b\\")
    return sequences

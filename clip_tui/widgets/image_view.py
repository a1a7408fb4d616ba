"""An image in the terminal, decoded and scaled in a thread."""

import asyncio
from pathlib import Path

from rich.segment import Segment
from rich.style import Style
from textual import work
from textual.app import RenderResult
from textual.strip import Strip
from textual.widget import Widget

from clip_core.errors import ImageError
from clip_core.text import printable
from clip_tui.output import DiffingApp
from clip_tui.pixels import PixelImages


class ImageView(Widget):
    """The image of a path, as large as fits, centred at the top."""

    def __init__(self, path: Path | None = None, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.path = path
        self.problem = ""
        self._strips: list[Strip] = []
        self._centred: tuple[tuple[int, Style], list[Strip]] | None = None  # the strips in the middle of the widget

    def show(self, path: Path | None) -> None:
        """Show the image of another path, or none."""
        if path != self.path:
            self.path = path
            self._strips, self._centred = [], None
            self._load()

    def on_mount(self) -> None:
        self._load()

    def on_resize(self) -> None:
        self._load()

    def _load(self) -> None:
        if self.is_mounted:
            self._draw()

    @work(name="image", group="image", exclusive=True)
    async def _draw(self) -> None:
        from clip_tui.widgets.halfblocks import strips_of  # Pillow is not needed for the first frame

        path, size = self.path, self.content_size
        self.problem = ""
        if path is not None and size.width and size.height:
            plain = "-ascii" in self.app.classes or self.app.no_color
            try:
                if self._pixel_images is not None:
                    self._strips = await self._pixel_images.strips(path, size.width, size.height)
                else:
                    self._strips = await asyncio.to_thread(strips_of, path, size.width, size.height, plain=plain)
            except ImageError as error:
                self._strips, self.problem = [], printable(str(error))
        self._centred = None
        self.refresh()

    @property
    def _pixel_images(self) -> PixelImages | None:
        return self.app.pixel_images if isinstance(self.app, DiffingApp) else None

    def render(self) -> RenderResult:
        return ""

    def render_line(self, y: int) -> Strip:
        inner = y - self.gutter.top
        width, height = self.size.width, self.content_size.height
        if not 0 <= inner < height:
            return super().render_line(y)
        if self.problem:
            return self._problem_line(inner, width)
        style = self.rich_style
        if inner >= len(self._strips):
            return Strip.blank(width, style)
        if self._centred is None or self._centred[0] != (width, style):
            self._centred = (width, style), [_centred(strip, width, style) for strip in self._strips]
        return self._centred[1][inner]

    def _problem_line(self, y: int, width: int) -> Strip:
        step = max(1, width)
        lines = [self.problem[start : start + step] for start in range(0, len(self.problem), step)]
        text = lines[y] if y < len(lines) else ""
        return Strip([Segment(text, self.rich_style)]).adjust_cell_length(width, self.rich_style)


def _centred(strip: Strip, width: int, style: Style) -> Strip:
    left = (width - strip.cell_length) // 2
    right = width - left - strip.cell_length
    return Strip([Segment(" " * left, style), *strip.apply_style(style), Segment(" " * right, style)], width)

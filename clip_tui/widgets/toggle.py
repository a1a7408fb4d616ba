"""A switch that says `on` or `off`, so that it reads without colour too."""

from rich.text import Text
from textual.geometry import Size
from textual.widgets import Switch

from clip_tui.theme import GREEN


class Toggle(Switch):
    """Space or Enter turns it."""

    def render(self) -> Text:
        return Text("● on", GREEN) if self.value else Text("○ off", "dim")

    def get_content_width(self, container: Size, viewport: Size) -> int:
        return 5

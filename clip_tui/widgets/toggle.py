"""A switch with the word `on` or `off`, which is readable without colour."""

from rich.text import Text
from textual.geometry import Size
from textual.widgets import Switch

from clip_tui.theme import GREEN


class Toggle(Switch):
    """Space or Enter toggles it."""

    def render(self) -> Text:
        return Text("● on", GREEN) if self.value else Text("○ off", "dim")

    def get_content_width(self, container: Size, viewport: Size) -> int:
        return 5

"""The switch: readable without colour."""

from textual.app import App, ComposeResult

from clip_tui.widgets.toggle import Toggle


class ToggleApp(App[None]):
    def compose(self) -> ComposeResult:
        yield Toggle()


async def test_space_and_enter_toggle_it_and_its_word_says_so() -> None:
    app = ToggleApp()
    async with app.run_test() as pilot:
        toggle = app.query_one(Toggle)
        toggle.focus()
        words = [toggle.render().plain]
        for key in ("space", "enter"):
            await pilot.press(key)
            words.append(toggle.render().plain)
        assert words == ["○ off", "● on", "○ off"]

"""The grid of retrieved images."""

from textual.app import App, ComposeResult
from textual.widgets import Static

from clip_tui.widgets.results import SLOTS, Card, Found, Results


class ResultsApp(App[None]):
    CSS = "Card.-empty { display: none; }"

    def compose(self) -> ComposeResult:
        yield Results()


async def test_each_image_has_a_card_and_cards_without_one_are_hidden() -> None:
    app = ResultsApp()
    async with app.run_test(size=(80, 40)) as pilot:
        await pilot.pause()
        results = app.query_one(Results)
        results.show([Found(1, "a.png", 0.5, "a red circle", right=True), Found(2, "b.png", 0.25, "a [b]x[/b]")])
        await pilot.pause()
        cards = list(app.query(Card))
        assert len(cards) == SLOTS
        assert [card.display for card in cards] == [True, True] + [False] * (SLOTS - 2)
        texts = [str(card.query_one(".card-score", Static).render()) for card in cards[:2]]
        assert texts[0].startswith("▸1. 0.500 ✓")
        assert texts[1].startswith(" 2. 0.250  b.png")
        assert "[b]x[/b]" in str(cards[1].query_one(".card-caption", Static).render())

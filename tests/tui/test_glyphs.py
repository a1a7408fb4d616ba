"""What is drawn where a terminal has ASCII only."""

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from clip_tui.glyphs import to_ascii


@given(st.text())
def test_ascii_is_ascii_and_as_wide_as_before(text: str) -> None:
    plain = to_ascii(text)
    assert plain.isascii()
    printable_text = "".join(sign for sign in text if sign.isprintable())
    assert len(to_ascii(printable_text)) == sum(cell_len(sign) for sign in printable_text)

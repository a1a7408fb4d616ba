"""The theme: a colour for everything that is coloured by its name."""

from clip_core.run.records import State
from clip_tui.theme import STATE_STYLES


def test_every_state_of_a_run_has_a_colour() -> None:
    assert set(STATE_STYLES) == {state.value for state in State}

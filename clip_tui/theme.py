"""The default theme; the command palette offers all others of Textual."""

from textual.theme import Theme

BLUE, GREEN, RED, YELLOW = "#7dc4e4", "#a6da95", "#ed8796", "#eed49f"
DIM_BLUE, TRACK = "#5b7f99", "#2c3145"  # bars after the first one, and the empty part of a bar

# Series of a plot, in the order in which they are drawn.
SERIES = (BLUE, "#f5a97f", GREEN, "#c6a0f6", RED)

DARK = Theme(
    name="clip-dark",
    primary=BLUE,
    secondary="#c6a0f6",
    accent="#f5a97f",
    success=GREEN,
    warning=YELLOW,
    error=RED,
    foreground="#d5d9e8",
    background="#12141c",
    surface="#191c27",
    panel="#242838",
    dark=True,
    variables={
        "border": "#3a4058",
        "footer-background": "#191c27",
        "footer-key-foreground": BLUE,
        "footer-description-foreground": "#9aa2bd",
        "input-selection-background": "#7dc4e4 30%",
        "block-cursor-background": "#2f4a63",
        "block-cursor-foreground": "#ffffff",
        "block-cursor-text-style": "bold",
        "block-cursor-blurred-background": "#242838",
        "scrollbar": "#3a4058",
        "scrollbar-background": "#191c27",
    },
)

STATE_STYLES: dict[str, str] = {
    "starting": YELLOW,
    "running": GREEN,
    "paused": YELLOW,
    "finished": BLUE,
    "stopped": "#9aa2bd",
    "failed": RED,
    "stalled": "#f5a97f",
    "killed": RED,
}

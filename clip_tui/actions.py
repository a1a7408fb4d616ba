"""Every action, once: the key bindings, the footer, the command palette and the help page are made from this table."""

from collections.abc import Iterator
from dataclasses import dataclass

from textual.binding import Binding, BindingType

APP = "app"


@dataclass(frozen=True, slots=True)
class Action:
    """What a person can do, where, with which key.

    Attributes:
        scope: "app", or the name of the screen it belongs to.
        key: Textual's names of the keys, separated by commas.
        name: the action method, without `action_`, on the app or on the screen.
        label: one or two words for the footer and the tabs.
        help: one line for the palette and the help page.
        tab: shown in the line of tabs, which stands on every screen, and so not again in the footer.
    """

    scope: str
    key: str
    name: str
    label: str
    help: str
    tab: bool = False

    @property
    def keys(self) -> str:
        """The keys as a person reads them: `2 F2`."""
        return " ".join(_KEY_NAMES.get(key, _spelt(key)) for key in self.key.split(","))

    @property
    def page(self) -> str:
        """For a tab, the screen it leads to."""
        return self.name.partition("'")[2].rstrip("')")


def _tab(number: int, page: str, label: str, help_line: str) -> Action:
    return Action(APP, f"{number},f{number}", f"go('{page}')", label, help_line, tab=True)


ACTIONS: tuple[Action, ...] = (
    _tab(1, "runs", "Runs", "The runs below the directory, with what each is doing"),
    _tab(2, "live", "Live", "The open run as it trains: curves, numbers, probe, log"),
    _tab(3, "data", "Data", "The pairs of the open run"),
    _tab(4, "retrieve", "Retrieve", "From a text to images, from an image to texts"),
    _tab(5, "classify", "Classify", "Zero-shot classification with your own classes and templates"),
    _tab(6, "logs", "Logs", "Everything the trainer printed, and the system it runs on"),
    _tab(7, "export", "Export", "Write the ONNX bundle and see its parity table"),
    Action("runs", "enter,o", "open", "Open", "Attach to the selected run"),
    Action("runs", "n", "new", "New run", "Fill in a form and start training"),
    Action("new", "ctrl+s", "start", "Start", "Check the form and start the trainer"),
    Action("new", "escape", "cancel", "Back", "Back to the runs without starting anything"),
    Action("live", "p", "ask('pause')", "Pause", "Let the trainer pause after this step"),
    Action("live", "r", "resume", "Resume", "Go on: after a pause, or from the last checkpoint of a stopped run"),
    Action("live", "s", "stop", "Stop", "Let the trainer write a checkpoint and end"),
    Action("live", "c", "ask('checkpoint')", "Save", "Write a checkpoint now"),
    Action("live", "v", "ask('evaluate')", "Eval", "Evaluate now"),
    Action("live", "m", "more", "Curves", "Show the next curves"),
    Action("live", "l", "log_scale", "Log", "Draw the loss on a logarithmic axis, and back"),
    Action("live", "n", "probe", "Next", "The next image of the probe"),
    Action("data", "slash", "search", "Search", "Only the pairs whose caption has these words"),
    Action("data", "t", "part", "Train/val", "Change between the training pairs and the validation ones"),
    Action("retrieve", "slash", "query", "Query", "Type a text, or the path of an image"),
    Action("retrieve", "t", "turn", "Direction", "Text to images, or image to texts"),
    Action("retrieve", "x", "surprise", "Surprise", "Ask with a validation image or caption"),
    Action("classify", "slash", "classes", "Classes", "Type the classes, separated by commas"),
    Action("classify", "n", "next", "Next", "The next validation image"),
    Action("classify", "p", "previous", "Previous", "The validation image before"),
    Action("logs", "f", "follow", "Follow", "Follow the end of the log, or let it stand"),
    Action("export", "e", "export", "Export", "Convert both encoders to ONNX and prove that they say the same"),
    Action("retrieve", "b,ctrl+t", "app.backend", "Backend", "The same query with the other backend: torch or onnx"),
    Action("classify", "b,ctrl+t", "app.backend", "Backend", "The same query with the other backend: torch or onnx"),
    Action(APP, "question_mark", "help", "Help", "Every key, on one page"),
    Action(APP, "ctrl+p", "command_palette", "Palette", "Find an action by its name"),
    Action(APP, "q,ctrl+q", "quit", "Quit", "Leave; training goes on, and opening the run again attaches to it"),
)

TABS: tuple[Action, ...] = tuple(action for action in ACTIONS if action.tab)

_KEY_NAMES = {"slash": "/", "question_mark": "?", "escape": "esc"}


def _spelt(key: str) -> str:
    if key.startswith("ctrl+"):
        return "^" + key[-1]
    return key.upper() if key[0] == "f" and key[1:].isdigit() else key


def bindings(scope: str) -> list[BindingType]:
    """The key bindings of the app or of a screen."""
    return [
        Binding(
            action.key,
            action.name,
            action.label,
            show=not action.tab,
            key_display=action.keys.split()[0],
            tooltip=action.help,
            priority=action.key.startswith("ctrl+"),
        )
        for action in ACTIONS
        if action.scope == scope
    ]


def actions_of(*scopes: str) -> Iterator[Action]:
    """The actions of some scopes, in the order of the table."""
    return (action for action in ACTIONS if action.scope in scopes)

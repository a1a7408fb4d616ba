"""The table of actions, from which key bindings, footer, command palette and help page are made."""

from collections.abc import Iterator
from dataclasses import dataclass

from textual.binding import Binding, BindingType

APP = "app"


@dataclass(frozen=True, slots=True)
class Action:
    """A command, the screen that it belongs to, and its keys.

    Attributes:
        scope: "app", or the name of the screen it belongs to.
        key: Textual's names of the keys, separated by commas.
        name: the action method, without `action_`, on the app or on the screen.
        label: one or two words for the footer and the tabs.
        help: one line for the palette and the help page.
        tab: shown in the line of tabs instead of the footer.
        footer: shown in the footer; else only in the palette and on the help page.
    """

    scope: str
    key: str
    name: str
    label: str
    help: str
    tab: bool = False
    footer: bool = True

    @property
    def keys(self) -> str:
        """The keys as they are written on the screen: `2 F2`."""
        return " ".join(_KEY_NAMES.get(key, _key_text(key)) for key in self.key.split(","))

    @property
    def page(self) -> str:
        """Of a tab, the screen that it opens."""
        return self.name.partition("'")[2].rstrip("')")


def _tab(number: int, page: str, label: str, help_line: str) -> Action:
    return Action(APP, f"{number},f{number}", f"go('{page}')", label, help_line, tab=True)


def _more(scope: str, key: str, name: str, label: str, help_line: str) -> Action:
    """An action for which the footer of 80 columns has no room."""
    return Action(scope, key, name, label, help_line, footer=False)


ACTIONS: tuple[Action, ...] = (
    _tab(1, "runs", "Runs", "All runs below the directory, with their state and scores"),
    _tab(2, "live", "Live", "The open run: curves, numbers, probe, log"),
    _tab(3, "data", "Data", "Training and validation pairs of the open run, and what is wrong with them"),
    _tab(4, "retrieve", "Retrieve", "Text to image and image to text retrieval"),
    _tab(5, "classify", "Classify", "Zero-shot classification with your own classes and templates"),
    _tab(6, "logs", "Logs", "The trainer's log, the run's events and its system"),
    _tab(7, "export", "Export", "The ONNX bundle and its parity with PyTorch"),
    _more("runs", "enter", "open", "Open", "Open the selected run"),
    Action("runs", "n", "new", "New run", "Choose the settings of a new run and start it"),
    Action("runs", "slash", "filter", "Filter", "Show only runs whose name, state or note has these letters in order"),
    Action("runs", "o", "sort", "Sort", "Sort by the latest, the name, the best score or the state"),
    Action("runs", "space", "mark", "Mark", "Mark the selected run, to compare it"),
    Action("runs", "c", "compare", "Compare", "Compare the marked runs: scores and differences of their settings"),
    _more("runs", "p", "pin", "Pin", "Keep the selected run at the top, or no longer"),
    _more("runs", "e", "rename", "Rename", "Give the selected run another name in the list; its folder stays"),
    _more("runs", "a", "note", "Note", "Write a note about the selected run"),
    _more("runs", "k", "clone", "Clone", "Open the form with the settings of the selected run"),
    Action("runs", "d,delete", "delete", "Delete", "Delete the selected run, after a confirmation"),
    _more("runs", "u", "app.undo", "Undo", "Take back the last change of the list, also a deletion; as ^z"),
    Action("compare", "enter,l", "curves", "Curves", "Open the first run with the curves of the others"),
    Action("compare", "escape", "back", "Back", "Back to the runs"),
    Action("new", "ctrl+s", "start", "Start", "Check the settings and start training"),
    Action("new", "ctrl+f", "filter", "Find", "Type a part of a setting's name or description to show it"),
    Action("new", "ctrl+g", "all", "All", "Show every setting, or the first eight"),
    Action("new", "ctrl+r", "preview", "Preview", "Show which values would be chosen automatically for this data"),
    Action("new", "escape", "cancel", "Back", "Back to the runs; what was typed can be kept"),
    Action("live", "p", "ask('pause')", "Pause", "Pause training after the current step"),
    Action("live", "r", "resume", "Resume", "Resume a paused run, or a stopped one from its latest checkpoint"),
    Action("live", "s", "stop", "Stop", "Write a checkpoint and stop training"),
    Action("live", "c", "ask('checkpoint')", "Save", "Write a checkpoint now"),
    Action("live", "v", "ask('evaluate')", "Eval", "Evaluate now"),
    Action("live", "m", "more", "Charts", "Show the next charts"),
    Action("live", "n", "probe", "Next image", "Show the next image of the probe"),
    Action("live", "f", "flag", "Flag", "Flag the pair of the probe as bad in flags.json, or take it back"),
    Action("live", "u", "learning_rate", "Set lr", "Request another learning rate"),
    _more("live", "left_square_bracket", "scrub(-1)", "Earlier", "The probe of the evaluation before"),
    _more("live", "right_square_bracket", "scrub(1)", "Later", "The probe of the next evaluation"),
    _more("live", "enter", "open_pair", "Large", "The chosen image and caption, large"),
    _more("live", "left", "cursor(-1)", "Cursor left", "Move the cursor over all charts to the left"),
    _more("live", "right", "cursor(1)", "Cursor right", "Move the cursor over all charts to the right"),
    _more("live", "shift+left", "cursor(-10)", "Far left", "Move the cursor ten times as far"),
    _more("live", "shift+right", "cursor(10)", "Far right", "Move the cursor ten times as far"),
    _more(
        "live", "plus,equals_sign", "zoom(2.0)", "Zoom in", "Zoom all charts in around the cursor; also with the wheel"
    ),
    _more("live", "minus", "zoom(0.5)", "Zoom out", "Zoom all charts out"),
    _more(
        "live", "less_than_sign,comma", "pan(-0.25)", "Pan left", "Move all charts to earlier steps; also by dragging"
    ),
    _more("live", "greater_than_sign,full_stop", "pan(0.25)", "Pan right", "Move all charts to later steps"),
    _more("live", "0", "whole", "Whole run", "Show the whole run again, without the cursor"),
    _more("live", "w", "smooth", "Smoothing", "Every value, their EMA, or their mean and range"),
    _more("live", "x", "x_axis", "X axis", "Count steps, time or images"),
    _more("live", "l", "log_axis('y')", "Log y axis", "Logarithmic y axis of losses and gradient norm, or linear"),
    _more("live", "L", "log_axis('x')", "Log x axis", "Logarithmic x axis, or linear"),
    _more("live", "z", "large", "One chart", "One chart over the whole width, or all of them"),
    Action("data", "slash", "search", "Search", "Show only pairs whose caption has these words"),
    Action("data", "t", "part", "Train/val", "Switch between training and validation pairs"),
    Action("data", "v", "view", "Findings", "Switch between the pairs and what clip-data check found in them"),
    Action("data", "c", "check", "Check", "Start clip-data check on the run's data, or cancel it"),
    Action("data", "f", "flag", "Flag", "Flag the selected pair as bad in flags.json, or take its flag back"),
    _more("data", "F", "flag_kind", "Flag all", "Flag all pairs of the finding but the first of each group, or none"),
    _more("data", "u", "app.undo", "Undo", "Take back the last change of the flags; as ^z"),
    _more("data", "enter", "large", "Large", "The selected image and its caption, large"),
    _more("data", "right,right_square_bracket", "pair(1)", "Next pair", "The next pair of the group"),
    _more("data", "left,left_square_bracket", "pair(-1)", "Pair back", "The previous pair of the group"),
    Action("retrieve", "slash", "query", "Query", "Type a text, the path of an image, or several with weights"),
    Action("retrieve", "x", "random", "Random", "Query with a random caption or image of the gallery"),
    Action("retrieve", "t", "turn", "Captions", "Switch between searching images and searching captions"),
    Action("retrieve", "g", "gallery", "Gallery", "Search the validation or training set, a folder, a stored gallery"),
    Action("retrieve", "b,ctrl+t", "app.backend", "Backend", "The same query with the other backend, torch or onnx"),
    Action("retrieve", "c", "compare", "Compare", "A second model beside this one: backend, checkpoint or precision"),
    Action("retrieve", "v", "view", "Table", "Switch between images and a table of ranks and scores"),
    _more("retrieve", "pagedown,right_square_bracket", "page(1)", "Next page", "The next page of results"),
    _more("retrieve", "pageup,left_square_bracket", "page(-1)", "Page back", "The previous page of results"),
    _more("retrieve", "r", "right", "Right answer", "Go to the right answer, wherever it is"),
    _more("retrieve", "enter", "detail", "Large", "The selected result, large, with its captions"),
    _more("retrieve", "i", "like", "Like this", "Search with the selected image: image to image"),
    _more("retrieve", "w", "write", "Write", "Write the results as CSV or JSON"),
    _more("classify", "enter", "classify", "Classify", "Classify the image, or the whole gallery again"),
    Action("classify", "slash", "classes", "Classes", "Type the classes, separated by commas"),
    Action("classify", "n", "next", "Next image", "Classify the next image of the gallery"),
    _more("classify", "p", "previous", "Previous image", "Classify the previous image of the gallery"),
    Action("classify", "s", "set", "Whole gallery", "Classify one image, or every image of the gallery"),
    Action("classify", "o", "sort", "Sort", "Sort the classes by recall, precision or number of images"),
    Action("classify", "v", "view", "View", "Classes, confusion, images, where there is no room for all"),
    Action(
        "classify",
        "g",
        "gallery",
        "Gallery",
        "Classify the validation or training set, a folder, a stored gallery",
    ),
    _more("classify", "b,ctrl+t", "app.backend", "Backend", "The same query with the other backend, torch or onnx"),
    Action("classify", "c", "compare", "Compare", "A second model beside this one: backend, checkpoint or precision"),
    Action("logs", "slash", "find", "Find", "Find words in the log"),
    Action("logs", "n", "next_match", "Next match", "Go to the next line that has the words"),
    _more("logs", "p", "previous_match", "Previous match", "Go to the previous line that has the words"),
    Action("logs", "f", "follow", "Follow", "Follow the end of the log, or stop following it"),
    Action("logs", "e", "events", "Events", "Go to the list of events, and back to the log"),
    Action("export", "e", "export", "Export", "Export both encoders to ONNX and check their parity"),
    Action("export", "f", "precision", "Precisions", "Choose the precisions of the bundle"),
    Action("export", "b", "bench", "Bench", "Measure latency and throughput of the bundle"),
    Action(APP, "question_mark", "help", "Help", "All keys on one page"),
    Action(APP, "q,ctrl+q", "quit", "Quit", "Quit; training continues"),
    Action(APP, "ctrl+o", "jump", "Jump", "Letters on everything that can have the focus; a letter goes there"),
    Action(APP, "ctrl+p", "command_palette", "Palette", "Find an action by its name"),
    _more(
        APP, "ctrl+z", "undo", "Undo", "Take back the last change on this screen: typing, a query, a label, a deletion"
    ),
    _more(APP, "y", "copy", "Copy", "Copy what is selected, through the terminal (OSC 52)"),
)

TABS: tuple[Action, ...] = tuple(action for action in ACTIONS if action.tab)

_KEY_NAMES = {
    "slash": "/", "question_mark": "?", "escape": "esc", "pagedown": "pgdn", "pageup": "pgup", "delete": "del",
    "left_square_bracket": "[", "right_square_bracket": "]", "plus": "+", "equals_sign": "=", "minus": "-",
    "less_than_sign": "<", "comma": ",", "greater_than_sign": ">", "full_stop": ".", "left": "←", "right": "→",
    "shift+left": "⇧←", "shift+right": "⇧→",
}  # fmt: skip


def _key_text(key: str) -> str:
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
            show=action.footer and not action.tab,
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

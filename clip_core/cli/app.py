"""What every command shares: parsing, one-sentence errors, exit codes."""

import io
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from pydantic import ValidationError

from clip_core.cli.suggest import as_typed, explain_usage
from clip_core.config import explain
from clip_core.errors import ClipError, MissingExtraError
from clip_core.text import printable

_EXTRAS = {
    "torch": "train",
    "safetensors": "train",
    "simplejpeg": "train",
    "tqdm": "train",
    "psutil": "train",
    "matplotlib": "plot",
    "onnx": "export",
    "onnxscript": "export",
    "textual": "tui",
    "lancedb": "lancedb",
}


def run_app(app: App, argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a user's mistake becomes one sentence on stderr."""
    name, words = app.name[0], list(sys.argv[1:] if argv is None else argv)

    def say(sentence: str, code: int) -> int:
        print(f"{name}: {printable(as_typed(app, words, sentence))}", file=sys.stderr)
        return code

    print_any_text()
    app.suppress_keyboard_interrupt = False  # reported below
    try:
        result = app(words, exit_on_error=False, print_error=False, help_on_error=False, result_action="return_value")
        return result if isinstance(result, int) else 0
    except ClipError as error:
        return say(str(error), error.exit_code)
    except CycloptsError as error:
        return say(_usage(app, words, error), 2)
    except ValidationError as error:
        return say(str(explain(error)), 2)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return say(str(missing(error.name or "", extra)), MissingExtraError.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return say(f"{error.filename or 'writing'}: {error.strerror or error}.", 1)
    except KeyboardInterrupt as error:
        return say(f"interrupted: {error}." if str(error) else "interrupted.", 130)
    except RuntimeError as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        return say("interrupted.", 130)  # while a Condition took its lock back: "release unlocked lock"


def missing(module: str, extra: str) -> MissingExtraError:
    """The sentence that says which optional part to install."""
    return MissingExtraError(f'this needs {module.partition(".")[0]}; install it with: pip install "clip-tui[{extra}]"')


def print_any_text() -> None:
    """Print "?" for a character that the terminal's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _usage(app: App, argv: Sequence[str], error: CycloptsError) -> str:
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ValidationError):
        return str(explain(cause))
    return explain_usage(app, argv, error) or " ".join(str(error).split())

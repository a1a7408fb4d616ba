"""What every command shares: parsing, one-sentence errors, exit codes."""

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from pydantic import ValidationError

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
}


def run_app(app: App, argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; a user's mistake becomes one sentence on stderr."""
    name = app.name[0]
    app.suppress_keyboard_interrupt = False  # reported below
    try:
        result = app(argv, exit_on_error=False, print_error=False, help_on_error=False, result_action="return_value")
        return result if isinstance(result, int) else 0
    except ClipError as error:
        return _say(name, str(error), error.exit_code)
    except CycloptsError as error:
        return _say(name, _usage(error), 2)
    except ValidationError as error:
        return _say(name, str(explain(error)), 2)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _say(name, str(missing(error.name or "", extra)), MissingExtraError.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _say(name, f"{error.filename or 'writing'}: {error.strerror or error}.", 1)
    except KeyboardInterrupt as error:
        return _say(name, f"interrupted: {error}." if str(error) else "interrupted.", 130)


def missing(module: str, extra: str) -> MissingExtraError:
    """The sentence that says which optional part to install."""
    return MissingExtraError(f'this needs {module.partition(".")[0]}; install it with: pip install "clip-tui[{extra}]"')


def _usage(error: CycloptsError) -> str:
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ValidationError):
        return str(explain(cause))
    return " ".join(str(error).split())


def _say(name: str, sentence: str, code: int) -> int:
    print(f"{name}: {printable(sentence)}", file=sys.stderr)
    return code

"""clip-tui: the runs below a directory in the terminal, and the demo. Textual is imported when the app opens."""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from clip_core.cli.app import run_app
from clip_core.cli.suggest import closest_command
from clip_core.errors import UsageError

app = App(
    name="clip-tui",
    help="Train CLIP models, follow training, query and export them, in the terminal.",
    version_flags=["--version"],
)

PORT = 8000
RUNS = Path("runs")  # the default; it need not exist yet
AsciiFlag = Annotated[bool, Parameter(name="--ascii", negative="", help="draw with ASCII characters only")]


@app.default
def open_app(
    directory: Annotated[Path, Parameter(help="a directory of runs, or one run")] = RUNS,
    /,
    *,
    ascii_only: AsciiFlag = False,
    images: Annotated[
        Literal["halfblocks", "kitty", "sixel"] | None,
        Parameter(help="how images are drawn; kitty, sixel: as pixels, in a terminal that has it; it is kept"),
    ] = None,
    serve: Annotated[bool, Parameter(negative="", help="show the app in a browser on this machine; no login")] = False,
    port: Annotated[int, Parameter(help="of --serve")] = PORT,
) -> int:
    """Show the runs below a directory. Training goes on when the app is left."""
    from clip_core.run.paths import is_run

    if directory != RUNS and not directory.exists():
        meant = closest_command(app, str(directory))
        way_out = f"did you mean clip-tui {meant}?" if meant else "name a directory of runs, or one run."
        raise UsageError(f"{directory} does not exist; {way_out}")
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file; name a directory of runs, or one run.")

    if serve:
        if images is not None:
            raise UsageError("--images is of a terminal, and a browser gets half blocks; leave it or --serve out.")
        return _serve([str(directory), *(["--ascii"] if ascii_only else [])], port)
    if port != PORT:
        raise UsageError("--port is of --serve; add --serve, or leave it out.")
    if not (_in_terminal() or "TEXTUAL_DRIVER" in os.environ):  # a page of --serve has a driver of its own
        raise UsageError("input or error output is no terminal; run it in one, without < and 2>.")

    from clip_tui.app import ClipApp
    from clip_tui.images import Way
    from clip_tui.settings import Settings, settings_file

    open_run = directory if is_run(directory) else None
    settings = Settings.load(settings_file())
    if images is not None:
        settings.images = Way(images)
        if (problem := settings.save()) is not None:
            print(f"clip-tui: {problem}", file=sys.stderr)
    ClipApp(directory, ascii_only=ascii_only, open_run=open_run, settings=settings).run()
    return 0


def _in_terminal() -> bool:
    """Whether keys can be read, and whether what Textual draws, which it writes to stderr, can be seen."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _serve(arguments: list[str], port: int) -> int:
    if not 1 <= port <= 65535:
        raise UsageError(f"--port is {port}; it may be 1 to 65535.")
    if find_spec("textual_serve") is None:
        raise UsageError('--serve needs textual-serve: pip install "clip-tui[tui,serve]"')
    from clip_tui.serve import serve

    return serve(arguments, port)


@app.command
def demo(
    *flags: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="after --, flags for clip-train that replace the demo's")
    ],
    folder: Annotated[Path, Parameter(name="--dir", help="where the demo keeps its images and runs")] = Path("demo"),
    plain: Annotated[bool, Parameter(negative="", help="print lines instead of opening the app")] = False,
    ascii_only: AsciiFlag = False,
) -> int:
    """Draw shapes, train on them, export the model and use it, in about a minute."""
    from clip_tui.demo import run_demo

    watched = _in_terminal() and sys.stdout.isatty()
    return run_demo(folder, plain=plain or not watched, ascii_only=ascii_only, flags=flags)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_app(app, argv)


if __name__ == "__main__":
    sys.exit(main())

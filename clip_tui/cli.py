"""clip-tui: the runs below a directory in the terminal, and the demo. Textual is imported when the app opens."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from clip_core.cli.app import run_app

app = App(
    name="clip-tui",
    help="Train CLIP models, watch them learn, look at what they retrieve, export them: in the terminal.",
    version_flags=["--version"],
)

AsciiFlag = Annotated[bool, Parameter(name="--ascii", negative="", help="draw with ASCII characters alone")]


@app.default
def open_app(
    directory: Annotated[Path, Parameter(help="the directory that the runs lie in, or one run")] = Path("runs"),
    /,
    *,
    ascii_only: AsciiFlag = False,
) -> int:
    """Show the runs below a directory. Leaving the app stops nothing: training goes on."""
    from clip_core.run.paths import is_run
    from clip_tui.app import ClipApp

    alone = is_run(directory)
    ClipApp(directory, ascii_only=ascii_only, open_run=directory if alone else None).run()
    return 0


@app.command
def demo(
    *flags: Annotated[
        str, Parameter(allow_leading_hyphen=True, help="after --, flags for clip-train that replace the demo's")
    ],
    folder: Annotated[Path, Parameter(name="--dir", help="where the demo keeps its images and runs")] = Path("demo"),
    plain: Annotated[bool, Parameter(negative="", help="plain lines, also in a terminal")] = False,
    ascii_only: AsciiFlag = False,
) -> int:
    """Draw shapes, train on them, export the model and use it, in about a minute."""
    from clip_tui.demo import run_demo

    watched = sys.stdin.isatty() and sys.stdout.isatty()
    return run_demo(folder, plain=plain or not watched, ascii_only=ascii_only, flags=flags)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_app(app, argv)


if __name__ == "__main__":
    sys.exit(main())

"""clip-export: a run as an ONNX bundle that is proven to say the same."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

from cyclopts import App, Parameter

from clip_core import __version__
from clip_core.cli.app import run_app
from clip_core.text import printable

app = App(
    name="clip-export",
    version=__version__,
    help="Convert a run's best checkpoint to ONNX, with a proof that it says the same.",
)


@app.default
def export(
    run: Path,
    /,
    *,
    out: Path | None = None,
    images: Path | None = None,
    force: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Convert a run's best checkpoint to ONNX, with a proof that it says the same.

    Exits 5, leaving what was there as it was, when ONNX Runtime and PyTorch disagree.

    Parameters
    ----------
    run
        Run directory, or a checkpoint folder.
    out
        Folder of the bundle (default: RUN/bundle).
    images
        Folder of pictures for the proof (default: the run's held-out pictures).
    force
        Replace a bundle that was made from another run.
    """
    from export.bundle import export_bundle

    place, manifest = export_bundle(run, out, images=images, force=force, say=_say)
    size = sum(facts.size for facts in manifest.files.values()) / 2**20
    _say(f"{place}: {size:.1f} MB. Try:")
    _say(f'  python {place / "example.py"} PICTURE "one text" "another text"')
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    return run_app(app, argv)


_received: list[int] = []


def _stop(number: int, frame: FrameType | None) -> None:
    """Leave through the blocks that clean up, instead of at once."""
    _received.append(number)
    sys.exit(128 + number)


def _say(line: str) -> None:
    if _received:  # an exception raised while native code called back is lost
        sys.exit(128 + _received[0])
    print("\n".join(printable(part) for part in line.split("\n")), flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""clip-export: a model as an ONNX bundle, or for transformers or open_clip, proven to say the same."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

from cyclopts import App, Parameter

from clip_core import __version__
from clip_core.cli.app import run_app
from clip_core.errors import UsageError
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
    format: Literal["onnx", "hf", "open_clip"] = "onnx",
    out: Path | None = None,
    images: Path | None = None,
    force: Annotated[bool, Parameter(negative="")] = False,
    init_model: str | None = None,
) -> int:
    """Convert a run's best checkpoint to ONNX, with a proof that it says the same.

    Exits 5, leaving what was there as it was, when the export does not say the same as the model.

    Parameters
    ----------
    run
        Run directory, checkpoint folder, or published weights (a file, a folder, or org/name on the hub).
    format
        onnx: a bundle for ONNX Runtime. hf: a folder for transformers' CLIPModel. open_clip: one for open_clip.
    out
        Folder of the export (default: RUN/bundle, RUN/hf or RUN/open_clip).
    images
        Folder of images for the proof (default: the run's validation images).
    force
        Replace an export that was made from another run.
    init_model
        open_clip's name of the architecture, where published weights do not say it.
    """
    if format != "onnx":
        if images is not None:
            raise UsageError(f"--images is for the proof of an ONNX export; leave it out with --format {format}.")
        return _export_weights(run, out, format, force=force, init_model=init_model)
    from export.bundle import export_bundle

    place, manifest = export_bundle(run, out, images=images, force=force, model_name=init_model, say=_say)
    size = sum(facts.size for facts in manifest.files.values()) / 2**20
    _say(f"{place}: {size:.1f} MB. Try:")
    _say(f'  python {place / "example.py"} IMAGE "one text" "another text"')
    return 0


def _export_weights(
    run: Path, out: Path | None, to: Literal["hf", "open_clip"], *, force: bool, init_model: str | None
) -> int:
    from export.formats import export_weights

    place = export_weights(run, out, to=to, force=force, model_name=init_model, say=_say)
    size = sum(file.stat().st_size for file in place.iterdir()) / 2**20
    _say(f"{place}: {size:.1f} MB, the same as the model to the last bit. Read it with:")
    if to == "hf":
        _say(f'  CLIPModel.from_pretrained("{place}"), CLIPProcessor.from_pretrained("{place}")')
    else:
        _say(f'  open_clip.create_model_from_pretrained("local-dir:{place}")')
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

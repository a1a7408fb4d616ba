"""clip-export: a model as an ONNX bundle, or as published weights for transformers or open_clip."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from clip_core import __version__
from clip_core.cli.app import run_app
from clip_core.errors import UsageError
from clip_core.inference.bundle import find_bundle
from clip_core.inference.manifest import Precision
from clip_core.text import printable
from export.job import BUNDLE_FOLDER, ExportJob

Device = Annotated[str | None, Parameter(help="cpu, cuda, cuda:N, tensorrt, coreml or directml: of ONNX Runtime")]

app = App(
    name="clip-export",
    version=__version__,
    help="Convert a run's best checkpoint to ONNX and check its parity with PyTorch.",
)


@app.default
def export(
    run: Path,
    /,
    *,
    format: Literal["onnx", "hf", "open_clip", "immich"] = "onnx",
    out: Path | None = None,
    images: Path | None = None,
    precision: Annotated[list[Precision] | None, Parameter(consume_multiple=True, negative="")] = None,
    accept_loss: Annotated[bool, Parameter(negative="")] = False,
    force: Annotated[bool, Parameter(negative="")] = False,
    init_model: str | None = None,
    push: str | None = None,
    combined: Annotated[bool, Parameter(negative="")] = False,
    with_preprocessing: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Convert a run's best checkpoint to ONNX and check its parity with PyTorch.

    Exits with 5 if the parity is rejected (the previous export is kept), and with 3 while another process exports the
    same run.

    Parameters
    ----------
    run
        Run directory, checkpoint folder, or published weights (a file, a folder, or org/name on the hub).
    format
        onnx: a bundle for ONNX Runtime. hf: a folder for transformers. open_clip: one for open_clip. immich: one for
        immich's machine learning.
    out
        Folder of the export (default: RUN/bundle, RUN/hf, RUN/open_clip or RUN/immich).
    images
        Folder of images to measure parity on, and to calibrate int8 (default: the run's validation images).
    precision
        Variants of an ONNX bundle: --precision fp32 fp16 int8 (default: fp32). Whoever names none of them reads fp32
        where it is one of them, else fp16.
    accept_loss
        Keep a variant that loses more than one point of recall@1.
    force
        Replace an export that was made from another run.
    init_model
        open_clip's name of the architecture where published weights do not say it, or gelu or quickgelu.
    combined
        Also write onnx/model.onnx: both encoders and their logits in one file, with its own copy of the weights.
    with_preprocessing
        Also write onnx/vision_model_with_preprocessing.onnx: a raw uint8 image of any size to its embedding.
    push
        ORG/NAME on the Hugging Face hub: upload the export there, README.md as its model card.
    """
    if precision == []:
        raise UsageError("--precision is given without a value; name at least one: --precision fp32 int8")
    if push is not None:
        from export.push import check_push

        check_push(push)
    for flag, given in (
        ("--combined", combined),
        ("--with-preprocessing", with_preprocessing),
        ("--precision", precision is not None),
        ("--accept-loss", accept_loss),
    ):
        if format != "onnx" and given:
            raise UsageError(f"{flag} is for an ONNX bundle; leave it out with --format {format}.")
    if format in ("hf", "open_clip") and images is not None:
        raise UsageError(f"--images is for the parity of an ONNX export; leave it out with --format {format}.")
    with ExportJob(run, out, BUNDLE_FOLDER if format == "onnx" else format, _say) as job:
        if format == "onnx":
            more = {"combined": combined, "with_preprocessing": with_preprocessing}
            precisions = precision or ["fp32"]
            _write_bundle(
                job, images, precisions, accept_loss=accept_loss, force=force, init_model=init_model, more=more
            )
        elif format == "immich":
            _write_immich(job, images, force=force, init_model=init_model)
        else:
            _write_weights(job, format, force=force, init_model=init_model)
        if push is not None:
            from export.push import push as upload

            job.now(f"uploading to {push}")
            job.say(f"uploaded to {upload(job.out, push)}")
    return 0


@app.command
def verify(bundle: Path, /, *, device: Device = None, against: Path | None = None) -> int:
    """Check the files of a bundle, and that its variants compute here what they did where they were exported.

    Exits with 5 if they do not. Where PyTorch is installed and the checkpoint is there, parity with it is measured too.

    Parameters
    ----------
    bundle
        Folder of the bundle, or the run that it is in.
    against
        The run, checkpoint or published weights that it was exported from (default: the run that it is in).
    """
    from export.check import verify as check
    from export.check import verify_against

    bundle = find_bundle(bundle)
    manifest = check(bundle, device or "cpu", _say)
    verify_against(bundle, manifest, against, _say)
    return 0


@app.command
def bench(
    bundle: Path, /, *, device: Device = None, rounds: Annotated[int, Parameter(validator=Number(gte=1))] = 10
) -> int:
    """Measure latency and throughput of each variant of a bundle, on each provider, beside PyTorch.

    Parameters
    ----------
    bundle
        Folder of the bundle, or the run that it is in.
    rounds
        Runs of each way and batch size.
    """
    from export.bench import bench as measure

    measure(find_bundle(bundle), device, rounds, _say)
    return 0


def _write_bundle(
    job: ExportJob,
    images: Path | None,
    precisions: Sequence[Precision],
    *,
    accept_loss: bool,
    force: bool,
    init_model: str | None,
    more: dict[str, bool],
) -> None:
    from export.bundle import write_bundle
    from export.more_graphs import MoreGraphs

    manifest = write_bundle(
        job,
        images=images,
        precisions=precisions,
        accept_loss=accept_loss,
        force=force,
        model_name=init_model,
        more=MoreGraphs(**more),
    )
    size = sum(facts.size for facts in manifest.files.values()) / 2**20
    job.say(f"{job.out}: {size:.1f} MB. Try:")
    job.say(f'  python {job.out / "example.py"} IMAGE "a caption" "another caption"')


def _write_immich(job: ExportJob, images: Path | None, *, force: bool, init_model: str | None) -> None:
    from export.immich import write_immich

    write_immich(job, images=images, force=force, model_name=init_model)
    job.say(f"{job.out}: {job.out / 'README.md'} says where immich looks for it.")


def _write_weights(job: ExportJob, to: Literal["hf", "open_clip"], *, force: bool, init_model: str | None) -> None:
    from export.formats import write_weights

    write_weights(job, to=to, force=force, model_name=init_model)
    size = sum(file.stat().st_size for file in job.out.iterdir()) / 2**20
    job.say(f"{job.out}: {size:.1f} MB, equal to the model bit for bit. Load it with:")
    if to == "hf":
        job.say(f'  transformers.AutoModel.from_pretrained("{job.out}"), AutoProcessor.from_pretrained("{job.out}")')
    else:
        job.say(f'  open_clip.create_model_from_pretrained("local-dir:{job.out}")')


def main(argv: Sequence[str] | None = None) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        return run_app(app, argv)
    except SystemExit:
        if _received:
            print("clip-export: interrupted.", file=sys.stderr)
        raise


_received: list[int] = []


def _stop(number: int, frame: FrameType | None) -> None:
    """End through the blocks that clean up."""
    _received.append(number)
    sys.exit(128 + number)


def _say(text: str) -> None:
    if _received:  # an exception raised while native code called back is lost
        sys.exit(128 + _received[0])
    print("\n".join(printable(line) for line in text.split("\n")), flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""clip-data: look at image-text pairs before training on them, rewrite them, and draw synthetic ones."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from clip_core.cli.app import run_app
from clip_core.config import DataConfig, DataFormat, is_streamed
from clip_core.errors import UsageError
from clip_core.text import normalise_caption, plural, printable

if TYPE_CHECKING:
    from clip_core.data.formats.detect import Reading

app = App(name="clip-data", help="Check image-text pairs in any format, convert them, or draw synthetic ones.")

Data = Annotated[Path, Parameter(help="A list, a folder of images, or tar shards; see docs/formats.md.")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object instead of text.")]


@Parameter(name="*")
@dataclass(frozen=True)
class ReadFlags:
    """What the user states about a data set; the rest is detected."""

    image_root: Annotated[
        Path | None, Parameter(help="Folder the image paths start from (default: beside the list).")
    ] = None
    form: Annotated[DataFormat | None, Parameter(name="--format", help="Format of the pairs (default: detected).")] = (
        None
    )
    image_column: Annotated[str | None, Parameter(help="Column or key of the images (default: detected).")] = None
    caption_column: Annotated[str | None, Parameter(help="Column or key of the captions (default: detected).")] = None
    class_template: Annotated[str, Parameter(help="Caption of a folder's images; {} is its name.")] = (
        DataConfig.model_fields["class_template"].default
    )

    def read(self, file: Path) -> "Reading":
        from clip_core.data.formats.detect import read_data
        from clip_core.data.formats.source import ReadOptions
        from clip_core.data.progress import DecodeProgress

        options = ReadOptions(self.image_root, self.form, self.image_column, self.caption_column, self.class_template)
        with DecodeProgress(lambda line: print(line, file=sys.stderr), "read", unit="B") as progress:
            return read_data(file, options, progress)


_NO_FLAGS = ReadFlags()


@Parameter(name="*")
@dataclass(frozen=True)
class StreamFlags:
    """How a stream of shards is read."""

    stream: Annotated[
        bool, Parameter(negative="", help="Read WebDataset shards once, without an index; URLs always are.")
    ] = False
    shards: Annotated[
        int | None, Parameter(help="Stream: as many shards, spread evenly (default: all).", validator=Number(gte=1))
    ] = None
    pairs: Annotated[
        int | None,
        Parameter(help="Stream: as many pairs, equally from the front of each shard.", validator=Number(gte=1)),
    ] = None
    readers: Annotated[
        int | None,
        Parameter(help="Stream: shards read at the same time (default: 4).", validator=Number(gte=1, lte=256)),
    ] = None

    def refuse(self, streamed: bool, flags: ReadFlags) -> None:
        """Refuse flags of indexed data for a stream, and of a stream for indexed data."""
        alone = {"--shards": self.shards, "--pairs": self.pairs, "--readers": self.readers}
        listed = {
            "--image-root": flags.image_root, "--image-column": flags.image_column,
            "--caption-column": flags.caption_column,
        }  # fmt: skip
        given = [name for name, value in (listed if streamed else alone).items() if value is not None]
        if given and streamed:
            raise UsageError(f"{given[0]} is of indexed data, and these are streamed; leave it out.")
        if given:
            raise UsageError(f"{given[0]} is of streamed shards; add --stream, or leave it out.")
        if streamed and flags.form not in (None, "webdataset"):
            raise UsageError("--format should be webdataset, as only shards can be streamed.")


_NO_STREAM_FLAGS = StreamFlags()


@app.command
def check(
    file: Data,
    *,
    flags: ReadFlags = _NO_FLAGS,
    stream: StreamFlags = _NO_STREAM_FLAGS,
    val_file: Annotated[Path | None, Parameter(help="Validation pairs, to find images and captions in both.")] = None,
    leave_out: Annotated[Path | None, Parameter(help="Pairs that are not looked at: a flags.json.")] = None,
    batch_size: Annotated[
        int, Parameter(help="Of the matching pairs that are counted.", validator=Number(gte=2))
    ] = 256,
    context_length: Annotated[
        int | None, Parameter(help="Tokens that captions are truncated to (default: 77).", validator=Number(gte=3))
    ] = None,
    workers: Annotated[int | None, Parameter(help="Decoding threads (default: the cores).")] = None,
    model: Annotated[
        Path | None,
        Parameter(
            help="Look for mislabelled pairs with a run, checkpoint, published weights or bundle (default: none)."
        ),
    ] = None,
    html: Annotated[Path | None, Parameter(help="Write a page with contact sheets.")] = None,
    write_flags: Annotated[
        Path | None, Parameter(name="--flags", help="Write the pairs to leave out, for clip-train --leave-out.")
    ] = None,
    json_file: Annotated[Path | None, Parameter(help="Write the report as JSON.")] = None,
    findings: Annotated[
        Path | None, Parameter(help="Write every pair with a finding, for the Data screen of clip-tui.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Decode every image of a data set once, and report what training would use and what is wrong with it.

    Exits 1 if training would refuse it: too many of its pairs are unusable, or a shard of a stream is damaged. So it
    does where mislabelled pairs could not be looked for.
    """
    from clip_core.cli.check import open_model, read_streamed, run_check
    from clip_core.data.check_stream import StreamOptions
    from clip_core.data.dataset import without_flagged

    streamed = is_streamed(file, stream.stream)
    stream.refuse(streamed, flags)
    asked = {"json": json_file, "findings": findings, "html": html, "flags": write_flags}
    files = {name: path for name, path in asked.items() if path}
    for path in files.values():
        if not path.absolute().parent.is_dir():
            raise UsageError(f"{path} cannot be written: there is no folder {path.absolute().parent}; create it.")
    parts = [(file, streamed)]
    if val_file is not None:
        parts.append((val_file, is_streamed(val_file, False)))
    streams = any(is_stream for _, is_stream in parts)
    opened = open_model(model) if model is not None and streams else None  # it embeds while a stream is read
    options = StreamOptions(stream.shards, stream.pairs, stream.readers, workers)
    readings: list[Reading] = []
    for path, is_stream in parts:
        if is_stream:
            first = not readings
            how = options if first else replace(options, shards=None, pairs=None)
            readings.append(read_streamed(path, "train" if first else "val", how, leave_out, opened))
            continue
        reading = flags.read(path)
        if leave_out is not None:
            reading = without_flagged(reading, leave_out, lambda line: print(line, file=sys.stderr))
        readings.append(reading)
    if model is not None and opened is None:
        opened = open_model(model)
    return run_check(
        readings[0],
        readings[1] if len(readings) > 1 else None,
        batch_size=batch_size,
        context_length=context_length,
        workers=workers,
        as_json=as_json,
        files=files,
        model=opened,
    )


@app.command
def info(
    file: Data,
    *,
    flags: ReadFlags = _NO_FLAGS,
    as_json: AsJson = False,
) -> None:
    """Report the detected format and why, the counts, and three example pairs; no image is decoded."""
    from clip_core.data.describe import reading_facts, reading_text, row

    reading = flags.read(file)
    usable = [pair for pair in reading.pairs if pair.problem is None]
    bad = [pair for pair in reading.pairs if pair.problem is not None]
    facts = reading_facts(reading) | {
        "pairs": len(reading.pairs),
        "images": len({pair.path for pair in usable}),
        "captions": len({normalise_caption(pair.caption) for pair in usable}),
        "unusable": len(bad),
        "first_unusable": f"{bad[0].place}: {bad[0].problem}" if bad else None,
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    counts = (
        f"{facts['pairs']:,} of {plural(facts['images'], 'image')}, {plural(facts['captions'], 'distinct caption')}"
    )
    lines = [printable(str(reading.path)), *reading_text(facts), row("pairs", counts)]
    lines.append(row("unusable", f"{plural(len(bad), 'pair')}, before any image is decoded"))
    lines += [f"  {printable(facts['first_unusable'])}"] if bad else []
    print("\n".join(lines))


@app.command
def convert(
    file: Data,
    out: Annotated[Path, Parameter(help="Pair list (.json), or folder of shards, to write.")],
    *,
    to: Annotated[
        Literal["json", "webdataset"] | None,
        Parameter(help="What to write (default: json for a .json, webdataset for a name without a suffix)."),
    ] = None,
    copy_images: Annotated[
        bool, Parameter(negative="", help="json: copy the images into a folder beside the list.")
    ] = False,
    shard_size: Annotated[
        str | None, Parameter(help="webdataset: bytes of a shard at most, as 500MB or 1GiB (default: 500MB).")
    ] = None,
    seed: Annotated[
        int | None, Parameter(help="webdataset: of the order of the pairs (default: 0).", validator=Number(gte=0))
    ] = None,
    keep_order: Annotated[
        bool, Parameter(name="--no-shuffle", negative="", help="webdataset: keep the order of the data set.")
    ] = False,
    leave_out: Annotated[Path | None, Parameter(help="Pairs that are not written: a flags.json.")] = None,
    flags: ReadFlags = _NO_FLAGS,
) -> None:
    """Write any data set as a plain pair list, JSON [{image, caption}], or as WebDataset shards."""
    from clip_core.data.convert import convert as write_list
    from clip_core.data.convert_shards import write_shards
    from clip_core.data.dataset import without_flagged
    from clip_core.data.progress import DecodeProgress
    from clip_core.data.shard_writer import SHARD_BYTES, parse_size

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    by_suffix: dict[str, Literal["json", "webdataset"]] = {".json": "json", "": "webdataset"}
    to = to or by_suffix.get(out.suffix.lower())
    if to is None:
        raise UsageError(f"{out} is neither a .json nor a folder by its name; say --to json or --to webdataset.")
    given = {"--shard-size": shard_size is not None, "--seed": seed is not None, "--no-shuffle": keep_order}
    wrong = [name for name, is_given in given.items() if is_given] if to == "json" else ["--copy-images"][:copy_images]
    if wrong:
        raise UsageError(f"{wrong[0]} is not for --to {to}; leave it out.")
    if keep_order and seed is not None:
        raise UsageError("--seed is of the order that --no-shuffle keeps; leave one of them out.")
    shard_bytes = SHARD_BYTES if shard_size is None else parse_size(shard_size)
    reading = flags.read(file)
    if leave_out is not None:
        reading = without_flagged(reading, leave_out, say)
    if to == "json":
        print(printable(write_list(reading, out, copy_images=copy_images).sentence()))
        return
    with DecodeProgress(say, "wrote") as progress:
        order = None if keep_order else seed or 0
        written = write_shards(reading, out, shard_bytes=shard_bytes, seed=order, progress=progress)
    print("\n".join(printable(line) for line in written.lines()))


@app.command
def synthetic(
    out: Path,
    *,
    count: Annotated[int, Parameter(validator=Number(gte=18, lte=1_000_000))] = 1800,
    seed: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    size: Annotated[int, Parameter(validator=Number(gte=16, lte=1024))] = 64,
    holdout_combinations: Annotated[int, Parameter(validator=Number(gte=0, lte=12))] = 0,
) -> None:
    """Draw coloured shapes, write them as images and a pair list.

    Parameters
    ----------
    out
        Pair list to write (.json), or the folder for dataset.json; the images go below images/ beside it.
    count
        How many shapes to draw.
    seed
        The same seed draws the same images.
    size
        Side of an image, pixels.
    holdout_combinations
        Colour-shape combinations left out, and listed in a second file ending in _unseen.
    """
    from clip_core.data.synthetic import create_synthetic

    data_file = out if out.suffix == ".json" else out / "dataset.json"
    drawn = create_synthetic(data_file, count=count, seed=seed, size=size, holdout_combinations=holdout_combinations)
    print(printable(drawn.sentence()))


def main(argv: Sequence[str] | None = None) -> int:
    return run_app(app, argv)


if __name__ == "__main__":
    sys.exit(main())

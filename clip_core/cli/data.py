"""clip-data: look at image-text pairs before training on them, rewrite them, and draw synthetic ones."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from clip_core.cli.app import run_app
from clip_core.config import DataConfig, DataFormat
from clip_core.text import normalise_caption, plural, printable

if TYPE_CHECKING:
    from clip_core.data.formats.detect import Reading
    from clip_core.data.pairs import Report
    from clip_core.data.tokenizer import Tokenizer

_SHOWN = 20  # unusable pairs named on the screen; --json has them all

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


@dataclass(frozen=True)
class TokenizerFit:
    """How well a tokenizer trained on the captions would hold them."""

    kind: str
    vocab_size: int
    context_length: int
    truncated: int


@dataclass(frozen=True)
class Findings:
    """What `clip-data check` reports about a pair list."""

    usable_pairs: int
    images: int
    repeated_images: int  # whose file has the same content as that of an earlier one
    image_sizes: dict[str, tuple[int, int]]  # smallest, median and largest by area: width, height in pixels
    captions: int  # distinct, normalised
    repeated_captions: int  # usable pairs whose caption an earlier pair has too
    longest_caption: int  # characters
    tokenizers: list[TokenizerFit]
    bad_pairs: list[dict[str, Any]]
    bad_share: float


@app.command
def check(
    file: Data,
    *,
    flags: ReadFlags = _NO_FLAGS,
    workers: Annotated[int | None, Parameter(help="Decoding threads (default: the cores).")] = None,
    as_json: AsJson = False,
) -> int:
    """Decode every image of a data set and report what training would use.

    Exits 1 if training would refuse it because too many of its pairs are unusable.
    """
    from clip_core.data.describe import reading_facts, reading_text
    from clip_core.data.pairs import check_pairs
    from clip_core.data.progress import DecodeProgress

    reading = flags.read(file)
    sizes: dict[Path, tuple[int, int]] = {}
    with DecodeProgress(lambda line: print(line, file=sys.stderr), "checked") as progress:
        report = check_pairs(reading.pairs, workers=workers, sizes=sizes, progress=progress)
    findings, facts = _findings(report, sizes), reading_facts(reading)
    if as_json:
        print(json.dumps(facts | asdict(findings), indent=2))
    else:
        print(f"{printable(str(reading.path))}: {report.sentence()}")
        print("\n".join([*reading_text(facts), *_text(findings)]))
    return int(findings.bad_share > DataConfig().max_bad_share)


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
    out: Annotated[Path, Parameter(help="Pair list to write (.json).")],
    *,
    copy_images: Annotated[bool, Parameter(negative="", help="Copy the images into a folder beside it.")] = False,
    flags: ReadFlags = _NO_FLAGS,
) -> None:
    """Write any data set as a plain pair list: JSON [{image, caption}]."""
    from clip_core.data.convert import convert as write

    reading = flags.read(file)
    print(printable(write(reading, out, copy_images=copy_images).sentence()))


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


def _findings(report: "Report", sizes: dict[Path, tuple[int, int]]) -> Findings:
    from clip_core.data.image_files import count_repeated
    from clip_core.data.pairs import distinct_images

    captions = [pair.caption for pair in report.good]
    distinct = {normalise_caption(text) for text in captions}
    by_area = sorted((sizes[path] for path in {pair.image for pair in report.good}), key=math.prod)
    places = {"smallest": 0, "median": len(by_area) // 2, "largest": -1}
    return Findings(
        usable_pairs=len(captions),
        images=len(by_area),
        repeated_images=count_repeated(distinct_images(report.good)),
        image_sizes={name: by_area[place] for name, place in places.items()} if by_area else {},
        captions=len(distinct),
        repeated_captions=len(captions) - len(distinct),
        longest_caption=max(map(len, captions), default=0),
        tokenizers=_tokenizer_fits(captions) if captions else [],
        bad_pairs=[{"entry": bad.pair.entry, "place": bad.pair.place, "reason": bad.reason} for bad in report.bad],
        bad_share=report.bad_share,
    )


def _tokenizer_fits(captions: list[str]) -> list[TokenizerFit]:
    from clip_core.data.tokenizer import train_bpe, train_characters

    defaults = DataConfig()

    def fit(tokenizer: "Tokenizer") -> TokenizerFit:
        truncated = tokenizer.count_truncated(captions)
        return TokenizerFit(tokenizer.kind, tokenizer.vocab_size, tokenizer.context_length, truncated)

    return [
        fit(train_characters(captions, defaults.context_length)),
        fit(train_bpe(captions, defaults.vocab_size, defaults.context_length)),
    ]


def _text(findings: Findings) -> list[str]:
    """The findings as lines for a person."""
    sizes = [f"{name} {width} x {height}" for name, (width, height) in findings.image_sizes.items()]
    repeated = f"; {findings.repeated_images:,} with the content of an earlier one" * bool(findings.repeated_images)
    alike = ": all are the same, so there is nothing to learn" * (findings.captions == 1 < findings.usable_pairs)
    lines = [
        f"images      {findings.images:,}; {', '.join(sizes)} pixels{repeated}" if sizes else "images      none",
        f"captions    {findings.captions:,} distinct, {findings.repeated_captions:,} repeated{alike}",
        f"longest     {findings.longest_caption:,} characters",
    ]
    lines += [
        f"{fit.kind:<11} {fit.vocab_size:,} tokens; {fit.truncated:,} captions "
        f"({fit.truncated / findings.usable_pairs:.1%}) are truncated at {fit.context_length}"
        for fit in findings.tokenizers
    ]
    lines.append(f"unusable    {plural(len(findings.bad_pairs), 'pair')} ({findings.bad_share:.1%})")
    lines += [f"  {printable(bad['place'])}: {printable(bad['reason'])}" for bad in findings.bad_pairs[:_SHOWN]]
    if len(findings.bad_pairs) > _SHOWN:
        lines.append(f"  and {len(findings.bad_pairs) - _SHOWN:,} more; --json names them all")
    return lines


if __name__ == "__main__":
    sys.exit(main())

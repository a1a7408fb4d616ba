"""clip-data check: what it prints and writes."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clip_core.config import DataConfig, spelt
from clip_core.text import plural, printable

if TYPE_CHECKING:
    from clip_core.data.check import Check, Example, Finding
    from clip_core.data.check_images import Measured
    from clip_core.data.check_stream import StreamOptions, StreamReading
    from clip_core.data.embedding_file import EmbeddingModel
    from clip_core.data.findings import Findings
    from clip_core.data.formats.detect import Reading
    from clip_core.data.mislabels import Mislabels
    from clip_core.data.progress import Progress
    from clip_core.inference.encoder import Encoder

_SHOWN = 20  # unusable pairs named on the screen; --json has them all
_EXAMPLES = 3
EVERY = 2.0  # seconds between lines of progress, where no terminal shows a bar
_CAPTION = 60  # characters
_SCRIPTS = 6


class Model(NamedTuple):
    """A model that looks for mislabelled pairs; `embedding` is its part in reading a stream."""

    path: Path
    encoder: "Encoder"
    embedding: "EmbeddingModel"


def open_model(path: Path) -> Model:
    """Any model that clip-infer loads; said on standard error, as it may take a while."""
    from clip_core.data.embedding_file import EmbeddingFile, EmbeddingModel, ImageEmbedder
    from clip_core.inference.clip import open_encoder

    encoder = open_encoder(path)
    print(encoder.about.summary, file=sys.stderr)
    embedder = ImageEmbedder(encoder.about.preprocessing, encoder.encode_pixels)
    return Model(path, encoder, EmbeddingModel(embedder, EmbeddingFile()))


def read_streamed(
    path: Path, split: str, options: "StreamOptions", leave_out: Path | None, model: Model | None = None
) -> "StreamReading":
    """Read and measure a stream, with progress; says what is left out.

    Args:
        split: "train" or "val": shards that are named as of another are not read.
        model: embeds the images in passing.
    """
    from clip_core.data.check_stream import read_stream
    from clip_core.data.progress import DecodeProgress
    from clip_core.run.records import Flags

    flags = None if leave_out is None else Flags.read(leave_out)
    with DecodeProgress(lambda line: print(line, file=sys.stderr), "checked", "image", EVERY, about=True) as progress:
        reading = read_stream(path, split, options, flags, progress, model.embedding if model else None)
    if leave_out is not None:
        left_out = f"{plural(reading.left_out, 'pair')} of {spelt(path)} left out by {leave_out}."
        print(printable(left_out), file=sys.stderr)
    return reading


def run_check(
    train: "Reading",
    val: "Reading | None",
    *,
    batch_size: int,
    context_length: int | None,
    workers: int | None,
    as_json: bool,
    files: Mapping[str, Path],
    model: Model | None = None,
) -> int:
    """Check, print the report, and write what `files` asks for; returns the exit code.

    A stream was measured while it was read, and is not read again.

    Args:
        files: paths of "json", "findings", "html" and "flags", as far as they are wanted.
        model: looks for mislabelled pairs.
    """
    from clip_core.data.check import check_data
    from clip_core.data.check_stream import StreamReading
    from clip_core.data.describe import reading_facts, reading_text
    from clip_core.data.findings import Findings
    from clip_core.data.pairs import usable_sentence
    from clip_core.data.progress import DecodeProgress, interruptibly

    parts = [part for part in (train, val) if isinstance(part, StreamReading)]
    with ExitStack() as shown:

        def progress(what: str) -> "Progress":
            names = {"captions": ("read", "caption"), "images": ("checked", "image"), "pairs": ("compared", "pair")}
            name, unit = names[what]
            return shown.enter_context(DecodeProgress(lambda line: print(line, file=sys.stderr), name, unit, EVERY))

        check = check_data(
            train.pairs,
            None if val is None else val.pairs,
            batch_size=batch_size,
            context_length=context_length,
            workers=workers,
            progress=progress,
            measured=_measured(train, val),
            damaged=[shard for part in parts for shard in part.damaged],
        )
        mislabels = None
        if model is not None:
            mislabels = _mislabels(check, model, progress("pairs"))
    findings, facts = interruptibly(lambda: Findings(check, mislabels)), reading_facts(train)
    numbers = facts | report(check, findings)
    if parts:
        numbers["stream"] = [stream_facts(part) for part in parts]
    name = " and ".join(spelt(part.path) for part in (train, val) if part is not None)
    title = f"{printable(name)}: {usable_sentence(numbers['usable_pairs'], numbers['images'], check.bad)}"
    if as_json:
        print(json.dumps(numbers, indent=2))
    else:
        print("\n".join([title, *reading_text(facts), *_text(check, numbers), *_finding_lines(findings)]))
    small = _fetched(parts, findings.found) if files.keys() & {"html", "findings"} else {}
    for line in _write(check, findings, numbers, title, files, small):
        print(line, file=sys.stderr if as_json else sys.stdout)
    unlooked = model is not None and model.embedding.file.problem is not None
    return int(check.bad_share > DataConfig().max_bad_share or bool(check.damaged) or unlooked)


def _measured(train: "Reading", val: "Reading | None") -> "Measured":
    """What was measured while streams were read, by the rows of both lists."""
    from clip_core.data.check_images import NOTHING, Measured
    from clip_core.data.check_stream import StreamReading

    first, second = (part.measured if isinstance(part, StreamReading) else NOTHING for part in (train, val))
    return Measured.joined(first, second, len(train.pairs)) if len(second.firsts) else first


def stream_facts(reading: "StreamReading") -> dict[str, Any]:
    """What was read of a stream, for --json."""
    return {
        "shards": len(reading.shards.urls),
        "shards_checked": reading.checked,
        "pairs": len(reading.pairs),
        "left_out": reading.left_out,
        "damaged": [shard._asdict() for shard in reading.damaged],
    }


def _mislabels(check: "Check", model: Model, progress: "Progress") -> "Mislabels | None":
    """What the model finds; what it cannot is said in the check's notes."""
    from clip_core.data.mislabel_scores import LEAST
    from clip_core.data.mislabels import find_mislabels
    from clip_core.inference.evaluation.leaks import trained_note, trained_on

    if model.embedding.file.problem is not None:
        check.notes.append(f"mislabelled pairs were not looked for: {model.embedding.file.problem}")
        return None
    trained = trained_on(model.path, check.pairs)
    found = find_mislabels(check, model.encoder, trained, progress)
    note = trained_note(model.path, trained) if found else f"below {LEAST} pairs no mislabelled ones are looked for"
    check.notes += [note] if note else []
    return found


def report(check: "Check", findings: "Findings") -> dict[str, Any]:
    """The report as JSON: counts, sizes, captions, tokenizers, false negatives, unusable pairs and findings."""
    import numpy as np

    usable, sizes = int(check.usable.sum()), check.sizes.tolist()
    places = {"smallest": 0, "median": len(sizes) // 2, "largest": -1}
    distinct = len(np.unique(check.table.caption[check.usable]))
    captions = check.caption_facts()
    return {
        "usable_pairs": usable,
        "images": len(sizes),
        "repeated_images": findings.repeated,  # whose file has the same content as that of an earlier one
        "image_sizes": {name: sizes[place] for name, place in places.items()} if sizes else {},
        "captions": distinct,
        "repeated_captions": usable - distinct,
        "longest_caption": captions["characters"]["longest"],
        "caption_lengths": {name: captions[name] for name in ("characters", "words")},
        "scripts": captions["scripts"],
        "classes": check.classes(),
        "tokenizers": [asdict(fit) for fit in check.fits],
        "false_negatives": check.batch,
        "bad_pairs": [{"entry": b.pair.entry, "place": b.pair.place, "reason": b.reason} for b in check.bad],
        "bad_share": check.bad_share,
        "check_notes": [*check.notes, *findings.notes],
        "findings": [finding.facts() for finding in findings.found],
        "left_out": int(findings.leave_out.sum()),
    }


def _text(check: "Check", numbers: Mapping[str, Any]) -> Iterator[str]:
    """What was measured, as lines for a person."""
    sizes = [f"{name} {width} x {height}" for name, (width, height) in numbers["image_sizes"].items()]
    repeated = f"; {numbers['repeated_images']:,} with the content of an earlier one" * bool(numbers["repeated_images"])
    alike = ": all are the same, so there is nothing to learn" * (numbers["captions"] == 1 < numbers["usable_pairs"])
    yield f"images      {numbers['images']:,}; {', '.join(sizes)} pixels{repeated}" if sizes else "images      none"
    yield f"captions    {numbers['captions']:,} distinct, {numbers['repeated_captions']:,} repeated{alike}"
    yield f"longest     {numbers['longest_caption']:,} characters"
    words = numbers["caption_lengths"]["words"]
    yield f"words       median {words['median']:,}, 95th percentile {words['p95']:,}, most {words['longest']:,}"
    tried = min(numbers["usable_pairs"], _most_tokenized())
    for fit in check.fits:
        yield (
            f"{fit.kind:<11} {fit.vocab_size:,} tokens; {fit.truncated:,} captions "
            f"({fit.truncated / tried:.1%}) are truncated at {fit.context_length}"
        )
    scripts = list(numbers["scripts"].items())
    if len(scripts) > 1:
        shown = ", ".join(f"{name} {count:,}" for name, count in scripts[:_SCRIPTS])
        more = f" and {len(scripts) - _SCRIPTS} more" * (len(scripts) > _SCRIPTS)
        yield f"scripts     {shown}{more}"
    classes = numbers["classes"]
    if classes:
        names = list(classes)
        yield (
            f"classes     {len(classes):,}, from {classes[names[0]]:,} pairs ({printable(names[0], _CAPTION)}) "
            f"to {classes[names[-1]]:,} ({printable(names[-1], _CAPTION)})"
        )
    yield f"unusable    {plural(len(check.bad), 'pair')} ({check.bad_share:.1%})"
    for bad in check.bad[:_SHOWN]:
        yield f"  {printable(bad.pair.place)}: {printable(bad.reason)}"
    if len(check.bad) > _SHOWN:
        yield f"  and {len(check.bad) - _SHOWN:,} more; --json names them all"
    for note in numbers["check_notes"]:
        yield f"note        {printable(note)}"


def _most_tokenized() -> int:
    from clip_core.data.check_captions import MOST_TOKENIZED

    return MOST_TOKENIZED


def _finding_lines(findings: "Findings") -> Iterator[str]:
    shown = [finding for finding in findings.found if finding.kind != "broken"]  # the unusable pairs are listed above
    if not shown:
        yield "findings    none"
        return
    yield "findings"
    for finding in shown:
        flagged = "; --flags leaves them out" * finding.left_out
        yield f"  {finding.title}: {finding.count:,} {finding.text}"
        yield f"    what to do: {finding.advice}{flagged}"
        same = " ~ " if "near" in finding.kind else " = "
        yield from (f"    {_example(example, same)}" for example in finding.examples[:_EXAMPLES])


def _example(example: "Example", same: str) -> str:
    names = same.join(printable(Path(path).name, _CAPTION) for path in example.images)
    if len(example.images) > 1:
        return names + (f" ({example.note})" if example.note else "")
    caption = printable(example.captions[0], _CAPTION)
    return "  ".join(part for part in (names, f'"{caption}"', printable(example.note)) if part)


def _write(
    check: "Check",
    findings: "Findings",
    numbers: Mapping[str, Any],
    title: str,
    files: Mapping[str, Path],
    small: Mapping[str, bytes],
) -> Iterator[str]:
    """Write the files that were asked for; a line for each. `small` has images of remote shards."""
    from clip_core.data.check_page import html_page
    from clip_core.data.findings import left_out_pairs
    from clip_core.data.findings_file import write_findings
    from clip_core.files import write_json, write_text
    from clip_core.run.records import FlaggedPair, Flags

    if "json" in files:
        write_json(files["json"], numbers)
        yield f"written to {printable(str(files['json']))}"
    if "findings" in files:
        _write_images(files["findings"], small)  # first, as who shows them waits for the other
        write_findings(files["findings"], title, check.pairs, numbers["images"], findings.found)
        yield f"every pair with a finding written to {printable(str(files['findings']))}"
    if "html" in files:
        lines = [line.partition(" ") for line in _text(check, numbers) if not line.startswith(" ")]
        summary = {label: text.strip() for label, _, text in lines}
        write_text(files["html"], html_page(title, summary, findings.found, small.get))
        yield f"contact sheets written to {printable(str(files['html']))}"
    if "flags" in files:
        pairs = left_out_pairs(check, findings.leave_out)
        now = round(time.time(), 3)
        Flags(pairs=[FlaggedPair(image=i, caption=c, time=now) for i, c in pairs]).write(files["flags"])
        yield (
            f"{plural(len(pairs), 'pair')} to leave out ({_kinds(findings.found)}) written to "
            f"{printable(str(files['flags']))}; train with --leave-out"
        )


def _fetched(parts: Sequence["StreamReading"], found: Sequence["Finding"]) -> dict[str, bytes]:
    """Small images of the examples that are in remote shards, by their paths."""
    from clip_core.data.check_stream import fetch_small
    from clip_core.data.progress import DecodeProgress

    urls = {shard: url for part in parts for shard, url in part.remote.items()}
    images = [image for finding in found for example in finding.examples for image in example.images]
    with DecodeProgress(lambda line: print(line, file=sys.stderr), "fetched", "image", EVERY) as progress:
        return fetch_small(urls, images, progress)


def _write_images(file: Path, small: Mapping[str, bytes]) -> None:
    """Small images in a folder beside the findings; those that an earlier check wrote are removed."""
    from clip_core.data.findings_file import image_name, is_image_name
    from clip_core.run.paths import images_of

    folder = images_of(file)
    for old in folder.glob("*.jpg"):
        if is_image_name(old.name):  # nothing else that may lie there
            old.unlink(missing_ok=True)
    for image, content in small.items():
        folder.mkdir(exist_ok=True)
        (folder / image_name(image)).write_bytes(content)


def _kinds(found: Sequence["Finding"]) -> str:
    return ", ".join(finding.title for finding in found if finding.left_out) or "none found"

"""Data sets in CLIP_benchmark's WebDataset layout: shards of a split, class names and templates beside them.

    DIR/classnames.txt  DIR/zeroshot_classification_templates.txt  DIR/dataset_type.txt
    DIR/test/nshards.txt  DIR/test/0.tar ...

A shard has 0001.jpg and 0001.cls (a number), 0001.txt (a caption in each line) or 0001.npy (0 or 1 for each class).

Images are read where they lie. Of other members only .cls, .txt and .npy (never a pickled one) are opened.
Source: the layout of github.com/LAION-AI/CLIP_benchmark.
"""

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip_core.data.formats.shard import DAMAGED_TAR
from clip_core.data.image_files import SUFFIXES, Member
from clip_core.errors import DataError
from clip_core.files import read_regular

_MOST_BYTES = 1_000_000  # of a label or of the captions of an image
_LABELS = {"classification": ".cls", "multilabel": ".npy", "retrieval": ".txt"}


class Sample(NamedTuple):
    """One image with the numbers of its classes, or with its captions; `problem` says why it cannot be used."""

    image: str
    name: str
    classes: tuple[int, ...]
    captions: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True)
class Benchmark:
    """A split of a data set. `kind`: classification, multilabel or retrieval."""

    kind: str
    split: str
    splits: list[str]  # all that are there
    samples: list[Sample]
    class_names: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)  # with {} for the class


def benchmark_splits(folder: Path) -> list[str]:
    """The splits of a data set in this layout; none if the folder is something else."""
    try:
        return sorted(item.parent.name for item in folder.glob("*/nshards.txt"))
    except OSError:
        return []


def read_benchmark(folder: Path, split: str | None = None) -> Benchmark:
    """One split, by default test.

    Raises:
        DataError: if the split, a shard or the class names are missing or damaged.
    """
    splits = benchmark_splits(folder)
    split = split or ("test" if "test" in splits else splits[0])
    if split not in splits:
        raise DataError(f"{folder} has no split {split}; it has {', '.join(splits)}.")
    kind = " ".join(_lines(folder / "dataset_type.txt")).lower() or "classification"
    if kind not in _LABELS:
        raise DataError(f"{folder}/dataset_type.txt says {kind!r}; it may be {', '.join(_LABELS)}.")
    names = _lines(folder / "classnames.txt")
    if kind != "retrieval" and not names:
        raise DataError(f"{folder} has no classnames.txt with a name in each line, which its labels are numbers of.")
    templates = [line.replace("{c}", "{}") for line in _lines(folder / "zeroshot_classification_templates.txt")]
    wrong = next((line for line in templates if "{}" not in line), None)
    if wrong is not None:
        raise DataError(f"{folder}/zeroshot_classification_templates.txt has {wrong!r}, without {{c}} for the class.")
    count = " ".join(_lines(folder / split / "nshards.txt"))
    if not re.fullmatch(r"\d{1,6}", count):
        raise DataError(f"{folder}/{split}/nshards.txt should hold the number of shards, not {count!r}.")
    samples: list[Sample] = []
    for number in range(int(count)):
        samples += _read_shard(folder / split / f"{number}.tar", kind, len(names))
    return Benchmark(kind, split, splits, samples, names, templates)


def _lines(file: Path) -> list[str]:
    """The lines of a text file without those that are empty; none where there is no file."""
    try:
        return [line.strip() for line in read_regular(file).decode("utf-8-sig").splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}).") from None
    except UnicodeError:
        raise DataError(f"{file} is not text in UTF-8.") from None


def _read_shard(path: Path, kind: str, classes: int) -> Iterator[Sample]:
    path = path.absolute()
    images: dict[str, str] = {}
    labels: dict[str, bytes | None] = {}
    try:
        with path.open("rb") as handle, tarfile.open(fileobj=handle, mode="r:", errors="surrogateescape") as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                suffix = f".{suffix.lower()}"
                if not member.isfile() or member.issparse():
                    continue
                if suffix in SUFFIXES:
                    images[key] = str(Member(path, member.offset_data, member.size).path(member.name))
                elif suffix == _LABELS[kind]:
                    content = tar.extractfile(member)
                    labels[key] = content.read() if content and member.size <= _MOST_BYTES else None
    except FileNotFoundError:
        raise DataError(f"no shard at {path}, which nshards.txt counts; fetch it.") from None
    except DAMAGED_TAR as error:
        raise DataError(f"{path} is not a whole, uncompressed tar file ({error}); fetch it again.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); fetch it again.") from None
    for key, image in images.items():
        yield _sample(image, f"{path.name}/{key}", labels.get(key), kind, classes)


def _sample(image: str, name: str, content: bytes | None, kind: str, classes: int) -> Sample:
    numbers: tuple[int, ...] = ()
    captions: tuple[str, ...] = ()
    problem = None
    try:
        if content is None:
            problem = f"it has no {_LABELS[kind]}"
        elif kind == "retrieval":
            captions = tuple(line.strip() for line in content.decode().splitlines() if line.strip())
            problem = None if captions else "it has no caption"
        elif kind == "classification":
            numbers = (int(content),)
        else:
            wanted = np.load(io.BytesIO(content), allow_pickle=False)
            numbers = tuple(np.flatnonzero(wanted).tolist())
            problem = None if wanted.shape == (classes,) else f"its .npy has shape {wanted.shape}, not ({classes},)"
    except (ValueError, EOFError):
        problem = f"its {_LABELS[kind]} cannot be read"
    if problem is None and any(not 0 <= number < classes for number in numbers):
        problem = f"its class {numbers[0]} is none of the {classes:,} in classnames.txt"
    return Sample(image, name, numbers, captions, problem)

"""`clip-data check`: one pass over all pairs, then what was found, each finding with examples and what to do.

Memory: 37 bytes a pair and 90 an image are kept, beside the list itself.
Shapes: P pairs, I distinct images.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import accumulate
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from clip_core.config import DataConfig
from clip_core.data.check_captions import (
    MOST_TOKENIZED,
    PairTable,
    TokenizerFit,
    false_negatives,
    lengths,
    script_counts,
    table_of,
    tokenizer_fits,
)
from clip_core.data.check_images import NOTHING, ImageFacts, Measured, measure_images
from clip_core.data.dataset import MAX_CLASSES, MIN_CLASS_IMAGES
from clip_core.data.pairs import BadPair, Pair
from clip_core.data.progress import Progress, interruptibly, no_progress
from clip_core.data.splits import split_counts

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

EXAMPLES = 24  # of a finding
TRAIN, VALIDATION, UNUSED = 0, 1, 2


@dataclass(frozen=True)
class Example:
    """Images that belong together, the caption of each, and what was measured."""

    images: list[str]
    captions: list[str]
    note: str = ""


class Group(NamedTuple):
    """Pairs that belong together: places in `Check.pairs`, of which the first `keep` stay when the others go."""

    rows: IntArray
    keep: int = 0
    note: str = ""


@dataclass(frozen=True)
class Finding:
    """One kind of problem.

    `kind` names it for programs; `advice` says what to do; `left_out` whether flags.json has it; `groups` gives every
    group of pairs that has it, not only the examples.
    """

    kind: str
    count: int
    text: str
    advice: str
    examples: list[Example]
    left_out: bool = False
    groups: Callable[[], Iterator[Group]] | None = None

    def facts(self) -> dict[str, Any]:
        """The finding and its examples, for JSON."""
        return {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("groups", "examples")
        } | {"examples": [asdict(example) for example in self.examples]}

    @property
    def title(self) -> str:
        return self.kind.replace("_", " ")


class DamagedShard(NamedTuple):
    """A shard of a stream that could not be read to its end: why, at which byte where known, and pairs before that."""

    shard: str
    why: str
    byte: int | None
    pairs: int


@dataclass
class Check:
    """Everything that was measured. Rows: pairs as `pairs`, images as `firsts` and `images`."""

    pairs: "Joined"
    roles: NDArray[np.int8]  # (P,) of TRAIN, VALIDATION, UNUSED
    table: PairTable
    firsts: IntArray  # (I,) the first pair of each image
    image_of: IntArray  # (P,) row of the pair's image; -1 where there is none
    images: ImageFacts
    usable: BoolArray  # (P,)
    bad: list[BadPair]
    fits: list[TokenizerFit]
    batch: dict[str, float]  # see false_negatives
    damaged: Sequence[DamagedShard] = ()  # of a stream
    notes: list[str] = field(default_factory=list)

    @property
    def bad_share(self) -> float:
        return len(self.bad) / len(self.pairs) if len(self.pairs) else 0.0

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Width and height of the images that can be used, by area, (I, 2)."""
        facts = self.images.facts[self.images.facts["readable"]]
        sizes = np.stack([facts["width"], facts["height"]], axis=1)
        return np.asarray(sizes[np.argsort(sizes.astype(np.int64).prod(axis=1), kind="stable")])

    def caption_facts(self) -> dict[str, Any]:
        """Lengths in characters and words, and the captions of each script."""
        return {
            "characters": lengths(self.table.characters[self.usable]),
            "words": lengths(self.table.words[self.usable]),
            "scripts": script_counts(self.table, self.usable),
        }

    def classes(self) -> dict[str, int]:
        """Pairs of each caption, the most frequent first, where the captions are classes; else nothing."""
        _, firsts, counts = np.unique(self.table.caption[self.usable], return_index=True, return_counts=True)
        if not 2 <= len(counts) <= MAX_CLASSES or int(self.usable.sum()) < MIN_CLASS_IMAGES * len(counts):
            return {}
        rows = np.flatnonzero(self.usable)[firsts]
        order = np.lexsort((firsts, -counts))
        return {self.pairs[int(rows[place])].caption: int(counts[place]) for place in order}


class Joined(Sequence[Pair]):
    """Several lists of pairs as one, without a copy."""

    def __init__(self, *parts: Sequence[Pair]) -> None:
        self._parts = parts
        self._starts = [0, *accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[Pair]:
        for part in self._parts:
            yield from part

    @overload
    def __getitem__(self, place: int) -> Pair: ...
    @overload
    def __getitem__(self, place: slice) -> list[Pair]: ...
    def __getitem__(self, place: int | slice) -> Pair | list[Pair]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        part = bisect_right(self._starts, place) - 1
        return self._parts[part][place - self._starts[part]]


def check_data(
    train: Sequence[Pair],
    val: Sequence[Pair] | None = None,
    *,
    batch_size: int = 256,
    context_length: int | None = None,
    workers: int | None = None,
    progress: Callable[[str], Progress] = lambda what: no_progress,
    measured: Measured = NOTHING,
    damaged: Sequence[DamagedShard] = (),
) -> Check:
    """Read every caption and decode every image once.

    Args:
        train: the pairs of a data set, which may state splits.
        val: those of a validation list.
        batch_size: of the false negatives that are counted.
        context_length: tokens that a caption is truncated to; None: the default of training.
        workers: decoding threads; None is one a core.
        progress: for what is done ("captions", "images"), takes the number done and that of all.
        measured: images that were measured while their pairs were read, by the rows of both lists.
        damaged: shards of a stream that could not be read to their end.
    Raises:
        KeyboardInterrupt: saying how many images were checked.
    """
    pairs = Joined(train) if val is None else Joined(train, val)
    roles = np.concatenate([_train_roles(train, val is not None), *([] if val is None else [_val_roles(val)])])
    table = table_of(_watched(pairs, progress("captions")), len(pairs))
    firsts, image_of = _distinct(table)
    images = measure_images(pairs, firsts, workers, progress("images"), measured)
    readable = np.append(images.facts["readable"], False)  # row -1: no image
    usable = readable[image_of]
    bad = [_bad(pairs[int(row)], images.failures.get(int(image_of[row]), "")) for row in np.flatnonzero(~usable)]
    fits, notes = interruptibly(lambda: _fits(pairs, usable, context_length))
    chosen = usable & (roles == TRAIN)
    batch = false_negatives(table.image[chosen], table.caption[chosen], batch_size)
    return Check(pairs, roles, table, firsts, image_of, images, usable, bad, fits, batch, damaged, notes)


def _watched(pairs: Sequence[Pair], progress: Progress) -> Iterator[tuple[str, str, bool]]:
    for done, pair in enumerate(pairs, start=1):
        yield pair.path, pair.caption, pair.problem is not None
        if done % 10_000 == 0:
            progress(done, len(pairs))


def _distinct(table: PairTable) -> tuple[IntArray, IntArray]:
    """The first pair of each image, in the list's order, (I,), and the image of each pair, (P,)."""
    known = np.flatnonzero(~table.problem)
    _, first, row = np.unique(table.image[known], return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    image_of = np.full(len(table.problem), -1, dtype=np.int64)
    image_of[known] = rank[row]
    return known[first[order]], image_of


def _bad(pair: Pair, why: str) -> BadPair:
    return BadPair(pair, pair.problem or why)


def _train_roles(pairs: Sequence[Pair], has_val: bool) -> NDArray[np.int8]:
    """As training uses them: val and test pairs validate, unless another list does."""
    if "train" not in split_counts(pairs):
        return np.full(len(pairs), TRAIN, dtype=np.int8)
    other = UNUSED if has_val else VALIDATION
    return np.fromiter((TRAIN if p.split in ("train", None) else other for p in pairs), np.int8, len(pairs))


def _val_roles(pairs: Sequence[Pair]) -> NDArray[np.int8]:
    """Of a validation list with splits only its val (or test) is used, as in training."""
    counts = split_counts(pairs)
    use = next((name for name in ("val", "test") if name in counts), None)
    if len(counts) < 2 or use is None:
        return np.full(len(pairs), VALIDATION, dtype=np.int8)
    return np.fromiter((VALIDATION if p.split == use else UNUSED for p in pairs), np.int8, len(pairs))


def _fits(pairs: Joined, usable: BoolArray, context_length: int | None) -> tuple[list[TokenizerFit], list[str]]:
    rows = np.flatnonzero(usable)
    if not len(rows):
        return [], []
    notes = []
    if len(rows) > MOST_TOKENIZED:
        notes.append(f"tokenizers are tried on {MOST_TOKENIZED:,} of {len(rows):,} captions, spread over the list")
        rows = rows[np.linspace(0, len(rows) - 1, MOST_TOKENIZED).astype(np.int64)]
    defaults = DataConfig()
    length = context_length or defaults.context_length
    fits, missing = tokenizer_fits([pairs[int(row)].caption for row in rows], length, defaults.vocab_size)
    return fits, [*notes, *([missing] if missing else [])]

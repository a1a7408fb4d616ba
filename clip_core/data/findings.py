"""From what was measured to findings: duplicates, leakage, images that are dark, blurred, blank, tiny or narrow."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from clip_core.data.check import EXAMPLES, TRAIN, VALIDATION, Check, Example, Finding
from clip_core.data.check_images import BLANK, BLURRED, DARK, ODD, TINY, confirm_colours
from clip_core.data.finding_groups import classes, image_groups, repetitions, single, single_images
from clip_core.data.mislabel_likelihood import WEAK
from clip_core.data.mislabel_scores import LEAST
from clip_core.data.mislabels import Mislabels
from clip_core.data.near_duplicates import groups, near_pairs
from clip_core.text import plural

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_SHEET = 4  # images of a group in an example
_IMBALANCE = 10  # pairs of the most frequent class for one of the rarest


class Findings:
    """The findings of a check, in the order of the report, and the pairs to leave out.

    Attributes:
        found: those with at least one image or pair.
        repeated: how many images have the content of an earlier one.
        leave_out: pairs for flags.json, bool (P,).
        notes: what could not be decided, a sentence each without a full stop.
    """

    def __init__(self, check: Check, mislabels: Mislabels | None = None) -> None:
        """`mislabels`: what a model found, where there was one."""
        self.check, self.facts = check, check.images.facts
        self.leave_out = ~check.usable
        self.notes: list[str] = []
        self._roles = self._image_roles()
        exact = self._exact_groups()
        self.repeated = int((self.facts["readable"] & (exact != np.arange(len(exact)))).sum())
        near = self._near_groups(exact)
        findings = [self._damaged(), self._broken(), *self._leaked(exact, near), *self._duplicates(exact, near)]
        findings += [*([] if mislabels is None else [self._mislabelled(mislabels)]), *self._captions(), *self._looks()]
        self.found = [finding for finding in findings if finding.count]
        self._spare_validation()

    # ---------------------------------------------------------------- images that are the same

    def _image_roles(self) -> tuple[BoolArray, BoolArray]:
        """Whether each image is in training, and in validation, (I,)."""
        masks = []
        for role in (TRAIN, VALIDATION):
            mask = np.zeros(len(self.facts) + 1, dtype=np.bool_)
            mask[self.check.image_of[self.check.usable & (self.check.roles == role)]] = True
            masks.append(mask[:-1])
        return masks[0], masks[1]

    def _exact_groups(self) -> IntArray:
        """For each image the first with the same content, (I,)."""
        rows = np.flatnonzero(self.facts["readable"])
        labels = np.arange(len(self.facts))
        content = self.facts["content"][rows].view([("a", np.uint64), ("b", np.uint64)]).ravel()
        _, first, inverse = np.unique(content, return_index=True, return_inverse=True)
        labels[rows] = rows[first[inverse]]
        return labels

    def _near_groups(self, exact: IntArray) -> IntArray:
        """For each image the first that it is the same as, or nearly, (I,); blank images only where the same."""
        facts = self.facts
        different = facts["readable"] & (exact == np.arange(len(exact))) & (facts["spread"] >= BLANK)
        rows = np.flatnonzero(different)
        found = near_pairs(facts["hash"][rows], confirm=confirm_colours(facts[rows]))
        if not found.complete:
            self.notes.append("so many images are nearly alike that some near duplicates are not found")
        labels = np.arange(len(facts))
        labels[rows] = rows[groups(len(rows), found.pairs)]
        return labels[exact]

    def _leaked(self, exact: IntArray, near: IntArray) -> Iterator[Finding]:
        train, val = self._roles
        seen = np.zeros(len(train), dtype=np.bool_)
        for kind, labels, how, advice in (
            ("leaked", exact, "the same", "validation would measure memory; leave their pairs out of training"),
            ("leaked_near", near, "nearly the same", "look at them: leave copies out of training, variants may stay"),
        ):
            shared = np.zeros(len(train), dtype=np.bool_)
            shared[labels[val]] = True
            leaked = train & shared[labels] & ~seen
            seen |= leaked
            if kind == "leaked":
                self._flag(leaked & ~val, TRAIN)
            yield Finding(
                kind,
                int(leaked.sum()),
                f"training images that are {how} as validation images",
                advice,
                self._group_examples(labels, leaked, val),
                left_out=kind == "leaked",
                groups=partial(image_groups, self.check, labels, leaked, val),
            )

    def _duplicates(self, exact: IntArray, near: IntArray) -> Iterator[Finding]:
        later = self.facts["readable"] & (exact != np.arange(len(exact)))
        val = self._roles[1]
        first_val = np.full(len(exact), len(exact), dtype=np.int64)  # of a group, its first validation image
        np.minimum.at(first_val, exact[val], np.flatnonzero(val))
        in_val = first_val[exact] < len(exact)
        copies = np.where(in_val, val & (np.arange(len(exact)) != first_val[exact]), later)
        self._flag(np.asarray(copies, dtype=np.bool_), None)
        yield Finding(
            "exact_duplicates",
            int(later.sum()),
            "images with the content of an earlier one",
            "keep one of each; all pairs of the later files are left out, and captions that only they have are lost",
            self._group_examples(exact, later),
            left_out=True,
            groups=partial(image_groups, self.check, exact, later),
        )
        alike = self.facts["readable"] & (near != np.arange(len(near))) & ~later
        yield Finding(
            "near_duplicates",
            int(alike.sum()),
            f"images that look nearly like an earlier one, in {plural(len(np.unique(near[alike])), 'group')}",
            "look at them: copies can go, variants may stay",
            self._group_examples(near, alike),
            groups=partial(image_groups, self.check, near, alike),
        )

    def _flag(self, images: BoolArray, role: int | None) -> None:
        """Leave out the pairs of these images, (I,), all of them or those of one role."""
        pairs = np.append(images, False)[self.check.image_of]
        self.leave_out |= pairs if role is None else pairs & (self.check.roles == role)

    def _spare_validation(self) -> None:
        """A flag names image and caption, and training leaves it out of every list: not what validation keeps."""
        check = self.check
        keys = check.table.image * 31 + check.table.caption
        both = self.leave_out & check.usable & np.isin(keys, keys[~self.leave_out])
        train, val = self._roles
        in_both = int((train & val).sum())
        if in_both:
            self.notes.append(
                f"{plural(in_both, 'image file')} in both training and validation not in flags.json, which would "
                "take the pairs out of both; correct the lists"
            )
        self.leave_out &= ~both

    # ---------------------------------------------------------------- pairs and captions

    def _damaged(self) -> Finding:
        damaged = self.check.damaged
        examples = [
            Example([], [shard.shard], f"{shard.why}; {plural(shard.pairs, 'pair')} before that were checked")
            for shard in damaged[:EXAMPLES]
        ]
        advice = "fetch or write them again; clip-train stops at them, or misses what follows empty blocks"
        return Finding("damaged_shards", len(damaged), "shards that cannot be read to their end", advice, examples)

    def _broken(self) -> Finding:
        bad = self.check.bad
        examples = [
            Example([], [entry.pair.caption], f"{entry.pair.place}: {entry.reason}") for entry in bad[:EXAMPLES]
        ]
        rows = np.flatnonzero(~self.check.usable)
        groups = partial(single, rows, lambda place: f"{bad[place].pair.place}: {bad[place].reason}")
        return Finding("broken", len(bad), "unusable pairs", "correct or leave out", examples, True, groups)

    def _mislabelled(self, found: Mislabels) -> Finding:
        self.leave_out[found.rows] = True
        what = "image and caption" if found.agreement is None else "image and class"
        expected = f"; {found.expected:.0%} of them are expected to be wrong" if len(found.rows) else ""
        if len(found.rows) and found.agreement is not None:
            self.notes.append(
                f"a classifier on the model's embeddings gives {found.agreement:.0%} of the images their own class; "
                "the weaker it is, the more correct pairs are named"
            )
        if found.separation < WEAK:
            self.notes.append(
                f"the model hardly tells the pairs from random ones (AUC {found.separation:.2f}; 0.5 is chance): "
                "no mislabelled pairs can be named with it"
            )
        if found.left_over:
            self.notes.append(
                f"{found.left_over:,} pairs were not scored: fewer than {LEAST} of those that the model was "
                "trained on, or of the others; the two are scored apart"
            )
        examples = [
            self._pair_example(row, f"wrong with probability {chance:.2f}")
            for row, chance in zip(found.rows[:EXAMPLES].tolist(), found.likelihood[:EXAMPLES].tolist(), strict=True)
        ]
        return Finding(
            "mislabelled",
            len(found.rows),
            f"pairs whose {what} are likelier not to fit than to fit, by the model{expected}",
            "look at them before leaving them out",
            examples,
            True,
            partial(single, found.rows, lambda place: f"wrong with probability {found.likelihood[place]:.2f}"),
        )

    def _captions(self) -> Iterator[Finding]:
        check = self.check
        rows = np.flatnonzero(check.usable)
        keys = check.table.caption[rows]
        order = np.argsort(keys, kind="stable")
        repeated = np.zeros(len(rows), dtype=np.bool_)
        repeated[order[1:]] = keys[order[1:]] == keys[order[:-1]]
        _, first, counts = np.unique(keys, return_index=True, return_counts=True)
        most = [place for place in np.lexsort((first, -counts))[:EXAMPLES] if counts[place] > 1]
        batch = check.batch
        yield Finding(
            "duplicate_captions",
            int(repeated.sum()),
            f"pairs that repeat an earlier caption; a random batch of {int(batch['batch_size']):,} has "
            f"{batch['matching_pairs']:.1f} couples that match, {batch['affected']:.1%} of its pairs",
            "clip-train counts them as matches; other trainers would take them for negatives",
            [self._pair_example(int(rows[first[place]]), f"{counts[place]:,} times") for place in most],
            groups=partial(repetitions, rows[order], keys[order]),
        )
        val = check.usable & (check.roles == VALIDATION)
        shared = check.usable & (check.roles == TRAIN) & np.isin(check.table.caption, check.table.caption[val])
        yield Finding(
            "shared_captions",
            int(shared.sum()),
            "training pairs with a caption of the validation set",
            "as it should be for classes; else see whether images leak too",
            [self._pair_example(int(row)) for row in np.flatnonzero(shared)[:EXAMPLES]],
            groups=partial(single, np.flatnonzero(shared)),
        )
        counted = check.classes()
        largest, smallest = max(counted.values(), default=0), min(counted.values(), default=0)
        if largest > _IMBALANCE * smallest:
            rare = [(name, count) for name, count in counted.items() if largest > _IMBALANCE * count]
            yield Finding(
                "class_imbalance",
                len(rare),
                f"classes with less than a {_IMBALANCE}th of the {largest:,} pairs of the most frequent",
                "collect more of them, or expect low recall there",
                [Example([], [name], plural(count, "pair")) for name, count in rare[::-1][:EXAMPLES]],
                groups=partial(classes, rows[order], keys[order], _IMBALANCE),
            )

    # ---------------------------------------------------------------- how images look

    def _looks(self) -> Iterator[Finding]:
        facts = self.facts
        readable = facts["readable"]
        short = np.minimum(facts["width"], facts["height"])
        ratio = np.maximum(facts["width"], facts["height"]) / np.maximum(short, 1)
        blank = readable & (facts["spread"] < BLANK)
        dark = readable & (facts["light"] < DARK) & ~blank
        kinds: list[tuple[str, BoolArray, str, str, Callable[[int], str]]] = [
            ("blank", blank, "images of one colour", "see whether they are placeholders", lambda row: ""),
            (
                "dark",
                dark,
                f"very dark images (99 % of the pixels below {DARK} of 255)",
                "see whether anything can be recognised",
                lambda row: f"99 % below {facts['light'][row]}",
            ),
            (
                "blurred",
                readable & (facts["sharpness"] < BLURRED),
                "blurred images",
                "see whether anything can be recognised",
                lambda row: f"sharpness {facts['sharpness'][row]:.4f}, below {BLURRED}",
            ),
            (
                "tiny",
                readable & (short < TINY),
                f"images with a side below {TINY} pixels",
                "find larger ones, or leave them out",
                lambda row: f"{facts['width'][row]} x {facts['height'][row]}",
            ),
            (
                "odd_aspect",
                readable & (ratio > ODD),
                f"images more than {ODD:g} times as long as wide",
                "the centre crop loses most of them; crop them",
                lambda row: f"{facts['width'][row]} x {facts['height'][row]}",
            ),
        ]
        for kind, mask, text, advice, note in kinds:
            rows = np.flatnonzero(mask)
            examples = [self._pair_example(int(self.check.firsts[row]), note(int(row))) for row in rows[:EXAMPLES]]
            groups = partial(single_images, self.check, rows, note)
            yield Finding(kind, len(rows), text, advice, examples, groups=groups)

    # ---------------------------------------------------------------- examples

    def _pair_example(self, row: int, note: str = "") -> Example:
        pair = self.check.pairs[row]
        return Example([pair.path], [pair.caption], note)

    def _group_examples(self, labels: IntArray, chosen: BoolArray, first: BoolArray | None = None) -> list[Example]:
        """Groups of alike images that have a chosen one; those of `first` before the others."""
        examples = []
        for label in dict.fromkeys(labels[chosen][: EXAMPLES * _SHEET].tolist()):
            rows = np.flatnonzero((labels == label) & self.facts["readable"])
            if first is not None:
                rows = rows[np.argsort(~first[rows], kind="stable")]
            pairs = [self.check.pairs[int(self.check.firsts[row])] for row in rows[:_SHEET]]
            note = f"{len(rows):,} images" if len(rows) > _SHEET else ""
            examples.append(Example([pair.path for pair in pairs], [pair.caption for pair in pairs], note))
        return examples[:EXAMPLES]


def left_out_pairs(check: Check, rows: BoolArray) -> Sequence[tuple[str, str]]:
    """Image and caption of the pairs to leave out."""
    return [(check.pairs[int(row)].path, check.pairs[int(row)].caption) for row in np.flatnonzero(rows)]

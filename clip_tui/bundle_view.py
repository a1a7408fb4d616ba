"""A run's bundle as text: its manifest and its parity table, for the Export screen and the demo's summary."""

from pathlib import Path

from clip_core.inference.bundle import read_manifest
from clip_core.inference.manifest import Manifest, Parity
from clip_core.run.paths import RunPaths
from clip_core.text import printable
from clip_tui.numbers import percent

HEADER = ("file", "batch", "tokens", "inputs", "max |diff|", "min cosine")
Row = tuple[str, ...]


def bundle_of(run: Path) -> Manifest | None:
    """The manifest of the run's bundle, or None where nothing was exported.

    Raises:
        BundleError: if it is damaged.
    """
    manifest = RunPaths(run).bundle_manifest
    return read_manifest(manifest.parent) if manifest.exists() else None


def parity_rows(manifest: Manifest) -> list[Row]:
    """A row for each file and batch size, in the order of HEADER."""
    return [
        (
            printable(row.file, 40),
            f"{row.batch}",
            "–" if row.tokens is None else f"{row.tokens}",
            f"{row.inputs:,}",
            f"{row.max_abs_diff:.1e}",
            f"{row.least_cosine:.7f}",
        )
        for variant in manifest.variants
        for row in variant.parity.rows
    ]


def variant_verdicts(manifest: Manifest) -> list[str]:
    """A sentence for each variant after the first: `int8 passed ..., recall@1 84.0% → 83.6%`."""
    return [f"{printable(each.precision)} {_verdict(each.parity)}" for each in manifest.variants[1:]]


def parity_verdict(manifest: Manifest) -> str:
    """The parity of the default variant in one sentence, without the word: `passed against PyTorch on ...`."""
    return _verdict(manifest.parity)


def _verdict(parity: Parity) -> str:
    recall = parity.recall
    kept = f", recall@1 {percent(recall.before)} → {percent(recall.after)}" if recall and not parity.exact else ""
    limit = f"tolerance {parity.tolerance:.0e}" if parity.exact else f"least cosine {parity.least_cosine:.4f}"
    return (
        f"{'passed' if parity.accepted else 'FAILED'} against PyTorch on {parity.images:,} images and "
        f"{parity.captions:,} captions: max |diff| {parity.max_abs_diff:.1e} ({limit}), "
        f"top-1 agreement {percent(parity.top1_agreement)}{kept}"
    )


def parity_lines(manifest: Manifest) -> list[str]:
    """The table as aligned plain lines."""
    rows = [HEADER, *parity_rows(manifest)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return [
        row[0].ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]


def bundle_size(manifest: Manifest) -> int:
    """Bytes of all files."""
    return sum(facts.size for facts in manifest.files.values())

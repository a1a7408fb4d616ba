"""The parity table of a bundle, for the export screen and for the end of the demo."""

from pathlib import Path

from clip_core.inference.bundle import Manifest, read_manifest
from clip_core.run.paths import MANIFEST
from clip_core.text import printable

HEADER = ("file", "batch", "tokens", "inputs", "max |diff|", "least cosine")
Row = tuple[str, ...]


def bundle_of(run: Path) -> Manifest | None:
    """The manifest of RUN/bundle, or None where nothing was exported.

    Raises:
        BundleError: if there is one that is damaged.
    """
    return read_manifest(run / "bundle") if (run / "bundle" / MANIFEST).exists() else None


def parity_rows(manifest: Manifest) -> list[Row]:
    """A line for each file and batch size, in the order of HEADER."""
    return [
        (
            printable(row.file, 40),
            f"{row.batch}",
            "–" if row.tokens is None else f"{row.tokens}",
            f"{row.inputs:,}",
            f"{row.max_abs_diff:.1e}",
            f"{row.least_cosine:.7f}",
        )
        for row in manifest.parity.rows
    ]


def parity_verdict(manifest: Manifest) -> str:
    """The table in one sentence."""
    parity = manifest.parity
    said = "the same" if parity.accepted else "NOT the same"
    return (
        f"{said} as the torch model on {parity.images:,} images and {parity.captions:,} captions: "
        f"max |difference| {parity.max_abs_diff:.1e}, top-1 agreement {100 * parity.top1_agreement:.1f} %"
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
    """Bytes of all its files."""
    return sum(facts.size for facts in manifest.files.values())

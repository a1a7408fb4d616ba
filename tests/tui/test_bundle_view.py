"""A bundle's manifest as text."""

from pathlib import Path

import pytest

from clip_core.errors import BundleError
from clip_core.run.paths import RunPaths
from clip_tui.bundle_view import HEADER, bundle_of, bundle_size, parity_lines, parity_verdict
from tests.tui.samples import manifest, write_bundle


def test_a_run_without_a_bundle_has_no_manifest(tmp_path: Path) -> None:
    assert bundle_of(tmp_path) is None


def test_a_damaged_manifest_is_an_error(tmp_path: Path) -> None:
    write_bundle(tmp_path, step=20)
    RunPaths(tmp_path).bundle_manifest.write_text("{}")
    with pytest.raises(BundleError, match="damaged"):
        bundle_of(tmp_path)


def test_the_manifest_of_a_run_is_read(tmp_path: Path) -> None:
    write_bundle(tmp_path, step=20)
    assert bundle_of(tmp_path) == manifest(tmp_path.name, step=20)
    assert bundle_size(manifest("run", step=20)) == 19_000_000


def test_the_table_has_a_row_for_each_file_and_batch_and_aligned_columns() -> None:
    header, *rows = parity_lines(manifest("run", step=20))
    assert header.split("  ")[0].strip() == HEADER[0]
    assert len(rows) == 4
    assert len({len(line) for line in (header, *rows)}) == 1
    assert "–" in rows[0], "images have no tokens"
    assert "77" in rows[-1]


@pytest.mark.parametrize(("difference", "verdict"), [(1.5e-7, "passed"), (3.2e-2, "FAILED")])
def test_the_verdict_is_the_one_of_the_manifest(difference: float, verdict: str) -> None:
    sentence = parity_verdict(manifest("run", step=20, difference=difference))
    assert sentence.startswith(verdict)
    assert f"{difference:.1e}" in sentence

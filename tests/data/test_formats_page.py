"""docs/formats.md, held to what the code does."""

import re
from pathlib import Path

from clip_core.data.formats.detect import FORMATS, read_data

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


def test_every_format_has_a_row_and_an_example():
    assert set(re.findall(r"^\| `([\w-]+)` \|", PAGE, flags=re.MULTILINE)) == set(FORMATS)
    assert set(re.findall(r"^## ([\w-]+)$", PAGE, flags=re.MULTILINE)) == set(FORMATS)


def test_the_examples_of_lists_are_recognised_as_what_they_stand_for(tmp_path: Path):
    for name in ("json", "jsonl", "csv", "flickr", "coco"):
        example = PAGE.partition(f"\n## {name}\n```")[2].partition("\n")[2].partition("```")[0]
        path = tmp_path / f"list{'.json' if name == 'coco' else ''}"
        path.write_text(example)
        reading = read_data(path)
        assert reading.format == name
        assert len(reading.pairs) >= 2
        assert all((pair.problem or "").startswith("no image at") for pair in reading.pairs)

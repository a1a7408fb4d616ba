"""Tables as programs export them: which column is which, what a missing caption looks like, how quotes are written."""

import json
from collections import Counter
from pathlib import Path

import pytest

from clip_core.data.formats.captions import clean_caption, list_in_cell
from clip_core.errors import DataError
from tests.data.sets import pairs_of, problem, read, write

WORDS = ["a red ball", "two birds on a wire", "an old clock", "rain at night", "a paper boat"]


def table(folder: Path, head: str, row: str, name: str = "all.csv") -> Path:
    """Five rows; {n} is the image's number, {words} its caption."""
    rows = [row.format(n=n, words=words) for n, words in enumerate(WORDS)]
    return write(folder / name, "\n".join([head, *rows]) + "\n")


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize(
    "link", ["https://example.org/a/long/page/about/{n}.html", "s3://bucket/of/many/images/{n}.png"]
)
@pytest.mark.parametrize("name", ["source_url", "caption", "text"])
def test_a_column_of_urls_is_never_the_captions_while_there_are_words(folder: Path, name: str, link: str):
    reading = read(table(folder, f"image,notes,{name}", "images/{n}.png,{words}," + link))
    assert reading.columns == {"image": "image", "caption": "notes"}


def test_several_columns_of_words_are_asked_about(folder: Path):
    path = table(folder, "image,place,mood", "images/{n}.png,the old harbour,{words}")
    with pytest.raises(DataError, match=r"may be in 'place', 'mood'; choose one with --caption-column"):
        read(path)
    assert read(path, caption_column="mood").columns["caption"] == "mood"
    with pytest.raises(DataError, match="'title', 'description'"):
        read(table(folder, "image,title,description", "images/{n}.png,the old harbour,{words}"))


def test_a_telling_name_is_taken_and_the_other_words_are_noted(folder: Path):
    reading = read(table(folder, "image,text,caption", "images/{n}.png,on a sign,{words}"))
    assert reading.columns["caption"] == "caption"
    assert reading.notes == ["captions are taken from 'caption', not from 'text'; see --caption-column."]


def test_numbers_of_classes_are_no_captions_until_the_user_says_so(folder: Path):
    path = table(folder, "filename,label", "images/{n}.png,{n}")
    with pytest.raises(DataError, match=r"'label' holds only numbers.*--caption-column label"):
        read(path)
    assert pairs_of(read(path, caption_column="label"))[1] == ("images/1.png", "1")


def test_the_split_column_is_honoured_in_every_spelling(folder: Path):
    parts = ["Train", "validation", "dev", "TEST", "training"]
    rows = [f"images/{n}.png,{WORDS[n]},{part}" for n, part in enumerate(parts)]
    reading = read(write(folder / "all.csv", "\n".join(["image,caption,split", *rows])))
    assert [pair.split for pair in reading.pairs] == ["train", "val", "val", "test", "train"]
    lines = [{"image": f"images/{n}.png", "caption": WORDS[n], "subset": part} for n, part in enumerate(parts)]
    reading = read(write(folder / "all.jsonl", "\n".join(map(json.dumps, lines))))
    assert Counter(pair.split for pair in reading.pairs) == {"train": 2, "val": 2, "test": 1}


def test_a_split_column_that_tells_no_splits_is_noted(folder: Path):
    reading = read(table(folder, "image,caption,split", "images/{n}.png,{words},part{n}"))
    assert {pair.split for pair in reading.pairs} == {None}
    assert reading.notes == ["column 'split' is ignored: 'part0' is not train, val or test."]


# ---------------------------------------------------------------- captions


@pytest.mark.parametrize(
    "caption",
    [
        "nan",
        "NaN",
        "None",
        "NULL",
        "",
        "   ",
        "<NA>",
        "N/A",
        "\u200b",
        "\ufeff \u200d",
        "\u3164",
        "\u2800",
        "\\N",
        "[]",
    ],
)
def test_a_missing_caption_is_a_bad_pair(folder: Path, caption: str):
    rows = [f"images/{n}.png,{WORDS[n]}" for n in range(4)]
    assert "the caption" in problem(
        write(folder / "all.csv", "\n".join(["image,caption", f"images/4.png,{caption}", *rows]))
    )


@pytest.mark.parametrize("caption", ["nancy", "no", "none of them", "🐈‍⬛", "黑猫", "I", "7 of 9", "\u200ba cat\u200b"])
def test_a_short_or_foreign_caption_is_no_missing_one(caption: str):
    assert clean_caption(caption) == (caption.strip("\u200b"), None)


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ('["a \\"b\\"", "c"]', ['a "b"', "c"]),
        ("['it\\'s', \"c\"]", ["it's", "c"]),
        ("('a', 'b',)", ["a", "b"]),
        ("['a b'\n 'c d']", ["a b", "c d"]),
        ("[]", []),
        ("[a dog]", None),
        ("['a', 3]", None),
        ("['a', __import__('os')]", None),
        ("[1, 2]", None),
        ("(a dog)", None),
        ("[" * 50_000 + "]" * 50_000, None),
    ],
)
def test_a_list_in_a_cell(cell: str, captions: list[str] | None):
    assert list_in_cell(cell) == captions


def test_a_list_in_a_cell_is_several_captions(folder: Path):
    reading = read(table(folder, "image,raw", "images/{n}.png,\"['{words}', 'number {n}']\""))
    assert pairs_of(reading)[:2] == [("images/0.png", "a red ball"), ("images/0.png", "number 0")]
    assert reading.notes == ["5 captions are lists; each of their captions makes a pair."]


# ---------------------------------------------------------------- dialects


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;"])
def test_the_separator_line_of_a_spreadsheet_is_read(folder: Path, line: str):
    path = table(folder, f"{line}\nimage;caption", "images/{n}.png;{words}, and more")
    assert pairs_of(read(path))[0] == ("images/0.png", "a red ball, and more")
    assert read(path).pairs[0].place == "line 3"


@pytest.mark.parametrize("rest", [", at night", " stop", ""])
def test_quotes_escaped_by_backslashes_are_read(folder: Path, rest: str):
    path = table(folder, "image,caption", 'images/{n}.png,"a \\"stop {n}\\"' + (rest or " sign") + '"')
    assert pairs_of(read(path))[2] == ("images/2.png", 'a "stop 2"' + (rest or " sign"))


def test_windows_paths_survive_in_quotes(folder: Path):
    path = table(folder, "image,caption", '"images\\{n}.png","{words}"')
    assert pairs_of(read(path))[4] == ("images/4.png", "a paper boat")


def test_a_very_long_caption_is_read(folder: Path):
    path = write(folder / "all.csv", f'image,caption\nimages/0.png,"{"word " * 50_000}"\nimages/1.png,a cat\n')
    assert [len(pair.caption) for pair in read(path).pairs] == [249_999, 5]


@pytest.mark.parametrize("ending", ["\r", "\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_line_ends_and_encodings(folder: Path, ending: str, encoding: str):
    rows = ["image,caption", *(f"images/{n}.png,{words} é" for n, words in enumerate(WORDS))]
    path = write(folder / "all.csv", (ending.join(rows) + ending).encode(encoding))
    assert pairs_of(read(path))[3] == ("images/3.png", "rain at night é")

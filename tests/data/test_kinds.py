"""Fifty kinds of data set as people have them, and their siblings: each is read right, or refused with what to do.

Nothing is decoded, so the images are empty files.
"""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from clip_core.data.formats.detect import Reading, read_data
from clip_core.data.formats.source import ReadOptions
from clip_core.errors import DataError
from tests.pairs import check_pairs

Build = Callable[[Path], object]
COUNT = 6


def cap(number: int) -> str:
    return f"a red square number {number}"


def images(root: Path, under: str = "images", names: Sequence[str] = ()) -> list[Path]:
    files = [root / under / name for name in names or [f"{number:03d}.jpg" for number in range(COUNT)]]
    for file in files:
        write(file, b"")
    return files


def write(file: Path, content: str | bytes, encoding: str = "utf-8") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))


def table(head: str, line: str, name: str = "pairs.csv", encoding: str = "utf-8", end: str = "\n") -> Build:
    """A table whose lines are this one with {n}, {c} and {s} filled in, beside the images."""

    def build(root: Path) -> None:
        images(root)
        splits = ("train", "val", "test")
        lines = [line.format(n=f"{n:03d}", c=cap(n), s=splits[n % 3], d=cap(n + 1)) for n in range(COUNT)]
        write(root / name, end.join([*([head] if head else []), *lines]) + end, encoding)

    return build


def listed(value: object, name: str = "pairs.json") -> Build:
    def build(root: Path) -> None:
        images(root)
        write(root / name, value if isinstance(value, str) else json.dumps(value))

    return build


def sidecars(name: Callable[[Path], str], *folders: str, suffix: str = ".jpg", encoding: str = "utf-8") -> Build:
    def build(root: Path) -> None:
        number = 0
        for folder in folders:
            for image in images(root, folder, [f"{n:03d}{suffix}" for n in range(COUNT // len(folders))]):
                write(image.parent / name(image), cap(number), encoding)
                number += 1

    return build


def tar(file: Path, members: Sequence[tuple[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content.encode()))


def shard(*names: str, caption: Callable[[int], str] = cap) -> Build:
    """The samples of these names, numbered from 0, in one shard."""

    def build(root: Path) -> None:
        pairs = [(f"{name}.jpg", f"image {n}") for n, name in enumerate(names)]
        texts = [(f"{name}.txt", caption(n)) for n, name in enumerate(names)]
        tar(root / "a.tar", [member for both in zip(pairs, texts, strict=True) for member in both])

    return build


def entries(image: str = "image", caption: str = "caption") -> list[dict[str, Any]]:
    return [{image: f"images/{n:03d}.jpg", caption: cap(n)} for n in range(COUNT)]


def hub(*parts: str) -> Build:
    def build(root: Path) -> None:
        for part in parts:
            images(root, part)
            lines = "".join(f"{n:03d}.jpg,{cap(n)}\n" for n in range(COUNT))
            write(root / part / "metadata.csv", f"file_name,text\n{lines}")

    return build


def snapshot(root: Path) -> None:
    """As huggingface_hub caches it: every file a link to ../../blobs."""
    inner = root / "snapshots" / "0a1b"
    inner.mkdir(parents=True)
    hub("")(root / "blobs")
    for blob in list((root / "blobs").iterdir()):
        (inner / blob.name).symlink_to(f"../../blobs/{blob.name}")


def heic(root: Path) -> None:
    sidecars(lambda image: f"{image.stem}.txt", "")(root)
    for number in range(4):
        write(root / f"IMG_{number}.cr2", b"II*\0")


def beside_a_tar(root: Path) -> None:
    sidecars(lambda image: f"{image.stem}.txt", "")(root)
    tar(root / "backup.tar", [("x.jpg", "x"), ("x.txt", "another caption")])


def spaced(root: Path) -> None:
    names = [f"my {n:03d}.jpg" for n in range(COUNT)]
    images(root, names=names)
    lines = "".join(f"images/{name.replace(' ', '%20')},{cap(n)}\n" for n, name in enumerate(names))
    write(root / "pairs.csv", f"image,caption\n{lines}")


def odd_names(root: Path) -> None:
    names = [f'a #{n} 100% "q" it\'s.jpg' for n in range(COUNT)]
    images(root, names=names)
    quoted = [name.replace('"', '""') for name in names]
    write(root / "pairs.csv", "image,caption\n" + "".join(f'"images/{q}",{cap(n)}\n' for n, q in enumerate(quoted)))


def by_address(root: Path) -> None:
    table("image,caption", f"file://{root}/images/{{n}}.jpg,{{c}}")(root)


def apart(root: Path) -> None:
    for number, image in enumerate(images(root)):
        write(root / "captions" / f"{image.stem}.txt", cap(number))


def split_shards(root: Path) -> None:
    for part, number in (("train", 0), ("train", 1), ("val", 2)):
        tar(root / part / f"{number}.tar", [("a.jpg", "x"), ("a.txt", cap(number))])


def named_shards(root: Path) -> None:
    for number, part in enumerate(("train", "test")):
        tar(root / f"{part}-0.tar", [("a.jpg", "x"), ("a.txt", cap(number))])


KARPATHY = {
    "images": [
        {"filename": f"{n:03d}.jpg", "filepath": "images", "split": split, "sentences": [{"raw": cap(n)}]}
        for n, split in enumerate(["train", "restval", "train", "val", "val", "test"])
    ]
}
TALKS = [
    {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": cap(n)}], "images": [image]}
    for n, image in enumerate(entry["image"] for entry in entries())
]
TABLE = table("image,caption", "images/{n}.jpg,{c}")

# Kind: how it is made, the file to read, its format, and pairs (caption by number) in the order of the list.
READ: dict[str, tuple[Build, str, str]] = {
    "windows_paths": (table("image,caption", "images\\{n}.jpg,{c}"), "pairs.csv", "csv"),
    "percent_names": (spaced, "pairs.csv", "csv"),
    "no_suffix": (table("image_id,caption", "{n},{c}"), "pairs.csv", "csv"),
    "case_differs": (table("image,caption", "images/{n}.JPG,{c}"), "pairs.csv", "csv"),
    "file_address": (by_address, "pairs.csv", "csv"),
    "odd_names": (odd_names, "pairs.csv", "csv"),
    "link_column": (table("image,tags,source_url", "images/{n}.jpg,{c},https://e.org/{n}.html"), "pairs.csv", "csv"),
    "indexed": (table(",image,caption", "{n},images/{n}.jpg,{c}"), "pairs.csv", "csv"),
    "old_mac_lines": (table("image,caption", "images/{n}.jpg,{c}", end="\r"), "pairs.csv", "csv"),
    "blank_lines": (table("image,caption\n", "images/{n}.jpg,{c}\n\n  ,\n"), "pairs.csv", "csv"),
    "utf_16": (table("image,caption", "images/{n}.jpg,{c}", encoding="utf-16"), "pairs.csv", "csv"),
    "utf_16_without_mark": (table("image,caption", "images/{n}.jpg,{c}", encoding="utf-16-le"), "pairs.csv", "csv"),
    "utf_32": (table("image,caption", "images/{n}.jpg,{c}", encoding="utf-32"), "pairs.csv", "csv"),
    "mark_of_utf_8": (table("image,caption", "images/{n}.jpg,{c}", encoding="utf-8-sig"), "pairs.csv", "csv"),
    "other_names": (table("Image Path;Blip Caption", "images/{n}.jpg;{c}"), "pairs.csv", "csv"),
    "no_header": (table("", "images/{n}.jpg\t{c}", name="pairs.txt"), "pairs.txt", "csv"),
    "other_keys": (listed(entries("file_name", "text")), "pairs.json", "json"),
    "keys_in_another_case": (listed(entries("Image", "Caption")), "pairs.json", "json"),
    "wrapped": (listed({"info": {}, "data": entries()}), "pairs.json", "json"),
    "name_to_caption": (listed({e["image"]: e["caption"] for e in entries()}), "pairs.json", "json"),
    "pairs_as_lists": (listed([[e["image"], e["caption"]] for e in entries()]), "pairs.json", "json"),
    "captions_first": (listed([[e["caption"], e["image"]] for e in entries()]), "pairs.json", "json"),
    "columns": (listed({key: [e[key] for e in entries()] for key in ("image", "caption")}), "pairs.json", "json"),
    "images_as_objects": (
        listed([e | {"image": {"path": e["image"], "bytes": None}} for e in entries()]), "pairs.json", "json",
    ),
    "conversations": (listed(TALKS), "pairs.json", "json"),
    "karpathy": (listed(KARPATHY), "pairs.json", "json"),
    "lines_called_json": (listed("\n".join(map(json.dumps, entries()))), "pairs.json", "jsonl"),
    "list_called_jsonl": (listed(entries(), "pairs.jsonl"), "pairs.jsonl", "json"),
    "lists_in_lines": (
        listed("\n\n".join(json.dumps([e["image"], e["caption"]]) for e in entries()), "a.jsonl"), "a.jsonl", "jsonl",
    ),
    "hub_only_train": (hub("train"), "", "imagefolder"),
    "hub_snapshot": (snapshot, "", "imagefolder"),
    "kohya_captions": (sidecars(lambda image: f"{image.stem}.caption", "10_cat", "5_dog"), "", "sidecar"),
    "kohya_captions_flat": (sidecars(lambda image: f"{image.stem}.caption", ""), "", "sidecar"),
    "upper_case_txt": (sidecars(lambda image: f"{image.stem}.TXT", "", suffix=".JPG"), "", "sidecar"),
    "mixed_case_suffixes": (sidecars(lambda image: f"{image.name}.Txt", "a b", suffix=".WebP"), "", "sidecar"),
    "utf_16_captions": (sidecars(lambda image: f"{image.stem}.txt", "", encoding="utf-16"), "", "sidecar"),
    "deep_folders": (sidecars(lambda image: f"{image.stem}.txt", "x/y/z", suffix=".tiff"), "", "sidecar"),
    "captions_apart": (apart, "", "sidecar"),
    "raw_beside_txt": (heic, "", "sidecar"),
    "tar_beside_captions": (beside_a_tar, "", "sidecar"),
    "tar_dotted_names": (shard(*(f"2023.01.{n:02d}" for n in range(COUNT))), "", "webdataset"),
    "tar_same_key_twice": (shard(*(f"{n:05d}" for n in (0, 1, 2, 0, 1, 2))), "", "webdataset"),
}  # fmt: skip


def read(root: Path, inside: str, **options: Any) -> Reading:
    return read_data(root / inside if inside else root, ReadOptions(**options))


def good(reading: Reading) -> list[str]:
    return [pair.caption for pair in reading.pairs if pair.problem is None]


@pytest.mark.parametrize("kind", READ)
def test_every_image_gets_its_own_caption(kind: str, tmp_path: Path):
    build, inside, form = READ[kind]
    build(tmp_path / "set")
    reading = read(tmp_path / "set", inside)
    assert reading.format == form
    assert [pair.problem for pair in reading.pairs] == [None] * COUNT
    assert sorted(good(reading)) == [cap(n) for n in range(COUNT)]
    if not kind.startswith(("tar_dotted", "tar_same", "kohya_captions")):
        numbers = [int("".join(filter(str.isdigit, pair.image.stem))[:4].strip("0") or 0) for pair in reading.pairs]
        if kind != "odd_names":
            assert good(reading) == [cap(n) for n in numbers]


def test_a_key_that_comes_twice_never_gives_an_image_the_other_caption(tmp_path: Path):
    shard("0", "1", "0", "1")(tmp_path)
    for pair in read_data(tmp_path).pairs:
        offset = int(pair.path.split("!/")[1].partition("+")[0])
        assert (tmp_path / "a.tar").read_bytes()[offset:].startswith(f"image {pair.caption[-1]}".encode())


LISTS_IN_CELLS = table("image,raw,subset", 'images/{n}.jpg,"[""{c}"", ""{d}""]",{s}')


@pytest.mark.parametrize(
    ("build", "inside", "counts"),
    [
        (table("image,caption,split", "images/{n}.jpg,{c},{s}"), "pairs.csv", {"train": 2, "val": 2, "test": 2}),
        (LISTS_IN_CELLS, "pairs.csv", {"train": 4, "val": 4, "test": 4}),
        (listed(KARPATHY), "pairs.json", {"train": 3, "val": 2, "test": 1}),
        (hub("train", "test"), "", {"train": 6, "test": 6}),
        (sidecars(lambda image: f"{image.stem}.txt", "Training", "valid"), "", {"train": 3, "val": 3}),
        (split_shards, "", {"train": 2, "val": 1}),
        (named_shards, "", {"train": 1, "test": 1}),
    ],
)  # fmt: skip
def test_stated_splits_are_honoured(tmp_path: Path, build: Build, inside: str, counts: dict[str, int]):
    build(tmp_path)
    splits = [pair.split for pair in read(tmp_path, inside).pairs]
    assert {str(split): splits.count(split) for split in splits} == counts


@pytest.mark.parametrize(
    ("column", "value"), [("is_valid", "True"), ("fold", "3"), ("split", "holdout"), ("test", "0")]
)
def test_a_split_that_is_not_understood_is_named_as_ignored(tmp_path: Path, column: str, value: str):
    table(f"image,caption,{column}", f"images/{{n}}.jpg,{{c}},{value}")(tmp_path)
    reading = read(tmp_path, "pairs.csv")
    assert len(good(reading)) == COUNT
    assert any(f"column '{column}' is ignored" in note for note in reading.notes)


MISSING = ["nan", "None", "NULL", "N/A", "\u200b", "  "]


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "webdataset", "sidecar"])
def test_missing_captions_are_bad_pairs_in_every_format(tmp_path: Path, form: str):
    captions = [*MISSING, cap(6)]
    names = [f"images/{number}.jpg" for number in range(len(captions))]
    images(tmp_path, "", names)
    values = [{"image": name, "caption": caption} for name, caption in zip(names, captions, strict=True)]
    if form == "csv":
        lines = [f'{name},"{caption}"' for name, caption in zip(names, captions, strict=True)]
        write(tmp_path / "a.csv", "image,caption\n" + "\n".join(lines))
    elif form == "json":
        write(
            tmp_path / "a.json",
            json.dumps([*values, {"image": names[0], "caption": float("nan")}, {"image": names[0]}]),
        )
    elif form == "jsonl":
        write(
            tmp_path / "a.jsonl",
            "\n".join([*map(json.dumps, values), '{"image": "a.jpg", "caption": NaN}', "null", "{"]),
        )
    elif form == "webdataset":
        shard(*(str(n) for n in range(len(captions))), caption=lambda n: captions[n])(tmp_path / "shards")
    else:
        for name, caption in zip(names, captions, strict=True):
            write((tmp_path / name).with_suffix(".txt"), caption)
    where = {"webdataset": tmp_path / "shards", "sidecar": tmp_path / "images"}.get(form, tmp_path / f"a.{form}")
    reading = read_data(where)
    assert reading.format == form
    assert good(reading) == [cap(6)]
    assert len([pair for pair in reading.pairs if pair.problem]) >= len(MISSING)


@pytest.mark.parametrize(
    ("head", "line", "caption"),
    [
        ("sep=;\nimage;caption", "images/{n}.jpg;{c}, on grey", f"{cap(0)}, on grey"),
        ("image,caption", 'images/{n}.jpg,"a sign that says \\"stop\\", {n}"', 'a sign that says "stop", 000'),
        ("image,caption", 'images/{n}.jpg,"' + "word " * 40_000 + '{n}"', "word " * 40_000 + "000"),
        ("image,caption", 'images/{n}.jpg,"{c}\n\nsecond line"', f"{cap(0)}\n\nsecond line"),
        ("image,caption", 'images/{n}.jpg,"' + "one line, and\n" * 30 + '{c}"', "one line, and\n" * 30 + cap(0)),
        ("image,caption", "images/{n}.jpg,黑猫在沙发上 {n}", "黑猫在沙发上 000"),
        ("image,caption", "images/{n}.jpg,🐈‍⬛🔥 {n}", "🐈‍⬛🔥 000"),
    ],
)
def test_cells_as_spreadsheets_write_them(tmp_path: Path, head: str, line: str, caption: str):
    table(head, line)(tmp_path)
    reading = read(tmp_path, "pairs.csv")
    assert len(good(reading)) == COUNT
    assert good(reading)[0] == caption


def test_a_few_captions_beside_images_are_captions_and_the_folders_names_are_none(tmp_path: Path):
    for folder in "ab":
        for image in images(tmp_path, folder)[:2]:
            write(image.with_suffix(".txt"), cap(1))
    reading = read_data(tmp_path)
    assert (reading.format, good(reading)) == ("sidecar", [cap(1)] * 4)
    assert "8 of 12 images have no captions" in reading.notes


def test_a_json_beside_each_image_is_read_where_it_holds_a_caption(tmp_path: Path):
    for number, image in enumerate(images(tmp_path, "00000")):
        write(image.with_suffix(".json"), json.dumps({"caption": cap(number), "url": "https://e.org"}))
    write(tmp_path / "00000_stats.json", "{}")
    reading = read_data(tmp_path)
    assert (reading.format, good(reading)) == ("sidecar", [cap(n) for n in range(COUNT)])
    assert reading.not_read == {".json": 1}
    write(tmp_path / "00000" / "000.txt", "from the text")
    assert good(read_data(tmp_path))[0] == "from the text"


def test_classes_are_read_through_links_and_beside_archives_and_not_from_caches(tmp_path: Path):
    for name in ("cat", "dog"):
        images(tmp_path / "set", name)
    images(tmp_path, "elsewhere")
    (tmp_path / "set" / "fox").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "set" / "old" / "CACHEDIR.TAG", "Signature")
    images(tmp_path / "set", "old")
    tar(tmp_path / "set" / "backup.tar", [("x.jpg", "x"), ("x.txt", "another caption")])
    reading = read_data(tmp_path / "set")
    assert reading.format == "class-folders"
    assert set(good(reading)) == {"a photo of a cat", "a photo of a dog", "a photo of a fox"}
    assert reading.not_read == {".tar": 1, "a cache (old)": 1}


ADDRESS = "https://e.org/{n}.jpg?w=300"
REFUSED: dict[str, tuple[Build, str, str]] = {
    "web_addresses": (table("URL,TEXT", f"{ADDRESS},{{c}}"), "pairs.csv", "6 images are URLs, .*img2dataset"),
    "cc3m": (table("", f"{{c}}\t{ADDRESS}", name="a.tsv"), "a.tsv", "6 images are URLs, .*img2dataset"),
    "base64": (
        listed([e | {"image": "data:image/png;base64,AAAA"} for e in entries()]), "pairs.json", "as base64; write them",
    ),
    "class_numbers": (table("filename,label", "images/{n}.jpg,3"), "pairs.csv", "'label' holds only numbers"),
    "two_captions": (table("image,en,de", "images/{n}.jpg,{c},{c} x"), "pairs.csv", "'en', 'de'; .*--caption-column"),
    "two_numbered": (
        listed([{"image": e["image"], "caption_1": "a cat", "caption_2": "a dog"} for e in entries()]), "pairs.json",
        "'caption_1', 'caption_2'; choose one with --caption-column",
    ),
    "uneven_columns": (listed({"image": ["a.jpg", "b.jpg"], "caption": ["a cat"]}), "pairs.json", "different lengths"),
    "one_class": (lambda root: images(root, "cat"), "", "one folder, cat, and no captions: add a NAME.txt"),
    "no_captions": (lambda root: images(root, ""), "", "6 images and no captions: add a NAME.txt"),
    "lists_in_a_folder": (TABLE, "", "name a list: .*pairs.csv"),
    "lists_of_splits": (
        lambda root: [write(root / f"{name}.csv", "image,caption\na.jpg,a cat\n") for name in ("train", "val")],
        "", "name a list: .*train.csv, and .*val.csv as --val-file",
    ),
    "json_without_captions": (
        lambda root: [write(image.with_suffix(".json"), '{"tags": ["a"]}') for image in images(root, "")], "",
        r"no captions \(6 .json beside them have none",
    ),
    "boxes": (
        lambda root: [write(image.with_suffix(".txt"), "0 0.1 0.2 0.3 0.4") for image in images(root, "")], "",
        "hold numbers, as of object detection",
    ),
    "xlsx": (lambda root: write(root / "pairs.xlsx", b"PK\3\4"), "pairs.xlsx", "is an Excel file: save it as CSV"),
    "excel_called_csv": (
        lambda root: write(root / "pairs.csv", b"PK\3\4[Content_Types].xml"), "pairs.csv", "an Excel file: save it",
    ),
    "broken_parquet": (
        lambda root: write(root / "a.parquet", b"PAR1" + bytes(200) + b"PAR1"), "a.parquet", "cannot be read as",
    ),
    "empty": (lambda root: write(root / "pairs.csv", "\ufeff\n"), "pairs.csv", "is empty; name a list"),
    "words": (lambda root: write(root / "notes.md", "# notes\nof mine\n"), "notes.md", "is no list of images"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_sentence_with_what_to_do(kind: str, tmp_path: Path):
    build, inside, message = REFUSED[kind]
    build(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, inside)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 250


@pytest.mark.parametrize("name", ["https://e.org/a.csv", "pairs.CSV", "pairs", "Pairs.csv", "./images\\000.jpg"])
def test_a_path_that_is_not_there_is_answered_with_what_is_meant(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    TABLE(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"download it first|did you mean"):
        read_data(Path(name))


def test_files_that_are_no_images_are_bad_pairs(tmp_path: Path):
    images(tmp_path, names=["none.jpg"])
    write(tmp_path / "images" / "page.jpg", "<html>403 Forbidden</html>")
    write(tmp_path / "a.csv", "image,caption\nimages/none.jpg,a cat\nimages/page.jpg,a dog\n")
    bad = check_pairs(read_data(tmp_path / "a.csv").pairs).bad
    assert ["not an image" in one.reason for one in bad] == [True, True]

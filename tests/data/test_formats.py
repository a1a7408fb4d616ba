"""Every format as it is found in the wild, made here: what is detected, what is read, what is refused."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_core.config import DataConfig
from clip_core.data.formats.detect import FORMATS
from clip_core.errors import ClipError, DataError, UsageError
from tests.data.sets import image, pairs_of, problem, read, write
from tests.pairs import check_pairs

# ---------------------------------------------------------------- lists


def test_every_format_of_the_configuration_is_in_the_table():
    choices = DataConfig.model_json_schema()["properties"]["format"]["anyOf"][0]["enum"]
    assert set(choices) == set(FORMATS)


def test_a_json_list_is_recognised_by_its_bracket_whatever_its_name(folder: Path):
    entries = json.dumps([{"image": "images/0.png", "caption": ["a", "b"]}])
    for name in ("pairs.json", "pairs.txt", "pairs"):
        reading = read(write(folder / name, entries))
        assert (reading.format, pairs_of(reading)) == ("json", [("images/0.png", "a"), ("images/0.png", "b")])


def test_a_json_list_may_have_other_keys_which_are_found_or_named(folder: Path):
    path = write(folder / "labels.json", json.dumps([{"file": "images/0.png", "label": "glass", "x": "a cup"}]))
    with pytest.raises(DataError, match=r"the captions may be in 'label', 'x'; choose one with --caption-column"):
        read(path)
    assert pairs_of(read(path, image_column="file", caption_column="label")) == [("images/0.png", "glass")]
    path = write(folder / "labels.json", json.dumps([{"file": "images/0.png", "label": "glass"}]))
    assert pairs_of(read(path)) == [("images/0.png", "glass")]


@pytest.mark.parametrize("keys", [("image", "caption"), ("file_name", "text"), ("url", "words")])
def test_json_lines_find_their_keys(folder: Path, keys: tuple[str, str]):
    lines = [{"id": n, keys[0]: f"images/{n}.png", keys[1]: [f"caption {n}", "again"]} for n in range(3)]
    path = write(folder / "all.jsonl", "\r\n".join(json.dumps(line) for line in lines) + "\r\n\r\n")
    reading = read(path)
    assert reading.format == "jsonl"
    assert reading.columns == {"image": keys[0], "caption": keys[1]}
    assert pairs_of(reading)[:2] == [("images/0.png", "caption 0"), ("images/0.png", "again")]


def test_json_lines_with_a_mark_and_line_separators_in_a_caption(folder: Path):
    line = json.dumps({"image": "images/0.png", "caption": "two\u2028lines \u0085 and ünïcödé"}, ensure_ascii=False)
    reading = read(write(folder / "all.jsonl", b"\xef\xbb\xbf" + line.encode()))
    assert pairs_of(reading) == [("images/0.png", "two\u2028lines \u0085 and ünïcödé")]


def test_a_json_line_that_is_torn_or_lacks_a_key_is_named(folder: Path):
    good = '{"image": "images/0.png", "caption": "a"}\n'
    path = write(folder / "a.jsonl", good + '{"image": "images/1.png"}')
    assert problem(path) == "line 2: it has no caption"
    assert problem(write(folder / "b.jsonl", good + good[:20])) == "line 2: it is not JSON"
    assert problem(write(folder / "c.jsonl", good + "\n[1]")) == "line 3: [1] is no object"
    with pytest.raises(DataError, match=r"line 1: it is not JSON; it should be JSON lines"):
        read(write(folder / "d.jsonl", good[:20]))


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_table_in_any_dialect(folder: Path, delimiter: str, ending: str, mark: bytes):
    rows = [["id", "filepath", "split", "title"]]
    rows += [[str(n), f"images/{n}.png", "train", f'"ünï {delimiter} ""q"" {n}"'] for n in range(5)]
    content = mark + ending.join(delimiter.join(row) for row in rows).encode() + ending.encode()
    reading = read(write(folder / "all.csv", content))
    assert reading.columns == {"image": "filepath", "caption": "title", "split": "split"}
    assert {pair.split for pair in reading.pairs} == {"train"}
    assert pairs_of(reading) == [(f"images/{n}.png", f'ünï {delimiter} "q" {n}') for n in range(5)]


def test_a_table_saved_by_a_spreadsheet_as_utf16(folder: Path):
    content = "image\tcaption\r\nimages/0.png\tein Bär\r\n".encode("utf-16")
    assert pairs_of(read(write(folder / "all.txt", content))) == [("images/0.png", "ein Bär")]


def test_images_are_the_column_whose_values_are_files_and_captions_the_longest_words(folder: Path):
    rows = ["x,y,z,w", *(f"gone{n}.png,0.5,images/{n}.png,a thing of number {n}" for n in range(5))]
    reading = read(write(folder / "all.csv", "\n".join(rows)))
    assert reading.columns == {"image": "z", "caption": "w"}


def test_a_table_without_a_header_has_numbered_columns(folder: Path):
    path = write(folder / "all.tsv", "images/0.png\ta cat\nimages/1.png\ta dog\n")
    assert pairs_of(read(path)) == [("images/0.png", "a cat"), ("images/1.png", "a dog")]
    assert pairs_of(read(path, image_column="1", caption_column="2")) == pairs_of(read(path))


def test_the_user_decides_which_columns(folder: Path):
    path = write(folder / "all.csv", "image,caption,alt\nimages/0.png,short,long\n")
    assert pairs_of(read(path, caption_column="ALT")) == [("images/0.png", "long")]
    with pytest.raises(DataError, match=r"no column 'Alt text', only 'image', 'caption', 'alt'; correct --caption-c"):
        read(path, caption_column="Alt text")


def test_a_table_without_images_or_captions_says_so(folder: Path):
    with pytest.raises(DataError, match=r"no column holds images among 'id', 'words'; name it with --image-col"):
        read(write(folder / "a.csv", "id,words\n1,a cat\n2,a dog\n"))
    with pytest.raises(DataError, match=r"no column holds captions among 'image', 'x'"):
        read(write(folder / "b.csv", "image,x\nimages/0.png,1\n"))


def test_a_last_caption_may_have_unquoted_commas(folder: Path):
    rows = ["image,caption", *(f"images/{n}.png,a cat, a dog, {n}" for n in range(4)), "images/4.png,a fox"]
    captions = [caption for _, caption in pairs_of(read(write(folder / "captions.txt", "\n".join(rows))))]
    assert captions == [*(f"a cat, a dog, {n}" for n in range(4)), "a fox"]


def test_quotes_that_are_letters_do_not_swallow_lines(folder: Path):
    rows = ["image\tcaption", 'images/0.png\t"quoted and open', *(f"images/{n % 5}.png\ta {n}" for n in range(40))]
    assert len(pairs_of(read(write(folder / "all.tsv", "\n".join(rows))))) == 41


def test_a_quote_that_opens_far_down_and_never_closes_is_named(folder: Path):
    rows = ["image,caption", *(f"images/0.png,a caption of number {n}" for n in range(4000))]
    rows += ['images/0.png,"open', *("images/0.png,swallowed" for _ in range(100))]
    with pytest.raises(DataError, match="line 4002: a quote is never closed"):
        read(write(folder / "all.csv", "\n".join(rows)))


def test_a_caption_of_two_lines_and_the_lines_after_it_keep_their_numbers(folder: Path):
    path = write(folder / "all.csv", 'image,caption\nimages/0.png,"two\nlines"\n\nimages/1.png,a\nimages/2.png\n')
    assert pairs_of(read(path))[0] == ("images/0.png", "two\nlines")
    assert problem(path) == "line 6: it has 1 columns of 2"


@pytest.mark.parametrize("name", ["all.csv", "all.tsv", "all.jsonl", "all.json", "all.txt"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"\x00\x01\x02", b"\xff\xfe"])
def test_an_empty_or_binary_file_is_refused_in_one_sentence(folder: Path, name: str, content: bytes):
    with pytest.raises(DataError, match=name) as caught:
        read(write(folder / name, content))
    assert "\n" not in str(caught.value)


def test_a_list_that_is_not_utf8_names_the_line(folder: Path):
    with pytest.raises(DataError, match=r"all\.csv, line 2: not text in UTF-8; save it as UTF-8"):
        read(write(folder / "all.csv", b"image,caption\nimages/0.png,caf\xe9\n"))


def test_a_web_address_and_a_path_out_of_the_folder_are_bad_pairs(folder: Path):
    image(folder.parent / "outside.png")
    head = "image,caption\nimages/0.png,a\n"
    assert "is a URL; download it first" in problem(write(folder / "a.csv", head + "https://x.org/a.png,b\n"))
    assert "leads out of" in problem(write(folder / "b.csv", head + "../outside.png,b\n"))


# ---------------------------------------------------------------- published lists


def test_coco_captions_find_their_images_beside_the_annotations_folder(tmp_path: Path):
    image(tmp_path / "val2017" / "000000000139.jpg")
    value = {
        "info": {}, "licenses": [],
        "images": [{"id": 139, "file_name": "000000000139.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 139, "caption": "A room ."},
            {"id": 2, "image_id": "139", "caption": "The same ."},
            {"id": 3, "image_id": 7, "caption": "A ghost ."},
        ],
    }  # fmt: skip
    reading = read(write(tmp_path / "annotations" / "captions_val2017.json", json.dumps(value)))
    assert reading.format == "coco"
    assert [caption for _, caption in pairs_of(reading)] == ["A room .", "The same ."]
    assert problem(reading.path) == "annotation 3: there is no image with the id 7"


def test_coco_files_of_other_things_are_refused(folder: Path):
    boxes = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}
    with pytest.raises(DataError, match="its annotations have no captions; give the captions_"):
        read(write(folder / "instances.json", json.dumps(boxes)))
    with pytest.raises(DataError, match="has no list of images"):
        read(write(folder / "odd.json", json.dumps(boxes | {"images": {"1": "a.jpg"}})))


def test_flickr8k_tokens(folder: Path):
    content = "".join(f"{n}.png#{i}\tA dog , number {i} .\r\n" for n in range(2) for i in range(5))
    reading = read(write(folder / "Flickr8k.token.txt", content))
    assert reading.format == "flickr"
    assert pairs_of(reading)[5] == ("1.png", "A dog , number 0 .")
    assert reading.root == folder / "images"


def test_flickr30k_results_with_the_line_that_lacks_a_bar(folder: Path):
    content = "image_name| comment_number| comment\n0.png| 0| Two men | talk .\n1.png| 4   A dog runs .\n"
    reading = read(write(folder / "results.csv", content))
    assert reading.format == "flickr"
    assert [caption for _, caption in pairs_of(reading)] == ["Two men | talk .", "A dog runs ."]


def test_flickr8k_captions_csv(folder: Path):
    content = 'image,caption\n0.png,A child in a pink dress .\n1.png,"A dog , and a ""cat"" ."\n'
    reading = read(write(folder / "captions.txt", content))
    assert reading.format == "csv"
    assert [caption for _, caption in pairs_of(reading)] == ["A child in a pink dress .", 'A dog , and a "cat" .']


# ---------------------------------------------------------------- folders


def test_images_with_a_txt_beside_each(folder: Path):
    for number in range(4):
        write(folder / "images" / f"{number}.txt", f"\ufeffcaption {number}\r\n\r\n second \n")
    reading = read(folder)
    assert reading.format == "sidecar"
    assert pairs_of(reading)[:2] == [("images/0.png", "caption 0"), ("images/0.png", "second")]
    assert problem(folder) == "images/4.png: there is no 4.txt beside it"


def test_a_txt_that_is_empty_binary_or_leads_away_is_a_bad_pair(folder: Path):
    for number in range(5):
        write(folder / "images" / f"{number}.txt", f"caption {number}")
    text = folder / "images" / "0.txt"
    for content, said in [(b"\n \n", "0.txt is empty"), (b"\xff\xfe\x00", "0.txt is not text in UTF-8")]:
        assert said in problem(write(text, content).parent.parent)
    text.unlink()
    text.symlink_to(write(folder.parent / "secret.txt", "a secret"))
    assert "leads out of" in problem(folder)
    text.unlink()
    os.mkfifo(text)
    assert "there is no 0.txt" in problem(folder)


def test_one_folder_per_class(tmp_path: Path):
    for number, name in enumerate(["golden_retriever/1.jpg", "golden_retriever/deep/2.jpg", "Bär/3.webp"]):
        image(tmp_path / "pets" / name, number)
    image(tmp_path / "pets" / ".cache" / "4.jpg")
    reading = read(tmp_path / "pets")
    assert reading.format == "class-folders"
    assert pairs_of(reading) == [
        ("Bär/3.webp", "a photo of a Bär"),
        ("golden_retriever/1.jpg", "a photo of a golden retriever"),
        ("golden_retriever/deep/2.jpg", "a photo of a golden retriever"),
    ]
    assert pairs_of(read(tmp_path / "pets", class_template="{}!"))[0][1] == "Bär!"
    with pytest.raises(UsageError, match=r"--class-template is 'x'; it needs a \{\}"):
        read(tmp_path / "pets", class_template="x")


def test_a_folder_with_metadata_is_read_by_it(folder: Path):
    write(folder / "metadata.csv", "file_name,text\nimages/0.png,a cat\n")
    assert pairs_of(read(folder)) == [("images/0.png", "a cat")]


def test_a_folder_that_holds_lists_names_them(folder: Path):
    write(folder / "train.json", "[]")
    with pytest.raises(
        DataError, match=r"is a folder with lists and no data set itself; name a list: .*train\.json\.$"
    ):
        read(folder)


def test_what_is_not_recognised_is_named_with_a_way_out(folder: Path):
    with pytest.raises(DataError, match=r"images has 5 images and no captions: add a NAME\.txt beside each"):
        read(folder / "images")
    with pytest.raises(DataError, match=r"notes\.txt is no list of images and captions .*\(docs/formats\.md\)\.$"):
        read(write(folder / "notes.txt", "some words\n"))


def test_a_format_can_be_forced_and_must_fit(folder: Path):
    for number in range(5):
        write(folder / "images" / f"{number}.txt", "a caption")
    image(folder / "more" / "1.png")
    assert read(folder).format == "sidecar"
    assert read(folder, format="class-folders").format == "class-folders"
    with pytest.raises(DataError, match="is not a file, which --format csv needs"):
        read(folder, format="csv")
    with pytest.raises(DataError, match="is not a folder, which --format sidecar needs"):
        read(write(folder / "a.csv", ""), format="sidecar")


@pytest.mark.parametrize("form", [None, "json", "csv", "sidecar", "webdataset"])
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path, form: str | None):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match=r"pipe\.json"):
        read(tmp_path / "pipe.json", format=form)


def test_names_in_no_encoding_and_with_escape_sequences_are_read_and_printed_safely(tmp_path: Path):
    hostile = tmp_path / "set" / os.fsdecode(b"caf\xe9 \x1b[2J")
    image(hostile / "1.png")
    image(tmp_path / "set" / "plain" / "2.png")
    captions = [caption for _, caption in pairs_of(read(tmp_path / "set"))]
    assert len(captions) == 2
    for caption in captions:
        caption.encode()


anything = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(st.lists(st.sampled_from(["image", "a.png", 'x"', "", "1", "\r", "#0", "|", "{", "["]), max_size=4)).map(
        lambda rows: "\n".join("\t".join(row) for row in rows).encode()
    ),
)


@given(content=anything, name=st.sampled_from(["a.csv", "a.tsv", "a.json", "a.jsonl", "a.txt"]))
def test_any_file_is_pairs_or_a_sentence(content: bytes, name: str, tmp_path_factory: pytest.TempPathFactory):
    path = write(tmp_path_factory.mktemp("any") / name, content)
    with suppress(ClipError):  # anything else that is raised fails the test
        assert check_pairs(read(path).pairs).good == []

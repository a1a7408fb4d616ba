"""The pair list: what is read, what is refused, and what is only set aside."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip_core.data.formats.detect import read_data
from clip_core.data.formats.source import ReadOptions
from clip_core.data.pairs import Pair, fingerprint
from clip_core.errors import DataError
from clip_core.files import write_json
from tests.pairs import check_pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """root/ with one good image, and one outside of it."""
    root = tmp_path / "root"
    (root / "photos").mkdir(parents=True)
    Image.new("RGB", (8, 6), "red").save(root / "photos" / "good.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "outside.png")
    return root


def read_pairs(path: Path, image_root: Path | None = None) -> list[Pair]:
    return read_data(path, ReadOptions(image_root, format="json")).pairs


def write_list(folder: Path, value: Any) -> Path:
    path = folder / "list.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def entry(image: Any = "photos/good.png", caption: Any = "a cat") -> dict[str, Any]:
    return {"image": image, "caption": caption}


def reason_for(folder: Path, **changes: Any) -> str:
    """Why an entry is unusable; the good one beside it must stay usable."""
    report = check_pairs(read_pairs(write_list(folder, [entry(**changes), entry()])))
    assert [pair.entry for pair in report.good] == [2]
    assert report.bad[0].pair.entry == 1
    return report.bad[0].reason


def test_paths_start_beside_the_list_or_at_the_image_root(folder: Path, tmp_path: Path):
    (beside,) = read_pairs(write_list(folder, [entry()]))
    (rooted,) = read_pairs(write_list(tmp_path, [entry()]), folder)
    assert beside.image == rooted.image == folder / "photos" / "good.png"
    assert beside.name == "photos/good.png"


def test_a_list_of_captions_is_as_many_pairs(folder: Path):
    pairs = read_pairs(write_list(folder, [entry(caption=["a cat", " a sofa\n"]), entry(caption="a dog")]))
    assert [(pair.caption, pair.entry) for pair in pairs] == [("a cat", 1), ("a sofa", 1), ("a dog", 2)]


def test_keys_beside_image_and_caption_are_left_alone_and_a_byte_order_mark_is_read(folder: Path):
    path = write_list(folder, "\ufeff" + json.dumps([entry() | {"licence": "CC0"}]))
    assert check_pairs(read_pairs(path)).bad == []


@pytest.mark.parametrize("captions", ["", " \n ", None, 3, {"en": "cat"}, [], ["a cat", 7][1:]])
@pytest.mark.fault("hostile list, table or tar")
def test_a_caption_that_is_empty_or_no_text_is_a_bad_pair(folder: Path, captions: Any):
    assert reason_for(folder, caption=captions).startswith("the caption ")


@pytest.mark.parametrize("image", ["", " ", None, 7, [], [7], {"a": 1}])
@pytest.mark.fault("hostile list, table or tar")
def test_an_image_that_is_no_path_is_a_bad_pair(folder: Path, image: Any):
    assert "is not a path" in reason_for(folder, image=image)


def test_an_image_in_an_object_or_a_list_of_one_is_read_and_of_two_is_not(folder: Path):
    good = "photos/good.png"
    images = [{"path": good, "bytes": None}, [good], {"file_name": good}, [good, good]]
    pairs = read_pairs(write_list(folder, [entry(image=image) for image in images]))
    assert [pair.problem for pair in pairs] == [None, None, None, "it has 2 images; one is needed"]


@pytest.mark.parametrize("image", ["a\0b.png", "a\0/b.png", "\ud800.png", "\ud800/a.png", "x" * 5000, "a/" * 3000])
@pytest.mark.fault("hostile list, table or tar")
def test_a_path_that_no_file_system_holds_is_a_bad_pair(folder: Path, image: str):
    assert reason_for(folder, image=image)


def test_missing_unreadable_and_truncated_images_are_bad_pairs(folder: Path):
    content = (folder / "photos" / "good.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "text.png").write_text("hello")
    assert "no image at" in reason_for(folder, image="photos/gone.png")
    assert "cut.png" in reason_for(folder, image="cut.png")
    assert "not an image in a known format" in reason_for(folder, image="text.png")
    assert "is not a file" in reason_for(folder, image="photos")


def test_no_path_leads_out_of_the_root(folder: Path, tmp_path: Path):
    for image in ("../outside.png", str(tmp_path / "outside.png"), "photos/../../outside.png", "photos/../..", ".."):
        assert "leads out of" in reason_for(folder, image=image)


def test_links_in_the_root_are_followed_to_regular_files_and_to_nothing_else(folder: Path, tmp_path: Path):
    names = ["link.png", "again.png", "up/outside.png"]
    for link in names[:2]:
        (folder / link).symlink_to(tmp_path / "outside.png")
    (folder / "up").symlink_to(tmp_path)
    report = check_pairs(read_pairs(write_list(folder, [entry(image=name) for name in names])))
    assert report.bad == []
    assert {(pair.image, pair.name) for pair in report.good} == {(folder / "link.png", "link.png")}
    (folder / "null.png").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    (folder / "pipe.png").symlink_to(tmp_path / "pipe")
    (folder / "loop.png").symlink_to("loop.png")
    for image in ("null.png", "pipe.png", "loop.png"):
        assert reason_for(folder, image=image)


def test_links_that_stay_below_the_root_are_one_image_with_their_target(folder: Path):
    (folder / "link.png").symlink_to(folder / "photos" / "good.png")
    (folder / "same").symlink_to(folder / "photos")
    spellings = ["photos/good.png", "link.png", "same/good.png", "./photos/../photos/good.png"]
    spellings.append(str(folder / "photos" / "good.png"))
    report = check_pairs(read_pairs(write_list(folder, [entry(image=spelt) for spelt in spellings])))
    assert report.bad == []
    assert {(pair.image, pair.name) for pair in report.good} == {(folder / "photos" / "good.png", "photos/good.png")}


def test_a_root_that_is_itself_a_link_is_a_root(folder: Path, tmp_path: Path):
    (tmp_path / "linked").symlink_to(folder)
    report = check_pairs(read_pairs(write_list(folder, [entry()]), tmp_path / "linked"))
    assert report.bad == []


@pytest.mark.fault("hostile list, table or tar")
def test_a_loop_of_links_is_a_bad_pair(folder: Path):
    (folder / "a.png").symlink_to(folder / "b.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    assert reason_for(folder, image="a.png")


def test_a_file_name_that_is_not_utf8_is_found_also_from_a_list_that_we_wrote(folder: Path):
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (8, 8)).save(folder / name)
    write_json(folder / "ours.json", [entry(image=name)])
    for path in (folder / "ours.json", write_list(folder, [entry(image=name)])):
        assert check_pairs(read_pairs(path)).bad == []


def test_escape_sequences_in_the_list_do_not_reach_the_reason(folder: Path):
    assert "\x1b" not in reason_for(folder, image="../\x1b[2J")


def test_the_report_counts_and_names_the_first_bad_entry(folder: Path):
    report = check_pairs(read_pairs(write_list(folder, [entry(), entry(image="x.png"), entry(caption="")])))
    assert report.bad_share == pytest.approx(2 / 3)
    expected = (
        f"1 usable pair with 1 image; 2 of 3 pairs are unusable, "
        f"first entry 2: no image at {folder / 'x.png'}; correct the path."
    )
    assert report.sentence() == expected


def test_sizes_are_those_of_the_upright_image(folder: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(folder / "turned.jpg", exif=exif)
    sizes: dict[Path, tuple[int, int]] = {}
    check_pairs(read_pairs(write_list(folder, [entry(), entry(image="turned.jpg")])), sizes=sizes)
    assert sizes == {folder / "photos" / "good.png": (8, 6), folder / "turned.jpg": (6, 8)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image": "a.png",\n "caption": }]', "line 2: not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "holds no pairs"),
        ("7", "is not a list"),
        ("[]", "holds no pairs"),
        ("[1, 2]", "holds no pairs"),
    ],
)
@pytest.mark.fault("hostile list, table or tar")
def test_a_file_that_is_no_pair_list_is_refused_with_the_place_and_an_example(folder: Path, content: str, message: str):
    with pytest.raises(DataError, match=message) as caught:
        read_pairs(write_list(folder, content))
    assert "list.json" in str(caught.value)
    assert '[{"image": "photos/1.jpg", "caption": "a cat"}, ...]' in str(caught.value)


def test_a_missing_list_a_folder_a_binary_file_and_a_missing_root_are_refused(folder: Path):
    (folder / "bytes.json").write_bytes(b"[\xff\x00\x01]")
    for path, root, message in [
        (folder / "gone.json", None, "gone.json: no such file"),
        (folder / "photos", None, "is not a file"),
        (folder / "bytes.json", None, "not text in UTF-8"),
        (write_list(folder, [entry()]), folder / "gone", "no folder at"),
    ]:
        with pytest.raises(DataError, match=message):
            read_pairs(path, root)


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=10) | st.sampled_from(["image", "caption"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["image", "caption", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(value=anything)
def test_any_json_is_pairs_or_a_data_error(value: Any, tmp_path_factory: pytest.TempPathFactory):
    path = write_list(tmp_path_factory.mktemp("any"), value)
    with suppress(DataError):  # anything else that is raised fails the test
        assert check_pairs(read_pairs(path)).good == []


def test_the_fingerprint_knows_names_sizes_and_captions_and_neither_the_place_nor_the_order(folder: Path):
    names = ["photos/good.png", "photos/other.png"]
    Image.new("RGB", (9, 6), "green").save(folder / names[1])
    entries = [entry(image=name, caption=f"caption {number}") for number, name in enumerate(names * 2)]
    first = fingerprint(read_pairs(write_list(folder, entries)))
    assert first == fingerprint(read_pairs(write_list(folder, entries[::-1])))
    moved = folder.parent / "elsewhere"
    shutil.copytree(folder, moved)
    assert first == fingerprint(read_pairs(write_list(moved, entries)))
    others = [
        fingerprint(read_pairs(write_list(moved, changed)))
        for changed in (entries[1:], [*entries, entries[0]], [entries[0] | {"caption": "other"}, *entries[1:]])
    ]
    with (moved / names[0]).open("ab") as handle:
        handle.write(b"more")
    others.append(fingerprint(read_pairs(write_list(moved, entries))))
    (moved / names[0]).unlink()
    others.append(fingerprint(read_pairs(write_list(moved, entries))))
    assert len({first, *others}) == 6

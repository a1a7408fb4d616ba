"""The parts that need no screen: curves, canvas, tail, glyphs, the form, flags, the encoder client, requests."""

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.cells import cell_len

from clip_core.config import PRESETS, TrainConfig
from clip_core.errors import BackendError, ImageError, UsageError
from clip_core.run.curve import LIMIT, Bucket, Curve
from clip_core.run.records import State
from clip_core.run.writer import RunWriter
from clip_tui.encoder import EncoderClient
from clip_tui.form import form_fields, read_form
from clip_tui.gallery import gallery_of, read_pairs_file
from clip_tui.glyphs import to_ascii
from clip_tui.numbers import duration, number, percent
from clip_tui.starter import _start, to_flags
from clip_tui.tail import Tail
from clip_tui.watcher import RunWatch
from clip_tui.widgets.canvas import Canvas, Frame
from clip_tui.widgets.halfblocks import UPPER_HALF, strips_of

values = st.floats(-1e6, 1e6)


@given(st.lists(values, min_size=1, max_size=3 * LIMIT))
def test_a_curve_stays_small_and_keeps_the_extremes(measured: list[float]) -> None:
    curve = Curve()
    for step, value in enumerate(measured):
        curve.add(step, value)
    assert len(curve.buckets) <= LIMIT + 1
    assert max(bucket.high for bucket in curve.buckets) == max(measured)
    assert min(bucket.low for bucket in curve.buckets) == min(measured)
    assert curve.latest == measured[-1]
    assert curve.buckets[-1].last == len(measured) - 1


def test_a_hundred_thousand_steps_keep_one_spike_at_its_place() -> None:
    curve = Curve()
    for step in range(100_000):
        curve.add(step, 100.0 if step == 77_777 else 1.0)
    (spike,) = [bucket for bucket in curve.buckets if bucket.high == 100.0]
    assert spike.first <= 77_777 <= spike.last


@pytest.mark.parametrize("ascii_only", [False, True])
def test_every_value_of_a_curve_reaches_its_row_of_the_canvas(ascii_only: bool) -> None:
    buckets = [Bucket(step, step, value, value) for step, value in enumerate([0.0] * 50 + [1.0] + [0.0] * 50)]
    canvas = Canvas(20, 5, ascii_only=ascii_only)
    canvas.draw(0, buckets, Frame(0, 100, 0.0, 1.0))
    assert [sign for sign, series in canvas.row(0) if series == 0 and sign != " "]
    assert sum(sign != " " for sign, _ in canvas.row(4)) >= 19


@given(st.text())
def test_ascii_is_ascii_and_as_wide_as_before(text: str) -> None:
    plain = to_ascii(text)
    assert plain.isascii()
    printable_text = "".join(sign for sign in text if sign.isprintable())
    assert len(to_ascii(printable_text)) == sum(cell_len(sign) for sign in printable_text)


def test_a_tail_gives_whole_lines_once_and_keeps_a_torn_one(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tail = Tail(log)
    assert tail.new_lines() == []
    log.write_bytes(b"one\ntwo\nthr")
    assert tail.new_lines() == ["one", "two"]
    assert tail.new_lines() == []
    with log.open("ab") as handle:
        handle.write(b"ee\nbar 1%\rbar 2%\nend")
    assert tail.new_lines() == ["three", "bar 2%"]
    assert tail.new_lines(ended=True) == ["end"]
    log.write_bytes(b"anew\n")
    assert tail.new_lines() == ["anew"]


def test_every_setting_has_a_field_and_an_empty_form_is_the_default() -> None:
    fields = {field.id: field for field in form_fields()}
    assert fields["optim-epochs"].kind == "text"
    assert fields["optim-augment"].kind == "switch"
    assert fields["model-model_size"].choices == tuple(PRESETS)
    assert fields["data-tokenizer"].kind == "text", "a path is allowed as well"
    assert fields["optim-lr"].placeholder == "worked out"
    assert fields["tune-init"].placeholder == "none"
    config = read_form(dict.fromkeys(fields, "") | {"data-create_synthetic": True})
    assert config.optim == TrainConfig().optim


@pytest.mark.parametrize(
    ("field", "typed", "said"),
    [
        ("optim-batch_size", "many", "--batch-size"),
        ("optim-lr", "7", "--lr"),
        ("model-patch_size", "7", "--patch-size"),
        ("data-data_file", "nowhere.json", "nowhere.json"),
    ],
)
def test_a_mistake_in_the_form_names_its_flag(field: str, typed: str, said: str) -> None:
    values = {"data-create_synthetic": field != "data-data_file", field: typed}
    with pytest.raises(UsageError, match=said):
        read_form(values)


def test_flags_say_only_what_differs_from_the_default() -> None:
    values = {"data-create_synthetic": True, "optim-augment": False, "optim-lr": "1e-3", "run-seed": "0"}
    assert to_flags(read_form(values)) == ["--create-synthetic", "--lr", "0.001", "--no-augment"]


def test_the_flags_of_a_form_are_understood_by_clip_train() -> None:
    from clip_core.cli.train_command import app, from_flags

    typed = {"data-data_file": __file__, "data-bad_pairs": "refuse", "optim-augment": False, "model-layers": "2",
             "optim-epochs": "3", "data-tokenizer": "bpe", "run-precision": "fp32"}  # fmt: skip
    config = read_form(typed)
    _, bound, _ = app.parse_args(to_flags(config), exit_on_error=False, print_error=False)
    assert from_flags(bound.kwargs) == config


def test_a_half_block_holds_the_two_pixels_above_each_other(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 4), (255, 0, 0))
    image.paste((0, 0, 255), (0, 2, 2, 4))
    image.save(tmp_path / "two.png")
    strips = strips_of(tmp_path / "two.png", 10, 1, plain=False)
    (segment, *_) = strips[0]
    assert segment.text == UPPER_HALF
    assert segment.style is not None
    assert segment.style.color is not None
    assert segment.style.bgcolor is not None
    assert segment.style.color.get_truecolor().red > 200
    assert segment.style.bgcolor.get_truecolor().blue > 200


def test_a_plain_image_is_a_ramp_of_signs(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    (strip, *_) = strips_of(tmp_path / "white.png", 8, 4, plain=True)
    assert strip.text == "@" * 8


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (3, 3)])
def test_an_image_of_any_proportion_fits_into_its_cells(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "odd.png")
    strips = strips_of(tmp_path / "odd.png", 12, 5, plain=False)
    assert 1 <= len(strips) <= 5
    assert all(1 <= strip.cell_length <= 12 for strip in strips)


def test_what_is_no_image_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("not an image")
    with pytest.raises(ImageError, match=r"no\.png"):
        strips_of(tmp_path / "no.png", 8, 4, plain=False)


def test_pairs_of_any_shape_are_read_without_an_error(tmp_path: Path) -> None:
    file = tmp_path / "pairs.json"
    file.write_text('[{"image": "a.png", "caption": ["one", "two", 3]}, {"image": 4}, "x", {"image": "b.png"}]')
    assert read_pairs_file(file) == [(str(tmp_path / "a.png"), "one"), (str(tmp_path / "a.png"), "two")]
    assert read_pairs_file(tmp_path / "none.json") == []


def test_captions_that_only_differ_in_case_are_one_in_the_gallery() -> None:
    gallery = gallery_of([("a", "A red circle"), ("b", "a  red circle")])
    assert len(gallery.captions) == 1
    assert gallery.is_right("a", "a red CIRCLE")
    assert not gallery.is_right("c", "a red circle")


def test_a_watch_reads_a_run_without_a_status_as_starting_only_while_its_trainer_lives(tmp_path: Path) -> None:
    watch = RunWatch(tmp_path)
    assert watch.refresh(starting=True).state is State.STARTING
    assert watch.refresh(exit_code=2).state is State.KILLED


def test_a_watch_takes_only_whole_lines_and_any_value(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.metric("train", 1, loss=1.0, odd="text", worse=None, yes=True)
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"kind": "train", "step": "x", "loss": 2}\nnot json\n{"kind": "train", "step": 2, "lo')
    snapshot = RunWatch(tmp_path).refresh()
    assert list(snapshot.curves) == ["loss"]
    assert len(snapshot.curves["loss"]) == 1


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (273_600, "3 d 4 h")]
)
def test_durations_read_well(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.0, "0.0"),
        (0.00012, "1.2e-04"),
        (1.23456, "1.235"),
        (1234.5, "1,234"),
        (True, "–"),
    ],
)
def test_numbers_read_well(value: float | None, said: str) -> None:
    assert number(value) == said
    assert percent(value) == "–" or not isinstance(value, float) or math.isfinite(value)


async def test_a_model_that_is_not_there_is_one_sentence_and_leaves_no_process(tmp_path: Path) -> None:
    client = EncoderClient(tmp_path / "nothing", "onnx", tmp_path / "log")
    with pytest.raises(BackendError, match="nothing"):
        await client.ask("similarity", image="a", texts=["b"])
    assert client._process is None


def test_what_is_started_has_a_session_of_its_own_and_writes_to_the_log(tmp_path: Path) -> None:
    process = _start("clip_core.cli.train", ["--list-models"], tmp_path / "run" / "train.log")
    assert os.getsid(process.pid) == process.pid
    assert process.wait(60) == 0
    assert "tiny" in (tmp_path / "run" / "train.log").read_text()

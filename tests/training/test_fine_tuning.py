"""Fine-tuning with the command: the run that it leaves, and one that was interrupted and resumed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_core.cli.train import main
from clip_core.config import DataConfig
from clip_core.data.dataset import load_data
from clip_core.model.checkpoint import load_model, load_tensors
from clip_core.model.published import read_published
from clip_core.run.metrics import SECOND
from clip_core.run.reader import RunReader
from clip_core.training.batches import BatchMaker
from tests.models import make_run
from tests.published import open_clip_model, save_open_clip
from tests.running import assert_same_run, latest, lines

SHORT = [
    "--epochs", "2", "--batch-size", "32", "--log-every", "1", "--device", "cpu",
    "--eval-every", "4", "--checkpoint-every", "3", "--keep-checkpoints", "100",
    "--seed", "7",  # another one than that of the start, whose weights could otherwise be drawn again
]  # fmt: skip
STEPS = 10
WAYS = {
    "full": [],
    "locked": ["--lock", "image"],
    "unlocked": ["--lock", "text", "--unlock-last", "1"],
    "lora": ["--lora", "4", "--lr", "1e-2"],
    "ema": ["--ema", "0.9"],
    "both": ["--lora", "2", "--ema", "0.9", "--lr", "1e-2"],
    "locked in bf16": ["--lock", "image", "--precision", "bf16"],
    "lora in bf16": ["--lora", "4", "--lr", "1e-2", "--precision", "bf16"],
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights are tuned; read it, do not write to it."""
    return make_run(tmp_path_factory.mktemp("start") / "start")


@pytest.fixture(scope="module")
def guard(start: Path) -> Path:
    return start.parent / "start-shapes" / "dataset.json"


def tune(run: Path, data_file: Path, start: Path, *flags: str) -> Path:
    precision = () if "--precision" in flags else ("--precision", "fp32")
    argv = ["--data-file", str(data_file), "--run-dir", str(run), "--init", str(start), *SHORT, *precision, *flags]
    assert main(argv) == 0
    return run


def last(run: Path) -> Path:
    return latest(run)


def evaluations(run: Path) -> list[dict[str, Any]]:
    return lines(run, "eval")


@pytest.fixture(scope="module", params=WAYS)
def tuned(
    request: pytest.FixtureRequest, start: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The short run of each way of tuning; read it, do not write to it."""
    way: str = request.param
    return way, tune(tmp_path_factory.mktemp(way) / "run", shapes, start, *WAYS[way])


def test_tuning_resumed_in_the_middle_is_the_run_never_stopped(tuned: tuple[str, Path], tmp_path: Path) -> None:
    way, whole = tuned
    parts = tmp_path / way
    shutil.copytree(whole, parts)
    for folder in (parts / "checkpoints").iterdir():
        if folder.name > "step_0000006":
            shutil.rmtree(folder)
    assert main(["--resume", "--run-dir", str(parts)]) == 0
    assert "resuming at step 6" in (parts / "train.log").read_text()
    assert_same_run(whole, parts)


def test_a_tuned_checkpoint_is_a_plain_model_that_scores_what_it_says(tuned: tuple[str, Path], start: Path) -> None:
    way, run = tuned
    folder = last(run)
    loaded, before = load_model(folder).model.state_dict(), load_model(start).model.state_dict()
    assert loaded.keys() == before.keys()
    assert loaded.keys() == load_tensors(folder / "model.safetensors").keys()
    moved = {name for name in loaded if not torch.equal(loaded[name], before[name])}
    assert moved
    if way.startswith("locked"):
        assert not [name for name in moved if name.startswith("image.")]
    if way == "unlocked":
        assert {n for n in moved if n.startswith("text.")} == {
            n for n in loaded if n.startswith(("text.blocks.1.", "text.norm_final.", "text.projection."))
        }


def test_the_record_has_the_initial_weights_and_the_reasons(tuned: tuple[str, Path], start: Path) -> None:
    way, run = tuned
    record = RunReader(run).record()
    assert record.init is not None
    assert record.init.given == str(start)
    resolved = record.resolved
    assert resolved.weight_decay == 0
    reasons = {decision.setting: decision.reason for decision in record.decisions}
    assert reasons["weight_decay"] == "it pulls towards zero, not towards the pretrained weights"
    assert resolved.lr < 1e-3 or "--lr" in WAYS[way]
    assert (resolved.layer_decay == 1) is ("lora" in way or way == "both")
    assert record.model.model_dump(mode="json") == json.loads((last(run) / "meta.json").read_text())["model"]
    assert (run / "tokenizer.json").read_text() == (start / "tokenizer.json").read_text()


def test_before_and_after_stand_in_a_table(tuned: tuple[str, Path]) -> None:
    log = (tuned[1] / "train.log").read_text().splitlines()
    head = next(number for number, line in enumerate(log) if "before" in line and f"after {STEPS} steps" in line)
    assert [line.split("  ")[0] for line in log[head + 1 : head + 8]] == [
        *(f"recall@{k} {way}" for way in ("image to text", "text to image") for k in (1, 5, 10)), "mean recall",
    ]  # fmt: skip


def test_the_start_is_the_first_checkpoint_and_counts_as_best_until_it_is_beaten(tuned: tuple[str, Path]) -> None:
    first = evaluations(tuned[1])[0]
    assert first["step"] == 0
    best = json.loads((tuned[1] / "best.json").read_text())
    assert best["scores"]["mean_recall"] >= first["mean_recall"] - 1e-6  # the metric is rounded
    assert (tuned[1] / "checkpoints" / "step_0000000" / "meta.json").is_file()


def test_resuming_needs_the_starting_weights_no_more(start: Path, shapes: Path, tmp_path: Path) -> None:
    moved = tmp_path / "start"
    shutil.copytree(start, moved)
    run = tune(tmp_path / "run", shapes, moved)
    shutil.rmtree(moved)
    shutil.rmtree(last(run))
    assert main(["--resume", "--run-dir", str(run)]) == 0
    assert last(run).name == f"step_{STEPS:07d}"


def test_all_blends_are_evaluated_and_the_requested_one_is_the_best_checkpoint(
    start: Path, shapes: Path, guard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--blend", "0.4", "--lr", "1e-3", "--guard-data", str(guard)]
    run = tune(tmp_path / "run", shapes, start, *flags)
    stored = json.loads((run / "blends.json").read_text())
    scores = {blend["share"]: blend["scores"] for blend in stored["blends"]}
    assert list(scores) == [0.0, 0.25, 0.4, 0.5, 0.75, 1.0]
    before, after = evaluations(run)[0], evaluations(run)[-1]
    for name in ("mean_recall", f"{SECOND}mean_recall", "val_loss"):
        assert scores[0.0][name] == pytest.approx(before[name], abs=1e-5)
        assert scores[1.0][name] == pytest.approx(after[name], abs=1e-5)
    best = json.loads((run / "best.json").read_text())
    assert (best["checkpoint"], best["blend"], best["scores"]) == ("blend_0.4", 0.4, scores[0.4])
    assert load_model(run).folder.name == "blend_0.4"
    name = "image.blocks.0.mlp.0.weight"
    first, end = (load_model(path).model.state_dict()[name] for path in (start, last(run)))
    torch.testing.assert_close(load_model(run).model.state_dict()[name], 0.6 * first + 0.4 * end)
    said = capsys.readouterr().out
    assert "the best checkpoint is blend_0.4 (--blend: 0.6 x initial + 0.4 x fine-tuned weights)" in said
    assert "second validation set, mean recall" in said
    # Resumed after its end, it ends the same way.
    assert main(["--resume", "--run-dir", str(run)]) == 0
    assert json.loads((run / "best.json").read_text()) == best


def test_a_blend_survives_resuming(start: Path, shapes: Path, tmp_path: Path) -> None:
    run = tune(tmp_path / "run", shapes, start, "--blend", "0.5", "--lora", "2", "--lr", "1e-2")
    kept = json.loads((run / "blends.json").read_text())
    for name in (last(run).name, "blend_0.5"):
        shutil.rmtree(run / "checkpoints" / name)
    (run / "blends.json").unlink()
    assert main(["--resume", "--run-dir", str(run)]) == 0
    assert json.loads((run / "blends.json").read_text()) == kept


def test_the_second_validation_set_is_evaluated_each_time_under_its_own_keys(
    start: Path, shapes: Path, guard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tune(tmp_path / "run", shapes, start, "--guard-data", str(guard))
    found = evaluations(run)
    names = {f"{SECOND}{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    assert len(found) == 4
    assert all(names | {f"{SECOND}mean_recall"} <= line.keys() for line in found)
    said = capsys.readouterr().out
    assert said.count("second validation set: recall@1 image to text ") == 4  # evaluations
    assert said.count("second validation set, recall@1 image to text ") == 1  # the table at the end
    assert "second validation set, recall@10 text to image" in said


def test_images_of_another_size_interpolate_the_positions(start: Path, shapes: Path, tmp_path: Path) -> None:
    run = tune(tmp_path / "run", shapes, start, "--image-size", "48")
    config = load_model(run).config
    assert config.image.image_size == config.preprocessing.image_size == 48


def test_published_weights_are_tuned_with_their_own_tokenizer_and_preprocessing(shapes: Path, tmp_path: Path) -> None:
    prepared = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"}
    weights = save_open_clip(tmp_path / "weights", open_clip_model(), prepared)
    run = tune(tmp_path / "run", shapes, weights, "--lock", "image", "--context-length", "12")
    tuned = load_model(run)
    assert tuned.tokenizer.is_clip
    assert tuned.config.text.context_length == tuned.tokenizer.context_length == 12
    assert (tuned.config.preprocessing.mean, tuned.config.preprocessing.resize_mode) == ((0.5, 0.5, 0.5), "squash")
    published = read_published(weights).weights
    now = tuned.model.state_dict()
    assert all(torch.equal(now[name], published[name]) for name in now if name.startswith("image."))
    # The temperature starts where the weights' was.
    scale = lines(run, "train")[0]["logit_scale"]
    assert scale == pytest.approx(float(published["log_logit_scale"].exp()), rel=1e-3)


def test_a_network_that_reads_the_padding_is_trained_on_whole_rows(shapes: Path, tmp_path: Path) -> None:
    traits: dict[str, Any] = {"text": {"no_causal_mask": True, "pool_type": "last"}, "custom_text": True}
    settings = {"text": traits["text"]}
    weights = save_open_clip(tmp_path / "weights", open_clip_model(**traits), **settings)
    start = read_published(weights)
    data = load_data(DataConfig(data_file=shapes), start.config.preprocessing, 0, lambda line: None)
    batch = BatchMaker(data.train, data.train_store, start.tokenizer, batch_size=4, seed=0)(0)
    assert batch.input_ids[0].shape[1] == start.config.text.context_length
    tune(tmp_path / "run", shapes, weights)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--model-size", "small"], 2, "--model-size cannot be combined with --init"),
        (["--patch-size", "8"], 2, "--patch-size cannot be combined with --init"),
        (["--stem", "conv"], 2, "--stem cannot be combined with --init"),
        (["--layers", "1"], 2, "--layers cannot be combined with --init"),
        (["--tokenizer", "bpe"], 2, "--tokenizer cannot be combined with --init"),
        (["--vocab-size", "500"], 2, "--vocab-size cannot be combined with --init"),
        (["--temperature", "0.05"], 2, "--temperature cannot be combined with --init"),
        (["--context-length", "100"], 2, "--context-length is 100"),
        (["--image-size", "40"], 2, "--image-size is 40"),
        (["--unlock-last", "1"], 2, "--unlock-last needs a frozen tower"),
        (["--lock", "image", "--unlock-last", "9"], 2, "has 2 blocks"),
        (["--lora-alpha", "4"], 2, "--lora-alpha needs LoRA"),
        (["--init-model", "ViT-B-32"], 2, "--init-model"),
        (["--guard-data", "nowhere.json"], 1, "nowhere.json"),
        (["--guard-root", "."], 2, "--guard-root"),
        (["--blend", "2"], 2, "--blend is 2"),
        (["--ema", "1"], 2, "--ema is 1"),
        (["--lr", "0.1"], 2, "--lr is 0.1, a learning rate for training from scratch"),
        (["--warmup", "0.9"], 2, "--warmup is 0.9 of the steps"),
        (["--warmup", "10000"], 2, "a fraction of the steps, less than 1"),
    ],
)
def test_flags_that_cannot_be_used_with_init_get_one_sentence_and_leave_nothing(
    flags: list[str], code: int, said: str, start: Path, shapes: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    argv = ["--data-file", str(shapes), "--run-dir", str(tmp_path / "run"), "--init", str(start), *flags]
    assert main(argv) == code
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_with_force_any_learning_rate_is_taken(start: Path, shapes: Path, tmp_path: Path) -> None:
    run = tune(tmp_path / "run", shapes, start, "--lr", "0.1", "--warmup", "0.9", "--guard-data", "none", "--force")
    assert RunReader(run).record().resolved.lr == 0.1
    assert "forgetting is not measured: add --guard-data builtin" in (run / "train.log").read_text()


def test_a_second_validation_set_that_is_no_pair_list_is_one_sentence(
    start: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "guard.json").write_text('[{"image": 1}]')
    argv = ["--data-file", str(shapes), "--run-dir", str(tmp_path / "run"), "--init", str(start)]
    assert main([*argv, "--guard-data", str(tmp_path / "guard.json")]) == 1
    error = capsys.readouterr().err.strip()
    assert "guard.json: no column holds captions among 'image'" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [["--lock", "image"], ["--lora", "4"], ["--blend", "0.5"], ["--init-model", "x"]])
def test_what_needs_pretrained_weights_says_so(
    flags: list[str], shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data-file", str(shapes), "--run-dir", str(tmp_path / "run"), *flags]) == 2
    assert f"{flags[0]} needs pretrained weights; add --init" in capsys.readouterr().err


def test_ema_and_a_second_validation_set_from_scratch(shapes: Path, guard: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    nano = ["--image-size", "32", "--model-size", "nano", "--layers", "1"]
    small = [*nano, "--ema", "0.9", "--guard-data", str(guard)]
    assert main(["--data-file", str(shapes), "--run-dir", str(run), *SHORT, *small]) == 0
    assert not (run / "checkpoints" / "step_0000000").exists()
    assert f"{SECOND}mean_recall" in evaluations(run)[-1]
    stored = load_tensors(last(run) / "state.safetensors")
    averaged = load_tensors(last(run) / "model.safetensors")
    assert not torch.equal(stored["image.projection.weight/raw"], averaged["image.projection.weight"])

"""What is built before the first step, and what it leaves in the run directory."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from clip_core.config import TrainConfig
from clip_core.errors import DataError
from clip_core.run.reader import RunReader
from clip_core.training.image_augmentation import to_pixel_values
from clip_core.training.loss import SigmoidLoss, matching_pairs
from clip_core.training.preflight import resumed_config
from tests.conftest import SHORT_RUN, clip_train
from tests.training.conftest import Build, small_config


def test_a_new_run_is_described_before_its_first_step(build: Build, shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = build(small_config(shapes, run))
    record = RunReader(run).record()
    assert trainer.progress.step == 0
    assert record.resolved == trainer.schedule.recipe
    assert (record.data.train_pairs, record.data.val_pairs) == (162, 18)
    assert record.parameters.trainable == sum(p.numel() for p in trainer.train_step.model.parameters())
    assert len(RunReader(run).validation_pairs().pairs) == 18
    assert (run / "tokenizer.json").is_file()
    assert list((run / "checkpoints").iterdir()) == []


def test_the_initial_weights_depend_on_the_seed_alone(build: Build, shapes: Path, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> torch.Tensor:
        trainer = build(small_config(shapes, tmp_path / name, run={"seed": seed}))
        return trainer.train_step.model.image.projection.weight.detach().clone()

    first = weights("a", 3)
    assert torch.equal(first, weights("b", 3))
    assert not torch.equal(first, weights("c", 4))


@pytest.mark.parametrize(
    ("optim", "temperature"), [({}, 0.07), ({"loss": "sigmoid"}, 0.1), ({"temperature": 0.2}, 0.2)]
)
def test_the_initial_temperature_is_that_of_the_loss_or_the_requested_one(
    optim: dict[str, object], temperature: float, build: Build, shapes: Path, tmp_path: Path
) -> None:
    model = build(small_config(shapes, tmp_path / "run", optim=optim)).train_step.model
    assert 1 / float(model.logit_scale().detach()) == pytest.approx(temperature, rel=1e-4)


def test_the_logit_bias_fits_the_first_batch(build: Build, shapes: Path, tmp_path: Path) -> None:
    trainer = build(small_config(shapes, tmp_path / "run", optim={"loss": "sigmoid", "patch_dropout": 0.0}))
    model, batch = trainer.train_step.model.eval(), trainer.batches(0)
    with torch.no_grad():
        images = model.encode_image(to_pixel_values(batch.images, model.config.preprocessing))
        texts = torch.cat([model.encode_text(group) for group in batch.input_ids])[batch.text_rows]
        matches = matching_pairs(batch.image_ids, batch.caption_ids)
        bias, loss = model.get_parameter("logit_bias").detach(), SigmoidLoss()
        fitted, lower, higher = (
            float(loss(images, texts, model.logit_scale(), matches, bias + shift)[0]) for shift in (0.0, -0.1, 0.1)
        )
    assert fitted < min(lower, higher)


@pytest.mark.parametrize("what", ["caption", "image"])
def test_pairs_that_are_all_alike_are_refused_before_config_json(
    what: str, build: Build, shapes: Path, tmp_path: Path
) -> None:
    pairs = json.loads(shapes.read_text())[:20]
    alike = [pair | {what: pairs[0][what]} for pair in pairs]
    for name, content in (("alike.json", alike), ("val.json", pairs)):
        (tmp_path / name).write_text(json.dumps(content))
    data = {"data_file": tmp_path / "alike.json", "val_file": tmp_path / "val.json", "image_root": shapes.parent}
    with pytest.raises(DataError, match=f"all 20 training pairs have the same {what}"):
        build(small_config(None, tmp_path / "run", data=data))
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_resumed_run_keeps_its_recipe(build: Build, shapes: Path, tmp_path: Path) -> None:
    """Also where the defaults, as of another version or another machine, would now be others."""
    config = small_config(shapes, tmp_path / "run")
    build(config)
    record = RunReader(tmp_path / "run").record()
    other = record.resolved.model_copy(update={"lr": 0.123})
    record.model_copy(update={"resolved": other}).write(tmp_path / "run" / "config.json")
    assert build(config, resume=True).schedule.recipe == other


def test_a_resumed_run_whose_data_were_moved_records_their_new_place(
    build: Build, shapes: Path, tmp_path: Path
) -> None:
    before, after, run = tmp_path / "before", tmp_path / "after", tmp_path / "run"
    shutil.copytree(shapes.parent, before)
    build(small_config(before / shapes.name, run))
    before.rename(after)
    given = TrainConfig().model_copy(
        update={
            "data": TrainConfig().data.model_copy(update={"data_file": after / shapes.name}),
            "run": TrainConfig().run.model_copy(update={"run_dir": run}),
        }
    )
    build(resumed_config(given, run), resume=True)
    assert RunReader(run).record().config.data.data_file == after / shapes.name
    assert all(Path(pair.image).is_relative_to(after) for pair in RunReader(run).validation_pairs().pairs)


def test_validation_images_that_look_like_training_images_are_counted(shapes: Path, tmp_path: Path) -> None:
    pairs = json.loads(shapes.read_text())
    for pair in pairs:
        pair["image"] = str(shapes.parent / pair["image"])
    darker = tmp_path / "darker.png"
    Image.open(pairs[0]["image"]).convert("RGB").point(lambda level: int(level * 0.99)).save(darker)
    (tmp_path / "train.json").write_text(json.dumps(pairs[:100]))
    (tmp_path / "val.json").write_text(json.dumps([*pairs[170:], {"image": str(darker), "caption": "a red circle"}]))
    flags = ["--data", "train.json", "--val-file", "val.json", *SHORT_RUN]
    done = clip_train(*flags, "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    named = f"(darker.png, {Path(pairs[0]['image']).name})"
    assert f"warning: 1 of 11 validation images look nearly like a training image {named}" in done.stdout
    (tmp_path / "val.json").write_text(json.dumps(pairs[170:]))
    assert "look nearly like" not in clip_train(*flags, "--run-dir", "clean", cwd=tmp_path).stdout

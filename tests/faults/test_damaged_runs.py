"""Every file of a run cut, emptied, zeroed, with a flipped bit or full of noise: never used as if it were whole."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_core.errors import ClipError
from clip_core.model.checkpoint import load_model, valid_checkpoints
from clip_core.run.reader import RunReader
from tests.conftest import clip_train
from tests.faults.table import LONG
from tests.running import SMALL

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "a flipped bit": lambda content: flipped(content),
    "zeroed": lambda content: bytes(len(content)),
    "emptied": lambda content: b"",
    "noise": lambda content: random.randbytes(len(content)),
}
WHOLE = ("model.safetensors", "state.safetensors", "state.json", "meta.json", "config.json", "tokenizer.json")


def flipped(content: bytes) -> bytes:
    """Another bit each time."""
    changed = bytearray(content)
    changed[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return bytes(changed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    flags = [*SMALL, "--epochs", "3", "--checkpoint-every", "2", "--eval-every", "3", "--log-every", "1"]
    assert clip_train("--run-dir", "run", *flags, cwd=folder).returncode == 0
    return folder / "run"


@pytest.mark.fault("a file of a run cut, emptied, zeroed, flipped in one bit, or noise")
def test_a_damaged_file_is_named_or_the_checkpoint_before_is_used(
    whole: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    random.seed(0)
    run, injected, back = tmp_path / "run", 0, []
    last = valid_checkpoints(whole)[0]
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.stat().st_size)
    cases = [
        (name, damage) for name in names for damage in DAMAGES for _ in range(3 if damage == "a flipped bit" else 1)
    ]
    for name, damage in cases if LONG else random.sample(cases, 5):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        content = (run / name).read_bytes()
        (run / name).write_bytes(DAMAGES[damage](content))
        injected += 1
        where = f"{name} {damage}"
        reader = RunReader(run)
        assert [reader.status(), reader.best(), reader.latest(), list(reader.all_lines())]
        in_last = last.name in name.parts
        loads = True
        try:
            load_model(run / "checkpoints" / last.name)
        except ClipError:
            loads = False
        if name.name == "tokenizer.json" or in_last:
            assert not loads, where
        done = clip_train("--resume", "--run-dir", "run", cwd=tmp_path)
        assert done.returncode in (0, 1), where
        if done.returncode:
            assert len(done.stderr.splitlines()) == 1, where
            assert name.name in WHOLE or name.name == "pairs.npy", (where, done.stderr)
        if in_last:
            assert "resuming at step 4" in done.stdout, where
            back.append(2)
    record_property("injected", injected)
    record_property("redone", back)


@pytest.mark.fault("data or config.json changed between stop and resume")
@pytest.mark.parametrize("place", ["resolved.lr", "config.optim.augment", "model.embed_dim"])
def test_a_changed_setting_is_refused_with_what_differs(place: str, whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    said = json.loads((run / "config.json").read_text())
    *path, last = place.split(".")
    values = said
    for part in path:
        values = values[part]
    before = values[last]
    values[last] = False if before is True else type(before)(before / 2)
    (run / "config.json").write_text(json.dumps(said))
    done = clip_train("--resume", "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert f"config.json was changed since the last checkpoint: {place} is " in done.stderr
    assert f" and was {before!r}; change it back" in done.stderr

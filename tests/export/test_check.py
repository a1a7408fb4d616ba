"""clip-export verify, bench and --push."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from clip_core.errors import BackendError, BundleError, ParityError, UsageError
from clip_core.inference.bundle import find_bundle, read_manifest
from clip_core.inference.manifest import REFERENCE
from clip_core.run.paths import MANIFEST
from export.bench import bench
from export.bundle import made_from
from export.check import verify, verify_against
from export.cli import main
from export.push import check_push
from tests.inference.test_bundle import change_a_byte, edit_manifest, relist
from tests.inference.test_hostile_bundle import EVIL, after, ints
from tests.models import make_run


def test_a_bundle_is_verified_and_compared_with_its_checkpoint(tiny_bundle: Path) -> None:
    said: list[str] = []
    manifest = verify(tiny_bundle, "cpu", said.append)
    verify_against(tiny_bundle, manifest, None, said.append)
    assert said[0].startswith(f"{len(manifest.files)} files, ")
    assert said[1].startswith("fp32 on cpu, against its export: max |diff| 0.0e+00")
    assert said[2].startswith("fp32, against PyTorch (")
    assert [line.endswith("accepted") for line in said] == [False, True, True]


def test_a_bundle_away_from_its_run_says_that_pytorch_is_left_out(own_bundle: Path, tiny_run: Path) -> None:
    said: list[str] = []
    verify_against(own_bundle, read_manifest(own_bundle), None, said.append)
    assert len(said) == 1
    assert "--against" in said[0]
    verify_against(own_bundle, read_manifest(own_bundle), tiny_run, said.append)
    assert said[1].endswith("accepted")


def test_verify_and_bench_take_a_run_for_its_bundle(
    tiny_bundle: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_bundle(tiny_run) == tiny_run / "bundle" == tiny_bundle
    assert find_bundle(tiny_bundle) == tiny_bundle
    assert main(["verify", str(tmp_path / "nowhere")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert main(["bench", str(tiny_bundle), "--rounds", "0"]) == 2
    assert "--rounds" in capsys.readouterr().err


def test_a_bundle_of_another_format_may_be_replaced(own_bundle: Path) -> None:
    edit_manifest(own_bundle, lambda manifest: manifest.update(format_version=1))
    assert made_from(own_bundle) == "tiny"
    (own_bundle / MANIFEST).write_text("[]")
    assert made_from(own_bundle) is None


def test_a_precision_without_a_value_is_refused(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_run), "--precision"]) == 2
    assert "--precision is given without a value" in capsys.readouterr().err


def test_another_model_is_not_the_one_that_was_exported(own_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="the embeddings differ"):
        verify_against(own_bundle, read_manifest(own_bundle), make_run(tmp_path / "other", seed=1), print)


@pytest.mark.fault("hostile bundle")
def test_a_node_that_fails_is_one_printable_sentence(own_bundle: Path) -> None:
    after(own_bundle, "Reshape", ints(7, 16), name=EVIL)
    with pytest.raises(BundleError, match="could not compute") as caught:
        verify(own_bundle, "cpu", lambda line: None)
    assert str(caught.value).isprintable()


def test_a_machine_that_computes_something_else_is_told(own_bundle: Path) -> None:
    stored = np.load(own_bundle / REFERENCE)
    np.save(own_bundle / REFERENCE, np.roll(stored, 1, axis=1))
    relist(own_bundle, REFERENCE)
    with pytest.raises(ParityError, match="fp32 on cpu, against its export: the embeddings differ"):
        verify(own_bundle, "cpu", lambda line: None)
    np.save(own_bundle / REFERENCE, stored[:, :3])
    relist(own_bundle, REFERENCE)
    with pytest.raises(BundleError, match="does not fit"):
        verify(own_bundle, "cpu", lambda line: None)
    (own_bundle / REFERENCE).write_bytes(b"\x80\x04N.")  # a pickle
    relist(own_bundle, REFERENCE)
    with pytest.raises(BundleError, match="cannot be read"):
        verify(own_bundle, "cpu", lambda line: None)


def test_a_damaged_file_is_named_by_verify(own_bundle: Path) -> None:
    change_a_byte(own_bundle)
    with pytest.raises(BundleError, match=r"vision_model\.onnx is not the file"):
        verify(own_bundle, "cpu", lambda line: None)


def test_bench_measures_each_variant_beside_pytorch(tiny_bundle: Path, tmp_path: Path) -> None:
    said: list[str] = []
    bench(tiny_bundle, "cpu", 1, said.append)
    rows = [line for line in said if line.endswith("/s")]
    assert [line.split("  ")[0] for line in rows] == ["PyTorch fp32", "fp32 on cpu"] * 2
    alone = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    said.clear()
    bench(alone, None, 1, said.append)
    assert any("without PyTorch" in line for line in said)
    assert any(line.startswith("fp32 on cpu") for line in said)


@pytest.mark.parametrize("name", ["mine", "a/b/c", "../x", "org/na me"])
def test_push_takes_the_name_of_a_repository(name: str) -> None:
    with pytest.raises(UsageError, match="ORG/NAME"):
        check_push(name)


def test_push_without_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9", raising=False)
    with pytest.raises(BackendError, match=r"^--push org/name: the hub ") as caught:
        check_push("org/name")
    assert "\n" not in str(caught.value)

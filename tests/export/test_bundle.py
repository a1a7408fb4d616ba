"""clip-export: a complete bundle whose parity is accepted, or nothing."""

import shutil
import sys
from pathlib import Path

import onnx
import pytest
import torch

from clip_core.errors import BackendError, DataError, ParityError, UsageError
from clip_core.inference.bundle import read_manifest
from clip_core.inference.clip import CLIPInference
from clip_core.inference.manifest import REFERENCE, REQUIRED, TEXT, VISION
from clip_core.model.checkpoint import load_model
from export.bundle import export_bundle
from tests.models import images_of, make_run, save


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but those of the export's status."""
    files = (path for path in folder.rglob("*") if path.is_file() and "export" not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def make_chaotic(run: Path) -> None:
    """A best checkpoint that float32 cannot compute the same way twice: signals of 1 on an offset of a million."""
    model = load_model(run).model
    with torch.no_grad():
        model.image.patches.bias.fill_(1e6)
    save(run, model, step=8)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_a_bundle_is_whole_and_describes_itself(tiny_run: Path, tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    assert {*REQUIRED, VISION, TEXT} <= manifest.files.keys()
    assert [each.precision for each in manifest.variants] == ["fp32"]
    assert manifest.source.run == "tiny"
    assert (manifest.source.step, manifest.embed_dim, manifest.context_length) == (7, 16, 24)
    assert manifest.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert len(manifest.classes or ()) == 18
    assert manifest.parity.accepted
    assert {row.batch for row in manifest.parity.rows} == {1, 3, 8}
    assert {path.name for path in tiny_bundle.iterdir()} == {
        "README.md", "config.json", "example.py", "manifest.json", "onnx",
        "preprocessor_config.json", "reference.npy", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    leftovers = [path.name for path in tiny_run.iterdir() if path.name.startswith(".")]
    assert leftovers == [".export.lock"]


def test_no_path_of_the_machine_is_in_any_file_of_a_bundle(tiny_run: Path, tiny_bundle: Path) -> None:
    for name, content in snapshot(tiny_bundle).items():
        for place in (str(tiny_run.parent), str(Path.home()), str(Path.cwd()), sys.prefix, "site-packages"):
            assert place.encode() not in content or len(place) < 6, (name, place)


def test_the_graphs_are_clean_and_hold_each_weight_once(tiny_run: Path, tiny_bundle: Path) -> None:
    model = load_model(tiny_run).model
    for name, tower in (("vision", model.image), ("text", model.text)):
        path = tiny_bundle / "onnx" / f"{name}_model.onnx"
        proto = onnx.load(path)
        onnx.checker.check_model(proto, full_check=True)
        assert {opset.domain for opset in proto.opset_import} == {""}
        assert not proto.functions
        assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
        weights = sum(parameter.numel() for parameter in tower.parameters()) * 4
        assert path.stat().st_size < weights * 1.1 + 100_000
        assert [[d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in proto.graph.output] == [
            ["batch", 16]
        ]
    assert [d.dim_param for d in proto.graph.input[0].type.tensor_type.shape.dim] == ["batch", "tokens"]


def test_an_export_that_fails_its_parity_leaves_nothing(run: Path) -> None:
    make_chaotic(run)
    before = snapshot(run)
    with pytest.raises(ParityError, match="differ from the model"):
        export_bundle(run)
    assert snapshot(run) == before


def test_a_bundle_is_replaced_only_by_one_that_is_accepted(run: Path) -> None:
    export_bundle(run)
    good = snapshot(run / "bundle")
    make_chaotic(run)
    with pytest.raises(ParityError):
        export_bundle(run)
    assert snapshot(run / "bundle") == good
    model = load_model(run / "checkpoints" / "step_0000007").model
    save(run, model, step=9)
    _, manifest = export_bundle(run)
    assert manifest.source.step == read_manifest(run / "bundle").source.step == 9
    assert not list(run.glob(".bundle*"))


def test_a_folder_that_is_no_bundle_is_never_replaced(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UsageError, match="something else than a bundle"):
            export_bundle(run, mine, force=force)
    with pytest.raises(UsageError, match="something else than a bundle"):
        export_bundle(run, run, force=True)
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_a_bundle_of_another_run_is_replaced_with_force_only(run: Path, own_bundle: Path) -> None:
    with pytest.raises(UsageError, match="--force"):
        export_bundle(run, own_bundle)
    export_bundle(run, own_bundle, force=True)
    assert read_manifest(own_bundle).source.run == "run"


def test_images_that_are_gone_are_asked_for(run: Path, tiny_run: Path) -> None:
    shutil.rmtree(images_of(run)[0].parent)
    with pytest.raises(DataError, match="--images"):
        export_bundle(run)
    _, manifest = export_bundle(run, images=images_of(tiny_run)[0].parent)
    assert manifest.parity.images == 36


def test_a_checkpoint_without_a_run_needs_the_folder_of_its_export(run: Path, tiny_run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(run / "checkpoints" / "step_0000007", alone)
    shutil.copy(run / "tokenizer.json", alone)
    with pytest.raises(UsageError, match="--out"):
        export_bundle(alone)
    place, manifest = export_bundle(alone, tmp_path / "out" / "bundle", images=images_of(tiny_run)[0].parent)
    assert manifest.classes is None
    assert CLIPInference(place).encoder.about.embed_dim == 16


@pytest.fixture(scope="module")
def every_precision(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the run with all variants."""
    folder = tmp_path_factory.mktemp("precisions") / "bundle"
    export_bundle(tiny_run, folder, precisions=("fp32", "fp16", "int8"), accept_loss=True)
    return folder


def test_the_same_weights_are_exported_to_the_same_bytes(tiny_bundle: Path, every_precision: Path) -> None:
    one, other = read_manifest(tiny_bundle).files, read_manifest(every_precision).files
    assert {VISION, TEXT} <= one.keys() & other.keys()
    assert {name for name, facts in one.items() if other[name] != facts} == {REFERENCE}  # it has each variant's


def test_every_precision_has_its_proof_and_its_identity(tiny_run: Path, every_precision: Path) -> None:
    manifest = read_manifest(every_precision)
    assert [each.precision for each in manifest.variants] == ["fp32", "fp16", "int8"]
    sizes = [manifest.files[each.vision].size for each in manifest.variants]
    assert sizes[0] > sizes[1]
    for each in manifest.variants:
        assert each.parity.recall is not None
        assert each.parity.recall.pairs == 36
        assert {row.file for row in each.parity.rows} == {each.vision, each.text}
        assert each.parity.least_cosine > 0.98
        assert set(each.how) == (set() if each.precision == "fp32" else {each.vision, each.text})
    image = images_of(tiny_run)[0]
    encoders = [CLIPInference(every_precision, precision=name).encoder for name in ("fp32", "fp16", "int8")]
    assert len({encoder.about.identity for encoder in encoders}) == 3
    assert CLIPInference(every_precision).encoder.about.precision == "fp32"
    exact, half, quantised = (encoder.encode_images([image])[0] for encoder in encoders)
    assert exact @ half > 0.999
    assert exact @ quantised > 0.98
    assert not (exact == quantised).all()


def test_a_precision_that_is_not_there_is_one_sentence(tiny_run: Path, tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"no variant of precision 'int8'.*has fp32.*--precision"):
        CLIPInference(tiny_bundle, precision="int8")
    with pytest.raises(BackendError, match="'int4'; it may be fp32, fp16, int8"):
        CLIPInference(tiny_bundle, precision="int4")  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="PyTorch computes in fp32"):
        CLIPInference(tiny_run, backend="torch", precision="int8")

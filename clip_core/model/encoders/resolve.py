"""From what a user names to an encoder: a folder, a file, a name of timm or of the Hugging Face hub."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clip_core.errors import CheckpointError, UsageError
from clip_core.model.encoders import (
    clip_tower,
    hugging_face_image,
    hugging_face_text,
    onnx_image,
    static_vectors,
    timm_encoder,
)
from clip_core.model.encoders.base import EncoderInfo, Features, FrozenEncoder, Side
from clip_core.model.encoders.files import CONFIG, hub_folder, installed, read_settings
from clip_core.model.encoders.hugging_face_image import IMAGE_MODELS
from clip_core.model.encoders.hugging_face_text import TEXT_MODELS
from clip_core.model.encoders.transformers_models import refuse_code
from clip_core.model.published import is_published
from clip_core.network import Preprocessing
from clip_core.run.paths import META, is_run
from clip_core.text import printable

Kind = Literal["timm", "hugging_face", "onnx", "clip", "static"]


@dataclass(frozen=True)
class _Place:
    """What a name means: the kind of encoder, and its folder or file; none for a file of timm's."""

    kind: Kind
    path: Path | None


def load_image_encoder(
    name: str,
    *,
    features: Features = "pooled",
    image_size: int | None = None,
    preprocessing: Preprocessing | str | None = None,
) -> FrozenEncoder:
    """An image encoder, frozen, on the CPU.

    Args:
        name: a folder of Hugging Face or timm, an ONNX file, any CLIP that this project reads, `org/name` on the
            Hugging Face hub, `timm:ARCHITECTURE` (weights from the hub), `timm:ARCHITECTURE@FILE`, or a name of timm.
        features: what `forward` gives: pooled as its authors do, the class token, or the mean of its patches, which
            `token_features` gives one by one.
        image_size: another size of images than the encoder's own, where it takes any.
        preprocessing: in place of what its files say: whole, or a name of `preprocessing.NAMED`.
    Raises:
        CheckpointError: if it is missing, damaged, incomplete, not supported, or asks for code to be run.
        MissingExtraError: if it needs timm or transformers, and that is not installed.
        UsageError: if it has no such features or takes no images of that size.
    """
    place = _locate(name, "image")
    if place.kind == "timm":
        _only_own(name, preprocessing)
        return timm_encoder.load_timm(timm_encoder.timm_source(name, place.path), features, image_size)
    path = _given(place)
    if place.kind == "hugging_face":
        return hugging_face_image.load_image(name, path, features, image_size, preprocessing)
    _only_pooled(name, features)
    if place.kind == "onnx":
        return onnx_image.load_onnx(name, path, image_size, preprocessing)
    _only_own(name, preprocessing)
    return clip_tower.load_clip_tower(name, path, "image", image_size=image_size)


def load_text_encoder(name: str, *, context_length: int | None = None) -> FrozenEncoder:
    """A text encoder with its tokenizer, frozen, on the CPU.

    Args:
        name: a folder of Hugging Face or sentence-transformers, a folder with static token vectors, any CLIP that this
            project reads, or `org/name` on the Hugging Face hub.
        context_length: the longest caption in tokens, at most the encoder's positions; longer captions are truncated,
            with the end token kept.
    Raises:
        CheckpointError: if it is missing, damaged, incomplete, not supported, or asks for code to be run.
        TokenizerError: if it has no tokenizer.json, or one that does not fit.
        MissingExtraError: if it needs transformers, and that is not installed.
        UsageError: if the context is longer than its positions.
    """
    place = _locate(name, "text")
    path = _given(place)
    if place.kind == "hugging_face":
        return hugging_face_text.load_text(name, path, context_length)
    if place.kind == "static":
        return static_vectors.load_static(name, path, context_length)
    return clip_tower.load_clip_tower(name, path, "text", context_length=context_length)


def resolve_encoder(
    name: str,
    side: Side,
    *,
    features: Features = "pooled",
    image_size: int | None = None,
    preprocessing: Preprocessing | str | None = None,
    context_length: int | None = None,
) -> EncoderInfo:
    """The facts of an encoder; its weights are hashed, and loaded only where nothing else gives the facts.

    Args and Raises: as for `load_image_encoder` and `load_text_encoder`.
    """
    place = _locate(name, side)
    if place.kind == "timm":
        return timm_encoder.resolve_timm(timm_encoder.timm_source(name, place.path), features, image_size)
    path = _given(place)
    if place.kind == "hugging_face" and side == "image":
        return hugging_face_image.resolve_image(name, path, features, image_size, preprocessing)
    if place.kind == "hugging_face":
        return hugging_face_text.resolve_text(name, path, context_length)
    if place.kind == "static":
        return static_vectors.resolve_static(name, path, context_length)
    if side == "image":
        return load_image_encoder(name, features=features, image_size=image_size, preprocessing=preprocessing).info
    return load_text_encoder(name, context_length=context_length).info


def load_encoder(info: EncoderInfo) -> FrozenEncoder:
    """The encoder that `info`, stored with a run or a checkpoint, describes.

    Raises:
        CheckpointError: if it is gone, or is not the same any more.
    """
    path = Path(info.name)
    if path.is_absolute() and not path.exists():
        raise CheckpointError(
            f"the {info.side} encoder that this model was trained on is no longer at {printable(info.name)}: put it "
            f"back, or give the run its new place with clip-train --resume --run-dir RUN --{info.side}-encoder PATH."
        )
    if info.side == "image":
        encoder = load_image_encoder(
            info.name,
            features=info.features,
            image_size=info.image_size if info.source in ("timm", "hugging_face") else None,
            preprocessing=info.preprocessing if info.source in ("hugging_face", "onnx") else None,
        )
    else:
        encoder = load_text_encoder(info.name, context_length=None if info.source == "clip" else info.context_length)
    if encoder.info.identity != info.identity:
        raise CheckpointError(
            f"the {info.side} encoder {printable(info.name)} changed since the run began: its identity is "
            f"{encoder.info.identity[:12]}, not {info.identity[:12]}; put the earlier one back, or start a new run."
        )
    return encoder


# ---------------------------------------------------------------- what a name means


def _locate(name: str, side: Side) -> _Place:
    """Raises: CheckpointError, UsageError: if nothing of that name is an encoder of this side."""
    if name.startswith(timm_encoder.PREFIX):
        _image_only(name, side, "timm has image encoders only")
        architecture, _, file = name.removeprefix(timm_encoder.PREFIX).partition("@")
        return _Place("timm", None if file else hub_folder(timm_encoder.hub_name_of(architecture)))
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(path, side)
    if path.is_file():
        if path.suffix == ".onnx":
            _image_only(name, side, "text encoders as ONNX files are not supported")
            return _Place("onnx", path)
        if is_published(path):
            return _Place("clip", path)
        raise CheckpointError(f"{path} is no encoder: give a folder, an ONNX file, or the weights of a CLIP.")
    folder = hub_folder(name)
    if folder is not None:
        return _in_folder(folder, side)
    if side == "image" and "/" not in name and "\\" not in name and _is_timm(name):
        return _Place("timm", hub_folder(timm_encoder.hub_name_of(name)))
    known = "a name of timm, " if side == "image" else ""
    raise UsageError(
        f"no {side} encoder {printable(name, 100)!r}: it is neither a folder or file here, nor {known}nor a name on "
        "the Hugging Face hub (org/name); clip-train --list-encoders shows what is understood."
    )


def _is_timm(name: str) -> bool:
    if not installed(["timm"])["timm"]:
        return False
    import timm

    return bool(timm.is_model(name.partition(".")[0]))


def _in_folder(folder: Path, side: Side) -> _Place:
    if (folder / META).is_file() or is_run(folder):
        return _Place("clip", folder)
    config = folder / CONFIG
    if (folder / "open_clip_config.json").is_file():
        return _Place("clip", folder)
    if side == "text" and not (folder / "modules.json").is_file() and static_vectors.is_static(folder):
        stated = read_settings(config).get("model_type") if config.is_file() else None
        if stated in (None, "model2vec"):
            return _Place("static", folder)
    if not config.is_file() and (folder / "modules.json").is_file():
        return _Place(
            "hugging_face", folder
        )  # an older sentence-transformers folder, with the network in 0_Transformer
    if not config.is_file():
        onnx = sorted(folder.glob("*.onnx"))
        hint = f"; name the file, {onnx[0]}" if onnx else ""
        raise CheckpointError(f"{folder} is no encoder: it has no config.json{hint}.")
    settings = read_settings(config)
    refuse_code(config, settings)
    return _by_settings(folder, config, settings, side)


def _by_settings(folder: Path, config: Path, settings: dict[str, Any], side: Side) -> _Place:
    kind = settings.get("model_type")
    if side == "image" and ("architecture" in settings or "pretrained_cfg" in settings):
        return _Place("timm", folder)
    if side == "image" and kind in IMAGE_MODELS:
        return _Place("hugging_face", folder)
    if side == "text" and kind in TEXT_MODELS:
        return _Place("hugging_face", folder)
    if "text_config" in settings or "vision_config" in settings or kind == "clip":
        return _Place("clip", folder)
    other = "text" if side == "image" else "image"
    if kind in (TEXT_MODELS if side == "image" else IMAGE_MODELS):
        raise UsageError(f"{folder} is a {other} encoder ({kind}); give it as --{other}-encoder.")
    listed = ", ".join(IMAGE_MODELS if side == "image" else TEXT_MODELS)
    raise CheckpointError(
        f"{config} has the model_type {printable(json.dumps(kind), 60)}, which is not supported as "
        f"{'an' if side == 'image' else 'a'} {side} encoder; these are: {listed}."
    )


def _image_only(name: str, side: Side, reason: str) -> None:
    if side != "image":
        raise UsageError(f"{name} is no text encoder: {reason}.")


def _given(place: _Place) -> Path:
    assert place.path is not None  # only files of timm's have none
    return place.path


def _only_pooled(name: str, features: Features) -> None:
    if features != "pooled":
        raise UsageError(f"{name} has pooled features only, no {features.replace('_', ' ')}.")


def _only_own(name: str, preprocessing: Preprocessing | str | None) -> None:
    if preprocessing is not None:
        raise UsageError(f"{name} says itself how images are prepared; leave out --encoder-preprocessing.")

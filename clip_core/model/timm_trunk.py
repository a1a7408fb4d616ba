"""Networks of timm that are the image tower (`visual.trunk`) of open_clip's checkpoints.

open_clip's configurations name them and say no more. The shapes of the Vision Transformers of SigLIP and CLIP are a
table here, so that timm itself is not needed for them; it builds all others.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clip_core.errors import CheckpointError
from clip_core.model.published_config import SQUASHED, number
from clip_core.network import Activation, ImageTower, Pooling
from clip_core.text import printable


class Trunk(NamedTuple):
    """`siglip`: attention pooling, neither class token nor pre-norm, eps 1e-6; else class token, pre-norm, eps 1e-5."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Activation = Activation.GELU
    siglip: bool = True


Shape = tuple[int, int, int, int]  # width, layers, heads, MLP width


def _sizes(name: str, sizes: tuple[int, ...], patch_size: int, shape: Shape, **traits: Any) -> dict[str, Trunk]:
    width, layers, heads, mlp_width = shape
    return {f"{name}_{size}": Trunk(size, patch_size, width, layers, heads, mlp_width, **traits) for size in sizes}


_TANH = Activation.GELU_TANH
_BASE, _LARGE = (768, 12, 12, 3072), (1024, 24, 16, 4096)
_SO400M, _GIANT = (1152, 27, 16, 4304), (1536, 40, 16, 6144)

# Exact GELU in B/16, L/16 below 512 pixels and so400m/14; tanh in all others.
TRUNKS: dict[str, Trunk] = {
    **_sizes("vit_base_patch32_siglip", (256,), 32, _BASE, activation=_TANH),
    **_sizes("vit_base_patch16_siglip", (224, 256, 384, 512), 16, _BASE),
    **_sizes("vit_large_patch16_siglip", (256, 384), 16, _LARGE),
    **_sizes("vit_large_patch16_siglip", (512,), 16, _LARGE, activation=_TANH),
    **_sizes("vit_so400m_patch14_siglip", (224, 378, 384), 14, _SO400M),
    **_sizes("vit_so400m_patch16_siglip", (256, 384, 512), 16, _SO400M, activation=_TANH),
    **_sizes("vit_giantopt_patch16_siglip", (256, 384), 16, _GIANT, activation=_TANH),
    **_sizes("vit_base_patch32_clip", (224,), 32, _BASE, siglip=False),
    **_sizes("vit_base_patch16_clip", (224,), 16, _BASE, siglip=False),
    **_sizes("vit_large_patch14_clip", (224, 336), 14, _LARGE, siglip=False),  # the first is MobileCLIP2-L-14's
}


def image_tower(where: Path | str, vision: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values of an ImageTower for open_clip's `vision_cfg` with a `timm_model_name`; None where it is not in the
    table, or is pooled or projected in another way than published.

    Raises:
        CheckpointError: for another image size than the trunk's.
    """
    name = str(vision["timm_model_name"])
    trunk = TRUNKS.get(name)
    pool, projection, bias = _settings(vision)
    published = pool == ("map" if trunk is not None and trunk.siglip else "token")
    if trunk is None or not published or projection not in ("none", "linear", "") or bias:
        return None
    if vision.get("image_size", 224) != trunk.image_size:
        raise CheckpointError(
            f"{where} prepares images of {vision.get('image_size', 224)!r:.20} pixels for {name}, which is for "
            f"{trunk.image_size}; correct image_size."
        )
    head = {"heads": trunk.heads, "mlp_width": trunk.mlp_width, "activation": trunk.activation}
    return {
        **{key: getattr(trunk, key) for key in ("image_size", "patch_size", "width", "layers", *head)},
        "pooling": Pooling.ATTENTION if trunk.siglip else Pooling.CLASS_TOKEN,
        "attention_pooling": head if trunk.siglip else None,
        "class_token": not trunk.siglip,
        "norm_after_pooling": not trunk.siglip,
        "pre_norm": not trunk.siglip,
        "patch_bias": trunk.siglip,
        "projection": projection != "none",
        "projection_bias": not projection,  # then it is the trunk's own classifier
        "norm_eps": 1e-6 if trunk.siglip else 1e-5,
    }


def timm_tower(where: Path | str, vision: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a TimmTower for open_clip's `vision_cfg` with a `timm_model_name`.

    Raises:
        CheckpointError: for a variable image size, which such a tower does not have, or one that is no number.
    """
    name, (pool, projection, bias) = str(vision["timm_model_name"]), _settings(vision)
    if "naflex" in name.lower():
        raise CheckpointError(
            f"{where} has the timm trunk {printable(name, 60)}, which takes images in their own proportions (NaFlex); "
            "that is not supported: give a checkpoint of a fixed image size."
        )
    return {
        "architecture": name,
        "image_size": number(where, vision, "image_size", 224),
        "pooling": pool,
        "projection": projection,
        "projection_bias": bias,
    }


def prepared_as(name: str) -> dict[str, Any]:
    """How open_clip prepares images for a trunk's published weights, where no file says it; {} for CLIP's own way.

    Source: open_clip's `pretrained.py`.
    """
    if name.startswith(("fastvit_mci", "vit_base_mci")):
        values: dict[str, Any] = {"interpolation": "bilinear"}
        if not name.startswith(("fastvit_mci3", "fastvit_mci4")):
            values |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        return values
    if name.startswith("vit_pe_core"):
        return SQUASHED | {"interpolation": "bilinear"}
    return {}


def _settings(vision: Mapping[str, Any]) -> tuple[str, str, bool]:
    """timm_pool, timm_proj ("" for the trunk's own), timm_proj_bias."""
    return (
        str(vision.get("timm_pool", "avg") or ""),
        str(vision.get("timm_proj", "linear") or ""),
        bool(vision.get("timm_proj_bias")),
    )


def trunk_name(image: ImageTower) -> str | None:
    """timm's name of a tower with attention pooling; None where it has none."""
    for name, trunk in TRUNKS.items():
        cfg = {"timm_model_name": name, "timm_pool": "map", "image_size": trunk.image_size}
        if trunk.siglip:
            values = image_tower(name, cfg | {"timm_proj": "none" if not image.projection else "linear"})
            if values is not None and ImageTower(**values) == image:
                return name
    return None

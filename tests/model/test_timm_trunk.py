"""The table of timm's trunks against timm, and what its trunks are refused for."""

from typing import Any

import open_clip
import pytest
import timm
from timm.models import vision_transformer

from clip_core.errors import CheckpointError
from clip_core.model.timm_trunk import TRUNKS, image_tower, prepared_as, timm_tower, trunk_name
from clip_core.network import Activation, ImageTower, Preprocessing, TimmTower

SETTINGS = {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none"}


class AskedError(Exception):
    """What timm would build."""


@pytest.mark.parametrize("name", [name for name in TRUNKS if "_tin" not in name])
def test_the_table_is_timms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments that timm's own function gives its class; nothing is built."""

    def asked(self: Any, **arguments: Any) -> None:
        raise AskedError(arguments)

    monkeypatch.setattr(vision_transformer.VisionTransformer, "__init__", asked)
    with pytest.raises(AskedError) as caught:
        timm.create_model(name, num_classes=0)
    said, trunk = caught.value.args[0], TRUNKS[name]
    size = said.get("img_size") or timm.get_pretrained_cfg(name).input_size[-1]
    size = size[0] if isinstance(size, tuple) else size
    assert (size, said["patch_size"]) == (trunk.image_size, trunk.patch_size)
    assert (said["embed_dim"], said["depth"], said["num_heads"]) == (trunk.width, trunk.layers, trunk.heads)
    assert int(said["embed_dim"] * said.get("mlp_ratio", 4.0)) == trunk.mlp_width
    assert (said.get("act_layer") == "gelu_tanh") == (trunk.activation is Activation.GELU_TANH)
    assert (said.get("global_pool") == "map") == trunk.siglip == (not said.get("class_token", True))
    assert said.get("pre_norm", False) == (not trunk.siglip)
    assert ("norm_layer" in said) == (not trunk.siglip)  # eps 1e-5; timm's own is 1e-6


def test_a_tower_finds_its_name_again() -> None:
    for name, trunk in TRUNKS.items():
        if trunk.siglip:
            values = image_tower(name, {**SETTINGS, "timm_model_name": name, "image_size": trunk.image_size})
            assert values is not None
            found = trunk_name(ImageTower(**values))
            assert found is not None
            assert TRUNKS[found] == trunk


def test_another_image_size_than_the_trunks_is_refused() -> None:
    with pytest.raises(CheckpointError, match="images of 256 pixels for vit_base_patch16_siglip_224") as caught:
        image_tower("w.json", {**SETTINGS, "image_size": 256})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"timm_model_name": "convnext_base"}, {"timm_pool": "avg"}, {"timm_proj": "mlp"}, {"timm_proj": ""}]
)
def test_another_trunk_or_pooling_is_left_to_timm(changes: dict[str, Any]) -> None:
    vision = {**SETTINGS, **changes}
    values = timm_tower("w.json", vision)
    assert TimmTower(**values).architecture == vision["timm_model_name"]
    assert (image_tower("w.json", vision) is None) is (changes != {"timm_proj": ""})


def test_images_are_prepared_as_open_clip_does_where_no_file_says_it() -> None:
    compared = 0
    for name, tag in open_clip.list_pretrained():
        trunk = open_clip.get_model_config(name)["vision_cfg"]
        if trunk.get("timm_model_name") and image_tower(name, trunk) is None:
            said = open_clip.pretrained.get_pretrained_cfg(name, tag)
            ours = Preprocessing(image_size=224, **prepared_as(trunk["timm_model_name"]))
            assert (ours.mean, ours.std) == (tuple(said["mean"]), tuple(said["std"])), name
            assert (ours.interpolation, ours.resize_mode) == (said["interpolation"], said["resize_mode"]), name
            compared += 1
    assert compared > 30


def test_naflex_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"naflexvit_base_patch16_siglip.*in their own proportions"):
        timm_tower("w.json", {**SETTINGS, "timm_model_name": "naflexvit_base_patch16_siglip"})


def test_class_pooling_with_a_projection_with_bias_is_mobileclip2s() -> None:
    values = image_tower(
        "w.json", {"timm_model_name": "vit_large_patch14_clip_224", "timm_pool": "token", "timm_proj": None}
    )
    assert values is not None
    tower = ImageTower(**values)
    assert (tower.has_class_token, tower.projection, tower.projection_bias, tower.pre_norm) == (True, True, True, True)
    assert tower.norm_eps == 1e-5

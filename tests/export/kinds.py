"""Bundles of every kind of model, each with every file that a bundle may have."""

import fcntl
import json
import os
from pathlib import Path

import pytest
import torch

from clip_core.model.checkpoint import save_checkpoint
from clip_core.model.clip import CLIP
from clip_core.model.encoders.resolve import load_image_encoder, load_text_encoder
from clip_core.network import ClipConfig, ExternalTower, Head
from export.bundle import export_bundle
from export.more_graphs import MoreGraphs
from tests.encoders import image_folder, text_folder
from tests.export.checkpoints import photographs
from tests.models import make_run
from tests.published import open_clip_model, save_open_clip
from tests.published_siglip import save_hugging_face, siglip_model

KINDS = ("own", "clip", "siglip", "aligned")


def make_weights(kind: str, folder: Path) -> Path:
    """Weights of a kind below `folder`, with random numbers."""
    if kind == "own":
        return make_run(folder / "own", tokenizer="bpe")
    if kind == "clip":
        return save_open_clip(folder / "clip", open_clip_model())
    if kind == "siglip":
        place = save_hugging_face(folder / "siglip", siglip_model("v1"), "v1")
        settings = {"size": {"height": 38, "width": 38}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (place / "preprocessor_config.json").write_text(json.dumps(settings))
        return place
    return aligned(folder)


def aligned(folder: Path) -> Path:
    """A checkpoint of two heads over a DINOv2 and a BERT."""
    image = load_image_encoder(str(image_folder(folder / "dinov2", "dinov2")))
    text = load_text_encoder(str(text_folder(folder / "bert", "bert", pooling="mean_tokens")))
    assert image.info.preprocessing is not None
    assert text.tokenizer is not None
    torch.manual_seed(0)
    config = ClipConfig(
        embed_dim=24,
        image=ExternalTower(encoder=image.info, head=Head(hidden=16)),
        text=ExternalTower(encoder=text.info, head=Head(hidden=16)),
        preprocessing=image.info.preprocessing,
    )
    place = folder / "aligned"
    save_checkpoint(place, model=CLIP(config), tensors={}, state={}, step=3, epoch=1, scores={})
    text.tokenizer.save(place / "tokenizer.json")
    return place


def photos_in(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for number, photo in enumerate(photographs()):
        photo.save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session", params=KINDS)
def every_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of each kind, KIND_bundle beside its weights KIND; read it, do not write to it.

    Each is exported once, also where several processes run the tests.
    """
    kind, folder = str(request.param), tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "kinds"
    folder.mkdir(exist_ok=True)
    bundle = folder / f"{kind}_bundle"
    with (folder / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not bundle.exists():
            photos = photos_in(folder / f"{kind}_photos")
            more = MoreGraphs(combined=True, with_preprocessing=True)
            export_bundle(make_weights(kind, folder), bundle, images=photos, more=more)
    return bundle

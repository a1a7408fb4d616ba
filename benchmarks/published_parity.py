"""Largest difference between published weights loaded here and in the library that wrote them.

    python -m benchmarks.published_parity

Tiny networks with random weights, made by open_clip (also with timm trunks) and transformers on the spot, with every
trait that the tests know; fp32. Printed is the largest difference of image features, text features and logits, over
captions whose end token stands in different places, padded with zeros and with the end token, or as the model's own
tokenizer pads them; and for SigLIP, SigLIP2, MetaCLIP 2 and the towers that timm and transformers build, that of the
ONNX bundle from the network here.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.train_run import header, row
from clip_core.model.published import read_published
from export.bundle import export_bundle
from tests.export.checkpoints import photographs
from tests.parity import test_library_towers, test_siglip
from tests.parity.test_published import OPEN_CLIP, differences, hugging_face_says, open_clip_says
from tests.published import END, hugging_face_model, ids, open_clip_model, save_open_clip
from tests.published_siglip import (
    CAPTIONS,
    metaclip_2_model,
    save_hugging_face,
    save_trunk,
    siglip_model,
    trunk_model,
    trunk_settings,
)
from tests.published_towers import write_model


def main() -> None:
    print(header("made by", "trait", "padding", "max abs. difference"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, (trait, settings) in enumerate(OPEN_CLIP.items()):
            model = open_clip_model(**settings)
            path = save_open_clip(folder / str(number), model, **settings)
            whole = trait in ("last", "not causal", "sigmoid loss", "first")  # such captions are always padded with 0
            for padding in (0,) if whole else (0, END):
                tokens = ids(padding=padding)
                show(
                    "open_clip",
                    trait,
                    padding,
                    differences(read_published(path), open_clip_says(model, tokens), tokens),
                )
        model = open_clip_model(quick_gelu=True)
        torch.save(model.state_dict(), folder / "ViT.pt")
        for padding in (0, END):
            tokens = ids(padding=padding)
            found = differences(read_published(folder / "ViT.pt"), open_clip_says(model, tokens), tokens)
            show("OpenAI's shape, .pt", "quick_gelu", padding, found)
        for act in ("quick_gelu", "gelu"):
            theirs = hugging_face_model(act=act)
            theirs.save_pretrained(folder / act)
            for padding in (0, END):
                tokens = ids(padding=padding)
                found = differences(read_published(folder / act), hugging_face_says(theirs, tokens), tokens)
                show("transformers", act, padding, found)
        photos = folder / "photos"
        photos.mkdir()
        for number, photo in enumerate(photographs()):
            photo.save(photos / f"{number}.png")
        sentence_models(folder, photos)
        library_towers(folder, photos)


def sentence_models(folder: Path, photos: Path) -> None:
    """SigLIP, SigLIP2 and MetaCLIP 2, with captions as their tokenizers pad them, and their ONNX bundles."""
    for trait, (kind, changes) in test_siglip.HUGGING_FACE.items():
        model = siglip_model(kind, **changes)
        compare("transformers", trait, model, save_hugging_face(folder / f"hf {trait}", model, kind), photos)
    model = metaclip_2_model()
    compare("transformers", "MetaCLIP 2", model, save_hugging_face(folder / "m", model, "metaclip 2"), photos)
    for trait in ("SigLIP", "SigLIP2"):
        kind, trunk, changes = test_siglip.TRUNKS[trait]
        settings = trunk_settings(kind, trunk, **changes)
        model = trunk_model(settings)
        compare("open_clip, timm trunk", trait, model, save_trunk(folder / trait, model, settings, kind), photos)


def library_towers(folder: Path, photos: Path) -> None:
    """Image towers that timm builds, and text towers of transformers, in checkpoints of open_clip."""
    for vision, text in test_library_towers.PAIRS:
        trait = " with ".join(filter(None, (vision, text)))
        place = folder / trait
        compare("open_clip", trait, write_model(place, vision, text), place, photos)


def compare(maker: str, trait: str, theirs: Any, folder: Path, photos: Path) -> None:
    """Two rows: read here against the library, and the ONNX bundle against what was read."""
    published = read_published(folder)
    tokens, side = torch.from_numpy(published.tokenizer.encode(CAPTIONS)), published.config.image.image_size
    says = open_clip_says if maker.startswith("open_clip") else hugging_face_says
    print(row(maker, trait, "its own", f"{differences(published, says(theirs, tokens, side), tokens, side):.1e}"))
    _, manifest = export_bundle(folder, folder / "bundle", images=photos)
    print(row(f"{maker}, as ONNX", trait, "its own", f"{manifest.parity.max_abs_diff:.1e}"), flush=True)


def show(maker: str, trait: str, padding: int, found: float) -> None:
    print(row(maker, trait, "zeros" if padding == 0 else "end token", f"{found:.1e}"), flush=True)


if __name__ == "__main__":
    main()

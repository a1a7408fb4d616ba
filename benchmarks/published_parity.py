"""Largest difference between published weights loaded here and in the library that wrote them.

    python -m benchmarks.published_parity

Tiny networks with random weights, made by open_clip and transformers on the spot, with every trait that the tests know;
fp32. Printed is the largest difference of image features, text features and logits, over captions whose end token
stands in different places, padded with zeros and with the end token.
"""

import tempfile
from pathlib import Path

import torch

from benchmarks.train_run import header, row
from clip_core.model.published import read_published
from tests.parity.test_published import OPEN_CLIP, differences, hugging_face_says, open_clip_says
from tests.published import END, hugging_face_model, ids, open_clip_model, save_open_clip


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


def show(maker: str, trait: str, padding: int, found: float) -> None:
    print(row(maker, trait, "zeros" if padding == 0 else "end token", f"{found:.1e}"), flush=True)


if __name__ == "__main__":
    main()

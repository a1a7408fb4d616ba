"""README.md of a bundle: what the model was trained on, how good it is, how to call it."""

from typing import Any

from clip_core.inference.bundle import Manifest
from clip_core.text import printable
from export.parity import table

_MOST_CLASSES = 40


def model_card(manifest: Manifest, run_config: dict[str, Any], parameters: tuple[int, int]) -> str:
    """The card as Markdown.

    Args:
        run_config: the run's config.json; empty for a checkpoint without a run.
        parameters: of the image tower and of the text tower.
    """
    size = manifest.preprocessing.image_size
    sections = [
        f"# {_plain(manifest.source.run)}",
        (
            "A CLIP model: images and texts as vectors of one space, in ONNX. Both files return vectors of length "
            f"one with {manifest.embed_dim} numbers; their dot product is the cosine similarity."
        ),
        (
            f"- images: {size} x {size} pixels, {parameters[0]:,} parameters\n"
            f"- texts: up to {manifest.context_length} tokens, {parameters[1]:,} parameters\n"
            f"- logit scale: {manifest.logit_scale:.3f}{_bias(manifest.logit_bias)}\n"
            f"- from checkpoint `{_plain(manifest.source.checkpoint)}`, step {manifest.source.step:,}"
        ),
        "## What it was trained on",
        _training(manifest, run_config),
        "## Scores on validation images",
        _scores(manifest.source.scores),
        "## How to call it",
        _USAGE,
        "## Proof of the conversion",
        (
            f"ONNX Runtime against PyTorch, fp32 on the CPU, on real images and captions:\n\n"
            f"```\n{table(manifest.parity)}\n```"
        ),
        "## Limits",
        (
            "It knows what its training pairs showed and nothing else; a text of another kind than its captions gets "
            "a number too, and that number means little. Scores above come from images of the same source as the "
            "training images."
        ),
    ]
    return "\n\n".join(sections) + "\n"


_USAGE = """\
Without any of clip-tui, with numpy, Pillow, tokenizers and onnxruntime (see `example.py`):

```
python example.py image.jpg "a red circle" "a blue square"
```

With clip-tui, where PyTorch need not be installed:

```
clip-infer classification --model . --image image.jpg --classes "a red circle" "a blue square"
clip-infer retrieval --model . --text "a red circle" --image-dir images
```

```python
from clip_core import CLIPInference

clip = CLIPInference("path/to/this/folder")
clip.image_text_similarity("image.jpg", ["a red circle", "a blue square"])
```"""


def _bias(logit_bias: float | None) -> str:
    if logit_bias is None:
        return ""
    return (
        f"; logit bias: {logit_bias:.3f}. sigmoid(scale x cosine + bias) is how probable it is that an image and a "
        "text belong together; among classes, softmax(scale x cosine) is the same with and without the bias"
    )


def _training(manifest: Manifest, run_config: dict[str, Any]) -> str:
    data = run_config.get("data") or {}
    if not data:
        return "The exported checkpoint came without its run, so nothing is known about its training data."
    said = (run_config.get("config") or {}).get("data") or {}
    name = str(said.get("data_file") or "synthetic shapes").replace("\\", "/").rpartition("/")[2]
    lines = [
        (
            f"{data.get('train_pairs', 0):,} image-text pairs over {data.get('train_images', 0):,} images from "
            f"`{_plain(name)}`; {data.get('val_pairs', 0):,} pairs over {data.get('val_images', 0):,} other images "
            "were held out."
        )
    ]
    if manifest.classes:
        shown = ", ".join(f"`{_plain(name)}`" for name in manifest.classes[:_MOST_CLASSES])
        more = len(manifest.classes) - _MOST_CLASSES
        lines.append(f"Its captions are of few kinds: {shown}{f' and {more} more' if more > 0 else ''}.")
    return " ".join(lines)


def _scores(scores: dict[str, float]) -> str:
    if not scores:
        return "None were stored with the checkpoint."
    rows = [f"| {_plain(name)} | {value:.4f} |" for name, value in scores.items()]
    return "\n".join(["| score | value |", "|---|---|", *rows])


def _plain(text: str) -> str:
    """A text from a file, on one line, that Markdown takes for text."""
    return printable(text, 120).translate({ord(sign): "'" for sign in "`|<>[]"})

"""README.md of a bundle: training data, validation scores, usage, parity."""

from clip_core.inference.manifest import Manifest, PreprocessingParity
from clip_core.run.metrics import is_bound, lookup, text_of
from clip_core.run.records import RunRecord
from clip_core.text import printable
from export.parity import table
from export.with_preprocessing import sentence

_MOST_CLASSES = 40


def model_card(
    manifest: Manifest, record: RunRecord | None, parameters: tuple[int, int], other_software: list[str]
) -> str:
    """The card as Markdown.

    Args:
        record: the run's config.json; None for a checkpoint without a run.
        parameters: of the image tower and of the text tower.
        other_software: what reads the bundle, a sentence each.
    """
    size = manifest.preprocessing.image_size
    sections = [
        f"# {_plain(manifest.source.run)}",
        (
            "A CLIP model in ONNX. Both encoders return L2-normalised embeddings of "
            f"{manifest.embed_dim} dimensions; their dot product is the cosine similarity."
        ),
        (
            f"- images: {size} x {size} pixels, {parameters[0]:,} parameters\n"
            f"- texts: up to {manifest.context_length} tokens, {parameters[1]:,} parameters\n"
            f"- logit scale: {manifest.logit_scale:.3f}{_bias(manifest.logit_bias)}\n"
            f"- from checkpoint `{_plain(manifest.source.checkpoint)}`, step {manifest.source.step:,}"
        ),
        "## Training data",
        _training(manifest, record),
        "## Validation scores",
        _scores(manifest.source.scores),
        "## Usage",
        _USAGE,
        "## Other software",
        "\n".join(f"- {sentence}" for sentence in other_software),
        "## Parity",
        "ONNX Runtime against PyTorch in fp32, on the CPU, on the same images and captions:",
        *(f"```\n{table(variant)}\n```" for variant in manifest.variants),
        *([_preprocessing(manifest.preprocessing_parity)] if manifest.preprocessing_parity else []),
        "## Limits",
        (
            "Expect lower scores on images and captions that differ from the training pairs: the validation images "
            "have the same source as the training images. A similarity is computed for any text, also for "
            f"one unlike all captions.{_threshold(manifest)}"
        ),
    ]
    return _METADATA + "\n\n".join(sections) + "\n"


# Read by the Hugging Face hub, where the card is shown; the licence is the publisher's to name.
_METADATA = """\
---
library_name: onnxruntime
pipeline_tag: zero-shot-image-classification
tags:
- clip
- onnx
- transformers.js
---

"""

_USAGE = """\
Without clip-tui, with numpy, Pillow, tokenizers and onnxruntime (see `example.py`):

```
python example.py image.jpg "a red circle" "a blue square"
```

With clip-tui, which needs no PyTorch for this:

```
clip-infer classification --model . --image image.jpg --classes "a red circle" "a blue square"
clip-infer retrieval --model . --text "a red circle" --image-dir images
```

```python
from clip_core import CLIPInference

clip = CLIPInference("path/to/this/folder")
clip.image_text_similarity("image.jpg", ["a red circle", "a blue square"])
```"""


def _threshold(manifest: Manifest) -> str:
    if manifest.threshold is None:
        return ""
    return (
        f" On the validation pairs, a cosine of {manifest.threshold.value:.4f} tells matching pairs from others best "
        f"(precision {manifest.threshold.precision:.1%}, recall {manifest.threshold.recall:.1%}, where both are "
        "equally many); other images and prompts may need another."
    )


def _preprocessing(parity: PreprocessingParity) -> str:
    return (
        f"`{parity.file}` takes a raw image, uint8 (height, width, 3), upright RGB, and prepares it inside: "
        f"{sentence(parity)}."
    )


def _bias(logit_bias: float | None) -> str:
    if logit_bias is None:
        return ""
    return (
        f"; logit bias: {logit_bias:.3f}. sigmoid(scale x cosine + bias) is the probability that an image and a "
        "text match; softmax(scale x cosine) over classes does not depend on the bias"
    )


def _training(manifest: Manifest, record: RunRecord | None) -> str:
    if record is None:
        return "The checkpoint was exported without its run: its training data is unknown."
    data = record.data
    name = str(record.config.data.data_file or "synthetic shapes").replace("\\", "/").rpartition("/")[2]
    images = "" if data.train_images is None else f" with {data.train_images:,} images"
    lines = [
        (
            f"{data.train_pairs:,} image-text pairs{images} from `{_plain(name)}`; validated on {data.val_pairs:,} "
            f"pairs with {data.val_images:,} other images."
        )
    ]
    if manifest.classes:
        shown = ", ".join(f"`{_plain(name)}`" for name in manifest.classes[:_MOST_CLASSES])
        more = len(manifest.classes) - _MOST_CLASSES
        lines.append(f"The captions are classes: {shown}{f' and {more} more' if more > 0 else ''}.")
    return " ".join(lines)


def _scores(scores: dict[str, float]) -> str:
    if not scores:
        return "None are stored with the checkpoint."
    rows = [
        f"| {_plain(lookup(name).label)} | {text_of(lookup(name), scores)} |" for name in scores if not is_bound(name)
    ]
    return "\n".join(["| score | value |", "|---|---|", *rows])


def _plain(text: str) -> str:
    """Text from a file on one line, without Markdown syntax."""
    return printable(text, 120).translate({ord(sign): "'" for sign in "`|<>[]"})

"""Which other software reads a bundle, and what it cannot do with this model: sentences of the model card."""

from clip_core.network import LIBRARY_TOWERS, ClipConfig, TextTower
from export.config_files import model_type


def other_software(config: ClipConfig, *, combined: bool) -> list[str]:
    """A sentence each, true of this model.

    Args:
        combined: whether the bundle has onnx/model.onnx.
    """
    padded = isinstance(config.text, TextTower) and config.text.reads_padding
    padding = "padding: 'max_length'" if padded else "padding: true"
    both = "SiglipModel" if model_type(config) == "siglip" else "CLIPModel"
    whole = "" if combined else " only in a bundle written with --combined"
    found = [
        (
            f"transformers.js reads it with CLIPTextModelWithProjection and CLIPVisionModelWithProjection (tokenizer "
            f"options: {padding}, truncation: true), and {both}{whole}; it resizes "
            "images with another library than Pillow, so that their embeddings differ a little."
        ),
        (
            "transformers reads its configuration, tokenizer and image processor; the weights are not PyTorch's "
            "(`clip-export --format hf` writes those)."
        ),
        (
            "A caption that spells a special token (`<|endoftext|>`, `</s>`, `[SEP]`) has that token in other "
            "software; in clip-tui and example.py it is text."
        ),
    ]
    names = [tower.encoder.architecture for tower in config.external]
    names += [tower.architecture for tower in (config.image, config.text) if isinstance(tower, LIBRARY_TOWERS)]
    if names:
        found.append(
            f"transformers cannot build this network from config.json, since {' and '.join(names)} with a projection "
            "is none of its architectures; the ONNX files need nothing else."
        )
    preprocessing = config.preprocessing
    if preprocessing.resize_mode == "longest":
        found.append(
            "Neither transformers nor transformers.js nor immich pads images to a square as this model needs; prepare "
            "them as example.py does, or export with --with-preprocessing."
        )
    elif preprocessing.crop_rounding == "round" and preprocessing.resize_mode == "shortest":
        found.append(
            "Where an odd number of pixels is cropped, transformers, transformers.js and immich may crop one further "
            "to the left or top."
        )
    return found

"""Which other software reads a bundle, and what it cannot do with this model: sentences of the model card."""

from clip_core.network import ClipConfig, TextTower


def other_software(config: ClipConfig, *, combined: bool) -> list[str]:
    """A sentence each, true of this model.

    Args:
        combined: whether the bundle has onnx/model.onnx.
    """
    siglip = isinstance(config.text, TextTower) and config.text.reads_padding
    padding = "padding: 'max_length'" if siglip else "padding: true"
    whole = "" if combined else " only in a bundle written with --combined"
    found = [
        (
            f"transformers.js reads it with CLIPTextModelWithProjection and CLIPVisionModelWithProjection (tokenizer "
            f"options: {padding}, truncation: true), and {'SiglipModel' if siglip else 'CLIPModel'}{whole}; it resizes "
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
    if config.external:
        names = " and ".join(tower.encoder.architecture for tower in config.external)
        found.append(
            f"transformers cannot build this network from config.json, since {names} with a projection head is none "
            "of its architectures; the ONNX files need nothing else."
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

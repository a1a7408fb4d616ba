"""A network as a folder that transformers' CLIPModel and CLIPProcessor read."""

from pathlib import Path

from clip_core.data.tokenizer import Tokenizer
from clip_core.files import write_json
from clip_core.inference.bundle import CONFIG, PREPROCESSOR, TOKENIZER
from clip_core.model.clip import CLIP
from clip_core.model.weight_maps import to_hugging_face
from clip_core.network import ClipConfig, Pooling, Stem
from export.config_files import OWN_TRAITS, model_config, preprocessor_config
from export.published_files import save_weights, write_tokenizer

_ONCE_WRONG_END = 2  # CLIPModel takes this number for an old mistake, and reads at the highest token instead


def obstacles(config: ClipConfig, tokenizer: Tokenizer) -> list[str]:
    """The traits of a network that CLIPModel cannot express."""
    image, text = config.own_image, config.own_text
    found = {
        "a convolutional stem": image.stem is not Stem.PATCH,
        "mean pooling of the patches": image.pooling is not Pooling.CLASS_TOKEN,
        "no LayerNorm before the image's blocks": not image.pre_norm,
        "a bias in its patch embedding": image.patch_bias,
        "a text tower that is not causal": not text.causal,
        f"pooling at the {text.pooling.value} token of the text": text.pooling is not Pooling.END_OF_TEXT,
        "a bias in its text projection": text.projection_bias,
        "a bias of the logits": config.logit_bias,
        f"end token {_ONCE_WRONG_END}, which transformers takes for the highest of a caption": (
            text.end_token == _ONCE_WRONG_END
        ),
        f"resize mode {config.preprocessing.resize_mode}": config.preprocessing.resize_mode == "longest",
    }
    return [trait for trait, there in found.items() if there]


def write(folder: Path, model: CLIP, tokenizer: Tokenizer) -> None:
    """Configuration, weights and tokenizer."""
    config = model.config
    save_weights(folder / "model.safetensors", to_hugging_face(model.state_dict(), config))
    write_tokenizer(folder, tokenizer, config.own_text, pad_with_end=True)
    described = model_config(config, model.logit_scale().item(), folder / TOKENIZER)
    for tower in ("vision_config", "text_config"):
        described[tower] = {key: value for key, value in described[tower].items() if key not in OWN_TRAITS}
    write_json(folder / CONFIG, {"architectures": ["CLIPModel"]} | described)
    processor = preprocessor_config(config.preprocessing) | {"processor_class": "CLIPProcessor"}
    write_json(folder / PREPROCESSOR, processor)

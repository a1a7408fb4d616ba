"""A text tower that transformers builds, as open_clip's checkpoints have it below `text.`.

Shapes: C captions, T tokens, F features, D embedding.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_core.errors import CheckpointError
from clip_core.model.encoders.base import masked_pool
from clip_core.model.encoders.files import require
from clip_core.model.encoders.transformers_models import quiet
from clip_core.model.library_tower import LibraryTower
from clip_core.network import TransformersTower
from clip_core.text import printable

_BERT = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id",
)  # fmt: skip
# What each kind of config.json says of its network, for the encoder alone; nothing else of it is used or stored.
SETTINGS: dict[str, tuple[str, ...]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "mt5": (
        "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets",
        "relative_attention_max_distance", "layer_norm_epsilon", "feed_forward_proj", "pad_token_id",
    ),
    "m2m_100": (
        "vocab_size", "d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "activation_function",
        "max_position_embeddings", "scale_embedding", "pad_token_id",
    ),
}  # fmt: skip
WIDTH = {"mt5": "d_model", "m2m_100": "d_model"}
LAYERS = {"mt5": "num_layers", "m2m_100": "encoder_layers"}


class TransformersTextEncoder(LibraryTower):
    """A Transformer of transformers, its pooling and projection, with open_clip's names (its HFTextEncoder).

    forward: input_ids, int64 (C, T) -> text_embeds, float32 (C, D), L2-normalised. The attention mask is computed from
    the padding id, so that padding changes nothing.

    Raises:
        MissingExtraError: if transformers is not installed.
        CheckpointError: if it cannot build the network.
    """

    def __init__(self, config: TransformersTower, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.transformer = build(config.settings, pooler=config.pooling == "cls_pooler")
        width = width_of(config.settings)
        self.proj: nn.Module = nn.Identity()
        if config.projection == "none" and width != embed_dim:
            raise CheckpointError(
                f"the text tower {printable(config.architecture, 60)} has {width} features and no projection to the "
                f"{embed_dim} numbers of an embedding; name its hf_proj_type."
            )
        if config.projection == "linear":
            self.proj = nn.Linear(width, embed_dim, bias=False)
        elif config.projection == "mlp":
            hidden = (width + embed_dim) // 2
            self.proj = nn.Sequential(
                nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, embed_dim, bias=False)
            )
        self.eval()

    def network(self) -> nn.Module:
        return self.transformer

    def forward(self, input_ids: Tensor) -> Tensor:
        mask = input_ids != self.config.pad_id  # (C, T)
        out = self.transformer(input_ids=input_ids, attention_mask=mask.long())
        return F.normalize(self.proj(self.pool(out, mask)).float(), dim=-1)

    def pool(self, out: Any, mask: Tensor) -> Tensor:
        """-> (C, F)"""
        if self.config.pooling == "cls_pooler":
            pooled: Tensor | None = getattr(out, "pooler_output", None)
            if pooled is not None:
                return pooled
        return masked_pool(out.last_hidden_state, mask, "mean" if self.config.pooling == "mean_pooler" else "cls")


def width_of(settings: Mapping[str, Any]) -> int:
    """F of a network with these settings."""
    return int(settings[WIDTH.get(str(settings["model_type"]), "hidden_size")])


def layers_of(settings: Mapping[str, Any]) -> int:
    """The number of blocks of a network with these settings."""
    return int(settings[LAYERS.get(str(settings["model_type"]), "num_hidden_layers")])


def whole_settings(where: object, said: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config.json that shape the network, with transformers' defaults where it omits them.

    Raises:
        CheckpointError: for a kind of network that is not supported, or a value that cannot be.
    """
    kind = said.get("model_type")
    if kind not in SETTINGS:
        raise CheckpointError(
            f"{where} has a Hugging Face text tower of model_type {printable(repr(kind), 40)}, which is not supported; "
            f"supported are {', '.join(SETTINGS)}."
        )
    if said.get("is_decoder") or said.get("position_embedding_type", "absolute") != "absolute":
        raise CheckpointError(f"{where} has a Hugging Face text tower with relative positions or a decoder's mask, "
                              "which is not supported.")  # fmt: skip
    library = require("transformers")
    given = {name: said[name] for name in SETTINGS[kind] if said.get(name) is not None}
    try:
        with quiet(library):
            config = library.AutoConfig.for_model(kind, **given)
            found = {name: getattr(config, name) for name in SETTINGS[kind]}
    except Exception as error:  # the library raises errors of every kind on values that it does not expect
        cause = printable(str(error).strip().partition("\n")[0], 120)
        raise CheckpointError(f"{where} does not describe a text tower ({cause}).") from None
    wrong = next((name for name, value in found.items() if not isinstance(value, str | int | float | bool)), None)
    if wrong is not None:
        raise CheckpointError(f"{where}: {wrong} of its text tower is {printable(repr(found[wrong]), 40)}.")
    return {"model_type": kind, **found}


def build(settings: Mapping[str, Any], *, pooler: bool) -> nn.Module:
    """The encoder that the settings describe, with initial weights, on the default device.

    Args:
        pooler: with the layer on its first token that BERT and its kin have.
    Raises:
        CheckpointError, MissingExtraError: as `TransformersTextEncoder`.
    """
    library = require("transformers")
    kind = str(settings["model_type"])
    try:
        with quiet(library):
            given = {name: value for name, value in settings.items() if name != "model_type"}
            config = library.AutoConfig.for_model(kind, **given)
            if kind == "mt5":
                config._attn_implementation = "eager"  # the other has no ONNX conversion with dynamic axes
                model = library.MT5EncoderModel(config).encoder
            elif kind == "m2m_100":
                model = library.M2M100Model(_encoder_only(config)).encoder
            else:
                model = library.AutoModel.from_config(config, add_pooling_layer=pooler, dtype=torch.float32)
    except Exception as error:  # as above
        cause = printable(str(error).strip().partition("\n")[0], 120)
        raise CheckpointError(f"transformers cannot build a text tower of the kind {kind} ({cause}).") from None
    built: nn.Module = model.eval()
    return built


def _encoder_only(config: Any) -> Any:
    """With the smallest decoder there can be; it is dropped."""
    config.decoder_layers, config.decoder_ffn_dim = 1, 1
    return config

"""The Hugging Face text tower that a configuration of open_clip names: its own configuration is elsewhere.

Published are checkpoints with XLM-R, RoBERTa, mT5, NLLB (nllb-clip) and BERT.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_core.errors import CheckpointError
from clip_core.model.encoders.files import read_settings
from clip_core.model.encoders.transformers_models import refuse_code
from clip_core.model.hub import hub_name, snapshot
from clip_core.model.published_config import number
from clip_core.model.transformers_text import SETTINGS, whole_settings
from clip_core.text import printable

CONFIG = "config.json"
TEXT_KEY = "hf_text_config"  # a key of ours in open_clip_config.json, beside open_clip's own two
_POOLERS = ("mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler")
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta")  # counted from behind the padding id

# Of the hub, for machines that do not reach it; the rest is transformers' default.
_ROBERTA = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1,
            "layer_norm_eps": 1e-5}  # fmt: skip
_XLM_R = _ROBERTA | {"model_type": "xlm-roberta", "vocab_size": 250002}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_MT5 = {"model_type": "mt5", "vocab_size": 250112, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12,
        "num_heads": 12, "feed_forward_proj": "gated-gelu", "pad_token_id": 0}  # fmt: skip
_NLLB = {"model_type": "m2m_100", "vocab_size": 256206, "d_model": 1024, "encoder_layers": 12,
         "encoder_attention_heads": 16, "encoder_ffn_dim": 4096, "max_position_embeddings": 1024,
         "scale_embedding": True, "pad_token_id": 1}  # fmt: skip
NAMED: dict[str, dict[str, Any]] = {
    "roberta-base": _ROBERTA,
    "roberta-large": _ROBERTA | _LARGE,
    "xlm-roberta-base": _XLM_R,
    "xlm-roberta-large": _XLM_R | _LARGE,
    "bert-base-uncased": {"model_type": "bert"},
    "google/mt5-base": _MT5,
    "google/mt5-xl": _MT5 | {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "facebook/nllb-200-distilled-600M": _NLLB,
    "facebook/nllb-200-distilled-1.3B": _NLLB | {"encoder_layers": 24, "encoder_ffn_dim": 8192},
}


def text_tower(
    where: Path | str, text: Mapping[str, Any], described: Mapping[str, Any] | None, folder: Path | None
) -> dict[str, Any]:
    """The values of a TransformersTower for open_clip's `text_cfg` with an `hf_model_name`.

    Args:
        where: what messages call the configuration.
        described: the settings of its network, where they are known.
        folder: that of the weights.
    Raises:
        CheckpointError: if its settings are not to be found, or ask for what is not supported.
    """
    name = str(text["hf_model_name"])
    settings = whole_settings(where, _settings(where, name, described, folder))
    kind = settings["model_type"]
    pooling = text.get("hf_pooler_type", "mean_pooler") or (
        "cls_pooler" if kind in ("bert", "m2m_100") else _POOLERS[0]
    )
    if pooling not in _POOLERS:
        raise CheckpointError(
            f"{where} pools its text tower by {printable(repr(pooling), 40)}, which is not supported; supported are "
            f"{', '.join(_POOLERS)}."
        )
    projection = text.get("hf_proj_type", "mlp")
    if projection not in ("linear", "mlp", None):
        raise CheckpointError(f"{where} has hf_proj_type {printable(repr(projection), 40)}; it may be linear or mlp.")
    context = number(where, text, "context_length", 77)
    _check_context(where, settings, context)
    return {
        "architecture": name,
        "settings": settings,
        "pooling": pooling,
        "projection": projection or "none",
        "vocab_size": settings["vocab_size"],
        "end_token": 0,  # until the tokenizer is known
        "context_length": context,
    }


def _settings(
    where: Path | str, name: str, described: Mapping[str, Any] | None, folder: Path | None
) -> Mapping[str, Any]:
    """What the file with the weights holds, else the folder or the hub name that it names, else what is published."""
    if isinstance(described, Mapping):
        return described
    beside = [Path(name), *([folder / name, folder] if folder else [])]
    for place in beside:
        config = place / CONFIG
        if config.is_file():
            said = read_settings(config)
            refuse_code(config, said)
            if said.get("model_type") in SETTINGS or place == beside[0]:
                return said
    if name in NAMED:
        return NAMED[name]
    found = _on_the_hub(name)
    if found is None:
        raise CheckpointError(
            f"{where} has the text tower {printable(name, 80)}, whose shape it does not say; put the config.json of "
            f"{printable(name, 80)} beside the weights."
        )
    said = read_settings(found / CONFIG)
    refuse_code(found / CONFIG, said)
    return said


def _on_the_hub(name: str) -> Path | None:
    """The folder in the hub's cache with the config.json of that name, downloaded if it can be."""
    if not hub_name(name):
        return None
    try:
        found = snapshot(name, (CONFIG,), offline=True) or snapshot(name, (CONFIG,), offline=False)
    except CheckpointError:  # it cannot be reached, which the caller says with the way out
        return None
    return found if found is not None and (found / CONFIG).is_file() else None


def _check_context(where: Path | str, settings: Mapping[str, Any], context: int) -> None:
    """Refuse captions that are longer than the positions of the network."""
    positions = settings.get("max_position_embeddings")
    if not isinstance(positions, int) or settings["model_type"] not in ("bert", *_POSITIONS_AFTER_PADDING):
        return
    behind = settings["pad_token_id"] + 1 if settings["model_type"] in _POSITIONS_AFTER_PADDING else 0
    if context > positions - behind:
        raise CheckpointError(
            f"{where} has a context of {context} tokens, and its text tower has {positions - behind} positions; "
            "correct context_length."
        )

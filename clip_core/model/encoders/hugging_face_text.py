"""Text encoders of transformers: BERT, DistilBERT, MPNet, RoBERTa and XLM-R, also as sentence-transformers folders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from clip_core.data.tokenizer import Tokenizer
from clip_core.data.tokenizer_file import read_tokenizer
from clip_core.errors import CheckpointError, TokenizerError, UsageError
from clip_core.model.encoders.base import EncoderInfo, FrozenEncoder, blocks_of, masked_pool, parameter_count
from clip_core.model.encoders.files import CONFIG, absolute, identity_of, licence_of, read_settings, weights_in
from clip_core.model.encoders.pooling import TextPooling, read_pooling
from clip_core.model.encoders.transformers_models import build, build_empty, refuse_code, without_pooler
from clip_core.model.weight_files import open_weights
from clip_core.text import printable

# model_type -> whether positions are counted from behind the padding id
TEXT_MODELS = {
    "bert": False, "distilbert": False, "mpnet": True, "roberta": True, "xlm-roberta": True, "camembert": True,
}  # fmt: skip


class HuggingFaceTextEncoder(FrozenEncoder):
    """A Transformer whose tokens are pooled over the mask, which is computed from the padding id."""

    def __init__(self, info: EncoderInfo, tokenizer: Tokenizer, model: nn.Module, pooling: TextPooling) -> None:
        super().__init__(info, tokenizer)
        self.model = model
        self.how, self.normalise = pooling.how, pooling.normalise
        self.pad_id = tokenizer.pad_id
        self.frozen()

    def forward(self, x: Tensor) -> Tensor:
        mask = x != self.pad_id  # (C, T)
        tokens = self.model(input_ids=x, attention_mask=mask.long()).last_hidden_state  # (C, T, F)
        pooled = masked_pool(tokens, mask, self.how)
        return F.normalize(pooled, dim=-1) if self.normalise else pooled

    def blocks(self) -> list[nn.Module]:
        return blocks_of(self.model)


@dataclass(frozen=True)
class _Parts:
    """What a folder says of its encoder."""

    settings: dict[str, Any]
    pooling: TextPooling
    weights: Path
    tokenizer: Tokenizer


def resolve_text(name: str, folder: Path, context_length: int | None = None) -> EncoderInfo:
    """The facts of a Hugging Face text encoder, from its configuration and the list of its weights.

    Raises:
        CheckpointError, TokenizerError, UsageError: as `load_text`.
    """
    parts = _open(folder, context_length)
    return _described(name, folder, parts, without_pooler(build_empty(parts.pooling.weights_folder)))


def load_text(name: str, folder: Path, context_length: int | None = None) -> HuggingFaceTextEncoder:
    """Load a Hugging Face text encoder from a folder.

    Raises:
        CheckpointError: if it is damaged, incomplete, of a kind that is not supported, or asks for code to be run.
        TokenizerError: if it has no tokenizer.json, or one that does not fit.
        UsageError: if --context-length is longer than its positions.
    """
    parts = _open(folder, context_length)
    model = without_pooler(build(parts.pooling.weights_folder, parts.weights))
    return HuggingFaceTextEncoder(_described(name, folder, parts, model), parts.tokenizer, model, parts.pooling)


def _open(folder: Path, context_length: int | None) -> _Parts:
    pooling = read_pooling(folder)
    settings = read_settings(pooling.weights_folder / CONFIG)
    refuse_code(pooling.weights_folder / CONFIG, settings)
    if settings.get("model_type") not in TEXT_MODELS:
        kind = printable(str(settings.get("model_type")), 40)
        raise CheckpointError(
            f"{pooling.weights_folder / CONFIG} has the model_type {kind}; supported are {', '.join(TEXT_MODELS)}."
        )
    positions = _positions(pooling.weights_folder / CONFIG, settings)
    longest = min(pooling.limit or positions, positions)
    if context_length is not None and not 3 <= context_length <= positions:
        raise UsageError(f"--context-length is {context_length}; {folder} takes 3 to {positions} tokens.")
    pad = settings.get("pad_token_id")
    pad_id = pad if isinstance(pad, int) else (1 if TEXT_MODELS[settings["model_type"]] else 0)
    place = next((each for each in (folder, pooling.weights_folder) if (each / "tokenizer.json").is_file()), folder)
    tokenizer = _tokenizer(place / "tokenizer.json", context_length or longest, pad_id)
    if tokenizer.vocab_size > settings.get("vocab_size", 0):
        raise TokenizerError(
            f"{place / 'tokenizer.json'} has {tokenizer.vocab_size:,} tokens, the network "
            f"{settings.get('vocab_size', 0)!r:.20}; put the tokenizer.json that belongs to it there."
        )
    return _Parts(settings, pooling, weights_in(pooling.weights_folder), tokenizer)


def _positions(where: Path, settings: dict[str, Any]) -> int:
    """The longest text in tokens."""
    after_padding = TEXT_MODELS[settings["model_type"]]
    positions = settings.get("max_position_embeddings", 512)
    pad = settings.get("pad_token_id", 1) if after_padding else -1
    if not isinstance(positions, int) or not isinstance(pad, int) or positions - pad - 1 < 3:
        raise CheckpointError(f"{where} says nothing valid of its positions ({positions!r:.20}).")
    return positions - pad - 1


def _tokenizer(path: Path, context_length: int, pad_id: int) -> Tokenizer:
    if not path.is_file():
        raise TokenizerError(
            f"{path.parent} has no tokenizer.json; make one with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
        )
    return Tokenizer.framed(path, read_tokenizer(path), context_length, pad=pad_id, fixed_length=False)


def _described(name: str, folder: Path, parts: _Parts, model: nn.Module) -> EncoderInfo:
    settings, pooling, tokenizer = parts.settings, parts.pooling, parts.tokenizer
    width = int(settings.get("hidden_size") or settings["dim"])
    facts = [pooling.how, pooling.normalise, tokenizer.context_length, tokenizer.pad_id, settings]
    kind = printable(str(settings["model_type"]), 40)
    files = [*open_weights(parts.weights).files, *_tokenizer_files(folder, pooling)]
    return EncoderInfo(
        side="text",
        source="hugging_face",
        name=absolute(name),
        architecture=f"{kind} ({type(model).__name__}), {pooling.how} pooling",
        identity=identity_of(files, facts),
        parameters=parameter_count(model),
        licence=licence_of(folder, settings),
        feature_size=width,
        context_length=tokenizer.context_length,
        end_token=tokenizer.end_token,
        vocab_size=tokenizer.vocab_size,
        pad_id=tokenizer.pad_id,
        notes=pooling.notes,
    )


def _tokenizer_files(folder: Path, pooling: TextPooling) -> list[Path]:
    places = (folder, pooling.weights_folder)
    return [next(place / "tokenizer.json" for place in places if (place / "tokenizer.json").is_file())]

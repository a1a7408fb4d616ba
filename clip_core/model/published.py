"""Published weights as a network of ours: found, described, checked against their description, read.

Accepted are OpenAI's files, open_clip's checkpoints and folders, Hugging Face's folders of CLIP, SigLIP and MetaCLIP 2,
and their names on the Hugging Face hub. Nothing in them is executed; see weight_files.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from clip_core.config import explain
from clip_core.data.clip_bpe import find_clip_tokenizer
from clip_core.data.published_tokenizer import find_published_tokenizer
from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import CheckpointError, TokenizerError, UsageError
from clip_core.files import load_json
from clip_core.model import hugging_face_config, open_clip_config
from clip_core.model.clip import CLIP, uninitialised_clip
from clip_core.model.hub import fetch, hub_name, local_source
from clip_core.model.hugging_face_tower import TEXT_KEY
from clip_core.model.image_encoder import interpolate_positions
from clip_core.model.not_weights import quantised_note, refuse_adapters
from clip_core.model.published_config import PublishedConfig, unsupported
from clip_core.model.timm_image import check_timm_tower
from clip_core.model.timm_trunk import prepared_as
from clip_core.model.torch_files import StoredTensor
from clip_core.model.transformers_text import layers_of
from clip_core.model.unwrap import unwrap
from clip_core.model.weight_files import INDEX, SUFFIXES, WeightFile, open_weights
from clip_core.model.weight_folders import (
    HUGGING_FACE_CONFIG,
    OPEN_CLIP_CONFIG,
    find_weights,
    missing_beside,
    one_tower,
)
from clip_core.model.weight_maps import check_names_and_shapes, read_weights
from clip_core.model.weight_names import NOT_WEIGHTS, Row, hugging_face_rows, open_clip_rows
from clip_core.network import (
    Activation,
    ClipConfig,
    ExternalTower,
    ImageTower,
    TextTower,
    TimmTower,
    TransformersTower,
)
from clip_core.run.paths import MANIFEST, META
from clip_core.text import printable

_OWN = (META, MANIFEST)  # of checkpoints and bundles, which are not published weights
_ACTIVATIONS = {"gelu": Activation.GELU, "quickgelu": Activation.QUICK_GELU}  # that --init-model may name alone
_TRUNK = "visual.trunk."  # timm's names
_HUGGING_FACE = re.compile(r"text\.transformer\.(?:embeddings|encoder|embed_tokens|block|layers|shared)\.")

# Parts of names that only weights of other architectures have.
_FOREIGN = {
    "visual.layer1.": "a ResNet as its image tower",
    "visual.attnpool.": "a ResNet as its image tower",
    "visual.attn_pool": "attentional pooling",
    "text_decoder.": "CoCa's text decoder",
    "cls_emb": "a class token among the words",
    "positional_embedding_res": "LongCLIP's second table of positions",
    ".ls_1.": "layer scale",
    ".attn.ln_q": "normalised queries and keys",
    ".attn.head_scale": "scaled heads",
}


@dataclass(frozen=True)
class Published:
    """Published weights in our names, fp32, on the CPU, with everything that belongs to them.

    `source`: the path or name that was given. `folder`: the folder of their files. `files`: those that hold weights.
    `notes`: what was taken, assumed or ignored, a line each.
    """

    config: ClipConfig
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    source: str
    folder: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    def build(self) -> CLIP:
        """The network in evaluation mode; its parameters are `weights`, not copies."""
        model = uninitialised_clip(self.config)
        model.load_state_dict(self.weights, strict=True, assign=True)
        return model.eval()


def is_published(path: Path) -> bool:
    """Whether there are published weights at `path`: a weight file, an index, or a folder with their configuration."""
    if path.is_file():
        return path.suffix in SUFFIXES or path.name.endswith(INDEX)
    if any((path / name).exists() for name in _OWN):
        return False
    if (path / OPEN_CLIP_CONFIG).is_file():
        return True
    try:
        settings = load_json(path / HUGGING_FACE_CONFIG)
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and ("model_type" in settings or "text_config" in settings)


def read_published(
    path: Path | str,
    *,
    model_name: str | None = None,
    image_size: int | None = None,
    context_length: int | None = None,
) -> Published:
    """Read published weights, fp32, on the CPU, in little more memory than they take.

    Args:
        path: a weight file, a folder, or `org/name` on the Hugging Face hub, if there is no such path; open_clip's
            `local-dir:FOLDER`, a repository in a hub cache and a CLIP of sentence-transformers are folders too.
        model_name: what open_clip calls the architecture; without it, the configuration beside the weights counts,
            and without one the shapes (then a bare `.pt` or `.pth` is taken for OpenAI's, which has QuickGELU).
            `gelu` and `quickgelu` name the activation alone.
        image_size: another image size than the weights' own: position embeddings are interpolated.
        context_length: a shorter context than the weights' own.
    Raises:
        CheckpointError: if there are none, they are damaged, not finite, or of an architecture that is not supported.
        TokenizerError: if their tokenizer is not to be found, or does not fit.
        UsageError: if the name, the size or the length cannot be.
    """
    found = local_source(path)
    name = hub_name(str(found))
    file, described, located = _locate(fetch(name) if name else found)
    tensors, nested, unwrapped = _cleaned(file)
    coarse = quantised_note(file.path, tensors)
    _refuse_foreign(file.path, tensors)
    known, rows, where = _described(file, tensors, described, model_name, nested)
    check_names_and_shapes(file.path, where, known.config, rows, tensors)
    config = _adapted(known.config, image_size, context_length)
    tokenizer = _fitting_tokenizer(file.path, known, config.text.context_length)
    text = config.text.model_copy(update={"end_token": tokenizer.end_token})
    config = config.model_copy(update={"text": text})
    weights = read_weights(file.path, known.config, rows, tensors)
    if isinstance(config.image, ImageTower):
        weights["image.positions"] = interpolate_positions(
            weights["image.positions"], config.image.grid, class_token=config.image.has_class_token
        )
    if isinstance(config.text, TextTower):
        weights["text.positions"] = weights["text.positions"][: text.context_length].clone()
    assumed = _assumed(file, known, described, model_name)
    unsaid = _preprocessing_assumed(config, described, model_name)
    notes = tuple(filter(None, (located, unwrapped, coarse, assumed, unsaid)))
    return Published(config, weights, tokenizer, str(path), file.path.parent, file.files, notes)


# ---------------------------------------------------------------- where they are, and what describes them


def _locate(path: Path) -> tuple[WeightFile, Path | None, str]:
    """The weights that `path` means, the configuration beside them, and how they were found."""
    place = find_weights(path)
    return open_weights(place.weights), place.config, place.note


def _cleaned(file: WeightFile) -> tuple[dict[str, StoredTensor], bool, str]:
    """The weights without prefixes and buffers, whether they were nested, and which were taken."""
    refuse_adapters(file.path, file.tensors)
    found = unwrap(file.tensors)
    kept = {name: stored for name, stored in found.tensors.items() if name.rpartition(".")[2] not in NOT_WEIGHTS}
    return kept, found.nested, found.note


def _assumed(file: WeightFile, known: PublishedConfig, described: Path | None, model_name: str | None) -> str:
    """What neither the weights nor the files beside them say, in one line."""
    if described is None and model_name is None and not file.torchscript:
        quick = known.config.own_image.activation is Activation.QUICK_GELU
        named, other = ("QuickGELU, as in OpenAI's weights,", "gelu") if quick else ("GELU", "quickgelu")
        return (
            f"no file says which activation the weights were trained with; {named} is assumed "
            f"(another: --init-model {other})"
        )
    if described is None or known.own_tokenizer:
        return ""
    return missing_beside(described)


def _preprocessing_assumed(config: ClipConfig, described: Path | None, model_name: str | None) -> str:
    """How images are prepared for a tower of timm where no file says it, in one line."""
    if described is not None or not isinstance(config.image, TimmTower):
        return ""
    prepared = config.preprocessing
    means = ", ".join(f"{value:g}" for value in prepared.mean)
    return (
        f"no file says how images are prepared; {prepared.interpolation}, {prepared.resize_mode}, mean {means} is "
        f"assumed, as open_clip does for {printable(str(model_name), 40)}"
    )


def _refuse_foreign(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    for part, trait in _FOREIGN.items():
        found = next((name for name in tensors if part in name), None)
        if found is not None:
            raise unsupported(path, f"{trait} ({printable(found, 80)})")
    vision = any("visual." in name or "vision_model." in name for name in tensors)
    text = any(
        "text_model." in name or "token_embedding." in name or _HUGGING_FACE.match(name) is not None for name in tensors
    )
    if vision != text and "logit_scale" not in tensors:
        raise one_tower(path, "image" if vision else "text", f"its tensors are named {next(iter(tensors))}, ...")
    if "logit_scale" not in tensors or not vision:
        if (path.parent / META).is_file():
            raise CheckpointError(
                f"{path} is a part of the checkpoint {path.parent.name}; give its folder, or the run directory."
            )
        some = printable(", ".join(list(tensors)[:3]), 200)
        raise CheckpointError(f"{path} holds no CLIP; it has {len(tensors):,} tensors, named {some}, ...")


def _described(
    file: WeightFile,
    tensors: Mapping[str, StoredTensor],
    described: Path | None,
    model_name: str | None,
    nested: bool,
) -> tuple[PublishedConfig, list[Row], Path | str]:
    """The configuration, the weight map, and where the configuration comes from, for messages."""
    prefix = "text." if "text.positional_embedding" in tensors else ""
    hugging_face = any(name.startswith("vision_model.") for name in tensors)
    if hugging_face:
        config = file.path.with_name(hugging_face_config.CONFIG)
        if not config.is_file():
            raise CheckpointError(f"{file.path} has Hugging Face's names; put its config.json beside it.")
        known = _parsed(config)
        return known, hugging_face_rows(_bounded(config, known, tensors)), config
    activation = _ACTIVATIONS.get((model_name or "").lower())
    if model_name is not None and activation is None:
        where: Path | str = f"open_clip's {model_name}"
        named = open_clip_config.named_settings(model_name)
        prepared = prepared_as(str(named["vision_cfg"].get("timm_model_name")))
        known = open_clip_config.from_settings(where, named, prepared, folder=file.path.parent)
    elif described is not None:
        where, known = described, _parsed(described)
    elif any(name.startswith(_TRUNK) for name in tensors):
        raise CheckpointError(
            f"{file.path} has a timm trunk as its image tower and no configuration beside it; name its architecture "
            "with --init-model, as ViT-B-16-SigLIP."
        )
    elif any(_HUGGING_FACE.match(name) for name in tensors):
        raise CheckpointError(
            f"{file.path} has a Hugging Face text tower and no configuration beside it; name its architecture with "
            "--init-model, as xlm-roberta-base-ViT-B-32."
        )
    else:
        openai = file.torchscript or (not nested and file.path.suffix in (".pt", ".pth"))
        assumed = Activation.QUICK_GELU if openai else Activation.GELU
        where, known = "its own shapes", open_clip_config.from_shapes(file.path, tensors, prefix, assumed)
    if activation is not None:
        known = replace(known, config=_with_activation(known.config, activation))
    elif file.torchscript:  # OpenAI's archives have QuickGELU, also where a configuration says GELU
        known = replace(known, config=_with_activation(known.config, Activation.QUICK_GELU))
    return known, open_clip_rows(_bounded(where, known, tensors), text_prefix=prefix, trunk=known.trunk), where


def _parsed(path: Path) -> PublishedConfig:
    """The configuration in a file."""
    try:
        if path.name != OPEN_CLIP_CONFIG:
            return hugging_face_config.from_folder(path.parent)
        said = hugging_face_config.read_json(path)
        return open_clip_config.from_settings(
            path, said["model_cfg"], said.get("preprocess_cfg") or {}, folder=path.parent, described=said.get(TEXT_KEY)
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} is an invalid configuration ({printable(repr(error), 80)}).") from None


def _with_activation(config: ClipConfig, activation: Activation) -> ClipConfig:
    """The architecture with another activation in both towers, where they are ours."""
    towers = {
        side: tower.model_copy(update={"activation": activation})
        for side, tower in (("image", config.image), ("text", config.text))
        if isinstance(tower, ImageTower | TextTower)
    }
    return config.model_copy(update=towers)


def _bounded(where: Path | str, known: PublishedConfig, tensors: Mapping[str, StoredTensor]) -> ClipConfig:
    """The architecture, once it has no more blocks than there are tensors: it could ask for billions."""
    image, text = known.config.image, known.config.text
    layers = sum(tower.layers for tower in (image, text) if isinstance(tower, ImageTower | TextTower))
    if isinstance(text, TransformersTower):
        layers += layers_of(text.settings)
    if layers > len(tensors):
        raise CheckpointError(f"{where} describes more blocks than the weights have tensors ({len(tensors):,}).")
    if isinstance(image, TimmTower):
        check_timm_tower(where, image, known.config.embed_dim)
    return known.config


# ---------------------------------------------------------------- other sizes, and the tokenizer


def _adapted(config: ClipConfig, image_size: int | None, context_length: int | None) -> ClipConfig:
    """The architecture for another image size, or for a shorter context.

    Raises:
        UsageError: if the size is not a multiple of the patch size, or the context is longer than that of the weights.
    """
    values = config.model_dump()
    if image_size is not None and isinstance(config.image, TimmTower):
        raise UsageError(
            f"--image-size is not supported for the timm trunk {printable(config.image.architecture, 60)}, whose "
            f"images have {config.image.image_size} pixels; leave it out."
        )
    if image_size is not None:
        patch_size = config.own_image.patch_size
        if image_size % patch_size:
            raise UsageError(f"--image-size is {image_size}; it should be a multiple of the patch size, {patch_size}.")
        values["image"]["image_size"] = values["preprocessing"]["image_size"] = image_size
    if context_length is not None:
        if context_length > config.text.context_length:
            raise UsageError(
                f"--context-length is {context_length}; the weights were trained with {config.text.context_length} "
                "tokens, and have no embeddings of later positions."
            )
        values["text"]["context_length"] = context_length
    try:
        return ClipConfig.model_validate(values)
    except ValidationError as error:
        raise explain(error) from None


def _fitting_tokenizer(path: Path, known: PublishedConfig, context_length: int) -> Tokenizer:
    """The tokenizer that belongs to the weights.

    Raises:
        TokenizerError: if there is none, or its end token is not the one at which the text tower pools.
    """
    folder, text = path.parent, known.config.text
    assert not isinstance(text, ExternalTower)
    if known.own_tokenizer:
        tokenizer = find_published_tokenizer(
            folder, context_length, fixed_length=text.reads_padding, cleaning=known.cleaning, siglip=known.siglip
        )
    else:
        tokenizer = find_clip_tokenizer(folder, context_length, fixed_length=text.reads_padding)
    end, size = tokenizer.end_token, tokenizer.vocab_size
    if size > text.vocab_size:
        raise TokenizerError(
            f"the tokenizer found for {path} has {size:,} tokens, the network {text.vocab_size:,}; "
            "put the tokenizer.json that belongs to it beside it."
        )
    if isinstance(text, TransformersTower) and tokenizer.pad_id != text.pad_id:
        raise TokenizerError(
            f"the tokenizer found for {path} pads captions with token {tokenizer.pad_id}, and the text tower masks "
            f"token {text.pad_id}; put the tokenizer.json that belongs to it beside it."
        )
    if (known.end_token not in (None, end)) or (known.highest_token and end != size - 1):
        wanted = "the highest token" if known.end_token is None else f"token {known.end_token}"
        if known.highest_token and end < size - 1 and (folder / HUGGING_FACE_CONFIG).is_file():
            raise TokenizerError(
                f"{folder / 'tokenizer.json'} has {size - 1 - end} tokens above its end token {end}, and eos_token_id "
                f"2 in {HUGGING_FACE_CONFIG} means the highest token of a caption; set it to {end} in text_config."
            )
        raise TokenizerError(
            f"the tokenizer found for {path} ends captions with token {end}, and the text tower expects {wanted} as "
            "their end; put the tokenizer.json that belongs to it beside it."
        )
    return tokenizer

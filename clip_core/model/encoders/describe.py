"""What `clip-train --list-encoders` prints: the kinds of encoders, or what one name resolves to."""

from clip_core.errors import ClipError
from clip_core.model.encoders.base import EncoderInfo, Side
from clip_core.model.encoders.files import installed
from clip_core.model.encoders.hugging_face_image import IMAGE_MODELS
from clip_core.model.encoders.hugging_face_text import TEXT_MODELS
from clip_core.model.encoders.resolve import resolve_encoder
from clip_core.network import Preprocessing
from clip_core.text import printable

_KINDS = (
    ("image", "timm", "timm:vit_small_patch14_dinov2.lvd142m", "weights from the Hugging Face hub", "timm"),
    ("image", "timm, a file", "timm:mobilenetv3_small_100@weights.safetensors", "a state dict of the architecture",
     "timm"),
    ("image", "timm, a folder", "models/vit_small", "config.json of timm and model.safetensors", "timm"),
    ("image", "Hugging Face", "facebook/dinov2-small, models/dinov2", ", ".join(IMAGE_MODELS), "transformers"),
    ("image", "ONNX", "mobilenet.onnx", "float (batch, 3, S, S) in, (batch, F) out; preprocessor_config.json beside it",
     None),
    ("image", "CLIP", "openai/clip-vit-base-patch32, runs/birds", "the image tower of any CLIP that is read", None),
    ("text", "Hugging Face", "sentence-transformers/all-MiniLM-L6-v2, models/minilm", ", ".join(TEXT_MODELS),
     "transformers"),
    ("text", "token vectors", "models/wordllama", "one matrix as safetensors, and tokenizer.json", None),
    ("text", "CLIP", "openai/clip-vit-base-patch32, runs/birds", "the text tower of any CLIP that is read", None),
)  # fmt: skip


def describe_encoders(name: str | None = None, side: Side | None = None) -> str:
    """The kinds that are understood, with an example each, and what is installed; or what `name` resolves to.

    Args:
        side: None: whichever the name is, or both.
    Raises:
        ClipError: if `name` is an encoder of neither side, the reason for the image side coming first.
    """
    if name is None:
        return "\n".join(_kinds())
    sides: tuple[Side, ...] = ("image", "text") if side is None else (side,)
    found, errors = [], []
    for each in sides:
        try:
            found.append(_described(resolve_encoder(name, each)))
        except ClipError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return "\n\n".join(found)


def _kinds() -> list[str]:
    there = installed(("timm", "transformers", "onnxruntime"))
    lines = []
    for side in ("image", "text"):
        lines.append(f"--{side}-encoder takes")
        for kind_side, kind, example, what, needs in _KINDS:
            if kind_side == side:
                missing = f"  (needs {needs}: pip install 'clip-tui[encoders]')" if needs and not there[needs] else ""
                lines += [f"  {kind:<16}{example}{missing}", f"  {'':<16}{what}"]
    state = ", ".join(f"{package} {'installed' if here else 'not installed'}" for package, here in there.items())
    return [*lines, state]


def _described(info: EncoderInfo) -> str:
    rows = {
        f"{info.side} encoder": printable(info.name),
        "is": f"{info.architecture} ({info.source.replace('_', ' ')})",
        "parameters": f"{info.parameters:,}",
        "features": f"{info.feature_size:,}, {info.features.replace('_', ' ')}"
        + (f"; patch features of {info.token_size:,}" if info.tokens else ""),
        "licence": info.licence or "not stated",
        "identity": info.identity[:16],
    }
    if info.preprocessing is not None:
        rows["images"] = _images(info.preprocessing)
    if info.context_length is not None:
        rows["captions"] = f"at most {info.context_length} tokens of {info.vocab_size:,}"
    rows |= {"note" + " " * number: note for number, note in enumerate(info.notes)}
    return "\n".join(f"{key.strip():<16}{value}" for key, value in rows.items())


def _images(prepared: Preprocessing) -> str:
    resized = f", resized to {prepared.resize_size}" if prepared.resize_size else ""
    crop = {"shortest": "cropped", "squash": "squashed", "longest": "padded"}[prepared.resize_mode]
    return f"{prepared.image_size} pixels{resized}, {crop}, {prepared.interpolation}"

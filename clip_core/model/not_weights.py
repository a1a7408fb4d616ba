"""Files that stand where weights should be, recognised by how they begin and named in one sentence each.

Shapes of the messages: what the file is, and the way to the weights.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from clip_core.errors import CheckpointError
from clip_core.files import open_regular
from clip_core.model.torch_files import StoredTensor
from clip_core.text import printable

HEAD = 1024  # bytes that are looked at
_POINTER = (b"version https://git-lfs", b"version https://hawser", b"# xet version")
_PAGE = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|body|\?xml|!--)", re.IGNORECASE)
_TITLE = re.compile(rb"<title[^>]*>([^<]{1,80})", re.IGNORECASE)
_CONVERT = "convert it with transformers: CLIPModel.from_pretrained(FOLDER, {}=True).save_pretrained(OUT)"
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x89HDF\r\n", "an HDF5 file of TensorFlow", _CONVERT.format("from_tf")),
    (b"GGUF", "a GGUF file of llama.cpp", "give the safetensors or PyTorch file that it was made from"),
    (b"\x93NUMPY", "a NumPy array", "give a safetensors or PyTorch file"),
    (b"\x1f\x8b", "a gzip archive", "unpack it and give the file inside"),
    (b"BZh", "a bzip2 archive", "unpack it and give the file inside"),
    (b"\xfd7zXZ", "an xz archive", "unpack it and give the file inside"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it and give the file inside"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it and give the file inside"),
    (b"\xff\xd8\xff", "a JPEG image", "give a weight file, e.g. model.safetensors"),
    (b"\x89PNG", "a PNG image", "give a weight file, e.g. model.safetensors"),
    (b"%PDF", "a PDF document", "give a weight file, e.g. model.safetensors"),
)
_SUFFIXES = {
    ".onnx": ("an ONNX graph", "give the folder of an ONNX bundle that clip-export made, or the PyTorch weights"),
    ".msgpack": ("a file of Flax", _CONVERT.format("from_flax")),
    ".ckpt.index": ("a checkpoint of TensorFlow", "give PyTorch or safetensors weights"),
}
_COMMA = re.compile(r",\s*[}\]]")

# Names that only quantised weights have beside them.
_SCALES = (".weight_scale", ".weight_scale_inv", ".scale_weight", ".scb", ".absmax", ".quant_map", ".qweight",
           ".qzeros", ".input_scale", ".weight_format", ".scales")  # fmt: skip
_WHOLE = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.bool)
_FLOAT8 = "float8"


def refuse_not_weights(path: Path, head: bytes) -> None:
    """Refuse a file that begins like something else than weights.

    Args:
        head: its first bytes, up to HEAD.
    Raises:
        CheckpointError: saying what it is.
    """
    kind = _kind(path, head)
    if kind is not None:
        what, way_out = kind
        raise CheckpointError(f"{path} is {what}, not a weight file; {way_out}.")


def _kind(path: Path, head: bytes) -> tuple[str, str] | None:
    if not head:
        return "empty (0 bytes)", "download or copy it again"
    if head.startswith(_POINTER):
        size = re.search(rb"\bsize (\d{1,15})\b", head)
        full = f" of {int(size[1]):,} bytes" if size else ""
        return f"a Git LFS pointer to a file{full}", "fetch the file itself: git lfs pull, or hf download REPOSITORY"
    if _PAGE.match(head):
        title = _TITLE.search(head)
        named = f" (titled {printable(title[1].decode(errors='replace').strip(), 60)!r})" if title else ""
        return f"a web page{named}", "download the file itself; on the Hugging Face hub: hf download REPOSITORY FILE"
    for start, what, way_out in _KINDS:
        if head.startswith(start):
            return what, way_out
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it and give the file inside"
    for suffix, (what, way_out) in _SUFFIXES.items():
        if path.name.lower().endswith(suffix):
            return what, way_out
    if not head.strip(b"\0"):
        return "full of zeros, as an unfinished download is", "download or copy it again"
    text = _text(head)
    return None if text is None else (f"text (it begins {printable(text, 60)!r})", "download or copy it again")


def _text(head: bytes) -> str | None:
    """The first line, where the bytes are text."""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:
            return None
        text = head[: error.start].decode("utf-8-sig")
    plain = all(char.isprintable() or char in "\r\n\t" for char in text)
    return text.strip().partition("\n")[0].strip() if plain else None


def invalid_json(path: Path, error: Exception) -> CheckpointError:
    """The sentence for a configuration that cannot be read."""
    try:
        with open_regular(path) as handle:
            raw = handle.read(2**20)
    except OSError as failed:
        return CheckpointError(f"{path} cannot be read ({failed.strerror}).")
    kind = _kind(path, raw[:HEAD]) if not raw.lstrip(b"\xef\xbb\xbf \r\n\t").startswith((b"{", b"[")) else None
    if kind is not None:
        return CheckpointError(f"{path} is {kind[0]}, not a configuration; {kind[1]}.")
    if isinstance(error, json.JSONDecodeError):
        around = error.doc[max(0, error.pos - 200) : error.pos + 2]
        comma = [match for match in _COMMA.finditer(around) if max(0, error.pos - 200) + match.end() >= error.pos]
        if comma:
            return CheckpointError(
                f"{path} is not valid JSON: there is a comma before the closing bracket in line {error.lineno}; "
                "remove the comma."
            )
        what = printable(error.msg.partition(":")[0], 60)
        return CheckpointError(f"{path} is not valid JSON (line {error.lineno}, column {error.colno}: {what}); fix it.")
    return CheckpointError(f"{path} cannot be read ({printable(str(error), 80)}).")


def refuse_adapters(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse LoRA adapters and other weights of PEFT, alone or beside the weights that they change.

    Raises:
        CheckpointError: naming the first.
    """
    found = next((name for name in tensors if ".lora_" in name or name.startswith("base_model.model.")), None)
    if found is not None:
        raise adapter(path, f"it has {printable(found, 80)}")


def adapter(path: Path, why: str) -> CheckpointError:
    """What a PEFT adapter is refused with."""
    return CheckpointError(
        f"{path} is a PEFT adapter ({why}), which only changes the weights of another model; merge it into that model: "
        "PeftModel.from_pretrained(BASE, FOLDER).merge_and_unload().save_pretrained(OUT)."
    )


def quantised_note(path: Path, tensors: Mapping[str, StoredTensor]) -> str:
    """A line about weights in float8, whose values are coarse; empty for others.

    Raises:
        CheckpointError: for weights that mean nothing without scales: int8, 4 bits, or float8 with scales beside them.
    """
    scale = next((name for name in tensors if name.lower().endswith(_SCALES)), None)
    small = [each for each in tensors.values() if _FLOAT8 in str(each.dtype)]
    whole = next((name for name, each in tensors.items() if each.dtype in _WHOLE and len(each.shape) > 1), None)
    if scale is not None or whole is not None:
        dtype = str(small[0].dtype if small else tensors[whole or scale or ""].dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{path} holds quantised weights ({printable(scale or whole or '', 80)}, {dtype}), which are not "
            "supported; give the fp32, fp16 or bf16 weights that they were made from."
        )
    if not small:
        return ""
    dtype = str(small[0].dtype).removeprefix("torch.")
    return (
        f"{len(small):,} tensors are stored as {dtype}, with 2 or 3 bits of precision: scores may be lower than those "
        "of the fp32, fp16 or bf16 weights, which are better to fine-tune"
    )

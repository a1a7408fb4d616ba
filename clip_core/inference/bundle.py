"""The ONNX bundle: its file names and manifest, and reading one that is not trusted.

bundle/manifest.json   written last; names every file that is loaded or run, with size and sha256
bundle/config.json, preprocessor_config.json, tokenizer.json, tokenizer_config.json, example.py
bundle/onnx/vision_model.onnx, bundle/onnx/text_model.onnx
bundle/onnx/model.onnx and onnx/vision_model_with_preprocessing.onnx, where they were asked for
bundle/README.md       the model card; may be edited, so the manifest has no checksum of it
"""

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from clip_core.errors import BundleError
from clip_core.inference.threshold import Threshold
from clip_core.model.onnx_file import check_onnx
from clip_core.network import Frozen, Preprocessing
from clip_core.run.paths import MANIFEST
from clip_core.text import printable

VISION = "onnx/vision_model.onnx"
TEXT = "onnx/text_model.onnx"
COMBINED = "onnx/model.onnx"
WITH_PREPROCESSING = "onnx/vision_model_with_preprocessing.onnx"
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
MODEL_CARD = "README.md"
EXAMPLE = "example.py"
REQUIRED = (VISION, TEXT, TOKENIZER, CONFIG, PREPROCESSOR, TOKENIZER_CONFIG)

FORMAT_VERSION = 1
_LARGEST_MANIFEST = 16 * 2**20  # bytes


class FileFacts(Frozen):
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Source(Frozen):
    """Where the weights came from; names only, no path of the machine that exported them."""

    run: str
    checkpoint: str
    step: int
    weights_sha256: str
    scores: dict[str, float] = Field(default_factory=dict)


class ParityRow(Frozen):
    """One ONNX file against the torch model on the same inputs."""

    file: str
    batch: int
    tokens: int | None  # None for images
    inputs: int
    max_abs_diff: float
    least_cosine: float


class Parity(Frozen):
    """ONNX Runtime against PyTorch, for both encoders."""

    tolerance: float
    images: int
    captions: int
    top1_agreement: float  # fraction of images and of captions with the same nearest neighbour
    rows: tuple[ParityRow, ...]

    @property
    def max_abs_diff(self) -> float:
        return max(row.max_abs_diff for row in self.rows)

    @property
    def accepted(self) -> bool:
        return self.max_abs_diff < self.tolerance and self.top1_agreement == 1.0


class PreprocessingParity(Frozen):
    """The resize, crop and normalisation of `file` against Pillow's, on images of their own sizes.

    `max_level_diff`: of 8-bit levels. Cosines: of the embeddings with those of images that Pillow prepared.
    """

    file: str
    images: int
    max_level_diff: int
    changed_levels: float  # fraction of levels that differ at all
    mean_cosine: float
    least_cosine: float


class Manifest(Frozen):
    format_version: Literal[1] = 1
    source: Source
    embed_dim: Annotated[int, Field(ge=1, le=65536)]
    vocab_size: Annotated[int, Field(ge=1)]
    end_token: Annotated[int, Field(ge=0)]
    context_length: Annotated[int, Field(ge=3, le=4096)]
    logit_scale: Annotated[float, Field(gt=0, le=1000.01)]
    # Of weights that have one: sigmoid(scale x cosine + bias) is a pair's probability.
    logit_bias: Annotated[float, Field(allow_inf_nan=False)] | None = None
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None = None
    threshold: Threshold | None = None  # None: the source has no validation pairs, or too few
    opset: int
    versions: dict[str, str]
    parity: Parity
    preprocessing_parity: PreprocessingParity | None = None
    files: Annotated[dict[str, FileFacts], Field(max_length=64)]


@dataclass
class Bundle:
    """A checked bundle; ONNX files are held as the bytes that were checked."""

    folder: Path
    manifest: Manifest
    vision: bytes = field(repr=False)
    text: bytes = field(repr=False)

    @property
    def tokenizer(self) -> Path:
        return self.folder / TOKENIZER


def is_bundle(path: Path) -> bool:
    """Whether the folder looks like a bundle; `open_bundle` checks it."""
    return (path / MANIFEST).exists() or (path / VISION).exists()


def read_manifest(folder: Path) -> Manifest:
    """manifest.json of a bundle.

    Raises:
        BundleError: if it is absent, invalid, or of a later format.
    """
    content = _read(folder, MANIFEST, _LARGEST_MANIFEST)
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in mistake["loc"]) or "the whole file"
        if where == "format_version":
            raise BundleError(
                f"{folder / MANIFEST} is of format version {mistake['input']!r}, this clip-tui reads version "
                f"{FORMAT_VERSION}; upgrade clip-tui, or export the bundle again."
            ) from None
        raise BundleError(
            f"{folder / MANIFEST} is damaged at {printable(where, 80)} ({printable(mistake['msg'], 120)}); "
            "export the bundle again."
        ) from None


def open_bundle(path: Path) -> Bundle:
    """Read and check a whole bundle; no ONNX Runtime session exists before this returns.

    Raises:
        BundleError: for a file that is missing, outside the folder, a link, of another size or sha256, or an
            ONNX file that asks for custom operators or outside data.
    """
    folder = path.resolve()
    manifest = read_manifest(folder)
    for name in REQUIRED:
        if name not in manifest.files:
            raise BundleError(f"{path / MANIFEST} does not list {name}; export the bundle again.")
    held: dict[str, bytes] = {}
    for name, facts in manifest.files.items():
        content = _read(folder, name, facts.size)
        if len(content) != facts.size or hashlib.sha256(content).hexdigest() != facts.sha256:
            raise BundleError(f"{path / name} is not the file that its manifest describes; export the bundle again.")
        if name.endswith(".onnx"):
            check_onnx(content, str(path / name))
        if name in (VISION, TEXT):
            held[name] = content
    return Bundle(folder, manifest, held[VISION], held[TEXT])


def _read(folder: Path, name: str, largest: int) -> bytes:
    """A regular file inside the folder, of at most `largest` bytes; reached through no link, except in a hub cache.

    There a snapshot's files are links into the repository's `blobs`; such a link must name a file right in there.
    """
    parts = PurePosixPath(name).parts
    shown = printable(name, 80)
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name:
        raise BundleError(f"{folder / MANIFEST} names {shown!r}, which is outside the bundle; export the bundle again.")
    if str(PurePosixPath(name)) != name:  # another spelling of the same file
        raise BundleError(f"{folder / MANIFEST} names {shown!r}, which is no plain path; export the bundle again.")
    path = folder
    for place, part in enumerate(parts, start=1):
        path = path / part
        mode = _mode(folder, path, shown)
        if stat.S_ISLNK(mode):
            blob = _blob(folder, path) if place == len(parts) else None
            if blob is None:
                raise BundleError(
                    f"{folder / shown} is a link, and only the files of a hub cache may be links, into its own blobs; "
                    f"copy the bundle without links: cp -rL {folder} COPY"
                )
            path, mode = blob, _mode(folder, blob, shown)
    if not stat.S_ISREG(mode):
        raise BundleError(f"{folder / shown} is not a regular file; export the bundle again.")
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)), "rb") as handle:
            return handle.read(min(os.fstat(handle.fileno()).st_size, largest) + 1)
    except OSError as error:
        raise BundleError(f"{folder / shown} cannot be read: {error.strerror}.") from None


def _mode(folder: Path, path: Path, shown: str) -> int:
    try:
        return path.lstat().st_mode
    except OSError:
        raise BundleError(f"{folder} has no {shown}: it is not a complete bundle; export it again.") from None


def _blob(folder: Path, link: Path) -> Path | None:
    """The file in REPOSITORY/blobs that a link in REPOSITORY/snapshots/REVISION, the folder, points to."""
    blobs = folder.parent.parent / "blobs"
    if folder.parent.name != "snapshots" or not stat.S_ISDIR(blobs.lstat().st_mode if blobs.exists() else 0):
        return None
    target = Path(os.path.normpath(link.parent / link.readlink()))
    return target if target.parent == blobs else None

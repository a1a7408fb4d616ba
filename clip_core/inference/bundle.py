"""The ONNX bundle: its file names and manifest, and reading one that is not trusted.

bundle/manifest.json   written last; names every file that is loaded or run, with size and sha256
bundle/config.json, preprocessor_config.json, tokenizer.json, tokenizer_config.json, example.py
bundle/onnx/vision_model.onnx, text_model.onnx    of each variant: fp32, *_fp16.onnx, *_quantized.onnx (int8)
bundle/onnx/*.onnx.data                           weights of a file that would be larger than 2 GB
bundle/onnx/model.onnx and onnx/vision_model_with_preprocessing.onnx, where they were asked for
bundle/reference.npy   what each variant computed when it was exported
bundle/README.md       the model card; may be edited, so the manifest has no checksum of it
"""

import hashlib
import mmap
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, BinaryIO, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from clip_core.errors import BackendError, BundleError
from clip_core.files import replaced
from clip_core.inference.threshold import Threshold
from clip_core.model.onnx_file import check_onnx, files_beside
from clip_core.network import Frozen, Preprocessing
from clip_core.run.paths import MANIFEST, RunPaths
from clip_core.text import printable

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

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
REFERENCE = "reference.npy"  # embeddings of each variant, for clip-export verify
REQUIRED = (TOKENIZER, CONFIG, PREPROCESSOR, TOKENIZER_CONFIG)
SUFFIXES: dict[Precision, str] = {"fp32": "", "fp16": "_fp16", "int8": "_quantized"}  # as transformers.js names them
DATA = ".data"  # after the name of an ONNX file: its weights, where it would be larger than 2 GB

FORMAT_VERSION = 2
_LARGEST_MANIFEST = 16 * 2**20  # bytes
_MAPPED = 2**20  # bytes from which a file is mapped into memory, not read
LEAST_COSINE, LEAST_AGREEMENT = 0.99, 0.975  # of a lower precision without pairs to measure recall on
MOST_LOST = 0.01  # recall@1 that a lower precision may lose


def onnx_files(precision: Precision) -> tuple[str, str]:
    """The image tower's and the text tower's file of a variant."""
    suffix = SUFFIXES[precision]
    return f"onnx/vision_model{suffix}.onnx", f"onnx/text_model{suffix}.onnx"


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
    mean_cosine: float
    least_cosine: float


class Recall(Frozen):
    """Recall@1 over all queries of both directions, of the torch model and of a variant, on the same pairs."""

    pairs: int
    queries: int  # distinct images and distinct captions
    before: float
    after: float

    @property
    def lost(self) -> float:
        return self.before - self.after


class Parity(Frozen):
    """ONNX Runtime against PyTorch, for both encoders of one variant.

    Of fp32, every component is within `tolerance` and every nearest neighbour is the same. A lower precision changes
    every component: it may lose at most one point of recall@1 or one answer, and where there are no pairs, it keeps
    the cosines above 0.99 and 97.5 % of the nearest neighbours.
    """

    tolerance: float
    exact: bool = True  # whether `tolerance` decides
    images: int
    captions: int
    top1_agreement: float  # fraction of images and of captions with the same nearest neighbour
    recall: Recall | None = None  # None where there are no pairs
    rows: tuple[ParityRow, ...]

    @property
    def max_abs_diff(self) -> float:
        return max(row.max_abs_diff for row in self.rows)

    @property
    def mean_cosine(self) -> float:
        return min(row.mean_cosine for row in self.rows)

    @property
    def least_cosine(self) -> float:
        return min(row.least_cosine for row in self.rows)

    @property
    def accepted(self) -> bool:
        return self.failure is None

    @property
    def failure(self) -> str | None:
        """What is not good enough, in words, or None."""
        agreement = f"top-1 agreement {self.top1_agreement:.1%}"
        if self.exact:
            if self.max_abs_diff < self.tolerance and self.top1_agreement == 1.0:
                return None
            return f"max |diff| {self.max_abs_diff:.1e}, {agreement}"
        if self.recall is None:
            if self.least_cosine >= LEAST_COSINE and self.top1_agreement >= LEAST_AGREEMENT:
                return None
            return f"least cosine {self.least_cosine:.4f}, {agreement}"
        if self.recall.lost <= MOST_LOST or round(self.recall.lost * self.recall.queries) <= 1:
            return None
        return f"recall@1 {self.recall.before:.1%} -> {self.recall.after:.1%}"


class Variant(Frozen):
    """The encoders in one precision, and the proof that they may be used."""

    precision: Precision
    vision: str
    text: str
    how: dict[str, str] = Field(default_factory=dict)  # file: how it was made, "dynamic int8, 12 of 73 in fp32"
    parity: Parity

    @model_validator(mode="after")
    def _named_by_rule(self) -> Self:
        if (self.vision, self.text) != onnx_files(self.precision):
            raise ValueError(f"the files of {self.precision} are {' and '.join(onnx_files(self.precision))}")
        return self


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
    format_version: Literal[2] = 2
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
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]  # the first is used by default
    preprocessing_parity: PreprocessingParity | None = None
    files: Annotated[dict[str, FileFacts], Field(max_length=64)]

    @property
    def parity(self) -> Parity:
        """That of the default variant."""
        return self.variants[0].parity

    def variant(self, precision: Precision | None = None) -> Variant:
        """The variant of a precision; None: the default.

        Raises:
            BackendError: if the bundle has no such variant.
        """
        if precision is None:
            return self.variants[0]
        for each in self.variants:
            if each.precision == precision:
                return each
        there = ", ".join(each.precision for each in self.variants)
        raise BackendError(
            f"the bundle has no variant of precision {printable(str(precision), 40)!r} (it has {there}); "
            "export it again with clip-export --precision."
        )

    def names_of(self, variant: Variant) -> list[str]:
        """The listed files, without those of other variants."""
        unused = {file for each in self.variants for file in (each.vision, each.text)} - {variant.vision, variant.text}
        unused |= {name + DATA for name in unused}
        return [name for name in self.files if name not in unused]


@dataclass(frozen=True)
class Bundle:
    """A checked bundle and one of its variants."""

    folder: Path
    manifest: Manifest
    variant: Variant
    stamps: dict[str, "Stamp"] = field(repr=False)  # of the files as they were checked

    @property
    def tokenizer(self) -> Path:
        return self.folder / TOKENIZER

    def file(self, name: str) -> Path:
        return self.folder / name

    def check_unchanged(self) -> None:
        """After ONNX Runtime has read the files by their names: they are still the ones that were checked.

        Raises:
            BundleError: if one was replaced or written to since.
        """
        for name, stamp in self.stamps.items():
            if _stamp(self.folder / name) != stamp:
                raise BundleError(f"{self.folder / name} changed while it was loaded; try again.")


def is_bundle(path: Path) -> bool:
    """Whether the folder looks like a bundle; `open_bundle` checks it."""
    return (path / MANIFEST).exists() or (path / VISION).exists()


def in_place(bundle: Path) -> Path:
    """The folder of a bundle; the old one beside it where an export was killed between its two renames."""
    before = replaced(bundle)
    return before if not os.path.lexists(bundle) and is_bundle(before) else bundle


def find_bundle(path: Path) -> Path:
    """The bundle that `path` means: itself, or that of a run.

    Raises:
        BundleError: if nothing is there.
    """
    path = in_place(path)
    if not path.is_dir():
        raise BundleError(f"there is no folder {path}; give a bundle, or a run that has one.")
    inside = in_place(RunPaths(path).bundle)
    return inside if is_bundle(inside) and not is_bundle(path) else path


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
            found = mistake["input"]
            newer = isinstance(found, int) and found > FORMAT_VERSION
            raise BundleError(
                f"{folder / MANIFEST} is of format version {printable(repr(found), 40)}, this clip-tui reads version "
                f"{FORMAT_VERSION}; {'upgrade clip-tui, or ' if newer else ''}export the bundle again."
            ) from None
        raise BundleError(
            f"{folder / MANIFEST} is damaged at {printable(where, 80)} ({printable(mistake['msg'], 120)}); "
            "export the bundle again."
        ) from None


def open_bundle(path: Path, precision: Precision | None = None) -> Bundle:
    """Read and check a bundle and one of its variants; no ONNX Runtime session exists before this returns.

    Args:
        precision: of the variant; None: the bundle's first. Files of other variants are not read.
    Raises:
        BundleError: for a file that is missing, outside the folder, a link, of another size or sha256, or an
            ONNX file that asks for custom operators or outside data.
        BackendError: if the bundle has no such variant.
    """
    folder = path.resolve()
    manifest = read_manifest(folder)
    variant = manifest.variant(precision)
    towers = (variant.vision, variant.text)
    for name in (*towers, *REQUIRED):
        if name not in manifest.files:
            raise BundleError(f"{path / MANIFEST} does not list {name}; export the bundle again.")
    names = manifest.names_of(variant)
    with ThreadPoolExecutor(2) as pool:  # hashes are computed outside of the interpreter's lock
        stamps = dict(zip(names, pool.map(lambda name: _checked(folder, manifest, name), names), strict=True))
    return Bundle(folder, manifest, variant, stamps)


def check_bundle(path: Path) -> Manifest:
    """Read and check every file of a bundle, of all variants.

    Raises:
        BundleError: as `open_bundle`.
    """
    manifest = read_manifest(path.resolve())
    for variant in manifest.variants:
        open_bundle(path, variant.precision)
    return manifest


Stamp = tuple[int, int, int, int, int]  # device, file, size, time of the content, time of any change


def _stamp(path: Path) -> Stamp:
    try:
        facts = path.stat()
    except OSError:
        return (0, 0, 0, 0, 0)
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _checked(folder: Path, manifest: Manifest, name: str) -> Stamp:
    """The stamp of a listed file, if it is what the manifest says and, of an ONNX file, harmless."""
    facts = manifest.files[name]
    with _opened(folder, name) as handle:
        stamp = _stamp(folder / name)
        size = os.fstat(handle.fileno()).st_size
        if name.endswith(DATA) and os.fstat(handle.fileno()).st_nlink > 1:
            raise BundleError(
                f"{folder / name} is a hard link, which weights beside a model may not be; copy the file."
            )
        content = _content(handle) if size == facts.size else b""
        if size != facts.size or hashlib.sha256(content).hexdigest() != facts.sha256:
            raise BundleError(f"{folder / name} is not the file that its manifest describes; export the bundle again.")
    if name.endswith(".onnx"):
        beside = name + DATA
        if beside not in manifest.files:
            check_onnx(content, str(folder / name))
            return stamp
        allowed = beside.rpartition("/")[2]
        for other in files_beside(content, str(folder / name)):
            if other != allowed:
                raise BundleError(
                    f"{folder / name} has weights in {printable(other, 80)!r}; only {allowed} is allowed."
                )
    return stamp


def _content(handle: BinaryIO) -> "bytes | mmap.mmap":
    """The content of an open file, not copied where it is large."""
    if os.fstat(handle.fileno()).st_size < _MAPPED:
        return handle.read()
    return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


def _read(folder: Path, name: str, largest: int) -> bytes:
    """The first `largest` bytes of a file and one more."""
    with _opened(folder, name) as handle:
        return handle.read(min(os.fstat(handle.fileno()).st_size, largest) + 1)


def _opened(folder: Path, name: str) -> BinaryIO:
    """A regular file inside the folder; reached through no link, except in a hub cache.

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
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)), "rb")
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

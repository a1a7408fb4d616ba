"""The ONNX bundle: its file names, and what its manifest.json says; bundle.py reads one.

bundle/manifest.json   written last; names every file that is loaded or run, with size and sha256
bundle/config.json, preprocessor_config.json, tokenizer.json, tokenizer_config.json, example.py
bundle/onnx/vision_model.onnx, text_model.onnx    of each variant: fp32, *_fp16.onnx, *_quantized.onnx (int8)
bundle/onnx/*.onnx.data                           weights of a file that would be larger than 2 GB
bundle/onnx/model.onnx and onnx/vision_model_with_preprocessing.onnx, where they were asked for
bundle/reference.npy   what each variant computed when it was exported
bundle/README.md       the model card; may be edited, so the manifest has no checksum of it
"""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from clip_core.errors import BackendError
from clip_core.inference.threshold import Threshold
from clip_core.network import Frozen, Preprocessing
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

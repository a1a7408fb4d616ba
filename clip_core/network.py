"""What a network is: both towers, the shared embedding, and how its images are prepared.

Stored with every weight file, since weights mean nothing without it; config.py makes one from what a user says.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Frozen(BaseModel):
    """Immutable, typed, and without room for a misspelt key."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Pooling(StrEnum):
    MEAN = "mean"
    CLASS_TOKEN = "class_token"
    END_OF_TEXT = "end_of_text"
    FIRST = "first"
    LAST = "last"
    ATTENTION = "attention"


class Activation(StrEnum):
    GELU = "gelu"
    QUICK_GELU = "quick_gelu"
    GELU_TANH = "gelu_tanh"


class Stem(StrEnum):
    PATCH = "patch"
    CONV = "conv"


class _Tower(Frozen):
    """What both towers have. `mlp_width`: of the hidden layer; 4 x width unless given."""

    width: Annotated[int, Field(ge=8)] = 256
    heads: Annotated[int, Field(ge=1)] = 4
    layers: Annotated[int, Field(ge=1)] = 6
    mlp_width: Annotated[int, Field(ge=1)] = 1024
    activation: Activation = Activation.GELU
    norm_eps: float = 1e-5

    @model_validator(mode="before")
    @classmethod
    def _with_mlp_width(cls, values: Any) -> Any:
        if isinstance(values, dict) and "mlp_width" not in values and isinstance(values.get("width"), int):
            return values | {"mlp_width": 4 * values["width"]}
        return values

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class AttentionPooling(Frozen):
    """A learned query attends to every patch; a residual MLP follows (Zhai et al. 2022, "Scaling Vision Transformers").

    Width and eps are those of the tower. SigLIP's image towers end in one.
    """

    heads: Annotated[int, Field(ge=1)]
    mlp_width: Annotated[int, Field(ge=1)]
    activation: Activation = Activation.GELU


class ImageTower(_Tower):
    """A Vision Transformer (Dosovitskiy et al. 2020).

    `image_size` may be more than a multiple of `patch_size`: the last pixels are not seen, as in SigLIP's so400m/14 at
    384 pixels.
    `class_token`: one stands before the patches, also where the mean is pooled (which never includes it).
    `norm_after_pooling`: without it every token is normalised, and then the tokens are pooled.
    `attention_pooling`: with Pooling.ATTENTION alone.
    `projection`: without it the pooled vector is the embedding, and the width is the embedding size.
    `projection_bias`: the projection has a bias, as timm's classifier heads have.
    """

    image_size: Annotated[int, Field(ge=8, le=1024)] = 64
    patch_size: Annotated[int, Field(ge=2, le=128)] = 8
    stem: Stem = Stem.PATCH
    pooling: Literal[Pooling.MEAN, Pooling.CLASS_TOKEN, Pooling.ATTENTION] = Pooling.MEAN
    attention_pooling: AttentionPooling | None = None
    class_token: bool = False
    norm_after_pooling: bool = True
    pre_norm: bool = False
    patch_bias: bool = True
    projection: bool = True
    projection_bias: bool = False

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def has_class_token(self) -> bool:
        return self.class_token or self.pooling is Pooling.CLASS_TOKEN

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.image_size < self.patch_size or (self.stem is Stem.CONV and self.image_size % self.patch_size):
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        head = self.attention_pooling
        if (head is not None) != (self.pooling is Pooling.ATTENTION):
            raise ValueError("attention pooling and its settings belong together")
        if head is not None and self.norm_after_pooling:
            raise ValueError("attention pooling needs norm_after_pooling to be false")
        if head is not None and self.width % head.heads:
            raise ValueError(f"width {self.width} is not a multiple of the pooling's heads {head.heads}")
        if self.stem is Stem.CONV and self.patch_size & (self.patch_size - 1):
            raise ValueError(
                f"--patch-size {self.patch_size} is no power of two, and --stem conv halves the image until a "
                "patch is left; choose 8, 16 or 32, or --stem patch"
            )
        return self


class TextTower(_Tower):
    """A causal Transformer whose answer stands at the end-of-text token (Radford et al. 2021).

    Where it is not causal, or its answer stands at the first or last token, captions must be padded to the full
    context: the tokenizer.json that belongs to it does so.
    """

    vocab_size: Annotated[int, Field(ge=3)]
    end_token: Annotated[int, Field(ge=0)]
    context_length: Annotated[int, Field(ge=3, le=4096)] = 77
    causal: bool = True
    pooling: Literal[Pooling.END_OF_TEXT, Pooling.FIRST, Pooling.LAST] = Pooling.END_OF_TEXT
    projection_bias: bool = False

    @property
    def reads_padding(self) -> bool:
        """Whether what follows the end token changes the embedding: then captions are never trimmed."""
        return not self.causal or self.pooling is not Pooling.END_OF_TEXT


class Preprocessing(Frozen):
    """How an image becomes `pixel_values`: resize, crop the centre, scale to [0, 1], normalise.

    `resize_mode`, in open_clip's words: `shortest` side to the size, then crop; `longest` side to the size, then pad
    with `fill`; `squash` both.
    """

    image_size: Annotated[int, Field(ge=8, le=1024)] = 64
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # CLIP's own statistics
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill: Annotated[int, Field(ge=0, le=255)] = 0


class ClipConfig(Frozen):
    """The identity of a network: both towers, the shared embedding, and how its images are prepared.

    `logit_bias`: the weights hold a bias of the logits, as those trained with the sigmoid loss do (Zhai et al. 2023).
    """

    embed_dim: Annotated[int, Field(ge=8)]
    image: ImageTower
    text: TextTower
    preprocessing: Preprocessing
    logit_bias: bool = False

    @model_validator(mode="after")
    def _embeds(self) -> Self:
        if not self.image.projection and self.image.width != self.embed_dim:
            raise ValueError(
                f"without an image projection, embed_dim {self.embed_dim} must be the image tower's width, "
                f"{self.image.width}"
            )
        return self

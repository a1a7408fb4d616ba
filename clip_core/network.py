"""What a network is: both towers, the shared embedding, and how its images are prepared.

Stored with every weight file, since weights mean nothing without it; presets.py makes one from what a user says.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clip_core.text import printable


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


LARGEST_WIDTH = 65536
Mean = Annotated[float, Field(ge=-10, le=10)]  # of pixel values in [0, 1]
Deviation = Annotated[float, Field(ge=1e-3, le=100)]


class _Tower(Frozen):
    """What both towers have. `mlp_width`: of the hidden layer; 4 x width unless given."""

    width: Annotated[int, Field(ge=8, le=LARGEST_WIDTH)] = 256
    heads: Annotated[int, Field(ge=1)] = 4
    layers: Annotated[int, Field(ge=1, le=1000)] = 6
    mlp_width: Annotated[int, Field(ge=1, le=16 * LARGEST_WIDTH)] = 1024
    activation: Activation = Activation.GELU
    norm_eps: Annotated[float, Field(ge=0, le=0.1)] = 1e-5

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
    mlp_width: Annotated[int, Field(ge=1, le=16 * LARGEST_WIDTH)]
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

    vocab_size: Annotated[int, Field(ge=3, le=10_000_000)]
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
    with `fill`; `squash` both. `resize_size`: the side before the crop, where that is larger than `image_size` (timm's
    crop_pct, Hugging Face's size beside crop_size). `crop_rounding`: where half a pixel is left over, torchvision
    rounds the corner of the crop to the even pixel, Hugging Face down.
    """

    image_size: Annotated[int, Field(ge=8, le=1024)] = 64
    mean: tuple[Mean, Mean, Mean] = (0.48145466, 0.4578275, 0.40821073)  # CLIP's own statistics
    std: tuple[Deviation, Deviation, Deviation] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill: Annotated[int, Field(ge=0, le=255)] = 0
    resize_size: Annotated[int, Field(ge=8, le=2048)] | None = None
    crop_rounding: Literal["round", "floor"] = "round"

    @model_validator(mode="after")
    def _crops(self) -> Self:
        if self.resize_size is not None and (self.resize_size < self.image_size or self.resize_mode == "longest"):
            raise ValueError(f"resize_size {self.resize_size} leaves no crop of {self.image_size} pixels")
        return self


Side = Literal["image", "text"]
Source = Literal["timm", "hugging_face", "onnx", "clip", "static"]
Features = Literal["pooled", "class_token", "patches"]


class EncoderInfo(Frozen):
    """The facts of an encoder, stored with whatever was trained on its features.

    `name`: what the user gave, absolute where it is a path. `identity`: sha256 over the weights and everything else
    that changes features; equal identities give equal features. `parameters`: of the network that is used, without
    its classifier. `licence`: as its files name it. `feature_size`: F of `forward`. `tokens`: whether there are
    `token_features`, then `token_size` wide. `notes`: what was assumed or left out, a sentence each.

    Image side: `preprocessing`. Text side: `context_length`, `end_token`, `vocab_size`, `pad_id`; `whole`: padding is
    part of the input, so that captions are always padded to the context.
    """

    side: Side
    source: Source
    name: str
    architecture: str
    identity: str
    parameters: int
    licence: str | None = None
    feature_size: int
    features: Features = "pooled"
    tokens: bool = False
    token_size: int | None = None
    preprocessing: Preprocessing | None = None
    context_length: int | None = None
    end_token: int | None = None
    vocab_size: int | None = None
    pad_id: int | None = None
    whole: bool = False
    notes: tuple[str, ...] = ()

    @property
    def image_size(self) -> int | None:
        """S of an image encoder."""
        return None if self.preprocessing is None else self.preprocessing.image_size


class Head(Frozen):
    """A projection head on the features of a frozen encoder; see clip_core/model/projection.py.

    `hidden`: width of the MLP. `normalise`: L2-normalise the features first. `pool`: the features are patches, and the
    head pools them by attention. `dropout`: of the hidden layer, or of the features of a linear head.
    """

    kind: Literal["linear", "mlp", "residual"] = "residual"
    hidden: Annotated[int, Field(ge=8, le=65536)] = 1024
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    normalise: bool = True
    pool: bool = False


class ExternalTower(Frozen):
    """A pretrained encoder with a projection head on its features.

    `unfrozen`: its last blocks that are trainable; above 0 its weights belong to the network, else they are those of
    its source, whose identity `encoder` holds.
    """

    encoder: EncoderInfo
    head: Head = Head()
    unfrozen: Annotated[int, Field(ge=0)] = 0

    @property
    def head_input(self) -> int:
        """Width of the features that the head takes."""
        return (self.encoder.token_size if self.head.pool else None) or self.encoder.feature_size

    @property
    def image_size(self) -> int:
        return self.encoder.image_size or 0

    @property
    def context_length(self) -> int:
        return self.encoder.context_length or 0

    @property
    def vocab_size(self) -> int:
        return self.encoder.vocab_size or 0

    @property
    def end_token(self) -> int:
        return self.encoder.end_token or 0


class TimmTower(Frozen):
    """An image tower that timm builds and open_clip's checkpoints hold; its weights are part of the network.

    `architecture`: timm's name. `pooling`: of the trunk, "" for its own, or `abs_attn` and `rot_attn`, attention over
    its feature map. `projection`: a layer or an MLP behind it; "none" where its features are the embedding; "" where
    the trunk's own classifier, or the attention, projects. `projection_bias`: of that layer or MLP.
    """

    architecture: str
    image_size: Annotated[int, Field(ge=8, le=1024)]
    pooling: Literal["", "avg", "max", "avgmax", "catavgmax", "token", "map", "abs_attn", "rot_attn"] = "avg"
    projection: Literal["", "linear", "mlp", "none"] = "linear"
    projection_bias: bool = False


class TransformersTower(Frozen):
    """A text tower that transformers builds and open_clip's checkpoints hold; its weights are part of the network.

    `architecture`: its name on the hub, as the checkpoint has it. `settings`: of its config.json, all that is needed
    to build it. `pooling` and `projection`: open_clip's hf_pooler_type and hf_proj_type; `none`: the pooled token
    features are the embedding. Padding is masked by its id, so captions may be trimmed or padded to any length.
    """

    architecture: str
    settings: dict[str, str | int | float | bool]
    pooling: Literal["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"] = "mean_pooler"
    projection: Literal["linear", "mlp", "none"] = "mlp"
    vocab_size: Annotated[int, Field(ge=3)]
    end_token: Annotated[int, Field(ge=0)]
    context_length: Annotated[int, Field(ge=3, le=4096)] = 77

    @property
    def pad_id(self) -> int:
        return int(self.settings["pad_token_id"])

    @property
    def reads_padding(self) -> bool:
        return False

    @model_validator(mode="after")
    def _says_how_it_pads(self) -> Self:
        if not {"model_type", "pad_token_id"} <= self.settings.keys():
            raise ValueError("the settings of a text tower need model_type and pad_token_id")
        return self


LIBRARY_TOWERS = (TimmTower, TransformersTower)

Own = TypeVar("Own", ImageTower, TextTower)


def _own(tower: Own | TimmTower | TransformersTower | ExternalTower) -> Own:
    if isinstance(tower, ExternalTower):
        raise TypeError(f"the {tower.encoder.side} tower is an external encoder")
    if isinstance(tower, LIBRARY_TOWERS):
        raise TypeError(f"the tower {tower.architecture} is another library's")
    return tower


class ClipConfig(Frozen):
    """The identity of a network: both towers, the shared embedding, and how its images are prepared.

    `logit_bias`: the weights hold a bias of the logits, as those trained with the sigmoid loss do (Zhai et al. 2023).
    """

    embed_dim: Annotated[int, Field(ge=8, le=LARGEST_WIDTH)]
    image: ImageTower | TimmTower | ExternalTower
    text: TextTower | TransformersTower | ExternalTower
    preprocessing: Preprocessing
    logit_bias: bool = False

    @model_validator(mode="after")
    def _embeds(self) -> Self:
        image = self.image
        if isinstance(image, ImageTower) and not image.projection and image.width != self.embed_dim:
            raise ValueError(
                f"without an image projection, embed_dim {self.embed_dim} must be the width of the image tower, "
                f"{image.width}"
            )
        return self

    @property
    def own_image(self) -> ImageTower:
        """The image tower, where it is one of ours.

        Raises:
            TypeError: if it is an external encoder, or a tower of another library.
        """
        return _own(self.image)

    @property
    def own_text(self) -> TextTower:
        """The text tower, where it is one of ours.

        Raises:
            TypeError: if it is an external encoder, or a tower of another library.
        """
        return _own(self.text)

    def with_encoder(self, side: Side, name: str) -> "ClipConfig":
        """With another name of the external encoder of a side: the same encoder at another place.

        Raises:
            TypeError: if that tower is not an external encoder.
        """
        tower = self.image if side == "image" else self.text
        if not isinstance(tower, ExternalTower):
            raise TypeError(f"the {side} tower is not an external encoder")
        encoder = tower.encoder.model_copy(update={"name": name})
        return self.model_copy(update={side: tower.model_copy(update={"encoder": encoder})})

    @property
    def external(self) -> tuple[ExternalTower, ...]:
        """The towers that are external encoders."""
        return tuple(tower for tower in (self.image, self.text) if isinstance(tower, ExternalTower))


def first_mistake(error: ValidationError) -> str:
    """What is wrong in the description of a network: `image.norm_eps is -1e+300; it should be greater than ...`"""
    mistakes = error.errors(include_url=False)
    own = [each for each in mistakes if not {"ExternalTower", "encoder", "head"} & {*map(str, each["loc"])}]
    mistake = (own or mistakes)[0]
    place = ".".join(str(part) for part in mistake["loc"] if "Tower" not in str(part))  # not of which kind it might be
    message = mistake["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if mistake["type"] == "value_error" or not place:
        return printable(message, 200)
    return printable(f"{printable(place, 60)} is {printable(repr(mistake['input']), 40)}; it {message}", 200)

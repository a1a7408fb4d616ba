"""onnx/vision_model_with_preprocessing.onnx: a raw RGB image of any size to its embedding, in one file.

The graph resizes as Pillow does: in 8 bits, horizontally and then vertically, with the filter widened for smaller
sizes. Where the height loses more than twice the pixels of the width it is vertically first, as in Pillow 13 (earlier
versions differ by a level or two there). ONNX Runtime's weights are those of Pillow, in float where Pillow has double,
so that now and then a level is rounded to the other side; its bilinear filter counts the pixel at the border for those
beyond it.

Shapes: H x W the image, S the side that the model sees, D embedding size.
"""

from pathlib import Path

import numpy as np
from onnx import ModelProto

from clip_core.data.preprocess import load_image, normalise, resize_and_crop
from clip_core.errors import ImageError, ParityError
from clip_core.inference.manifest import VISION, WITH_PREPROCESSING, PreprocessingParity
from clip_core.inference.onnx_encoder import make_session
from clip_core.network import Preprocessing
from export.graphs import fix_shape, join, load_graph, parse_graph, same_version, save_graph

LEAST_COSINE = 0.999
_FILTERS = {
    "bicubic": 'mode = "cubic", cubic_coeff_a = -0.5, exclude_outside = 1',
    "bilinear": 'mode = "linear"',
}

# Height and width after the resize, int64 (2). `resized_sides` of clip_core/data/preprocess.py in ONNX.
_RESIZED = {
    "shortest": """
  short = ReduceMin <keepdims = 1> (sides)
  size = Constant <value_ints = [{resize_size}]> ()
  scaled = Mul (sides, size)
  resized = Div (scaled, short)
""",
    "squash": """
  resized = Constant <value_ints = [{resize_size}, {resize_size}]> ()
""",
    "longest": """
  exact = Cast <to = 11> (sides)
  long = ReduceMax <keepdims = 1> (exact)
  target = Constant <value_ints = [{resize_size}]> ()
  size = Cast <to = 11> (target)
  ratio = Div (long, size)
  quotient = Div (exact, ratio)
  rounded = Round (quotient)
  whole = Cast <to = 7> (rounded)
  one = Constant <value_ints = [1]> ()
  resized = Max (whole, one)
""",
}
# The height alone is resized first where that is Pillow's order, else nothing is.
_ORDER = """
  lost = Sub (sides, resized)
  weights = Constant <value_ints = [1, -2]> ()
  weighed = Mul (lost, weights)
  surplus = ReduceSum <keepdims = 1> (weighed)
  zero = Constant <value_ints = [0]> ()
  tall = Greater (surplus, zero)
  lower_height = Greater (lost, zero)
  height_only = Constant <value_ints = [1, 0]> ()
  is_height = Cast <to = 9> (height_only)
  shrinks = And (lower_height, is_height)
  changes = And (shrinks, tall)
  between = Where (changes, resized, sides)
"""
_CROPPED = """
  margin = Sub (resized, side)
  {corner}
  far = Add (corner, side)
  square = Slice (small, corner, far, axes)
"""
_CORNERS = {
    "floor": """
  two = Constant <value_ints = [2]> ()
  corner = Div (margin, two)
""",
    "round": """
  doubled = Cast <to = 11> (margin)
  half = Constant <value_floats = [0.5]> ()
  halved = Cast <to = 11> (half)
  middle = Mul (doubled, halved)
  even = Round (middle)
  corner = Cast <to = 7> (even)
""",
}
_PADDED = """
  margin = Sub (side, resized)
  two = Constant <value_ints = [2]> ()
  before = Div (margin, two)
  after = Sub (margin, before)
  margins = Concat <axis = 0> (before, after)
  filling = Constant <value_ints = [{fill}]> ()
  level = Cast <to = 2> (filling)
  none = Constant <value_ints = [0]> ()
  fill = Squeeze (level, none)
  square = Pad (small, margins, fill, axes)
"""
_GRAPH = """
preprocessing (uint8[height, width, 3] image) => (float[1, 3, {size}, {size}] pixel_values)
{{
  sides = Shape <end = 2> (image)
  {resized}
  first = Constant <value_ints = [0]> ()
  axes = Constant <value_ints = [1, 2]> ()
  side = Constant <value_ints = [{size}]> ()
  batch = Unsqueeze (image, first)
  {order}
  lower = Resize <antialias = 1, axes = [1, 2], coordinate_transformation_mode = "half_pixel", {filter}>
    (batch, , , between)
  small = Resize <antialias = 1, axes = [1, 2], coordinate_transformation_mode = "half_pixel", {filter}>
    (lower, , , resized)
  {square}
  levels = Cast <to = 1> (square)
  most = Constant <value_floats = [255.0]> ()
  fractions = Div (levels, most)
  mean = Constant <value_floats = [{mean}]> ()
  std = Constant <value_floats = [{std}]> ()
  centred = Sub (fractions, mean)
  normalised = Div (centred, std)
  pixel_values = Transpose <perm = [0, 3, 1, 2]> (normalised)
}}
"""


def write_with_preprocessing(folder: Path, preprocessing: Preprocessing, embed_dim: int) -> None:
    """Put the preprocessing before onnx/vision_model.onnx below `folder`, as a file of its own.

    Input: image, uint8 (H, W, 3), RGB, upright. Output: image_embeds, float32 (1, D).

    Raises:
        BackendError: if it would be larger than one ONNX file may be.
    """
    vision = load_graph(folder / VISION, "vision/")
    before, vision = same_version(preprocessing_graph(preprocessing, vision), vision, "the image encoder")
    joined = join(before, vision, {"pixel_values": "pixel_values"}, ["image_embeds"])
    fix_shape(joined.graph.output[0], (1, embed_dim))
    save_graph(joined, folder / WITH_PREPROCESSING)


def preprocessing_graph(preprocessing: Preprocessing, like: ModelProto) -> ModelProto:
    """image, uint8 (H, W, 3) -> pixel_values, float32 (1, 3, S, S), in the operator set of `like`."""
    settings = preprocessing
    mode, size = settings.resize_mode, settings.image_size
    resized = _RESIZED[mode].format(resize_size=settings.resize_size or size)
    square = _PADDED.format(fill=settings.fill) if mode == "longest" else _CROPPED.format(
        corner=_CORNERS[settings.crop_rounding]
    )  # fmt: skip
    text = _GRAPH.format(
        size=size,
        resized=resized,
        order=_ORDER,
        square=square,
        filter=_FILTERS[settings.interpolation],
        mean=_floats(settings.mean),
        std=_floats(settings.std),
    )
    return parse_graph(text, "preprocessing/", like)


def measure_preprocessing(folder: Path, preprocessing: Preprocessing, images: list[Path]) -> PreprocessingParity:
    """The file with preprocessing inside against Pillow and onnx/vision_model.onnx, on whole images.

    Raises:
        ParityError: if the embedding of an image differs.
    """
    before = preprocessing_graph(preprocessing, load_graph(folder / VISION, ""))
    session = make_session(before.SerializeToString(), "the preprocessing")
    vision = make_session(folder / VISION, VISION)
    whole = make_session(folder / WITH_PREPROCESSING, WITH_PREPROCESSING)
    std = np.array(preprocessing.std, dtype=np.float32)[:, None, None]
    differences, cosines = [], []
    for path in images:
        try:
            image = load_image(path)
        except ImageError:  # counted where the samples of the parity are read
            continue
        raw, expected = np.asarray(image), normalise(resize_and_crop(image, preprocessing)[None], preprocessing)
        found = session.run(None, {"image": raw})[0]
        differences.append(np.abs(np.rint((found - expected)[0] * std * 255)).astype(np.int64))
        ours = vision.run(None, {"pixel_values": expected})[0]
        theirs = whole.run(None, {"image": raw})[0]
        cosines.append(float(np.nan_to_num((ours * theirs).sum(dtype=np.float64), nan=-1.0)))
    parity = PreprocessingParity(
        file=WITH_PREPROCESSING,
        images=len(cosines),
        max_level_diff=int(max(each.max() for each in differences)),
        changed_levels=float(np.mean([(each > 0).mean() for each in differences])),
        mean_cosine=float(np.mean(cosines)),
        least_cosine=min(cosines),
    )
    if parity.least_cosine < LEAST_COSINE:
        raise ParityError(
            f"the preprocessing in ONNX differs from Pillow's: {sentence(parity)}; export without --with-preprocessing."
        )
    return parity


def sentence(parity: PreprocessingParity) -> str:
    """The parity in words, for the terminal and the model card."""
    return (
        f"{parity.images} images, at most {parity.max_level_diff} of 255 levels apart from Pillow "
        f"({parity.changed_levels:.3%} of the levels differ), cosine {parity.mean_cosine:.6f} in the mean and "
        f"{parity.least_cosine:.6f} at least"
    )


def _floats(values: tuple[float, ...]) -> str:
    return ", ".join(f"{np.float32(value):.9e}" for value in values)

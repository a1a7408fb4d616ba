"""onnx/model.onnx: both towers and their logits in one file, as optimum exports a CLIPModel or SiglipModel.

Shapes: N images, M captions, T tokens, D embedding size.
"""

from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from clip_core.data.tokenizer import Tokenizer
from clip_core.inference.manifest import COMBINED, TEXT, VISION, ParityRow
from clip_core.inference.onnx_encoder import make_session
from clip_core.model.clip import CLIP
from clip_core.network import ExternalTower
from clip_core.scoring import FloatArray, IntArray
from export.graphs import join, load_graph, parse_graph, rename_axes, same_version, save_graph
from export.parity import Samples

Numbers = TypeVar("Numbers", FloatArray, IntArray)

_BATCHES = ((8, 3), (3, 8), (1, 1))  # images and captions at once
_EMBEDS = ["image_embeds", "text_embeds"]
_LOGITS = ["logits_per_image", "logits_per_text"]

# Masked tokens are padding. In a causal tower they follow the end token and have no effect at all.
_MASK = """
mask (int64[text_batch, tokens] input_ids, int64[text_batch, tokens] attention_mask) => (int64[text_batch, tokens] ids)
{{
  real = Cast <to = 9> (attention_mask)
  padding = Constant <value_int = {pad}> ()
  ids = Where (real, input_ids, padding)
}}
"""
_HEAD = """
head (float[image_batch, width] image, float[text_batch, width] text)
  => (float[image_batch, text_batch] logits_per_image, float[text_batch, image_batch] logits_per_text)
{{
  turned = Transpose <perm = [1, 0]> (text)
  cosines = MatMul (image, turned)
  scale = Constant <value_float = {scale}> ()
  scaled = Mul (cosines, scale)
  bias = Constant <value_float = {bias}> ()
  logits_per_image = Add (scaled, bias)
  logits_per_text = Transpose <perm = [1, 0]> (logits_per_image)
}}
"""


def write_combined(folder: Path, model: CLIP, tokenizer: Tokenizer) -> None:
    """Join onnx/vision_model.onnx and onnx/text_model.onnx below `folder` into onnx/model.onnx.

    Inputs: input_ids and attention_mask, int64 (M, T), and pixel_values, float32 (N, 3, S, S). A text tower that reads
    its padding has no attention_mask, as SigLIP has none. Outputs: logits_per_image (N, M), logits_per_text (M, N),
    text_embeds (M, D), image_embeds (N, D). The file holds its own copy of the weights, each of them once: whoever
    reads it reads it alone.

    Raises:
        BackendError: if it would be larger than one ONNX file may be.
    """
    vision, text = same_version(
        load_graph(folder / VISION, "vision/"), load_graph(folder / TEXT, "text/"), "the encoder"
    )
    rename_axes(vision.graph, batch="image_batch")
    rename_axes(text.graph, batch="text_batch")
    if takes_mask(model):
        mask = parse_graph(_MASK.format(pad=tokenizer.pad_id), "mask/", text)
        text = join(mask, text, {"ids": "input_ids"}, ["text_embeds"])
    scale = np.float32(model.logit_scale().item())
    bias = np.float32(0.0 if model.logit_bias is None else model.logit_bias.item())
    head = parse_graph(_HEAD.format(scale=f"{scale:.9e}", bias=f"{bias:.9e}"), "head/", text)
    with_images = join(vision, head, {"image_embeds": "image"}, ["image_embeds", *_LOGITS])
    whole = join(text, with_images, {"text_embeds": "text"}, [*_EMBEDS, *_LOGITS])
    in_order = {entry.name: entry for entry in whole.graph.output}
    outputs = [in_order[name] for name in (*_LOGITS, "text_embeds", "image_embeds")]
    del whole.graph.output[:]
    whole.graph.output.extend(outputs)
    save_graph(whole, folder / COMBINED)


def takes_mask(model: CLIP) -> bool:
    """Whether the combined file has an attention_mask: not where padding is part of the caption."""
    text = model.config.text
    return not (text.encoder.whole if isinstance(text, ExternalTower) else text.reads_padding)


def measure_combined(model: CLIP, folder: Path, tokenizer: Tokenizer, samples: Samples) -> tuple[ParityRow, ...]:
    """onnx/model.onnx against `model`, at pairs of batch sizes: embeddings, and logits divided by their scale."""
    session = make_session(folder / COMBINED, COMBINED)
    ids = tokenizer.encode(samples.captions)  # (M, T)
    rows = []
    for image_batch, text_batch in _BATCHES:
        images, texts = _parts(samples.pixel_values, image_batch), _parts(ids, text_batch)
        runs = max(len(images), len(texts)) if image_batch == _BATCHES[0][0] else 1
        differences, cosines = [], []
        for pixels, tokens in islice(zip(cycle(images), cycle(texts), strict=False), runs):
            inputs: dict[str, FloatArray | IntArray] = {"pixel_values": pixels, "input_ids": tokens}
            if takes_mask(model):
                inputs["attention_mask"] = up_to_end(tokens, tokenizer.end_token)
            theirs = session.run([*_EMBEDS, *_LOGITS], inputs)
            ours = _torch(model, pixels, tokens)
            scale = (1.0, 1.0, model.logit_scale().item(), model.logit_scale().item())
            differences += [float(np.abs(a - b).max() / s) for a, b, s in zip(ours, theirs, scale, strict=True)]
            for a, b in zip(ours[:2], theirs[:2], strict=True):
                cosines += (a * b).sum(axis=1).tolist()
        rows.append(
            ParityRow(
                file=COMBINED,
                batch=image_batch,
                tokens=ids.shape[1],
                inputs=min(runs * image_batch, len(samples.pixel_values)),
                max_abs_diff=min(float(np.nan_to_num(np.max(differences), nan=np.inf)), 1e30),
                mean_cosine=float(np.nan_to_num(np.mean(cosines), nan=-1.0)),
                least_cosine=float(np.nan_to_num(np.min(cosines), nan=-1.0)),
            )
        )
    return tuple(rows)


def up_to_end(ids: IntArray, end_token: int) -> IntArray:
    """attention_mask: 1 up to the first end token of each row, 0 after it.  int64 (M, T) -> int64 (M, T)"""
    after = np.cumsum(ids == end_token, axis=1) - (ids == end_token)
    return np.asarray(after == 0, dtype=np.int64)


def _parts(inputs: Numbers, batch: int) -> list[Numbers]:
    return [inputs[start : start + batch] for start in range(0, len(inputs), batch)]


def _torch(model: CLIP, pixels: FloatArray, ids: IntArray) -> list[FloatArray]:
    with torch.inference_mode():
        images, texts = model.encode_image(torch.from_numpy(pixels)), model.encode_text(torch.from_numpy(ids))
        logits = model.logit_scale() * images @ texts.T
        if model.logit_bias is not None:
            logits = logits + model.logit_bias
    return [np.asarray(each.numpy()) for each in (images, texts, logits, logits.T)]

"""Captions whose end token other software cut off, in the text file of a bundle.

transformers.js truncates a caption after its end token is added, so that the end token is gone; the model would then
read its answer at another token.
"""

from pathlib import Path

import onnx

from clip_core.inference.manifest import TEXT
from export.convert import LARGEST, save_onnx
from export.graphs import parse_graph

# The last token of a row, other than padding, becomes the end token where the row has none: as truncation here does.
_RESTORED = """
restored (int64[batch, tokens] input_ids) => (int64[batch, tokens] ended)
{{
  end = Constant <value_ints = [{end}]> ()
  one = Constant <value_ints = [1]> ()
  columns = Constant <value_ints = [1]> ()
  is_end = Equal (input_ids, end)
  ends = Cast <to = 7> (is_end)
  has_end = ReduceMax <keepdims = 1> (ends, columns)
  lacks_end = Less (has_end, one)
  pad = Constant <value_ints = [{pad}]> ()
  is_pad = Equal (input_ids, pad)
  is_token = Not (is_pad)
  tokens_so_far = Cast <to = 7> (is_token)
  first = Constant <value_int = 1> ()
  count = CumSum (tokens_so_far, first)
  all = ReduceMax <keepdims = 1> (count, columns)
  is_reached = Equal (count, all)
  is_last = And (is_reached, is_token)
  replaced = And (is_last, lacks_end)
  ended = Where (replaced, end, input_ids)
}}
"""


def restore_end_token(folder: Path, end_token: int, pad_id: int) -> None:
    """Let onnx/text_model.onnx below `folder` read a caption without end token as one that was truncated here.

    A row that ends in its last token, with no padding after it, has the end token put in that token's place; captions
    with an end token are read as before.
    """
    path = folder / TEXT
    model = onnx.load(path, load_external_data=False)
    assert model.ByteSize() < LARGEST
    graph = model.graph
    before = parse_graph(_RESTORED.format(end=end_token, pad=pad_id), "end/", model).graph
    for node in graph.node:
        node.input[:] = ["end/ended" if name == "input_ids" else name for name in node.input]
    for node in before.node:
        node.output[:] = ["end/ended" if name == "ended" else name for name in node.output]
    nodes = [*before.node, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(before.initializer)
    save_onnx(model, path)

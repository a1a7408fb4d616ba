"""A caption whose end token other software cut off has the embedding of the caption truncated here."""

from pathlib import Path

import numpy as np
import onnxruntime

from clip_core.data.tokenizer import Tokenizer
from clip_core.inference.clip import CLIPInference
from clip_core.inference.manifest import TEXT
from tests.export.kinds import every_bundle

__all__ = ["every_bundle"]


def test_a_caption_without_end_token_is_read_as_truncated(every_bundle: Path) -> None:
    tokenizer = Tokenizer.load(every_bundle / "tokenizer.json")
    long, other = "a red dog runs in the park " * 40, "two people, a blue kite and the sun " * 40
    whole = Tokenizer.load(every_bundle / "tokenizer.json", context_length=400).encode([long, other])
    cut = whole[:, : tokenizer.context_length]
    assert not (cut == tokenizer.end_token).any()
    expected = CLIPInference(every_bundle).encoder.encode_texts([long, other])
    assert abs(float((expected[0] * expected[1]).sum())) < 0.9999
    session = onnxruntime.InferenceSession(every_bundle / TEXT)
    np.testing.assert_allclose(session.run(None, {"input_ids": cut})[0], expected, atol=1e-5)

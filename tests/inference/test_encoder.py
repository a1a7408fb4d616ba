"""What both backends share: the facts of a model, and the check of its tokenizer."""

import pytest

from clip_core.data.tokenizer import train_characters
from clip_core.errors import TokenizerError
from clip_core.inference.encoder import About, check_tokenizer
from clip_core.network import Preprocessing


def about(**facts: object) -> About:
    settings = {
        "backend": "onnx", "source": "runs/birds", "identity": "onnx:0", "device": "cpu", "embed_dim": 16,
        "logit_scale": 14.0, "preprocessing": Preprocessing(image_size=32),
    }  # fmt: skip
    return About(**(settings | facts))


@pytest.mark.parametrize(
    ("facts", "summary"),
    [
        ({}, "runs/birds, onnx on cpu"),
        ({"checkpoint": "step_0001374", "step": 1374}, "runs/birds, step 1,374, onnx on cpu"),
        (
            {"checkpoint": "step_0001374", "step": 1374, "scores": {"mean_recall": 0.687, "val_loss": 1.0}},
            "runs/birds, step 1,374, mean recall 68.7%, onnx on cpu",
        ),
        (
            {"scores": {"mean_recall": 0.687, "zero_shot_top1": 0.9}},
            "runs/birds, zero-shot top-1 90.0%, onnx on cpu",
        ),
        ({"source": "runs/\x1b[31mbirds"}, "runs/[31mbirds, onnx on cpu"),
    ],
)
def test_the_summary_names_step_metric_and_device(facts: dict[str, object], summary: str) -> None:
    assert about(**facts).summary == summary


def test_a_tokenizer_of_another_vocabulary_end_token_or_context_is_refused() -> None:
    tokenizer = train_characters(["a red circle"], 24)
    fits = {"vocab_size": tokenizer.vocab_size, "end_token": tokenizer.end_token, "context_length": 24}
    check_tokenizer(tokenizer, **fits)
    for name, value in fits.items():
        with pytest.raises(TokenizerError, match="does not fit the model"):
            check_tokenizer(tokenizer, **(fits | {name: value + 1}))

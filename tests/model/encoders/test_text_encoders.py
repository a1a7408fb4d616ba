"""Text encoders give what transformers gives, whatever captions are padded to."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import CheckpointError, UsageError
from clip_core.model.encoders.resolve import load_encoder, load_text_encoder, resolve_encoder
from tests.encoders import CAPTIONS, small_tokenizer, static_folder, text_folder

KINDS = ("bert", "distilbert", "mpnet", "roberta", "xlm-roberta", "camembert")


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_mean_over_the_tokens_of_transformers(kind: str, tmp_path: Path) -> None:
    encoder = load_text_encoder(str(text_folder(tmp_path / kind, kind)))
    theirs = transformers.AutoModel.from_pretrained(tmp_path / kind).eval()
    assert encoder.tokenizer is not None
    for caption in CAPTIONS:
        ids = torch.from_numpy(encoder.tokenizer.encode([caption]))
        with torch.no_grad():
            expected = theirs(input_ids=ids).last_hidden_state.mean(dim=1)
            torch.testing.assert_close(encoder(ids), expected, atol=1e-5, rtol=1e-5)
    together = encoder(torch.from_numpy(encoder.tokenizer.encode(CAPTIONS)))
    single = [encoder(torch.from_numpy(encoder.tokenizer.encode([caption]))) for caption in CAPTIONS]
    torch.testing.assert_close(together, torch.cat(single), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("text") / "bert")


def test_an_encoder_is_frozen_and_stays_in_evaluation_mode(bert: Path) -> None:
    encoder = load_text_encoder(str(bert)).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(weights.requires_grad for weights in encoder.parameters())
    assert [type(block).__name__ for block in encoder.blocks()] == ["BertLayer", "BertLayer"]


def test_a_caption_longer_than_the_positions_is_truncated_with_its_end_token_and_counted(bert: Path) -> None:
    tokenizer = load_text_encoder(str(bert)).tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(CAPTIONS)
    assert ids.shape[1] == 20
    assert ids[3, -1] == tokenizer.end_token
    assert tokenizer.count_truncated(CAPTIONS) == 1


def test_a_context_longer_than_the_positions_is_refused(bert: Path) -> None:
    with pytest.raises(UsageError, match=r"--context-length is 21; .* takes 3 to 20 tokens"):
        load_text_encoder(str(bert), context_length=21)


def test_the_facts_without_loading_are_those_of_the_loaded_encoder(bert: Path) -> None:
    info = load_text_encoder(str(bert), context_length=10).info
    assert resolve_encoder(str(bert), "text", context_length=10) == info
    assert (info.feature_size, info.context_length, info.pad_id) == (16, 10, 0)
    assert info.notes == ("pooled by the mean of its tokens, as nothing beside it says how",)
    assert load_encoder(info).info == info


@pytest.mark.parametrize("pooling", ["cls_token", "mean_tokens", "max_tokens"])
def test_a_sentence_transformers_folder_is_pooled_and_normalised_as_its_files_say(pooling: str, tmp_path: Path) -> None:
    encoder = load_text_encoder(str(text_folder(tmp_path / "st", pooling=pooling)))
    assert encoder.tokenizer is not None
    assert encoder.info.context_length == 12
    ids = torch.from_numpy(encoder.tokenizer.encode([CAPTIONS[0]]))
    with torch.no_grad():
        tokens = transformers.AutoModel.from_pretrained(tmp_path / "st").eval()(input_ids=ids).last_hidden_state
    expected = {"cls_token": tokens[:, 0], "mean_tokens": tokens.mean(1), "max_tokens": tokens.amax(1)}[pooling]
    torch.testing.assert_close(encoder(ids), torch.nn.functional.normalize(expected, dim=-1), atol=1e-5, rtol=1e-5)
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    torch.testing.assert_close(encoder(padded), encoder(ids), atol=1e-5, rtol=1e-5)


def test_static_vectors_are_averaged_over_the_words_alone(tmp_path: Path) -> None:
    encoder = load_text_encoder(str(static_folder(tmp_path / "static")))
    inner = small_tokenizer(tmp_path / "tokenizer.json", bert=False)
    table = load_file(tmp_path / "static" / "model.safetensors")["embedding.weight"].float()
    assert encoder.tokenizer is not None
    found = encoder(torch.from_numpy(encoder.tokenizer.encode(CAPTIONS)))
    for caption, row in zip(CAPTIONS[:4], found, strict=False):
        expected = table[inner.encode(caption, add_special_tokens=False).ids].mean(dim=0)
        torch.testing.assert_close(row, expected, atol=1e-6, rtol=1e-5)
    assert not found[4].any()
    assert resolve_encoder(str(tmp_path / "static"), "text") == encoder.info


def test_another_weight_changes_the_identity(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "bert")
    before = load_text_encoder(str(folder)).info
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"the text encoder .* changed since the run began"):
        load_encoder(before)


def test_the_tokenizer_of_an_encoder_survives_being_saved(bert: Path, tmp_path: Path) -> None:
    tokenizer = load_text_encoder(str(bert)).tokenizer
    assert tokenizer is not None
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.encode(CAPTIONS).tolist() == tokenizer.encode(CAPTIONS).tolist()
    assert again.count_truncated(CAPTIONS) == 1
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]["max_length"] == 20

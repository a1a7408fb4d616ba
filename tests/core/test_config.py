import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_core.config import ModelConfig, TrainConfig, parse_config
from clip_core.errors import UsageError
from clip_core.presets import architecture, preset_for
from clip_core.text import normalise_caption, printable


def test_config_survives_json() -> None:
    config = parse_config({"data": {"data_file": "a.json", "tokenizer": "bpe"}, "optim": {"lr": 0.001}})
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optim": {"batch_size": 1}}, "--batch-size is 1; it should be greater than or equal to 2"),
        (
            {"model": {"model_size": "huge"}},
            "--model-size is 'huge'; it should be 'nano', 'tiny', 'small', 'base', 'large'",
        ),
        ({"optim": {"epochs": 1.5}}, "--epochs is 1.5; it should be a whole number"),
        ({"optim": {"batch_size": "7.9"}}, "--batch-size is 7.9; it should be a whole number"),
        ({"run": {"run_dir": ""}}, "--run-dir is ''; it should not be empty"),
        ({"optim": {"learning_rate": 1}}, "unknown setting optim.learning_rate"),
        ({"optim": {"lr": "fast"}}, "--lr is 'fast'"),
        ({"data": {"tokenizer": "char"}, "optim": {"bpe_dropout": 0.1}}, "--bpe-dropout needs a BPE tokenizer"),
        ({"data": {"create_synthetic": True}, "optim": {"bpe_dropout": 0.1}}, "add --tokenizer bpe"),
        ({"model": {"width": 100}}, "--width is 100; it should be a multiple of 64"),
        ({"model": {"width": 128}, "tune": {"init": "a.pt"}}, "--width cannot be combined with --init"),
    ],
)
def test_a_wrong_value_is_refused_with_the_flag_what_it_was_and_what_it_may_be(values: dict, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_config(values)
    assert said in str(error.value)


def test_the_preset_is_chosen_by_the_number_of_pairs_unless_one_is_named() -> None:
    assert preset_for(ModelConfig(), 500) == "nano"
    assert preset_for(ModelConfig(), 500_000) == "tiny"
    assert preset_for(ModelConfig(model_size="base"), 500) == "base"
    few = architecture(ModelConfig(), vocab_size=10, end_token=1, context_length=8, pairs=500)
    assert (few.image.stem, few.image.layers) == ("conv", 3)


def test_width_changes_both_towers_their_heads_and_the_embedding() -> None:
    narrow = architecture(ModelConfig(model_size="ViT-B-32", width=192), vocab_size=10, end_token=1, context_length=8)
    assert (narrow.embed_dim, narrow.image.width, narrow.text.width) == (192, 192, 192)
    assert (narrow.image.heads, narrow.text.heads, narrow.image.layers) == (3, 3, 12)


@pytest.mark.parametrize(("side", "patch"), [(32, 8), (64, 16), (96, 16), (128, 32), (224, 32)])
def test_convolutions_leave_four_patches_a_side_or_a_few_more(side: int, patch: int) -> None:
    model = ModelConfig(model_size="nano", image_size=side)
    assert architecture(model, vocab_size=10, end_token=1, context_length=8).image.patch_size == patch


def test_a_conv_stem_needs_a_patch_that_halving_reaches() -> None:
    with pytest.raises(UsageError, match="--patch-size 12 is no power of two"):
        architecture(
            ModelConfig(stem="conv", patch_size=12, image_size=48), vocab_size=10, end_token=1, context_length=8
        )


def test_an_image_size_that_patches_do_not_fill_is_refused() -> None:
    with pytest.raises(UsageError, match="--image-size 64 is not a multiple of --patch-size 7"):
        architecture(ModelConfig(patch_size=7), vocab_size=10, end_token=1, context_length=8)


def test_the_configuration_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig().optim.epochs = 3  # type: ignore[misc]


@given(st.text())
def test_printable_text_has_no_control_character_and_one_line(text: str) -> None:
    safe = printable(text)
    assert "\x1b" not in safe
    assert all(ord(c) >= 32 and not 0x7F <= ord(c) < 0xA0 for c in safe)
    assert len(safe.splitlines()) <= 1
    assert printable(safe) == safe


@given(st.text())
def test_normalised_captions_stay_as_they_are_when_normalised_again(text: str) -> None:
    assert " ".join(normalise_caption(text).split()) == normalise_caption(text)


def test_captions_that_differ_in_case_and_space_are_the_same() -> None:
    assert normalise_caption("  A  Red\tCircle ") == normalise_caption("a red circle")

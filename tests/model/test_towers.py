import pytest
import torch

from clip_core.config import ModelConfig
from clip_core.model.clip import CLIP
from clip_core.model.model_size import measure, parameters
from clip_core.network import Activation, ClipConfig, ImageTower, Pooling, Preprocessing, Stem, TextTower
from clip_core.presets import PRESETS, architecture


def small(**image: object) -> ClipConfig:
    return ClipConfig(
        embed_dim=24,
        image=ImageTower(**({"image_size": 32, "patch_size": 8, "width": 32, "heads": 2, "layers": 2} | image)),
        text=TextTower(vocab_size=50, end_token=1, context_length=16, width=32, heads=2, layers=2),
        preprocessing=Preprocessing(image_size=32),
    )


@pytest.mark.parametrize("stem", Stem)
@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.CLASS_TOKEN])
@pytest.mark.parametrize("activation", Activation)
def test_embeddings_have_length_one_for_every_trait(stem: Stem, pooling: Pooling, activation: Activation) -> None:
    model = CLIP(small(stem=stem, pooling=pooling, activation=activation, pre_norm=True))
    ids = torch.randint(2, 50, (3, 9))
    ids[:, -1] = 1
    images, texts, *_ = model(torch.randn(3, 3, 32, 32), ids)
    for embeds in (images, texts):
        assert embeds.shape == (3, 24)
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(3))


def test_one_forward_pass_is_both_towers_with_groups_of_captions_in_order() -> None:
    model = CLIP(small().model_copy(update={"logit_bias": True})).eval()
    images, kept = torch.randn(3, 3, 32, 32), torch.tensor([[0, 5], [1, 2], [7, 3]])
    short, long = torch.tensor([[0, 7, 1]]), torch.tensor([[0, 3, 4, 5, 1], [0, 9, 1, 1, 1]])
    both = model(images, (long, short), kept)
    torch.testing.assert_close(both.image, model.encode_image(images, kept), atol=0, rtol=0)
    torch.testing.assert_close(both.text, torch.cat([model.encode_text(long), model.encode_text(short)]))
    assert both.logit_scale == model.logit_scale()
    assert not torch.allclose(both.image, model.encode_image(images))
    sum(part.sum() for part in both).backward()  # every parameter has a gradient, so DDP finds none unused
    assert all(p.grad is not None for p in model.parameters())
    assert both.logit_bias.grad_fn is not None


def test_a_forward_pass_of_one_tower_leaves_the_other_out() -> None:
    model = CLIP(small())
    assert model(torch.randn(1, 3, 32, 32), None).text is None
    found = model(None, torch.tensor([[0, 1]]))
    assert found.image is None
    assert found.logit_bias is None


def test_what_follows_the_first_end_token_changes_nothing() -> None:
    model = CLIP(small()).eval()
    ids = torch.tensor([[0, 7, 9, 1]])
    padded = torch.tensor([[0, 7, 9, 1, 5, 1, 30, 2]])
    torch.testing.assert_close(model.encode_text(ids), model.encode_text(padded), atol=1e-6, rtol=0)


def test_a_caption_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    model = CLIP(small()).eval()
    ids = torch.tensor([[0, 7, 9, 1, 2, 2], [0, 3, 4, 5, 6, 1]])
    together = model.encode_text(ids)
    torch.testing.assert_close(together[:1], model.encode_text(ids[:1, :4]), atol=1e-6, rtol=0)


def test_the_logit_scale_stays_between_1_and_100() -> None:
    model = CLIP(small(), temperature=0.07)
    assert float(model.logit_scale().detach()) == pytest.approx(1 / 0.07)
    for value, expected in ((50.0, 100.0), (-3.0, 1.0)):
        with torch.no_grad():
            model.log_logit_scale.fill_(value)
        assert float(model.logit_scale().detach()) == pytest.approx(expected)
        model.clamp_temperature()
        assert 0 <= float(model.log_logit_scale.detach()) <= 4.7


def test_weights_of_the_sigmoid_loss_keep_their_larger_logit_scale() -> None:
    model = CLIP(small().model_copy(update={"logit_bias": True}), temperature=1 / 117)
    model.clamp_temperature()
    assert float(model.logit_scale().detach()) == pytest.approx(117)


def test_parameter_counts_are_those_of_the_formula() -> None:
    width, blocks = 32, 2 * (12 * 32**2 + 13 * 32)  # a block: 12 W^2 weights, 9 W biases, 4 W in its norms
    image = (
        3 * 8 * 8 * width + width + 16 * width + blocks + 2 * width + width * 24
    )  # stem, positions, norm, projection
    text = 50 * width + 16 * width + blocks + 2 * width + width * 24
    size = measure(small(pooling=Pooling.MEAN, class_token=False, pre_norm=False))
    assert (size.image_parameters, size.text_parameters) == (image, text)
    assert parameters(CLIP(small(pooling=Pooling.MEAN, class_token=False, pre_norm=False))) == image + text + 1


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.stem is Stem.PATCH])
def test_flops_are_those_of_the_formula(name: str) -> None:
    config = architecture(ModelConfig(model_size=name), vocab_size=100, end_token=1, context_length=20)
    image, size = config.image, measure(config)
    patches = 2 * 3 * image.patch_size**2 * image.width * image.grid**2
    for flops, tokens, tower, embedding in (
        (size.image_flops, image.grid**2 + image.has_class_token, image, patches),
        (size.text_flops, 20, config.text, 0),
    ):
        layer = 24 * tokens * tower.width**2 + 4 * tokens**2 * tower.width
        projection = 2 * tower.width * config.embed_dim
        assert flops == pytest.approx(tower.layers * layer + embedding + projection, rel=1e-6)


def test_a_published_preset_has_the_published_number_of_parameters() -> None:
    """151,277,313 is what OpenAI's ViT-B/32 has, the temperature included."""
    config = architecture(ModelConfig(model_size="ViT-B-32"), vocab_size=49408, end_token=49407, context_length=77)
    size = measure(config)
    assert size.image_parameters + size.text_parameters + 1 == 151_277_313

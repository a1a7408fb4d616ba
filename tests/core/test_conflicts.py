"""Settings that cannot be given together."""

from typing import Any

import pytest

from clip_core.config import TrainConfig, parse_config
from clip_core.conflicts import rules
from clip_core.errors import UsageError


def test_every_rule_is_of_settings_that_its_section_has() -> None:
    for rule in rules(TrainConfig()):
        assert set(rule.fields) <= type(rule.section).model_fields.keys(), rule.why


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tune": {"lora": 4}}, "--lora needs pretrained weights; add --init PATH."),
        ({"encoders": {"views": 2}}, "--views needs a pretrained encoder; add --image-encoder or --text-encoder."),
        (
            {"data": {"data_file": "https://host/a.tar"}, "encoders": {"image_encoder": "timm:x"}},
            "a stream cannot be combined with --image-encoder and --text-encoder, whose features",
        ),
        ({"data": {"data_file": "a.tar", "stream": True, "format": "csv"}}, "--format should be webdataset"),
        ({"data": {"data_file": "a.tar", "readers": 2}}, "--readers is of streamed shards; add --stream"),
        ({"tune": {"init": "a.pt", "blend": 0.5}, "run": {"shard": True}}, "--blend cannot be combined with --shard"),
        ({"tune": {"guard_root": "images"}}, "--guard-root needs a second validation set"),
    ],
)
def test_the_sentence_names_the_flag_the_reason_and_the_way_out(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_config(values)
    assert str(error.value).startswith(said)

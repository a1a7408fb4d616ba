"""The form of a new run as fields and as a configuration."""

import pytest

from clip_core.config import TrainConfig
from clip_core.errors import UsageError
from clip_core.presets import PRESETS
from clip_tui.form import form_fields, read_form


def test_every_setting_has_a_field_and_an_empty_form_is_the_default() -> None:
    fields = {field.id: field for field in form_fields()}
    assert fields["optim-epochs"].kind == "text"
    assert fields["optim-augment"].kind == "switch"
    assert fields["model-model_size"].choices == tuple(PRESETS)
    assert fields["data-tokenizer"].kind == "text", "a path is allowed as well"
    assert fields["optim-lr"].placeholder == "automatic"
    assert fields["tune-init"].placeholder == "none"
    config = read_form(dict.fromkeys(fields, "") | {"data-create_synthetic": True})
    assert config.optim == TrainConfig().optim


@pytest.mark.parametrize(
    ("field", "typed", "said"),
    [
        ("optim-batch_size", "many", "--batch-size"),
        ("optim-lr", "7", "--lr"),
        ("model-patch_size", "7", "--patch-size"),
        ("data-data_file", "nowhere.json", "nowhere.json"),
    ],
)
def test_a_mistake_in_the_form_names_its_flag(field: str, typed: str, said: str) -> None:
    values = {"data-create_synthetic": field != "data-data_file", field: typed}
    with pytest.raises(UsageError, match=said):
        read_form(values)

"""The JSON files of a bundle, as Hugging Face defines them."""

import json
from pathlib import Path

import numpy as np
import pytest


def test_the_json_files_mean_what_hugging_face_means(tiny_bundle: Path) -> None:
    settings = json.loads((tiny_bundle / "preprocessor_config.json").read_text())
    assert settings["size"] == {"shortest_edge": 32}
    assert (settings["resample"], settings["crop_size"]) == (3, {"height": 32, "width": 32})
    assert all(settings[f"do_{step}"] for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb"))
    assert settings["rescale_factor"] == pytest.approx(1 / 255)
    config = json.loads((tiny_bundle / "config.json").read_text())
    assert config["projection_dim"] == 16
    assert config["vision_config"]["hidden_size"] == config["text_config"]["hidden_size"] == 32
    assert np.exp(config["logit_scale_init_value"]) == pytest.approx(1 / 0.07, rel=1e-5)
    words = json.loads((tiny_bundle / "tokenizer_config.json").read_text())
    assert (words["model_max_length"], words["eos_token"]) == (24, "<|endoftext|>")

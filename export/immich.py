"""A folder that immich's machine learning reads as one of its CLIP models, proven by doing what immich does.

    config.json  README.md
    visual/model.onnx    image float32 (1, 3, S, S) -> embedding float32 (1, D)
    visual/preprocess_cfg.json
    textual/model.onnx   text int32 (1, context) -> embedding float32 (1, D)
    textual/tokenizer.json  tokenizer_config.json  special_tokens_map.json

Source: immich's machine-learning/immich_ml/models/clip and transforms.py: image to RGB, resize, crop, normalise;
white space of the text collapsed, tokenizer.json padded to the context with `pad_token`.
"""

import shutil
from pathlib import Path
from typing import Any

from onnx import ModelProto

from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import UsageError
from clip_core.files import write_json, write_text
from clip_core.inference.encoder import check_tokenizer
from clip_core.inference.manifest import MODEL_CARD, TEXT, VISION
from clip_core.model.checkpoint import load_model
from clip_core.network import ClipConfig, Preprocessing
from clip_core.text import printable
from export.config_files import tokenizer_config
from export.convert import convert
from export.formats import finish_export, made_from
from export.graphs import fix_shape, join, load_graph, parse_graph, rename_input, save_graph
from export.immich_parity import PREPROCESS, TEXTUAL, VISUAL, measure, sentence
from export.job import ExportJob
from export.open_clip import preprocess_cfg
from export.output_folder import check_output, put_in_place, temporary_folder
from export.parity_samples import find_samples, sample_images

_SPECIAL = ("bos_token", "eos_token", "pad_token")
_WIDER = """
wider (int32[1, context] text) => (int64[1, context] ids)
{
  ids = Cast <to = 7> (text)
}
"""


def write_immich(
    job: ExportJob, *, images: Path | None = None, force: bool = False, model_name: str | None = None
) -> None:
    """Write a model for immich, with a lock that the caller holds.

    Args:
        images: folder of images to measure parity on; by default the run's validation images.
        force: replace an export that was made from another run.
        model_name: open_clip's name of the architecture, where published weights do not say it.
    Raises:
        UsageError: if immich cannot prepare images as the model was trained to see them, or `out` holds something else.
        ParityError: if what immich computes differs from the model; then nothing is left at `out`.
    """
    loaded = load_model(job.source, model_name=model_name)
    job.say_notes(loaded.notes)
    traits = obstacles(loaded.config.preprocessing)
    if traits:
        raise UsageError(f"{job.source} cannot be written for immich, which has no {' and no '.join(traits)}.")
    tokenizer, text = loaded.tokenizer, loaded.config.text
    check_tokenizer(tokenizer, vocab_size=text.vocab_size, end_token=text.end_token, context_length=text.context_length)
    out, name = job.out, (loaded.run or loaded.folder).resolve().name
    check_output(out, what="an export for immich", run=name, made_from=lambda at: made_from(at, "immich"), force=force)
    samples = find_samples(loaded, images)
    with temporary_folder(out) as folder:
        job.now(f"converting {loaded.folder} for immich", step=loaded.step)
        encoders = folder / "encoders"
        convert(loaded.model, encoders, out.with_name(f"{out.name}.log"))
        write_files(folder, encoders, loaded.config, tokenizer)
        shutil.rmtree(encoders)
        job.now("reading it as immich does")
        parity = measure(folder, loaded.model, tokenizer, samples.captions, sample_images(loaded, images))
        job.say(sentence(parity))
        if parity.otherwise:
            job.say(f"note: immich reads as other tokens, for example, {printable(parity.otherwise[0], 80)!r}")
        write_text(folder / MODEL_CARD, _readme(name, loaded.config, sentence(parity)))
        finish_export(folder, "immich", name, loaded)
        put_in_place(folder, out)


def obstacles(preprocessing: Preprocessing) -> list[str]:
    """What immich cannot do to an image, in words."""
    found = []
    if preprocessing.resize_mode == "longest":
        found.append("images that are padded to a square")
    if preprocessing.resize_size not in (None, preprocessing.image_size):
        found.append(
            f"images that are resized to {preprocessing.resize_size} pixels and cropped to {preprocessing.image_size}"
        )
    return found


def write_files(folder: Path, encoders: Path, config: ClipConfig, tokenizer: Tokenizer) -> None:
    """The whole folder but its README, from the encoders of a bundle below `encoders`."""
    size, context = config.preprocessing.image_size, config.text.context_length
    vision = load_graph(encoders / VISION, "")
    _rename(vision, "pixel_values", "image")
    fix_shape(vision.graph.input[0], (1, 3, size, size))
    fix_shape(vision.graph.output[0], (1, config.embed_dim))
    save_graph(vision, folder / VISUAL)
    text = load_graph(encoders / TEXT, "text/")
    text = join(parse_graph(_WIDER, "wider/", text), text, {"ids": "input_ids"}, ["text_embeds"])
    _rename(text, "text", "text")
    fix_shape(text.graph.input[0], (1, context))
    fix_shape(text.graph.output[0], (1, config.embed_dim))
    save_graph(text, folder / TEXTUAL)
    words = folder / "textual"
    tokenizer.save(words / "tokenizer.json")
    said = tokenizer_config(words / "tokenizer.json", config.text)
    write_json(words / "tokenizer_config.json", said)
    write_json(words / "special_tokens_map.json", {name: said[name] for name in _SPECIAL})
    size_and_mode = {"size": [size, size], "mode": "RGB"}
    write_json(folder / PREPROCESS, size_and_mode | preprocess_cfg(config.preprocessing))
    write_json(folder / "config.json", _model_cfg(config))


def _rename(model: ModelProto, old_in: str, new_in: str) -> None:
    """The names of input and output that immich reads."""
    graph = model.graph
    rename_input(graph, old_in, new_in)
    old = graph.output[0].name
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = ["embedding" if name == old else name for name in names]
    graph.output[0].name = "embedding"


def _model_cfg(config: ClipConfig) -> dict[str, Any]:
    """What immich reads of open_clip's model configuration, and the sizes. Captions are cleaned by tokenizer.json."""
    return {
        "embed_dim": config.embed_dim,
        "vision_cfg": {"image_size": config.image.image_size},
        "text_cfg": {"context_length": config.text.context_length, "vocab_size": config.text.vocab_size},
    }


def _readme(name: str, config: ClipConfig, parity: str) -> str:
    return f"""# {printable(name, 80)}, for immich

immich loads models only under the names that it knows. Put this folder in place of one whose embeddings have
{config.embed_dim} dimensions, choose that name under Administration, Machine Learning, Smart Search, and run Smart
Search for all assets again:

```
model-cache/clip/NAME/config.json, visual/, textual/
```

Parity: {parity}.

Versions of immich that do not read `resize_mode` and `interpolation` in `visual/preprocess_cfg.json` resize every image
bicubically by its shorter side and crop it.
"""

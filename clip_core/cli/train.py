"""clip-train: train a CLIP, or go on with a run."""

import sys
from collections.abc import Sequence
from typing import Annotated

from cyclopts import App, Parameter

from clip_core.cli.app import run_app
from clip_core.config import (
    PRESETS,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    architecture,
)

app = App(name="clip-train", help="Train a CLIP on captioned pictures, or go on with a run.", version_flags=[])

_FLAT = "*"


@app.default
def train(
    *,
    data: Annotated[DataConfig | None, Parameter(name=_FLAT, group="Data")] = None,
    model: Annotated[ModelConfig | None, Parameter(name=_FLAT, group="Model")] = None,
    optim: Annotated[OptimConfig | None, Parameter(name=_FLAT, group="Optimiser")] = None,
    run: Annotated[RunConfig | None, Parameter(name=_FLAT, group="Run")] = None,
    resume: Annotated[bool, Parameter(negative="", group="Run", help="go on with the run at --run-dir")] = False,
    list_models: Annotated[
        bool, Parameter(negative="", group="Model", help="print each preset's parameters and FLOPs, and exit")
    ] = False,
) -> int:
    if list_models:
        return _list_models(model or ModelConfig(), data or DataConfig())
    config = TrainConfig(
        data=data or DataConfig(),
        model=model or ModelConfig(),
        optim=optim or OptimConfig(),
        run=run or RunConfig(),
    )
    from clip_core.training.session import run_training

    return run_training(config, resume=resume)


def _list_models(model: ModelConfig, data: DataConfig) -> int:
    """The presets with the true size of each tower, at the picture and patch size given."""
    from clip_core.model.size import measure

    print(
        f"pictures {model.image_size} px in patches of {model.patch_size}, captions of {data.context_length} tokens, "
        f"vocabulary {data.vocab_size}"
    )
    print(f"{'':8}{'width':>6}{'heads':>6}{'layers':>7}{'image tower':>15}{'text tower':>15}"
          f"{'GFLOPs/picture':>16}{'GFLOPs/caption':>16}")  # fmt: skip
    for name, preset in PRESETS.items():
        sized = model.model_copy(update={"model_size": name})
        network = architecture(sized, vocab_size=data.vocab_size, end_token=1, context_length=data.context_length)
        size = measure(network)
        print(
            f"{name:8}{preset.embed_dim:6}{preset.heads:6}{network.image.layers:7}"
            f"{size.image_parameters:15,}{size.text_parameters:15,}"
            f"{size.image_flops / 1e9:16.2f}{size.text_flops / 1e9:16.2f}"
        )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_app(app, argv)


if __name__ == "__main__":
    sys.exit(main())

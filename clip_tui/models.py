"""The models of a run that can be compared: its best checkpoint, each checkpoint, its bundle and its variants."""

from pathlib import Path

from clip_core.files import read_json
from clip_core.run.paths import META, RunPaths
from clip_core.run.reader import RunReader
from clip_core.text import printable
from clip_tui.encoder import Model, model_of
from clip_tui.screens.dialogs import Choice

_CHECKPOINTS_SHOWN = 50


def model_choices(run: Path) -> list[Choice[Model | None]]:
    """What the second line of Retrieve and Classify may be."""
    paths, reader = RunPaths(run), RunReader(run)
    best = reader.best()
    choices: list[Choice[Model | None]] = [Choice(None, "no comparison", "one model answers")]
    choices.append(Choice(model_of(run, "torch"), "torch", f"PyTorch, {best.checkpoint if best else 'no checkpoint'}"))
    if paths.bundle_manifest.exists():
        source = reader.bundle_source()
        choices.append(Choice(model_of(run, "onnx"), "onnx", f"ONNX Runtime, bundle of {source[0] if source else '?'}"))
        choices += [
            Choice(Model(paths.bundle, "onnx", name, name), name, "ONNX Runtime, a variant of the bundle")
            for name in precisions(paths.bundle_manifest)
        ]
    for folder in sorted(paths.checkpoints.glob(f"*/{META}"), reverse=True)[:_CHECKPOINTS_SHOWN]:
        name = folder.parent.name
        choices.append(Choice(Model(folder.parent, "torch", name), name, "PyTorch, checkpoint"))
    return choices


def precisions(manifest: Path) -> list[str]:
    """The names of a bundle's variants; none where it has only one."""
    variants = (read_json(manifest) or {}).get("variants")
    if isinstance(variants, dict):
        names = [printable(str(name), 20) for name in variants]
    elif isinstance(variants, list):
        names = [printable(str(v["precision"]), 20) for v in variants if isinstance(v, dict) and "precision" in v]
    else:
        names = []
    return names if len(names) > 1 else []

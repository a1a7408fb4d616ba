"""From a run to an ONNX bundle: written beside, proven, renamed into place; or nothing at all."""

import importlib.metadata
import shutil
from collections.abc import Callable
from pathlib import Path

import clip_core
from clip_core.errors import BundleError, ParityError, UsageError
from clip_core.files import flush_directory, flush_file, sha256, write_json, write_text
from clip_core.inference.bundle import (
    MANIFEST,
    TOKENIZER,
    FileFacts,
    Manifest,
    Parity,
    Source,
    open_bundle,
    read_manifest,
)
from clip_core.inference.encoder import check_tokenizer
from clip_core.inference.torch_encoder import trained_classes
from clip_core.model.checkpoint import LoadedModel, load_model
from clip_core.model.model_size import parameters
from clip_core.run.paths import RunPaths
from clip_core.run.reader import RunReader
from export.card import model_card
from export.convert import OPSET, convert
from export.describe import model_config, preprocessor_config, tokenizer_config
from export.parity import measure, table
from export.place import beside, check_place, put_in_place
from export.samples import find_samples

EXAMPLE = Path(__file__).with_name("example.py")
CARD = "README.md"
_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "tokenizers")


def export_bundle(
    path: Path,
    out: Path | None = None,
    *,
    images: Path | None = None,
    force: bool = False,
    model_name: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Path, Manifest]:
    """Convert a run (its best checkpoint), a checkpoint or published weights into a bundle.

    Args:
        out: the bundle's folder; by default `bundle` in the run.
        images: images for the parity; by default the run's validation ones.
        force: replace a bundle that was made from another run.
        model_name: what open_clip calls the architecture, where published weights do not say it.
        say: told what is being done, a line at a time.
    Returns:
        The bundle's folder and its manifest.
    Raises:
        ParityError: if the ONNX files do not say the same as the model; whatever was at `out` is left as it was.
        CheckpointError, DataError, UsageError, BackendError: in one sentence.
    """
    loaded = load_model(path, model_name=model_name)
    out = _destination(loaded, out, force)
    tokenizer, text = loaded.tokenizer, loaded.config.text
    check_tokenizer(
        tokenizer,
        vocab_size=text.vocab_size,
        end_token=text.end_token,
        context_length=text.context_length,
    )
    samples = find_samples(loaded, images)
    with beside(out) as folder:
        say(f"converting {loaded.folder} ...")
        convert(loaded.model, folder, out.with_name(f"{out.name}.log"))
        say(f"comparing on {len(samples.pixel_values)} images and {len(samples.captions)} captions ...")
        parity = measure(loaded.model, folder, tokenizer, samples)
        say(table(parity))
        if not parity.accepted:
            raise ParityError(
                f"the ONNX files of {loaded.folder} differ from the model: max |diff| {parity.max_abs_diff:.1e}, "
                f"top-1 agreement {parity.top1_agreement:.1%}; nothing was written to {out}."
            )
        manifest = _write(folder, loaded, parity)
        open_bundle(folder)
        put_in_place(folder, out)
    return out, manifest


def _destination(loaded: LoadedModel, out: Path | None, force: bool) -> Path:
    """Where the bundle goes; only a bundle is ever replaced.

    Raises:
        UsageError: if the place is taken by something else, or is not said for a checkpoint without a run.
    """
    if out is None:
        if loaded.run is None:
            raise UsageError(f"{loaded.folder} belongs to no run; say where the bundle goes with --out.")
        return RunPaths(loaded.run).bundle
    check_place(out, what="a bundle", run=_run_name(loaded), made_from=_made_from, force=force)
    return out


def _made_from(folder: Path) -> str | None:
    try:
        return read_manifest(folder).source.run
    except BundleError:
        return None


def _write(folder: Path, loaded: LoadedModel, parity: Parity) -> Manifest:
    """Everything but the ONNX files, with the manifest last."""
    config = loaded.config
    logit_scale = loaded.model.logit_scale().item()
    loaded.tokenizer.save(folder / TOKENIZER)
    shutil.copyfile(EXAMPLE, folder / EXAMPLE.name)
    write_json(folder / "config.json", model_config(config, logit_scale, folder / TOKENIZER))
    write_json(folder / "preprocessor_config.json", preprocessor_config(config.preprocessing))
    write_json(folder / "tokenizer_config.json", tokenizer_config(folder / TOKENIZER, config.text))
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        flush_file(path)
        files[path.relative_to(folder).as_posix()] = FileFacts(size=path.stat().st_size, sha256=sha256(path))
    manifest = Manifest(
        source=Source(
            run=_run_name(loaded),
            checkpoint=loaded.folder.name,
            step=loaded.step,
            weights_sha256=loaded.weights_sha256(),
            scores=loaded.scores,
        ),
        embed_dim=config.embed_dim,
        vocab_size=config.text.vocab_size,
        end_token=config.text.end_token,
        context_length=config.text.context_length,
        logit_scale=logit_scale,
        logit_bias=None if loaded.model.logit_bias is None else loaded.model.logit_bias.item(),
        preprocessing=config.preprocessing,
        classes=trained_classes(loaded),
        opset=OPSET,
        versions={"clip-tui": clip_core.__version__} | {name: importlib.metadata.version(name) for name in _LIBRARIES},
        parity=parity,
        files=files,
    )
    towers = parameters(loaded.model.image), parameters(loaded.model.text)
    write_text(folder / CARD, model_card(manifest, _run_config(loaded), towers))
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    flush_directory(folder)
    return manifest


def _run_name(loaded: LoadedModel) -> str:
    return (loaded.run or loaded.folder).resolve().name


def _run_config(loaded: LoadedModel) -> dict[str, object]:
    return RunReader(loaded.run).record().model_dump(mode="json") if loaded.run else {}

"""From a model to an ONNX bundle: converted beside its place, checked for parity, then put in place."""

import importlib.metadata
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import clip_core
from clip_core.errors import UsageError
from clip_core.files import flush_directory, flush_file, sha256, write_json, write_text
from clip_core.inference.bundle import check_bundle
from clip_core.inference.encoder import check_tokenizer
from clip_core.inference.manifest import (
    COMBINED,
    CONFIG,
    EXAMPLE,
    MODEL_CARD,
    PREPROCESSOR,
    TOKENIZER,
    TOKENIZER_CONFIG,
    FileFacts,
    Manifest,
    Precision,
    PreprocessingParity,
    Source,
    Variant,
)
from clip_core.inference.onnx_encoder import remember_own
from clip_core.inference.threshold import Threshold, calibrate
from clip_core.inference.torch_encoder import TorchEncoder, trained_classes
from clip_core.model.checkpoint import LoadedModel, load_model
from clip_core.model.model_size import parameters
from clip_core.run.paths import MANIFEST
from clip_core.run.reader import RunReader
from export.check import write_reference
from export.config_files import model_config, preprocessor_config, tokenizer_config
from export.consumer_parity import check_consumers
from export.convert import OPSET, convert
from export.end_token import restore_end_token
from export.job import BUNDLE_FOLDER, ExportJob, Say, silent
from export.model_card import model_card
from export.more_graphs import NO_MORE, MoreGraphs, write_more
from export.other_software import other_software
from export.output_folder import check_output, put_in_place, temporary_folder
from export.parity import Reference
from export.parity_samples import find_samples, sample_images, validation_pairs
from export.variants import calibration_inputs, make_variants
from export.with_preprocessing import sentence

_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "tokenizers")


def export_bundle(
    path: Path,
    out: Path | None = None,
    *,
    images: Path | None = None,
    force: bool = False,
    model_name: str | None = None,
    precisions: Sequence[Precision] = ("fp32",),
    accept_loss: bool = False,
    more: MoreGraphs = NO_MORE,
    say: Say = silent,
) -> tuple[Path, Manifest]:
    """Convert a run (its best checkpoint), a checkpoint or published weights into a bundle.

    Args:
        out: the bundle's folder; by default `bundle` in the run.
        images: folder of images to measure parity on; by default the run's validation images.
        force: replace a bundle that was made from another run.
        model_name: open_clip's name of the architecture, where published weights do not say it.
        precisions: the variants to write.
        accept_loss: keep a variant that loses more than one point of recall@1.
        more: the graphs to write beside the two encoders.
        say: called with each line for the user.
    Returns:
        The bundle's folder and its manifest.
    Raises:
        ParityError: if the ONNX files, example.py or CLIPInference differ from the model, or a variant loses too much;
            whatever was at `out` is left as it was.
        RunBusyError: if another process exports into the same folder.
        CheckpointError, DataError, UsageError, BackendError: in one sentence.
    """
    with ExportJob(path, out, BUNDLE_FOLDER, say) as job:
        return job.out, write_bundle(
            job,
            images=images,
            force=force,
            model_name=model_name,
            precisions=precisions,
            accept_loss=accept_loss,
            more=more,
        )


def write_bundle(
    job: ExportJob,
    *,
    images: Path | None = None,
    force: bool = False,
    model_name: str | None = None,
    precisions: Sequence[Precision] = ("fp32",),
    accept_loss: bool = False,
    more: MoreGraphs = NO_MORE,
) -> Manifest:
    """`export_bundle` with a lock that the caller holds."""
    loaded = load_model(job.source, model_name=model_name)
    job.say_notes(loaded.notes)
    out, tokenizer, text = job.out, loaded.tokenizer, loaded.config.text
    if job.named:
        check_output(out, what="a bundle", run=_run_name(loaded), made_from=made_from, force=force)
    check_tokenizer(tokenizer, vocab_size=text.vocab_size, end_token=text.end_token, context_length=text.context_length)
    if more != NO_MORE and "fp32" not in precisions:
        raise UsageError("--combined and --with-preprocessing are fp32; add fp32 to --precision, or leave them out.")
    samples = find_samples(loaded, images)
    with temporary_folder(out) as folder:
        job.now(f"converting {loaded.folder}", step=loaded.step)
        convert(loaded.model, folder, out.with_name(f"{out.name}.log"))
        restore_end_token(folder, tokenizer.end_token, tokenizer.pad_id)
        job.now(f"embedding {len(samples.pixel_values)} images and {len(samples.captions)} captions in PyTorch")
        reference = Reference(loaded.model, tokenizer, samples)
        rows, of_preprocessing = write_more(more, loaded, folder, samples, sample_images(loaded, images))
        variants = make_variants(
            job, folder, precisions, reference, calibration_inputs(tokenizer, samples), rows, accept_loss=accept_loss
        )
        threshold = calibrate(TorchEncoder(loaded.folder, "cpu", loaded=loaded), validation_pairs(loaded))
        job.say(threshold.summary if threshold else "no threshold: there are no validation pairs to choose one on")
        if of_preprocessing:
            job.say(f"preprocessing in ONNX: {sentence(of_preprocessing)}")
        manifest = _write(folder, loaded, variants, threshold, of_preprocessing)
        check_bundle(folder)
        job.say(check_consumers(loaded, folder, manifest, samples.captions, sample_images(loaded, images)))
        put_in_place(folder, out)
    remember_own(manifest)
    return manifest


def made_from(folder: Path) -> str | None:
    """The run that the bundle in a folder was made from, of whatever format or damaged; None for anything else."""
    try:
        run = json.loads((folder / MANIFEST).read_bytes())["source"]["run"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return run if isinstance(run, str) and (folder / "onnx").is_dir() else None


def _write(
    folder: Path,
    loaded: LoadedModel,
    variants: tuple[Variant, ...],
    threshold: Threshold | None,
    of_preprocessing: PreprocessingParity | None,
) -> Manifest:
    """Everything but the ONNX files, with the manifest last."""
    config = loaded.config
    logit_scale = loaded.model.logit_scale().item()
    loaded.tokenizer.save(folder / TOKENIZER)
    shutil.copyfile(Path(__file__).with_name(EXAMPLE), folder / EXAMPLE)
    write_reference(folder, variants, loaded.tokenizer, config.preprocessing)
    write_json(folder / CONFIG, model_config(config, logit_scale, folder / TOKENIZER))
    write_json(folder / PREPROCESSOR, preprocessor_config(config.preprocessing))
    write_json(folder / TOKENIZER_CONFIG, tokenizer_config(folder / TOKENIZER, config.text))
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
        threshold=threshold,
        opset=OPSET,
        versions={"clip-tui": clip_core.__version__} | {name: importlib.metadata.version(name) for name in _LIBRARIES},
        variants=variants,
        preprocessing_parity=of_preprocessing,
        files=files,
    )
    towers = parameters(loaded.model.image), parameters(loaded.model.text)
    record = RunReader(loaded.run).record() if loaded.run else None
    readers = other_software(config, combined=COMBINED in files)
    write_text(folder / MODEL_CARD, model_card(manifest, record, towers, readers))
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    flush_directory(folder)
    return manifest


def _run_name(loaded: LoadedModel) -> str:
    return (loaded.run or loaded.folder).resolve().name

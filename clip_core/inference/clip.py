"""CLIPInference: similarity, zero-shot classification and retrieval, the same with either backend."""

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from clip_core.data.preprocess import ImageSource
from clip_core.errors import BackendError, CheckpointError, UsageError
from clip_core.inference.bundle import is_bundle
from clip_core.inference.encoder import Backend, Encoder
from clip_core.inference.gallery import Gallery
from clip_core.model.hub import hub_name, local_source
from clip_core.run.paths import RunPaths, is_run
from clip_core.run.reader import RunReader
from clip_core.scoring import FloatArray, class_prototypes, similarity, softmax, top_k
from clip_core.text import printable

Choice = Literal["auto", "torch", "onnx"]
TEMPLATE = "a photo of a {}"


class CLIPInference:
    """Similarity, classification and retrieval with a trained model.

    Args:
        path: a run directory, a checkpoint folder, an ONNX bundle, or published weights: a file or folder of
            OpenAI's, open_clip's or Hugging Face's CLIP, or `org/name` on the Hugging Face hub.
        backend: `torch`, `onnx`, or `auto`: ONNX for a bundle; for a run, PyTorch where it is installed
            and the run's own bundle where it is not.
        device: cpu, cuda, cuda:N or mps (default: the first that PyTorch has; the CPU for ONNX Runtime).
        model_name: open_clip's name of the architecture, where published weights do not say it.
    Raises:
        CheckpointError, BundleError, BackendError: if there is no such model, or it cannot be used.
    """

    def __init__(
        self, path: str | Path, backend: Choice = "auto", device: str | None = None, model_name: str | None = None
    ) -> None:
        self._encoder = open_encoder(Path(path), backend, device, model_name)

    @property
    def encoder(self) -> Encoder:
        """The encoder in use."""
        return self._encoder

    @property
    def note(self) -> str | None:
        """What a user should know about the model, or None: `bundle of step 1020, best checkpoint is step 1374`."""
        return self._encoder.about.note

    def image_text_similarity(self, image: ImageSource, texts: Sequence[str]) -> FloatArray:
        """Cosine of one image with each text, in the order of the texts.  -> (T,)"""
        _refuse_string(texts, "texts")
        scores = similarity(self._encoder.encode_images([image]), self._encoder.encode_texts(texts))
        return np.asarray(scores[0])

    def zero_shot_classification(
        self, image: ImageSource, classes: Sequence[str], template: str | Sequence[str] = TEMPLATE
    ) -> list[tuple[str, float]]:
        """Classes with their probabilities, best first.

        Args:
            classes: at least one name.
            template: a text with `{}` where the class goes; several are ensembled (Radford et al. 2021).
        Raises:
            UsageError: if there is no class, or a template without `{}`.
        """
        _refuse_string(classes, "classes")
        templates = [template] if isinstance(template, str) else list(template)
        if not classes or not templates:
            raise UsageError("classification needs at least one class and one template.")
        texts = [fill(each, name) for each in templates for name in classes]
        prototypes = class_prototypes(self._encoder.encode_texts(texts), len(classes))
        scores = similarity(self._encoder.encode_images([image]), prototypes)
        probabilities = softmax(self._encoder.about.logit_scale * scores)
        order, values = top_k(probabilities, len(classes))
        return [(classes[row], float(value)) for row, value in zip(order[0], values[0], strict=True)]

    def text_image_retrieval(
        self, text: str, images: Sequence[ImageSource] | Gallery, top_k: int | None = None
    ) -> tuple[list[ImageSource], FloatArray]:
        """Images ranked by their similarity to a text, best first, and the similarities.

        Args:
            images: images, or a Gallery, whose embeddings are stored.
            top_k: how many; all by default.
        """
        if isinstance(images, Gallery):
            wanted = _wanted(top_k, len(images))
            hits = images.search(text, wanted)[0] if wanted else []
            return [hit.path for hit in hits], np.array([hit.score for hit in hits], np.float32)
        query, gallery = self._encoder.encode_texts([text]), self._encoder.encode_images(images)
        order, values = _ranked(query, gallery, _wanted(top_k, len(images)))
        return [images[row] for row in order], values

    def image_text_retrieval(
        self, image: ImageSource, texts: Sequence[str], top_k: int | None = None
    ) -> tuple[list[str], FloatArray]:
        """Texts ranked by their similarity to an image, best first, and the similarities."""
        _refuse_string(texts, "texts")
        query, gallery = self._encoder.encode_images([image]), self._encoder.encode_texts(texts)
        order, values = _ranked(query, gallery, _wanted(top_k, len(texts)))
        return [texts[row] for row in order], values

    def gallery(
        self, images: str | Path | Iterable[str | Path], index: Path | None = None, engine: str | None = None
    ) -> Gallery:
        """The images below a folder, or those listed, embedded once and stored (see `Gallery.open`)."""
        return Gallery.open(self._encoder, images, index, engine=engine)


def fill(template: str, name: str) -> str:
    """The template with the name in place of `{}`; no other format syntax is interpreted."""
    if "{}" not in template:
        raise UsageError(f"the template {printable(template, 80)!r} has no {{}} where the class goes.")
    return template.replace("{}", name)


def open_encoder(
    path: Path, backend: Choice = "auto", device: str | None = None, model_name: str | None = None
) -> Encoder:
    """The encoder of a run, a checkpoint, a bundle or published weights; only its backend's library is imported."""
    path = local_source(path)
    if not path.exists() and (backend == "onnx" or not hub_name(str(path))):
        raise CheckpointError(
            f"no model at {path}: give a run directory, a checkpoint, an ONNX bundle or published weights."
        )
    if backend not in get_args(Choice):
        raise BackendError(f"the backend is {printable(str(backend), 40)!r}; it may be {', '.join(get_args(Choice))}.")
    chosen, folder = _choose(path, backend)
    if chosen == "onnx":
        from clip_core.inference.onnx_encoder import OnnxEncoder

        return OnnxEncoder(folder, device, stale_note(folder))
    if not _torch_installed():
        raise BackendError(
            f'{path} needs PyTorch, which is not installed: pip install "clip-tui[train]", '
            "or use an ONNX bundle of it, made elsewhere with clip-export."
        )
    from clip_core.inference.torch_encoder import TorchEncoder

    return TorchEncoder(folder, device, model_name)


def _choose(path: Path, backend: Choice) -> tuple[Backend, Path]:
    """The backend for `path`, and the folder that it loads."""
    if is_bundle(path):
        if backend == "torch":
            raise BackendError(f"{path} is an ONNX bundle: use --backend onnx, or give its run directory.")
        return "onnx", path
    bundle = RunPaths(path).bundle
    if backend == "onnx":
        if not is_bundle(bundle):
            raise BackendError(f"{path} has no ONNX bundle yet; make one with: clip-export {path}")
        return "onnx", bundle
    if backend == "auto" and is_run(path) and is_bundle(bundle) and not _torch_installed():
        return "onnx", bundle
    return "torch", path


def stale_note(bundle: Path) -> str | None:
    """`bundle of step 1020, best checkpoint is step 1374`, where `bundle` is a run's and its run is further."""
    run = bundle.resolve().parent
    if not is_run(run) or RunPaths(run).bundle != bundle.resolve():
        return None
    return RunReader(run).stale_bundle()


def _torch_installed() -> bool:
    try:
        return importlib.util.find_spec("torch") is not None
    except ImportError:
        return False


def _refuse_string(texts: Sequence[str], what: str) -> None:
    """One string is a sequence of letters, which nobody means."""
    if isinstance(texts, str):
        raise UsageError(f"{what} is the string {printable(texts, 40)!r}; give a list of strings.")


def _wanted(top: int | None, there: int) -> int:
    if top is not None and top < 1:
        raise UsageError(f"--top-k is {top}; it must be at least 1.")
    return there if top is None else top


def _ranked(query: FloatArray, gallery: FloatArray, k: int) -> tuple[list[int], FloatArray]:
    order, values = top_k(similarity(query, gallery), k)
    return order[0].tolist(), np.asarray(values[0])

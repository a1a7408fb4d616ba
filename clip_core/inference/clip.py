"""CLIPInference: similarity, zero-shot classification and retrieval, the same with either backend."""

import importlib.util
from collections.abc import Iterable
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from clip_core.data.preprocess import ImageSource
from clip_core.errors import BackendError, CheckpointError, UsageError
from clip_core.inference.bundle import in_place, is_bundle
from clip_core.inference.encoder import Backend, Encoder
from clip_core.inference.gallery import Gallery
from clip_core.inference.inputs import as_image, as_images, as_text, as_texts
from clip_core.inference.manifest import PRECISIONS, Precision
from clip_core.inference.threshold import NONE_OF_THESE, Threshold, calibrate
from clip_core.model.hub import hub_name, local_source
from clip_core.run.paths import RunPaths, is_run
from clip_core.run.reader import RunReader
from clip_core.run.records import ValidationPair, ValidationPairs
from clip_core.scoring import FloatArray, class_prototypes, similarity, softmax, top_k
from clip_core.text import printable

Choice = Literal["auto", "torch", "onnx"]
TEMPLATE = "a photo of a {}"


class CLIPInference:
    """Similarity, classification and retrieval with a trained model.

    Texts, classes and images are any iterables: lists, arrays, generators, the keys of a dict.

    Args:
        path: a run directory, a checkpoint folder, an ONNX bundle, or published weights: a file or folder of
            OpenAI's, open_clip's or Hugging Face's CLIP, or `org/name` on the Hugging Face hub.
        backend: `torch`, `onnx`, or `auto`: ONNX for a bundle; for a run, PyTorch where it is installed
            and the run's own bundle where it is not.
        device: cpu, cuda, cuda:N or mps (default: the first that PyTorch has; the CPU for ONNX Runtime, which also
            knows tensorrt, coreml and directml).
        model_name: open_clip's name of the architecture, where published weights do not say it.
        precision: of a bundle's variant: fp32, fp16 or int8 (default: its first); PyTorch computes in fp32.
    Raises:
        CheckpointError, BundleError, BackendError: if there is no such model, or it cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        backend: Choice = "auto",
        device: str | None = None,
        model_name: str | None = None,
        precision: Precision | None = None,
    ) -> None:
        self._path = Path(path)
        self._encoder = open_encoder(self._path, backend, device, model_name, precision)

    @property
    def encoder(self) -> Encoder:
        """The encoder in use."""
        return self._encoder

    @property
    def note(self) -> str | None:
        """What a user should know about the model, or None: `bundle of step 1020, best checkpoint is step 1374`."""
        return self._encoder.about.note

    def image_text_similarity(self, image: ImageSource, texts: Iterable[str]) -> FloatArray:
        """Cosine of one image with each text, in the order of the texts.  -> (T,)"""
        image, texts = as_image(image), as_texts(texts)
        scores = similarity(self._encoder.encode_images([image]), self._encoder.encode_texts(texts))
        return np.asarray(scores[0])

    @cached_property
    def threshold(self) -> Threshold | None:
        """The cosine from which an image and a text match: the bundle's, else chosen on the run's validation pairs
        (which are encoded for it, once); None where there are none."""
        return self._encoder.about.threshold or calibrate(self._encoder, _validation_pairs(self._path))

    def zero_shot_classification(
        self,
        image: ImageSource,
        classes: Iterable[str],
        template: str | Iterable[str] = TEMPLATE,
        none_of_these: bool = False,
    ) -> list[tuple[str, float]]:
        """Classes with their probabilities, best first.

        Args:
            classes: at least one name.
            template: a text with `{}` where the class goes; several are ensembled (Radford et al. 2021).
            none_of_these: add the class "none of these", whose cosine is the `threshold`: it comes first where no
                class reaches that.
        Raises:
            UsageError: if there is no class, a template without `{}`, or no threshold for `none_of_these`.
        """
        image, classes = as_image(image), as_texts(classes, "classes", ordered=False)
        templates = [template] if isinstance(template, str) else as_texts(template, "template")
        if not classes or not templates:
            raise UsageError("classification needs at least one class and one template.")
        texts = [fill(each, name) for each in templates for name in classes]
        prototypes = class_prototypes(self._encoder.encode_texts(texts), len(classes))
        scores = similarity(self._encoder.encode_images([image]), prototypes)
        if none_of_these:
            classes = [*classes, NONE_OF_THESE]
            scores = np.append(scores, [[self._known_threshold().value]], axis=1).astype(np.float32)
        probabilities = softmax(self._encoder.about.logit_scale * scores)
        order, values = top_k(probabilities, len(classes))
        return [(classes[row], float(value)) for row, value in zip(order[0], values[0], strict=True)]

    def _known_threshold(self) -> Threshold:
        if self.threshold is None:
            raise UsageError(
                f"{self._path} has no threshold for {NONE_OF_THESE!r}: there are no validation pairs (ten or more) to "
                "choose one on; use a run, or a bundle that was exported from one."
            )
        return self.threshold

    def text_image_retrieval(
        self, text: str, images: Iterable[ImageSource] | Gallery, top_k: int | None = None
    ) -> tuple[list[ImageSource], FloatArray]:
        """Images ranked by their similarity to a text, best first, and the similarities.

        Args:
            images: images, or a Gallery, whose embeddings are stored.
            top_k: how many; all by default.
        """
        text = as_text(text)
        if isinstance(images, Gallery):
            wanted = _wanted(top_k, len(images))
            hits = images.search(text, wanted)[0] if wanted else []
            return [hit.path for hit in hits], np.array([hit.score for hit in hits], np.float32)
        images = as_images(images)
        query, gallery = self._encoder.encode_texts([text]), self._encoder.encode_images(images)
        order, values = _ranked(query, gallery, _wanted(top_k, len(images)))
        return [images[row] for row in order], values

    def image_text_retrieval(
        self, image: ImageSource, texts: Iterable[str], top_k: int | None = None
    ) -> tuple[list[str], FloatArray]:
        """Texts ranked by their similarity to an image, best first, and the similarities."""
        image, texts = as_image(image), as_texts(texts, ordered=False)
        query, gallery = self._encoder.encode_images([image]), self._encoder.encode_texts(texts)
        order, values = _ranked(query, gallery, _wanted(top_k, len(texts)))
        return [texts[row] for row in order], values

    def gallery(
        self,
        images: str | PathLike[str] | Iterable[str | PathLike[str]],
        index: Path | None = None,
        engine: str | None = None,
    ) -> Gallery:
        """The images below a folder, or those listed, embedded once and stored (see `Gallery.open`)."""
        return Gallery.open(self._encoder, images, index, engine=engine)


def fill(template: str, name: str) -> str:
    """The template with the name in place of `{}`; no other format syntax is interpreted."""
    if "{}" not in template:
        raise UsageError(f"the template {printable(template, 80)!r} has no {{}} where the class goes.")
    return template.replace("{}", name)


def open_encoder(
    path: Path,
    backend: Choice = "auto",
    device: str | None = None,
    model_name: str | None = None,
    precision: Precision | None = None,
) -> Encoder:
    """The encoder of a run, a checkpoint, a bundle or published weights; only its backend's library is imported."""
    if precision is not None and precision not in PRECISIONS:
        raise BackendError(f"the precision is {printable(str(precision), 40)!r}; it may be {', '.join(PRECISIONS)}.")
    if backend == "auto" and precision in ("fp16", "int8"):
        backend = "onnx"  # PyTorch computes in fp32
    path = in_place(local_source(path))
    if not path.exists() and (backend == "onnx" or not hub_name(str(path))):
        raise CheckpointError(
            f"no model at {path}: give a run directory, a checkpoint, an ONNX bundle or published weights."
        )
    if backend not in get_args(Choice):
        raise BackendError(f"the backend is {printable(str(backend), 40)!r}; it may be {', '.join(get_args(Choice))}.")
    chosen, folder = _choose(path, backend)
    if chosen == "onnx":
        from clip_core.inference.onnx_encoder import OnnxEncoder

        return OnnxEncoder(folder, device, stale_note(folder), precision)
    if precision not in (None, "fp32"):
        raise BackendError(f"PyTorch computes in fp32 here; for {precision} use --backend onnx.")
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
    bundle = in_place(RunPaths(path).bundle)
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


def _validation_pairs(path: Path) -> list[ValidationPair]:
    """Those of a run, or of the run of a checkpoint or a bundle."""
    run = next((each for each in (path, path.parent, path.parent.parent) if is_run(each)), None)
    found = ValidationPairs.find(RunPaths(run).validation) if run else None
    return found.pairs if found else []


def _torch_installed() -> bool:
    try:
        return importlib.util.find_spec("torch") is not None
    except ImportError:
        return False


def _wanted(top: int | None, there: int) -> int:
    if top is not None and (not isinstance(top, int | np.integer) or top < 1):
        raise UsageError(f"top_k is {printable(repr(top), 20)}; it must be a whole number, at least 1.")
    return there if top is None else top


def _ranked(query: FloatArray, gallery: FloatArray, k: int) -> tuple[list[int], FloatArray]:
    order, values = top_k(similarity(query, gallery), k)
    return order[0].tolist(), np.asarray(values[0])

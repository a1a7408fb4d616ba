"""A model in a process of its own: `python -m clip_core.inference.server MODEL --backend onnx`.

    stdout, once     {"id": 0, "ok": true, "result": {"backend", "device", "precision", "source", "embed_dim",
                      "image_size", "step", "checkpoint", "metric": "mean recall 68.7%" | null, "classes": [...] | null,
                      "note": "bundle of step 1020, best checkpoint is step 1374" | null}}
    stdin,  a line   {"id": n, "op": "retrieval", "text": ..., "image_dir": ... | "images": [...], "top_k": k}
                     {"id": n, "op": "text_retrieval", "image": ..., "texts": [...], "top_k": k}
                     {"id": n, "op": "classification", "image": ..., "classes": [...], "templates": [...],
                      "none_of_these": false}
                     {"id": n, "op": "similarity", "image": ..., "texts": [...]}
                     {"id": n, "op": "search", "terms": [{"text": ... | "image": ..., "weight": w}], "images": [...] |
                      "image_dir": ... | "texts": [...], "expected": [...], "top_k": k}
                     {"id": n, "op": "classification_set", "images": [...], "classes": [...], "templates": [...]}
    stdout, a line   {"id": n, "ok": true, "result": {...}} or {"id": n, "ok": false, "error": "one sentence"},
                     and while images are embedded {"id": n, "progress": [done, total]}

It ends at the end of its input. Nothing but these lines is ever written to stdout.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from clip_core.errors import ClipError, UsageError
from clip_core.files import parse_json
from clip_core.inference.clip import TEMPLATE, CLIPInference
from clip_core.inference.gallery import OpenGalleries
from clip_core.inference.manifest import PRECISIONS
from clip_core.inference.search import ClassificationSet, Progress, Search
from clip_core.network import Frozen
from clip_core.text import printable

TopK = Annotated[int, Field(ge=1)]
Result = TypeVar("Result")

_PROGRESS_SECONDS = 0.3


class Retrieval(Frozen):
    op: Literal["retrieval"]
    text: str
    image_dir: Path | None = None
    images: list[Path] | None = None
    top_k: TopK | None = None

    def answer(self, model: CLIPInference, galleries: OpenGalleries) -> dict[str, Any]:
        if (self.image_dir is None) == (self.images is None):
            raise UsageError("a retrieval takes either image_dir or images.")
        gallery = galleries.get(self.image_dir if self.image_dir is not None else self.images or [])
        paths, values = model.text_image_retrieval(self.text, gallery, self.top_k)
        return {
            "images": [str(path) for path in paths],
            "similarities": values.tolist(),
            "skipped": len(gallery.failures),
        }


class TextRetrieval(Frozen):
    op: Literal["text_retrieval"]
    image: Path
    texts: list[str]
    top_k: TopK | None = None

    def answer(self, model: CLIPInference) -> dict[str, Any]:
        texts, values = model.image_text_retrieval(self.image, self.texts, self.top_k)
        return {"texts": texts, "similarities": values.tolist()}


class Classification(Frozen):
    op: Literal["classification"]
    image: Path
    classes: list[str]
    templates: list[str] = Field(default_factory=lambda: [TEMPLATE])
    none_of_these: bool = False

    def answer(self, model: CLIPInference) -> dict[str, Any]:
        ranked = model.zero_shot_classification(self.image, self.classes, self.templates, self.none_of_these)
        return {"classes": [name for name, _ in ranked], "probabilities": [value for _, value in ranked]}


class Similarity(Frozen):
    op: Literal["similarity"]
    image: Path
    texts: list[str]

    def answer(self, model: CLIPInference) -> dict[str, Any]:
        return {"similarities": model.image_text_similarity(self.image, self.texts).tolist()}


_Any = Retrieval | TextRetrieval | Classification | Similarity | Search | ClassificationSet
Question = Annotated[_Any, Field(discriminator="op")]
_QUESTION: TypeAdapter[_Any] = TypeAdapter(Question)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="clip_core.inference.server", description="JSON lines on stdin.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--backend", choices=("auto", "torch", "onnx"), default="auto")
    parser.add_argument("--device")
    parser.add_argument("--precision", choices=PRECISIONS)
    arguments = parser.parse_args(argv)
    answers = _claim_stdout()
    started = _attempt(0, lambda: _load(arguments), answers)
    if started is None:
        return 1
    _say(answers, {"id": 0, "ok": True, "result": describe(started)})
    serve(started, sys.stdin.buffer, answers)
    return 0


def _load(arguments: argparse.Namespace) -> CLIPInference:
    return CLIPInference(arguments.model, arguments.backend, arguments.device, precision=arguments.precision)


def describe(model: CLIPInference) -> dict[str, Any]:
    about = model.encoder.about
    return {
        "backend": about.backend,
        "source": about.source,
        "embed_dim": about.embed_dim,
        "image_size": about.image_size,
        "device": about.device,
        "precision": about.precision,
        "step": about.step,
        "checkpoint": about.checkpoint,
        "metric": about.best_metric,
        "note": about.note,
        "classes": list(about.classes) if about.classes else None,
    }


def serve(model: CLIPInference, questions: Iterable[bytes], answers: TextIO) -> None:
    """Answer each line, in order, until there are no more."""
    galleries = OpenGalleries(model.encoder)
    for line in questions:
        if not line.strip():
            continue
        number: Any = None
        try:
            question = parse_json(line)
            number = question.pop("id", None) if isinstance(question, dict) else None
        except ValueError:
            question = None
        progress = _Progress(number, answers)
        result = _attempt(number, partial(_answer, model, galleries, question, progress), answers)
        if result is not None:
            _say(answers, {"id": number, "ok": True, "result": result})


def _answer(model: CLIPInference, galleries: OpenGalleries, question: Any, progress: Progress) -> dict[str, Any]:
    asked = _QUESTION.validate_python(question)
    if isinstance(asked, Search | ClassificationSet):
        return asked.answer(model, galleries, progress)
    return asked.answer(model, galleries) if isinstance(asked, Retrieval) else asked.answer(model)


class _Progress:
    """Says how many images are embedded, a few times a second."""

    def __init__(self, number: Any, answers: TextIO) -> None:
        self._number, self._answers, self._last = number, answers, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= _PROGRESS_SECONDS:
            self._last = now
            _say(self._answers, {"id": self._number, "progress": [done, total]})


def _attempt(number: Any, work: Callable[[], Result], answers: TextIO) -> Result | None:
    """The result of `work`, or None after its failure has been answered in one sentence."""
    try:
        return work()
    except ClipError as error:
        sentence = str(error)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in mistake["loc"]) or "the question"
        sentence = f"{where}: {mistake['msg']}."
    except OSError as error:
        sentence = f"{error.filename or 'a file'} cannot be used: {error.strerror or error}."
    _say(answers, {"id": number, "ok": False, "error": printable(sentence)})
    return None


def _say(answers: TextIO, line: dict[str, Any]) -> None:
    answers.write(json.dumps(line) + "\n")  # escaped to ASCII, so that any file name fits into any locale
    answers.flush()


def _claim_stdout() -> TextIO:
    """The real stdout for answers alone; whatever else is printed, by native code too, goes to stderr."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


if __name__ == "__main__":
    sys.exit(main())

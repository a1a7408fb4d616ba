"""The encoder of a run directory, a checkpoint or published weights: PyTorch, in fp32."""

import hashlib
import os
from pathlib import Path

import torch

from clip_core.errors import BackendError
from clip_core.inference.encoder import About, BatchedEncoder, check_tokenizer
from clip_core.model.checkpoint import LoadedModel, load_model
from clip_core.model.cpu_speed import keep_freed_memory
from clip_core.run.reader import RunReader
from clip_core.scoring import FloatArray, IntArray
from clip_core.text import printable


class TorchEncoder(BatchedEncoder):
    """An Encoder over a run's best checkpoint, the checkpoint folder given, or published weights.

    On a CPU this process keeps the memory that a batch has freed for the next one (`keep_freed_memory`).

    Args:
        path: a run directory, a checkpoint folder, or published weights (see read_published).
        model_name: open_clip's name of the architecture, where published weights do not say it.
        device: cuda, cuda:N, mps or cpu (default: the first that is available).
        loaded: what `path` holds, where it has been loaded already.
    Raises:
        CheckpointError: if there is no complete checkpoint.
        BackendError: if PyTorch cannot use the device that was asked for.
    """

    def __init__(
        self,
        path: Path,
        device: str | None = None,
        model_name: str | None = None,
        loaded: LoadedModel | None = None,
    ) -> None:
        self._device, self._process = _device(device), os.getpid()
        if self._device.type == "cpu":
            keep_freed_memory()
        loaded = loaded or load_model(path, model_name=model_name)
        text = loaded.config.text
        check_tokenizer(
            loaded.tokenizer,
            vocab_size=text.vocab_size,
            end_token=text.end_token,
            context_length=text.context_length,
        )
        self._model = loaded.model.to(self._device).eval()
        about = About(
            backend="torch",
            source=str(path),
            identity=f"torch:{_identity(loaded)}",
            device=str(self._device),
            embed_dim=loaded.config.embed_dim,
            logit_scale=loaded.model.logit_scale().item(),
            preprocessing=loaded.config.preprocessing,
            step=loaded.step,
            checkpoint=loaded.folder.name if loaded.step else "",
            scores=loaded.scores,
            classes=trained_classes(loaded),
            note="; ".join(loaded.notes) or None,
        )
        super().__init__(about, loaded.tokenizer)

    @torch.inference_mode()
    def _images(self, pixel_values: FloatArray) -> FloatArray:
        self._after_fork()
        return _array(self._model.encode_image(torch.from_numpy(pixel_values).to(self._device)))

    @torch.inference_mode()
    def _texts(self, input_ids: IntArray) -> FloatArray:
        self._after_fork()
        return _array(self._model.encode_text(torch.from_numpy(input_ids).to(self._device)))

    def _after_fork(self) -> None:
        """In a forked child, one thread: OpenMP's others stayed with the parent, and would be waited for without end.

        Raises:
            BackendError: if the model is on a GPU, whose context cannot be forked.
        """
        if os.getpid() == self._process:
            return
        if self._device.type != "cpu":
            raise BackendError(
                f"the model was loaded on {self._device} before this process was forked, and a GPU cannot be used "
                "in both; load it in the child, or start processes with multiprocessing's spawn."
            )
        torch.set_num_threads(1)
        self._process = os.getpid()


def _identity(loaded: LoadedModel) -> str:
    """A hash of the weights and of the configuration, which published files do not always include."""
    described = f"{loaded.weights_sha256()} {loaded.config.model_dump_json()}"
    return hashlib.sha256(described.encode()).hexdigest()


def trained_classes(loaded: LoadedModel) -> tuple[str, ...] | None:
    """The captions of the run's training pairs, where they are classes; None otherwise."""
    if loaded.run is None:
        return None
    classes = RunReader(loaded.run).record().data.classes
    return tuple(classes) if classes else None


def _array(embeds: torch.Tensor) -> FloatArray:
    array: FloatArray = embeds.float().cpu().numpy()
    return array


def _device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if kind not in there or (index and not index.isdecimal()):
        raise BackendError(f"the device is {printable(name, 40)!r}; it may be cuda, cuda:N, mps or cpu.")
    if int(index or 0) >= there[kind]:
        raise BackendError(f"PyTorch sees no device {printable(name, 40)!r} here; use --device cpu.")
    return torch.device(name)

"""An ONNX file as an image encoder, run by ONNX Runtime: float NCHW in, one row of features for each image out."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from clip_core.errors import BundleError, CheckpointError
from clip_core.model.encoders.base import EncoderInfo, FrozenEncoder
from clip_core.model.encoders.files import absolute, file_hash, identity_of, licence_of
from clip_core.model.encoders.preprocessing import named_preprocessing, preprocessing_beside
from clip_core.model.onnx_file import files_beside
from clip_core.model.onnx_trial import OneInput, image_side, try_onnx
from clip_core.network import Preprocessing
from clip_core.text import printable
from clip_core.trial import TrialError

_LOG_OFF = 4  # errors are raised, and the log would print the names of a file as they are
_DEFAULT_SIZE = 224


class OnnxImageEncoder(FrozenEncoder):
    """Features by ONNX Runtime on the CPU, whichever device the images are on; has no blocks to unfreeze.

    `path` is the file, for joining it with a head; `input_name` and `output_name` are those of its graph.
    """

    def __init__(self, info: EncoderInfo, path: Path, session: ort.InferenceSession) -> None:
        super().__init__(info)
        self.path = path
        self.session = session
        self.input_name: str = session.get_inputs()[0].name
        self.output_name: str = session.get_outputs()[0].name
        self._one_by_one = session.get_inputs()[0].shape[0] == 1
        self.frozen()

    def forward(self, x: Tensor) -> Tensor:
        images = x.detach().float().cpu().numpy()  # (B, 3, S, S)
        parts = [images[row : row + 1] for row in range(len(images))] if self._one_by_one else [images]
        try:
            rows = [np.asarray(self.session.run([self.output_name], {self.input_name: part})[0]) for part in parts]
        except Exception as error:  # as for the session
            raise CheckpointError(f"{self.path} fails on images: {printable(str(error), 160)}") from None
        features = np.concatenate(rows).reshape(len(images), -1).astype(np.float32, copy=False)
        return torch.from_numpy(features).to(x.device)  # (B, F)


def load_onnx(
    name: str, path: Path, image_size: int | None, preprocessing: Preprocessing | str | None
) -> FrozenEncoder:
    """Open an ONNX image encoder.

    Args:
        preprocessing: in place of what the file beside it says: whole, or one of NAMED.
    Raises:
        CheckpointError: if it is damaged, refused, has other inputs or outputs, or no preprocessing is stated.
    """
    weights = _weight_files(path)
    session = _session(path, weights)
    side = _image_side(path, session)
    if side is not None and image_size not in (None, side):
        raise CheckpointError(f"{path} is for images of {side} pixels, and --encoder-image-size is {image_size}.")
    side = side or image_size
    if isinstance(preprocessing, str):
        prepared = named_preprocessing(preprocessing, side or _DEFAULT_SIZE)
    else:
        prepared = preprocessing or preprocessing_beside(path.parent, side)
    if side not in (None, prepared.image_size):
        raise CheckpointError(f"{path} is for images of {side} pixels, its preprocessing makes {prepared.image_size}.")
    size = _feature_size(path, session, prepared.image_size)
    info = EncoderInfo(
        side="image",
        source="onnx",
        name=absolute(name),
        architecture=f"ONNX file {path.name}",
        identity=identity_of([path, *weights], ["onnx", prepared.model_dump(mode="json")]),
        parameters=sum(file.stat().st_size for file in (weights or [path])) // 4,
        licence=licence_of(path.parent),
        feature_size=size,
        preprocessing=prepared,
        notes=("the number of parameters is estimated from the size of the file",),
    )
    return OnnxImageEncoder(info, path, session)


def _weight_files(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold its weights; nothing in it asks for more than ONNX's own operators.

    Raises:
        CheckpointError: if it is refused, or one of the files is missing.
    """
    try:
        names = files_beside(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except BundleError as error:
        raise CheckpointError(str(error)) from None
    missing = next((name for name in names if not (path.parent / name).is_file()), None)
    if missing is not None:
        raise CheckpointError(f"{path} has weights in {printable(missing, 80)}, which is not beside it; put it there.")
    return [path.parent / name for name in names]


def _session(path: Path, weights: list[Path]) -> ort.InferenceSession:
    """A session of a file that a child has run before.

    Raises:
        CheckpointError: if it did not run there, or does not load.
    """
    files = [path, *weights]
    try:
        try_onnx(
            [OneInput(path, None)], [file_hash(file) for file in files], sum(file.stat().st_size for file in files)
        )
    except TrialError as error:
        raise CheckpointError(f"{path} cannot be used: {error}; give another encoder.") from None
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_OFF
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # one of a dozen classes of the library, which have no common base
        raise CheckpointError(f"ONNX Runtime does not accept {path}: {printable(str(error), 160)}") from None


def _image_side(path: Path, session: ort.InferenceSession) -> int | None:
    """The side of the images that the file is for; None where it takes any.

    Raises:
        CheckpointError: if its input is not float (batch, 3, S, S).
    """
    try:
        return image_side(session)
    except ValueError as error:
        raise CheckpointError(f"{path} {error}.") from None


def _feature_size(path: Path, session: ort.InferenceSession, side: int) -> int:
    """F, measured on a black image.

    Raises:
        CheckpointError: if the first output is not (batch, F) or (batch, F, 1, 1).
    """
    name, black = session.get_inputs()[0].name, np.zeros((1, 3, side, side), np.float32)
    try:
        shape = session.run([session.get_outputs()[0].name], {name: black})[0].shape
    except Exception as error:  # as for the session
        raise CheckpointError(f"{path} fails on an image of {side} pixels: {printable(str(error), 160)}") from None
    if len(shape) not in (2, 4) or shape[0] != 1 or any(size != 1 for size in shape[2:]):
        raise CheckpointError(
            f"{path} gives an output of shape {tuple(shape)} for one image; an image encoder gives (batch, F) or "
            "(batch, F, 1, 1)."
        )
    return int(shape[1])

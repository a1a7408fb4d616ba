"""The encoder of an ONNX bundle: ONNX Runtime, NumPy and Pillow, no PyTorch."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import BackendError, BundleError
from clip_core.inference.bundle import TEXT, VISION, Bundle, open_bundle
from clip_core.inference.encoder import About, BatchedEncoder, check_tokenizer, cores
from clip_core.inference.memory_limit import limit_memory
from clip_core.scoring import FloatArray, IntArray
from clip_core.text import printable

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "mps": "CoreMLExecutionProvider",
}
_SESSION_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    UnicodeDecodeError,  # of a message with a name of the file that is not UTF-8
)
_WARNINGS_OFF = 4  # errors too: they are raised, and the log would print the names of a file as they are


class OnnxEncoder(BatchedEncoder):
    """An Encoder over a checked bundle.

    Args:
        path: the bundle's folder.
        device: cpu (the default), cuda, cuda:N or mps; another one is never used in its place.
        note: for `About.note`.
    Raises:
        BundleError: if the bundle is damaged or uses something that is refused.
        BackendError: if ONNX Runtime cannot run on the device that was asked for.
    """

    def __init__(self, path: Path, device: str | None = None, note: str | None = None) -> None:
        device = device or "cpu"
        provider = _provider(device)
        bundle = open_bundle(path)
        manifest = bundle.manifest
        tokenizer = Tokenizer.load(bundle.tokenizer)
        check_tokenizer(
            tokenizer,
            vocab_size=manifest.vocab_size,
            end_token=manifest.end_token,
            context_length=manifest.context_length,
        )
        about = About(
            backend="onnx",
            source=str(path),
            identity=f"onnx:{manifest.files[VISION].sha256}",
            device=device,
            embed_dim=manifest.embed_dim,
            logit_scale=manifest.logit_scale,
            preprocessing=manifest.preprocessing,
            step=manifest.source.step,
            checkpoint=manifest.source.checkpoint if manifest.source.step else "",
            scores=manifest.source.scores,
            classes=manifest.classes,
            threshold=manifest.threshold,
            note=note,
        )
        super().__init__(about, tokenizer)
        self._vision, self._text = _sessions(bundle, device, provider, padded=tokenizer.pads_to_context)

    def _images(self, pixel_values: FloatArray) -> FloatArray:
        return _run(self._vision, "image_embeds", {"pixel_values": pixel_values})

    def _texts(self, input_ids: IntArray) -> FloatArray:
        return _run(self._text, "text_embeds", {"input_ids": input_ids})


def _run(session: ort.InferenceSession, output: str, inputs: dict[str, FloatArray | IntArray]) -> FloatArray:
    try:
        return np.asarray(session.run([output], inputs)[0], dtype=np.float32)
    except (*_SESSION_ERRORS, MemoryError) as error:  # with names of the file's nodes in it
        raise BackendError(f"ONNX Runtime could not compute {output}: {printable(str(error), 200)}") from None


def _sessions(
    bundle: Bundle, device: str, provider: str, *, padded: bool
) -> tuple[ort.InferenceSession, ort.InferenceSession]:
    """Both towers. A text tower may take its whole context alone where captions are `padded` to it."""
    side, length = bundle.manifest.preprocessing.image_size, bundle.manifest.context_length
    vision = make_session(bundle.vision, str(bundle.folder / VISION), device, provider)
    text = make_session(bundle.text, str(bundle.folder / TEXT), device, provider)
    lengths: tuple[list[int], ...] = ([], [length]) if padded else ([],)
    wanted: tuple[tuple[ort.InferenceSession, str, list[str], tuple[list[int], ...]], ...] = (
        (vision, VISION, ["pixel_values", "tensor(float)", "image_embeds"], ([3, side, side],)),
        (text, TEXT, ["input_ids", "tensor(int64)", "text_embeds"], lengths),
    )
    for session, name, expected, shapes in wanted:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        fixed = [size for size in inputs[0].shape if isinstance(size, int)]
        found = [inputs[0].name, inputs[0].type, outputs[0].name]
        same = len(inputs) == 1 and found == expected and fixed in shapes
        if not same or outputs[0].shape[-1] != bundle.manifest.embed_dim:
            raise BundleError(
                f"{bundle.folder / name} has other inputs or outputs than its manifest says; export the bundle again."
            )
    return vision, text


def make_session(model: bytes, name: str, device: str, provider: str) -> ort.InferenceSession:
    """An ONNX Runtime session on one execution provider, which is verified after the start.

    Raises:
        BundleError: if ONNX Runtime does not accept the file.
        BackendError: if the provider did not start.
    """
    options = ort.SessionOptions()
    limit_memory(options)
    options.log_severity_level = _WARNINGS_OFF
    options.intra_op_num_threads = cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # two sessions share the cores
    chosen: str | tuple[str, dict[str, str]] = provider
    if provider == "CUDAExecutionProvider":  # TF32 would cost three digits of the parity
        chosen = (provider, {"device_id": device.partition(":")[2] or "0", "use_tf32": "0"})
    try:
        session = ort.InferenceSession(model, options, providers=[chosen], enable_fallback=0)
    except _SESSION_ERRORS as error:
        raise BundleError(f"ONNX Runtime does not accept {name}: {printable(str(error), 200)}") from None
    running = session.get_providers()[0]
    if running != provider:
        raise BackendError(f"{provider} did not start, {running} did (a library is missing?); use --device cpu.")
    return session


def _provider(device: str) -> str:
    provider = PROVIDERS.get(device.partition(":")[0])
    if provider is None:
        raise BackendError(f"the device is {printable(device, 40)!r}; it may be {', '.join(PROVIDERS)}.")
    if provider not in ort.get_available_providers():
        raise BackendError(
            f"this onnxruntime has no {provider} (it has {', '.join(ort.get_available_providers())}); "
            "use --device cpu, or install the onnxruntime package made for the device."
        )
    return provider

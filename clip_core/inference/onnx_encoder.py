"""The encoder of an ONNX bundle: ONNX Runtime, NumPy and Pillow, no PyTorch."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import BackendError, BundleError
from clip_core.files import cache_folder
from clip_core.inference.bundle import Bundle, open_bundle
from clip_core.inference.encoder import About, BatchedEncoder, check_tokenizer, cores
from clip_core.inference.manifest import Manifest, Precision, Variant
from clip_core.inference.memory_limit import limit_memory
from clip_core.model.onnx_trial import OneInput, onnx_key, try_onnx
from clip_core.scoring import FloatArray, IntArray
from clip_core.text import printable
from clip_core.trial import TrialError, remember

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "mps": "CoreMLExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
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
    """An Encoder over a checked bundle; threads may share it.

    Args:
        path: the bundle's folder.
        device: cpu (the default), cuda, tensorrt, mps or coreml, directml; `:N` after cuda, tensorrt and directml.
            Another one is never used in its place.
        note: for `About.note`.
        precision: fp32, fp16 or int8; None: the bundle's default.
    Raises:
        BundleError: if the bundle is damaged or uses something that is refused.
        BackendError: if ONNX Runtime cannot run on the device that was asked for, or the bundle has no such precision.
    """

    def __init__(
        self, path: Path, device: str | None = None, note: str | None = None, precision: Precision | None = None
    ) -> None:
        device = device or "cpu"
        _provider(device)
        bundle = open_bundle(path, precision)
        manifest, variant = bundle.manifest, bundle.variant
        try_out(bundle)
        with ThreadPoolExecutor(1) as pool:  # while the tokenizer is read, the sessions start
            starting = pool.submit(_sessions, bundle, device)
            tokenizer = Tokenizer.load(bundle.tokenizer)
            check_tokenizer(
                tokenizer,
                vocab_size=manifest.vocab_size,
                end_token=manifest.end_token,
                context_length=manifest.context_length,
            )
            self._vision, self._text = starting.result()
        bundle.check_unchanged()
        _check_signatures(bundle, self._vision, self._text, padded=tokenizer.pads_to_context)
        about = About(
            backend="onnx",
            source=str(path),
            identity=f"onnx:{manifest.files[variant.vision].sha256}",  # another file in each precision
            device=device,
            precision=variant.precision,
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

    def _images(self, pixel_values: FloatArray) -> FloatArray:
        return run_session(self._vision, ["image_embeds"], {"pixel_values": pixel_values})[0]

    def _texts(self, input_ids: IntArray) -> FloatArray:
        return run_session(self._text, ["text_embeds"], {"input_ids": input_ids})[0]


def run_session(
    session: ort.InferenceSession,
    outputs: list[str],
    inputs: dict[str, FloatArray | IntArray],
) -> list[FloatArray]:
    """The outputs of these names, in float32.

    Raises:
        BackendError: if ONNX Runtime cannot compute them; its reason is made printable.
    """
    try:
        return [np.asarray(each, dtype=np.float32) for each in session.run(outputs, inputs)]
    except (*_SESSION_ERRORS, MemoryError) as error:  # with names of the file's nodes in it
        names = printable(" and ".join(outputs), 80)
        raise BackendError(f"ONNX Runtime could not compute {names}: {printable(str(error), 200)}") from None


def try_out(bundle: Bundle, **limit: float) -> None:
    """Let a child run a bundle that this machine has not run, as a graph may compute for hours; see `try_onnx`.

    Raises:
        BundleError: if it does not run, or not within the limits.
    """
    manifest, variant = bundle.manifest, bundle.variant
    side = manifest.preprocessing.image_size
    runs = (
        OneInput(bundle.file(variant.vision), (1, 3, side, side)),
        OneInput(bundle.file(variant.text), (1, manifest.context_length), "int64", manifest.end_token),
    )
    size = sum(manifest.files[name].size for name in bundle.stamps)
    try:
        try_onnx(runs, _hashes(manifest, variant), size, **limit)
    except TrialError as error:
        raise BundleError(f"{bundle.folder} cannot be used: {error}; export it again.") from None


def remember_own(manifest: Manifest) -> None:
    """Note that a bundle was made here, so that it is not tried."""
    for variant in manifest.variants:
        remember(onnx_key(_hashes(manifest, variant)))


def _hashes(manifest: Manifest, variant: Variant) -> list[str]:
    return [manifest.files[name].sha256 for name in sorted(manifest.names_of(variant))]


def _sessions(bundle: Bundle, device: str) -> tuple[ort.InferenceSession, ort.InferenceSession]:
    """Both towers, started at the same time."""
    files = [bundle.file(bundle.variant.vision), bundle.file(bundle.variant.text)]
    limit_memory(ort.SessionOptions())  # makes the arena that both share, once
    with ThreadPoolExecutor(2) as pool:
        vision, text = pool.map(lambda path: make_session(path, str(path), device), files)
    return vision, text


def _check_signatures(
    bundle: Bundle, vision: ort.InferenceSession, text: ort.InferenceSession, *, padded: bool
) -> None:
    """A text tower may take its whole context alone where captions are `padded` to it.

    Raises:
        BundleError: if inputs or outputs are not those of a bundle.
    """
    side, length = bundle.manifest.preprocessing.image_size, bundle.manifest.context_length
    lengths: tuple[list[int], ...] = ([], [length]) if padded else ([],)
    wanted: tuple[tuple[ort.InferenceSession, str, list[str], tuple[list[int], ...]], ...] = (
        (vision, bundle.variant.vision, ["pixel_values", "tensor(float)", "image_embeds"], ([3, side, side],)),
        (text, bundle.variant.text, ["input_ids", "tensor(int64)", "text_embeds"], lengths),
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


def make_session(
    model: bytes | Path, name: str, device: str = "cpu", threads: int | None = None
) -> ort.InferenceSession:
    """An ONNX Runtime session on one device, which is verified after the start.

    Args:
        model: a file; or its bytes, which take twice as long to load.
        threads: of one run; None: all cores of this process.
    Raises:
        BundleError: if ONNX Runtime does not accept the file.
        BackendError: if the device is not there, or its provider did not start.
    """
    provider = _provider(device)
    options = ort.SessionOptions()
    limit_memory(options)
    options.log_severity_level = _WARNINGS_OFF
    options.intra_op_num_threads = threads or cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # two sessions share the cores
    if provider == PROVIDERS["directml"]:  # what it asks for
        options.enable_mem_pattern = False
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    try:
        chosen = [(provider, _settings(provider, device))]
        session = ort.InferenceSession(model, options, providers=chosen, enable_fallback=0)
    except _SESSION_ERRORS as error:
        raise BundleError(f"ONNX Runtime does not accept {name}: {printable(str(error), 200)}") from None
    running = session.get_providers()[0]
    if running != provider:
        raise BackendError(f"{provider} did not start, {running} did (a library is missing?); use --device cpu.")
    return session


def _settings(provider: str, device: str) -> dict[str, Any]:
    """A provider's options. Those that compile a model keep the result in the user's cache, by its hash."""
    number = device.partition(":")[2] or "0"
    if provider == PROVIDERS["cuda"]:  # TF32 would cost three digits of the parity
        return {"device_id": number, "use_tf32": "0"}
    if provider == PROVIDERS["directml"]:
        return {"device_id": number}
    compiled = str(cache_folder() / "compiled" / ort.__version__)
    if provider == PROVIDERS["tensorrt"]:
        return {"device_id": number, "trt_engine_cache_enable": "1", "trt_engine_cache_path": compiled}
    if provider == PROVIDERS["coreml"]:
        return {"ModelCacheDirectory": compiled}
    return {}


def available_devices() -> list[str]:
    """The devices that this ONNX Runtime has a provider for, by their first name."""
    there = ort.get_available_providers()
    names = {provider: name for name, provider in reversed(PROVIDERS.items())}
    return [name for provider, name in names.items() if provider in there]


def _provider(device: str) -> str:
    kind, colon, number = device.partition(":")
    provider = PROVIDERS.get(kind)
    if provider is None or (colon and (not number.isdecimal() or kind in ("cpu", "mps", "coreml"))):
        raise BackendError(f"the device is {printable(device, 40)!r}; it may be {', '.join(PROVIDERS)}.")
    if provider not in ort.get_available_providers():
        raise BackendError(
            f"this onnxruntime has no {provider} (it has {', '.join(ort.get_available_providers())}); "
            "use --device cpu, or install the onnxruntime package made for the device."
        )
    return provider

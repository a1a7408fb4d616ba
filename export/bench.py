"""clip-export bench: latency and throughput of each variant and provider, beside PyTorch where it is installed.

Ways take turns, so that a busy machine slows all of them alike; what counts is the median.
"""

import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import numpy as np

from clip_core.data.tokenizer import Tokenizer
from clip_core.inference.bundle import check_bundle
from clip_core.inference.encoder import cores
from clip_core.inference.manifest import TOKENIZER, Manifest
from clip_core.inference.onnx_encoder import available_devices
from clip_core.run.paths import RunPaths
from export.sessions import Array, Encode, open_onnx

BATCHES = (1, 8, 32)
_CAPTIONS = ("a dog", "a photo of two people", "a red circle beside a blue square on a white table")


def bench(bundle: Path, device: str | None, rounds: int, say: Callable[[str], None]) -> None:
    """Print one table for images and one for captions.

    Args:
        device: of ONNX Runtime; None: each that this ONNX Runtime has.
        rounds: runs of each way and batch size.
    Raises:
        BundleError, BackendError: as `open_bundle` and `make_session`.
    """
    manifest = check_bundle(bundle)
    devices = [device] if device else available_devices()
    say(f"{rounds} rounds, {cores()} cores, ways in turn; medians: ms a batch, and inputs a second")
    pytorch = _pytorch(bundle, manifest)
    if pytorch is None:
        say("without PyTorch: it is not installed, or the checkpoint is not beside the bundle")
    side = manifest.preprocessing.image_size
    pixels = np.random.default_rng(0).standard_normal((BATCHES[-1], 3, side, side)).astype(np.float32)
    captions = Tokenizer.load(bundle / TOKENIZER).encode([_CAPTIONS[i % 3] for i in range(BATCHES[-1])])
    kinds: list[tuple[str, Array]] = [("images", pixels), ("captions", captions)]
    for place, (what, inputs) in enumerate(kinds):
        ways: dict[str, Encode] = {} if pytorch is None else {"PyTorch fp32": pytorch[place]}
        for each in devices:
            for variant in manifest.variants:
                file = (variant.vision, variant.text)[place]
                ways[f"{variant.precision} on {each}"] = open_onnx(bundle / file, each)
        say(f"{what:<24}" + "".join(f"{f'batch {batch}':>22}" for batch in BATCHES))
        times = {batch: alternate(ways, inputs[:batch], rounds) for batch in BATCHES}
        for name in ways:
            cells = [(times[batch][name], batch) for batch in BATCHES]
            say(f"{name:<24}" + "".join(f"{1e3 * t:>11.1f} ms {batch / t:>6.0f}/s" for t, batch in cells))


def alternate(ways: Mapping[str, Encode], inputs: Array, rounds: int) -> dict[str, float]:
    """The median seconds of each way, after one run to warm up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run(inputs)
    for _ in range(rounds):
        for name, run in ways.items():
            started = time.perf_counter()
            run(inputs)
            times[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in times.items()}


def _pytorch(bundle: Path, manifest: Manifest) -> tuple[Encode, Encode] | None:
    """Both towers of the checkpoint that the bundle was exported from, if it is beside it."""
    source = RunPaths(bundle.resolve().parent).checkpoints / manifest.source.checkpoint
    if importlib.util.find_spec("torch") is None or not source.is_dir():
        return None
    from clip_core.model.checkpoint import load_model
    from export.parity import torch_encode

    model = load_model(source).model.eval()
    return torch_encode(model.encode_image), torch_encode(model.encode_text)

"""clip-export verify: whether a bundle is whole and still computes here what it computed where it was made.

reference.npy in the bundle has, for each variant, the embeddings of eight drawn images and eight captions as they were
when its parity with PyTorch was proven; the inputs can be drawn again anywhere.

Shapes: V variants, S image side, D embedding.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clip_core.data.preprocess import normalise
from clip_core.data.tokenizer import Tokenizer
from clip_core.errors import BundleError, ParityError
from clip_core.files import DAMAGED_ARRAY
from clip_core.inference.bundle import check_bundle, open_bundle
from clip_core.inference.encoder import PixelArray
from clip_core.inference.manifest import REFERENCE, TOKENIZER, Manifest, Variant
from clip_core.inference.onnx_encoder import try_out
from clip_core.network import Preprocessing
from clip_core.run.paths import RunPaths
from clip_core.scoring import FloatArray
from export.sessions import Encode, in_batches, least_and_mean_cosine, open_onnx

_INPUTS = 8
_CAPTIONS = ("", "a dog", "a red circle", "two people on a beach at sunset", "it's 12 o'clock!", "une fleur bleue",
             "a photo of a cat on a chair, seen from above", "word " * 100)  # fmt: skip
_SAME = 1e-4  # largest difference of fp32
_CLOSE = {"fp32": 0.99999, "fp16": 0.999, "int8": 0.99}  # least cosine; processors round int8 sums differently

Say = Callable[[str], None]


def drawn_images(side: int) -> PixelArray:
    """Smooth colours with some noise, the same everywhere.  -> uint8 (8, S, S, 3)"""
    rng = np.random.Generator(np.random.PCG64(7))
    coarse = rng.integers(0, 256, (_INPUTS, 4, 4, 3)).repeat(-(-side // 4), axis=1).repeat(-(-side // 4), axis=2)
    noise = rng.integers(-20, 21, (_INPUTS, side, side, 3))
    pixels: PixelArray = np.clip(coarse[:, :side, :side] + noise, 0, 255).astype(np.uint8)
    return pixels


def embed_reference(image: Encode, text: Encode, tokenizer: Tokenizer, preprocessing: Preprocessing) -> FloatArray:
    """The drawn images, then the captions.  -> (16, D)"""
    pixels = normalise(drawn_images(preprocessing.image_size), preprocessing)
    captions = [text(tokenizer.encode([caption])) for caption in _CAPTIONS]  # one by one: int8 depends on its batch
    return np.concatenate([in_batches(image, pixels, 1), *captions])


def write_reference(
    folder: Path, variants: tuple[Variant, ...], tokenizer: Tokenizer, preprocessing: Preprocessing
) -> None:
    """reference.npy, float32 (V, 16, D), in the order of the variants."""
    embeds = [_embed(folder, variant, "cpu", tokenizer, preprocessing) for variant in variants]
    np.save(folder / REFERENCE, np.stack(embeds).astype(np.float32), allow_pickle=False)


def verify(bundle: Path, device: str, say: Say) -> Manifest:
    """Check every file and compute every variant again.

    Args:
        device: of ONNX Runtime.
        say: called with a line for each step.
    Raises:
        BundleError, BackendError: if a file is not what the manifest says, or cannot be computed.
        ParityError: if a variant computes something else than where it was exported.
    """
    manifest = check_bundle(bundle)
    size = sum(facts.size for facts in manifest.files.values()) / 2**20
    say(f"{len(manifest.files)} files, {size:.1f} MB: sizes, hashes and operators are as the manifest says")
    tokenizer = Tokenizer.load(bundle / TOKENIZER)
    shape = (len(manifest.variants), _INPUTS + len(_CAPTIONS), manifest.embed_dim)
    for variant in manifest.variants:
        try_out(open_bundle(bundle, variant.precision))
    for variant, expected in zip(manifest.variants, _read_reference(bundle, shape), strict=True):
        found = _embed(bundle, variant, device, tokenizer, manifest.preprocessing)
        _compare(variant, found, expected, say, f"{variant.precision} on {device}, against its export")
    return manifest


def verify_against(bundle: Path, manifest: Manifest, source: Path | None, say: Say) -> None:
    """Compare every variant with the PyTorch model that it was exported from.

    Args:
        source: the model; None: the checkpoint of the run that the bundle is in, if there is one.
    Raises:
        ParityError: if a variant differs.
    """
    if source is None:
        beside = RunPaths(bundle.resolve().parent).checkpoints / manifest.source.checkpoint
        if not beside.is_dir():
            say("not compared with PyTorch: the checkpoint is not beside the bundle; name it with --against.")
            return
        source = beside
    if importlib.util.find_spec("torch") is None:
        say('not compared with PyTorch, which is not installed: pip install "clip-tui[train]".')
        return
    from clip_core.model.checkpoint import load_model
    from export.parity import torch_encode

    loaded = load_model(source)
    image, text = torch_encode(loaded.model.encode_image), torch_encode(loaded.model.encode_text)
    expected = embed_reference(image, text, loaded.tokenizer, loaded.config.preprocessing)
    tokenizer = Tokenizer.load(bundle / TOKENIZER)
    for variant in manifest.variants:
        found = _embed(bundle, variant, "cpu", tokenizer, manifest.preprocessing)
        if found.shape != expected.shape:
            raise ParityError(f"{source} has embeddings of another size than {bundle}: it is another model.")
        _compare(variant, found, expected, say, f"{variant.precision}, against PyTorch ({source})")


def _embed(
    folder: Path, variant: Variant, device: str, tokenizer: Tokenizer, preprocessing: Preprocessing
) -> FloatArray:
    image, text = (open_onnx(folder / name, device) for name in (variant.vision, variant.text))
    return embed_reference(image, text, tokenizer, preprocessing)


def _read_reference(folder: Path, shape: tuple[int, int, int]) -> FloatArray:
    try:
        stored = np.load(folder / REFERENCE, allow_pickle=False, mmap_mode="r")
    except DAMAGED_ARRAY:
        raise BundleError(f"{folder / REFERENCE} cannot be read; export the bundle again.") from None
    if stored.shape != shape or stored.dtype != np.float32:
        raise BundleError(f"{folder / REFERENCE} does not fit its manifest; export the bundle again.")
    return np.asarray(stored)


def _compare(variant: Variant, found: FloatArray, expected: FloatArray, say: Say, what: str) -> None:
    difference = float(np.nan_to_num(np.abs(found - expected), nan=np.inf).max())
    least, _ = least_and_mean_cosine([found], [expected])
    same = least >= _CLOSE[variant.precision] and (variant.precision != "fp32" or difference < _SAME)
    say(f"{what}: max |diff| {difference:.1e}, least cosine {least:.6f}: {'accepted' if same else 'rejected'}")
    if not same:
        raise ParityError(
            f"{what}: the embeddings differ (least cosine {least:.4f}); export the bundle again on this machine, or "
            "use another precision or device."
        )

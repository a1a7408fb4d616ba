"""The graphs that a bundle has on request, beside its two encoders."""

from dataclasses import dataclass
from pathlib import Path

from clip_core.inference.manifest import ParityRow, PreprocessingParity
from clip_core.model.checkpoint import LoadedModel
from export.combined import measure_combined, write_combined
from export.parity import Samples
from export.with_preprocessing import measure_preprocessing, write_with_preprocessing


@dataclass(frozen=True)
class MoreGraphs:
    """`combined`: onnx/model.onnx. `with_preprocessing`: onnx/vision_model_with_preprocessing.onnx."""

    combined: bool = False
    with_preprocessing: bool = False


NO_MORE = MoreGraphs()


def write_more(
    more: MoreGraphs, loaded: LoadedModel, folder: Path, samples: Samples, images: list[Path]
) -> tuple[tuple[ParityRow, ...], PreprocessingParity | None]:
    """Write them below `folder`, where the encoders are, and measure them.

    Args:
        images: files whose preprocessing is compared.
    Returns:
        A row of the parity for each batch of the combined file, and the parity of the preprocessing.
    Raises:
        ParityError: if the preprocessing differs from Pillow's.
        BackendError: if a file would be larger than one ONNX file may be.
    """
    of_preprocessing: PreprocessingParity | None = None
    rows: tuple[ParityRow, ...] = ()
    if more.combined:
        write_combined(folder, loaded.model, loaded.tokenizer)
        rows = measure_combined(loaded.model, folder, loaded.tokenizer, samples)
    if more.with_preprocessing:
        write_with_preprocessing(folder, loaded.config.preprocessing, loaded.config.embed_dim)
        of_preprocessing = measure_preprocessing(folder, loaded.config.preprocessing, images)
    return rows, of_preprocessing

"""TorchScript archives, the form in which OpenAI published its weights.

No library reads them safely: torch.jit.load runs their code, torch.load(weights_only=True) refuses them. Here only the
tensors are read, from the pickle that lists them; the code in the archive is not even opened.
"""

from collections.abc import Mapping
from pathlib import Path

from clip_core.model.pickle_values import Made
from clip_core.model.torch_files import (
    Record,
    StoredTensor,
    check_storages,
    not_a_state_dict,
    read_pickle_record,
    stored_tensors,
)


def is_torchscript(records: Mapping[str, Record]) -> bool:
    """Whether a zip archive of PyTorch holds code."""
    return any(name.startswith("code/") for name in records)


def open_torchscript(path: Path, records: Mapping[str, Record]) -> dict[str, StoredTensor]:
    """The parameters and buffers of the module in a TorchScript archive, by their dotted names.

    Raises:
        CheckpointError: if it is damaged, cut short, or asks for more than a module's code and data.
    """
    checked = read_pickle_record(path, records, torchscript=True)
    places = check_storages(path, checked.storages, records)
    if not isinstance(checked.value, Made) or checked.value.kind not in ("module", "dict"):
        raise not_a_state_dict(path, checked.value)
    return stored_tensors(path, checked.value, places)

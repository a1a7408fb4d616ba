"""A CLIP inside a training checkpoint: which of its tensors are the weights, and under which names.

Wrappers add to the names: DistributedDataParallel `module.`, torch.compile `_orig_mod.`, Lightning `model.`, a
classifier around a CLIP whatever its attribute is called; and training scripts store the state dict under a key of
theirs. All of these are parts before the names of the CLIP, so its `logit_scale` shows them.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from clip_core.model.torch_files import StoredTensor
from clip_core.text import printable

_MARK = "logit_scale"
_TOWERS = ("visual.", "vision_model.")
# Wrappers that stand before any module, also inside a CLIP.
_INSIDE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_EMA = re.compile(r"(?:^|[._])(?:ema|averaged?)(?:[._]|$)")
_TRAINING = re.compile(r"^(?:optim\w*|opt|scaler|\w*sched\w*|callbacks|loops|amp\w*|rng\w*|\w*_states?)\.")


class Unwrapped(NamedTuple):
    """The weights by their own names.

    `nested`: they were below a key or prefix, as in a training checkpoint. `note`: which was taken and what was
    ignored, in one line; empty where there was nothing to choose.
    """

    tensors: dict[str, StoredTensor]
    nested: bool
    note: str


def unwrap(tensors: Mapping[str, StoredTensor]) -> Unwrapped:
    """The weights of the CLIP among the tensors of a file.

    Of several, the EMA of the weights comes first, as in timm, then the one with the shortest prefix. Without a CLIP,
    all tensors as they are.
    """
    plain = {_INSIDE.sub("", name): stored for name, stored in tensors.items()}
    if len(plain) != len(tensors):  # two of them would have one name
        plain = dict(tensors)
    found = sorted(_prefixes(plain), key=lambda prefix: (not _EMA.search(prefix), prefix.count("."), prefix))
    if not found:
        return Unwrapped(plain, nested=False, note="")
    prefix, others = found[0], found[1:]
    taken = {name.removeprefix(prefix): stored for name, stored in plain.items() if name.startswith(prefix)}
    if not prefix:
        return Unwrapped(taken, nested=False, note="")
    known = (prefix, *filter(None, others))
    left = [name for name in plain if not name.startswith(known) and not _TRAINING.match(name)]
    note = f"the weights below {_said(prefix)} are read"
    if others:
        note += f", not those below {', '.join(map(_said, others))}" if all(others) else ", not those beside it"
    if left and all(others):
        some = printable(", ".join(left[:3]), 100) + (", ..." if len(left) > 3 else "")
        note += f"; {len(left):,} other tensor{'s are' if len(left) > 1 else ' is'} ignored ({some})"
    return Unwrapped(taken, nested=True, note=note)


def _prefixes(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """What stands before the names of each CLIP."""
    found = [name.removesuffix(_MARK) for name in tensors if name == _MARK or name.endswith(f".{_MARK}")]
    towers = {name[: name.index(tower)] for name in tensors for tower in _TOWERS if tower in name}
    return [prefix for prefix in found if prefix in towers]


def _said(prefix: str) -> str:
    return printable(prefix.removesuffix("."), 60)

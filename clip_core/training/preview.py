"""What would be chosen automatically for a configuration, without decoding an image or writing a file.

    python -m clip_core.training.preview < config.json

reads the sections of a configuration as config.json has them under `config`, and writes one JSON object: `values` (each
setting as it would be used), `reasons` (of those chosen automatically), `about` (pairs, steps) or `error`.
"""

import json
import sys
from typing import Any

from clip_core.config import TrainConfig, parse_config
from clip_core.data.dataset import PairSet, few_classes, read_lists, split_by_image
from clip_core.data.pairs import Pair, sort_pairs
from clip_core.data.tokenizer import vocabulary_for
from clip_core.errors import ClipError, UsageError
from clip_core.presets import architecture
from clip_core.text import plural
from clip_core.training.batch_order import pairs_an_epoch
from clip_core.training.recipe import choose_preprocessing, resolve_recipe

_CHARACTERS = 300  # about the vocabulary of a character tokenizer; no default depends on it


def preview(config: TrainConfig) -> dict[str, Any]:
    """The resolved settings of training from scratch.

    Returns:
        `values`: setting -> value as it would be used. `reasons`: setting -> why, of those chosen automatically.
        `about`: one line. The number of pairs is an estimate, since images that cannot be decoded are not known yet.
    Raises:
        DataError: if the data cannot be read, or are too few.
        UsageError: for pretrained weights or encoders, whose files decide.
    """
    if config.tune.init is not None or config.encoders.given:
        raise UsageError("with pretrained weights the defaults depend on their files; they are printed at the start.")
    pairs, train, classes, epoch_pairs = _data(config)
    size = choose_preprocessing(config, pairs).image_size
    vocabulary = _CHARACTERS if config.data.reads_characters else config.data.vocab_size or vocabulary_for(train)
    network = architecture(
        config.model.model_copy(update={"image_size": size}),
        vocab_size=max(_CHARACTERS, vocabulary), end_token=1, context_length=config.data.context_length, pairs=train,
    )  # fmt: skip
    recipe, decisions = resolve_recipe(config, train, network, epoch_pairs=epoch_pairs, classes=classes)
    values = recipe.model_dump(mode="json") | {decision.setting: decision.value for decision in decisions}
    values |= {"image_size": size, "epochs": recipe.epochs, "patch_size": network.own_image.patch_size}
    about = f"about {plural(train, 'training pair')}, {recipe.steps:,} steps of {recipe.batch_size}"
    if classes:
        about += ", the captions are classes"
    return {
        "values": values,
        "reasons": {decision.setting: decision.reason for decision in decisions},
        "about": f"{about}, {recipe.precision} on {recipe.device}",
    }


def _data(config: TrainConfig) -> tuple[list[Pair], int, bool, int]:
    """The pairs as listed; how many train; whether their captions are classes; how many an epoch has."""
    data = config.data
    if data.create_synthetic and (data.data_file is None or not data.data_file.exists()):
        train = round(data.synthetic_count * (1 - data.val_fraction))
        return [], train, True, train
    lists = read_lists(data, config.run.seed, lambda line: None)
    sets = [PairSet.from_pairs(sort_pairs(each.pairs, {}).good) for each in lists]
    train_set, val_set = sets if len(sets) == 2 else split_by_image(sets[0], data.val_fraction, config.run.seed)
    classes = few_classes(train_set, val_set) is not None
    return lists[0].pairs, len(train_set), classes, pairs_an_epoch(train_set, data.captions)


def main() -> int:
    try:
        result = preview(parse_config(json.load(sys.stdin)))
    except (ClipError, OSError, ValueError) as error:
        result = {"error": str(error)}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

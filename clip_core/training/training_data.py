"""The data of a run: its stream, or its pairs with their images, and the tokenizer of its captions."""

from pathlib import Path

import numpy as np

from clip_core.config import TrainConfig
from clip_core.data.dataset import Data, load_data, read_lists
from clip_core.data.near_duplicates import leaked
from clip_core.data.store import EXACT, ImageStore
from clip_core.data.tokenizer import Tokenizer, train_bpe, train_characters
from clip_core.errors import DataError
from clip_core.run.paths import RunPaths
from clip_core.run.records import RunRecord
from clip_core.run.writer import RunWriter
from clip_core.text import printable
from clip_core.training.aligned import Encoders
from clip_core.training.fast_decode import FAST
from clip_core.training.initial_weights import Start
from clip_core.training.log import Log
from clip_core.training.processes import Processes
from clip_core.training.recipe import choose_preprocessing
from clip_core.training.same_pairs import refuse_other_pairs
from clip_core.training.stream_start import StreamStart, begin_stream, continue_stream, load_stream


def find_stream(
    config: TrainConfig, writer: RunWriter, log: Log, *, resume: bool, processes: Processes
) -> StreamStart | None:
    """The stream to train on, which rank 0 looks at for all; None for indexed data."""
    if not config.data.streamed:
        return None
    if not processes.rank.writes:
        return processes.of_first(None)
    begin = continue_stream if resume else begin_stream
    return processes.of_first(begin(config, writer.path, log.say))


def load_training_data(
    config: TrainConfig,
    start: Start | None,
    encoders: Encoders | None,
    record: RunRecord | None,
    writer: RunWriter,
    log: Log,
    stream: StreamStart | None,
) -> Data:
    """The pairs and their decoded images.

    Raises:
        DataError: if they cannot be trained on.
        RunError: if they are not those that a resumed run began with.
    """
    lists = [] if stream else read_lists(config.data, config.run.seed, log.say)
    network = start.network if start else record.model if record else None
    if network is not None:
        preprocessing = network.preprocessing
    elif stream is not None:
        preprocessing = choose_preprocessing(config, stream.val, stream.epoch_pairs)
    else:
        preprocessing = choose_preprocessing(config, lists[0].pairs)
    if stream is not None:
        return load_stream(config.data, stream, preprocessing, log.say)
    if encoders is not None and encoders.image is not None:
        preprocessing = encoders.image.info.preprocessing or preprocessing
    decoder = EXACT if encoders is not None and encoders.image is not None else FAST  # both sets share the features
    data = load_data(config.data, preprocessing, config.run.seed, log.say, decoder, lists)
    if record is not None:
        refuse_other_pairs(writer.path, record.data.fingerprint, lists[0].file, data)
    train = data.train
    what = "image" if len(train.images) == 1 else "caption" if len(train.captions) == 1 else None
    if what is not None and len(train) > 1:
        raise DataError(
            f"all {len(train):,} training pairs have the same {what}, so there is nothing to learn from them; "
            f"add pairs with other {what}s."
        )
    return data


def warn_of_leaks(data: Data, log: Log) -> None:
    """Say how many validation images look nearly like training images, where the pixels are at hand."""
    train, val = data.train_store, data.val_store
    if not (isinstance(train, ImageStore) and isinstance(val, ImageStore) and train.cached and val.cached):
        return
    found = leaked(train.get, val.get, (len(train.paths), len(val.paths)))
    if len(found.pairs):
        first, second = train.paths[found.pairs[0, 0]], val.paths[found.pairs[0, 1]]
        count, compared = len(np.unique(found.pairs[:, 1])), found.compared[1]
        log.say(
            f"warning: {count:,} of {compared:,} validation images look nearly like a training image "
            f"({printable(second.name)}, {printable(first.name)}), which makes validation look better than it is; "
            "clip-data check shows them, and --leave-out leaves them out"
        )


def make_tokenizer(
    config: TrainConfig,
    run: Path,
    data: Data,
    start: Start | None,
    encoders: Encoders | None,
    *,
    stored: bool,
    store: bool,
) -> Tokenizer:
    """That of the run, of its pretrained weights or encoder, of a file, or a new one of the captions.

    Args:
        stored: the run may have it already.
        store: write it to the run.
    """
    path = RunPaths(run).tokenizer
    if stored and path.exists():
        return Tokenizer.load(path)
    requested, captions = config.data.tokenizer, data.train.captions
    length = config.data.context_length
    if start is not None:
        tokenizer = start.tokenizer
    elif encoders is not None and encoders.text is not None and encoders.text.tokenizer is not None:
        tokenizer = encoders.text.tokenizer
    elif isinstance(requested, Path):
        tokenizer = Tokenizer.load(requested)
    elif config.data.reads_characters:
        tokenizer = train_characters(captions, length)
    else:
        tokenizer = train_bpe(captions, config.data.vocab_size, length)
    if store:
        tokenizer.save(path)
    return tokenizer

"""Settings that cannot be given together: one table, in the order in which its rows are looked at."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from clip_core.flags import flag
from clip_core.network import Frozen

if TYPE_CHECKING:
    from clip_core.config import TrainConfig

_OF_PRESETS = ("model_size", "patch_size", "stem", "layers", "width")


class Rule(NamedTuple):
    """Where `applies`, these fields of a section stay at their defaults.

    `why`: the sentence about a field that does not, after its flag, or after `subject`.
    """

    applies: bool
    section: Frozen
    fields: tuple[str, ...]
    why: str
    subject: str | None = None


def find_conflict(config: "TrainConfig") -> str | None:
    """The sentence about the first setting that the others exclude, or that needs another one; None without any."""
    for applies, section, fields, why, subject in rules(config):
        for name in fields if applies else ():
            if getattr(section, name) != type(section).model_fields[name].default:
                return f"{subject or flag(name)} {why}"
    return None


def rules(config: "TrainConfig") -> Sequence[Rule]:
    """The whole table."""
    return (
        *_pretrained_weights(config),
        *_pretrained_encoders(config),
        *_streams(config),
        *_training(config),
    )


def _pretrained_weights(config: "TrainConfig") -> Sequence[Rule]:
    """--init, and what it determines."""
    init, tune = config.tune.init is not None, config.tune
    needs_init = "needs pretrained weights; add --init PATH"
    determined = "cannot be combined with --init: the pretrained weights determine it; leave it out"
    return (
        Rule(not init, tune, ("init_model", "lock", "unlock_last", "lora", "lora_alpha", "blend"), needs_init),
        Rule(init, config.model, _OF_PRESETS, determined),
        Rule(init, config.data, ("tokenizer", "vocab_size"), determined),
        Rule(init, config.optim, ("temperature",), determined),
    )


def _pretrained_encoders(config: "TrainConfig") -> Sequence[Rule]:
    """--image-encoder and --text-encoder, what they determine, and what needs them."""
    encoders, optim, init = config.encoders, config.optim, config.tune.init is not None
    image, text = encoders.image_encoder is not None, encoders.text_encoder is not None
    of_either = tuple(
        name for name in type(encoders).model_fields if name not in ("image_encoder", "text_encoder", "unfreeze_last")
    )
    of_images = ("encoder_preprocessing", "encoder_image_size", "image_features", "views")
    one_of_them = "cannot be combined with --image-encoder and --text-encoder; choose one of them"
    from_scratch = "is of networks trained from scratch, and both encoders are pretrained; leave it out"
    own_size = "is the size of a network trained from scratch; use --encoder-image-size"
    determined = "cannot be combined with --text-encoder, which determines it; leave it out"
    aligned_before = "fine-tunes an aligned run; train it first, then add --init RUN"
    return (
        Rule(encoders.given, config.tune, ("init",), one_of_them),
        Rule(image and text, config.model, _OF_PRESETS, from_scratch),
        Rule(image, config.model, ("image_size",), own_size),
        Rule(image, optim, ("patch_dropout",), "needs an image tower that is trained; leave it out"),
        Rule(text, config.data, ("tokenizer", "vocab_size"), determined),
        Rule(text, optim, ("word_dropout", "bpe_dropout"), determined),
        Rule(encoders.given, encoders, ("unfreeze_last",), aligned_before),
        Rule(
            not encoders.given,
            encoders,
            of_either,
            "needs a pretrained encoder; add --image-encoder or --text-encoder",
        ),
        Rule(not encoders.given and not init, encoders, ("unfreeze_last",), "needs an aligned run; add --init RUN"),
        Rule(not image, encoders, of_images, "needs a pretrained image encoder; add --image-encoder"),
    )


def _streams(config: "TrainConfig") -> Sequence[Rule]:
    """Streamed shards, of which little is known before they are read."""
    data, streamed = config.data, config.data.streamed
    of_lists = ("image_column", "caption_column", "image_root", "create_synthetic")
    of_streams = ("shuffle_buffer", "readers", "epoch_pairs", "val_pairs")
    no_features = (
        "cannot be combined with --image-encoder and --text-encoder, whose features are computed once "
        "and kept; fetch the shards and leave out --stream"
    )
    shards_alone = "should be webdataset, as only shards can be streamed"
    one_validation_set = "cannot be combined with --val-file; leave one of them out"
    return (
        Rule(config.encoders.given and streamed, data, ("data_file",), no_features, subject="a stream"),
        Rule(streamed, data, of_lists, "is of indexed data, and these are streamed; leave it out"),
        Rule(streamed and data.format != "webdataset", data, ("format",), shards_alone),
        Rule(streamed and data.val_file is not None, data, ("val_pairs",), one_validation_set),
        Rule(not streamed, data, of_streams, "is of streamed shards; add --stream, or leave it out"),
    )


def _training(config: "TrainConfig") -> Sequence[Rule]:
    """Length, loss, dropout, trainable parts, sharding, and the second validation set."""
    tune, optim, shard = config.tune, config.optim, config.run.shard
    softmax = "applies to the softmax loss; leave it out with --loss sigmoid"
    whole_network = "cannot be combined with --shard, which leaves no process the whole network; leave one of them out"
    small = "cannot be combined with --shard: the projection heads that are trained are small; leave --shard out"
    bpe = "needs a BPE tokenizer; add --tokenizer bpe, or leave it out"
    return (
        Rule(optim.minutes is not None, optim, ("epochs",), "cannot be combined with --minutes; leave one of them out"),
        Rule(optim.loss == "sigmoid", optim, ("label_smoothing",), softmax),
        Rule(config.data.reads_characters, optim, ("bpe_dropout",), bpe),
        Rule(tune.lock == "none", tune, ("unlock_last",), "needs a frozen tower; add --lock image or --lock text"),
        Rule(tune.lora is None, tune, ("lora_alpha",), "needs LoRA; add --lora RANK"),
        Rule(shard, tune, ("blend",), whole_network),
        Rule(shard, config.encoders, ("image_encoder", "text_encoder", "unfreeze_last"), small),
        Rule(tune.guard_data is None, tune, ("guard_root",), "needs a second validation set; add --guard-data FILE"),
    )

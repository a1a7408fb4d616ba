"""A JSON list: `[{"image": "photos/1.jpg", "caption": "a cat"}, ...]`; a caption may be a list of captions."""

from clip_core.data.formats.collect import Collector, shown
from clip_core.data.formats.source import Contents, Source
from clip_core.errors import DataError

SHAPE = 'a JSON list [{"image": "photos/1.jpg", "caption": "a cat"}, ...]'

_ELSE = ", or name its keys with --image-column and --caption-column"


def detect(source: Source) -> str | None:
    if source.head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        return "it is a JSON list"
    return "its name ends in .json" if source.path.suffix.lower() == ".json" and source.path.is_file() else None


def read(source: Source) -> Contents:
    """Every entry, in the list's order; paths start from the list's own folder by default.

    Raises:
        DataError: naming the file and the entry that is no such object.
    """
    path, options = source.path, source.options
    keys = options.image_column or "image", options.caption_column or "caption"
    try:
        entries = source.json
    except DataError as error:
        raise DataError(f"{str(error).rpartition(';')[0]}; it should be {SHAPE}.") from None
    if not isinstance(entries, list):
        raise DataError(f"{path} is not a list but {shown(entries)}; it should be {SHAPE}.")
    collector = Collector(options.image_root if options.image_root is not None else path.parent)
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not set(keys) <= entry.keys():
            named = " and ".join(keys)
            raise DataError(f"{path}, entry {number}: {shown(entry)} has no {named}; it should be {SHAPE}{_ELSE}.")
        collector.add(number, entry[keys[0]], entry[keys[1]])
    if not collector.pairs:
        raise DataError(f"{path} holds no pairs; it should be {SHAPE}.")
    return Contents(collector.pairs, options.image_root or path.parent, {"image": keys[0], "caption": keys[1]})

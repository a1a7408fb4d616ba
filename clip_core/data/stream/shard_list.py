"""The shards of a stream: a list, a glob or a brace pattern, local or remote, as WebDataset's users write them.

shards/{00000..00099}.tar    https://host/a-{000..012}.tar::https://host/b-{000..009}.tar    s3://bucket/set/*.tar
"""

import glob
import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from clip_core.config import streamed_pattern
from clip_core.data.formats.columns import split_of_file
from clip_core.data.formats.webdataset import MOST_SHARDS, SIZES, expand, find_shards, has_wildcard
from clip_core.data.stream.source import ShardError, Source, is_remote, open_source, remote_glob
from clip_core.errors import DataError
from clip_core.text import plural, printable

JOINT = "::"
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")
_LISTS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_MOST_LIST = 64_000_000  # bytes of a list of shards
_MOST_SIZES = 16_000_000  # bytes of a sizes.json
_PASSWORD = re.compile(r"^([a-z][a-z0-9+.-]*://)[^/@:]*:[^/@]*@", re.I)
_ASKED = 16  # remote shards whose size is asked for, to estimate that of all


class ShardList(NamedTuple):
    """Shards in the order of their pattern, each once."""

    pattern: str
    urls: list[str]  # of local shards, absolute paths

    @property
    def names(self) -> list[str]:
        """What is left of each without the folder that all are in, and without a signature behind `.tar?`."""
        shared = len(self._shared)
        return ["/".join(_without_query(url).split("/")[shared:]) for url in self.urls]

    @property
    def root(self) -> str:
        """The folder that all are in."""
        return shown_url("/".join(self._shared))

    @property
    def _shared(self) -> list[str]:
        shared: list[str] = []
        for folders in zip(*(_without_query(url).split("/")[:-1] for url in self.urls), strict=False):
            if len(set(folders)) > 1:
                break
            shared.append(folders[0])
        return shared


def _without_query(url: str) -> str:
    """Without a signature behind `.tar?`."""
    plain = url.partition("?")[0]
    return plain if plain.lower().endswith(".tar") else url


def shown_url(url: str) -> str:
    """A shard or pattern as reports and flags name it: a local path, or a URL without signature and password."""
    return _PASSWORD.sub(r"\1", _without_query(url)).removeprefix("file://")


def of_split(shards: ShardList, wanted: str) -> tuple[ShardList, int]:
    """Only the shards of a split and those of none, where names or folders say so; and how many others there are.

    `train-0000.tar` beside `val-0000.tar` is of train, as in an indexed folder.
    """
    root = Path("/")
    splits = [split_of_file(root, root / name.partition("?")[0]) for name in shards.names]
    if wanted not in splits:
        return shards, 0
    kept = [url for url, split in zip(shards.urls, splits, strict=True) if split in (wanted, None)]
    return shards._replace(urls=kept), len(shards.urls) - len(kept)


def absolute_pattern(path: Path) -> Path:
    """A pattern that means the same in any folder."""
    pattern = streamed_pattern(path)
    if pattern is None:
        return path.absolute()
    parts = (part if is_remote(part) else str(Path(part).absolute()) for part in pattern.split(JOINT))
    return Path(JOINT.join(parts))


def list_shards(path: Path) -> ShardList:
    """Every shard that a path names; local ones are looked for, remote ones only where a wildcard asks for it.

    Raises:
        DataError: if it names none, one that is missing or compressed, or if a package for its protocol is missing.
    """
    pattern = streamed_pattern(path) or str(path)
    urls = list(dict.fromkeys(url for part in pattern.split(JOINT) if part for url in _shards_of(part)))
    if not urls:
        raise DataError(
            f"{printable(pattern)} names no shard to stream; give .tar files, as in 'shards/{{000..012}}.tar'."
        )
    listed = next((url for url in urls if url.lower().partition("?")[0].endswith(_LISTS)), None)
    if listed is not None:
        raise DataError(f"{printable(listed)} is no shard, and only .tar shards can be streamed; download it first.")
    compressed = next((url for url in urls if url.lower().partition("?")[0].endswith(_COMPRESSED)), None)
    if compressed is not None:
        raise DataError(f"{printable(compressed)} is compressed; streamed shards are plain .tar files.")
    return ShardList(pattern, urls)


def _shards_of(part: str) -> list[str]:
    """The shards of one pattern, or of a list of patterns (.txt, one a line)."""
    if part.startswith("pipe:"):
        raise DataError(f"{printable(part, 60)} would run a command, which clip-train never does; give a URL.")
    if part.lower().endswith(".txt"):
        lines = _content(part, _MOST_LIST).decode("utf-8", "replace").split()
        return [url for line in lines if not line.lower().endswith(".txt") for url in _shards_of(line)]
    if not is_remote(part):
        local = Path(part.removeprefix("file://"))
        return [str(shard) for shard in find_shards(local)] if not _is_plain(part) else [str(local.absolute())]
    urls = list(itertools.islice(expand(part), MOST_SHARDS))
    stars = part.partition("?")[0] if part.startswith("http") else part  # ? begins the query of a web address
    return [url for one in urls for url in (remote_glob(one) if has_wildcard(stars) else [one])]


def _is_plain(part: str) -> bool:
    """Whether a local part is the name of a file that does not exist; it is missed when it is opened."""
    path = Path(part.removeprefix("file://"))
    return not path.exists() and not has_wildcard(part) and "{" not in part and glob.escape(part) == part


def compare(before: list[str], now: list[str]) -> str | None:
    """What differs between the names of a run's shards and those that are given now; None where nothing does."""
    if before == now:
        return None
    parts = []
    missing, added = Counter(before) - Counter(now), Counter(now) - Counter(before)
    if missing:
        parts.append(f"{plural(missing.total(), 'shard')} missing (first: {printable(next(iter(missing)), 80)})")
    if added:
        parts.append(f"{plural(added.total(), 'shard')} new (first: {printable(next(iter(added)), 80)})")
    return " and ".join(parts) or "their order differs"


def counted_pairs(shards: ShardList) -> int | None:
    """The sum that a sizes.json beside the shards gives for them, as open_clip's users have; None without one."""
    folder = shards.urls[0].rpartition("/")[0]
    try:
        sizes = json.loads(_content(f"{folder}/{SIZES}", _MOST_SIZES, tries=1))
        counts = [int(sizes[url.rpartition("/")[2]]) for url in shards.urls]
    except (DataError, OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    return sum(counts) if min(counts) >= 0 else None


def total_bytes(shards: ShardList) -> int | None:
    """Bytes of all shards; of many remote ones, by some of them; None where a server does not say."""
    local = not is_remote(shards.urls[0])
    step = 1 if local else max(len(shards.urls) // _ASKED, 1)
    sizes = []
    for url in shards.urls[::step]:
        with open_source(url) as source:
            if source.size is None:
                return None
            sizes.append(source.size)
    return round(sum(sizes) / len(sizes) * len(shards.urls))


def _content(url: str, most: int, tries: int | None = None) -> bytes:
    """A small file, local or remote."""
    source = open_source(url) if tries is None else Source(url, tries=tries)
    with source:
        content = source.read(most)
    if len(content) == most:
        raise ShardError(url, f"it has {most:,} bytes or more")
    return content

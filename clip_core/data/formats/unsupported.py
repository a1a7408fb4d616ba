"""What is said of a path that is no data set: what it is, and what to do with it."""

import difflib
import os
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from clip_core.data.formats.folder import LIST_SUFFIXES, SPLITS, Folder
from clip_core.data.formats.source import Source
from clip_core.data.image_files import SUFFIXES

_LOOKED_AT = 20_000  # entries of a folder
_LISTED = 5
_NAMED = 3  # kinds of files

_EXCEL = "an Excel file: save it as CSV"
_ARCHIVE = "an archive: unpack it and name the folder"
_PICKLE = "a pickle, which is never opened: save its pairs as CSV, JSON or Parquet"
_DATABASE = "a database: save the pairs as CSV"
_ARRAYS = "an array file: save the images as files, with a CSV of captions"
_IMAGE = "one image: name its folder, or a list with captions"
_DOCUMENT = "a document: save the pairs as CSV"
_KINDS: dict[str, str] = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".xlsb"), _EXCEL),
    **dict.fromkeys((".ods", ".numbers"), "a spreadsheet: save it as CSV"),
    **dict.fromkeys((".zip", ".rar", ".7z", ".gz", ".tgz", ".bz2", ".xz", ".zst"), _ARCHIVE),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".joblib"), _PICKLE),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3", ".mdb", ".lmdb"), _DATABASE),
    **dict.fromkeys((".docx", ".doc", ".pdf", ".rtf", ".odt", ".html", ".htm"), _DOCUMENT),
    **dict.fromkeys((".arrow", ".feather"), "an Arrow file: save it as Parquet (Dataset.to_parquet)"),
    **dict.fromkeys((".tfrecord", ".tfrecords"), "a TFRecord file: convert it to tar shards or Parquet"),
    **dict.fromkeys((".h5", ".hdf5", ".npz", ".npy", ".mat"), _ARRAYS),
    **dict.fromkeys((".yaml", ".yml", ".toml", ".ini", ".xml"), "not a list of pairs: convert it to CSV or JSON"),
    **dict.fromkeys((".onnx", ".safetensors"), "a model: name the images and captions to train on"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm"), "a video: extract its frames as images"),
}
_MAGIC = (
    (b"PK\x03\x04", _ARCHIVE),
    (b"\x1f\x8b", _ARCHIVE),
    (b"Rar!", _ARCHIVE),
    (b"7z\xbc\xaf", _ARCHIVE),
    (b"SQLite format 3", _DATABASE),
    (b"%PDF", _DOCUMENT),
    (b"\xd0\xcf\x11\xe0", _EXCEL),
    (b"\x89HDF", _ARRAYS),
    (b"\xff\xd8\xff", _IMAGE),
    (b"\x89PNG", _IMAGE),
)
_ADDRESSES = ("http:/", "https:/", "ftp:/", "s3:/", "gs:/", "gcs:/", "hf:/", "az:/")


def what_it_is(source: Source) -> str:
    """One sentence about a file or folder that no format reads."""
    path, head = source.path, source.head
    if path.is_dir():
        return _folder(source.folder)
    kind = _KINDS.get(path.suffix.lower())
    if path.suffix.lower() in SUFFIXES:
        kind = _IMAGE
    if kind is None:
        kind = next((known for mark, known in _MAGIC if head.startswith(mark)), None)
    if kind is None:
        what = "no text" if b"\0" in head[:4096] else "no list of images and captions"
        kind = f"{what} that can be read: give a CSV, JSON or Parquet file, a folder or tar shards (docs/formats.md)"
    return f"{path} is {kind}."


def what_bytes_say(source: Source) -> str | None:
    """One sentence about a file that is called a list and begins like something else; None for a list."""
    kind = next((known for mark, known in _MAGIC if source.head.startswith(mark)), None)
    if source.head.startswith(b"PK\x03\x04") and (b"xl/" in source.head or b"[Content_Types].xml" in source.head):
        kind = _EXCEL
    return kind and f"{source.path} is not what its name says but {kind}."


def not_found(path: Path) -> str:
    """One sentence about a path that does not exist, with the nearest one that does."""
    spelt = str(path)
    if spelt.lower().startswith(_ADDRESSES):
        scheme, _, rest = spelt.partition(":/")
        address = f"{scheme}://{rest.lstrip('/')}"
        how = f"hf download {_hub_name(rest)} --repo-type dataset" if "huggingface.co" in rest else None
        how = how or ("curl -LO" if scheme.lower().startswith("http") else "the client of that store")
        streamed = " (clip-train and clip-data check stream shards from there)" if ".tar" in rest else ""
        return f"{address} is a web address: download it first, for example with {how}{streamed}."
    if "::" in spelt:
        return f"{path} joins several patterns, which only clip-train and clip-data check stream; name one of them."
    near = next(_spellings(path), None)
    if near is not None:
        return f"{path}: no such file, folder or shard; did you mean {near}?"
    parent = next((folder for folder in path.parents if folder.exists()), None)
    if parent is not None and parent != path.parent:
        missing = path.parents[list(path.parents).index(parent) - 1]
        return f"{path}: no such file, folder or shard; there is no folder {missing}."
    return f"{path}: no such file, folder or shard."


def _hub_name(rest: str) -> str:
    parts = rest.partition("datasets/")[2].split("/")
    return "/".join(parts[:2]) if len(parts) > 1 else "OWNER/NAME"


def _spellings(path: Path) -> Iterator[Path]:
    """Existing paths that a missing one may stand for, the likeliest first."""
    spelt = str(path)
    plain = spelt.strip().strip("'\"")
    without_scheme = plain[5:].lstrip("/") if plain.lower().startswith("file:") else None
    candidates = [plain, os.path.expanduser(plain), unquote(plain), plain.replace("\\", "/")]  # noqa: PTH111
    candidates += [unicodedata.normalize(form, plain) for form in ("NFC", "NFD")]
    if without_scheme is not None:
        candidates += [f"/{unquote(without_scheme)}", unquote(without_scheme)]
    for candidate in candidates:
        if candidate != spelt and candidate and _exists(Path(candidate)):
            yield Path(candidate)
    yield from _siblings(path)


def _siblings(path: Path) -> Iterator[Path]:
    try:
        names = [entry.name for entry in islice(os.scandir(path.parent), _LOOKED_AT) if not entry.name.startswith(".")]
    except OSError:
        return
    folded = path.name.casefold()
    same = [name for name in names if name.casefold() == folded]
    stems = [name for name in names if Path(name).stem.casefold() in (folded, Path(folded).stem)]
    likely = [name for name in sorted(stems) if _may_be_data(path.parent / name)]
    close = difflib.get_close_matches(path.name, [n for n in names if _may_be_data(path.parent / n)], n=1, cutoff=0.75)
    yield from (path.parent / name for name in (*same, *likely, *close))


def _may_be_data(path: Path) -> bool:
    return path.suffix.lower() in (*LIST_SUFFIXES, ".tar", ".txt") or path.is_dir()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def unread_list(folder: Path) -> str | None:
    """One sentence about a file right in a folder that may be its list and is not read; None without one."""
    found = sorted(item for item in islice(folder.iterdir(), _LOOKED_AT) if item.suffix.lower() in _KINDS)
    return next((f"{item} is {_KINDS[item.suffix.lower()]}." for item in found if item.is_file()), None)


def name_a_list(path: Path, lists: Sequence[Path]) -> str:
    """One sentence about a folder whose lists have to be named themselves."""
    splits = {SPLITS[file.stem.lower()]: file for file in reversed(lists) if file.stem.lower() in SPLITS}
    val = splits.get("val") or splits.get("test")
    named = " or ".join(map(str, lists[:_LISTED]))
    if "train" in splits and val:
        named = f"{splits['train']}, and {val} as --val-file"
    return f"{path} is a folder with lists and no data set itself; name a list: {named}."


def _folder(folder: Folder) -> str:
    """A folder without images, which is no data set: the lists in it, else what else lies there."""
    path = folder.path
    lists = [file for file in folder.lists if file.parent == path]
    if lists:
        return name_a_list(path, lists)
    unread = unread_list(path)
    if unread is not None:
        return unread
    counts = folder.not_read(captions=len(folder.captions))
    if not counts:
        return f"{path} is an empty folder; name another."
    named = ", ".join(f"{count:,} {what}" for what, count in islice(counts.items(), _NAMED))
    return f"{path} has no images and no list of pairs, only {named}; name another folder."

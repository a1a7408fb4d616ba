"""Reading an ONNX bundle that is not trusted: every file is checked before a session is made of it."""

import hashlib
import mmap
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pydantic import ValidationError

from clip_core.errors import BundleError
from clip_core.files import replaced
from clip_core.inference.manifest import DATA, FORMAT_VERSION, REQUIRED, TOKENIZER, VISION, Manifest, Precision, Variant
from clip_core.model.onnx_file import check_onnx, files_beside
from clip_core.run.paths import MANIFEST, RunPaths
from clip_core.text import printable

_LARGEST_MANIFEST = 16 * 2**20  # bytes
_MAPPED = 2**20  # bytes from which a file is mapped into memory, not read


@dataclass(frozen=True)
class Bundle:
    """A checked bundle and one of its variants."""

    folder: Path
    manifest: Manifest
    variant: Variant
    stamps: dict[str, "Stamp"] = field(repr=False)  # of the files as they were checked

    @property
    def tokenizer(self) -> Path:
        return self.folder / TOKENIZER

    def file(self, name: str) -> Path:
        return self.folder / name

    def check_unchanged(self) -> None:
        """After ONNX Runtime has read the files by their names: they are still the ones that were checked.

        Raises:
            BundleError: if one was replaced or written to since.
        """
        for name, stamp in self.stamps.items():
            if _stamp(self.folder / name) != stamp:
                raise BundleError(f"{self.folder / name} changed while it was loaded; try again.")


def is_bundle(path: Path) -> bool:
    """Whether the folder looks like a bundle; `open_bundle` checks it."""
    return (path / MANIFEST).exists() or (path / VISION).exists()


def in_place(bundle: Path) -> Path:
    """The folder of a bundle; the old one beside it where an export was killed between its two renames."""
    before = replaced(bundle)
    return before if not os.path.lexists(bundle) and is_bundle(before) else bundle


def find_bundle(path: Path) -> Path:
    """The bundle that `path` means: itself, or that of a run.

    Raises:
        BundleError: if nothing is there.
    """
    path = in_place(path)
    if not path.is_dir():
        raise BundleError(f"there is no folder {path}; give a bundle, or a run that has one.")
    inside = in_place(RunPaths(path).bundle)
    return inside if is_bundle(inside) and not is_bundle(path) else path


def read_manifest(folder: Path) -> Manifest:
    """manifest.json of a bundle.

    Raises:
        BundleError: if it is absent, invalid, or of a later format.
    """
    content = _read(folder, MANIFEST, _LARGEST_MANIFEST)
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in mistake["loc"]) or "the whole file"
        if where == "format_version":
            found = mistake["input"]
            newer = isinstance(found, int) and found > FORMAT_VERSION
            raise BundleError(
                f"{folder / MANIFEST} is of format version {printable(repr(found), 40)}, this clip-tui reads version "
                f"{FORMAT_VERSION}; {'upgrade clip-tui, or ' if newer else ''}export the bundle again."
            ) from None
        raise BundleError(
            f"{folder / MANIFEST} is damaged at {printable(where, 80)} ({printable(mistake['msg'], 120)}); "
            "export the bundle again."
        ) from None


def open_bundle(path: Path, precision: Precision | None = None) -> Bundle:
    """Read and check a bundle and one of its variants; no ONNX Runtime session exists before this returns.

    Args:
        precision: of the variant; None: the bundle's first. Files of other variants are not read.
    Raises:
        BundleError: for a file that is missing, outside the folder, a link, of another size or sha256, or an
            ONNX file that asks for custom operators or outside data.
        BackendError: if the bundle has no such variant.
    """
    folder = path.resolve()
    manifest = read_manifest(folder)
    variant = manifest.variant(precision)
    towers = (variant.vision, variant.text)
    for name in (*towers, *REQUIRED):
        if name not in manifest.files:
            raise BundleError(f"{path / MANIFEST} does not list {name}; export the bundle again.")
    names = manifest.names_of(variant)
    with ThreadPoolExecutor(2) as pool:  # hashes are computed outside of the interpreter's lock
        stamps = dict(zip(names, pool.map(lambda name: _checked(folder, manifest, name), names), strict=True))
    return Bundle(folder, manifest, variant, stamps)


def check_bundle(path: Path) -> Manifest:
    """Read and check every file of a bundle, of all variants.

    Raises:
        BundleError: as `open_bundle`.
    """
    manifest = read_manifest(path.resolve())
    for variant in manifest.variants:
        open_bundle(path, variant.precision)
    return manifest


Stamp = tuple[int, int, int, int, int]  # device, file, size, time of the content, time of any change


def _stamp(path: Path) -> Stamp:
    try:
        facts = path.stat()
    except OSError:
        return (0, 0, 0, 0, 0)
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _checked(folder: Path, manifest: Manifest, name: str) -> Stamp:
    """The stamp of a listed file, if it is what the manifest says and, of an ONNX file, harmless."""
    facts = manifest.files[name]
    with _opened(folder, name) as handle:
        stamp = _stamp(folder / name)
        size = os.fstat(handle.fileno()).st_size
        if name.endswith(DATA) and os.fstat(handle.fileno()).st_nlink > 1:
            raise BundleError(
                f"{folder / name} is a hard link, which weights beside a model may not be; copy the file."
            )
        content = _content(handle) if size == facts.size else b""
        if size != facts.size or hashlib.sha256(content).hexdigest() != facts.sha256:
            raise BundleError(f"{folder / name} is not the file that its manifest describes; export the bundle again.")
    if name.endswith(".onnx"):
        beside = name + DATA
        if beside not in manifest.files:
            check_onnx(content, str(folder / name))
            return stamp
        allowed = beside.rpartition("/")[2]
        for other in files_beside(content, str(folder / name)):
            if other != allowed:
                raise BundleError(
                    f"{folder / name} has weights in {printable(other, 80)!r}; only {allowed} is allowed."
                )
    return stamp


def _content(handle: BinaryIO) -> "bytes | mmap.mmap":
    """The content of an open file, not copied where it is large."""
    if os.fstat(handle.fileno()).st_size < _MAPPED:
        return handle.read()
    return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)


def _read(folder: Path, name: str, largest: int) -> bytes:
    """The first `largest` bytes of a file and one more."""
    with _opened(folder, name) as handle:
        return handle.read(min(os.fstat(handle.fileno()).st_size, largest) + 1)


def _opened(folder: Path, name: str) -> BinaryIO:
    """A regular file inside the folder; reached through no link, except in a hub cache.

    There a snapshot's files are links into the repository's `blobs`; such a link must name a file right in there.
    """
    parts = PurePosixPath(name).parts
    shown = printable(name, 80)
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name:
        raise BundleError(f"{folder / MANIFEST} names {shown!r}, which is outside the bundle; export the bundle again.")
    if str(PurePosixPath(name)) != name:  # another spelling of the same file
        raise BundleError(f"{folder / MANIFEST} names {shown!r}, which is no plain path; export the bundle again.")
    path = folder
    for place, part in enumerate(parts, start=1):
        path = path / part
        mode = _mode(folder, path, shown)
        if stat.S_ISLNK(mode):
            blob = _blob(folder, path) if place == len(parts) else None
            if blob is None:
                raise BundleError(
                    f"{folder / shown} is a link, and only the files of a hub cache may be links, into its own blobs; "
                    f"copy the bundle without links: cp -rL {folder} COPY"
                )
            path, mode = blob, _mode(folder, blob, shown)
    if not stat.S_ISREG(mode):
        raise BundleError(f"{folder / shown} is not a regular file; export the bundle again.")
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)), "rb")
    except OSError as error:
        raise BundleError(f"{folder / shown} cannot be read: {error.strerror}.") from None


def _mode(folder: Path, path: Path, shown: str) -> int:
    try:
        return path.lstat().st_mode
    except OSError:
        raise BundleError(f"{folder} has no {shown}: it is not a complete bundle; export it again.") from None


def _blob(folder: Path, link: Path) -> Path | None:
    """The file in REPOSITORY/blobs that a link in REPOSITORY/snapshots/REVISION, the folder, points to."""
    blobs = folder.parent.parent / "blobs"
    if folder.parent.name != "snapshots" or not stat.S_ISDIR(blobs.lstat().st_mode if blobs.exists() else 0):
        return None
    target = Path(os.path.normpath(link.parent / link.readlink()))
    return target if target.parent == blobs else None

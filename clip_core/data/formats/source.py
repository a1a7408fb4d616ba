"""What a format reads from: the path, the user's options, and its first bytes, each read once."""

import codecs
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self

from clip_core.config import DataConfig
from clip_core.data.formats.folder import Folder, scan
from clip_core.data.pairs import Pair
from clip_core.data.progress import Progress, no_progress
from clip_core.errors import DataError, UsageError

_LOOKED_AT = 1000  # images of a folder that a format is detected by
_HEAD = 65536  # bytes that a format is detected by
_BLOCK = 10_000  # lines between two reports of progress
_MARKS = (  # a mark of UTF-32 begins with one of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


@dataclass(frozen=True)
class ReadOptions:
    """The user's options; the fields are those of `DataConfig`.

    Raises:
        UsageError: if the template has no {} for the class.
    """

    image_root: Path | None = None
    format: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    class_template: str = DataConfig.model_fields["class_template"].default

    def __post_init__(self) -> None:
        if "{}" not in self.class_template:
            said = f"--class-template is {self.class_template!r}; it needs a {{}} for the class"
            raise UsageError(f'{said}, as "a photo of a {{}}".')

    @classmethod
    def of(cls, config: DataConfig) -> Self:
        names = ("image_root", "format", "image_column", "caption_column", "class_template")
        return cls(**{name: getattr(config, name) for name in names})


@dataclass(frozen=True)
class Contents:
    """What a format's reader found; `root` is the folder that the names of the pairs start from."""

    pairs: Sequence[Pair]
    root: Path
    columns: dict[str, str] = field(default_factory=dict)  # taken for "image", "caption" and "split"
    notes: list[str] = field(default_factory=list)  # what was assumed or repaired, a sentence each
    not_read: dict[str, int] = field(default_factory=dict)  # what was left out, in words, and how many


@dataclass(frozen=True)
class Source:
    """A path that may be a data set."""

    path: Path
    options: ReadOptions = ReadOptions()
    progress: Progress = no_progress  # bytes read, of how many

    @cached_property
    def head(self) -> bytes:
        """The first bytes of a file; empty for a folder or a missing file.

        Raises:
            DataError: if the file may not be read.
        """
        if not self.path.is_file():
            return b""
        try:
            with self.path.open("rb") as handle:
                return handle.read(_HEAD)
        except OSError as error:
            raise self._unreadable(error) from None

    @cached_property
    def head_lines(self) -> list[str]:
        """The lines of `head`, without a last one that may be cut; for guesses only."""
        text = self.head.decode(self._encoding, "replace")
        lines = text.splitlines()
        return lines if len(self.head) < _HEAD else lines[:-1]

    @cached_property
    def text(self) -> str:
        """The whole file: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

        Raises:
            DataError: naming the line that is not.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            raise DataError(f"no pair list at {self.path}; correct the path.") from None
        except OSError as error:
            raise self._unreadable(error) from None
        try:
            return content.decode(self._encoding)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise DataError(f"{self.path}, line {line}: not text in UTF-8; save it as UTF-8.") from None

    def lines(self, newline: str) -> Iterator[str]:
        """The lines of the file with their ends, read some at a time.

        Args:
            newline: as `open` takes it.
        Raises:
            DataError: as `text` does.
        """
        return chain.from_iterable(self._blocks(newline))

    def _blocks(self, newline: str) -> Iterator[list[str]]:
        try:
            with self.path.open(encoding=self._encoding, newline=newline) as handle:
                size = os.fstat(handle.fileno()).st_size
                while block := list(islice(handle, _BLOCK)):
                    yield block
                    self.progress(min(os.lseek(handle.fileno(), 0, os.SEEK_CUR), size), size)
        except FileNotFoundError:
            raise DataError(f"no pair list at {self.path}; correct the path.") from None
        except OSError as error:
            raise self._unreadable(error) from None
        except UnicodeError:
            _ = self.text  # names the line
            raise DataError(f"{self.path}: not text in UTF-8; save it as UTF-8.") from None

    @cached_property
    def json(self) -> Any:
        """The whole file as JSON.

        Raises:
            DataError: naming the line where it is invalid.
        """
        try:
            return json.loads(self.text)
        except json.JSONDecodeError as error:
            raise DataError(f"{self.path}, line {error.lineno}: not JSON ({error.msg}); correct the list.") from None
        except (ValueError, RecursionError):
            raise DataError(f"{self.path} is not JSON that can be read; correct the list.") from None

    @cached_property
    def folder(self) -> Folder:
        """What lies below a folder; nothing, for a file.

        Raises:
            DataError: if the folder cannot be read.
        """
        return scan(self.path) if self.path.is_dir() else Folder(self.path)

    @property
    def first_images(self) -> list[Path]:
        """Some images below a folder."""
        return self.folder.images[:_LOOKED_AT]

    @property
    def _encoding(self) -> str:
        head = self.head[:1000]
        marked = next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None)
        if marked is None and len(head) > 3 and b"\0" in head:  # UTF-16 of mostly Latin letters, no mark
            for name, rare in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
                if rare.count(0) > 0.8 * len(rare) and head.count(0) < 0.6 * len(head):
                    return name
        return marked or "utf-8-sig"

    def _unreadable(self, error: OSError) -> DataError:
        return DataError(f"{self.path} cannot be read ({error.strerror}); give a readable file.")

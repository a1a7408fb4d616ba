"""Reading a tokenizer.json that may come from a stranger.

The `tokenizers` library ends the whole process, panics, or computes for ever on some files: a normaliser that lets a
text grow without bound, a character map whose length is a lie, a pattern that backtracks. So a file is tried by a child
when this machine sees it for the first time; what the library raises later, on a text, becomes one sentence.
"""

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import tokenizers

from clip_core.errors import ClipError, TokenizerError
from clip_core.files import read_regular
from clip_core.text import printable
from clip_core.trial import Limits, TrialError, remember, try_first

_SECONDS = 30.0  # of a trial; those of the largest published tokenizers take 3
_BYTES = 2**30  # of a trial, and 40 times the size of the file


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """The library's tokenizer of a tokenizer.json.

    Raises:
        TokenizerError: if it is damaged, or does not pass its trial.
    """
    try:
        content = read_regular(path)
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} is not a tokenizer.json ({printable(str(error), 120)}); give another.") from None
    try_tokenizer(path, content, "json")
    with library_errors(f"{path} is not a tokenizer.json"):
        return tokenizers.Tokenizer.from_str(text)


def try_tokenizer(path: Path, content: bytes, kind: Literal["json", "sentencepiece"]) -> None:
    """Let a child read texts with a tokenizer that this machine has not used.

    Raises:
        TokenizerError: if it fails.
    """
    limits = Limits(_SECONDS, _BYTES + 40 * len(content))
    try:
        try_first(_key(content), "clip_core.data.tokenizer_trial", f"{kind}\n".encode() + content, limits)
    except TrialError as error:
        raise TokenizerError(f"{path} cannot be used as a tokenizer ({error}); give another.") from None


def remember_own(content: str) -> None:
    """Note that a tokenizer.json was written here, so that it is not tried."""
    remember(_key(content.encode("utf-8")))


def _key(content: bytes) -> str:
    return f"tokenizers {tokenizers.__version__} {hashlib.sha256(content).hexdigest()}"


@contextmanager
def library_errors(what: str, *, may_panic: bool = True) -> Iterator[None]:
    """Whatever the tokenizers library raises inside becomes a TokenizerError, `what (reason)`; a ValueError stays.

    Args:
        may_panic: drop what a panic prints to standard error by itself; all other threads write there after the block.
    """
    if may_panic:
        _panics.enter()
    panicked = False
    try:
        yield
    except (ClipError, ValueError):
        raise
    except BaseException as error:  # the library raises plain Exceptions, and panics are no Exceptions at all
        panicked = type(error).__name__ == "PanicException"
        if not isinstance(error, Exception) and not panicked:
            raise
        raise TokenizerError(f"{what} ({printable(str(error), 120)}); give another.") from None
    finally:
        if may_panic:
            _panics.leave(panicked)


class _Panics:
    """Standard error while the library computes: written once it is known that there was no panic."""

    def __init__(self) -> None:
        self._lock, self._inside, self._panicked = threading.Lock(), 0, False
        self._kept, self._stderr = -1, -1  # descriptors

    def enter(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside > 1:
                return
            try:
                if self._kept < 0:
                    with tempfile.TemporaryFile() as kept:
                        self._kept = os.dup(kept.fileno())
                self._stderr = os.dup(2)
                os.dup2(self._kept, 2, inheritable=True)
            except OSError:  # without standard error or a place for files, it is as it is
                self._stderr = -1

    def leave(self, panicked: bool) -> None:
        with self._lock:
            self._inside -= 1
            self._panicked |= panicked
            if self._inside or self._stderr < 0:
                return
            os.dup2(self._stderr, 2, inheritable=True)
            os.close(self._stderr)
            size = os.lseek(self._kept, 0, os.SEEK_END)
            if size:
                if not self._panicked:
                    os.write(2, os.pread(self._kept, size, 0))
                os.ftruncate(self._kept, 0)
                os.lseek(self._kept, 0, os.SEEK_SET)
            self._panicked = False


_panics = _Panics()

"""The lines that come to the end of a growing file."""

from pathlib import Path

from clip_core.files import open_regular

FIRST_BYTES = 256 * 1024  # of an existing file, only so much of its end is read


class Tail:
    """Gives each whole line once; starts again when the file became shorter."""

    def __init__(self, path: Path, first_bytes: int = FIRST_BYTES) -> None:
        self.path = path
        self._first_bytes = first_bytes
        self._offset: int | None = None
        self._torn = b""

    def new_lines(self, *, ended: bool = False) -> list[str]:
        """The lines since the last call; with `ended`, a last line without newline counts as well."""
        try:
            with open_regular(self.path) as handle:
                size = handle.seek(0, 2)
                if self._offset is None:
                    self._offset = max(0, size - self._first_bytes)
                elif size < self._offset:
                    self._offset, self._torn = 0, b""
                handle.seek(self._offset)
                block = handle.read()
        except FileNotFoundError:
            self._offset = 0  # whatever it will hold when it comes is new
            return []
        except OSError:  # not a regular file, or one that may not be read
            return []
        self._offset += len(block)
        whole, _, self._torn = (self._torn + block).rpartition(b"\n")
        if ended and self._torn:
            whole, self._torn = whole + b"\n" * bool(whole) + self._torn, b""
        return [_visible(line) for line in whole.decode("utf-8", "replace").split("\n")] if whole else []


def _visible(line: str) -> str:
    """What a terminal would show of a line that was rewritten with carriage returns: its last part."""
    return line.rstrip("\r").rpartition("\r")[2]

"""What a user chose and the app remembers: theme, order of the runs, the way of images, the draft of a new run."""

import os
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from clip_core.files import read_json, write_json
from clip_tui.images import Way


class Settings(BaseModel):
    """Settings in a JSON file; without a path they last as long as the app.

    A file that cannot be read counts as none: nothing in it is worth refusing to start for.
    """

    model_config = ConfigDict(extra="ignore", validate_assignment=True)

    theme: str | None = None
    sort_runs: str = "latest"
    images: Way = Way.HALFBLOCKS
    draft: dict[str, Any] = {}  # what was typed into the form of a new run, by `Field.id`
    draft_run: Path | None = None  # the run that was started with it

    _path: Path | None = PrivateAttr(None)

    @classmethod
    def load(cls, path: Path) -> Self:
        try:
            settings = cls.model_validate(read_json(path) or {})
        except ValidationError:
            settings = cls()
        settings._path = path
        return settings

    def save(self) -> str | None:
        """Write the file; the reason where it cannot be written."""
        if self._path is None:
            return None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, self.model_dump(mode="json"))
        except OSError as error:
            return f"{self._path} cannot be written ({error.strerror}), so settings are not kept."
        return None


def settings_file() -> Path:
    """Where this user's settings are."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "clip-tui" / "settings.json"

"""Images of the app's screens for README and docs, as SVG.

python -m benchmarks.screens RUN OUT.svg [PAGE] [WIDTH HEIGHT] [KEY ...]

for example: python -m benchmarks.screens runs/shapes docs/screen.svg live 140 44 w n
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from clip_tui.app import ClipApp
from clip_tui.widgets.image_view import ImageView

SECONDS = 30.0  # until the run is read and its images are drawn


async def draw(run: Path, out: Path, page: str, size: tuple[int, int], keys: Sequence[str]) -> None:
    """Open a run, press keys, and write the screen."""
    app = ClipApp(run.parent)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        app.open_run(run, page)
        for _ in range(round(SECONDS / 0.1)):
            await pilot.pause(0.1)
            images = [view for view in app.screen.query(ImageView) if view.display and view.path is not None]
            if app.snapshot and app.snapshot.complete and app.snapshot.probe and all(view._strips for view in images):
                break
        await pilot.press(*keys)
        await pilot.pause(1.5)
        out.write_text(app.export_screenshot(title="clip-tui"), encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    run, out, *rest = arguments
    page = rest[0] if rest else "live"
    size = (int(rest[1]), int(rest[2])) if len(rest) > 2 else (140, 44)
    asyncio.run(draw(Path(run), Path(out), page, size, rest[3:]))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Images of the app's screens for README and docs, as SVG.

python -m benchmarks.screens RUN OUT.svg [PAGE] [WIDTH HEIGHT] [KEY ...]
python -m benchmarks.screens RUN DIRECTORY    every screen of docs/tui.md

Paths of this machine are shortened to what is below the working directory; one that is left is reported.

A key is a name of Textual's or "text:WORDS", which types them; "wait:WORDS" waits until the screen shows them.
For example:
python -m benchmarks.screens runs/shapes live.svg live 140 44 w n
"""

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from clip_tui.app import ClipApp
from clip_tui.widgets.image_view import ImageView

_FOREIGN = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|mnt|opt|var)/[^<\s]*")
SECONDS = 20.0  # until the run is read, its images are drawn, or a model has answered

SMALL, LARGE = (80, 24), (120, 36)  # every cell of an image has its own colours, hence bytes
QUERY = ("slash", "ctrl+u", "text:a red circle", "enter", "wait: ms")
SCREENS: dict[str, tuple[str, tuple[int, int], tuple[str, ...]]] = {
    "live": ("live", (140, 44), ("w", "n")),
    "runs": ("live", LARGE, ("1",)),
    "data": ("data", SMALL, ()),
    "findings": ("data", SMALL, ("v",)),
    "retrieve": ("retrieve", SMALL, QUERY),
    "classify": ("classify", (120, 30), ("s", "wait:accuracy")),
    "logs": ("logs", LARGE, ()),
    "export": ("export", LARGE, ()),
    "new-run": ("live", LARGE, ("1", "n")),
    "comparison": ("live", LARGE, ("1", "wait:Runs", "space", "down", "space", "c")),
}


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
        for key in keys:
            kind, _, words = key.partition(":")
            if kind == "wait":
                for _ in range(round(SECONDS / 0.1)):
                    if words in _text(app):
                        break
                    await pilot.pause(0.1)
            else:
                await pilot.press(
                    *([key] if kind != "text" else ["space" if letter == " " else letter for letter in words])
                )
        await pilot.pause(1.5)
        svg = _without_paths(_smaller(app.export_screenshot(title="clip-tui")))
        for path in sorted(set(_FOREIGN.findall(svg))):
            print(f"{out.name} shows a path of this machine: {path}", file=sys.stderr)
        out.write_text(svg, encoding="utf-8")


def _without_paths(svg: str) -> str:
    """Without the folders that only this machine has."""
    for folder, name in ((Path.cwd(), ""), (Path(sys.prefix), "venv/"), (Path.home(), "~/")):
        svg = svg.replace(f"{escape(str(folder))}/", name)
    return svg


def _smaller(svg: str) -> str:
    """Half the bytes, the same image: what Rich repeats in every rectangle and text is written once, or left out."""
    svg = re.sub(r"terminal-\d+-", "t-", svg)
    svg = re.sub(r'<clipPath id="t-line-\d+">.*?</clipPath>\s*| clip-path="url\(#t-line-\d+\)"', "", svg, flags=re.S)
    svg = svg.replace(' shape-rendering="crispEdges"', "").replace(
        "<style>", "<style> rect { shape-rendering: crispEdges }", 1
    )
    svg = re.sub(r' textLength="[\d.]+"([^>]*>.</text>)', r"\1", svg)  # of a single sign
    return svg.replace("><rect", ">\n<rect").replace("><text", ">\n<text")


def _text(app: ClipApp) -> str:
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


def main(arguments: Sequence[str]) -> None:
    run, out, *rest = arguments
    if not out.endswith(".svg"):
        Path(out).mkdir(parents=True, exist_ok=True)
        for name, (page, size, keys) in SCREENS.items():
            asyncio.run(draw(Path(run), Path(out) / f"{name}.svg", page, size, keys))
        return
    page = rest[0] if rest else "live"
    size = (int(rest[1]), int(rest[2])) if len(rest) > 2 else (140, 44)
    asyncio.run(draw(Path(run), Path(out), page, size, rest[3:]))


if __name__ == "__main__":
    main(sys.argv[1:])

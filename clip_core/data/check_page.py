"""The findings of `clip-data check` as one HTML page, with contact sheets of small JPEGs inside it."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from clip_core.data.check import Example, Finding
from clip_core.data.preprocess import load_reduced
from clip_core.errors import DataError
from clip_core.text import printable

_SIDE = 128
_CAPTION = 160  # characters shown
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
td, th { padding: .1rem .9rem .1rem 0; text-align: left; vertical-align: top; }
.sheet { display: flex; flex-wrap: wrap; gap: .8rem; }
figure { margin: 0; padding: .5rem; border: 1px solid #8884; border-radius: .4rem; max-width: 36rem; }
.row { display: flex; gap: .4rem; }
.item { width: 8.2rem; overflow-wrap: anywhere; font-size: .8rem; }
img { max-width: 8rem; max-height: 8rem; display: block; background: #8882; }
figcaption, .name { font-size: .75rem; opacity: .75; }
"""


ReadImage = Callable[[str], bytes | None]


def from_disk(image: str) -> None:
    """For images that are where their path says."""


def html_page(title: str, summary: Mapping[str, str], findings: Sequence[Finding], read: ReadImage = from_disk) -> str:
    """The whole page. It needs no other file, runs no script and loads nothing; every text of the data is escaped.

    Args:
        title: the data set.
        summary: rows of the table at the top, label -> text.
        findings: as in the report.
        read: gives the bytes of an image that is not on this disk by its path; None for any other.
    """
    sections = [_section(finding, read) for finding in findings]
    return page(title, summary, "".join(sections) or "<p>Nothing was found.</p>")


def page(title: str, summary: Mapping[str, str], body: str) -> str:
    """A page of one file with a title, a table of the summary, and a body of HTML, whose texts are escaped already."""
    rows = "".join(
        f"<tr><th>{escaped(name)}</th><td>{escaped(str(text), 300)}</td></tr>\n" for name, text in summary.items()
    )
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8>\n"
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}">\n'
        f"<title>{escaped(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<h1>{escaped(title, 300)}</h1>\n<table>\n{rows}</table>\n{body}</html>\n"
    )


def _section(finding: Finding, read: ReadImage) -> str:
    left_out = " Left out by flags.json." if finding.left_out else ""
    more = f" The first {len(finding.examples)} are shown." if finding.count > len(finding.examples) else ""
    figures = "".join(figure(example, read) for example in finding.examples)
    return (
        f"<h2>{escaped(finding.title)}: {finding.count:,}</h2>\n"
        f"<p>{escaped(finding.text, 300)}. What to do: {escaped(finding.advice, 300)}.{left_out}{more}</p>\n"
        f"<div class=sheet>\n{figures}</div>\n"
    )


def figure(example: Example, read: ReadImage = from_disk) -> str:
    """Images side by side with their captions, and the note below."""
    items = "".join(_items(example, read))
    note = f"<figcaption>{escaped(example.note)}</figcaption>" if example.note else ""
    return f"<figure><div class=row>{items}</div>{note}</figure>\n"


def _items(example: Example, read: ReadImage) -> Iterator[str]:
    if not example.images:
        yield "".join(f"<div class=item>{escaped(caption)}</div>" for caption in example.captions)
        return
    for path, caption in zip(example.images, example.captions, strict=True):
        name = f"<div class=name>{escaped(Path(path).name)}</div>"
        yield f"<div class=item>{_thumbnail(path, read)}{escaped(caption)}{name}</div>"


def _thumbnail(path: str, read: ReadImage) -> str:
    try:
        content = thumbnail(path, _SIDE, read(path))
    except DataError:  # it was readable a moment ago
        return "<em>unreadable</em>"
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(content).decode()}">'


def thumbnail(path: str, side: int, content: bytes | None = None) -> bytes:
    """A small JPEG of an image, and of its content where that was read already.

    Raises:
        ImageError: if it cannot be decoded.
    """
    image, _ = load_reduced(path, side, lambda read: None, content)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def escaped(text: str, limit: int = _CAPTION) -> str:
    """A text of the data as HTML: printable, cut and escaped."""
    return escape(printable(text, limit).encode("utf-8", "replace").decode())

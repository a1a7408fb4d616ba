"""The query line: texts and images, joined by ` + ` and ` - `, as weighted terms."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clip_tui.gallery import Gallery

_QUOTED = re.compile(r'"([^"]*)"')
_JOINT = re.compile(r"\s([+-])\s")
_WEIGHT = re.compile(r"(\d+(?:\.\d+)?)\s*\*\s*(.+)", re.DOTALL)
LARGEST = 100.0


@dataclass(frozen=True)
class Term:
    """A text, or an image where `image` is set; a negative weight searches away from it."""

    text: str
    weight: float = 1.0
    image: str | None = None

    def asked(self) -> dict[str, Any]:
        """As the inference server takes it."""
        what = {"text": self.text} if self.image is None else {"image": self.image}
        return what | {"weight": self.weight}


def parse_query(typed: str, gallery: Gallery) -> list[Term]:
    """`a dog + at night - 0.5*grass` as terms; what is in double quotes is one text; a path is an image.

    A plus or a minus joins terms only with a space on both sides, so `black-and-white` is one word.
    """
    quoted: list[str] = []

    def hide(match: re.Match[str]) -> str:
        quoted.append(match.group(1))
        return f"\0{len(quoted) - 1}\0"

    parts = _JOINT.split(" " + _QUOTED.sub(hide, typed.replace("\0", "")).strip())
    signs = ["+", *parts[1::2]]
    terms: list[Term] = []
    for sign, part in zip(signs, parts[::2], strict=True):
        part = part.strip()
        if sign == "+" and not terms and part.startswith("- "):
            sign, part = "-", part[2:].strip()
        term = _term(part, quoted, -1.0 if sign == "-" else 1.0, gallery)
        if term is not None:
            terms.append(term)
    return terms


def _term(part: str, quoted: Sequence[str], sign: float, gallery: Gallery) -> Term | None:
    weight = sign
    weighted = _WEIGHT.fullmatch(part)
    if weighted:
        weight, part = sign * min(LARGEST, float(weighted.group(1))), weighted.group(2).strip()
    text = re.sub(r"\0(\d+)\0", lambda match: quoted[int(match.group(1))], part).strip()
    if not text:
        return None
    return Term(text, weight, gallery.find(text) if "\0" not in part and gallery.is_image(text) else None)

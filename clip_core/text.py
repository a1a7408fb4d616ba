"""Text that came from a file, made safe for a terminal; captions made comparable, and those that are keywords."""

import unicodedata

# Characters that move the cursor, recolour, reverse or hide text: C0/C1 controls, bidi overrides, line separators.
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
_FEWEST_PARTS, _MOST_WORDS = 3, 3  # of a list of keywords, and of a part of one; clauses of a sentence are longer
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str, limit: int | None = None) -> str:
    """`text` on one line without control characters, cut to `limit` characters; never markup, never an escape."""
    safe = "".join(
        " " if c in "\n\r\t" else "" if unicodedata.category(c) in _UNSAFE_CATEGORIES or c in _BIDI else c for c in text
    )
    return safe if limit is None or len(safe) <= limit else safe[: max(limit - 1, 0)] + "…"


def plural(count: int, noun: str) -> str:
    """`1 pair`, `2,000 pairs`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def normalise_caption(caption: str) -> str:
    """The form in which two captions count as the same: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", caption).casefold().split())


def keywords(caption: str) -> list[str] | None:
    """The parts of a caption such as "late, early, time"; None for one that is no list."""
    parts = [part.strip() for part in caption.split(",")]
    listed = len(parts) >= _FEWEST_PARTS and all(0 < len(part.split()) <= _MOST_WORDS for part in parts)
    return parts if listed else None

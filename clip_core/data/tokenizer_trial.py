"""What a child does with a stranger's tokenizer: read it, and let it read texts that make a hostile one go wrong.

As a program: `python -m clip_core.data.tokenizer_trial`, by clip_core/trial.py; the task is a line, `json` or
`sentencepiece`, and then the content of the file.
"""

import json
from typing import Any

import tokenizers

from clip_core.data.sentencepiece import build_sentencepiece
from clip_core.trial import run_trial

_MOST_GROWTH = 256.0  # that a normaliser may let a text grow; those of published tokenizers stay below 20
_DEEPEST = 16
_MOST_LETTERS = 400  # of the file's patterns that are tried
_RUN, _LONG_RUN = 48, 4096  # times that a letter is repeated: for patterns that backtrack, and that are quadratic
_TEXTS = (
    "",
    " ",
    "a photo of a cat",
    "A Photo, of THE cat's 3 kittens; 42% off! http://a.b/c?d=e&f <b>x</b> #tag @name",
    "Ein Zug über die Brücke — café, naïve, coöperate ﬁ ½ №",
    "кошка на окне. γάτα στο παράθυρο. חתול על החלון. قطة على النافذة.",
    "खिड़की पर बिल्ली。一只猫坐在窗台上。窓辺の猫。창가의 고양이. แมวบนหน้าต่าง",
    "🐈‍⬛👩‍👩‍👧‍👦🇫🇷 ☃\ufe0f \u200d\u200b\ufeff\u00ad\u2028\x00\x1b\x7f\ufffd\U0010ffff",
    "e\u0301\u0301\u0301 \u1100\u1161\u11a8 \ud7a3 ǆ ſ ẞ İ ı",
)


def work(task: bytes) -> None:
    """
    Raises:
        BaseException: whatever the library raises, or ValueError for a normaliser without bound.
    """
    kind, _, content = task.partition(b"\n")
    if kind == b"sentencepiece":
        inner = build_sentencepiece(content)
    else:
        inner = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    if inner.normalizer is not None and _growth(json.loads(inner.normalizer.__getstate__())) > _MOST_GROWTH:
        raise ValueError("its normaliser lets a caption grow without bound")
    inner.encode_special_tokens = True  # as `Tokenizer` has it
    inner.no_truncation()
    inner.no_padding()
    letters = dict.fromkeys(f" \na0A.{_pattern_letters(inner)}")
    runs = [run for letter in letters for run in (letter * _RUN, letter * _RUN + "☃")]
    for text in [*_TEXTS, *runs, *(letter * _LONG_RUN for letter in list(letters)[:8])]:
        inner.encode(text)


def _pattern_letters(inner: tokenizers.Tokenizer) -> str:
    """The letters of the patterns in a tokenizer: runs of them are what its patterns fit or almost fit."""
    found: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            found.extend(text for text in (value.get("String"), value.get("Regex")) if isinstance(text, str))
            for each in value.values():
                look(each)
        elif isinstance(value, list):
            for each in value:
                look(each)

    for part in (inner.normalizer, inner.pre_tokenizer):
        if part is not None:
            look(json.loads(part.__getstate__()))
    return "".join(dict.fromkeys("".join(found)))[:_MOST_LETTERS]


def _growth(normaliser: dict[str, Any], depth: int = 0) -> float:
    """By how much a text may grow, as a factor; infinite where that cannot be said."""
    kind = normaliser.get("type")
    if kind == "Sequence":
        factor = 1.0 if depth < _DEEPEST else float("inf")
        for step in normaliser["normalizers"]:
            factor *= _growth(step, depth + 1)
        return factor
    if kind == "Replace":
        pattern, content = normaliser["pattern"], len(normaliser["content"].encode())
        if pattern.get("String"):
            return max(1.0, content / len(pattern["String"].encode()))
        return 1.0 + content  # a pattern may fit between any two letters
    if kind == "Prepend":
        return 1.0 + len(normaliser["prepend"])
    return 1.0


if __name__ == "__main__":
    run_trial(work)

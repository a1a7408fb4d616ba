"""Flickr8k and Flickr30k as they are published: `1000.jpg#0<tab>A dog .` or `1000.jpg| 0| A dog .`, one caption a line.

(The third spelling, a CSV file with the columns image and caption, is a table like any other.)
Source: Hodosh et al. 2013; Young et al. 2014.
"""

import re

from clip_core.data.formats.collect import Collector, find_root, folders_beside
from clip_core.data.formats.source import Contents, Source
from clip_core.errors import DataError

SHAPE = "a Flickr8k or Flickr30k list, 1000.jpg#0<tab>a dog or 1000.jpg| 0| a dog"
_TOKEN = re.compile(r"(?P<image>[^\t]*\.\w+)#\d+\t(?P<caption>.*)")
# The published file has one line whose second bar is missing.
_BARS = re.compile(r"(?P<image>[^|]*\.\w+)\s*\|\s*\d+\s*[|\s]\s*(?P<caption>.*)")
_HEADER = re.compile(r"image_name\s*\|\s*comment_number\s*\|\s*comment\s*", re.IGNORECASE)
_SAMPLE = 20


def detect(source: Source) -> str | None:
    first = [line for line in source.head_lines if line.strip()][:2]
    if not first:
        return None
    if _TOKEN.fullmatch(first[0]):
        return "its lines are IMAGE#NUMBER, a tab, and a caption"
    if _HEADER.fullmatch(first[0]) or all(_BARS.fullmatch(line) and line.count("|") == 2 for line in first):
        return "its lines are IMAGE| NUMBER| CAPTION"
    return None


def read(source: Source) -> Contents:
    """Every line that is not blank, but the header.

    Raises:
        DataError: if no line is in either spelling.
    """
    numbered = [
        (number, line.strip())
        for number, line in enumerate(source.text.split("\n"), start=1)
        if line.strip() and not _HEADER.fullmatch(line.strip())
    ]
    matches = [(number, _TOKEN.fullmatch(line) or _BARS.fullmatch(line)) for number, line in numbered]
    first = [match["image"].strip() for _, match in matches if match]
    if not first:
        raise DataError(f"{source.path} holds no pairs; it should be {SHAPE}.")
    root = source.options.image_root or find_root(folders_beside(source.path), first[:_SAMPLE])
    collector = Collector(root)
    for entry, (number, match) in enumerate(matches, start=1):
        problem = None if match else "it is not an image, a number and a caption"
        image, caption = (match["image"].strip(), match["caption"]) if match else ("", "")
        collector.add(entry, image, caption, f"line {number}", problem)
    return collector.contents(source.path)

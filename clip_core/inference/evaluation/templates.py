"""Prompt templates: CLIP's 80 for ImageNet, and those of a file."""

from pathlib import Path

from clip_core.errors import UsageError
from clip_core.files import read_regular
from clip_core.text import printable

# The ensemble of Radford et al. 2021, section 3.1.4, as published with CLIP's ImageNet results.
IMAGENET = """\
a bad photo of a {}.
a photo of many {}.
a sculpture of a {}.
a photo of the hard to see {}.
a low resolution photo of the {}.
a rendering of a {}.
graffiti of a {}.
a bad photo of the {}.
a cropped photo of the {}.
a tattoo of a {}.
the embroidered {}.
a photo of a hard to see {}.
a bright photo of a {}.
a photo of a clean {}.
a photo of a dirty {}.
a dark photo of the {}.
a drawing of a {}.
a photo of my {}.
the plastic {}.
a photo of the cool {}.
a close-up photo of a {}.
a black and white photo of the {}.
a painting of the {}.
a painting of a {}.
a pixelated photo of the {}.
a sculpture of the {}.
a bright photo of the {}.
a cropped photo of a {}.
a plastic {}.
a photo of the dirty {}.
a jpeg corrupted photo of a {}.
a blurry photo of the {}.
a photo of the {}.
a good photo of the {}.
a rendering of the {}.
a {} in a video game.
a photo of one {}.
a doodle of a {}.
a close-up photo of the {}.
a photo of a {}.
the origami {}.
the {} in a video game.
a sketch of a {}.
a doodle of the {}.
a origami {}.
a low resolution photo of a {}.
the toy {}.
a rendition of the {}.
a photo of the clean {}.
a photo of a large {}.
a rendition of a {}.
a photo of a nice {}.
a photo of a weird {}.
a blurry photo of a {}.
a cartoon {}.
art of a {}.
a sketch of the {}.
a embroidered {}.
a pixelated photo of a {}.
itap of the {}.
a jpeg corrupted photo of the {}.
a good photo of a {}.
a plushie {}.
a photo of the nice {}.
a photo of the small {}.
a photo of the weird {}.
the cartoon {}.
art of the {}.
a drawing of the {}.
a photo of the large {}.
a black and white photo of a {}.
the plushie {}.
a dark photo of a {}.
itap of a {}.
graffiti of the {}.
a toy {}.
itap of my {}.
a photo of a cool {}.
a photo of a small {}.
a tattoo of the {}.
""".splitlines()


def read_templates(file: Path) -> list[str]:
    """The templates of a text file, one in a line; {} or, as CLIP_benchmark writes it, {c} is the class.

    Raises:
        UsageError: if it cannot be read, or a line has no {}.
    """
    try:
        lines = read_regular(file).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise UsageError(f"the templates in {printable(str(file))} cannot be read: {reason}.") from None
    templates = []
    for number, line in enumerate(lines, start=1):
        template = line.strip().replace("{c}", "{}")
        if template and "{}" not in template:
            where = f"{printable(str(file))}, line {number}"
            raise UsageError(f"{where}: the template {printable(template, 80)!r} has no {{}} where the class goes.")
        if template:
            templates.append(template)
    if not templates:
        raise UsageError(f"{printable(str(file))} has no template; write one in each line, such as: a photo of a {{}}.")
    return list(dict.fromkeys(templates))

"""COCO captions: one JSON object with `images` (id, file_name) and `annotations` (image_id, caption).

Source: Chen et al. 2015, Microsoft COCO Captions.
"""

import re
from typing import Any

from clip_core.data.formats.collect import Collector, find_root, folders_beside, shown
from clip_core.data.formats.source import Contents, Source
from clip_core.errors import DataError

SHAPE = 'COCO captions {"images": [...], "annotations": [...]}'
_SAMPLE = 20


def detect(source: Source) -> str | None:
    if source.path.suffix.lower() != ".json" or not re.match(rb"(\xef\xbb\xbf)?\s*\{", source.head):
        return None
    value = source.json
    listed = isinstance(value, dict) and {"images", "annotations"} <= value.keys()
    return "it is a JSON object with images and annotations" if listed else None


def read(source: Source) -> Contents:
    """Every annotation with its image, which may lie beside the file or beside the file's folder.

    Raises:
        DataError: if it is no such object, or its annotations have no captions (as those of boxes have not).
    """
    images, annotations = (_objects(source, key) for key in ("images", "annotations"))
    if not any("caption" in annotation for annotation in annotations):
        raise DataError(f"{source.path}: its annotations have no captions; give the captions_*.json of the set.")
    files = {_key(image.get("id")): image.get("file_name") for image in images}
    folders = folders_beside(source.path)
    if source.path.parent.name:  # annotations/captions_val2017.json has its images in ../val2017
        folders += folders_beside(source.path.parent)
    first = [name for name in (files[key] for key in list(files)[:_SAMPLE]) if isinstance(name, str)]
    root = source.options.image_root or find_root(folders, first)
    collector = Collector(root)
    for entry, annotation in enumerate(annotations, start=1):
        key = _key(annotation.get("image_id"))
        problem = None if key in files else f"there is no image with the id {shown(annotation.get('image_id'))}"
        collector.add(entry, files.get(key), annotation.get("caption"), f"annotation {entry}", problem)
    return collector.contents(source.path, {"image": "images.file_name", "caption": "annotations.caption"})


def _objects(source: Source, key: str) -> list[dict[str, Any]]:
    values = source.json.get(key) if isinstance(source.json, dict) else None
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise DataError(f"{source.path} has no list of {key}; it should be {SHAPE}.")
    return values


def _key(value: object) -> str:
    """An id, which some files spell as a number in one place and as a text in another."""
    return str(value)

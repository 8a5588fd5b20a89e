"""Labelme: for each image a JSON file with one mask for each class."""

import base64
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from cam_pipeline.export.label_maps import IGNORED, LabelMap, in_box, regions_of
from cam_pipeline.ops.ignore import IGNORE_INDEX


def write_labelme(maps: Iterable[LabelMap], classes: Sequence[str], folder: Path, final: Path) -> int:
    """`<id>.json` for each image, with the image's path from there. Undecided pixels are a mask `__ignore__`."""
    names = {**dict(enumerate(classes, 1)), IGNORE_INDEX: IGNORED}
    count = 0
    for one in maps:
        path = folder / f"{one.id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = os.path.relpath(one.image.resolve(), (final / f"{one.id}.json").resolve().parent)
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": [_shape(one.labels == label, names[label]) for label in regions_of(one.labels)],
            "imagePath": Path(image).as_posix(),
            "imageData": None,
            "imageHeight": one.labels.shape[0],
            "imageWidth": one.labels.shape[1],
        }
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        count += 1
    return count


def _shape(region: Any, name: str) -> dict[str, Any]:
    """A region (H, W) as a mask: its bounding box, by the first and the last pixel, and a PNG of what is in it."""
    left, top, inside = in_box(region)
    file = io.BytesIO()
    Image.fromarray(inside).save(file, "PNG")
    return {
        "label": name,
        "points": [[left, top], [left + inside.shape[1] - 1, top + inside.shape[0] - 1]],
        "group_id": None,
        "description": "",
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(file.getvalue()).decode(),
    }

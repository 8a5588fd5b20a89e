"""COCO instances: for each image and class one annotation by run lengths, in one file."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cam_pipeline.data.coco_masks import pycocotools
from cam_pipeline.export.label_maps import IGNORED, LabelMap, regions_of
from cam_pipeline.ops.ignore import IGNORE_INDEX

FILE = "instances.json"


def write_coco(maps: Iterable[LabelMap], classes: Sequence[str], folder: Path, final: Path) -> int:
    """`instances.json`: category 1 is the first class. Undecided pixels are a crowd of the category `__ignore__`.

    `file_name` is the path below the data root, sizes and runs are those of the upright image. Raises LibraryMissing
    without pycocotools.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, one in enumerate(maps, 1):
        height, width = one.labels.shape
        images.append({"id": number, "file_name": one.name, "height": height, "width": width})
        for label in regions_of(one.labels):
            annotation = _annotation(one.labels == label, label)
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    names = dict(enumerate(classes, 1))
    if any(annotation["category_id"] == IGNORE_INDEX for annotation in annotations):
        names[IGNORE_INDEX] = IGNORED
    categories = [{"id": label, "name": name, "supercategory": ""} for label, name in names.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return len(images)


def _annotation(region: Any, label: int) -> dict[str, Any]:
    height, width = region.shape
    runs = pycocotools().encode(np.asfortranarray(region, dtype=np.uint8))
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "category_id": label,
        "segmentation": {"size": [height, width], "counts": runs["counts"].decode()},
        "area": int(region.sum()),
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "iscrowd": int(label == IGNORE_INDEX),
    }

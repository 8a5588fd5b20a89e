"""YOLO segmentation: for each image a text file, a line for each connected part of a class."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cam_pipeline.export.label_maps import LabelMap, regions_of
from cam_pipeline.export.outlines import outlines
from cam_pipeline.ops.ignore import IGNORE_INDEX


def write_yolo(maps: Iterable[LabelMap], classes: Sequence[str], folder: Path, final: Path) -> int:
    """`labels/<id>.txt` for each image, and `data.yaml`, in which class 0 is the first, without background.

    The format has no undecided pixels: they become background.
    """
    names = "".join(f"  {number}: {json.dumps(name, ensure_ascii=False)}\n" for number, name in enumerate(classes))
    (folder / "data.yaml").write_text(f"path: .\ntrain: images\nval: images\nnames:\n{names}", encoding="utf-8")
    count = 0
    for one in maps:
        path = folder / "labels" / f"{one.id}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(_lines(one)), encoding="utf-8")
        count += 1
    return count


def _lines(one: LabelMap) -> Iterator[str]:
    height, width = one.labels.shape
    for label in regions_of(one.labels):
        for outline in outlines(one.labels == label) if label != IGNORE_INDEX else ():
            points = " ".join(f"{x / width:.7g} {y / height:.7g}" for x, y in outline)
            yield f"{label - 1} {points}\n"

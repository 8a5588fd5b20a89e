"""Labelme: a JSON file for each image, whose polygons and masks are its regions."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.corrections import Patch, Patches
from cam_pipeline.data.readers.labelme import labelme_shapes, load_labelme, size_of
from cam_pipeline.data.runs import run_lengths
from cam_pipeline.data.strokes import Stroke


def read_labelmes(place: Path, classes: Sequence[str], problems: Problems) -> Iterator[tuple[str, Patches]]:
    """The files of a folder, by the path below it; a single file by its image's path.

    What no shape covers is background, shapes labelled `__ignore__` leave pixels open.
    """
    for path in sorted(place.rglob("*.json")) if place.is_dir() else [place]:
        if any(part.startswith(".") for part in path.relative_to(place).parts):
            continue
        content = load_labelme(path)
        patches = []
        for shape in labelme_shapes(content, path, classes, problems, ignored=True):
            if not isinstance(shape, Stroke) or not shape.filled:
                where = f"{path}: points and lines are no regions; draw polygons or masks"
                problems.warn("shape that is left out", where)
            else:
                patches.append(_patch(shape))
        name = path.relative_to(place).with_suffix("").as_posix() if place.is_dir() else str(content.get("imagePath"))
        yield name, Patches(tuple(patches), size_of(content), source=str(path))


def _patch(stroke: Stroke) -> Patch:
    if not stroke.bitmap:
        return Patch(stroke.label, polygon=np.array(stroke.points, np.float64).tobytes())
    with Image.open(io.BytesIO(stroke.bitmap)) as image:
        region = np.asarray(image.convert("L")) > 0
    left, top = (int(np.floor(place)) for place in stroke.points[0])
    runs = np.array(run_lengths(region.ravel()), np.uint32).tobytes()
    return Patch(stroke.label, runs=runs, box=(left, top, region.shape[1], region.shape[0]))

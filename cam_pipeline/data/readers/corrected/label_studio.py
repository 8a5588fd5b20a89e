"""Label Studio's JSON export: regions of the brush and polygons."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.corrections import Patch, Patches
from cam_pipeline.data.label_studio_runs import brush_region
from cam_pipeline.data.readers.corrected.names import label_named
from cam_pipeline.data.readers.listing import IMAGE_SUFFIXES
from cam_pipeline.data.runs import run_lengths
from cam_pipeline.errors import DataError

UPLOAD = re.compile(r"[0-9a-f]{8}-")
"""What Label Studio puts before the name of a file that is uploaded."""


def read_label_studio(path: Path, classes: Sequence[str], problems: Problems) -> Iterator[tuple[str, Patches]]:
    """The tasks that somebody has worked on, by their image; of several annotations of one the last counts.

    What is not painted is background; a later region lies on top. Rectangles and the like are left out with a warning.
    """
    for number, task in enumerate(json.loads(path.read_bytes()), 1):
        where = f"{path}, task {number}"
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            problems.report("task that cannot be read", f"{where}: it has no data; export it again as JSON")
            continue
        done = [one for one in task.get("annotations") or () if isinstance(one, dict) and not one.get("was_cancelled")]
        if not done:
            problems.warn("task that is left out", f"{where}: nobody has annotated it")
            continue
        name = _image(task)
        where = f"{where}, {name}"
        regions = [one for one in done[-1].get("result") or () if isinstance(one, dict) and "value" in one]
        try:
            sizes = {(int(one["original_height"]), int(one["original_width"])) for one in regions}
        except (KeyError, TypeError, ValueError):
            problems.report("task that cannot be read", f"{where}: a region without original size; export it again")
            continue
        patches = tuple(_patches(regions, classes, where, problems))
        yield name, Patches(patches, max(sizes, default=(0, 0)), source=where)


def _image(task: dict[str, Any]) -> str:
    """The path or name of a task's image: below the root of a local storage, or as it was uploaded."""
    for value in [*task["data"].values(), task.get("file_upload")]:
        if not isinstance(value, str):
            continue
        address = urlsplit(value)
        local = parse_qs(address.query).get("d")
        name = local[0] if local else unquote(address.path)
        if PurePosixPath(name).suffix.casefold() in IMAGE_SUFFIXES:
            uploaded = not local and ("/upload/" in name or value == task.get("file_upload"))
            return UPLOAD.sub("", PurePosixPath(name).name, count=1) if uploaded else name
    return str(next(iter(task["data"].values()), ""))


def _patches(
    regions: Sequence[dict[str, Any]], classes: Sequence[str], place: str, problems: Problems
) -> Iterator[Patch]:
    for number, region in enumerate(regions, 1):
        where, kind = f"{place}, region {number}", region.get("type")
        if kind not in ("brushlabels", "polygonlabels"):
            problems.warn("shape that is left out", f"{where}: {kind} is no region; use the brush or polygons")
            continue
        try:
            value = region["value"]
            label = label_named(str(value[kind][0]), classes, where)
            yield _brush(region, label) if kind == "brushlabels" else _outline(region, label)
        except DataError as error:
            problems.report("unknown class", str(error))
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            message = f"{where}: it cannot be read ({error}); draw it again, or delete it"
            problems.report("shape that cannot be used", message)


def _brush(region: dict[str, Any], label: int) -> Patch:
    height, width = int(region["original_height"]), int(region["original_width"])
    covered = brush_region(region["value"]["rle"], height, width)
    runs = np.array(run_lengths(covered.ravel()), np.uint32).tobytes()
    return Patch(label, runs=runs, box=(0, 0, width, height))


def _outline(region: dict[str, Any], label: int) -> Patch:
    """A polygon, whose points are in percent of width and height."""
    points = np.array(region["value"]["points"], np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise ValueError("a polygon has three points [x, y] or more")
    pixels = points / 100 * [int(region["original_width"]), int(region["original_height"])]
    return Patch(label, polygon=pixels.tobytes())

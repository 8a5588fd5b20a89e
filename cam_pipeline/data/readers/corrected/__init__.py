"""`data.corrected`: label maps that people have corrected in another tool, beside any layout."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.corrections import Correction, NumberedMask, labels_in
from cam_pipeline.data.nearest import did_you_mean
from cam_pipeline.data.readers.listing import check_inside
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.errors import DataError
from cam_pipeline.ops.ignore import IGNORE_INDEX

Reader = Callable[[Path, Sequence[str], Problems], Iterator[tuple[str, Correction]]]
"""Gives what names an image, and its correction."""
READERS = {
    "png": ("png", "read_pngs"),
    "coco": ("coco", "read_coco"),
    "labelme": ("labelme", "read_labelmes"),
    "cvat": ("cvat", "read_cvat"),
    "label-studio": ("label_studio", "read_label_studio"),
    "yolo": ("yolo", "read_yolo"),
}
"""Module and function of each kind."""


def with_corrections(table: Table, settings: DataSettings, problems: Problems) -> Table:
    """The table with the corrections of `data.corrected`.

    A class that a correction shows counts as a label of its image. Raises DataError if there is no such file or folder,
    or it is of no known kind. Reports classes that the data set does not have, and tells of images that it lacks.
    """
    if not settings.corrected:
        return table
    from cam_pipeline.data.readers.corrected.names import Images  # it imports a reader, and few data sets come here

    place = settings.root / settings.corrected
    reader, path = _recognised(place, settings)
    images = Images(table.samples)
    found: dict[str, Correction] = {}
    absent: list[str] = []
    for name, correction in reader(path, table.classes, problems):
        sample = images.find(name)
        if sample is None:
            absent.append(f"{correction}: the data set has no image {name}, or several of this name")
        elif sample.id in found:
            message = f"{found[sample.id]} and {correction} are both of image {sample.id}; delete one"
            problems.report("two corrections of one image", message)
        else:
            if isinstance(correction, NumberedMask) and correction.path.is_symlink():
                check_inside(correction.path, path)
            found[sample.id] = correction
    if absent and found:
        more = f" ({len(absent) - 1} more like this)" if len(absent) > 1 else ""
        problems.warn("correction without image", f"{absent[0]}{more}; it is left out")
    for message in () if found else absent:
        problems.report("correction without image", f"{message}; name corrections by ids, as check-data shows them")
    if not found and not absent:
        problems.warn("corrections that are not used", f"{path} holds no corrected image")
    samples = (_labelled(sample, found.get(sample.id), table.classes, problems) for sample in table.samples)
    return replace(table, samples=tuple(samples))


def _labelled(sample: Sample, correction: Correction | None, classes: Sequence[str], problems: Problems) -> Sample:
    """The sample with its correction, and the classes that this shows among its labels."""
    if correction is None:
        return sample
    sample = replace(sample, corrected=correction)
    labels = _labels_of(sample, len(classes))
    shown = labels - {0, IGNORE_INDEX}
    if sample.class_ids is None:
        known = shown or IGNORE_INDEX not in labels
        return replace(sample, class_ids=tuple(sorted(shown))) if known else sample
    if new := shown - {*sample.class_ids}:
        names = ", ".join(classes[label - 1] for label in sorted(new))
        message = f"{correction} shows {names}, which the labels of image {sample.id} lack{sample.named_in}"
        problems.warn("class that a correction adds", f"{message}; it counts as a label")
    elif sample.class_ids and not shown and IGNORE_INDEX not in labels:
        names = ", ".join(classes[label - 1] for label in sample.class_ids)
        message = f"{correction} shows the background alone, the labels of image {sample.id} are {names}"
        problems.warn("correction without a class", f"{message}; if nobody has drawn there, take it out")
    return replace(sample, class_ids=tuple(sorted(shown | {*sample.class_ids})))


def _labels_of(sample: Sample, num_classes: int) -> set[int]:
    """The labels in a correction; 255 if it cannot be read, which whoever needs it tells of."""
    if not isinstance(sample.corrected, NumberedMask):
        return labels_in(sample.corrected) if sample.corrected else set()
    from cam_pipeline.data.corrected_labels import numbered_labels  # it needs Pillow

    try:
        return set(numbered_labels(sample.corrected, num_classes, sample).ravel().tolist())
    except DataError:
        return {IGNORE_INDEX}


def _recognised(place: Path, settings: DataSettings) -> tuple[Reader, Path]:
    """The reader of a file or folder, and the path to give it. Raises DataError if it is of no known kind."""
    check_inside(place, settings.root)
    if not os.path.exists(place):
        near = did_you_mean(place, settings.root)
        raise DataError(f"data.corrected: there is no file or folder {place}{near}; correct it, or set it to ''")
    found = _in_folder(place) if place.is_dir() else _of_file(place)
    if found is None:
        raise DataError(
            f"data.corrected: {place} is of no known kind: PNG, COCO, Labelme, CVAT, Label Studio or YOLO; "
            "docs/formats.md shows each"
        )
    return found


def _in_folder(folder: Path) -> tuple[Reader, Path] | None:
    """By what tells most: CVAT's XML, YOLO's lists of names, JSON, then PNG, as images may lie beside all of them."""
    if (folder / "annotations.xml").is_file():
        return _of_file(folder / "annotations.xml")
    if (folder / "labels").is_dir() or any((folder / name).is_file() for name in ("data.yaml", "data.yml")):
        return _reader("yolo"), folder
    for path in sorted(folder.glob("*.json")) or sorted(folder.rglob("*.json"))[:1]:
        if found := _of_file(path):
            return (found[0], folder) if _kind(path) == "labelme" else found
    if _has(folder, ".png"):
        return _reader("png"), folder
    if _has(folder, ".txt") and (folder / "classes.txt").is_file():
        return _reader("yolo"), folder
    return None


def _has(folder: Path, ending: str) -> bool:
    """Whether a folder holds a file of this ending, at any depth, beside `classes.txt`."""
    return any(path.suffix.casefold() == ending and path.name != "classes.txt" for path in folder.rglob("*"))


def _of_file(path: Path) -> tuple[Reader, Path] | None:
    kind = _kind(path)
    return (_reader(kind), path) if kind else None


def _reader(kind: str) -> Reader:
    """The reader of a kind of file; it is imported now, as few data sets need one."""
    module, name = READERS[kind]
    reader: Reader = getattr(import_module(f"cam_pipeline.data.readers.corrected.{module}"), name)
    return reader


def _kind(path: Path) -> str:
    """The tool that a file is of; "" if it is none that is known. Raises DataError for JSON that cannot be read."""
    ending = path.suffix.casefold()
    if ending in (".xml", ".zip"):
        return "cvat"
    if ending != ".json":
        return ""
    state = path.stat()
    return _kind_of_json(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=8)
def _kind_of_json(path: Path, _size: int, _changed: int) -> str:
    try:
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); save it again, or delete it") from error
    if isinstance(content, dict):
        return "labelme" if "shapes" in content else "coco" if "images" in content else ""
    tasks = content if isinstance(content, list) else []
    return "label-studio" if tasks and isinstance(tasks[0], dict) and "data" in tasks[0] else ""

"""A COCO file: an image's regions by polygons or run lengths; crowds are open pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.coco_masks import CocoMask
from cam_pipeline.data.readers.coco_file import read_file
from cam_pipeline.data.readers.corrected.names import label_named
from cam_pipeline.errors import DataError


def read_coco(path: Path, classes: Sequence[str], problems: Problems) -> Iterator[tuple[str, CocoMask]]:
    """The images of a file by `file_name`, those without annotations, too: they show the background alone.

    An image is left out, with a warning, if one of its annotations has no outline that can be drawn.
    """
    state = path.stat()
    file = read_file(path, state.st_size, state.st_mtime_ns)
    for problem in file.problems:
        problems.report(problem.kind, problem.message)
    for warning in file.warnings:
        problems.warn(warning.kind, warning.message)
    labels: dict[int | str, int] = {}
    for key in sorted(file.used, key=str):
        try:
            labels[key] = label_named(file.categories[key].name, classes, f"{path}, category {key}")
        except DataError as error:
            problems.report("unknown class", str(error))
    for image in file.images.values():
        outlines = [(labels[key], region) for key, region in file.outlines.get(image.id, ()) if key in labels]
        regions = tuple(replace(region, label=label) for label, region in outlines if region is not None)
        where = f"{path}, image {image.id}"
        if len(regions) < len(outlines):
            problems.warn("correction that is left out", f"{where}: an annotation has no outline; draw it")
            continue
        yield image.file_name, CocoMask(*image.size, regions, where)

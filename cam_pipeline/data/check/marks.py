"""The clicks and the scribble of one image: whether they can be used, and whether they agree with its labels."""

import numpy as np

from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.images import is_turned
from cam_pipeline.data.marks import clicks_off, scribble_labels, without_scribble
from cam_pipeline.data.strokes import Strokes
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError
from cam_pipeline.ops.ignore import IGNORE_INDEX


def inspect_marks(sample: Sample, classes: tuple[str, ...], height: int, width: int, problems: Problems) -> None:
    """Report what is wrong with the marks of an image of this size."""
    if message := clicks_off(sample, height, width):
        problems.warn("click off the image", message)
    if sample.clicks and is_turned(sample):
        message = f"{sample.image}: EXIF turns it upright; check that its clicks fit the upright image{sample.named_in}"
        problems.warn("image with clicks that is turned by EXIF", message)
    _check_pixels(sample, classes, problems)
    if message := without_scribble(sample):
        problems.report("missing scribble file", message)
    elif sample.scribble is not None:
        _check_scribble(sample, classes, problems)


def _check_pixels(sample: Sample, classes: tuple[str, ...], problems: Problems) -> None:
    """Warn of two clicks on one pixel that name different classes."""
    first: dict[tuple[int, int], int] = {}
    names = ("background", *classes)
    for click in sample.clicks:
        other = first.setdefault((int(click.x), int(click.y)), click.label)
        if other != click.label:
            message = (
                f"{click.source}: {names[click.label]}, and {names[other]} before it, on one pixel of image "
                f"{sample.id}; the later one wins"
            )
            problems.warn("two classes clicked on one pixel", message)


def _check_scribble(sample: Sample, classes: tuple[str, ...], problems: Problems) -> None:
    try:
        labels, _ = scribble_labels(sample, len(classes))
    except DataError as error:
        problems.report("scribble that cannot be used", str(error))
        return
    drawn = {*np.unique(labels).tolist()}
    place = f"{sample.scribble}{sample.named_in}"
    if isinstance(sample.scribble, Strokes):  # it may be empty beside clicks, and what it covers is outlined
        pass
    elif drawn == {IGNORE_INDEX}:
        problems.warn(
            "scribble without a stroke", f"{place}: every pixel is {IGNORE_INDEX}, so nobody has said anything"
        )
    elif IGNORE_INDEX not in drawn:
        message = (
            f"{place}: no pixel is {IGNORE_INDEX}, so all are known; 0 means background, not that nobody has drawn"
        )
        problems.warn("scribble that leaves no pixel open", message)
    denied = drawn - {0, IGNORE_INDEX} - {*(sample.class_ids or ())}
    if sample.class_ids is not None and denied:
        names = ", ".join(classes[label - 1] for label in sorted(denied))
        message = f"image {sample.id}{sample.named_in}: {names} only in the scribble {sample.scribble}"
        problems.warn("scribble and labels that disagree", message)

"""Clicks and scribbles: whether they can be used, and whether they agree with labels and masks."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.corrected_labels import corrected_labels
from cam_pipeline.data.images import UInt8, is_turned
from cam_pipeline.data.marks import clicks_off, scribble_labels, without_scribble
from cam_pipeline.data.strokes import Strokes
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError
from cam_pipeline.ops.ignore import IGNORE_INDEX

WRONG = 0.1
"""Share of the clicks: people are wrong less often (1 % on the background and 3 % on objects of PASCAL VOC)."""
FEW = 2
"""Clicks on another class than the mask has, up to which there is no warning."""


def inspect_marks(sample: Sample, classes: tuple[str, ...], height: int, width: int, problems: Problems) -> None:
    """Report what is wrong with the marks of an image of this size."""
    if sample.corrected is not None:
        _check_correction(sample, classes, problems)
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


def _check_correction(sample: Sample, classes: tuple[str, ...], problems: Problems) -> None:
    """Report a correction that cannot be used; warn of one without a class that the labels name."""
    try:
        shown = {*np.unique(corrected_labels(sample, len(classes))).tolist()}
    except DataError as error:
        problems.report("correction that cannot be used", str(error))
        return
    absent = {*(sample.class_ids or ())} - shown
    if absent and IGNORE_INDEX not in shown:
        names = ", ".join(classes[label - 1] for label in sorted(absent))
        message = f"image {sample.id}{sample.named_in}: {names} only in the labels, not in {sample.corrected}"
        problems.warn("correction and labels that disagree", message)


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


@dataclass(frozen=True)
class ClicksOnMask:
    """How many clicks of an image lie where its mask is decided, and those that the mask denies, as text."""

    compared: int = 0
    denied: tuple[str, ...] = ()


def clicks_on_mask(sample: Sample, labels: UInt8, classes: tuple[str, ...]) -> ClicksOnMask:
    """Compare the clicks of an image with its mask (height, width)."""
    names = ("background", *classes)
    height, width = labels.shape
    compared, denied = 0, []
    for click in sample.clicks:
        x, y = min(max(int(click.x), 0), width - 1), min(max(int(click.y), 0), height - 1)
        label = int(labels[y, x])
        if click.is_off(height, width) or label == IGNORE_INDEX:
            continue
        compared += 1
        if label != click.label:
            denied.append(f"{click.source} ({names[click.label]}, the mask has {names[label]})")
    return ClicksOnMask(compared, tuple(denied))


def check_clicks_on_masks(found: Iterable[ClicksOnMask], problems: Problems) -> None:
    """Warn if masks deny more clicks than people get wrong."""
    found = list(found)
    compared = sum(one.compared for one in found)
    denied = [text for one in found for text in one.denied]
    if len(denied) > max(FEW, WRONG * compared):
        message = (
            f"{len(denied)} of {compared} clicks on images with masks ({100 * len(denied) / compared:.0f} %) are on "
            f"another class than the mask has there, such as {denied[0]}; are x and y swapped, or class numbers others?"
        )
        problems.warn("clicks that masks deny", message)

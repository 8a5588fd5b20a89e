"""The pixels of an image that people have spoken about beside its labels: clicks, a scribble, a corrected map."""

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from cam_pipeline.data.corrected_labels import corrected_labels
from cam_pipeline.data.drawing import CLICK_RADIUS, draw_clicks, draw_strokes
from cam_pipeline.data.images import UInt8, errors_named_for, is_turned, sample_size
from cam_pipeline.data.masks import read_mask
from cam_pipeline.data.nearest import did_you_mean
from cam_pipeline.data.scribble_xml import read_strokes
from cam_pipeline.data.strokes import CLICK, CORRECTED, MASK, PSEUDO, SCRIBBLE, Click, ScribbleXml, Stroke, Strokes
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError
from cam_pipeline.ops.ignore import IGNORE_INDEX

__all__ = [
    "CLICK", "CLICK_RADIUS", "CORRECTED", "MASK", "PSEUDO", "SCRIBBLE",
    "Click", "Marks", "Stroke", "Strokes", "clicks_off", "has_marks", "has_scribble", "marks_to_draw", "sample_marks",
]  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Marks:
    """`labels` (height, width) uint8: 0 background, 1..C, 255 where nobody has said anything.

    `origin` (height, width) uint8 says who spoke: PSEUDO (0, nobody), CLICK (1), SCRIBBLE (2), MASK (3, a painted
    region), CORRECTED (4, which a whole image is; where its label is 255, it stays open).
    """

    labels: UInt8
    origin: UInt8


def has_marks(sample: Sample) -> bool:
    """Whether an image has clicks, a scribble or a corrected map; no file is opened."""
    return bool(sample.clicks) or has_scribble(sample) or sample.corrected is not None


def has_scribble(sample: Sample) -> bool:
    """Whether an image has a file of a scribble, or strokes; a file of Labelme may hold clicks alone."""
    scribble = sample.scribble
    return bool(scribble.strokes) if isinstance(scribble, Strokes) else scribble is not None


def sample_marks(sample: Sample, num_classes: int) -> Marks:
    """What people say about the pixels of the upright image; its mask (`sample.mask`) is no part of it.

    A corrected map wins over all else, clicks win over the scribble. A click off the image is left out, and a warning
    says so. Raises DataError if a file cannot be read, holds a number that is no label, or its size is not the image's.
    """
    if sample.corrected is not None:
        labels = corrected_labels(sample, num_classes)
        return Marks(labels, np.full_like(labels, CORRECTED))
    labels, origin = scribble_labels(sample, num_classes)
    height, width = labels.shape
    if clicks_off(sample, height, width):
        _warn_of_clicks_off(sample, height, width)
    draw_clicks(sample.clicks, labels, origin)
    return Marks(labels, origin)


def marks_to_draw(sample: Sample, num_classes: int) -> UInt8 | None:
    """Clicks and strokes for a picture, as `Marks.labels`; None without any, or for a corrected map, which would cover
    the whole image. Errors as `sample_marks`."""
    return sample_marks(sample, num_classes).labels if has_marks(sample) and sample.corrected is None else None


def clicks_off(sample: Sample, height: int, width: int) -> str:
    """The message about a sample's clicks that lie outside its image; "" if there are none."""
    off = [click for click in sample.clicks if click.is_off(height, width)]
    if not off:
        return ""
    more = f" (and {len(off) - 1} more)" if len(off) > 1 else ""
    where = f"{off[0].source}: " if off[0].source else ""
    return (
        f"{where}the click at x {off[0].x:g}, y {off[0].y:g}{more} is off the image {sample.id} of {width} x {height} "
        "pixels (width x height) and is left out; correct it, or delete it"
    )


@cache
def _warn_of_clicks_off(sample: Sample, height: int, width: int) -> None:
    """Once for each image: it is drawn in every epoch."""
    logger.warning("%s", clicks_off(sample, height, width))


def scribble_labels(sample: Sample, num_classes: int) -> tuple[UInt8, UInt8]:
    """Labels and origins (height, width) of a sample's scribble alone, in arrays that may be changed.

    Raises DataError as `sample_marks`.
    """
    scribble = sample.scribble
    height, width = sample_size(sample)
    if scribble is None:
        return draw_strokes((), height, width)
    if message := without_scribble(sample):
        raise DataError(message)
    if isinstance(scribble, ScribbleXml):
        with errors_named_for(sample):
            scribble = read_strokes(scribble)
    if isinstance(scribble, Strokes):
        if scribble.size != (0, 0):
            _check_size(sample, scribble.size, height, width)
        return draw_strokes(scribble.strokes, height, width)
    with errors_named_for(sample):
        labels = read_mask(scribble, num_classes, sample.max_pixels, sample.colors).copy()
    _check_size(sample, labels.shape, height, width)
    return labels, np.where(labels == IGNORE_INDEX, PSEUDO, SCRIBBLE).astype(np.uint8)


def without_scribble(sample: Sample) -> str:
    """The message about a sample whose file of a scribble is not there; "" if it is, or none is needed."""
    path = sample.scribble.path if isinstance(sample.scribble, ScribbleXml) else sample.scribble
    if not isinstance(path, Path) or path.is_file():
        return ""
    return (
        f"image {sample.id}: there is no scribble {path}{did_you_mean(path, sample.folder, sample.mask)}"
        f"{sample.named_in}; add it, or empty the cell that names it"
    )


def _check_size(sample: Sample, shape: tuple[int, ...], height: int, width: int) -> None:
    """Raise DataError unless the scribble was drawn on an image of this size."""
    if shape != (height, width):
        turned = "; EXIF turns the image upright, so its scribble must be upright, too" * is_turned(sample)
        raise DataError(
            f"{sample.scribble}: the scribble is for an image of {shape}, its image is {(height, width)} "
            f"(height, width){turned}; draw it again, or replace the image{sample.named_in}"
        )

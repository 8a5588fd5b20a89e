"""Images of 16 bits that use little of their range: 8, 10 or 12 bits that were stored as they are look black."""

import logging
from collections.abc import Sequence

import numpy as np

from cam_pipeline.data.images import opened, sample_picture, stored_as
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError

logger = logging.getLogger(__name__)

DARK = 65_536 // 16
"""An image of 16 bits without a number of this size uses less than 1/16 of its range."""
USUAL_BITS = (8, 10, 12)
"""Depths of cameras and scanners below 16 bits that DARK catches."""
LOOKED_AT = 16
"""Images that are looked at before a training."""


def told_of_dark(brightest: Sequence[tuple[Sample, int]]) -> str:
    """The line about images of 16 bits and their greatest numbers; "" if none of them is dark."""
    dark = [(sample, number) for sample, number in brightest if number < DARK]
    if not dark:
        return ""
    sample, number = max(dark, key=lambda one: one[1])
    bits = next(bits for bits in USUAL_BITS if number < 2**bits)
    return (
        f"{len(dark)} of {len(brightest)} images of 16 bits use less than 1/16 of their range, so they look black; the "
        f"greatest number is {number}, in {sample.image}; if it should be {2**bits - 1} for white, multiply all by "
        f"{2 ** (16 - bits)}"
    )


def warn_of_dark(samples: Sequence[Sample]) -> None:
    """Log if images of 16 bits look nearly black: of a few, evenly spread, decodes those that have 16 bits."""
    places = np.linspace(0, len(samples) - 1, min(LOOKED_AT, len(samples))).astype(int)
    found = []
    for sample in (samples[place] for place in places):
        try:
            with opened(sample.image, sample.max_pixels) as image:
                deep = "16" in stored_as(image) or image.mode.startswith("I")
            if deep and (number := sample_picture(sample).brightest) is not None:
                found.append((sample, number))
        except DataError:
            continue  # training reports it, if it takes this image
    if message := told_of_dark(found):
        logger.warning("%s", message)

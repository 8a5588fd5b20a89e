"""The images on which the background score is chosen; without torch, as `status` asks for them."""

import logging
from collections.abc import Sequence

import numpy as np

from cam_pipeline.config import RefineSettings
from cam_pipeline.data.check.masks import classes_without_pixels, decoded, no_class_to_choose_by, shown_in
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError

logger = logging.getLogger(__name__)


def images_to_choose_by(settings: RefineSettings, samples: Sequence[Sample]) -> list[Sample]:
    """The images that are refined to choose the score: `background_images` of them, evenly spread.

    For `from-split` only images with masks of `background_split`. Raises DataError if there is none.
    """
    if settings.background == "from-split":
        samples = [one for one in samples if one.split == settings.background_split and one.mask is not None]
        if not samples:
            raise DataError(
                f"refine.background = 'from-split': no image of split '{settings.background_split}' has a mask"
            )
    if not samples:
        raise DataError("refine.background: there are no images to choose it on; set a number")
    places = np.linspace(0, len(samples) - 1, min(settings.background_images, len(samples)))
    return [samples[place] for place in places.round().astype(int)]


def check_masks_to_choose_by(settings: RefineSettings, samples: Sequence[Sample], classes: Sequence[str]) -> None:
    """Check before hours of work that the masks of `from-split` show classes, and warn of those that they lack.

    Reads about one mask of each class. Raises DataError if none shows a class.
    """
    if settings.background != "from-split":
        return
    few = images_to_choose_by(settings, samples)
    shown = shown_in(few, decoded(len(classes)))
    if not shown.classes:
        raise DataError(no_class_to_choose_by(settings.background_split))
    if message := classes_without_pixels(settings.background_split, few, classes, shown):
        logger.warning("refine.background: %s", message)

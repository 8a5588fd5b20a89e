"""The images on which the background score is chosen; without torch, as `status` asks for them."""

from collections.abc import Sequence

import numpy as np

from cam_pipeline.config import RefineSettings
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError


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

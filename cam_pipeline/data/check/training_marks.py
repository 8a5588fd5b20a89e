"""What clicks and scribbles of a split hold, taken together: images and classes that nobody marked."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cam_pipeline.data.marks import has_marks, sample_marks
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError
from cam_pipeline.ops.ignore import IGNORE_INDEX

logger = logging.getLogger(__name__)

NAMED = 5
"""Images that a message names."""


def unmarked(samples: Sequence[Sample]) -> str:
    """Which images have no click and no scribble; "" if all have some. No file is opened."""
    return named([sample.id for sample in samples if not has_marks(sample)], len(samples))


def named(bare: Sequence[str], count: int) -> str:
    """How many of `count` images have no marks, with the first names; "" for none."""
    if not bare:
        return ""
    more = f" and {len(bare) - NAMED} more" if len(bare) > NAMED else ""
    return f"{len(bare)} of {count} training images have no click and no scribble: {', '.join(bare[:NAMED])}{more}"


def without_marks(supervision: str, split: str, samples: Sequence[Sample]) -> str:
    """The message if no image of the training split has a mark, which `supervision` needs; "" if one has."""
    if any(has_marks(sample) for sample in samples):
        return ""
    return (
        f"train_seg.supervision = '{supervision}': no image of split '{split}' has a click or a scribble; add some "
        "(data.clicks, data.scribbles), make them from masks (cam-pipeline make-scribbles), or set 'pseudo-labels'"
    )


def check_marked(split: str, samples: Sequence[Sample], classes: Sequence[str], regularized: bool) -> None:
    """Check before training on marks that they hold something to learn; warn of images and classes without any.

    `regularized`: a loss about all pixels uses images without marks, too. Raises DataError if no image has marks, none
    marks a pixel of a class, or a file cannot be read.
    """
    if message := without_marks("scribbles", split, samples):
        raise DataError(message)
    marked = {sample.id: _counted(sample, len(classes)) for sample in samples if has_marks(sample)}
    bare = [sample.id for sample in samples if sample.id not in marked or not marked[sample.id][:IGNORE_INDEX].any()]
    pixels = sum(marked.values(), start=np.zeros(256, dtype=np.int64))
    of_labels = pixels[: 1 + len(classes)]
    if not of_labels[1:].any():
        raise DataError(
            f"train_seg.supervision = 'scribbles': no click or scribble of split '{split}' is of a class, so there is "
            "nothing to learn; mark objects, too"
        )
    share = of_labels.sum() / pixels.sum()
    logger.info(
        "train_seg: %d images, of %d of them %.2f %% of the pixels are marked", len(samples), len(marked), 100 * share
    )
    if message := named(bare, len(samples)):
        use = "the regularised loss learns from them all the same" if regularized else "nothing is learned from them"
        logger.warning("train_seg: %s; %s", message, use)
    if missing := ", ".join(classes[place] for place in np.flatnonzero(of_labels[1:] == 0).tolist()):
        logger.warning("train_seg: no click or scribble is %s, so the segmenter learns nothing about that", missing)
    if not of_labels[0]:
        logger.warning("train_seg: no click or scribble is background, so everything becomes an object; mark some")


def _counted(sample: Sample, num_classes: int) -> NDArray[np.int64]:
    """How many pixels of an image are marked as each label (256,)."""
    return np.bincount(sample_marks(sample, num_classes).labels.ravel(), minlength=256)

"""Open and decode one image, its mask and its scribble completely, and collect what is wrong with them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cam_pipeline.data.check.depth import Brightest, brightest_of
from cam_pipeline.data.check.marks import clicks_on_mask, inspect_marks
from cam_pipeline.data.check.masks import MaskFacts
from cam_pipeline.data.check.problems import AllProblems
from cam_pipeline.data.coco_masks import CocoMask
from cam_pipeline.data.images import is_turned, sample_picture
from cam_pipeline.data.masks import mask_of_sample
from cam_pipeline.data.table import Sample, without_image, without_mask
from cam_pipeline.errors import DataError
from cam_pipeline.machine.interrupt import ignore_in_worker
from cam_pipeline.ops.ignore import IGNORE_INDEX

TINY = 32
"""Pixels. A shorter side is less than one cell of a network of stride 32."""


@dataclass(frozen=True)
class Inspection:
    """Findings on one image: `size` (height, width), None if it cannot be read; `digest` of its file; problems.

    `brightest` is the greatest number in an image and its bits; `mask` is None if there is none to use.
    """

    size: tuple[int, int] | None = None
    digest: str = ""
    brightest: Brightest | None = None
    mask: MaskFacts | None = None
    problems: AllProblems = field(default_factory=AllProblems)


def inspect(sample: Sample, classes: tuple[str, ...]) -> Inspection:
    """Decode the image and, if there are any, the mask and the scribble of a sample; runs in a worker process."""
    ignore_in_worker()
    problems = AllProblems()
    if not sample.image.is_file():
        problems.report("label without image", without_image(sample))
        return Inspection(problems=problems)
    try:
        picture = sample_picture(sample)
        height, width = picture.pixels.shape[:2]
        digest = hashlib.sha256(sample.image.read_bytes()).hexdigest()
    except DataError as error:
        problems.report("image that cannot be read", str(error))
        return Inspection(problems=problems)
    except OSError as error:
        problems.report("image that cannot be read", f"{error}{sample.named_in}")
        return Inspection(problems=problems)
    if min(height, width) < TINY:
        message = f"{sample.image}: {width} x {height} pixels (width x height); enlarge it, or take it out"
        problems.warn(f"image with a side of less than {TINY} pixels", message)
    mask = _inspect_mask(sample, classes, problems)
    inspect_marks(sample, classes, height, width, problems)
    return Inspection((height, width), digest, brightest_of(picture), mask, problems)


def _inspect_mask(sample: Sample, classes: tuple[str, ...], problems: AllProblems) -> MaskFacts | None:
    """Decode the mask and compare its classes with the image-level labels."""
    if sample.mask is None:
        return None
    if isinstance(sample.mask, Path) and not sample.mask.is_file():
        problems.report("missing mask file", without_mask(sample))
        return None
    try:
        mask = mask_of_sample(sample, len(classes))
    except DataError as error:
        problems.report("mask that cannot be used", str(error))
        return None
    if isinstance(sample.mask, CocoMask) and is_turned(sample):
        message = f"{sample.image}: EXIF turns it upright; check that its outlines fit the upright image"
        problems.warn("COCO image that is turned by EXIF", f"{message}{sample.named_in}")
    counts = np.bincount(mask.labels.ravel(), minlength=1)
    pixels = {int(label): int(counts[label]) for label in np.flatnonzero(counts)}
    facts = MaskFacts(pixels, mask.palette, clicks_on_mask(sample, mask.labels, classes))
    if sample.class_ids is None:
        return facts
    shown = set(facts.pixels) - {0, IGNORE_INDEX}
    differences = [("only in the mask", shown - {*sample.class_ids})]
    if IGNORE_INDEX not in facts.pixels:  # a class may be in undecided pixels
        differences.append(("only in the labels", {*sample.class_ids} - shown))
    parts = [f"{', '.join(classes[one - 1] for one in sorted(ids))} {where}" for where, ids in differences if ids]
    if parts:
        problems.warn("mask and labels that disagree", f"image {sample.id}{sample.named_in}: {'; '.join(parts)}")
    return facts


Inspected = Sequence[tuple[Sample, Inspection]]

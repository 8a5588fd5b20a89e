"""The table of a data set, whatever its source: images, their image-level labels and their splits."""

import difflib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cam_pipeline.config import Colour, DataSettings
from cam_pipeline.data.coco_masks import CocoMask
from cam_pipeline.data.corrections import Correction
from cam_pipeline.data.names import clean, fold, is_background, is_missing, is_number, joined
from cam_pipeline.data.nearest import did_you_mean
from cam_pipeline.data.strokes import Click, ScribbleXml, Strokes
from cam_pipeline.errors import DataError

logger = logging.getLogger(__name__)

MAX_PIXELS = DataSettings().max_pixels
LONGEST_NAME = 60  # letters; a longer name is not just misspelt, and comparing it takes long
MANY_CLASSES = 12
"""Number of classes that one line names with their counts; of more it shows the most frequent and the rarest."""


@dataclass(frozen=True)
class Sample:
    """One image. `class_ids` are 1-based and sorted; None means that they are unknown.

    `mask` is a file, or outlines from COCO annotations. Files of more than `max_pixels` pixels are not decoded (see
    `data.images`). `colors` are what colours in a mask file mean (see `data.masks`). `clicks` and `scribble` are what
    people say about some pixels (see `data.marks`); the scribble is a file of labels in which 255 means that nobody has
    said anything, or strokes. `corrected` is a whole label map that a person has corrected; it wins over both. `source`
    says where the data set names the image (file and line), for messages; comparisons of samples ignore it.
    """

    id: str
    image: Path
    split: str
    class_ids: tuple[int, ...] | None = None
    mask: Path | CocoMask | None = None
    max_pixels: int = MAX_PIXELS
    colors: tuple[Colour, ...] = ()
    clicks: tuple[Click, ...] = ()
    scribble: Path | Strokes | ScribbleXml | None = None
    corrected: Correction | None = None
    source: str = field(default="", compare=False)

    @property
    def named_in(self) -> str:
        """`source` in brackets, to follow a name; empty if it is not known."""
        return f" ({self.source})" if self.source else ""

    @property
    def folder(self) -> Path:
        """The folder that the id starts from: the data root, in the VOC layout JPEGImages."""
        parents = self.image.parents
        return parents[min(len(PurePosixPath(self.id).parts), len(parents)) - 1]


@dataclass(frozen=True)
class Table:
    """All samples of a data set. `classes` has no background: `classes[0]` is label 1."""

    classes: tuple[str, ...]
    samples: tuple[Sample, ...]

    def split(self, *names: str) -> list[Sample]:
        """The samples of the named splits, in the order of the table. Raises DataError for an empty split."""
        splits = {sample.split for sample in self.samples}
        for name in names:
            if name not in splits:
                known = f"it has: {', '.join(sorted(splits)[:20])}" if splits else "it has no images at all"
                raise DataError(f"the data set has no images in split '{name}' ({known})")
        return [sample for sample in self.samples if sample.split in names]

    def validation(self, name: str) -> list[Sample]:
        """The samples of the split `data.val`; none if the name is empty, or is the default and no image has it.

        Raises DataError if it is another name and no image has it: it is misspelt.
        """
        if name in ("", DataSettings().val):
            return [sample for sample in self.samples if name and sample.split == name]
        try:
            return self.split(name)
        except DataError as error:
            raise DataError(f"{error}; set data.val to one that it has, or to ''") from None


def labelled(samples: Iterable[Sample]) -> list[Sample]:
    """The same samples, checked. Raises DataError if one has no image-level labels."""
    samples = list(samples)
    for sample in samples:
        if sample.class_ids is None:
            raise DataError(without_labels(sample))
    return samples


def without_labels(sample: Sample) -> str:
    """The message about a training image without image-level labels."""
    return (
        f"image {sample.id} of split '{sample.split}' has no image-level labels{sample.named_in}; "
        "write them, or take it out of the split"
    )


def without_classes(samples: Sequence[Sample], split: str) -> str:
    """The message about a training split of which no image shows a class; "" if one does."""
    if any(sample.class_ids for sample in samples):
        return ""
    return f"no image of split '{split}' shows a class, so there is nothing to learn; write labels for them"


def masked(samples: Iterable[Sample]) -> list[Sample]:
    """The same samples, checked. Raises DataError if one has no mask."""
    samples = list(samples)
    for sample in samples:
        if sample.mask is None or (isinstance(sample.mask, Path) and not sample.mask.is_file()):
            raise DataError(without_mask(sample))
    return samples


def without_mask(sample: Sample) -> str:
    """The message about an image without the mask that it needs."""
    near = did_you_mean(sample.mask, sample.folder) if isinstance(sample.mask, Path) else ""
    return (
        f"image {sample.id} of split '{sample.split}' has no mask "
        f"(looked for {sample.mask or 'a mask column, file or outlines'}){near}{sample.named_in}; "
        "add it, or take the image out of the split"
    )


def check_files(samples: Iterable[Sample]) -> None:
    """Raise DataError for the first image file that does not exist."""
    for sample in samples:
        if not sample.image.is_file():
            raise DataError(without_image(sample))


def without_image(sample: Sample) -> str:
    """The message about a sample whose image file does not exist."""
    return (
        f"image {sample.id}{sample.named_in}: there is no file {sample.image}"
        f"{did_you_mean(sample.image, sample.folder, sample.mask)}; restore it, or drop it from '{sample.split}'"
    )


def absent_classes(classes: Sequence[str], samples: Iterable[Sample]) -> list[str]:
    """Names of the classes that none of the samples shows: nothing can be learned about them."""
    shown = {class_id for sample in samples for class_id in sample.class_ids or ()}
    return [name for class_id, name in enumerate(classes, 1) if class_id not in shown]


def warn_of_absent_classes(classes: Sequence[str], samples: Iterable[Sample]) -> None:
    """Log the classes that no training image shows, in one line; training goes on without them."""
    absent = absent_classes(classes, samples)
    if absent:
        logger.warning(
            "%d of %d classes have no training image, so nothing is learned about them: %s",
            len(absent),
            len(classes),
            ", ".join(absent),
        )


def class_counts(classes: Sequence[str], samples: Sequence[Sample]) -> str:
    """One line: how many samples show each class, the most frequent first, without those that none shows."""
    counts = Counter(class_id for sample in samples for class_id in sample.class_ids or ())
    negatives = sum(sample.class_ids == () for sample in samples)
    by_count = sorted(counts, key=lambda class_id: (-counts[class_id], class_id))
    names = [f"'{name}'" if is_number(name) else name for name in classes]
    shown = [f"{names[class_id - 1]} {counts[class_id]:,}" for class_id in by_count]
    if len(shown) > MANY_CLASSES:
        half = MANY_CLASSES // 2
        shown = [*shown[:half], f"... ({len(shown) - 2 * half} more)", *shown[-half:]]
    number = f"{len(classes)} class{'es' if len(classes) > 1 else ''}"
    images = f"{len(samples):,} training image{'s' if len(samples) > 1 else ''}"
    none = f"; {negatives:,} show none of them" if negatives else ""
    return f"{number}, {images}: {', '.join(shown) or 'none shows one'}{none}"


def unknown_class(name: str, classes: Sequence[str]) -> str:
    """The message about an unknown class name: what it looks like, else the nearest class, else all of them."""
    if parts := joined(name, classes):
        return f"unknown class '{name}'; {' and '.join(parts)} are labels of their own: separate them as in the docs"
    if is_background(name):
        return f"unknown class '{name}'; the background is no label: an image that shows no class has none"
    if lists := [other for other in classes if other != name and name in map(clean, re.split(r"[,;|]", other))]:
        return f"unknown class '{name}'; the list of classes has '{lists[0]}' as one: write one a line"
    near = [other for other in classes if fold(other) == fold(name)]
    if not near and len(name) <= LONGEST_NAME:
        near = difflib.get_close_matches(name, classes, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the classes are {', '.join(classes)}"
    if not near and is_missing(name):
        hint = "is it a missing value? An image that shows no class has no label"
    return f"unknown class '{name}'; {hint}"

"""One table whatever the source: what images there are, what they show, and to which split they belong."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cam_pipeline.errors import DataError


@dataclass(frozen=True)
class Sample:
    """One image. `class_ids` are 1-based and sorted; None means that nobody said what the image shows."""

    id: str
    image: Path
    split: str
    class_ids: tuple[int, ...] | None = None
    mask: Path | None = None


@dataclass(frozen=True)
class Table:
    """All samples of a data set. `classes` has no background: `classes[0]` is label 1."""

    classes: tuple[str, ...]
    samples: tuple[Sample, ...]

    def split(self, *names: str) -> list[Sample]:
        """The samples of the named splits, in the order of the table. Raises DataError for an empty split."""
        for name in names:
            if not any(sample.split == name for sample in self.samples):
                known = ", ".join(sorted({sample.split for sample in self.samples}))
                raise DataError(f"the data set has no images in split '{name}' (it has: {known})")
        return [sample for sample in self.samples if sample.split in names]


def labelled(samples: Iterable[Sample]) -> list[Sample]:
    """The same samples, checked. Raises DataError when one has no image-level labels."""
    samples = list(samples)
    for sample in samples:
        if sample.class_ids is None:
            raise DataError(
                f"image {sample.id} of split '{sample.split}' has no image-level labels; add a line for it, or drop it"
            )
    return samples


def masked(samples: Iterable[Sample]) -> list[Sample]:
    """The same samples, checked. Raises DataError when one has no mask file."""
    samples = list(samples)
    for sample in samples:
        if sample.mask is None or not sample.mask.is_file():
            raise DataError(
                f"image {sample.id} of split '{sample.split}' has no mask (looked for {sample.mask or 'a mask column'})"
            )
    return samples


def image_labels(samples: Iterable[Sample], num_classes: int) -> Tensor:
    """(N, num_classes) float 0/1, background not included. An unlabelled image has only zeros."""
    samples = list(samples)
    labels = torch.zeros(len(samples), num_classes)
    for row, sample in enumerate(samples):
        for class_id in sample.class_ids or ():
            labels[row, class_id - 1] = 1
    return labels


def check_files(samples: Iterable[Sample]) -> None:
    """Raise DataError for the first image file that does not exist."""
    for sample in samples:
        if not sample.image.is_file():
            raise DataError(
                f"image {sample.id}: there is no file {sample.image}; restore it, or drop it from '{sample.split}'"
            )


ClassIndex = Callable[[str, str], int]


def class_index(classes: tuple[str, ...]) -> ClassIndex:
    """A function (name, where) -> 1-based label that raises DataError for an unknown name."""
    index = {name: number for number, name in enumerate(classes, 1)}

    def look_up(name: str, where: str) -> int:
        if name not in index:
            raise DataError(f"{where}: unknown class '{name}'; the classes are {', '.join(classes)}")
        return index[name]

    return look_up

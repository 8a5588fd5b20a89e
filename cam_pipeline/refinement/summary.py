"""What a person should know of pseudo-labels: each class's share, images flooded by a class, classes that are lost."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cam_pipeline.data.images import UInt8
from cam_pipeline.ops.ignore import IGNORE_INDEX

FLOODED = 0.9
"""An image is flooded if one class has more than this share of its decided pixels.

Of the 1449 masks of PASCAL VOC's validation split 7 are, all of them close-ups.
"""
MOSTLY_DECIDED = 0.5
"""Share of the pixels that must be decided for an image to count as flooded: a few pixels say nothing of the rest."""
MANY = 0.1
"""Share of the images above which both flooded ones and such that lost a class are many."""
WORST = 3
"""Number of images that a line names."""
MANY_CLASSES = 12
"""Number of classes whose shares one line gives; of more it gives the largest and the smallest."""


@dataclass(frozen=True)
class LabelCounts:
    """How many pixels of an image have each label, and which classes the image shows (1-based)."""

    name: str
    class_ids: tuple[int, ...]
    pixels: Mapping[int, int]

    @property
    def lost(self) -> tuple[int, ...]:
        """The classes that the image shows and its labels do not."""
        return tuple(class_id for class_id in self.class_ids if not self.pixels.get(class_id))

    @property
    def largest(self) -> tuple[float, int]:
        """The largest class and its share of the decided pixels; (0.0, 0) without one, or if too few are decided."""
        decided = sum(count for label, count in self.pixels.items() if label != IGNORE_INDEX)
        of_classes = {label: count for label, count in self.pixels.items() if label not in (0, IGNORE_INDEX)}
        if not of_classes or decided < MOSTLY_DECIDED * sum(self.pixels.values()):
            return 0.0, 0
        label = max(of_classes, key=lambda one: of_classes[one])
        return of_classes[label] / decided, label


def counted(name: str, class_ids: Sequence[int], labels: UInt8) -> LabelCounts:
    """The pixels of each label in the labels (H, W) of an image that shows `class_ids`."""
    counts = np.bincount(labels.ravel(), minlength=256)
    return LabelCounts(name, tuple(class_ids), {int(label): int(counts[label]) for label in counts.nonzero()[0]})


def total_of(images: Sequence[LabelCounts]) -> Counter[int]:
    """The pixels of each label in all images."""
    total: Counter[int] = Counter()
    for image in images:
        total.update(image.pixels)
    return total


def shares_line(images: Sequence[LabelCounts], classes: Sequence[str]) -> str:
    """Each label's share of the pixels of all images; `classes` begins with the background.

    Classes that no image shows are left out.
    """
    total = total_of(images)
    present = set(+total).union(*(image.class_ids for image in images))
    pixels = max(1, total.total())

    def share(name: str, count: int) -> str:
        return f"{name} {100 * count / pixels:.1f} %"

    by_size = sorted(present - {0, IGNORE_INDEX}, key=lambda label: (-total[label], label))
    shown = [share(classes[label], total[label]) for label in by_size]
    if len(shown) > MANY_CLASSES:
        half = MANY_CLASSES // 2
        shown = [*shown[:half], f"... ({len(shown) - 2 * half} more)", *shown[-half:]]
    number = f"{len(images):,} image{'' if len(images) == 1 else 's'}"
    return f"{number}: {', '.join([share('background', total[0]), *shown, share('ignored', total[IGNORE_INDEX])])}"


class Advice(NamedTuple):
    """What to do if classes have too many pixels, and if they have too few."""

    too_many: str = "raise refine.background"
    too_few: str = "lower refine.background to give them more"


PLAIN = Advice()


def warnings(
    images: Sequence[LabelCounts], classes: Sequence[str], undecided: str = "scores", advice: Advice = PLAIN
) -> list[str]:
    """What looks wrong with the labels of all images, in two lines at most; `classes` begins with the background.

    If there is nothing to learn from them, that is all there is to say. `undecided`: the setting `labels.undecided`.
    """
    total = total_of(images)
    if message := nothing_to_learn(images, total, undecided):
        return [message if advice == PLAIN else f"no pixel has a class; {advice.too_few}"]
    flooded = [image for image in images if image.largest[0] > FLOODED]
    lost = [image for image in images if image.lost]
    raised, lowered = f"if these are no close-ups, {advice.too_many}", advice.too_few
    if advice == PLAIN and min(len(flooded), len(lost)) > MANY * len(images):  # no background score mends both
        raised = lowered = "train the classifier longer (train_cls.epochs)"
    lines = []
    if flooded:
        lines.append(f"{_flooded(flooded, len(images), classes)}; {raised}")
    elif not total[0] and set(+total):
        lines.append(f"no pixel is background; {advice.too_many}")
    if lost:
        lines.append(f"{_lost(lost, len(images), classes, classes_lost(images, total))}; {lowered}")
    return lines


def nothing_to_learn(images: Sequence[LabelCounts], total: Counter[int], undecided: str = "scores") -> str:
    """Why nothing can be learned from labels, whose pixels `total` counts; "" if something can.

    Images that show no class may have labels of background alone. `undecided` as in `warnings`.
    """
    if total[IGNORE_INDEX] and total[IGNORE_INDEX] == total.total():
        by_scores = "lower labels.high or raise labels.low"
        return f"every pixel is ignored; {by_scores if undecided == 'scores' else 'set another labels.undecided'}"
    if set(+total) - {0, IGNORE_INDEX} or not any(image.class_ids for image in images):
        return ""
    or_high = " or labels.high" if total[IGNORE_INDEX] and undecided == "scores" else ""
    return (
        f"no pixel has a class, so there is nothing to learn from these labels; lower refine.background{or_high}, or "
        "train the classifier longer (train_cls.epochs), and look at the CAMs on the contact sheet of cam-pipeline "
        "evaluate"
    )


def classes_lost(images: Sequence[LabelCounts], total: Counter[int]) -> list[int]:
    """The classes that images show, and of which no image has a pixel."""
    return sorted({class_id for image in images for class_id in image.class_ids} - set(+total))


def _flooded(images: Sequence[LabelCounts], of: int, classes: Sequence[str]) -> str:
    by_share = sorted(((*image.largest, image.name) for image in images), key=lambda one: -one[0])
    named = [f"{name} ({classes[label]} {100 * share:.0f} %)" for share, label, name in by_share]
    return f"one class covers over {100 * FLOODED:.0f} % of {len(images):,} of {of:,} images: {_some(named, WORST)}"


def _lost(images: Sequence[LabelCounts], of: int, classes: Sequence[str], nowhere: Sequence[int]) -> str:
    most_first = sorted(images, key=lambda image: -len(image.lost) / len(image.class_ids))
    named = [f"{image.name} ({', '.join(classes[class_id] for class_id in image.lost)})" for image in most_first]
    everywhere = _some([classes[class_id] for class_id in nowhere], MANY_CLASSES)
    return f"{len(images):,} of {of:,} images have no pixel of a class that they show: {_some(named, WORST)}" + (
        f"; no image at all has a pixel of {everywhere}" if nowhere else ""
    )


def _some(names: Sequence[str], most: int) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")

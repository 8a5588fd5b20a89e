"""What the masks of a split hold, taken together: classes that nobody learns, palettes and labels that disagree."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from cam_pipeline.config import Colour, shown_colour
from cam_pipeline.data.check.marks import ClicksOnMask
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.coco_masks import CocoMask
from cam_pipeline.data.masks import sample_mask
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError
from cam_pipeline.ops.ignore import IGNORE_INDEX

logger = logging.getLogger(__name__)

FEW = 2
"""Images whose mask and labels disagree, up to which there is no line about all of them."""
WORST = 3
"""Images that are named in a line about many."""

LabelsIn = Callable[[Sample], Collection[int]]
"""Gives the labels that a sample's mask holds."""


@dataclass(frozen=True)
class Shown:
    """What the masks of some images show.

    `missing` are classes of which no mask has a pixel although labels name them; `classes` and `decided` say whether
    there is a pixel of any class, and one that is not ignored; `ignored`, whether there is one that is.
    """

    missing: tuple[int, ...]
    classes: bool
    decided: bool
    ignored: bool


def shown_in(samples: Sequence[Sample], labels_in: LabelsIn) -> Shown:
    """What the masks of samples show. Looks at no more masks than it takes: one of each class if all is well."""
    named = {class_id for sample in samples for class_id in sample.class_ids or ()}
    found: set[int] = set()
    for class_id in sorted(named):
        for sample in samples:
            if class_id in found:
                break
            if class_id in (sample.class_ids or ()):
                found |= {*labels_in(sample)}
    for sample in samples:
        if found - {0, IGNORE_INDEX}:
            break
        found |= {*labels_in(sample)}
    return Shown(
        missing=tuple(sorted(named - found)),
        classes=bool(found - {0, IGNORE_INDEX}),
        decided=bool(found - {IGNORE_INDEX}),
        ignored=IGNORE_INDEX in found,
    )


def nothing_to_learn(split: str, samples: Sequence[Sample], classes: Sequence[str], shown: Shown) -> str:
    """Why nothing can be learned from, or compared with, the masks of a split; "" if it has pixels of classes."""
    if shown.classes:
        return ""
    instead = f"write class numbers in its place (1: {classes[0]})"
    if shown.ignored and all(isinstance(sample.mask, CocoMask) for sample in samples):
        why = "their outlines count as crowds (iscrowd), and crowds are ignored; correct iscrowd"
    elif not shown.decided:
        why = f"every pixel is {IGNORE_INDEX}, which means ignore; {instead}"
    elif shown.ignored:
        why = f"they hold 0 and {IGNORE_INDEX}, and {IGNORE_INDEX} means ignore; {instead}"
    else:
        why = "they hold background alone; write class numbers into them"
    return f"no mask of split '{split}' has a pixel of a class: {why}"


def nothing_to_train_on(message: str) -> str:
    """The line that stops a training on masks; `message` is that of `nothing_to_learn`."""
    return f"train_seg.supervision = 'masks': {message}"


def no_class_to_choose_by(split: str) -> str:
    """The line about masks on which no background score can be chosen."""
    return (
        f"refine.background = 'from-split': no mask of split '{split}' that is looked at shows a class "
        f"({IGNORE_INDEX} means ignore); write class numbers into the masks, or set 'auto' or a number"
    )


def classes_without_pixels(split: str, samples: Sequence[Sample], classes: Sequence[str], shown: Shown) -> str:
    """Which classes the labels of a split name although no mask has a pixel of them; "" if there is none."""
    if not shown.missing:
        return ""
    names = ", ".join(classes[class_id - 1] for class_id in shown.missing)
    count = sum(bool({*shown.missing} & {*(sample.class_ids or ())}) for sample in samples)
    images = f"{count} image{'s' * (count > 1)} with a mask"
    hint = f"; {IGNORE_INDEX} means ignore, not an object" if shown.ignored else ""
    return f"split '{split}': the labels of {images} name {names}, but no mask of theirs shows a pixel of that{hint}"


def check_supervision(split: str, samples: Sequence[Sample], classes: Sequence[str]) -> None:
    """Check before training on masks that they hold something to learn, and warn of classes that they lack.

    Raises DataError if every pixel is ignored, or if labels name classes and no mask has a pixel of one.
    """
    shown = shown_in(samples, decoded(len(classes)))
    if message := nothing_to_learn(split, samples, classes, shown):
        if shown.missing or not shown.decided:
            raise DataError(nothing_to_train_on(message))
        logger.warning("train_seg: %s", message)
    elif message := classes_without_pixels(split, samples, classes, shown):
        logger.warning("train_seg: %s", message)


def decoded(num_classes: int) -> LabelsIn:
    """Decodes the mask of a sample when asked for it, and once."""
    return cache(lambda sample: frozenset(np.unique(sample_mask(sample, num_classes)).tolist()))


@dataclass(frozen=True)
class MaskFacts:
    """Findings on a mask: pixels of each label, colours of an indexed file's numbers, and what it says of clicks."""

    pixels: Mapping[int, int]
    palette: Mapping[int, Colour]
    clicks: ClicksOnMask = field(default_factory=ClicksOnMask)


Masks = Sequence[tuple[Sample, MaskFacts]]


def check_shown(
    masks: Masks, classes: Sequence[str], problems: Problems, trained_on: str = "", chosen_on: str = ""
) -> None:
    """Tell of splits whose masks lack classes.

    No class at all is a mistake in the split whose masks are trained on, if labels name one, and in the one on which
    the background score is chosen.
    """
    facts = {sample.id: found for sample, found in masks}
    for split in dict.fromkeys(sample.split for sample, _ in masks):
        samples = [sample for sample, _ in masks if sample.split == split]
        shown = shown_in(samples, lambda sample: facts[sample.id].pixels)
        named = any(sample.class_ids for sample in samples)
        if message := nothing_to_learn(split, samples, classes, shown):
            needed = {
                nothing_to_train_on(message): split == trained_on and (named or not shown.decided),
                no_class_to_choose_by(split): split == chosen_on,
            }
            for line in (line for line, is_needed in needed.items() if is_needed):
                problems.report("masks without a class", line)
            if not any(needed.values()) and (named or shown.ignored):
                problems.warn("masks without a class", message)
        elif message := classes_without_pixels(split, samples, classes, shown):
            problems.warn("class without a pixel", message)


def check_palettes(masks: Masks, problems: Problems) -> None:
    """Warn of colours that have different numbers in different files; else of numbers that have different colours."""
    numbers: dict[Colour, dict[int, list[Path]]] = {}
    colours: dict[int, dict[Colour, list[Path]]] = {}
    for sample, found in masks:
        for number, colour in found.palette.items():
            if isinstance(sample.mask, Path):
                numbers.setdefault(colour, {}).setdefault(number, []).append(sample.mask)
                colours.setdefault(number, {}).setdefault(colour, []).append(sample.mask)
    in_one_file = {
        colour
        for _, found in masks
        for colour in found.palette.values()
        if list(found.palette.values()).count(colour) > 1
    }
    told = [
        f"the colour {shown_colour(colour)} is {_in_files(places)}"
        for colour, places in sorted(numbers.items())
        if len(places) > 1 and colour not in in_one_file
    ] or [
        f"the number {number} is {_in_files({shown_colour(colour): paths for colour, paths in places.items()})}"
        for number, places in sorted(colours.items())
        if len(places) > 1 and number != IGNORE_INDEX
    ]
    for message in told:
        problems.warn("palettes that disagree", f"{message}; if the colours are right, name them in data.colors")


def _in_files(places: Mapping[int, Sequence[Path]] | Mapping[str, Sequence[Path]]) -> str:
    parts = []
    for what, paths in places.items():
        others = f" ({len(paths) - 1} more)" if len(paths) > 1 else ""
        parts.append(f"{what} in {paths[0]}{others}")
    return ", ".join(parts)


def check_denied(masks: Masks, classes: Sequence[str], problems: Problems) -> None:
    """Warn if the labels of more than a few images deny a class that is in their masks."""
    known = [(sample, found.pixels) for sample, found in masks if sample.class_ids is not None]
    denied = []
    for sample, pixels in known:
        allowed = {0, IGNORE_INDEX, *(sample.class_ids or ())}
        of_class = {label: count for label, count in pixels.items() if label not in allowed}
        if of_class:
            most = max(of_class, key=lambda one: of_class[one])
            denied.append((sum(of_class.values()) / sum(pixels.values()), sample.id, classes[most - 1]))
    if len(denied) > FEW:
        most_first = sorted(denied, reverse=True)[:WORST]
        worst = ", ".join(f"{name} ({of}, {100 * share:.1f} %)" for share, name, of in most_first)
        message = (
            f"{len(denied)} of {len(known)} images with masks ({100 * len(denied) / len(known):.0f} %) have pixels of "
            f"classes that their labels deny; the most in {worst}; compare the order of the classes"
        )
        problems.warn("classes that labels deny", message)


def warn_if_unseen(split: str, samples: Iterable[Sample], classes: Sequence[str], pixels: Sequence[int]) -> None:
    """Log which classes labels name of which no mask that was compared with has a pixel: `pixels` of each label."""
    present = {label for label, count in enumerate(pixels) if count}
    samples = list(samples)
    named = {class_id for sample in samples for class_id in sample.class_ids or ()}
    if not present - {0}:
        logger.warning(
            "evaluate: no mask of split '%s' has a pixel of a class (%d means ignore); the figures are of background "
            "alone", split, IGNORE_INDEX
        )  # fmt: skip
    elif missing := sorted(named - present):
        names = ", ".join(classes[class_id - 1] for class_id in missing)
        logger.warning("evaluate: labels of split '%s' name %s, but no mask has a pixel of it", split, names)

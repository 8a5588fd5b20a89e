"""Which images a contact sheet shows, and why."""

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cam_pipeline.data.table import Sample, Table
from cam_pipeline.errors import DataError

FEWEST, MOST = 8, 40
"""Rows of a sheet for which no number is asked: at least, and at most if classes need them."""
TIMES = 2
"""Number of rows in which every class is to be seen."""
DOUBTFUL = 4
"""One row in so many shows an image with the least confident labels."""
NEAR = 3
"""Number of similar ids that are offered for an unknown one."""
FEW_NAMES = 3
"""Number of classes that a title names."""


@dataclass(frozen=True)
class Candidate:
    """An image that a sheet may show: the classes that it shows, and the mean confidence of its labels, if known."""

    name: str
    class_ids: tuple[int, ...]
    confidence: float | None = None


@dataclass(frozen=True)
class Chosen:
    """Names of the images of a sheet, each with the reason in a few words; `title` sums the reasons up."""

    reasons: dict[str, str]
    title: str


def choose(candidates: Sequence[Candidate], classes: Sequence[str], split: str, count: int | None = None) -> Chosen:
    """The images of a sheet: the least confident, then what shows every class TIMES times, then some in between.

    `count` rows, or as many as it takes, at least FEWEST and at most MOST. `classes` begins with the background. Images
    that show several missing classes are preferred; those that are equally good are spread over the split.
    """
    room = min(len(candidates), MOST if count is None else count)
    few = min(room, FEWEST) if count is None else room
    reasons: dict[str, str] = {}
    known = [one for one in candidates if one.confidence is not None]
    for one in sorted(known, key=lambda one: one.confidence or 0.0)[: -(-few // DOUBTFUL)]:
        reasons[one.name] = f"least confident ({one.confidence:.3f})"
    doubtful = len(reasons)
    shown = Counter(class_id for one in candidates if one.name in reasons for class_id in one.class_ids)
    spread = sorted(range(len(candidates)), key=lambda index: index * 0.6180339887 % 1)  # golden ratio
    by_place = [candidates[index] for index in spread]
    for times in range(1, TIMES + 1):
        _cover(by_place, classes, times, room, reasons, shown)
    covering = len(reasons) - doubtful
    for one in by_place:
        if len(reasons) < few and one.name not in reasons:
            reasons[one.name] = "of the rest"
    missing = [classes[class_id] for class_id in sorted({i for one in candidates for i in one.class_ids} - {*+shown})]
    parts = [f"{len(reasons)} of {len(candidates):,} images of '{split}'"]
    parts += [f"{doubtful} least confident of {len(known):,} looked at"] * bool(doubtful)
    parts += [f"{covering} for their classes"] * bool(covering)
    if missing:
        more = f" and {len(missing) - FEW_NAMES} more" if len(missing) > FEW_NAMES else ""
        parts.append(f"no room for {', '.join(missing[:FEW_NAMES])}{more} (--images)")
    return Chosen(reasons, "; ".join(parts))


def _cover(
    candidates: Sequence[Candidate],
    classes: Sequence[str],
    times: int,
    room: int,
    reasons: dict[str, str],
    shown: Counter[int],
) -> None:
    """Add images until every class has been shown so many times, no other image shows one, or there is no room."""

    def lacking(one: Candidate) -> list[int]:
        return [class_id for class_id in one.class_ids if shown[class_id] < times]

    left = [one for one in candidates if one.name not in reasons and lacking(one)]
    while left and len(reasons) < room:
        best = max(left, key=lambda one: len(lacking(one)))  # the first of equals
        reasons[best.name] = f"for {', '.join(classes[class_id] for class_id in lacking(best))}"
        shown.update(best.class_ids)
        left = [one for one in left if one is not best and lacking(one)]


def named(table: Table, given: Sequence[str]) -> list[Sample]:
    """The samples with the given ids, several of which may stand in one text, separated by commas.

    Raises DataError for an unknown id, with ids that are like it, and for texts without an id.
    """
    by_id = {sample.id: sample for sample in table.samples}
    ids = [name for text in given for name in ([text] if text in by_id else map(str.strip, text.split(",")))]
    if given and not any(ids):
        raise DataError(f"--ids names no image; ids look like {next(iter(by_id), '')}")
    for name in ids:
        if name and name not in by_id:
            near = _near(name, list(by_id))
            hint = f"did you mean {', '.join(near)}?" if near else f"ids look like {next(iter(by_id), '')}"
            raise DataError(f"--ids: there is no image {name}; {hint}")
    return [by_id[name] for name in dict.fromkeys(ids) if name]


def _near(name: str, known: Sequence[str]) -> list[str]:
    """Ids that are probably meant: those that contain the name, or whose last part is like it."""
    inside = [one for one in known if name.casefold() in one.casefold()]
    if not inside:  # as a file of the image is called
        stem = name.rpartition(".")[0].casefold()
        inside = [one for one in known if stem and one.casefold().endswith(stem)]
    return inside[:NEAR] or difflib.get_close_matches(name, known, n=NEAR)

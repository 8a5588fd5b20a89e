"""What people say about pixels, beside any layout: the files of `data.clicks` and `data.scribbles`."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.nearest import did_you_mean
from cam_pipeline.data.readers.clicks import ClickFiles, form, names_of
from cam_pipeline.data.readers.listing import check_inside
from cam_pipeline.data.readers.scribbles import with_scribble
from cam_pipeline.data.strokes import Click, ScribbleXml
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.data.zips import is_zip, xml_members
from cam_pipeline.errors import DataError
from cam_pipeline.ops.ignore import IGNORE_INDEX

VOC_FOLDER = "Scribbles"
ENDINGS = (".png", ".xml", ".json")
"""Of files of scribbles: indexed PNG, ScribbleSup's XML, Labelme's JSON."""


def with_marks(table: Table, settings: DataSettings, problems: Problems) -> Table:
    """The table with the clicks of `data.clicks` and the scribbles of `data.scribbles` beside those that it has.

    An image with unknown labels gets the classes that are clicked or drawn in it, if there is one. A click on a class
    that the labels of its image deny is reported, and left out.
    """
    samples: Iterable[Sample] = table.samples
    if settings.scribbles or settings.format == "voc":
        samples = _with_scribbles(table, settings, problems)
    if settings.clicks:
        samples = _with_clicks(tuple(samples), table.classes, settings, problems)
    return replace(table, samples=tuple(_labelled(sample, table.classes, problems) for sample in samples))


def _with_clicks(
    samples: tuple[Sample, ...], classes: tuple[str, ...], settings: DataSettings, problems: Problems
) -> list[Sample]:
    """The samples with the clicks of `data.clicks`. Clicks of no image are told of."""
    found = ClickFiles(settings.root, classes, problems).read(settings.root / settings.clicks, "data.clicks")
    if of_none := found.pop("", []):
        problems.report("click without image", f"{of_none[0].source}: it names no image; write the image of each click")
    by_name = _by_name(samples)
    clicks: dict[str, list[Click]] = {}
    absent: list[str] = []
    for name, of_image in found.items():
        sample = by_name.get(form(name))
        if sample is None:
            absent.append(f"{of_image[0].source}: the data set has no image {name}, or several of this name")
        else:
            clicks.setdefault(sample.id, []).extend(of_image)
    if absent and clicks:  # of images that were taken out, or of a split that is not read
        more = f" ({len(absent) - 1} more like this)" if len(absent) > 1 else ""
        problems.warn("click without image", f"{absent[0]}{more}; its clicks are left out")
    for message in () if clicks else absent:
        problems.report("click without image", f"{message}; write ids as check-data shows them, or file names")
    return [replace(sample, clicks=(*sample.clicks, *clicks.get(sample.id, ()))) for sample in samples]


def _by_name(samples: Iterable[Sample]) -> dict[str, Sample]:
    """The samples by all that may name them (see `names_of`), without names of several; an id is never ambiguous."""
    by_id: dict[str, Sample] = {}
    others: dict[str, Sample | None] = {}
    for sample in samples:
        by_id[form(sample.id)] = sample
        for name in names_of(sample):
            others[name] = sample if others.get(name, sample) is sample else None
    return {**{name: sample for name, sample in others.items() if sample is not None}, **by_id}


def _with_scribbles(table: Table, settings: DataSettings, problems: Problems) -> list[Sample]:
    """The samples with the files of `data.scribbles` that are named by their ids. Raises DataError if it is not there.

    A scribble that the table itself names stays.
    """
    folder = settings.root / (settings.scribbles or VOC_FOLDER)
    if not os.path.isdir(folder) and not is_zip(folder):  # pathlib raises OSError for a name that is too long
        if settings.scribbles:
            near = did_you_mean(folder, settings.root)
            raise DataError(
                f"data.scribbles: there is no folder or zip file {folder}{near}; correct it, or set it to ''"
            )
        return list(table.samples)
    check_inside(folder, settings.root)
    if folder.is_dir():
        found = [_with_file(sample, folder, settings.root, table.classes, problems) for sample in table.samples]
    else:
        members = {form(name): member for name, member in xml_members(folder).items()}
        found = [_with_member(sample, folder, members, table.classes) for sample in table.samples]
    if found and not any(sample.clicks or sample.scribble for sample in found):
        example = f"{found[0].id}{ENDINGS[0] if folder.is_dir() else '.xml'}"
        message = f"{folder}: no file in it has the name of an image, such as {example}"
        problems.warn("scribbles that are not used", message)
    return found


def _with_file(sample: Sample, folder: Path, root: Path, classes: tuple[str, ...], problems: Problems) -> Sample:
    """The sample with its file in the folder of scribbles, if there is one and it has none yet."""
    paths = [Path(os.path.normpath(folder / f"{sample.id}{ending}")) for ending in ENDINGS]
    files = [path for path in paths if path.is_file() and path not in (sample.image, sample.mask)]
    if sample.scribble is not None or not files:
        return sample
    if len(files) > 1:
        message = f"{files[0]} and {files[1].name} are both scribbles of image {sample.id}; delete one"
        problems.report("two scribbles of one image", message)
    if files[0].is_symlink():
        check_inside(files[0], root)
    return with_scribble(sample, files[0], classes, problems)


def _with_member(sample: Sample, archive: Path, members: Mapping[str, str], classes: tuple[str, ...]) -> Sample:
    """The sample with its file in the zip file of scribbles, if there is one and it has none yet."""
    member = members.get(form(sample.id)) or members.get(form(PurePosixPath(sample.id).name))
    if sample.scribble is not None or member is None:
        return sample
    return replace(sample, scribble=ScribbleXml(archive, classes, member))


def _labelled(sample: Sample, classes: tuple[str, ...], problems: Problems) -> Sample:
    """The sample with labels from its marks if it has none, and without clicks that contradict those that it has."""
    if sample.class_ids is None:
        shown = {click.label for click in sample.clicks} | _drawn(sample, len(classes))
        shown -= {0, IGNORE_INDEX}
        return replace(sample, class_ids=tuple(sorted(shown))) if shown else sample
    wrong = [click for click in sample.clicks if click.label and click.label not in sample.class_ids]
    for click in wrong:
        problems.report("click that contradicts the labels", contradiction(click, sample, classes))
    return replace(sample, clicks=tuple(click for click in sample.clicks if click not in wrong)) if wrong else sample


def _drawn(sample: Sample, num_classes: int) -> set[int]:
    """The labels in a scribble; empty if it cannot be read, which whoever needs it tells of."""
    if sample.scribble is None:
        return set()
    from cam_pipeline.data.marks import scribble_labels  # it needs Pillow, and few data sets come here

    try:
        return set(scribble_labels(sample, num_classes)[0].ravel().tolist())
    except DataError:
        return set()


def contradiction(click: Click, sample: Sample, classes: tuple[str, ...]) -> str:
    """The message about a click on a class that is not among its image's labels."""
    name = classes[click.label - 1]
    known = ", ".join(classes[class_id - 1] for class_id in sample.class_ids or ())
    labels = f"are {known}" if known else "say that it shows no class"
    return (
        f"{click.source}: a click on {name}, but the labels of image {sample.id} {labels}{sample.named_in}; add {name} "
        "to the labels, make them unknown, or delete the click"
    )

"""COCO: a JSON file of images, categories and annotations for each split."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from cam_pipeline.config import DataSettings, toml_value
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.coco_masks import CocoMask, Region
from cam_pipeline.data.names import is_class
from cam_pipeline.data.readers.coco_file import Category, CocoFile, Image, Key, read_file
from cam_pipeline.data.readers.listing import Listing, check_inside, class_names, no_class_labels
from cam_pipeline.data.strokes import Click, Stroke, Strokes
from cam_pipeline.data.table import Sample, Table, unknown_class
from cam_pipeline.errors import DataError
from cam_pipeline.ops.ignore import IGNORE_INDEX


def read_coco(settings: DataSettings, problems: Problems) -> Table:
    """Categories become labels 1..C by rising id, or by their place in `data.classes`; a crowd is a label, too.

    An image without annotations shows none of the classes. `point`, `points` and visible `keypoints` are clicks. Masks
    are drawn from the segmentations (`data.coco_masks`); an image has none if one of its annotations lacks a
    segmentation. The id is the image's path below the root without suffix.
    """
    files = {
        path: (split, read_file(*_state(path, settings.root, may_be_left_out=split != settings.train)))
        for split, path in _paths(settings).items()
    }
    for _, file in files.values():
        for problem in file.problems:
            problems.report(problem.kind, problem.message)
        for warning in file.warnings:
            problems.warn(warning.kind, warning.message)
    categories = _categories({path: file for path, (_, file) in files.items()}, settings, problems)
    classes = class_names(settings, _names(categories), problems)
    listing = Listing(settings, classes, problems)
    labels = no_class_labels(categories.values()) | {name: label for label, name in enumerate(classes, 1)}
    label_of = {key: labels[name] for key, name in categories.items() if name in labels}
    for path, (split, file) in files.items():
        _report_unknown(path, file, label_of, listing)
        folder = settings.images.replace("{split}", split)
        for image in file.images.values():
            outlines = [(label_of[one], region) for one, region in file.outlines.get(image.id, ()) if one in label_of]
            points = file.clicks.get(image.id, ())
            clicks = [replace(click, label=label_of[one]) for one, click in points if one in label_of]
            _add(listing, image, outlines, clicks, split, folder, f"{path}, image {image.id}")
    return listing.table()


def _names(categories: Mapping[Key, str]) -> list[str]:
    """The class names by rising id, each once; ids that are text come last."""
    ordered = sorted(categories, key=lambda key: (isinstance(key, str), key))
    return list(dict.fromkeys(categories[key] for key in ordered))


def _add(
    listing: Listing,
    image: Image,
    outlines: list[tuple[int, Region | None]],
    clicks: list[Click],
    split: str,
    folder: str,
    where: str,
) -> None:
    """Add one image, whose outlines have labels in place of categories."""
    path = listing.path(str(PurePosixPath(folder, image.file_name)), where)
    if path is None:
        return
    regions = tuple(
        Region(label, region.crowd, region.polygons, region.runs) for label, region in outlines if region is not None
    )
    complete = len(regions) == len(outlines)
    sample = Sample(
        id=path.with_suffix("").as_posix(),
        image=listing.root / path,
        split=split,
        class_ids=tuple(sorted({label for label, _ in outlines} - {0, IGNORE_INDEX})),
        mask=CocoMask(*image.size, regions, where) if complete else None,
        clicks=tuple(click for click in clicks if click.label != IGNORE_INDEX),
    )
    if clicks and not complete:
        strokes = tuple(_filled(regions))
        sample = replace(sample, scribble=Strokes(strokes, image.size, where) if strokes else None)
    listing.add(sample, where)


def _filled(regions: Iterable[Region]) -> Iterator[Stroke]:
    """The polygons of objects as painted regions, for an image in which other objects have only points."""
    for region in regions:
        for polygon in region.polygons if not region.crowd and region.label != IGNORE_INDEX else ():
            points = np.frombuffer(polygon).reshape(-1, 2).tolist()
            yield Stroke(region.label, tuple((x, y) for x, y in points), filled=True)


def _report_unknown(path: Path, file: CocoFile, label_of: Mapping[Key, int], listing: Listing) -> None:
    """Report each category that has annotations but no label."""
    for key in sorted(file.used - label_of.keys(), key=str):
        message = unknown_class(file.categories[key].name, listing.classes)
        listing.problems.report("unknown class", f"{path}, category {key}: {message}")


def _categories(files: Mapping[Path, CocoFile], settings: DataSettings, problems: Problems) -> dict[Key, str]:
    """Name of every category id; the files of the splits must agree.

    A category without annotations is left out if it is only the supercategory of others, or another has its name. Two
    that have annotations and one name are reported, unless the settings name the classes: both are then one.
    """
    found: dict[Key, Category] = {}
    for path, file in files.items():
        for key, category in file.categories.items():
            if found.setdefault(key, category).name != category.name:
                message = (
                    f"{path}: category {key} is '{category.name}', but '{found[key].name}' in another split's file"
                )
                problems.report("categories that differ", f"{message}; use one name, or two ids")
    used = set[Key]().union(*(file.used for file in files.values()))
    where, given = " and ".join(map(str, files)), settings.classes or (settings.root / "classes.txt").is_file()
    kept = dict(found)
    alike = Counter(category.name for category in found.values())
    under = Counter(str(category.supercategory) for category in found.values())
    for key, category in found.items():
        over = under[category.name] > (category.supercategory == category.name)  # over another than itself
        if key not in used and (over or alike[category.name] > 1):
            del kept[key]
            alike[category.name] -= 1
            under[str(category.supercategory)] -= 1
            if over and not given:
                message = f"{where}: category {key}, '{category.name}', has no annotations and stands only above others"
                problems.warn("category that is left out", f"{message}; it is no class here")
    names = {key: category.name for key, category in kept.items()}
    for name in dict.fromkeys(names.values()):
        keys = [str(key) for key in names if names[key] == name]
        if len(keys) > 1 and not given and is_class(name):
            problems.report(
                "category named twice",
                f"{where}: the categories {' and '.join(keys)} have one name, '{name}'; rename all but one, or set "
                f"data.classes = {toml_value(_names(names))} to make them one class",
            )
    return names


def _paths(settings: DataSettings) -> dict[str, Path]:
    """The annotation file of each split."""
    splits = [split for split in (settings.train, settings.val) if split]
    return {split: settings.root / settings.annotations.replace("{split}", split) for split in splits}


def _state(path: Path, root: Path, may_be_left_out: bool) -> tuple[Path, int, int]:
    """A split's file, its size and time of change. Raises DataError if they cannot be read."""
    check_inside(path, root)
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        remedy = "data.annotations, or data.val to ''" if may_be_left_out else "data.annotations or data.train"
        raise DataError(f"{path} cannot be read ({reason}); put it there, or set {remedy}") from error
    return path, state.st_size, state.st_mtime_ns

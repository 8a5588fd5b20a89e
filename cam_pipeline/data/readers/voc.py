"""The PASCAL VOC layout: JPEGImages/, SegmentationClass/, ImageSets/Segmentation/<split>.txt, Annotations/."""

import os
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.readers.listing import Listing, class_names, image_files, read_text
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.errors import DataError, LibraryMissing

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

Names = dict[str, tuple[str, Sequence[str]]]  # id -> where its labels stand, class names


def read_voc(settings: DataSettings, problems: Problems) -> Table:
    """Images of the split lists, one id a line; labels from `data.labels`, a file or the folder of XML files.

    An id without a line, or without an XML file, is an image with unknown labels. In XML every `<object>` counts,
    difficult ones too. If no classes are given and one in the files is not among VOC's twenty, the classes are those in
    the files.
    """
    root = settings.root
    splits = [split for split in (settings.train, settings.val) if split]
    lists = {split: _ids(root / "ImageSets" / "Segmentation" / f"{split}.txt", problems) for split in splits}
    labels = root / settings.labels
    if labels.is_dir():
        names = _names_in_xml(labels, [name for ids in lists.values() for name, _ in ids], problems)
        found = {name for _, shown in names.values() for name in shown}
        classes = class_names(settings, VOC_CLASSES if found <= set(VOC_CLASSES) else sorted(found))
    else:
        names = _names_in_lines(labels, problems)
        classes = class_names(settings, VOC_CLASSES)
    listing = Listing(settings, classes, problems)
    class_ids = {name: listing.class_ids(shown, where) for name, (where, shown) in names.items()}
    files_in = cache(image_files)
    for split, ids in lists.items():
        for name, where in ids:
            image = _find_image(listing, name, where, files_in)
            mask = listing.path(f"{settings.masks}/{name}.png", where) if image else None
            if image and mask:
                file = root / mask
                sample = Sample(name, root / image, split, class_ids.get(name), file if file.is_file() else None)
                listing.add(sample, where)
    return listing.table()


def _ids(path: Path, problems: Problems) -> list[tuple[str, str]]:
    """(id, where it stands) for each line of a split list."""
    found = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        words = line.split()
        where = f"{path}, line {number}"
        if len(words) > 1:
            problems.report("row that cannot be read", f"{where}: there must be one id in a line, not '{line[:100]}'")
        elif words:
            found.append((words[0], where))
    return found


def _find_image(
    listing: Listing, name: str, where: str, files_in: Callable[[Path], dict[str, list[str]]]
) -> PurePosixPath | None:
    """Path of an id's image relative to the root, with .jpg if there is no file; None if it leads out of the root."""
    path = listing.path(f"JPEGImages/{name}.jpg", where)
    files = files_in(listing.root / path.parent).get(path.stem, []) if path else []
    if path and len(files) > 1:
        message = f"{where}: {' and '.join(files)} in {listing.root / path.parent} both fit; rename or delete one"
        listing.problems.report("two images with one stem", message)
    return listing.path(str(path.with_name(files[0])), where) if path and files else path


def _names_in_lines(path: Path, problems: Problems) -> Names:
    """Class names from a file of lines `id class class ...`."""
    found: Names = {}
    text = read_text(path, "for XML files set data.labels to their folder (Annotations)")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            name, *names = line.split()
            where = f"{path}, line {number}"
            if name in found:
                message = f"{where}: {name} already has labels in {found[name][0]}; put all its classes into one line"
                problems.report("duplicate id", message)
            else:
                found[name] = where, names
    return found


def _names_in_xml(folder: Path, ids: list[str], problems: Problems) -> Names:
    """Class names from the objects in `folder/<id>.xml`, for the ids that have such a file."""
    found: Names = {}
    with os.scandir(folder) as entries:
        states = {entry.name: entry.stat() for entry in entries if entry.is_file()}
    for name in ids:
        state = states.get(f"{name}.xml")
        if state is not None:
            path = folder / f"{name}.xml"
            try:
                found[name] = str(path), object_names(path, state.st_size, state.st_mtime_ns)
            except DataError as error:
                problems.report("annotation that cannot be read", str(error))
    return found


@lru_cache(maxsize=100_000)
def object_names(path: Path, size: int, mtime_ns: int) -> tuple[str, ...]:
    """Names of the objects in an XML file, read again only if size or time of change differ. Raises DataError."""
    try:
        from defusedxml.common import DefusedXmlException
        from defusedxml.ElementTree import ParseError, parse
    except ImportError as error:
        raise LibraryMissing(
            f"defusedxml reads the XML annotations and cannot be imported ({error}). Install it: pip install defusedxml"
        ) from error
    try:
        root = parse(path, forbid_dtd=True).getroot()
    except DefusedXmlException:  # entities could grow to gigabytes; VOC files have none
        raise DataError(f"{path}: it declares a document type or entities, which are not read; delete them") from None
    except (OSError, ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path} cannot be read as XML ({error}); replace it, or delete it") from error
    names = [(one.findtext("name") or "").strip() for one in root.findall("object")]
    if root.tag != "annotation" or not all(names):
        raise DataError(f"{path}: not a VOC annotation, in which each <object> of an <annotation> has a <name>")
    return tuple(dict.fromkeys(names))

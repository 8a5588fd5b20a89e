"""CSV: a table `image,labels[,mask,split]`."""

import csv
from pathlib import Path

from cam_pipeline.config import DataSettings
from cam_pipeline.data.problems import Problems
from cam_pipeline.data.readers.listing import Listing, class_names, read_text
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.errors import DataError

LABEL_SEPARATOR = ";"
UNKNOWN = "?"

Row = tuple[str, dict[str, str]]  # where it stands; its cells by column


def read_csv(settings: DataSettings, problems: Problems) -> Table:
    """Paths are relative to `root`, labels joined by `;`, `?` stands for unknown labels.

    An empty `labels` cell says that the image shows none of the classes. Without a `split` column every image
    belongs to the training split. The id is the image path without its suffix.
    """
    rows = _read_rows(settings.root / settings.table, problems)
    named = {name for _, row in rows for name in _names(row["labels"])} - {UNKNOWN}
    listing = Listing(settings, class_names(settings, sorted(named)), problems)
    for where, row in rows:
        class_ids = _class_ids(row["labels"], where, listing)
        if not row["image"].strip():
            problems.report("row that can not be read", f"{where}: the image cell is empty; name a file")
            continue
        image = listing.path(row["image"], where)
        mask = listing.path(row["mask"], where) if row.get("mask") else None
        if image is None:
            continue
        sample = Sample(
            id=image.with_suffix("").as_posix(),
            image=settings.root / image,
            split=(row.get("split") or settings.train).strip(),
            class_ids=class_ids,
            mask=settings.root / mask if mask else None,
        )
        listing.add(sample, where)
    return listing.table()


def _class_ids(cell: str, where: str, listing: Listing) -> tuple[int, ...] | None:
    """Class ids of a `labels` cell; None for unknown ones."""
    names = set(_names(cell))
    if UNKNOWN not in names:
        return listing.class_ids(sorted(names), where)
    if names != {UNKNOWN}:
        message = f"{where}: '{cell}' is known and unknown at once; write either `{UNKNOWN}` or the labels"
        listing.problems.report("label that contradicts itself", message)
    return None


def _read_rows(path: Path, problems: Problems) -> list[Row]:
    """Every row that has as many cells as the header. Raises DataError for what is no such table."""
    table = csv.DictReader(read_text(path).splitlines())
    rows: list[Row] = []
    try:
        missing = {"image", "labels"} - set(table.fieldnames or ())
        if missing:
            raise DataError(
                f"{path}, line 1: the header needs the columns image and labels; missing: {', '.join(sorted(missing))}"
            )
        for row in table:
            where = f"{path}, line {table.line_num}"
            if None in row or None in row.values():
                message = f"{where}: more or fewer cells than the header; join labels by `{LABEL_SEPARATOR}`"
                problems.report("row that can not be read", message)
                continue
            rows.append((where, row))
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}: {error}; is a quotation mark missing?") from error
    return rows


def _names(cell: str) -> list[str]:
    names = [name.strip() for name in cell.split(LABEL_SEPARATOR)]
    return [name for name in names if name]

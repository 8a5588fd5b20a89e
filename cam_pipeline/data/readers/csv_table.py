"""CSV: a table `image,labels[,mask,split]`."""

import csv
import difflib
import io
from collections.abc import Sequence
from pathlib import Path

from cam_pipeline.config import DataSettings
from cam_pipeline.config.mistakes import shown
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.readers.listing import Listing, class_names, read_text
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.errors import DataError

COLUMNS = ("image", "labels", "mask", "split")
LABEL_SEPARATOR = ";"
UNKNOWN = "?"
LIKENESS = 0.85
"""A name this similar (difflib's ratio) is taken for a misspelt column: `masks` (0.89) is one, `task` (0.75) is not."""

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
        if not row["image"]:
            problems.report("row that cannot be read", f"{where}: the image cell is empty; name a file")
            continue
        image = listing.path(row["image"], where)
        mask = listing.path(row["mask"], where) if row.get("mask") else None
        if image is None:
            continue
        sample = Sample(
            id=image.with_suffix("").as_posix(),
            image=settings.root / image,
            split=row.get("split") or settings.train,
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
    """Every row that has as many cells as the header, without blanks around cells. Raises DataError if it is no table.

    Warns of columns that are not used.
    """
    table = csv.reader(io.StringIO(read_text(path), newline=""))
    rows: list[Row] = []
    try:
        columns = [name.strip() for name in next(table, [])]
        _check_header(columns, path)
        for name in dict.fromkeys(columns):
            if name and name not in COLUMNS:
                problems.warn("column that is not used", f"{path}, line 1: {shown(name)}")
        line = table.line_num + 1
        for cells in table:
            where = f"{path}, line {line}"
            line = table.line_num + 1
            if any("\n" in cell for cell in cells):  # a quotation mark is missing, or two names would become one
                message = f"{where}: a line break in a cell; remove it, or add the quotation mark that is missing"
                problems.report("row that cannot be read", message)
            elif cells and len(cells) != len(columns):
                message = f"{where}: more or fewer cells than the header; join labels by `{LABEL_SEPARATOR}`"
                problems.report("row that cannot be read", message)
            elif cells:
                rows.append((where, dict(zip(columns, map(str.strip, cells), strict=True))))
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}: {error}; is a quotation mark missing?") from error
    return rows


def _check_header(columns: Sequence[str], path: Path) -> None:
    """Raise DataError if `image` or `labels` is missing, or a column comes twice (empty names are no columns).

    Also if a name is nearly that of an absent column: it is misspelt, and the column would be ignored silently.
    """
    where = f"{path}, line 1"
    absent = [name for name in COLUMNS if name not in columns]
    for name in columns:
        near = [] if name in COLUMNS else difflib.get_close_matches(name.casefold(), absent, n=1, cutoff=LIKENESS)
        if near:
            raise DataError(
                f"{where}: unknown column {shown(name)}; did you mean '{near[0]}'? If not, give it another name"
            )
    missing = sorted({"image", "labels"} & {*absent})
    if missing:
        raise DataError(
            f"{where}: the header needs the columns image and labels, separated by commas; "
            f"missing: {', '.join(missing)}; the header is {shown(','.join(columns))}"
        )
    twice = [name for name in columns if name and columns.count(name) > 1]
    if twice:
        raise DataError(
            f"{where}: the column {twice[0]} appears twice; keep one (join the labels of an image by "
            f"`{LABEL_SEPARATOR}`)"
        )


def _names(cell: str) -> list[str]:
    names = [name.strip() for name in cell.split(LABEL_SEPARATOR)]
    return [name for name in names if name]

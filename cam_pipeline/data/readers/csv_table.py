"""CSV: a table `image,labels[,mask,split,scribble,clicks]`."""

import csv
import difflib
import io
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from cam_pipeline.config import DataSettings
from cam_pipeline.config.mistakes import shown
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.names import (
    all_joined,
    clean,
    in_brackets,
    in_order,
    is_class,
    is_missing,
    is_number,
    system_part,
)
from cam_pipeline.data.readers.clicks import ClickFiles
from cam_pipeline.data.readers.listing import IMAGE_SUFFIXES, Listing, class_names, given_names, read_text
from cam_pipeline.data.readers.scribbles import with_scribble
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.errors import DataError

COLUMNS = ("image", "labels", "mask", "split")
MARKS = ("scribble", "clicks")
"""Further columns. A name that is nearly one of them may mean something else, so that a table that has it is read."""
OTHER_NAMES = {
    "image": ("file", "filename", "file_name", "filepath", "file_path", "path", "img", "image_path", "image_name",
              "image_file", "image_id", "name", "id", "picture", "photo"),
    "labels": ("class", "classes", "class_name", "category", "categories", "tag", "tags", "target", "targets"),
}  # fmt: skip
"""What other programs call the columns that must be there."""
DELIMITERS = (",", ";", "\t", "|")
"""What may stand between cells. Excel writes `;` where a comma is the decimal sign, and tabs into its Unicode text."""
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
    given = given_names(settings)[1]
    rows = _read_rows(settings.root / settings.table, settings.root, problems)
    labels = {row["labels"] for _, row in rows if not _is_left_out(row)}
    wrong = _wrong_cells(labels, given)
    named = {name for cell in labels for name in wrong.get(cell, _names(cell)) if name != UNKNOWN and is_class(name)}
    otherwise = () if given else in_order(_in_one_form(named, problems))
    listing = Listing(settings, class_names(settings, otherwise, problems), problems)
    clicked = ClickFiles(settings.root, listing.classes, problems)
    for where, row in rows:
        if _is_left_out(row) and listing.is_left_out(row["image"], where):
            continue
        class_ids = _class_ids(row["labels"], where, listing, wrong)
        if not row["image"]:
            problems.report("row that cannot be read", f"{where}: the image cell is empty; name a file")
            continue
        image = listing.path(row["image"], where)
        mask = _file("mask", row, where, listing)
        scribble = _file("scribble", row, where, listing)
        clicks = _file("clicks", row, where, listing)
        if image is None:
            continue
        sample = Sample(
            id=image.with_suffix("").as_posix(),
            image=settings.root / image,
            split=row.get("split") or settings.train,
            class_ids=class_ids,
            mask=settings.root / mask if mask else None,
        )
        if scribble:
            sample = with_scribble(sample, settings.root / scribble, listing.classes, problems, where)
        if clicks:
            sample = clicked.added(sample, settings.root / clicks, where)
        listing.add(sample, where)
    return listing.table()


def _file(column: str, row: dict[str, str], where: str, listing: Listing) -> PurePosixPath | None:
    """The path in a cell; None for an empty one, and for the name of a missing value if no file has it."""
    cell = row.get(column, "")
    if is_missing(cell) and not (listing.root / cell).exists():
        message = f"{where}: the {column} is {shown(cell)}: taken for an empty cell"
        listing.problems.warn(f"{column} named like a missing value", message)
        return None
    if column == "clicks" and is_number(cell):
        message = (
            f"{where}: {shown(cell)} in the column clicks is left out; it names a file with the clicks of an image"
        )
        listing.problems.warn("column that is not used", message)
        return None
    return listing.path(cell, where) if cell else None


def _in_one_form(names: Iterable[str], problems: Problems) -> list[str]:
    """Each name once, the first of those that differ in Unicode form alone; a warning tells of these."""
    found: dict[str, str] = {}
    for name in sorted(names):
        if found.setdefault(unicodedata.normalize("NFC", name), name) != name:
            problems.warn("label written in two Unicode forms", f"{name!a} is {shown(name)}: the same class")
    return list(found.values())


def _is_left_out(row: dict[str, str]) -> bool:
    """Whether a row names a file that a system has made."""
    return bool(system_part(row["image"].split("/")))


def _wrong_cells(cells: Iterable[str], given: Collection[str]) -> dict[str, list[str]]:
    """Cells whose labels are not joined by `;`, but in another way, and the labels in them.

    A list in brackets is such a cell, and one that joins labels of other cells by another sign, unless `given` has it.
    """
    names_in = {cell: [name for name in _names(cell) if name not in given] for cell in dict.fromkeys(cells)}
    lists = {cell: in_brackets(cell) for cell, names in names_in.items() if names}
    found = {cell: names for cell, names in lists.items() if names is not None}
    together = all_joined({name for cell, names in names_in.items() if cell not in found for name in names})
    for cell, names in names_in.items():
        if not given and cell not in found and any(name in together for name in names):
            found[cell] = [part for name in names for part in together.get(name, [name])]
    return found


def _class_ids(cell: str, where: str, listing: Listing, wrong: Mapping[str, list[str]]) -> tuple[int, ...] | None:
    """Class ids of a `labels` cell; None for unknown ones."""
    if cell in wrong:
        right = LABEL_SEPARATOR.join(wrong[cell])
        remedy = f"write {right}" if right else "leave the cell empty for no label"
        message = f"{where}: {shown(cell)} would be one class; labels are joined by `{LABEL_SEPARATOR}`: {remedy}"
        kind = f"labels that are not joined by {LABEL_SEPARATOR}"
        listing.problems.report(kind, f"{message} (or list it in data.classes if it is one)")
        return ()
    names = set(_names(cell))
    if UNKNOWN not in names:
        return listing.class_ids(in_order(names), where, "leave the cell empty if the image shows none of the classes")
    if names != {UNKNOWN}:
        message = f"{where}: '{cell}' is known and unknown at once; write either `{UNKNOWN}` or the labels"
        listing.problems.report("label that contradicts itself", message)
    return None


def _read_rows(path: Path, root: Path, problems: Problems) -> list[Row]:
    """Every row that has as many cells as the header, without blanks around cells. Raises DataError if it is no table.

    Rows whose cells are all empty are left out. Warns of columns that are not used.
    """
    text = read_text(path, root, "" if path.exists() else _other_tables(root))
    first, delimiter = _first_line(text)
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[Row] = []
    try:
        for _ in range(first - 1):
            next(table)
        columns = [clean(name) for name in next(table, [])]
        _check_header(columns, f"{path}, line {first}")
        for name in dict.fromkeys(columns):
            if name and name not in (*COLUMNS, *MARKS):
                near = [one for one in MARKS if one not in columns and _is_like(name, one)]
                hint = f"; did you mean '{near[0]}'?" if near else ""
                problems.warn("column that is not used", f"{path}, line {first}: {shown(name)}{hint}")
        line = table.line_num + 1
        for cells in table:
            where = f"{path}, line {line}"
            line = table.line_num + 1
            cells = [clean(cell) for cell in _cut(cells, len(columns))]
            if any("\n" in cell for cell in cells):  # a quotation mark is missing, or two names would become one
                message = f"{where}: a line break in a cell; remove it, or add the quotation mark that is missing"
                problems.report("row that cannot be read", message)
            elif any(cells) and len(cells) != len(columns):
                join = (
                    f"join labels by `{LABEL_SEPARATOR}`"
                    if delimiter != LABEL_SEPARATOR
                    else f'put labels that are joined by `{LABEL_SEPARATOR}` in quotation marks ("cat;dog")'
                )
                remedy = join if len(cells) > len(columns) else "a comma is missing for each empty cell, too"
                count = f"{len(cells)} cell{'s' * (len(cells) != 1)}, the header has {len(columns)}"
                problems.report("row that cannot be read", f"{where}: {count}; {remedy}")
            elif any(cells):
                rows.append((where, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}: {error}; is a quotation mark missing?") from error
    return rows


def _other_tables(root: Path) -> str:
    """What to set if the table has another name, or the data set another layout; empty if nothing comes to mind."""
    paths = sorted(root.iterdir()) if os.access(root, os.R_OK) else []
    if names := [path.name for path in paths if path.suffix.casefold() in (".csv", ".tsv")]:
        return f"there is {', '.join(names[:5])}: set data.table"
    folders = [path.name for path in paths if path.is_dir() and not path.name.startswith(".")]
    layout = "voc" if "ImageSets" in folders else "coco" if "annotations" in folders else "folders" if folders else ""
    return f"there are the folders {', '.join(folders[:5])}: is data.format '{layout}'?" if layout else ""


def _first_line(text: str) -> tuple[int, str]:
    """The number of the header's line, and what stands between cells: `,` unless another sign makes a header of it.

    Above it there may be empty rows, and a line `sep=;`, which tells Excel this sign.
    """
    lines = re.split(r"\r\n|\r|\n", text[:10_000])
    empty = re.compile(r'"?sep=.?"?[,;\t]*|[\s,;|"]*', re.IGNORECASE)
    first = next((number for number, line in enumerate(lines, 1) if not empty.fullmatch(line)), 1)
    header = lines[first - 1]
    for delimiter in DELIMITERS:
        cells = next(csv.reader([header], delimiter=delimiter), [])
        if {"image", "labels"} <= {clean(cell) for cell in cells}:
            return first, delimiter
    return first, max(DELIMITERS, key=lambda one: (header.count(one) > 0 and "," not in header, one == ","))


def _cut(cells: list[str], number: int) -> list[str]:
    """The cells without empty ones behind the last column; spreadsheets write such."""
    while len(cells) > number and not clean(cells[-1]):
        cells = cells[:-1]
    return cells


def _check_header(columns: Sequence[str], where: str) -> None:
    """Raise DataError if `image` or `labels` is missing, or a column comes twice (empty names are no columns).

    Also if a name is nearly that of an absent column: it is misspelt, and the column would be ignored silently.
    """
    absent = [name for name in COLUMNS if name not in columns]
    for name in columns:
        near = [] if name in (*COLUMNS, *MARKS) else [one for one in absent if _is_like(name, one)]
        if near:
            raise DataError(
                f"{where}: unknown column {shown(name)}; did you mean '{near[0]}'? If not, give it another name"
            )
    missing = sorted({"image", "labels"} & {*absent})
    if missing:
        raise DataError(
            f"{where}: the header needs the columns image and labels, separated by commas; "
            f"missing: {', '.join(missing)}; the header is {shown(','.join(columns))}{_hint(columns, missing)}"
        )
    twice = [name for name in columns if name and columns.count(name) > 1]
    if twice:
        raise DataError(
            f"{where}: the column {twice[0]} appears twice; keep one (join the labels of an image by "
            f"`{LABEL_SEPARATOR}`)"
        )


def _is_like(name: str, column: str) -> bool:
    """Whether a name is that of a column, misspelt."""
    return bool(difflib.get_close_matches(name.casefold(), [column], cutoff=LIKENESS))


def _hint(columns: Sequence[str], missing: Sequence[str]) -> str:
    """What is probably wrong with a header that lacks columns; empty if nothing comes to mind."""
    if len(columns) == 1 and "," in columns[0]:
        return "; remove the quotation marks around the whole line"
    if any(name.casefold().endswith(IMAGE_SUFFIXES) for name in columns):
        return "; it looks like an image's row: put the line image,labels above it"
    small = {name.casefold(): name for name in columns}
    likely = {one: small[name] for one in missing for name in OTHER_NAMES[one] if name in small}
    if likely:
        return f"; rename {' and '.join(f'{shown(name)} to {one}' for one, name in likely.items())}"
    several = missing == ["labels"] and len(columns) > 2
    return f"; it is one column, with the names of an image's classes joined by `{LABEL_SEPARATOR}`" if several else ""


def _names(cell: str) -> list[str]:
    names = [clean(name) for name in cell.split(LABEL_SEPARATOR)]
    return [UNKNOWN if name == "\uff1f" else name for name in names if name]  # a wide ? of Chinese and Japanese

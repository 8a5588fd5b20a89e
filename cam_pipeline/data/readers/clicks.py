"""Files of clicks: a table `image,x,y,class`, or JSON. docs/data.md shows the forms."""

import csv
import io
import json
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from cam_pipeline.config.mistakes import shown
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.names import clean, is_number, label_of
from cam_pipeline.data.readers.listing import read_text
from cam_pipeline.data.strokes import Click
from cam_pipeline.data.table import Sample, unknown_class
from cam_pipeline.errors import DataError

COLUMNS = ("image", "x", "y", "class")
DELIMITERS = (",", ";", "\t")
MANY = 4
"""Clicks in a file from which on their common extent says something."""


@dataclass(frozen=True)
class Row:
    """One click as it is written. `image` is empty if the file does not name one; `where` says where it stands."""

    where: str
    image: str
    x: Any
    y: Any
    name: Any


def read_clicks(path: Path, root: Path, classes: Sequence[str], problems: Problems) -> dict[str, list[Click]]:
    """The clicks in a file by the name of their image, which is "" if the file names none; wrong ones are reported.

    Raises DataError if the file cannot be read or has another form.
    """
    text = read_text(path, root)
    rows = _in_json(text, path) if text.lstrip()[:1] in ("{", "[") else _in_table(text, path)
    found: dict[str, list[Click]] = {}
    for row in rows:
        label = _label(row.name, classes)
        x, y = _number(row.x), _number(row.y)
        if label is None:
            problems.report("unknown class", f"{row.where}: {unknown_class(str(row.name), classes)}")
        elif x is None or y is None:
            wrong = row.x if x is None else row.y
            message = f"{row.where}: {shown(str(wrong))} is no number of pixels; correct it, or delete the click"
            problems.report("click that cannot be read", message)
        else:
            found.setdefault(row.image, []).append(Click(x, y, label, row.where))
    _check_unit([click for clicks in found.values() for click in clicks], path, problems)
    return found


def _check_unit(clicks: Sequence[Click], path: Path, problems: Problems) -> None:
    """Report clicks whose coordinates are shares of the width and height."""
    numbers = [number for click in clicks for number in (click.x, click.y)]
    if (
        len(clicks) >= MANY
        and all(0 <= number <= 1 for number in numbers)
        and any(0 < number < 1 for number in numbers)
    ):
        message = "all clicks lie in 0..1; x and y are pixels, so multiply x by the width of the image, y by the height"
        problems.report("clicks in 0..1", f"{path}: {message}")


class ClickFiles:
    """Finds the clicks of single images; each file is read once."""

    def __init__(self, root: Path, classes: tuple[str, ...], problems: Problems) -> None:
        self.root, self.classes, self.problems = root, classes, problems
        self._read: dict[Path, dict[str, list[Click]]] = {}

    def read(self, path: Path, where: str = "") -> dict[str, list[Click]]:
        """As `read_clicks`, but a file that cannot be read is reported; `where` says what names it."""
        if path not in self._read:
            try:
                found = read_clicks(path, self.root, self.classes, self.problems)
            except DataError as error:
                self.problems.report("file of clicks that cannot be read", f"{error}{f' ({where})' if where else ''}")
                found = {}
            self._read[path] = found
        return self._read[path]

    def added(self, sample: Sample, path: Path, where: str) -> Sample:
        """The sample with those clicks in a file that are its own: which name it, or no image."""
        found = self.read(path, where)
        names = names_of(sample)
        clicks = [click for name, of_image in found.items() if not name or form(name) in names for click in of_image]
        if found and not clicks:
            message = f"{path}: it names other images, such as {next(iter(found))}, and not {sample.id} ({where})"
            self.problems.warn("click without image", message)
        return replace(sample, clicks=(*sample.clicks, *clicks))


def names_of(sample: Sample) -> set[str]:
    """All that may name an image in one form: its id, its path and its file name, with ending and without."""
    of_id, name = PurePosixPath(sample.id), sample.image.name
    return {form(text) for text in (sample.id, of_id.with_name(name).as_posix(), name, of_id.name)}


def form(text: str) -> str:
    """A name in one Unicode form, with / between folders."""
    return unicodedata.normalize("NFC", text.replace("\\", "/")).removeprefix("./")


def _label(name: Any, classes: Sequence[str]) -> int | None:
    """The label of a class name, or a label itself, unless a class is named by a number: then names alone serve."""
    if isinstance(name, bool) or not isinstance(name, int | float | str):
        return None
    text = clean(str(name))
    label = label_of(text, classes)
    if label is None and text.isascii() and text.removesuffix(".0").isdigit():
        number = int(float(text[:20]))
        return number if number <= (0 if any(map(is_number, classes)) else len(classes)) else None
    return label


def _number(value: Any) -> float | None:
    """A coordinate; None if it is no finite number."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _in_table(text: str, path: Path) -> Iterator[Row]:
    """The rows of a table; its columns stand in any order, and others are left out. Raises DataError if it is none."""
    header = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=lambda one: (header.count(one), one == ","))
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        columns = [clean(name).casefold() for name in next(table, [])]
        missing = [name for name in COLUMNS[1:] if name not in columns]
        if missing or any(columns.count(name) > 1 for name in COLUMNS):
            raise DataError(
                f"{path}, line 1: a table of clicks needs the columns {', '.join(COLUMNS)}, each once, not "
                f"{shown(clean(header)[:100])}; write them into the first line"
            )
        line = table.line_num + 1
        for cells in table:
            where = f"{path}, line {line}"
            line = table.line_num + 1
            if not any(map(clean, cells)):
                continue
            if any("\n" in cell for cell in cells):
                raise DataError(f"{where}: a line break in a cell; add the quotation mark that is missing")
            if len(cells) < len(columns):
                raise DataError(f"{where}: {len(cells)} cells, the header has {len(columns)}; add what is missing")
            cell = {name: clean(cells[columns.index(name)]) for name in COLUMNS if name in columns}
            if "image" in cell and not cell["image"]:
                raise DataError(f"{where}: the image cell is empty; name the image that was clicked")
            yield Row(where, cell.get("image", ""), cell["x"], cell["y"], cell["class"])
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}: {error}; is a quotation mark missing?") from error


def _in_json(text: str, path: Path) -> Iterator[Row]:
    """The clicks in JSON: by image, or a list. Raises DataError if they are written in another way."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); correct it, or save it again") from error
    for image, clicks in content.items() if isinstance(content, dict) else [("", content)]:
        of_image = f"{path}, image {image}" if image else str(path)
        if not isinstance(clicks, list):
            raise DataError(f"{of_image}: the clicks of an image are a list [[x, y, class], ...]; correct it")
        for number, click in enumerate(clicks, 1):
            where = f"{of_image}, click {number}"
            if isinstance(click, list) and len(click) == 3:
                yield Row(where, image, *click)
            elif isinstance(click, dict) and {"x", "y", "class"} <= click.keys():
                yield Row(where, image or str(click.get("image", "")), click["x"], click["y"], click["class"])
            else:
                raise DataError(f"{where}: a click is a list [x, y, class], not {shown(str(click)[:60])}; correct it")

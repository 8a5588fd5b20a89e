"""A folder of mask files `<id>.png`, and what their numbers mean."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.corrections import NumberedMask
from cam_pipeline.data.names import clean, is_background
from cam_pipeline.data.readers.corrected.names import label_named
from cam_pipeline.errors import DataError

CLASSES = "classes.txt"


def read_pngs(folder: Path, classes: Sequence[str], problems: Problems) -> Iterator[tuple[str, NumberedMask]]:
    """The masks of a folder, by the path below it. `classes.txt` in it names the numbers, else they are labels.

    A first line that means the background stands for 0; without one, the first class stands for 1.
    """
    labels = _labels(folder / CLASSES, classes, problems)
    for path in sorted(folder.rglob("*")):
        if path.suffix.casefold() == ".png" and path.is_file() and not path.name.startswith("."):
            yield path.relative_to(folder).with_suffix("").as_posix(), NumberedMask(path, labels)


def _labels(path: Path, classes: Sequence[str], problems: Problems) -> tuple[int, ...]:
    """The labels of the numbers in the masks; empty if they are what the data set has."""
    if not path.is_file():
        return ()
    names = named_in(path)
    labels = [] if names and is_background(names[0]) else [0]
    for number, name in enumerate(names, 1):
        try:
            labels.append(label_named(name, classes, f"{path}, line {number}"))
        except DataError as error:
            problems.report("unknown class", str(error))
            labels.append(255)
    return () if labels == list(range(len(classes) + 1)) else tuple(labels)


def named_in(path: Path) -> list[str]:
    """The class names in a file, one a line. Raises DataError if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); save it as UTF-8") from error
    return [name for line in lines if (name := clean(line))]

"""YOLO segmentation: text files of polygons in shares of width and height, and a list of class names."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.corrections import Patch, Patches
from cam_pipeline.data.readers.corrected.names import label_named
from cam_pipeline.data.readers.corrected.png import CLASSES, named_in
from cam_pipeline.errors import DataError, LibraryMissing

NAMES = ("data.yaml", "data.yml", CLASSES)


def read_yolo(folder: Path, classes: Sequence[str], problems: Problems) -> Iterator[tuple[str, Patches]]:
    """The text files in `labels`, or in the folder itself if there is none, by the path below it.

    An empty file is an image of background; later lines lie on top. Boxes (five numbers) are left out with a warning.
    Raises DataError if no file names the classes.
    """
    names = _names(folder)
    below = folder / "labels" if (folder / "labels").is_dir() else folder
    labels: dict[int, int] = {}
    for path in sorted(below.rglob("*.txt")):
        if path.name == CLASSES or path.name.startswith("."):
            continue
        patches = []
        for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
            where, fields = f"{path}, line {number}", line.split()
            if len(fields) == 5:
                problems.warn("shape that is left out", f"{where}: a box holds more than its object; draw a polygon")
            elif fields:
                try:
                    number_of = int(fields[0])
                    if number_of not in labels:
                        labels[number_of] = _label(number_of, names, classes, where)
                    patches.append(Patch(labels[number_of], polygon=_points(fields[1:], where)))
                except (ValueError, DataError) as error:
                    told = str(error) if isinstance(error, DataError) else f"{where}: {fields[0]!r:.40} is no class"
                    problems.report("line that cannot be used", told)
        name = path.relative_to(below).with_suffix("").as_posix()
        yield name, Patches(tuple(patches), shares=True, source=str(path))


def _label(number: int, names: dict[int, str], classes: Sequence[str], where: str) -> int:
    if number not in names:
        raise DataError(f"{where}: class {number} has no name in {' or '.join(NAMES)}; add it, or correct the line")
    return label_named(names[number], classes, where)


def _points(fields: Sequence[str], where: str) -> bytes:
    wrong = f"{where}: a class and three points or more are expected, as shares x y x y in 0..1; correct the line"
    try:
        points = np.array(fields, np.float64)
    except ValueError:
        raise DataError(wrong) from None
    if len(points) < 6 or len(points) % 2 or not (np.abs(points - 0.5) <= 1).all():
        raise DataError(wrong)
    return points.tobytes()


def _names(folder: Path) -> dict[int, str]:
    """The class names by number."""
    for path in (folder / name for name in NAMES):
        if path.is_file():
            return dict(enumerate(named_in(path))) if path.name == CLASSES else _in_yaml(path)
    raise DataError(f"{folder}: no file names the classes of its polygons; add {NAMES[0]} or {CLASSES}")


def _in_yaml(path: Path) -> dict[int, str]:
    try:
        import yaml
    except ImportError as error:
        raise LibraryMissing(
            f"PyYAML reads {path} and cannot be imported ({error}). Install it: pip install pyyaml"
        ) from error
    try:
        names = yaml.safe_load(path.read_text(encoding="utf-8"))["names"]
        named = dict(enumerate(names)) if isinstance(names, list) else {int(key): names[key] for key in names}
        return {number: str(name) for number, name in named.items()}
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        one_line = " ".join(str(error).split())
        raise DataError(f"{path}: it has no list of names ({one_line}); write them under `names:`") from error

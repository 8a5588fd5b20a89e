"""Readers from the layouts people have into one table."""

import csv
from pathlib import Path

from cam_pipeline.config import DataSettings
from cam_pipeline.data.table import ClassIndex, Sample, Table, class_index
from cam_pipeline.errors import DataError
from cam_pipeline.ops.labels import IGNORE_INDEX

LABEL_SEPARATOR = ";"
UNKNOWN = "?"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def load_table(settings: DataSettings) -> Table:
    """Read the data set that the settings describe. Raises DataError naming file and line."""
    if not settings.root.is_dir():
        raise DataError(f"data.root: there is no folder {settings.root}; set it with --set data.root=FOLDER")
    table = {"csv": read_csv, "voc": read_voc}[settings.format](settings)
    seen: set[str] = set()
    for sample in table.samples:
        if sample.id in seen:
            raise DataError(f"the id {sample.id} appears twice; every image needs an id of its own")
        seen.add(sample.id)
    return table


def read_csv(settings: DataSettings) -> Table:
    """Read `image,labels[,mask,split]`: paths relative to `root`, labels joined by `;`, `?` for unknown labels.

    An empty `labels` cell says that the image shows none of the classes. Without a `split` column every image
    belongs to the training split. The id is the image path without its suffix.
    """
    path = settings.root / settings.table
    records = _read_rows(path)
    names = {name for _, row in records for name in _names(row["labels"])}
    classes = _classes(settings, tuple(sorted(names)))
    look_up = class_index(classes)
    samples = []
    for line, row in records:
        where = f"{path}, line {line}"
        if not row["image"]:
            raise DataError(f"{where}: the image cell is empty")
        unknown = row["labels"].strip() == UNKNOWN
        samples.append(
            Sample(
                id=str(Path(row["image"]).with_suffix("").as_posix()),
                image=settings.root / row["image"],
                split=(row.get("split") or settings.train).strip(),
                class_ids=None if unknown else _ids(look_up, _names(row["labels"]), where),
                mask=settings.root / row["mask"] if row.get("mask") else None,
            )
        )
    return Table(classes, tuple(samples))


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Every row of a CSV table as (line, cells by column). Raises DataError for what is no such table."""
    rows = csv.DictReader(_read_text(path).splitlines())
    try:
        missing = {"image", "labels"} - set(rows.fieldnames or ())
        if missing:
            raise DataError(
                f"{path}, line 1: the header needs the columns image and labels; missing: {', '.join(sorted(missing))}"
            )
        records = []
        for row in rows:
            if None in row or row["labels"] is None:
                raise DataError(
                    f"{path}, line {rows.line_num}: more or fewer cells than the header; join labels by `;`"
                )
            records.append((rows.line_num, row))
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}; is a quotation mark missing?") from error
    return records


def read_voc(settings: DataSettings) -> Table:
    """Read the PASCAL VOC layout: JPEGImages/, SegmentationClass/, ImageSets/Segmentation/<split>.txt and a label file.

    The label file has lines `id class class ...`; an id without a line is an image with unknown labels.
    """
    root = settings.root
    classes = _classes(settings, VOC_CLASSES)
    look_up = class_index(classes)
    label_path = root / settings.labels
    class_ids = {}
    for number, line in enumerate(_read_text(label_path).splitlines(), 1):
        if line.strip():
            name, *names = line.split()
            class_ids[name] = _ids(look_up, names, f"{label_path}, line {number}")
    samples = []
    for split in filter(None, (settings.train, settings.val)):
        for name in _read_text(root / "ImageSets" / "Segmentation" / f"{split}.txt").split():
            mask = root / "SegmentationClass" / f"{name}.png"
            image = _find_image(root / "JPEGImages", name)
            samples.append(Sample(name, image, split, class_ids.get(name), mask if mask.is_file() else None))
    return Table(classes, tuple(samples))


def _classes(settings: DataSettings, otherwise: tuple[str, ...]) -> tuple[str, ...]:
    """Class names: from the settings, else classes.txt, else what the reader knows."""
    path = settings.root / "classes.txt"
    names = settings.classes
    if not names and path.is_file():
        names = tuple(line.strip() for line in _read_text(path).splitlines() if line.strip())
    names = tuple(name for name in names or otherwise if name != "background")
    if not names:
        raise DataError(f"no class is named: give data.classes, or a file {path}")
    if len(set(names)) < len(names):
        raise DataError(f"a class name appears twice in {', '.join(names)}")
    if len(names) >= IGNORE_INDEX:
        raise DataError(f"{len(names)} classes are too many: labels are 1..254, as {IGNORE_INDEX} means ignore")
    return names


def _names(cell: str) -> list[str]:
    names = [name.strip() for name in cell.split(LABEL_SEPARATOR)]
    return [name for name in names if name and name != UNKNOWN]


def _ids(look_up: ClassIndex, names: list[str], where: str) -> tuple[int, ...]:
    return tuple(sorted({look_up(name, where) for name in names}))


def _find_image(folder: Path, name: str) -> Path:
    candidates = [folder / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # a byte order mark, as Excel writes it, is no part of the text
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can not be read: {error}") from error

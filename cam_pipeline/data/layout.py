"""Which layout a folder of images has: names of files and the first bytes of some say it. Nothing is decoded."""

import csv
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from cam_pipeline.data.names import clean, is_background, is_class, is_ignored, system_part
from cam_pipeline.data.readers.csv_table import DELIMITERS
from cam_pipeline.data.readers.folders import SPLIT_NAMES
from cam_pipeline.data.readers.listing import IMAGE_SUFFIXES, decoded
from cam_pipeline.data.readers.voc import LIST_FOLDERS
from cam_pipeline.errors import DataError

HEAD = 1 << 16
"""Bytes at the start of a JSON file that are looked at."""
SAMPLE = 20
"""Number of JSON files beside images that are looked into."""
VALIDATION = ("val", "valid", "validation", "dev")
UNLABELLED = "unlabelled"
NO_CLASS_FOLDERS = {"none", "negative", "negatives", "nothing", "empty"}
MASK_FOLDERS = {"mask", "masks", "segmentationclass", "scribbles", "label", "labels", "annotations"}
"""Folders beside images that hold no class of their own."""


@dataclass(frozen=True)
class Layout:
    """A layout that a folder has. `data` are the settings of the section `[data]`, without the root."""

    format: str
    root: Path
    why: str
    data: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    """What lies there and is not used, with what to do."""
    rows: tuple[tuple[str, str, str], ...] = field(default=(), repr=False)
    """Of Labelme's files: the rows (image, labels, split) of the table that they come to."""


class Folder:
    """The files below a folder, by path; without hidden ones and those of systems."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: list[str] = []
        self.others: list[str] = []
        for folder, names, files in os.walk(root):
            names[:] = sorted(name for name in names if not _is_left_out(name))
            under = PurePosixPath(Path(folder).relative_to(root).as_posix())
            for name in sorted(files):
                if not _is_left_out(name):
                    kind = self.images if Path(name).suffix.lower() in IMAGE_SUFFIXES else self.others
                    kind.append((under / name).as_posix())

    @cached_property
    def holding(self) -> frozenset[str]:
        """Folders that hold images themselves; "." is the root."""
        return frozenset(PurePosixPath(image).parent.as_posix() for image in self.images)

    def names(self, *suffixes: str) -> list[str]:
        """The other files that have one of these endings."""
        return [name for name in self.others if name.lower().endswith(suffixes)]


def layouts(root: Path) -> list[Layout]:
    """The layouts that a folder, or the only folder in it, has; the one to take first. Raises DataError for none."""
    if not root.is_dir():
        what = "a file, not a folder:" if root.is_file() else "there is no folder"
        raise DataError(f"{what} {root}; name the folder that holds the images")
    root = _unpacked(root)
    folder = Folder(root)
    if not folder.images:
        raise DataError(f"{root} holds no image; an image ends in one of {' '.join(dict.fromkeys(IMAGE_SUFFIXES))}")
    found = [layout for find in (_csv, _coco, _voc, _labelme, _folders) if (layout := find(folder))]
    if not found:
        table = root / "data.csv"
        raise DataError(
            f"{root} holds {len(folder.images):,} images, and nothing that says what they show; write {table} with the "
            "columns image,labels, or put the images of each class into a folder of its name"
        )
    return found


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or bool(system_part([name]))


def _unpacked(root: Path) -> Path:
    """The folder inside, as long as it is all that there is: an unpacked archive."""
    for _ in range(3):
        inside = [path for path in sorted(root.iterdir()) if not _is_left_out(path.name)]
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.casefold() in SPLIT_NAMES:
            break
        below = [path for path in inside[0].iterdir() if not _is_left_out(path.name)]
        if not any(path.is_dir() for path in below):
            break  # a folder of images alone
        root = inside[0]
    return root


def _csv(folder: Folder) -> Layout | None:
    """A table with the columns image and labels; `data.csv` comes first."""
    headers = {name: _header(folder.root / name) for name in folder.names(".csv", ".tsv") if "/" not in name}
    tables = [name for name, columns in headers.items() if {"image", "labels"} <= set(columns)]
    if not tables:
        return None
    name = min(tables, key=lambda name: (name != "data.csv", name))
    notes = [f"{folder.root / other} is a table, too; set data.table to take it" for other in tables if other != name]
    if "mask" not in headers[name] and "masks" in _top(folder):
        notes.append(f"{folder.root / 'masks'} is not named by the table; add a column mask to use it")
    data = {"format": "csv", "table": name} | _splits(_cells(folder.root / name, "split")) | _marks(folder)
    return Layout("csv", folder.root, f"{name} has the columns image and labels", data, tuple(notes))


def _header(path: Path) -> list[str]:
    """The columns of a table; empty if it is none."""
    try:
        with path.open("rb") as file:
            lines = decoded(file.read(HEAD).rpartition(b"\n")[0], path).split("\n")[:2]
    except (OSError, DataError):
        return []
    line = lines[1] if lines[0].strip().casefold().startswith("sep=") and len(lines) > 1 else lines[0]
    return max(([clean(cell) for cell in line.split(sign)] for sign in DELIMITERS), key=len)


def _cells(path: Path, column: str) -> list[str]:
    """The cells of a column, each once; empty without it."""
    header = _header(path)
    if column not in header:
        return []
    text = decoded(path.read_bytes(), path)
    if text.strip().casefold().startswith("sep="):
        text = text.partition("\n")[2]
    sign = max(DELIMITERS, key=text.split("\n", 1)[0].count)
    try:
        rows = list(csv.reader(text.splitlines(), delimiter=sign))[1:]
    except csv.Error:
        return []
    return list(dict.fromkeys(clean(row[header.index(column)]) for row in rows if len(row) == len(header)))


def _splits(names: list[str]) -> dict[str, str]:
    """The settings of the splits to train and to report on, from the names of all."""
    given = [name for name in names if name]
    train = next((one for one in ("train", "training", "trainval") if one in given), "")
    if not train:
        train = "train" if not given or len(given) < len(names) else given[0]
    val = next((one for one in (*VALIDATION, "test") if one in given and one != train), "")
    return ({"train": train} if train != "train" else {}) | {"val": val}


def _marks(folder: Folder) -> dict[str, str]:
    """Clicks and scribbles at the root, as settings."""
    found: dict[str, str] = {}
    if clicks := [name for name in ("clicks.csv", "clicks.json") if name in folder.others]:
        found["clicks"] = clicks[0]
    if scribbles := [name for name in ("scribbles", "Scribbles") if (folder.root / name).is_dir()]:
        found["scribbles"] = scribbles[0]
    return found


def _top(folder: Folder) -> set[str]:
    """The folders at the root that hold images, at any depth."""
    return {name.partition("/")[0] for name in folder.holding if name != "."}


def _coco(folder: Folder) -> Layout | None:
    """JSON files with images, annotations and categories, one for each split or one for all."""
    candidates = [name for name in folder.names(".json") if name.count("/") <= 2]
    files = [name for name in candidates[:200] if _is_coco(folder.root / name)]
    if not files:
        return None
    first = next((name for name in files if "train" in name), files[0])
    word = next((one for one in ("train", "training") if one in re.split(r"[^a-z]+", first.lower())), "")
    word = word or ("train" if "train" in first else "")
    pattern = first.replace(word, "{split}") if word else first
    val = next((one for one in (*VALIDATION, "test") if word and pattern.replace("{split}", one) in files), "")
    data = {"format": "coco", "annotations": pattern, "images": _image_folder(folder, first, word), "val": val}
    data |= {"train": word} if word not in ("", "train") else {}
    taken = {pattern.replace("{split}", one) for one in (word, val)} if word else {first}
    notes = tuple(f"{folder.root / name} is not used; it is of another split" for name in files if name not in taken)
    return Layout("coco", folder.root, f"{first} holds images, annotations and categories", data, notes)


def _is_coco(path: Path) -> bool:
    """Whether a JSON file begins as COCO's do, or ends so."""
    try:
        with path.open("rb") as file:
            text = file.read(HEAD)
            file.seek(max(0, path.stat().st_size - HEAD))
            text += file.read(HEAD)
    except OSError:
        return False
    return text.lstrip()[:1] == b"{" and sum(f'"{key}"'.encode() in text for key in ("images", "categories")) == 2


def _image_folder(folder: Folder, file: str, word: str) -> str:
    """The folder that the images of a COCO file lie in, with `{split}` for the split's name."""
    content = (folder.root / file).read_text(encoding="utf-8", errors="replace")
    named = re.search(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', content)
    try:
        name = PurePosixPath(json.loads(named[1]) if named else "").as_posix()
    except ValueError:
        name = ""
    ends = [image[: -len(name)].rstrip("/") for image in folder.images if image == name or image.endswith(f"/{name}")]
    beside = PurePosixPath(file).parent.as_posix()
    ranked = sorted(ends, key=lambda end: (bool(word) and word not in end, end != beside, len(end)))
    found = ranked[0] if ranked else "."
    return (found.replace(word, "{split}") if word else found) or "."


def _voc(folder: Folder) -> Layout | None:
    """JPEGImages/ and lists of ids in ImageSets/."""
    root = folder.root
    if not (root / "JPEGImages").is_dir():
        return None
    lists = [path.stem for one in LIST_FOLDERS for path in sorted((root / one).glob("*.txt"))]
    if not lists:
        raise DataError(
            f"{root / 'JPEGImages'} is there as in PASCAL VOC, but no list of ids; write "
            f"{root}/ImageSets/Main/train.txt, one id a line"
        )
    in_xml = (root / "Annotations").is_dir() and not (root / "image_labels.txt").is_file()
    data = {"format": "voc"} | ({"labels": "Annotations"} if in_xml else {}) | _splits(list(dict.fromkeys(lists)))
    clicks = {key: value for key, value in _marks(folder).items() if key == "clicks"}  # Scribbles/ is taken anyway
    return Layout("voc", root, "JPEGImages/ and ImageSets/ are there", data | clicks)


def _labelme(folder: Folder) -> Layout | None:
    """A JSON file of shapes beside images. The labels of its shapes are those of the image."""
    stems = {PurePosixPath(name).with_suffix("").as_posix(): name for name in folder.names(".json")}
    pairs = [(image, stems.get(PurePosixPath(image).with_suffix("").as_posix())) for image in folder.images]
    beside = [name for _, name in pairs if name]
    if not beside or not any(_shape_names(folder.root / name) is not None for name in beside[:SAMPLE]):
        return None
    rows = []
    for image, name in pairs:
        names = _shape_names(folder.root / name) if name else None
        rows.append((image, "?", UNLABELLED) if names is None else (image, ";".join(names), "train"))
    without = sum(split == UNLABELLED for _, _, split in rows)
    split = f"what they show is unknown, and they are in the split '{UNLABELLED}'"
    notes = (f"{without:,} images have no JSON file of shapes: {split}",) if without else ()
    data = {"format": "csv", "scribbles": ".", "val": ""}
    why = f"{len(beside):,} images have a JSON file of shapes beside them"
    return Layout("labelme", folder.root, why, data, notes, tuple(rows))


def _shape_names(path: Path) -> list[str] | None:
    """The classes of the shapes in a file of Labelme; None if it is none."""
    try:
        content = json.loads(path.read_bytes())
        names = [clean(str(shape["label"])) for shape in content["shapes"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return sorted({name for name in names if not is_background(name) and not is_ignored(name)})


def _folders(folder: Folder) -> Layout | None:
    """A folder of images for each class, perhaps below folders of splits."""
    top = sorted(_top(folder))
    train = next((one for name in ("train", "training") for one in top if one.casefold() == name), "")
    inside = [one for one in _below(folder, train) if one.casefold() not in MASK_FOLDERS] if train else []
    if train and inside and train not in folder.holding:
        val = next((one for name in VALIDATION for one in top if one.casefold() == name and _below(folder, one)), "")
        val = val or next((one for one in top if one.casefold() == "test" and _below(folder, one)), "")
        splits = ({"train": train} if train != "train" else {}) | {"val": val}
        notes = tuple(f"{folder.root / one} is not used; it is another split" for one in top if one not in (train, val))
        why = f"{train}/ holds a folder of images for each of {len(inside)} names"
    else:
        inside = [one for one in top if one.casefold() not in MASK_FOLDERS | SPLIT_NAMES]
        splits, notes = {"val": ""}, ()
        why = f"{len(inside)} folders hold images"
        if len(inside) < 2 or "." in folder.holding or any(one.casefold() in MASK_FOLDERS for one in top):
            return None
    negatives = next((one for one in inside if one.casefold() in NO_CLASS_FOLDERS or not is_class(one)), "none")
    data = {"format": "folders"} | splits | ({"negatives": negatives} if negatives != "none" else {})
    return Layout("folders", folder.root, why, data, notes)


def _below(folder: Folder, name: str) -> list[str]:
    """The folders in a folder that hold images, at any depth."""
    parts: Iterator[tuple[str, ...]] = (PurePosixPath(one).parts for one in folder.holding)
    return sorted({one[1] for one in parts if len(one) > 1 and one[0] == name})

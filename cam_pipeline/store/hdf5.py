"""HDF5 files of one record per image, and the closed part files in which they grow.

Layout (docs/formats.md): root attributes `format`, `version`, `classes`, ...; `/names` in order; `/<kind>/<id>` with
one chunk per image (shuffle, gzip, fletcher32) and per-image attributes.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import h5py
import numpy as np

from cam_pipeline.errors import DamagedFile, UserError
from cam_pipeline.machine.atomic import file_aside, write_text

logger = logging.getLogger(__name__)

MOST_DEFLATED = 1032
"""Deflate makes nothing smaller than a 1032th of its size."""
NUMBERS = "buif"
LARGEST_SIDE = 2**20

FORMAT_VERSION = 2  # since 2: text of fixed length everywhere, a checksum for `/names`


@dataclass(frozen=True)
class Record:
    """The stored data of one image: arrays by kind (`cams`, `labels`, ...) and small attributes."""

    name: str
    arrays: Mapping[str, np.ndarray[Any, Any]]
    attributes: Mapping[str, Any] = field(default_factory=dict)


def key_of(name: str) -> str:
    """An image id as one HDF5 link name: `/` would start a group, so it is written as %2F."""
    return name.replace("%", "%25").replace("/", "%2F")


def checked_shape(where: str, array: np.ndarray[Any, Any], *expected: int | None) -> None:
    """Raise DamagedFile unless an array has the expected shape; None stands for any length of 1 or more."""
    fits = array.ndim == len(expected) and all(
        length == wanted if wanted is not None else length > 0
        for length, wanted in zip(array.shape, expected, strict=False)
    )
    if not fits:
        raise DamagedFile(f"{where} has the shape {array.shape}, which does not fit; make it again with --force")


def checked_class_ids(where: str, stored: np.ndarray[Any, Any], classes: int) -> tuple[int, ...]:
    """Class ids from an attribute. Raises DamagedFile unless they are different whole numbers, 1 to `classes`."""
    stored = np.asarray(stored)
    ids = tuple(int(number) for number in stored.ravel())
    if stored.dtype.kind not in "ui" or len(set(ids)) < len(ids) or not all(1 <= one <= classes for one in ids):
        raise DamagedFile(
            f"{where} names classes that there are not, or one twice ({ids[:5]}); make it again with --force"
        )
    return ids


def checked_size(where: str, stored: np.ndarray[Any, Any]) -> tuple[int, int]:
    """(height, width) from an attribute. Raises DamagedFile for what no image can have."""
    sides = tuple(int(side) for side in np.asarray(stored).ravel())
    if len(sides) != 2 or not all(0 < side < LARGEST_SIDE for side in sides):
        raise DamagedFile(f"{where} states the image size {sides}; make it again with --force")
    return sides[0], sides[1]


@contextmanager
def damage_named(what: str) -> Iterator[None]:
    """Turn errors of HDF5 and h5py about damaged bytes, which can be almost any kind, into DamagedFile."""
    try:
        yield
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise DamagedFile(f"{what}; make it again with --force") from error


@contextmanager
def open_file(path: Path, kind: str) -> Iterator[h5py.File]:
    """Open an artefact for reading. Raises DamagedFile if it is no HDF5 file of this kind and version."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with damage_named(f"{path} is damaged or no HDF5 file"):
        file = h5py.File(path, "r")
    with file:
        with damage_named(f"{path} is damaged"):
            version = int(file.attrs["version"]) if "version" in file.attrs else None
            found = text_attribute(file, "format") if version == FORMAT_VERSION else "HDF5 file"
        if (found, version) != (f"cam-pipeline/{kind}", FORMAT_VERSION):
            raise DamagedFile(
                f"{path} is not a {kind} file of version {FORMAT_VERSION} "
                f"(found: {found}, version {version}); make it again with --force"
            )
        yield file


def text_attribute(file: h5py.File, name: str) -> str:
    """A root attribute that is a text of fixed length.

    Text of variable length is stored in a heap without a checksum; if that is damaged, HDF5 can loop forever.
    """
    if file.attrs.get_id(name).dtype.kind != "S":
        raise TypeError(f"the attribute {name} is no text of fixed length")
    return bytes(file.attrs[name]).decode()


def _fixed(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """Texts in UTF-8 as an array of a fixed-length type."""
    encoded = [text.encode() for text in texts]
    longest = max((len(text) for text in encoded), default=1)
    return np.array(encoded, dtype=f"S{max(1, longest)}")


def member(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """A member that lies in the file itself. Raises DamagedFile for a link, which could lead anywhere."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise DamagedFile(f"{group.file.filename}: {name} is a link or missing; such files are not read")
    return group[name]


def content_of(dataset: h5py.Dataset, kind: str) -> np.ndarray[Any, Any]:
    """The array of a dataset, if it is of numbers or fixed-length text (`kind` as in numpy) and lies in this file.

    Raises DamagedFile before memory is taken for a dataset whose content lies in other files, or whose size is more
    than its stored bytes could give (a small file can state any shape).
    """
    where = f"{dataset.file.filename}: {dataset.name}"
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in kind:
        raise DamagedFile(f"{where} holds data of another kind; make it again with --force")
    if dataset.external or dataset.is_virtual:
        raise DamagedFile(f"{where} keeps its content in other files; such files are not read")
    whole = dataset.chunks is None or dataset.chunks == dataset.shape
    if not whole or dataset.nbytes > MOST_DEFLATED * dataset.id.get_storage_size():
        raise DamagedFile(
            f"{where} states the shape {dataset.shape}, but too little is stored; make it again with --force"
        )
    return np.asarray(dataset[()])


def read_record(file: h5py.File, kinds: Sequence[str], name: str) -> Record:
    """The named arrays of one image. Raises UserError for an unknown image, DamagedFile for an unreadable one."""
    key = key_of(name)
    damaged = f"{file.filename} is damaged at image {name}"
    with damage_named(damaged):
        known = kinds[0] in file and key in member(file, kinds[0])
    if not known:
        raise UserError(f"{file.filename} holds no image {name}")
    with damage_named(damaged):
        sets = [member(member(file, kind), key) for kind in kinds]
        arrays = {kind: content_of(dataset, NUMBERS) for kind, dataset in zip(kinds, sets, strict=True)}
        return Record(name, arrays, dict(sets[0].attrs))


def names_in(file: h5py.File) -> list[str]:
    """Ids of all images, in the order of the data set. Raises DamagedFile if they cannot be read."""
    return texts_in(file, "names")


def texts_in(file: h5py.File, name: str) -> list[str]:
    """The texts of one dataset of the file. Raises DamagedFile if they cannot be read."""
    with damage_named(f"{file.filename} is damaged"):
        return [bytes(text).decode() for text in content_of(member(file, name), "S")]


def classes_in(file: h5py.File) -> tuple[str, ...]:
    """Class names; background first if the file's labels have one. Raises DamagedFile if they cannot be read."""
    with damage_named(f"{file.filename} is damaged"):
        names = json.loads(text_attribute(file, "classes"))
        if not isinstance(names, list):
            raise TypeError("the class names are no list")
        return tuple(str(name) for name in names)


def write_record(file: h5py.File, record: Record) -> None:
    """Write the arrays of one image, each in one chunk, compressed and with a checksum."""
    for kind, array in record.arrays.items():
        dataset = file.create_dataset(
            f"{kind}/{key_of(record.name)}",
            data=array,
            chunks=array.shape if array.size else None,
            **(
                {"shuffle": True, "compression": "gzip", "compression_opts": 4, "fletcher32": True}
                if array.size
                else {}
            ),
        )
        dataset.attrs.update(record.attributes)


def write_texts(file: h5py.File, name: str, texts: Sequence[str]) -> None:
    """Write texts as one dataset of the file, with a checksum."""
    checked: dict[str, Any] = {"chunks": (len(texts),), "fletcher32": True} if texts else {}
    file.create_dataset(name, data=_fixed(texts), **checked)


def write_artefact(
    path: Path,
    kind: str,
    attributes: Mapping[str, Any],
    names: Sequence[str],
    fill: Callable[[h5py.File], Iterator[None]],
) -> None:
    """Create an artefact in one step: `fill` writes record by record, then the index and root attributes are added.

    Raises CannotWrite if the disk is full.
    """
    with file_aside(path) as aside, h5py.File(aside, "w", libver="latest") as file:
        for _ in fill(file):
            aside.check()
        write_texts(file, "names", names)
        for key, value in {"format": f"cam-pipeline/{kind}", "version": FORMAT_VERSION, **attributes}.items():
            file.attrs[key] = _fixed([value])[0] if isinstance(value, str) else value


def records_digest(path: Path) -> str:
    """SHA-256 of what an artefact says: its records as they are stored, names and root attributes.

    `config` and `fingerprint` do not count, nor where in the file things lie: HDF5 decides that by when Python closes
    its objects, so that files of the same content can differ in their bytes.
    """
    total = hashlib.sha256()
    with h5py.File(path, "r") as file:
        _add_attributes(total, file, without=("config", "fingerprint"))
        total.update(file["names"][()].tobytes())
        for kind in (kind for kind, group in file.items() if isinstance(group, h5py.Group)):
            for key, dataset in file[kind].items():
                total.update(f"{kind}/{key} {dataset.dtype} {dataset.shape}".encode())
                _add_attributes(total, dataset)
                if dataset.size:  # it is one chunk
                    total.update(dataset.id.read_direct_chunk((0,) * dataset.ndim)[1])
    return total.hexdigest()


def _add_attributes(total: Any, item: h5py.File | h5py.Dataset, without: Sequence[str] = ()) -> None:
    for name in sorted(set(item.attrs) - set(without)):
        total.update(name.encode() + np.asarray(item.attrs[name]).tobytes())


def write_progress(folder: Path, done: int, total: int, unit: str) -> None:
    """Note for `status` how much of a stage is done."""
    write_text(folder / "progress.json", json.dumps({"done": done, "total": total, "unit": unit}))


def artefact_attributes(classes: Sequence[str], fingerprint: str, config_toml: str, **more: Any) -> dict[str, Any]:
    """Root attributes that every artefact carries."""
    return {"classes": json.dumps(list(classes)), "fingerprint": fingerprint, "config": config_toml, **more}


class RecordStore:
    """Read access to one artefact; a context manager. Subclasses define how an image's record is read."""

    kind: str

    def __init__(self, file: h5py.File) -> None:
        self.file = file
        self.names = names_in(file)
        self.classes = classes_in(file)

    @classmethod
    @contextmanager
    def open(cls, path: Path | str) -> Iterator[Self]:
        """Open `path`. Raises UserError if it does not exist, DamagedFile if it is no such artefact."""
        with open_file(Path(path), cls.kind) as file:
            yield cls(file)


Store = TypeVar("Store", bound=RecordStore)


class Reader(Generic[Store]):
    """An artefact from which records are read by place. Each process opens the file itself: handles survive no fork.

    Subclasses say what is read of the i-th name.
    """

    kind: type[Store]

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names = path, names
        self._stack = ExitStack()
        self._store: Store | None = None
        self._process = -1

    def opened(self) -> Store:
        """The artefact, opened by this process."""
        if self._store is None or self._process != os.getpid():
            self._store = self._stack.enter_context(self.kind.open(self.path))
            self._process = os.getpid()
        return self._store

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "names": self.names, "_stack": ExitStack(), "_store": None, "_process": -1}

"""Artefacts grow in closed part files, so that a kill costs one part at most."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import h5py

from cam_pipeline.errors import UserError
from cam_pipeline.machine.distributed import is_first
from cam_pipeline.machine.interrupt import raise_if_stopped
from cam_pipeline.machine.progress import track
from cam_pipeline.store.hdf5 import (
    Record,
    member,
    names_in,
    open_file,
    write_artefact,
    write_progress,
    write_record,
    write_texts,
)

Item = TypeVar("Item")

logger = logging.getLogger(__name__)


class PartWriter:
    """Grow an artefact in closed part files beside `output`; `join` then copies them into it.

    `chunks` fixes the images of every part, so a part has the same content whether or not an earlier run was killed. A
    part that cannot be read is dropped with a warning and made again.
    """

    def __init__(self, output: Path, kind: str, attributes: Mapping[str, Any], chunks: Sequence[Sequence[str]]) -> None:
        self.output, self.kind, self.attributes, self.chunks = output, kind, attributes, chunks
        self.total = sum(len(chunk) for chunk in chunks)
        self.finished = {number for number in range(len(chunks)) if self._is_whole(number)}
        self._note_progress()

    def path(self, number: int) -> Path:
        """File of one part."""
        return self.output.parent / f"part-{number:05d}.h5"

    @property
    def done(self) -> int:
        """Number of images in finished parts."""
        return sum(len(self.chunks[number]) for number in self.finished)

    def pending(self) -> list[int]:
        """Numbers of the parts still to make."""
        return [number for number in range(len(self.chunks)) if number not in self.finished]

    def write(self, number: int, records: Sequence[Record]) -> None:
        """Store one part; its records must be those of its chunk."""
        if {record.name for record in records} != set(self.chunks[number]):
            raise ValueError(f"part {number} was given other images than its chunk names")

        def fill(file: h5py.File) -> Iterator[None]:
            for record in records:
                write_record(file, record)
                yield

        write_artefact(self.path(number), f"{self.kind}-part", {}, self.chunks[number], fill)
        # Other processes of the run may have made parts meanwhile; under its final name a part is whole.
        self.finished |= {other for other in range(len(self.chunks)) if self.path(other).is_file()}
        self._note_progress()

    def join(self, names: Sequence[str], texts: Mapping[str, Sequence[str]] = MappingProxyType({})) -> None:
        """Copy all parts into `output`; `names` gives the order of the index.

        `texts` are further datasets by name: a text for each image, in this order. They are no part of what the
        artefact says (`store.hdf5.records_digest`).
        """

        def fill(file: h5py.File) -> Iterator[None]:
            for number in range(len(self.chunks)):
                with h5py.File(self.path(number), "r") as part:
                    for kind in part:
                        group = member(part, kind)
                        if isinstance(group, h5py.Group):
                            target = file.require_group(kind)
                            for key in group:
                                part.copy(member(group, key), target, name=key)
                                yield
            for key, values in texts.items():
                write_texts(file, key, values)

        write_artefact(self.output, self.kind, self.attributes, names, fill)

    def _is_whole(self, number: int) -> bool:
        path = self.path(number)
        if not path.is_file():
            return False
        try:
            with open_file(path, f"{self.kind}-part") as file:
                return names_in(file) == list(self.chunks[number])
        except (UserError, OSError, KeyError) as error:
            logger.warning("%s is dropped and made again: %s", path, error)
            path.unlink(missing_ok=True)
            return False

    def _note_progress(self) -> None:
        """Note what is done; of several processes the first does it, which sees the parts of all."""
        if is_first():
            write_progress(self.output.parent, self.done, self.total, "images")


def in_chunks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """The items cut into parts of `size`; the last may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def write_parts(
    title: str,
    writer: PartWriter,
    make: Callable[[int], Generator[Record, None, None]],
    numbers: Iterable[int] | None = None,
) -> None:
    """Make and store the parts that are not finished, with progress under `title`.

    `make` takes a part's number and gives its records one by one; a stop is possible between two records. `numbers`
    are the parts of this process; None: all.
    """
    own = range(len(writer.chunks)) if numbers is None else list(numbers)
    pending = [number for number in own if number not in writer.finished]
    total = sum(len(writer.chunks[number]) for number in own)
    left = sum(len(writer.chunks[number]) for number in pending)
    with track(title, total, done=total - left) as progress:
        for number in pending:
            records = []
            with closing(make(number)) as made:
                for record in made:
                    raise_if_stopped()
                    records.append(record)
                    progress.advance()
            writer.write(number, records)

"""Digest of file contents, remembered by path and state (size, times, inode), so that each file is read once."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cam_pipeline.data.coco_masks import CocoMask
from cam_pipeline.data.corrections import NumberedMask
from cam_pipeline.data.nearest import did_you_mean
from cam_pipeline.data.strokes import ScribbleXml, Strokes
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import ConfigError, DataError
from cam_pipeline.machine.atomic import write_text

STATE = 4
"""Number of facts in a file's state."""


def state_of(path: Path) -> list[int]:
    """What changes when a file's content does: size, both times, inode.

    The time of modification alone can be put back, as `cp -p`, `rsync -t` and unpacking an archive do; the system's own
    (ctime) cannot.
    """
    state = os.stat(path)
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def content_digest(path: Path) -> str:
    """SHA-256 of a file's content, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileDigests:
    """SHA-256 of files; `save` keeps what is known in a JSON file beside the results."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        self.known: dict[str, list[Any]] = {}
        self.changed = False
        self.seen: dict[Path, str] = {}
        try:
            known = json.loads(memory.read_text())
            self.known = {path: list(entry) for path, entry in known.items() if len(entry) == 1 + STATE}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            self.known = {}  # nothing remembered, or unreadable: the files are read again

    def look_again(self) -> None:
        """Check the state of every file again: it may have changed."""
        self.seen.clear()

    def of(self, path: Path, named_in: str = "") -> str:
        """Hex digest of the file's content. Raises DataError if it does not exist; `named_in` says where it is named.

        A file is looked at once between two calls of `look_again`.
        """
        digest = self.seen.get(path)
        if digest is None:
            digest = self.seen[path] = self._of(path, named_in)
        return digest

    def _of(self, path: Path, named_in: str) -> str:
        place = os.path.join(os.getcwd(), path)
        try:
            state = state_of(path)
            entry = self.known.get(place)
            if entry is not None and entry[:STATE] == state:
                return str(entry[STATE])
            digest = content_digest(path)
        except OSError as error:
            raise DataError(
                f"{path} cannot be read ({error.strerror}); restore it, or take it out of the data set{named_in}"
            ) from error
        self.known[place] = [*state, digest]
        self.changed = True
        return digest

    def note(self, path: Path, digest: str) -> None:
        """Remember the digest of a file that was just written."""
        self.known[os.path.join(os.getcwd(), path)] = [*state_of(path), digest]
        self.changed = True

    def of_weights(self, weights: str) -> str:
        """Digest of a weights setting: of the file's content if it names a file, else the setting itself."""
        return weights if weights in ("pretrained", "none") or not Path(weights).is_file() else self.of(Path(weights))

    def of_merged(self, paths: Sequence[Path]) -> list[str]:
        """Digests of the files of `refine.merge_with`. Raises ConfigError for one that does not exist."""
        for path in paths:
            if not path.is_file():
                raise ConfigError(without_maps(path))
        return [self.of(path) for path in paths]

    def save(self) -> None:
        """Write what is known, if anything is new."""
        if self.changed:
            write_text(self.memory, json.dumps(self.known))
            self.changed = False


def without_maps(path: Path) -> str:
    """The message about a file of `refine.merge_with` that does not exist."""
    return f"refine.merge_with: there is no file {path}; make the CAMs of that run first"


def data_digest(
    classes: Iterable[str],
    samples: Iterable[Sample],
    digests: FileDigests,
    *,
    labels: bool = True,
    masks: bool = False,
    marks: bool = False,
) -> str:
    """One digest over class names, ids, image contents and, if asked for, image-level labels, masks and marks.

    Without clicks, scribbles and corrections it is the same with `marks` and without.
    """
    total = hashlib.sha256(json.dumps(list(classes)).encode())
    for sample in samples:
        facts: list[Any] = [sample.id, _image_digest(sample, digests)]
        if labels:
            facts.append(sample.class_ids)
        if masks:
            facts.append(_mask_digest(sample, digests))
        if marks and (sample.clicks or sample.scribble is not None):
            facts.append({"clicks": [(click.x, click.y, click.label) for click in sample.clicks]})
            facts.append({"scribble": _scribble_digest(sample, digests)})
        if marks and sample.corrected is not None:
            facts.append({"corrected": _correction_digest(sample, digests)})
        total.update(json.dumps(facts).encode())
    return total.hexdigest()


def _image_digest(sample: Sample, digests: FileDigests) -> str:
    try:
        return digests.of(sample.image, sample.named_in)
    except DataError as error:
        raise DataError(f"{error}{did_you_mean(sample.image, sample.folder, sample.mask)}") from error


def _scribble_digest(sample: Sample, digests: FileDigests) -> str | None:
    if isinstance(sample.scribble, Strokes):
        return sample.scribble.digest()
    if sample.scribble is None:
        return None
    if isinstance(sample.scribble, ScribbleXml):
        return f"{digests.of(sample.scribble.path, sample.named_in)} {sample.scribble.member}"
    of_file = digests.of(sample.scribble, sample.named_in)
    return f"{of_file} {sample.colors}" if sample.colors else of_file


def _correction_digest(sample: Sample, digests: FileDigests) -> str | None:
    if isinstance(sample.corrected, NumberedMask):
        of_file = digests.of(sample.corrected.path, sample.named_in)
        return f"{of_file} {sample.corrected.labels} {sample.colors}"
    return sample.corrected.digest() if sample.corrected else None


def _mask_digest(sample: Sample, digests: FileDigests) -> str | None:
    if isinstance(sample.mask, CocoMask):
        return sample.mask.digest()
    if sample.mask is None:
        return None
    of_file = digests.of(sample.mask, sample.named_in)
    return f"{of_file} {sample.colors}" if sample.colors else of_file

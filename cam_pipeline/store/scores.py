"""scores.h5: refined per-pixel scores of the background and the present classes, and labels for comparison."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cam_pipeline.errors import DamagedFile
from cam_pipeline.store.hdf5 import (
    Reader,
    Record,
    RecordStore,
    checked_class_ids,
    checked_shape,
    damage_named,
    key_of,
    member,
    read_record,
    texts_in,
)


@dataclass(frozen=True)
class StoredScores:
    """`scores` (1 + n, H, W) float32 in 0..1, background first; `class_ids` names the other channels (1-based).

    `labels`: other complete label maps (H, W) uint8: `unrefined`, before kernel and CRF, and with `refine.band` also
    `high` and `low`, refined with a higher and a lower background score.
    """

    name: str
    scores: NDArray[np.float32]
    class_ids: tuple[int, ...]
    labels: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


LABELS = ("unrefined", "high", "low")
MADE_OF = "made_of"
"""Dataset of a text for each image: what it was refined from."""


class ScoreStore(RecordStore):
    """Reads scores.h5."""

    kind = "scores"

    def read(self, name: str) -> StoredScores:
        """The scores of one image, at a resolution of 1/255. Raises UserError for an unknown name."""
        with damage_named(f"{self.file.filename} is damaged"):
            others = [kind for kind in LABELS if kind in self.file]
        record = read_record(self.file, ["scores", *others], name)
        with damage_named(f"{self.file.filename} is damaged at image {name}"):
            where = f"{self.file.filename} at image {name}"
            class_ids = checked_class_ids(where, record.attributes["class_ids"], len(self.classes))
            checked_shape(where, record.arrays["scores"], 1 + len(class_ids), None, None)
            for kind in others:
                checked_shape(f"{where} ({kind})", record.arrays[kind], *record.arrays["scores"].shape[1:])
            scores = record.arrays["scores"].astype(np.float32) / np.float32(255)
            return StoredScores(name, scores, class_ids, {kind: record.arrays[kind] for kind in others})

    def record(self, name: str) -> Record:
        """What is stored of one image, to be stored again. Errors as `read`."""
        with damage_named(f"{self.file.filename} is damaged"):
            others = [kind for kind in LABELS if kind in self.file]
        return read_record(self.file, ["scores", *others], name)

    @property
    def made_of(self) -> dict[str, str]:
        """What each image was refined from (`refinement.unchanged`); empty in files of earlier versions."""
        with damage_named(f"{self.file.filename} is damaged"):
            known = MADE_OF in self.file
        return dict(zip(self.names, texts_in(self.file, MADE_OF), strict=False)) if known else {}

    def quantised(self, name: str) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
        """The scores of one image (1 + n, H, W) as they are stored, times 255, and its class ids. Errors as `read`."""
        scores = read_record(self.file, ["scores"], name).arrays["scores"]
        class_ids = self.class_ids(name)
        where = f"{self.file.filename} at image {name}"
        checked_shape(where, scores, 1 + len(class_ids), None, None)
        if scores.dtype != np.uint8:
            raise DamagedFile(f"{where} has scores of another kind; make it again with --force")
        return scores, class_ids

    def class_ids(self, name: str) -> tuple[int, ...]:
        """The classes that an image shows, 1-based, without its scores. Raises DamagedFile if it is not known."""
        with damage_named(f"{self.file.filename} is damaged at image {name}"):
            attributes = member(member(self.file, "scores"), key_of(name)).attrs
            where = f"{self.file.filename} at image {name}"
            return checked_class_ids(where, attributes["class_ids"], len(self.classes))

    @property
    def background(self) -> float:
        """The background score that the scores were made with. Raises DamagedFile if there is none."""
        with damage_named(f"{self.file.filename} is damaged"):
            return float(self.file.attrs["background"])


def score_record(found: StoredScores) -> Record:
    """The record that `read` gives back: scores as uint8, with the labels beside them."""
    quantised = np.rint(np.clip(found.scores, 0, 1) * 255).astype(np.uint8)
    attributes = {"class_ids": np.array(found.class_ids, dtype=np.uint8)}
    return Record(found.name, {"scores": quantised, **found.labels}, attributes)


class ScoreReader(Reader[ScoreStore]):
    """The scores of the i-th name, by a call, as `ScoreStore.quantised` gives them."""

    kind = ScoreStore

    def __call__(self, index: int) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
        return self.opened().quantised(self.names[index])

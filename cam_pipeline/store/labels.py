"""pseudo_labels.h5: the labels that a segmenter trains on."""

import numpy as np
from numpy.typing import NDArray

from cam_pipeline.errors import DamagedFile
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.store.hdf5 import (
    Reader,
    Record,
    RecordStore,
    checked_shape,
    damage_named,
    key_of,
    member,
    read_record,
)

UInt8 = NDArray[np.uint8]

ORIGINS = 5
"""Number of origins that a pixel's label can have (`data.strokes`: PSEUDO to CORRECTED)."""


class LabelStore(RecordStore):
    """Reads pseudo_labels.h5: `names` in the order of the data set, `classes` with background first."""

    kind = "pseudo-labels"

    def read(self, name: str) -> UInt8:
        """(H, W) uint8: 0 background, 1..C, 255 ignore. Raises UserError for an unknown name."""
        labels: UInt8 = read_record(self.file, ["labels"], name).arrays["labels"]
        where = f"{self.file.filename} at image {name}"
        checked_shape(where, labels, None, None)
        unknown = (labels != IGNORE_INDEX) & (labels >= len(self.classes))
        if labels.dtype != np.uint8 or unknown.any():
            raise DamagedFile(f"{where} has labels of no class; make it again with --force")
        return labels

    def confidence(self, name: str) -> UInt8:
        """(H, W) uint8: the best channel's score times 255."""
        confidence: UInt8 = read_record(self.file, ["confidence"], name).arrays["confidence"]
        where = f"{self.file.filename} at image {name}"
        checked_shape(where, confidence, None, None)
        if confidence.dtype != np.uint8:
            raise DamagedFile(f"{where} has a confidence of another kind; make it again with --force")
        return confidence

    def origin(self, name: str) -> UInt8:
        """(H, W) uint8: who says what a pixel is. 0 pseudo-label, 1 click, 2 scribble, 3 mask, 4 corrected.

        All are 0 for an image that nobody has marked. Raises UserError for an unknown name.
        """
        labels = self.read(name)
        with damage_named(f"{self.file.filename} is damaged at image {name}"):
            if "origin" not in self.file or key_of(name) not in member(self.file, "origin"):
                return np.zeros_like(labels)
        origin: UInt8 = read_record(self.file, ["origin"], name).arrays["origin"]
        where = f"{self.file.filename} at image {name}"
        checked_shape(where, origin, *labels.shape)
        if origin.dtype != np.uint8 or origin.max() >= ORIGINS:
            raise DamagedFile(f"{where} has an origin of another kind; make it again with --force")
        return origin


def label_record(name: str, labels: UInt8, confidence: UInt8, origin: UInt8 | None = None) -> Record:
    """Labels and their confidence, both (H, W) uint8; `origin` as `LabelStore.origin` gives it, None: 0 everywhere."""
    arrays = {"labels": labels, "confidence": confidence}
    return Record(name, arrays if origin is None else {**arrays, "origin": origin})


class LabelReader(Reader[LabelStore]):
    """The labels of the i-th name, by a call."""

    kind = LabelStore

    def __call__(self, index: int) -> UInt8:
        return self.opened().read(self.names[index])

    def confidence(self, index: int) -> UInt8:
        """The confidence of the labels of the i-th name."""
        return self.opened().confidence(self.names[index])

    def origin(self, index: int) -> UInt8:
        """Who says what the pixels of the i-th name are."""
        return self.opened().origin(self.names[index])

"""pseudo_labels.h5: the labels that a segmenter trains on."""

import numpy as np
from numpy.typing import NDArray

from cam_pipeline.errors import DamagedFile
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.store.hdf5 import Reader, Record, RecordStore, checked_shape, read_record

UInt8 = NDArray[np.uint8]


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


def label_record(name: str, labels: UInt8, confidence: UInt8) -> Record:
    """Labels and their confidence, both (H, W) uint8."""
    return Record(name, {"labels": labels, "confidence": confidence})


class LabelReader(Reader[LabelStore]):
    """The labels of the i-th name, by a call."""

    kind = LabelStore

    def __call__(self, index: int) -> UInt8:
        return self.opened().read(self.names[index])

    def confidence(self, index: int) -> UInt8:
        """The confidence of the labels of the i-th name."""
        return self.opened().confidence(self.names[index])

"""scores.h5: refined per-pixel scores of the background and the present classes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cam_pipeline.store.hdf5 import Record, RecordStore, damage_named, read_record


@dataclass(frozen=True)
class StoredScores:
    """`scores` (1 + n, H, W) float32 in 0..1, background first; `class_ids` names the other channels (1-based)."""

    name: str
    scores: NDArray[np.float32]
    class_ids: tuple[int, ...]


class ScoreStore(RecordStore):
    """Reads scores.h5."""

    kind = "scores"

    def read(self, name: str) -> StoredScores:
        """The scores of one image, at a resolution of 1/255. Raises UserError for an unknown name."""
        record = read_record(self.file, ["scores"], name)
        with damage_named(f"{self.file.filename} is damaged at image {name}"):
            class_ids = tuple(int(number) for number in record.attributes["class_ids"])
            return StoredScores(name, record.arrays["scores"].astype(np.float32) / np.float32(255), class_ids)


def score_record(name: str, scores: NDArray[np.float32], class_ids: tuple[int, ...]) -> Record:
    """Scores (1 + n, H, W) in 0..1, stored as uint8."""
    quantised = np.rint(np.clip(scores, 0, 1) * 255).astype(np.uint8)
    return Record(name, {"scores": quantised}, {"class_ids": np.array(class_ids, dtype=np.uint8)})

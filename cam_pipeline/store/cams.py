"""cams.h5: maps of the present classes, on the feature grid of scale 1 or of the largest scale (ADR 8)."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cam_pipeline.errors import DamagedFile
from cam_pipeline.store.hdf5 import (
    Record,
    RecordStore,
    checked_class_ids,
    checked_shape,
    checked_size,
    damage_named,
    read_record,
)

LEAST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class StoredCam:
    """`cam` (n, h, w) float32 >= 0, not normalised, a channel for each of `class_ids` (1-based).

    `size` is (H, W) of the image, all of which the grid covers (see `data.images.grid_size`). Calibrated maps have a
    `background` (h, w) beside them and `prototype` maps (1 + n, h, w), background first, not normalised either.
    `normalized`: the maps are a mean of normalised ones, in 0..1. A maximum below 1 measures how far the runs disagree,
    so do not normalise again. `features` (d, h', w') tell which cells are alike, by their cosine (`cam.keep_features`);
    their grid may be finer than that of the maps. `marks` (H, W) uint8 is what people say about pixels
    (`data.marks.Marks.labels`), as the data set holds it: it is not stored.
    """

    name: str
    cam: Tensor
    class_ids: tuple[int, ...]
    size: tuple[int, int]
    background: Tensor | None = None
    prototype: Tensor | None = None
    normalized: bool = False
    features: Tensor | None = None
    marks: NDArray[np.uint8] | None = None


class CamStore(RecordStore):
    """Reads cams.h5 and merged_cams.h5."""

    kind = "cams"

    @property
    def calibrated(self) -> bool:
        """Whether the file also holds prototype maps and backgrounds."""
        with damage_named(f"{self.file.filename} is damaged"):
            return "calibration" in self.file

    @property
    def keeps_features(self) -> bool:
        """Whether the file also holds features of cells."""
        with damage_named(f"{self.file.filename} is damaged"):
            return "features" in self.file

    def read(self, name: str) -> StoredCam:
        """The maps of one image. Raises UserError for an unknown name."""
        calibrated = self.calibrated
        beside = [kind for kind, there in (("calibration", calibrated), ("features", self.keeps_features)) if there]
        record = read_record(self.file, ["cams", *beside], name)
        with damage_named(f"{self.file.filename} is damaged at image {name}"):
            where = f"{self.file.filename} at image {name}"
            class_ids = checked_class_ids(where, record.attributes["class_ids"], len(self.classes))
            height, width = checked_size(where, record.attributes["size"])
            cam = _checked_maps(where, record.arrays["cams"], record.attributes["peaks"], len(class_ids))
            features = _checked_features(where, record.arrays["features"]) if self.keeps_features else None
            if not calibrated:
                normalized = bool(record.attributes.get("normalized", False))
                return StoredCam(name, cam, class_ids, (height, width), normalized=normalized, features=features)
            peaks = record.attributes["calibration_peaks"]
            maps = _checked_maps(where, record.arrays["calibration"], peaks, 2 + len(class_ids))
        return StoredCam(name, cam, class_ids, (height, width), maps[0], maps[1:], features=features)


def cam_record(stored: StoredCam) -> Record:
    """The record that `read` gives back: float16 maps, each divided by its peak, and the peaks."""
    maps, peaks = _in_parts(stored.cam)
    arrays = {"cams": maps}
    attributes = {
        "class_ids": np.array(stored.class_ids, dtype=np.uint8),
        "peaks": peaks,
        "size": np.array(stored.size, dtype=np.int32),
    }
    if stored.normalized:
        attributes["normalized"] = np.array(True)
    if stored.background is not None and stored.prototype is not None:
        beside = torch.cat([stored.background[None], stored.prototype])
        arrays["calibration"], attributes["calibration_peaks"] = _in_parts(beside)
    if stored.features is not None:
        arrays["features"] = (127 * F.normalize(stored.features, dim=0)).round().to(torch.int8).numpy()
    return Record(stored.name, arrays, attributes)


def _checked_features(where: str, features: NDArray[np.int8]) -> Tensor:
    """Features (d, h, w), nearly of unit length. Raises DamagedFile for an array of another kind."""
    checked_shape(where, features, None, None, None)
    if features.dtype != np.int8:
        raise DamagedFile(f"{where} has features of another kind; make it again with --force")
    return torch.from_numpy(features.astype(np.float32) / 127)


def _checked_maps(where: str, maps: NDArray[np.float16], peaks: NDArray[np.float32], count: int) -> Tensor:
    """The maps that `_in_parts` divided. Raises DamagedFile unless they are `count`, on a grid, finite and >= 0."""
    checked_shape(where, maps, count, None, None)
    checked_shape(where, np.asarray(peaks), count)
    found = _from_parts(maps, peaks)
    if not found.isfinite().all() or (found < 0).any():
        raise DamagedFile(f"{where} has maps with numbers that are not finite, or below 0; make it again with --force")
    return found


def _in_parts(maps: Tensor) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Maps (n, h, w) divided by their peaks, and the peaks (n,)."""
    peaks = maps.flatten(1).amax(dim=1) if maps.numel() else maps.new_zeros(len(maps))
    return (maps / peaks.clamp(min=LEAST)[:, None, None]).numpy().astype(np.float16), peaks.numpy()


def _from_parts(maps: NDArray[np.float16], peaks: NDArray[np.float32]) -> Tensor:
    """The maps (n, h, w) that `_in_parts` divided."""
    return torch.from_numpy(maps.astype(np.float32) * np.asarray(peaks, dtype=np.float32)[:, None, None])

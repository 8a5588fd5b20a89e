"""cams.h5: maps of the present classes, on the feature grid of scale 1, or that of the largest scale (ADR 8)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cam_pipeline.errors import UserError
from cam_pipeline.ops.cam import mean_cam
from cam_pipeline.store.hdf5 import Record, RecordStore, damage_named, read_record

LEAST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class StoredCam:
    """`cam` (n, h, w) float32 >= 0, not normalised, a channel for each of `class_ids` (1-based).

    `size` is (H, W) of the image, all of which the grid covers (see `data.images.grid_size`). Calibrated maps have a
    `background` (h, w) beside them and `prototype` maps (1 + n, h, w), background first, not normalised either.
    `normalized`: the maps are a mean of normalised ones, in 0..1. What is missing to 1 says how far these disagree,
    and must not be divided away.
    """

    name: str
    cam: Tensor
    class_ids: tuple[int, ...]
    size: tuple[int, int]
    background: Tensor | None = None
    prototype: Tensor | None = None
    normalized: bool = False


class CamStore(RecordStore):
    """Reads cams.h5, and where `others` were opened with it the mean of its maps and theirs."""

    kind = "cams"
    others: Sequence["CamStore"] = ()

    @classmethod
    @contextmanager
    def open(cls, path: Path | str, others: Sequence[Path] = ()) -> Iterator[Self]:
        """Open `path`, and the same of `others`.

        Raises UserError where these know other classes or not all images, or any maps are calibrated; further errors as
        `RecordStore.open`.
        """
        with ExitStack() as opened:
            store = opened.enter_context(super().open(path))
            store.others = [opened.enter_context(super(CamStore, cls).open(other)) for other in others]
            together: list[CamStore] = [store, *store.others] if others else []
            for one in together:
                if "calibration" in one.file:
                    where = one.file.filename
                    raise UserError(
                        f"{where} holds calibrated maps, which can not be merged: set cam.calibration = 'none'"
                    )
            for other in store.others:
                lacking = set(store.names) - set(other.names)
                if other.classes != store.classes or lacking:
                    what = "maps of other classes" if other.classes != store.classes else f"no image {min(lacking)}"
                    raise UserError(f"{other.file.filename} can not be merged with {path}: it holds {what}")
            yield store

    def read(self, name: str) -> StoredCam:
        """The maps of one image. Raises UserError for an unknown name."""
        return merged([self._own(name), *(other.read(name) for other in self.others)])

    def _own(self, name: str) -> StoredCam:
        with damage_named(f"{self.file.filename} is damaged"):
            kinds = ["cams", "calibration"] if "calibration" in self.file else ["cams"]
        record = read_record(self.file, kinds, name)
        with damage_named(f"{self.file.filename} is damaged at image {name}"):
            class_ids = tuple(int(number) for number in record.attributes["class_ids"])
            height, width = (int(side) for side in record.attributes["size"])
            cam = _from_parts(record.arrays["cams"], record.attributes["peaks"])
            if len(kinds) == 1:
                return StoredCam(name, cam, class_ids, (height, width))
            beside = _from_parts(record.arrays["calibration"], record.attributes["calibration_peaks"])
        return StoredCam(name, cam, class_ids, (height, width), beside[0], beside[1:])


def merged(cams: Sequence[StoredCam]) -> StoredCam:
    """The mean of several networks' maps of one image (`ops.cam.mean_cam`), on the finest of their grids.

    It is made for the classes of the first; one that others do not know has the mean of those who do. Of one network
    the maps are returned as they are. Raises ValueError for calibrated maps.
    """
    first = cams[0]
    if len(cams) == 1:
        return first
    if any(cam.prototype is not None for cam in cams):
        raise ValueError(f"calibrated maps can not be merged, and those of image {first.name} are")
    rows, columns = max((cam.cam.shape[-2:] for cam in cams), key=math.prod)
    maps = [first.cam.new_zeros(0, rows, columns)]
    for class_id in first.class_ids:
        known = [cam.cam[cam.class_ids.index(class_id)] for cam in cams if class_id in cam.class_ids]
        maps.append(mean_cam(known, (rows, columns))[None])
    return replace(first, cam=torch.cat(maps), normalized=True)


def cam_record(stored: StoredCam) -> Record:
    """The record that `read` gives back: float16 maps, each divided by its peak, which is kept beside it."""
    maps, peaks = _in_parts(stored.cam)
    arrays = {"cams": maps}
    attributes = {
        "class_ids": np.array(stored.class_ids, dtype=np.uint8),
        "peaks": peaks,
        "size": np.array(stored.size, dtype=np.int32),
    }
    if stored.background is not None and stored.prototype is not None:
        beside = torch.cat([stored.background[None], stored.prototype])
        arrays["calibration"], attributes["calibration_peaks"] = _in_parts(beside)
    return Record(stored.name, arrays, attributes)


def _in_parts(maps: Tensor) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Maps (n, h, w) divided by their peaks (n,), and these."""
    peaks = maps.flatten(1).amax(dim=1) if maps.numel() else maps.new_zeros(len(maps))
    return (maps / peaks.clamp(min=LEAST)[:, None, None]).numpy().astype(np.float16), peaks.numpy()


def _from_parts(maps: NDArray[np.float16], peaks: NDArray[np.float32]) -> Tensor:
    """What `_in_parts` took apart."""
    return torch.from_numpy(maps.astype(np.float32) * np.asarray(peaks, dtype=np.float32)[:, None, None])

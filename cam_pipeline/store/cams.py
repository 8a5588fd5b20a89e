"""cams.h5: class activation maps of the present classes, on the feature grid of scale 1."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cam_pipeline.store.hdf5 import Record, RecordStore, damage_named, read_record


@dataclass(frozen=True)
class StoredCam:
    """`cam` (n, h, w) float32 >= 0, not normalised, a channel for each of `class_ids` (1-based).

    `size` is (H, W) of the image, all of which the grid covers (see `data.images.grid_size`).
    """

    name: str
    cam: Tensor
    class_ids: tuple[int, ...]
    size: tuple[int, int]


class CamStore(RecordStore):
    """Reads cams.h5."""

    kind = "cams"

    def read(self, name: str) -> StoredCam:
        """The maps of one image. Raises UserError for an unknown name."""
        record = read_record(self.file, ["cams"], name)
        with damage_named(f"{self.file.filename} is damaged at image {name}"):
            class_ids = tuple(int(number) for number in record.attributes["class_ids"])
            height, width = (int(side) for side in record.attributes["size"])
            peaks = np.asarray(record.attributes["peaks"], dtype=np.float32)[:, None, None]
            cam = torch.from_numpy(record.arrays["cams"].astype(np.float32) * peaks)
        return StoredCam(name, cam, class_ids, (height, width))


def cam_record(stored: StoredCam) -> Record:
    """The record that `read` gives back: float16 maps, each divided by its peak, which is kept beside it."""
    peaks = stored.cam.flatten(1).amax(dim=1) if stored.cam.numel() else stored.cam.new_zeros(len(stored.class_ids))
    maps = stored.cam / peaks.clamp(min=torch.finfo(torch.float32).tiny)[:, None, None]
    attributes = {
        "class_ids": np.array(stored.class_ids, dtype=np.uint8),
        "peaks": peaks.numpy(),
        "size": np.array(stored.size, dtype=np.int32),
    }
    return Record(stored.name, {"cams": maps.numpy().astype(np.float16)}, attributes)

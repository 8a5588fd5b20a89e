"""Mean maps of several runs, for the same images and classes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cam_pipeline.errors import UserError
from cam_pipeline.ops.cam import cam_agreement, mean_cam
from cam_pipeline.store.cams import CamStore, StoredCam


@contextmanager
def opened_together(own: Path, others: Sequence[Path]) -> Iterator[list[CamStore]]:
    """The stores of a run's own maps and of those of `others`, own first.

    Raises UserError if others have other classes or lack images, or any maps are calibrated; further errors as
    `CamStore.open`.
    """
    with ExitStack() as opened:
        stores = [opened.enter_context(CamStore.open(path)) for path in (own, *others)]
        for store in stores:
            if store.calibrated:
                raise UserError(
                    f"{store.file.filename} holds calibrated maps, which cannot be merged: set cam.calibration = 'none'"
                )
            lacking = set(stores[0].names) - set(store.names)
            if store.classes != stores[0].classes or lacking:
                what = "maps of other classes" if store.classes != stores[0].classes else f"no image {min(lacking)}"
                raise UserError(f"{store.file.filename} cannot be merged with {own}: it holds {what}")
        yield stores


def merged(cams: Sequence[StoredCam]) -> StoredCam:
    """The mean of several networks' maps of one image (`ops.cam.mean_cam`), on the finest of their grids.

    The classes are the first network's; each is averaged over the networks that have it. The maps of a single network
    are returned as they are. Raises ValueError for calibrated maps.
    """
    first = cams[0]
    if len(cams) == 1:
        return first
    if any(cam.prototype is not None for cam in cams):
        raise ValueError(f"calibrated maps cannot be merged: image {first.name} has some")
    rows, columns = max((cam.cam.shape[-2:] for cam in cams), key=math.prod)
    maps = [first.cam.new_zeros(0, rows, columns)]
    for class_id in first.class_ids:
        known = [cam.cam[cam.class_ids.index(class_id)] for cam in cams if class_id in cam.class_ids]
        maps.append(mean_cam(known, (rows, columns))[None])
    return replace(first, cam=torch.cat(maps), normalized=True)


def agreement(cams: Sequence[StoredCam]) -> Tensor:
    """How far several networks agree about one image: (h, w) in 0..1, on the finest of their grids.

    Of the classes of the first network, that one counts on which they agree least at a cell (`ops.cam.cam_agreement`).
    A network that has no map of a class says 0 everywhere.
    """
    rows, columns = max((cam.cam.shape[-2:] for cam in cams), key=math.prod)
    maps = []
    for cam in cams:
        none = cam.cam.new_zeros(cam.cam.shape[-2:])
        own = [cam.cam[cam.class_ids.index(each)] if each in cam.class_ids else none for each in cams[0].class_ids]
        maps.append(torch.stack(own) if own else none[None][:0])
    return cam_agreement(maps, (rows, columns))

"""What people say about pixels (clicks, scribbles), beside the class maps of an image."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.data.marks import has_marks, sample_marks
from cam_pipeline.data.table import Sample
from cam_pipeline.ops.cam import normalize_cam, resize_cam
from cam_pipeline.ops.clicks import marks_on_grid, prototypes_of_marks, spread_marks
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.store.cams import StoredCam


def with_marks(cam: StoredCam, sample: Sample, num_classes: int) -> StoredCam:
    """The maps with the marks of their image, if it has any. A class that is marked and has no map gets an empty one.

    Marks are further prototypes of calibrated maps. Errors as `data.marks.sample_marks`.
    """
    if not has_marks(sample):
        return cam
    marks = sample_marks(sample, num_classes).labels
    said = sorted({int(label) for label in set(marks.ravel().tolist())} - {0, IGNORE_INDEX, *cam.class_ids})
    empty = cam.cam.new_zeros(len(said), *cam.cam.shape[1:])
    prototype = None if cam.prototype is None else torch.cat([cam.prototype, empty])
    class_ids = (*cam.class_ids, *said)
    marked = replace(cam, cam=torch.cat([cam.cam, empty]), class_ids=class_ids, prototype=prototype, marks=marks)
    return replace(marked, prototype=_with_prototypes_of_marks(marked))


def _with_prototypes_of_marks(cam: StoredCam) -> Tensor | None:
    """The prototype maps (1 + n, h, w) of marked maps: of a channel that people name, the mean of its own and of that
    of the marks, each divided by its maximum. They stay as they are without features to compare."""
    if cam.prototype is None or cam.features is None:
        return cam.prototype
    seeds = marked_channels(cam, (cam.features.shape[1], cam.features.shape[2]), cam.features.device)
    assert seeds is not None
    grid = cam.prototype.shape[1], cam.prototype.shape[2]
    of_marks = resize_cam(prototypes_of_marks(cam.features, seeds, len(cam.prototype)), grid)
    both = (normalize_cam(cam.prototype, eps=0.0) + normalize_cam(of_marks, eps=0.0)) / 2
    named = (seeds == torch.arange(len(both), device=seeds.device)[:, None, None]).flatten(1).any(dim=1)
    return torch.where(named[:, None, None], both, cam.prototype)


def marked_channels(cam: StoredCam, size: tuple[int, int], device: torch.device) -> Tensor | None:
    """The channel that people name at each pixel of an image reduced to `size` (h, w); None if there are no marks.

    (h, w) long: 0 background, 1..n in the order of `cam.class_ids`, -1 where nobody has said anything.
    """
    if cam.marks is None:
        return None
    channel_of = torch.full((IGNORE_INDEX + 1,), -1)
    channel_of[[0, *cam.class_ids]] = torch.arange(1 + len(cam.class_ids))
    labels = torch.from_numpy(marks_on_grid(cam.marks, size)).long()
    return channel_of[labels].to(device)


def fixed_at_marks(probabilities: Tensor, channels: Tensor | None) -> Tensor:
    """Probabilities (1 + n, h, w), 1 for the channel that people name at a pixel (`marked_channels`), 0 for others."""
    if channels is None:
        return probabilities
    said = torch.arange(len(probabilities), device=channels.device)[:, None, None] == channels
    return torch.where(channels >= 0, said.to(probabilities.dtype), probabilities)


def spreads(cam: StoredCam) -> bool:
    """Whether marks reach cells that are like theirs: there are some, classes that may win, and features to compare."""
    return cam.marks is not None and cam.features is not None and len(cam.class_ids) > 0


def with_marks_spread(probabilities: Tensor, cam: StoredCam) -> Tensor:
    """Probabilities (1 + n, H, W) of an image after its marks spread on the grid of its features; see `spreads`."""
    assert cam.features is not None
    grid = cam.features.shape[1], cam.features.shape[2]
    seeds = marked_channels(cam, grid, probabilities.device)
    assert seeds is not None
    cells = F.interpolate(probabilities[None], grid, mode="area")[0]
    return resize_cam(spread_marks(cells, cam.features, seeds), cam.size)

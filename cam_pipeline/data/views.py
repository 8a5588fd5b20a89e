"""Images as networks see them: random views for training, whole cells for prediction."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cam_pipeline.data.augment import AS_THEY_ARE, Colors, PixelMap, random_view, transforms
from cam_pipeline.data.grid import resize_to_grid, to_tensor
from cam_pipeline.data.images import UInt8, sample_image
from cam_pipeline.data.table import Sample

Key = tuple[int, ...]
"""Names a view: (epoch, index), or (epoch, index, n) for the n-th further view of an image in an epoch, from 1 on."""
BLANK = -1
"""Stands in the place of an image's index for an empty view, which shows no class."""
ReadMask = Callable[[int], UInt8]
ReadMaps = Callable[[int], Mapping[str, PixelMap]]
"""Gives the maps of the image with this index, by name, that go with it through its views."""


class TrainingViews(Dataset[dict[str, Any]]):
    """Random views. An item is asked for by its key, (epoch, index), and depends on the seed and the key alone.

    Items: `image` (3, crop, crop) uint8, `index` int and `box` (4,), the part that shows the image (top, left, bottom,
    right). With `labels` (N, C), also `labels` (C,); with `read_mask`, also `mask` (crop, crop) uint8; with
    `read_maps`, also each of these maps. The index BLANK gives an empty view with labels of 0 and without
    mask and maps.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        crop: int,
        scale: tuple[float, float],
        fill: tuple[int, int, int],
        seed: int,
        labels: Tensor | None = None,
        read_mask: ReadMask | None = None,
        read_maps: ReadMaps | None = None,
        colors: Colors = AS_THEY_ARE,
    ) -> None:
        transforms()  # imported here once, not in every process that loads images
        self.samples, self.labels, self.read_mask, self.read_maps = samples, labels, read_mask, read_maps
        self.crop, self.scale, self.fill, self.seed, self.colors = crop, scale, fill, seed, colors

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        index = key[1]
        if index == BLANK:
            return self._blank()
        image = to_tensor(sample_image(self.samples[index]))
        maps = {} if self.read_maps is None else dict(self.read_maps(index))
        if self.read_mask is not None:
            maps["mask"] = PixelMap(torch.from_numpy(np.array(self.read_mask(index))))
        rng = np.random.default_rng([self.seed, *key])
        view, moved, box = random_view(image, maps, self.crop, self.scale, self.fill, rng, self.colors)
        item = {"image": view, "index": index, "box": box, **moved}
        return item if self.labels is None else item | {"labels": self.labels[index]}

    def _blank(self) -> dict[str, Any]:
        empty = torch.tensor(self.fill, dtype=torch.uint8)[:, None, None].repeat(1, self.crop, self.crop)
        item = {"image": empty, "index": BLANK, "box": torch.zeros(4, dtype=torch.int64)}
        return item if self.labels is None else item | {"labels": torch.zeros_like(self.labels[0])}


class GridImages(Dataset[Tensor]):
    """Images resized to whole cells: item i is (3, rows * stride, columns * stride) float32 in 0..1."""

    def __init__(self, samples: Sequence[Sample], grids: Sequence[tuple[int, int]], stride: int) -> None:
        self.samples, self.grids, self.stride = samples, grids, stride

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor:
        image = to_tensor(sample_image(self.samples[index]))
        return resize_to_grid(image, self.grids[index], self.stride)


def image_labels(samples: Iterable[Sample], num_classes: int) -> Tensor:
    """(N, num_classes) float 0/1, background not included. An unlabelled image has only zeros."""
    samples = list(samples)
    labels = torch.zeros(len(samples), num_classes)
    for row, sample in enumerate(samples):
        for class_id in sample.class_ids or ():
            labels[row, class_id - 1] = 1
    return labels

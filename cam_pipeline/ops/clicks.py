"""Clicks help to make labels: what people say at some pixels spreads to what is like them.

Ours. The formulas and their reasons are in docs/methods/clicks.md.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cam_pipeline.ops.affinity import feature_walk
from cam_pipeline.ops.dtypes import at_least_float32
from cam_pipeline.ops.ignore import IGNORE_INDEX

UInt8 = NDArray[np.uint8]

STRENGTH = 10.0
"""Weight of likeness beside the logarithm of what the maps say."""
DISTANCE = 0.6
"""What a distance of the longer side takes from the cosine."""
DOUBT = 0.01
"""Added to probabilities before their logarithm: what the maps deny stays possible."""
NEAR = 0.5
"""Likeness above which a cell is taken for what its seed is, beside a channel that has no seed."""
WALK_STEPS, WALK_POWER = 2, 5.0
"""The random walk that follows, as in docs/methods/propagation.md."""
MOST_SEEDS = 256
"""Cells that speak for a channel; of more, so many are taken, evenly spread."""


def marks_on_grid(marks: UInt8, size: tuple[int, int]) -> UInt8:
    """Marks (H, W) on a grid (h, w): a cell has the label of a marked pixel inside it, 255 if there is none.

    If people say different things about the pixels of a cell, the last of these pixels wins, row by row.
    """
    found = np.full(size, IGNORE_INDEX, np.uint8)
    rows, columns = np.nonzero(marks != IGNORE_INDEX)
    cells = rows * size[0] // marks.shape[0], columns * size[1] // marks.shape[1]
    found[cells] = marks[rows, columns]
    return found


def compact_features(features: Tensor, count: int) -> Tensor:
    """At most `count` numbers a cell that keep the cosines between cells: features (B, D, h, w) -> (B, d, h, w).

    Those are the coordinates of unit vectors along the main directions of an image's own cells (a PCA without
    subtracting the mean, which cosines do not do either). Of fewer than `count` channels all stay, as they are.
    """
    features = at_least_float32(features, "features")
    if features.ndim != 4 or 0 in features.shape or count < 1:
        raise ValueError(f"features must be (B, D, h, w) and count at least 1, not {tuple(features.shape)}, {count}")
    if features.shape[1] <= count:
        return features
    units = F.normalize(features.flatten(2), dim=1)
    with torch.autocast(units.device.type, enabled=False):
        _, directions = torch.linalg.eigh(units @ units.transpose(1, 2))  # (B, D, D), the smallest first
        main = directions[..., -count:]
        kept: Tensor = (main.transpose(1, 2) @ units).view(len(features), count, *features.shape[2:])
    return kept


def spread_marks(probabilities: Tensor, features: Tensor, seeds: Tensor) -> Tensor:
    """What marks on a grid make of the probabilities of its cells: (K, h, w), features (D, h, w) -> (K, h, w), sum 1.

    `seeds` (h, w) long names the channel 0..K-1 that people name at a cell, -1 where nobody has said anything. With the
    cosine of features, each seed's a mean over 3 x 3 cells, and the distance in longer sides of the grid,

        E_c(i) = max over seeds s of channel c of cosine(s, i) - DISTANCE * distance(s, i)
        p_c(i) <- softmax over c of log(p_c(i) + DOUBT) + STRENGTH * E_c(i)

    so channels compete by which seed a cell is most like: those of the background hold a class back, too. A channel
    without a seed gets the greatest E of those that have one, at most NEAR: a few clicks say what is around them, and
    nothing about the rest. If the background and a class have seeds, p then walks along the similarity of features
    (`ops.affinity.feature_walk`). Without seeds the result is `probabilities`. Raises ValueError for other shapes.
    """
    probabilities, features = at_least_float32(probabilities, "probabilities"), at_least_float32(features, "features")
    count, *grid = probabilities.shape
    if probabilities.ndim != 3 or list(features.shape[1:]) != grid or list(seeds.shape) != grid:
        shapes = f"{tuple(probabilities.shape)}, {tuple(features.shape)} and {tuple(seeds.shape)}"
        raise ValueError(f"probabilities (K, h, w), features (D, h, w) and seeds (h, w) do not fit: {shapes}")
    named = [channel for channel in range(count) if bool((seeds == channel).any())]
    if not named:
        return probabilities
    units = F.normalize(features, dim=0)
    around = F.normalize(F.avg_pool2d(units[None], 3, 1, 1, count_include_pad=False)[0], dim=0)
    likeness = {channel: _likeness(units, around, seeds == channel) for channel in named}
    others = torch.stack([*likeness.values()]).amax(dim=0).clamp(max=NEAR)
    evidence = torch.stack([likeness.get(channel, others) for channel in range(count)])
    spread = ((probabilities + DOUBT).log() + STRENGTH * evidence).softmax(dim=0)
    if named[0] or len(named) == 1:  # one side of the outlines is not marked, and a walk would only blur them
        return spread
    return feature_walk(spread[None], features[None], steps=WALK_STEPS, power=WALK_POWER)[0]


def prototypes_of_marks(features: Tensor, seeds: Tensor, count: int) -> Tensor:
    """How alike each cell is to the mean of those that people name: features (D, h, w), seeds (h, w) -> (count, h, w).

    `seeds` as in `spread_marks`. A channel's prototype is the mean of the unit vectors of its cells. Its map is the
    positive part of the cosine to it, and 0 for a channel without a seed. Raises ValueError for other shapes.
    """
    features = at_least_float32(features, "features")
    if features.ndim != 3 or seeds.shape != features.shape[1:]:
        shapes = f"{tuple(features.shape)} and {tuple(seeds.shape)}"
        raise ValueError(f"features (D, h, w) and seeds (h, w) do not fit: {shapes}")
    units = F.normalize(features.flatten(1), dim=0)
    named = (seeds.flatten() == torch.arange(count, device=seeds.device)[:, None]).to(units.dtype)
    with torch.autocast(units.device.type, enabled=False):
        prototypes = F.normalize(named @ units.T, dim=1)
        return (prototypes @ units).relu().view(count, *seeds.shape)


def _likeness(units: Tensor, around: Tensor, seeds: Tensor) -> Tensor:
    """E (h, w) of a channel from its seeds (h, w) bool, and unit vectors (D, h, w) of cells and their surroundings."""
    height, width = seeds.shape
    cells = seeds.flatten().nonzero()[:, 0]
    if len(cells) > MOST_SEEDS:
        cells = cells[torch.linspace(0, len(cells) - 1, MOST_SEEDS, device=cells.device).round().long()]
    with torch.autocast(units.device.type, enabled=False):
        cosines = around.flatten(1)[:, cells].T @ units.flatten(1)
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(units)
    distances = torch.cdist(places[cells], places) / max(height, width)
    return (cosines - DISTANCE * distances).amax(dim=0).view(height, width)

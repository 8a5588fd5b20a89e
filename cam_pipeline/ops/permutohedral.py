"""Gaussian filter in many dimensions by the permutohedral lattice (Adams, Baek, Davis, Eurographics 2010).

Every pixel lies, by its features, in a simplex of a lattice. It is spread over the simplex's corners (splat), the
lattice is blurred along its axes (blur), and every pixel reads its corners again (slice). Each of the three is a sum of
weighted rows, so each is one `embedding_bag`: it runs on any device, in parallel, and always adds in the same order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

EXACT = 2.0**13
"""Largest feature that float32 places finely enough in a lattice; beyond it float64 computes the place."""

LONGEST_NUMBER = 2**62
"""Largest number that a key may be; keys are hashed if there could be greater ones."""


@dataclass(frozen=True)
class Bags:
    """A sparse matrix by its rows: row i is the entries from `starts[i]` to the next start."""

    columns: Tensor
    starts: Tensor
    weights: Tensor

    def __matmul__(self, values: Tensor) -> Tensor:
        """(columns, K) -> (rows, K)."""
        return F.embedding_bag(self.columns, values, self.starts, mode="sum", per_sample_weights=self.weights)


@dataclass(frozen=True)
class Lattice:
    """The filter for one set of N pixels, with M lattice points and one more, which is always 0.

    splat        (M + 1, N)
    neighbours   for each axis (M + 1, 2): the points on both sides of every point, M for one that is not there
    slices       (N, M + 1)
    """

    splat: Bags
    neighbours: tuple[Tensor, ...]
    slices: Bags

    @property
    def points(self) -> int:
        """M, the number of lattice points."""
        return len(self.splat.starts) - 1

    def __call__(self, values: Tensor) -> Tensor:
        """Filter float32 values (N, K): every pixel's sum over all, weighted by their likeness."""
        return self.slices @ self.blurred(self.splat @ values)

    def blurred(self, at_points: Tensor) -> Tensor:
        """Values (M + 1, K) at the points, plus half of both neighbours', along one axis after the other."""
        for both in self.neighbours:
            beside = F.embedding_bag(both, at_points, mode="sum")
            at_points = torch.add(at_points, beside, alpha=0.5, out=beside)
        return at_points

    def scaled(self, before: Tensor, after: Tensor) -> Self:
        """The filter of `before` (N,) times the values, its result times `after` (N,)."""
        splat, slices = self.splat, self.slices
        corners = len(slices.columns) // len(slices.starts)
        return replace(
            self,
            splat=replace(splat, weights=splat.weights * before[splat.columns]),
            slices=replace(slices, weights=slices.weights * after.repeat_interleave(corners)),
        )


def permutohedral_lattice(features: Tensor, groups: Tensor | None = None) -> Lattice:
    """The lattice of features (d, N), which are in standard deviations; pixels of different `groups` (N,) never meet.

    The filter is an approximation of sum_j exp(-|f_i - f_j|^2 / 2) v_j, the pixel itself included.
    """
    dimensions = len(features)
    features = features.double() if float(features.abs().amax()) > EXACT else features.float()
    corner, rank, weights = _simplex(_elevated(features))
    keys = _Keys.of(corner, groups)
    at_corners = keys.of_corners(corner, rank, groups)
    index = torch.int32 if rank.numel() < 2**31 else torch.int64
    del corner, rank

    ascending, order = map(torch.stack, zip(*(row.sort(stable=True) for row in at_corners), strict=True))
    begins = torch.ones_like(ascending, dtype=torch.bool)
    torch.ne(ascending[:, 1:], ascending[:, :-1], out=begins[:, 1:])
    starts = begins.view(-1).nonzero()[:, 0]
    corners = torch.empty_like(order, dtype=index)
    corners.scatter_(1, order, (begins.view(-1).cumsum(0, dtype=index) - 1).view_as(order))
    points = ascending.view(-1)[starts].split(begins.sum(dim=1).tolist())
    nothing = torch.tensor([corners.numel()], dtype=index, device=starts.device)
    splat = Bags(order.to(index).view(-1), torch.cat([starts.to(index), nothing]), weights.gather(1, order).view(-1))
    slices = Bags(
        corners.t().reshape(-1),
        torch.arange(0, corners.numel(), dimensions + 1, dtype=index, device=features.device),
        (weights.t() / (1 + 2.0**-dimensions)).reshape(-1),
    )
    return Lattice(splat, _neighbours(points, keys.strides, index), slices)


def _elevated(features: Tensor) -> Tensor:
    """Features (d, N) in the plane of d + 1 coordinates that sum to 0, scaled to unit variance: (d + 1, N)."""
    d = len(features)
    scaled = [f * (math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2))) for i, f in enumerate(features)]
    elevated = features.new_empty(d + 1, features.shape[1])
    above = torch.zeros_like(features[0])
    for j in range(d, 0, -1):
        torch.sub(above, scaled[j - 1], alpha=j, out=elevated[j])
        above += scaled[j - 1]
    elevated[0] = above
    return elevated


def _simplex(elevated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where points (d + 1, N) lie: the simplex's corner of remainder 0, divided by d + 1; the rank of each coordinate's
    distance from it, 0 for the largest; the weights of all corners, float32. All (d + 1, N)."""
    size = len(elevated)
    corner = (elevated / size).round_()
    away = torch.sub(elevated, corner, alpha=size)
    rank = torch.zeros(elevated.shape, dtype=torch.int8, device=elevated.device)
    for j in range(size):
        for k in range(j + 1, size):
            behind = away[k] > away[j]
            rank[j] += behind
            rank[k] += ~behind
    rank += corner.sum(dim=0).to(torch.int8)
    wrapped = (rank < 0).to(torch.int8) - (rank >= size).to(torch.int8)
    corner += wrapped
    rank += wrapped * size
    distance = torch.sub(elevated, corner, alpha=size) / size
    long_rank = rank.long()
    by_rank = torch.empty_like(distance).scatter_(0, long_rank, distance).float()
    weights = torch.empty_like(by_rank)
    weights[0] = by_rank[-1] + (1 - by_rank[0])
    for k in range(1, size):
        weights[k] = by_rank[size - 1 - k] - by_rank[size - k]
    return corner, long_rank, weights


@dataclass(frozen=True)
class _Keys:
    """One integer for each lattice point: sum over coordinates of (coordinate - lowest) * stride.

    Points differ by fixed amounts from their neighbours, so a neighbour's key is found by adding. The last coordinate
    follows from the others: its stride is 0.
    """

    lowest: Sequence[int]
    strides: Sequence[int]
    of_group: int
    dtype: torch.dtype

    @classmethod
    def of(cls, corner: Tensor, groups: Tensor | None) -> "_Keys":
        """Keys for corners (d + 1, N): numbers with a digit for each coordinate, or hashes if those are too long."""
        lowest = [int(low) - 2 for low in corner.amin(dim=1)]  # other corners, and their neighbours, are so much lower
        ranges = [int(high) + 2 - low for high, low in zip(corner.amax(dim=1), lowest, strict=True)]
        *strides, span = accumulate(ranges[:-1], mul, initial=1)
        images = 1 if groups is None else int(groups.amax()) + 1
        of_group, longest = span, span * images
        if longest > LONGEST_NUMBER:
            # Sums of random multiples modulo 2^64: that two of a million points agree has a chance of 1 : 10^7.
            random = torch.Generator("cpu").manual_seed(0)
            drawn = torch.randint(-(2**63), 2**63 - 1, (len(ranges),), generator=random, device="cpu")
            *strides, of_group = drawn.tolist()
            return cls(lowest, [*strides, 0], of_group, torch.int64)
        return cls(lowest, [*strides, 0], of_group, torch.int32 if longest < 2**31 else torch.int64)

    def of_corners(self, corner: Tensor, rank: Tensor, groups: Tensor | None) -> Tensor:
        """The keys (d + 1, N) of all corners of the simplices: row q has the corners of remainder q.

        From corner to corner one coordinate falls by d + 1, that of the highest rank first.
        """
        strides = torch.tensor(self.strides, dtype=self.dtype, device=rank.device)[:, None].expand_as(rank)
        by_rank = torch.empty_like(rank, dtype=self.dtype).scatter_(0, rank, strides)
        keys = by_rank.flip(0).roll(1, 0).neg_()
        keys[0] = 0 if groups is None else groups * self.of_group
        for coordinate, lowest, stride in zip(corner[:-1], self.lowest, self.strides, strict=False):
            keys[0] += (coordinate.to(self.dtype) - lowest) * stride
        for q in range(1, len(keys)):
            keys[q] += keys[q - 1]
        return keys


def _wrapped(number: int) -> int:
    """The number modulo 2^64, as an int64 holds it."""
    return (number + 2**63) % 2**64 - 2**63


def _neighbours(points: Sequence[Tensor], strides: Sequence[int], index: torch.dtype) -> tuple[Tensor, ...]:
    """For each axis the points on both sides of every point (M + 1, 2), from the keys of the points of each remainder.

    A step back along axis j takes 1 from every coordinate, but adds d to coordinate j. From remainder 1 or more that
    changes the key by `strides[j]`; from 0, by all the other strides, and leads to remainder d.
    """
    firsts = [0, *accumulate(len(keys) for keys in points)]
    total, device = firsts[-1], points[0].device
    itself = torch.arange(total, dtype=index, device=device)
    axes = []
    for stride in strides:
        behind = torch.full((total + 1,), total, dtype=index, device=device)
        ahead = behind.clone()
        for remainder, keys in enumerate(points):
            others = points[remainder - 1]
            sought = keys + (stride if remainder else _wrapped(stride - sum(strides)))
            place = torch.searchsorted(others, sought, out_int32=index == torch.int32).clamp_(max=len(others) - 1)
            found = place + firsts[(remainder - 1) % len(points)]
            own = slice(firsts[remainder], firsts[remainder + 1])
            behind[own] = torch.where(others[place] == sought, found, total)
        ahead[behind[:-1].long()] = itself
        ahead[-1] = total  # those with nothing behind have written here
        axes.append(torch.stack([behind, ahead], dim=1))
    return tuple(axes)

"""Energies over pairs of pixels, found by slicing, so that memory does not grow with the window."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.ops.dtypes import ROUNDING

MOST_DENSE = 4096
"""Most pixels of a map for the backend `dense`, which holds all pairs."""

Weigh = Callable[[int, int], Tensor]
"""Gives the weights (B, h', w') of all pairs that are (dy, dx) apart."""

Offsets = Sequence[tuple[int, int]]
"""(dy, dx) of each kind of pair, dy >= 0."""


def offsets_within(radius: int, height: int, width: int, dilation: int = 1) -> list[tuple[int, int]]:
    """Half of the window: (dy, dx) of every pair of a map once, multiples of `dilation`, at most `radius` of them."""
    rows, columns = (min(radius, (side - 1) // dilation) for side in (height, width))
    return [
        (dy * dilation, dx * dilation)
        for dy in range(rows + 1)
        for dx in range(-columns, columns + 1)
        if dy > 0 or dx > 0
    ]


def ends(maps: Tensor, dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """Views (..., h', w') of maps (..., h, w): the first and the second pixel of all pairs that are (dy, dx) apart."""
    height, width = maps.shape[-2:]
    first = maps[..., : height - dy, max(0, -dx) : width - max(0, dx)]
    return first, maps[..., dy:, max(0, dx) : width - max(0, -dx)]


class Kernel:
    """The weights of pairs; see `regularized_loss`. `features` is None if they do not count."""

    def __init__(
        self,
        image: Tensor,
        features: Tensor | None,
        beta: float,
        sigma_xy: float,
        sigma_rgb: float,
        roi: Tensor,
        feature_kernel: str = "affinity",
        sigma_feature: float = 0.5,
    ) -> None:
        self.image, self.features, self.roi = image / (2**0.5 * sigma_rgb), features, roi[:, 0]
        self.beta, self.sigma_xy = beta, sigma_xy
        self.gauss = feature_kernel == "gauss"
        if self.gauss and features is not None:
            self.features = F.normalize(features, dim=1) / (2**0.5 * sigma_feature)

    def __call__(self, dy: int, dx: int) -> Tensor:
        """Weights (B, h', w') of the pairs that are (dy, dx) apart."""
        first, second = ends(self.image, dy, dx)
        distance = (first - second).square_().sum(dim=1) + (dy * dy + dx * dx) / (2 * self.sigma_xy**2)
        one, other = ends(self.roi, dy, dx)
        weights = (-distance).exp_() * one * other
        if self.features is None:
            return weights
        first, second = ends(self.features, dy, dx)
        apart = first - second
        if apart.requires_grad:
            size = apart.square().sum(dim=1) if self.gauss else apart.abs().mean(dim=1)
        else:  # in place: fresh memory takes longer than the arithmetic
            size = apart.square_().sum(dim=1) if self.gauss else apart.abs_().mean(dim=1)
        return weights * (1 - self.beta + self.beta * (-size).exp())


def dense_energy(probabilities: Tensor, weights: Tensor, sources: Tensor | None = None) -> Tensor:
    """Sum over all i, j of s_i * w_ij * (1 - <p_i, p_j>): probabilities (B, K, N), weights (B, N, N) or (N, N).

    `sources` (B, N) or (N,): s_i, how much pixel i counts as the first of a pair; unset: 1. For tests and small maps.
    """
    apart = 1 - probabilities.transpose(1, 2) @ probabilities
    counted = weights * apart if sources is None else sources[..., None] * weights * apart
    return counted.sum()


def looped(probabilities: Tensor, weigh: Weigh, offsets: Offsets, detached: bool) -> tuple[Tensor, Tensor]:
    """Energy and mass by autograd, one offset after the other."""
    energy, mass = 0 * probabilities.sum(), probabilities.new_zeros(())
    for dy, dx in offsets:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detached):
            weights = weigh(dy, dx)
        first, second = ends(probabilities, dy, dx)
        energy = energy + 2 * (weights * (1 - (first * second).sum(dim=1))).sum()
        mass = mass + 2 * weights.sum()
    return energy, mass


class Quadratic(torch.autograd.Function):
    """Energy and mass of constant, symmetric weights: sum w - p W p, with the gradient -2 W p."""

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor, weigh: Weigh, offsets: Offsets) -> tuple[Tensor, Tensor]:
        weighted = torch.zeros_like(probabilities)
        mass = torch.zeros((), dtype=torch.float64, device=probabilities.device)
        for dy, dx in offsets:
            weights = weigh(dy, dx)[:, None]
            (first, second), (into_first, into_second) = ends(probabilities, dy, dx), ends(weighted, dy, dx)
            into_first.addcmul_(weights, second)
            into_second.addcmul_(weights, first)
            mass += 2 * weights.sum(dtype=torch.float64)
        energy = mass - (probabilities * weighted).sum(dtype=torch.float64)
        ctx.save_for_backward(weighted)
        mass = mass.to(probabilities.dtype)
        ctx.mark_non_differentiable(mass)
        return energy.to(probabilities.dtype), mass

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, of_mass: Tensor) -> tuple[Tensor, None, None]:
        (weighted,) = ctx.saved_tensors
        return -2 * gradient * weighted, None, None


def all_weights(kernel: Kernel, radius: int) -> Tensor:
    """The weights of all pairs (B, N, N), 0 for those that are too far apart."""
    _, height, width = kernel.roi.shape
    if height * width > MOST_DENSE:
        raise ValueError(f"backend 'dense' takes maps of at most {MOST_DENSE} pixels, not {height} x {width}")
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).to(kernel.image)
    apart = (places[:, None] - places).abs()
    window = (apart.amax(dim=-1) <= radius) & (apart.amax(dim=-1) > 0)
    inside = kernel.roi.flatten(1)
    distance = apart.square().sum(dim=-1) / (2 * kernel.sigma_xy**2) + _between(kernel.image, torch.square)
    weights = (-distance).exp() * window * inside[:, :, None] * inside[:, None]
    if kernel.features is None:
        return weights
    channels = kernel.features.shape[1]
    distance = _between(kernel.features, torch.square if kernel.gauss else torch.abs) / (
        1 if kernel.gauss else channels
    )
    return weights * (1 - kernel.beta + kernel.beta * (-distance).exp())


def _between(maps: Tensor, size: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, N, N): the sum over channels of how large the difference of maps (B, D, h, w) is between any two pixels."""
    values = maps.flatten(2)
    return sum((size(one[:, :, None] - one[:, None]) for one in values.unbind(dim=1)), start=values.new_zeros(()))


@torch.no_grad()
def mass_of_places(roi: Tensor, radius: int, sigma_xy: float) -> Tensor:
    """The sum of the weights if all pixels of `roi` had the same colour and features."""
    total = roi.new_zeros(())
    for dy, dx in offsets_within(radius, *roi.shape[-2:]):
        first, second = ends(roi, dy, dx)
        weight = 2 * math.exp(-(dy * dy + dx * dx) / (2 * sigma_xy**2))
        total = total + weight * (first * second).sum()
    return total


def check_maps(probabilities: Tensor, image: Tensor, roi: Tensor | None) -> None:
    """Raise ValueError unless the maps are on one grid, and probabilities in 0..1."""
    if probabilities.ndim != 4:
        raise ValueError(f"probabilities must be (B, K, h, w), not {tuple(probabilities.shape)}")
    batch, _, height, width = probabilities.shape
    if image.shape != (batch, 3, height, width):
        raise ValueError(f"image must be {(batch, 3, height, width)}, not {tuple(image.shape)}")
    if probabilities.numel():
        least, most = probabilities.detach().aminmax()
        if least < -ROUNDING or most > 1 + ROUNDING:
            raise ValueError(f"probabilities must be in 0..1, not {least.item()} to {most.item()}")
    if roi is not None:
        check_roi(roi, probabilities)


def check_roi(roi: Tensor, maps: Tensor) -> None:
    """Raise ValueError unless `roi` is (B, 1, h, w) of 0 and 1, on the grid of (B, any, h, w)."""
    expected = (maps.shape[0], 1, *maps.shape[2:])
    if roi.shape != expected or ((roi != 0) & (roi != 1)).any():
        raise ValueError(f"roi must be {expected} of 0 and 1, not {tuple(roi.shape)} {roi.dtype}")

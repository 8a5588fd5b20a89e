"""Mean-field inference in a dense CRF (Krähenbühl and Koltun, NIPS 2011) in torch: on any device, on whole batches."""

from functools import lru_cache

import torch
from torch import Tensor

from cam_pipeline.ops.permutohedral import Lattice, permutohedral_lattice

SMALLEST_WIDTH = 1e-3
"""Smaller standard deviations do the same as this one: nothing but the pixel itself is ever as near."""
GREATEST_WEIGHT = 1e30
"""Greater weights do the same as this one, of which float32 holds the multiples."""
KEPT_PIXELS = 2**20
"""Largest number of pixels of a grid whose lattice is kept; it takes about 60 bytes for each of them."""
EXPONENT = 80.0
"""Largest number of which float32 holds the exponential, and a sum of several."""


@torch.no_grad()
def mean_field(
    images: Tensor,
    log_probabilities: Tensor,
    iterations: int,
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
) -> Tensor:
    """The marginals (B, K, H, W) float32 of a batch: images (B, H, W, 3), logarithms (B, K, H, W) of probabilities.

    Labels that an image of the batch does not have are -inf there. `gaussian` is (weight, sxy), `bilateral` (weight,
    sxy, srgb), as in `cam_pipeline.ops.crf.dense_crf`; a kernel of weight 0 is left out.
    """
    batch, labels, height, width = log_probabilities.shape
    filters = []
    if gaussian[0] > 0:
        weight, sxy = gaussian
        kept = batch * height * width <= KEPT_PIXELS
        smoothness = _smoothness if kept else _smoothness.__wrapped__
        filters.append(smoothness(batch, height, width, weight, sxy, images.device))
    if bilateral[0] > 0:
        filters.append(_appearance(images, *bilateral))

    rows = log_probabilities.movedim(1, -1).float().contiguous().view(-1, labels)
    posterior = rows.exp()
    posterior /= _sums(posterior)
    for _ in range(iterations if filters else 0):
        energy = rows.clone()
        for one in filters:
            energy += one(posterior)
        if float(energy.amax()) > EXPONENT:
            energy -= energy.amax(dim=1, keepdim=True)
        posterior = energy.exp_()
        posterior /= _sums(posterior)
    return posterior.view(batch, height, width, labels).movedim(-1, 1).contiguous()


def _sums(rows: Tensor) -> Tensor:
    """The sum of each row (N, 1), as a product: torch adds up short rows slowly."""
    with torch.autocast(rows.device.type, enabled=False):  # it would lower the product to half precision
        return rows @ rows.new_ones(rows.shape[1], 1)


@lru_cache(maxsize=4)
def _smoothness(batch: int, height: int, width: int, weight: float, sxy: float, device: torch.device) -> Lattice:
    """The gaussian kernel's filter. It depends on the size alone, so it is kept."""
    return _normalized(_places(batch, height, width, sxy, device), batch, weight)


def forget_lattices() -> None:
    """Free the lattices that are kept: memory is short."""
    _smoothness.cache_clear()


def _appearance(images: Tensor, weight: float, sxy: float, srgb: float) -> Lattice:
    """The bilateral kernel's filter for images (B, H, W, 3)."""
    batch, height, width, _ = images.shape
    colors = images.reshape(-1, 3).t().float() / max(srgb, SMALLEST_WIDTH)
    return _normalized(torch.cat([_places(batch, height, width, sxy, images.device), colors]), batch, weight)


def _places(batch: int, height: int, width: int, sxy: float, device: torch.device) -> Tensor:
    """Column and row (2, B * H * W) of every pixel, in standard deviations."""
    sides = [torch.arange(side, dtype=torch.float32, device=device) for side in (height, width)]
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    return torch.stack([columns, rows]).view(2, -1).repeat(1, batch) / max(sxy, SMALLEST_WIDTH)


def _normalized(features: Tensor, batch: int, weight: float) -> Lattice:
    """The filter n * F(n * values) * weight with n = 1 / sqrt(F(1)): a pixel's share does not grow with its company."""
    pixels = features.shape[1]
    image = torch.arange(batch, device=features.device).repeat_interleave(pixels // batch) if batch > 1 else None
    lattice = permutohedral_lattice(features, image)
    norm = (lattice(features.new_ones(pixels, 1, dtype=torch.float32))[:, 0] + 1e-20).rsqrt()
    return lattice.scaled(before=norm, after=norm * min(weight, GREATEST_WEIGHT))

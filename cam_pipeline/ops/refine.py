"""Local refinement of score maps: every pixel repeatedly takes a mean of its neighbours, weighted by similar colour.

Sources: PAR, Ru et al., "Learning Affinity from Attention", CVPR 2022 (arXiv 2203.02664); VARM, Xu et al., "Self
Correspondence Distillation for End-to-End Weakly-Supervised Semantic Segmentation", AAAI 2023 (arXiv 2302.13765); the
numbers are those of the released code. Neighbours lie at 8 compass points times each dilation; beyond the border the
nearest pixel of the image is repeated. No tensor of size (B, K, 8 * dilations, H, W) is ever held.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cam_pipeline.ops.dtypes import ROUNDING, at_least_float32

DILATIONS = (1, 2, 4, 8, 12, 24)
CONTRAST = {"varm": 4.0, "par": 1 / 0.3, "color": 4.0}
"""Factor of the colour difference, measured in standard deviations of the neighbours, for each kernel."""
SECOND_TERM = 0.01
"""Weight of PAR's position term, which is added, and of VARM's variation term, which is subtracted."""
EPS = 1e-8


def neighbor_weights(
    image: Tensor,
    kernel: str,
    dilations: Sequence[int] = DILATIONS,
    sigma_floor: float = 0.0,
    *,
    renormalize: bool = False,
    valid: Tensor | None = None,
) -> Tensor:
    """Weight of each neighbour: image (B, 3, H, W) in 0..1 -> (B, n, H, W), n = 8 * len(dilations).

    Order: dilation by dilation, in each NW N NE W E SW S SE. With D_jc the difference to neighbour j in channel c, s_c
    the unbiased standard deviation of the n neighbours (at least `sigma_floor`) and k the contrast,
    color_j = softmax_j(-mean_c (k D_jc / (s_c + 1e-8))^2). With the distance r_j, and V_j the sum of squared
    differences to the pixels below and right of neighbour j, mean over channels (0 beyond the last row and column):

    `color`  color_j, k = 4; sum 1.
    `par`    color_j + 0.01 softmax_j(-(r_j / (std(r) + 1e-8) / 0.3)^2), k = 1/0.3; sum 1.01.
    `varm`   color_j - 0.01 softmax_j(V_j), k = 4; sum 0.99, and a weight may be negative.

    `renormalize` divides by that sum. `sigma_floor` (try 2/255) keeps invisible noise in flat areas from counting as
    structure; the papers have none. `valid` (B, 1, H, W) bool marks one rectangle in each image, which is treated as if
    it were cut out: the neighbours beyond it repeat its border, and outside of it all weights are 0. No gradient
    reaches the image. Raises ValueError for other shapes or ranges, or an unknown kernel.
    """
    image = _checked_image(image, kernel, dilations, sigma_floor)
    weights = _weights(image, kernel, dilations, sigma_floor, renormalize, _frame(image, max(dilations), valid))
    return weights if valid is None else weights.masked_fill_(~valid, 0)


def local_refine(
    image: Tensor,
    scores: Tensor,
    kernel: str = "varm",
    iterations: int = 10,
    dilations: Sequence[int] = DILATIONS,
    sigma_floor: float = 0.0,
    *,
    renormalize: bool = False,
    valid: Tensor | None = None,
    fixed: Tensor | None = None,
) -> Tensor:
    """Refined scores (B, K, H, W) for an image (B, 3, H, W) of their size: `iterations` times m_i <- sum_j w_ij m_j.

    Kernels, sums of weights and the other arguments are those of `neighbor_weights`. Channels do not interact, so maps
    made with several backgrounds may be stacked along K. A constant sum c of the weights scales all channels by
    c^iterations, which leaves the argmax as it is. Scores outside `valid` stay as they are and influence nothing; an
    image without a valid pixel stays as it is. Where `fixed` (B, 1, H, W) bool is True, scores keep their value in
    every iteration, and their neighbours take it up. Gradients reach the scores only. Raises ValueError for other
    shapes or ranges, or an unknown kernel.
    """
    image = _checked_image(image, kernel, dilations, sigma_floor)
    scores = at_least_float32(scores, "scores")
    if scores.ndim != 4 or 0 in scores.shape or (len(scores), *scores.shape[2:]) != (len(image), *image.shape[2:]):
        shapes = f"{tuple(scores.shape)} and {tuple(image.shape)}"
        raise ValueError(f"scores (B, K, H, W) must have the batch and size of the image (B, 3, H, W), not {shapes}")
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, but is {iterations}")
    if fixed is not None and (fixed.dtype != torch.bool or fixed.shape != scores[:, :1].shape):
        raise ValueError(f"fixed must be bool {tuple(scores[:, :1].shape)}, not {fixed.dtype} {tuple(fixed.shape)}")
    dtype = torch.promote_types(image.dtype, scores.dtype)
    image, scores = image.to(dtype), scores.to(dtype)
    margin = max(dilations)
    frame = _frame(image, margin, valid)
    weights = _weights(image, kernel, dilations, sigma_floor, renormalize, frame).split(1, dim=1)
    offsets = _offsets(dilations)
    refined = scores
    for _ in range(iterations):
        padded = _pad(refined, margin, frame)
        del refined  # so that only one map of each kind is held, beside the weights
        refined = scores.new_zeros(scores.shape)
        for weight, offset in zip(weights, offsets, strict=True):
            refined.addcmul_(weight, _window(padded, offset, margin))
        del padded
        if fixed is not None:
            refined = torch.where(fixed, scores, refined)
    return refined if valid is None else torch.where(valid, refined, scores)


class _Frame(NamedTuple):
    """How maps are continued beyond the image, or beyond the valid rectangle of each image."""

    source: Tensor | None
    """Flat index (B, 1, .) of the pixel that each pixel of the padded map repeats; None for the plain border."""
    above: Tensor
    """(B or 1, 1, H, 1): 1 for rows with another row below them, else 0."""
    left: Tensor
    """(B or 1, 1, 1, W): 1 for columns with another column to the right, else 0."""


def _weights(
    image: Tensor, kernel: str, dilations: Sequence[int], sigma_floor: float, renormalize: bool, frame: _Frame
) -> Tensor:
    """Weights (B, n, H, W) of a checked image; no other tensor of n planes is held."""
    offsets = _offsets(dilations)
    padded = _pad(image, max(dilations), frame)
    weights = _color_term(image, padded, CONTRAST[kernel], offsets, sigma_floor)
    gain = 1.0
    if kernel == "par":
        weights += SECOND_TERM * _position(offsets, weights).view(1, -1, 1, 1)
        gain += SECOND_TERM
    if kernel == "varm":
        _subtract_variation(weights, padded, offsets, frame)
        gain -= SECOND_TERM
    return weights.div_(gain) if renormalize else weights


def _color_term(
    image: Tensor, padded: Tensor, contrast: float, offsets: list[tuple[int, int]], sigma_floor: float
) -> Tensor:
    """Softmax of the colour differences: (B, n, H, W)."""
    margin = (padded.shape[-1] - image.shape[-1]) // 2
    mean = torch.zeros_like(image)
    variance = torch.zeros_like(image)
    for offset in offsets:
        mean += _window(padded, offset, margin)
    mean /= len(offsets)
    for offset in offsets:  # a second pass: E[x^2] - E[x]^2 loses all digits in flat areas
        difference = _window(padded, offset, margin) - mean
        variance.addcmul_(difference, difference)
    sigma = variance.div_(len(offsets) - 1).sqrt_().clamp_min_(sigma_floor)
    scale = contrast / (sigma + EPS)
    term = image.new_empty(len(image), len(offsets), *image.shape[2:])
    for plane, offset in zip(term.unbind(1), offsets, strict=True):
        difference = (_window(padded, offset, margin) - image).mul_(scale)
        torch.mean(difference.square_(), dim=1, out=plane)
    nearest = term.amin(dim=1, keepdim=True)
    torch.sub(nearest, term, out=term).exp_()
    return term.div_(term.sum(dim=1, keepdim=True))


def _position(offsets: list[tuple[int, int]], like: Tensor) -> Tensor:
    """PAR's position term (n,), the same for every pixel."""
    distance = torch.tensor(offsets, dtype=torch.float64).square().sum(dim=1).sqrt()
    return (-(distance / (distance.std() + EPS) / 0.3).square()).softmax(dim=0).to(like)


def _subtract_variation(weights: Tensor, padded: Tensor, offsets: list[tuple[int, int]], frame: _Frame) -> None:
    """Subtract VARM's variation term from the weights (B, n, H, W), in place."""
    margin = (padded.shape[-1] - weights.shape[-1]) // 2
    down, right = padded.new_zeros(2, len(padded), 1, *padded.shape[2:])
    down[..., :-1, :] = padded.diff(dim=-2).square_().mean(dim=1, keepdim=True)
    right[..., :-1] = padded.diff(dim=-1).square_().mean(dim=1, keepdim=True)

    def exponential(offset: tuple[int, int]) -> Tensor:
        variation = _window(down, offset, margin) * frame.above
        return variation.addcmul_(_window(right, offset, margin), frame.left).exp_()  # at most e^2: no maximum needed

    total = torch.zeros_like(weights[:, :1])
    for offset in offsets:
        total += exponential(offset)
    share = SECOND_TERM / total
    for plane, offset in zip(weights.split(1, dim=1), offsets, strict=True):  # computed again, to hold no n planes
        plane.addcmul_(exponential(offset), share, value=-1)


def _offsets(dilations: Sequence[int]) -> list[tuple[int, int]]:
    """Rows and columns from a pixel to each neighbour, in the order of the weights."""
    compass = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    return [(y * dilation, x * dilation) for dilation in dilations for y, x in compass]


def _window(padded: Tensor, offset: tuple[int, int], margin: int) -> Tensor:
    """The neighbour of every pixel at `offset`: a view (B, C, H, W) of maps padded by `margin`."""
    top, left = margin + offset[0], margin + offset[1]
    return padded[..., top : padded.shape[-2] - margin + offset[0], left : padded.shape[-1] - margin + offset[1]]


def _pad(maps: Tensor, margin: int, frame: _Frame) -> Tensor:
    """Maps (B, C, H, W) with `margin` more pixels on each side."""
    if frame.source is None:
        return functional.pad(maps, (margin, margin, margin, margin), mode="replicate")
    found = maps.flatten(2).gather(2, frame.source.expand(-1, maps.shape[1], -1))
    return found.view(*maps.shape[:2], maps.shape[2] + 2 * margin, maps.shape[3] + 2 * margin)


def _frame(image: Tensor, margin: int, valid: Tensor | None) -> _Frame:
    """How maps of the image's size are continued. Raises ValueError if `valid` is not one rectangle in each image."""
    height, width = image.shape[2:]
    inside = torch.ones_like(image[:1, :1], dtype=torch.bool) if valid is None else _checked_mask(valid, image)
    rows, columns = _nearest(inside.any(dim=3), margin), _nearest(inside.any(dim=2), margin)
    source = None if valid is None else (rows.unsqueeze(3) * width + columns.unsqueeze(2)).flatten(2)
    above = rows[..., margin + 1 : margin + 1 + height] != rows[..., margin : margin + height]
    left = columns[..., margin + 1 : margin + 1 + width] != columns[..., margin : margin + width]
    return _Frame(source, above.unsqueeze(3).to(image.dtype), left.unsqueeze(2).to(image.dtype))


def _nearest(inside: Tensor, margin: int) -> Tensor:
    """For each position of `inside` (., 1, n), and `margin` more on both sides: the nearest position that is inside.

    The positions inside are those from the first True to the last.
    """
    length = inside.shape[-1]
    first = inside.int().argmax(dim=-1, keepdim=True)
    last = length - 1 - inside.flip(-1).int().argmax(dim=-1, keepdim=True)
    return torch.arange(-margin, length + margin, device=inside.device).clamp(first, last)


def _checked_mask(valid: Tensor, image: Tensor) -> Tensor:
    """Return `valid`; raise ValueError unless it marks one rectangle, or nothing, in each image."""
    batch, _, height, width = image.shape
    if valid.shape != (batch, 1, height, width) or valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool {(batch, 1, height, width)}, not {valid.dtype} {tuple(valid.shape)}")
    rows = _nearest(valid.any(dim=3), 0) == torch.arange(height, device=valid.device)
    columns = _nearest(valid.any(dim=2), 0) == torch.arange(width, device=valid.device)
    rectangle = rows.unsqueeze(3) & columns.unsqueeze(2)
    if not ((rectangle == valid) | ~valid.any(dim=(2, 3), keepdim=True)).all():
        raise ValueError("valid must mark one rectangle in each image")
    return valid


def _checked_image(image: Tensor, kernel: str, dilations: Sequence[int], sigma_floor: float) -> Tensor:
    """The image without gradient, at least float32, after all checks but those of `valid` and the scores."""
    if kernel not in CONTRAST:
        raise ValueError(f"kernel must be one of {', '.join(CONTRAST)}, not {kernel!r}")
    if not dilations or min(dilations) < 1:
        raise ValueError(f"dilations must be one or more numbers from 1 on, not {list(dilations)}")
    if not 0 <= sigma_floor < math.inf:
        raise ValueError(f"sigma_floor must not be negative, but is {sigma_floor}")
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise ValueError(f"image must be (B, 3, H, W) and not empty, not {tuple(image.shape)}")
    image = at_least_float32(image.detach(), "image (floats in 0..1)")
    low, high = (float(bound) for bound in image.aminmax())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise ValueError(f"image must lie in 0..1, but spans {low}..{high}")
    return image.contiguous()  # images often have their channels last, which makes every window slow

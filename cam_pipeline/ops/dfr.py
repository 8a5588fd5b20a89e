"""Regularised losses for sparse pixel labels, in the style of DFR: similar pixels should get the same answer.

After Zhang, Xiao, Zhao, "Dynamic Feature Regularized Loss for Weakly Supervised Semantic Segmentation" (arXiv
2108.01296), of which only the abstract is public to us: that shallow features (colour, place) and deep ones, which
change while the network learns, say which pixels are alike, and that a head learns the deep ones by their consistency.
All formulas here are inferred from earlier public work: rloss (Tang et al., ECCV 2018), Gated CRF (arXiv 1906.04651)
and A2GNN (arXiv 2106.04054). Pairs are found by slicing, so that memory does not grow with the window.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.ops.dtypes import ROUNDING, at_least_float32
from cam_pipeline.ops.losses import segmentation_loss
from cam_pipeline.ops.scd import balanced_cross_entropy

BACKENDS = ("auto", "loop", "quad", "dense")
MOST_DENSE = 4096
"""Most pixels of a map for the backend `dense`, which holds all pairs."""
EPS = 1e-5
"""Added in the logarithms and counts of `feature_consistency_loss`, as in A2GNN."""

SHARES = (0.25, 0.25, 0.5)
"""Of pairs of background, of pairs of one class, and of others in `feature_consistency_loss`. Source: A2GNN."""

Weigh = Callable[[int, int], Tensor]
"""Gives the weights (B, h', w') of all pairs that are (dy, dx) apart."""


def partial_cross_entropy(logits: Tensor, labels: Tensor, mode: str = "mean", ignore_index: int = 255) -> Tensor:
    """Cross entropy over labelled pixels alone: logits (B, K, H, W), labels (B, H, W) in 0..K-1 or `ignore_index`.

    `mean`: over all of them (`ops.losses.segmentation_loss`); `bg_fg`: half the mean over background pixels and half
    that over those of classes (`ops.scd.balanced_cross_entropy`). A batch without a labelled pixel gives 0 with a
    graph. Raises ValueError for other modes, shapes, types or labels.
    """
    if mode == "mean":
        return segmentation_loss(logits, labels, ignore_index)
    if mode == "bg_fg":
        return balanced_cross_entropy(logits, labels, ignore_index)
    raise ValueError(f"mode must be 'mean' or 'bg_fg', not {mode!r}")


class Regularized(NamedTuple):
    """A regularised loss, and what is worth a look beside it, scalars: the sum of all weights, and its share of what
    it would be if all pixels were alike in all but their place."""

    loss: Tensor
    mass: Tensor
    alike: Tensor


def regularized_loss(
    probabilities: Tensor,
    image: Tensor,
    features: Tensor | None = None,
    radius: int = 5,
    beta: float = 0.0,
    sigma_xy: float = 6.0,
    sigma_rgb: float = 0.1,
    roi: Tensor | None = None,
    backend: str = "loop",
    normalize: str = "pixel",
    feature_kernel: str = "affinity",
    sigma_feature: float = 0.5,
    detach_features: bool = True,
) -> Tensor:
    """Sum over pairs i != j of w_ij * (1 - <p_i, p_j>), divided by the number of pixels or by the sum of all w_ij.

    Pairs are at most `radius` rows and columns apart; each counts in both directions. Their weight is
    w_ij = k_ij * ((1 - beta) + beta * a_ij), where
    k_ij = exp(-|xy_i - xy_j|^2 / (2 sigma_xy^2) - |rgb_i - rgb_j|^2 / (2 sigma_rgb^2)) and a_ij is
    exp(-mean_d |e_id - e_jd|) (`affinity`, what `feature_consistency_loss` trains) or
    exp(-|e_i - e_j|^2 / (2 sigma_feature^2)) of features of length 1 (`gauss`).

    `probabilities` (B, K, h, w); `image` (B, 3, h, w), standardised colours on the same grid; `features` (B, D, h, w);
    `roi` (B, 1, h, w) of 0 and 1: pixels at 0, such as padding, have no pairs and do not count. That a pixel has no
    label does not matter. `normalize`: `pixel` divides by the pixels of `roi`, `mass` by the weights.

    No gradient reaches the image, nor the features unless `detach_features` is False. `backend`: `loop` is plain
    autograd; `quad` knows the gradient, -2 W p, and needs less memory; `dense` holds all pairs, for at most 4096
    pixels; `auto` is `quad` where that is possible. All is pooled over the batch; no pair gives 0, with a graph.

    Raises ValueError for other shapes, ranges or names, beta > 0 without features, and `quad` with features that learn.
    """
    return regularized(
        probabilities,
        image,
        features,
        radius,
        beta,
        sigma_xy,
        sigma_rgb,
        roi,
        backend,
        normalize,
        feature_kernel,
        sigma_feature,
        detach_features,
    ).loss


def regularized(
    probabilities: Tensor,
    image: Tensor,
    features: Tensor | None = None,
    radius: int = 5,
    beta: float = 0.0,
    sigma_xy: float = 6.0,
    sigma_rgb: float = 0.1,
    roi: Tensor | None = None,
    backend: str = "loop",
    normalize: str = "pixel",
    feature_kernel: str = "affinity",
    sigma_feature: float = 0.5,
    detach_features: bool = True,
) -> Regularized:
    """As `regularized_loss`, with the mass of the weights."""
    probabilities, image = at_least_float32(probabilities, "probabilities"), at_least_float32(image, "image")
    _check_maps(probabilities, image, roi)
    _check_choices(radius, beta, sigma_xy, sigma_rgb, sigma_feature)
    for name, value, known in (
        ("backend", backend, BACKENDS),
        ("normalize", normalize, ("pixel", "mass")),
        ("feature_kernel", feature_kernel, ("affinity", "gauss")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    if backend == "quad" and not detach_features:
        raise ValueError("backend 'quad' takes the weights for constant; take 'loop' for features that learn")
    if backend == "auto":
        backend = "quad" if detach_features else "loop"
    deep = _deep(probabilities, features, beta, feature_kernel, detach_features)
    inside = torch.ones_like(probabilities[:, :1]) if roi is None else roi.to(probabilities.dtype)
    kernel = Kernel(image.detach(), deep, beta, sigma_xy, sigma_rgb, inside, feature_kernel, sigma_feature)
    with torch.autocast(probabilities.device.type, enabled=False):
        if backend == "dense":
            weights = _all_weights(kernel, radius)
            energy, mass = dense_energy(probabilities.flatten(2), weights), weights.sum()
        elif backend == "quad":
            energy, mass = _Quadratic.apply(probabilities, kernel, radius)
        else:
            energy, mass = _looped(probabilities, kernel, radius, detach_features)
        count = inside.sum() if normalize == "pixel" else mass
        near = _mass_of_places(inside, radius, sigma_xy)
    loss = energy / torch.where(count > 0, count, 1)
    return Regularized(loss, mass.detach(), mass.detach() / torch.where(near > 0, near, 1))


def dense_energy(probabilities: Tensor, weights: Tensor, sources: Tensor | None = None) -> Tensor:
    """Sum over all i, j of s_i * w_ij * (1 - <p_i, p_j>): probabilities (B, K, N), weights (B, N, N) or (N, N).

    `sources` (B, N) or (N,): s_i, how much pixel i counts as the first of a pair; unset: 1. For tests and small maps.
    """
    apart = 1 - probabilities.transpose(1, 2) @ probabilities
    counted = weights * apart if sources is None else sources[..., None] * weights * apart
    return counted.sum()


def feature_consistency_loss(
    features: Tensor, labels: Tensor, radius: int = 3, ignore_index: int = 255, roi: Tensor | None = None
) -> Tensor:
    """Features of pairs with the same label should be alike, and those of others not.

    `features` (B, D, h, w), `labels` (B, h, w); pairs at most `radius` rows and columns apart, both labelled and both
    in `roi` (B, 1, h, w) of 0 and 1. With a_ij = exp(-mean_d |e_id - e_jd|) the loss is a quarter of the mean of
    -log(a + eps) over pairs of background, a quarter of that over pairs of one class, and half the mean of
    -log(1 + eps - a) over the others; a mean over no pairs is 0, with a graph. Pair loss: A2GNN. Raises ValueError for
    other shapes, types or ranges.
    """
    return consistency(features, labels, radius, ignore_index, roi).loss


class Consistency(NamedTuple):
    """The loss of feature consistency and its parts: of pairs of background, of pairs of one class, and of others.

    `parts` and `counts` are (3,): each part with its share of the loss in it, and its pairs. `alike` and `apart` are
    the mean likeness (0..1) of pairs that should be alike, and of others.
    """

    loss: Tensor
    parts: Tensor
    counts: Tensor
    alike: Tensor
    apart: Tensor


def consistency(
    features: Tensor, labels: Tensor, radius: int = 3, ignore_index: int = 255, roi: Tensor | None = None
) -> Consistency:
    """As `feature_consistency_loss`, with figures of the pairs."""
    features = at_least_float32(features, "features")
    if features.ndim != 4 or labels.shape != (features.shape[0], *features.shape[2:]):
        shapes = f"{tuple(features.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"features and labels must be (B, D, h, w) and (B, h, w), not {shapes}")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, not {labels.dtype}")
    if radius < 1:
        raise ValueError(f"radius must be 1 or more, not {radius}")
    known = labels != ignore_index
    if roi is not None:
        _check_roi(roi, features)
        known = known & (roi[:, 0] > 0)
    offsets = offsets_within(radius, *features.shape[-2:])
    with torch.autocast(features.device.type, enabled=False):
        distances = _Distances.apply(features, offsets) if offsets else ()
        kinds = [[features.new_zeros(()), features.new_zeros(())] for _ in range(3)]  # sums and counts
        likeness = [features.new_zeros(()), features.new_zeros(())]
        for (dy, dx), distance in zip(offsets, distances, strict=True):
            (first, second), (one, other) = ends(labels, dy, dx), ends(known, dy, dx)
            both, same, alike = one & other, first == second, (-distance).exp()
            near, far = -(alike + EPS).log(), -(1 + EPS - alike).log()
            chosen = (both & same & (first == 0), both & same & (first != 0), both & ~same)
            for kind, pairs, losses in zip(kinds, chosen, (near, near, far), strict=True):
                kind[0] = kind[0] + torch.where(pairs, losses, 0).sum()
                kind[1] = kind[1] + pairs.sum()
            likeness[0] = likeness[0] + torch.where(both & same, alike.detach(), 0).sum()
            likeness[1] = likeness[1] + torch.where(both & ~same, alike.detach(), 0).sum()
        nothing = 0 * features.sum()  # a graph, if no pair fits the map
        counts = torch.stack([count for _, count in kinds])
        means = torch.stack([total + nothing for total, _ in kinds]) / (counts + EPS)
        parts = means * means.new_tensor(SHARES)
    alike = likeness[0] / (counts[0] + counts[1]).clamp(min=1)
    return Consistency(parts.sum(), parts, counts, alike, likeness[1] / counts[2].clamp(min=1))


def offsets_within(radius: int, height: int, width: int) -> list[tuple[int, int]]:
    """Half of the window: (dy, dx) of every pair of a map once, at most `radius` rows and columns apart."""
    return [
        (dy, dx)
        for dy in range(min(radius, height - 1) + 1)
        for dx in range(-min(radius, width - 1), min(radius, width - 1) + 1)
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


def _looped(probabilities: Tensor, weigh: Weigh, radius: int, detached: bool) -> tuple[Tensor, Tensor]:
    """Energy and mass by autograd, one offset after the other."""
    energy, mass = 0 * probabilities.sum(), probabilities.new_zeros(())
    for dy, dx in offsets_within(radius, *probabilities.shape[-2:]):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not detached):
            weights = weigh(dy, dx)
        first, second = ends(probabilities, dy, dx)
        energy = energy + 2 * (weights * (1 - (first * second).sum(dim=1))).sum()
        mass = mass + 2 * weights.sum()
    return energy, mass


class _Quadratic(torch.autograd.Function):
    """Energy and mass of constant, symmetric weights: sum w - p W p, with the gradient -2 W p."""

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor, weigh: Weigh, radius: int) -> tuple[Tensor, Tensor]:
        weighted = torch.zeros_like(probabilities)
        mass = torch.zeros((), dtype=torch.float64, device=probabilities.device)
        for dy, dx in offsets_within(radius, *probabilities.shape[-2:]):
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


class _Distances(torch.autograd.Function):
    """Mean absolute difference over channels of all pairs of features (B, D, h, w): (B, h', w') for each offset.

    Autograd alone would keep the differences of all offsets, D times as much.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, offsets: list[tuple[int, int]]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(features)
        ctx.offsets = offsets
        distances = []
        for dy, dx in offsets:
            first, second = ends(features, dy, dx)
            distances.append((first - second).abs_().mean(dim=1))
        return tuple(distances)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (features,) = ctx.saved_tensors
        total = torch.zeros_like(features)
        for (dy, dx), gradient in zip(ctx.offsets, gradients, strict=True):
            first, second = ends(features, dy, dx)
            into_first, into_second = ends(total, dy, dx)
            share = (first - second).sign_().mul_(gradient[:, None] / features.shape[1])
            into_first.add_(share)
            into_second.sub_(share)
        return total, None


def _all_weights(kernel: Kernel, radius: int) -> Tensor:
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
def _mass_of_places(roi: Tensor, radius: int, sigma_xy: float) -> Tensor:
    """The sum of the weights if all pixels of `roi` had the same colour and features."""
    total = roi.new_zeros(())
    for dy, dx in offsets_within(radius, *roi.shape[-2:]):
        first, second = ends(roi, dy, dx)
        weight = 2 * math.exp(-(dy * dy + dx * dx) / (2 * sigma_xy**2))
        total = total + weight * (first * second).sum()
    return total


def _deep(
    probabilities: Tensor, features: Tensor | None, beta: float, feature_kernel: str, detached: bool
) -> Tensor | None:
    """The features that count in the weights; None if they do not."""
    if features is None:
        if beta > 0:
            raise ValueError(f"beta = {beta} needs features")
        return None
    features = at_least_float32(features, "features")
    if features.ndim != 4 or len(features) != len(probabilities) or features.shape[2:] != probabilities.shape[2:]:
        raise ValueError(f"features must be (B, D, h, w) on the grid of the probabilities, not {tuple(features.shape)}")
    if not beta:
        return None
    return features.detach() if detached else features


def _check_maps(probabilities: Tensor, image: Tensor, roi: Tensor | None) -> None:
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
        _check_roi(roi, probabilities)


def _check_roi(roi: Tensor, maps: Tensor) -> None:
    """Raise ValueError unless `roi` is (B, 1, h, w) of 0 and 1, on the grid of (B, any, h, w)."""
    expected = (maps.shape[0], 1, *maps.shape[2:])
    if roi.shape != expected or ((roi != 0) & (roi != 1)).any():
        raise ValueError(f"roi must be {expected} of 0 and 1, not {tuple(roi.shape)} {roi.dtype}")


def _check_choices(radius: int, beta: float, sigma_xy: float, sigma_rgb: float, sigma_feature: float) -> None:
    """Raise ValueError for numbers out of range."""
    if radius < 1:
        raise ValueError(f"radius must be 1 or more, not {radius}")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in 0..1, not {beta}")
    for name, sigma in (("sigma_xy", sigma_xy), ("sigma_rgb", sigma_rgb), ("sigma_feature", sigma_feature)):
        if not sigma > 0:
            raise ValueError(f"{name} must be above 0, not {sigma}")

"""Regularised losses for sparse pixel labels, in the style of DFR: similar pixels should get the same answer.

After Zhang, Xiao, Zhao, "Dynamic Feature Regularized Loss for Weakly Supervised Semantic Segmentation" (arXiv
2108.01296), of which only the abstract is public to us: that shallow features (colour, place) and deep ones, which
change while the network learns, say which pixels are alike, and that a head learns the deep ones by their consistency.
All formulas here are inferred from earlier public work: rloss (Tang et al., ECCV 2018), Gated CRF (arXiv 1906.04651)
and A2GNN (arXiv 2106.04054).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cam_pipeline.ops.dtypes import at_least_float32
from cam_pipeline.ops.losses import segmentation_loss
from cam_pipeline.ops.pairs import (
    Kernel,
    Quadratic,
    all_weights,
    check_maps,
    check_roi,
    dense_energy,
    ends,
    looped,
    mass_of_places,
    offsets_within,
)
from cam_pipeline.ops.scd import balanced_cross_entropy

BACKENDS = ("auto", "loop", "quad", "dense")
EPS = 1e-5
"""Added in the logarithms and counts of `feature_consistency_loss`, as in A2GNN."""

SHARES = (0.25, 0.25, 0.5)
"""Of pairs of background, of pairs of one class, and of others in `feature_consistency_loss`. Source: A2GNN."""


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
    check_maps(probabilities, image, roi)
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
    offsets = offsets_within(radius, *probabilities.shape[-2:])
    with torch.autocast(probabilities.device.type, enabled=False):
        if backend == "dense":
            weights = all_weights(kernel, radius)
            energy, mass = dense_energy(probabilities.flatten(2), weights), weights.sum()
        elif backend == "quad":
            energy, mass = Quadratic.apply(probabilities, kernel, offsets)
        else:
            energy, mass = looped(probabilities, kernel, offsets, detach_features)
        count = inside.sum() if normalize == "pixel" else mass
        near = mass_of_places(inside, radius, sigma_xy)
    loss = energy / torch.where(count > 0, count, 1)
    return Regularized(loss, mass.detach(), mass.detach() / torch.where(near > 0, near, 1))


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
        check_roi(roi, features)
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


def _check_choices(radius: int, beta: float, sigma_xy: float, sigma_rgb: float, sigma_feature: float) -> None:
    """Raise ValueError for numbers out of range."""
    if radius < 1:
        raise ValueError(f"radius must be 1 or more, not {radius}")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in 0..1, not {beta}")
    for name, sigma in (("sigma_xy", sigma_xy), ("sigma_rgb", sigma_rgb), ("sigma_feature", sigma_feature)):
        if not sigma > 0:
            raise ValueError(f"{name} must be above 0, not {sigma}")

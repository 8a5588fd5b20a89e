"""Metrics of label maps (confusion, IoU, error shares) and of image-level scores (AP, F1).

Label maps are counted into confusion matrices; image-level scores are tables (N, C). Every ratio is float64 in 0..1,
and NaN if it is 0/0; percent appears only in printed tables.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cam_pipeline.ops.dtypes import at_least_float32


def confusion_matrix(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count pixels by (target, prediction): (K, K) int64, rows target, columns prediction, K = `num_classes`.

    Both maps are integer tensors of one shape, with any number of dimensions; counts are pooled over all of them.
    Pixels whose target is `ignore_index` are left out, whatever was predicted there. Raises ValueError if either map
    has a value outside 0..K-1 on a pixel that counts: a map with an ignore band cannot be evaluated, so that a quoted
    mIoU is always of the complete map.
    """
    _require_label_maps(num_classes, prediction=prediction, target=target)
    prediction, target = _valid_pixels(target, ignore_index, prediction, target)
    _require_class_range(num_classes, prediction=prediction, target=target)
    counts = torch.bincount(target * num_classes + prediction, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def iou_per_class(confusion: Tensor) -> Tensor:
    """Intersection over union, TP / (TP + FP + FN): (..., K, K) -> (..., K) float64.

    NaN for a class neither predicted nor present. Like all functions of a confusion, it raises ValueError for a matrix
    that is not square or has negative counts.
    """
    true_positive, false_positive, false_negative = _outcomes(confusion)
    return true_positive / (true_positive + false_positive + false_negative)


def mean_iou(confusion: Tensor) -> Tensor:
    """Mean of `iou_per_class` over the classes predicted or present: (..., K, K) -> (...) float64."""
    return torch.nanmean(iou_per_class(confusion), dim=-1)


def mean_iou_interval(confusions: Tensor, draws: int = 1000) -> tuple[float, float]:
    """Where the mean IoU of other such images probably lies, from the confusion of each of N images, (N, K, K).

    Bootstrap: the images are drawn N times with replacement, `draws` times, always the same; between the 2.5 % and the
    97.5 % quantile of the mean IoU of their sums lie 95 % of the draws. A class that a draw lacks counts with its IoU
    in all images: without it the mean would be of other classes. Few images make the interval too narrow, as images
    that were not seen cannot be drawn. Raises ValueError for another shape, or without images.
    """
    if confusions.ndim != 3 or len(confusions) == 0:
        raise ValueError(f"the confusions of N images must be (N, K, K), not {tuple(confusions.shape)}")
    count, size = confusions.shape[:2]
    drawn = torch.randint(count, (draws, count), generator=torch.Generator().manual_seed(0))
    times = torch.zeros(draws, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    flat = confusions.reshape(count, -1).double()
    of_all = iou_per_class(confusions.double().sum(dim=0))
    drawn_ious = torch.cat([iou_per_class((some @ flat).view(-1, size, size)) for some in times.split(100)])
    means = torch.where(drawn_ious.isnan(), of_all, drawn_ious).nanmean(dim=-1)
    low, high = means.nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def precision_per_class(confusion: Tensor) -> Tensor:
    """TP / (TP + FP): (..., K, K) -> (..., K) float64; NaN for a class that is never predicted."""
    true_positive, false_positive, _ = _outcomes(confusion)
    return true_positive / (true_positive + false_positive)


def recall_per_class(confusion: Tensor) -> Tensor:
    """TP / (TP + FN): (..., K, K) -> (..., K) float64; NaN for a class that is never present."""
    true_positive, _, false_negative = _outcomes(confusion)
    return true_positive / (true_positive + false_negative)


def false_positive_share(confusion: Tensor) -> Tensor:
    """Over-activation: mean over classes of FP / (TP + FP + FN); (..., K, K) -> (...) float64.

    The same classes are left out as in `mean_iou`, so mean_iou + false_positive_share + false_negative_share = 1: the
    shares tell which kind of error the rest of the mIoU is. Source: the FP and FN columns customary in weakly
    supervised segmentation, e.g. Wang et al. 2020 (SEAM), table 5.
    """
    true_positive, false_positive, false_negative = _outcomes(confusion)
    return torch.nanmean(false_positive / (true_positive + false_positive + false_negative), dim=-1)


def false_negative_share(confusion: Tensor) -> Tensor:
    """Under-activation: mean over classes of FN / (TP + FP + FN); see `false_positive_share`."""
    true_positive, false_positive, false_negative = _outcomes(confusion)
    return torch.nanmean(false_negative / (true_positive + false_positive + false_negative), dim=-1)


def threshold_histogram(
    best_class: Tensor,
    best_score: Tensor,
    target: Tensor,
    thresholds: Tensor,
    num_classes: int,
    ignore_index: int = 255,
) -> Tensor:
    """Count pixels by (target, best class, number of thresholds strictly below the score): (K, K, T+1) int64.

    `best_class`: the best foreground class 1..C of every pixel, 0 in an image without classes; `best_score`: its
    floating point score; both have the target's shape. `thresholds` (T,) ascend. The histograms of several images can
    be added; `confusions_from_histogram` then gives the exact result of every background threshold. Scores and
    thresholds are compared in the precision of the scores (half precision: float32), which is that of a background
    channel prepended to them.

    Raises ValueError for unequal shapes, for thresholds that are empty, not 1-D, NaN or descending, and for classes
    outside 0..K-1 or scores that are NaN on pixels that count.
    """
    _require_label_maps(num_classes, best_class=best_class, target=target)
    if best_score.shape != target.shape:
        raise ValueError(f"best_score has shape {tuple(best_score.shape)}, target {tuple(target.shape)}")
    score = at_least_float32(best_score, "best_score")
    edges = at_least_float32(thresholds, "thresholds").to(device=score.device, dtype=score.dtype)
    if edges.ndim != 1 or edges.numel() == 0 or edges.isnan().any() or (edges[1:] < edges[:-1]).any():
        raise ValueError("thresholds must be a 1-D tensor of ascending numbers")
    best_class, target, score = _valid_pixels(target, ignore_index, best_class, target, score)
    _require_class_range(num_classes, best_class=best_class, target=target)
    if score.isnan().any():
        raise ValueError("best_score contains NaN")
    bins = edges.numel() + 1
    passed = torch.searchsorted(edges, score)
    index = (target * num_classes + best_class) * bins + passed
    return torch.bincount(index, minlength=num_classes**2 * bins).view(num_classes, num_classes, bins)


def confusions_from_histogram(histogram: Tensor) -> Tensor:
    """Confusion matrices of all T background thresholds: (K, K, T+1) -> (T, K, K) int64, exact.

    The input is a `threshold_histogram`, or a sum of them. At threshold t the prediction of a pixel is its best class
    if the score is > t, else background, which wins ties. Raises ValueError for another shape.
    """
    if histogram.ndim != 3 or histogram.shape[0] != histogram.shape[1] or histogram.shape[2] < 2:
        raise ValueError(f"histogram must be (K, K, T+1) with T >= 1, not {tuple(histogram.shape)}")
    at_least = histogram.long().flip(-1).cumsum(-1).flip(-1)
    confusions = at_least[..., 1:].permute(2, 0, 1).clone()
    below = at_least[..., 0] - confusions
    confusions[..., 0] += below.sum(dim=-1)
    return confusions


def average_precision(scores: Tensor, image_labels: Tensor) -> Tensor:
    """Average precision per class over N images: two (N, C) -> (C,) float64; NaN without a positive image.

    AP = sum_n (R_n - R_{n-1}) P_n over the distinct scores in descending order, not interpolated (the definition of
    scikit-learn's `average_precision_score`): images with equal scores enter together, so their order is irrelevant.
    `image_labels` are 0 and 1 in any dtype. Raises ValueError for other values, other shapes or NaN scores.
    """
    scores, positive = _score_table(scores, image_labels)
    columns = [_average_precision(scores[:, c], positive[:, c]) for c in range(scores.shape[1])]
    return torch.stack(columns) if columns else scores.new_zeros(0, dtype=torch.float64)


def mean_precision_interval(mean: float, image_labels: Tensor, confidence_z: float = 1.96) -> tuple[float, float]:
    """Where the mean AP of many more such images probably lies, given the `mean` over those of `image_labels` (N, C).

    Wilson's score interval, 95 % by default, of a share observed on n images: centre (p + z^2 / 2n) / (1 + z^2 / n),
    half width z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n). An AP is a mean over the class's n_c positive images
    of numbers in 0..1, which vary no more than those of a share, and the mean AP averages over C classes; hence n = C^2
    / sum(1 / n_c) over the classes that occur, but not more than N, as one image may count for several classes. Unlike
    a bootstrap over images it says of a mean of 1 on 12 images that 0.76 would be no surprise. NaN for both without a
    positive image. Source: Wilson 1927.
    """
    counts = (image_labels == 1).sum(dim=0).double()
    counts = counts[counts > 0]
    if not len(counts):
        return math.nan, math.nan
    images = min(float(len(image_labels)), float(len(counts) ** 2 / (1 / counts).sum()))
    square = confidence_z**2 / images
    centre = (mean + square / 2) / (1 + square)
    half = math.sqrt(square * mean * (1 - mean) + square**2 / 4) / (1 + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def f1_score(scores: Tensor, image_labels: Tensor, threshold: float = 0.5) -> Tensor:
    """Micro F1 = 2 TP / (2 TP + FP + FN) pooled over all images and classes: (N, C), (N, C) -> () float64.

    A class is predicted if its score is > `threshold`. NaN if nothing is predicted and nothing present. Raises
    ValueError like `average_precision`.
    """
    scores, positive = _score_table(scores, image_labels)
    predicted = scores > threshold
    hits = (predicted & positive).sum().double()
    return 2 * hits / (predicted.sum() + positive.sum())


def frequency_groups(counts: Sequence[int]) -> dict[str, list[int]]:
    """Classes, numbered from 0, grouped by the number of training images that show them: `counts` of all classes.

    `head` is the quarter with most images, `tail` the quarter with fewest, rounded, and at least one class each if
    there are three or more; `middle` is the rest. Among equal counts the earlier class comes first.
    """
    order = sorted(range(len(counts)), key=lambda number: (-counts[number], number))
    side = max(1, round(len(counts) / 4)) if len(counts) >= 3 else len(counts) // 2
    middle = order[side : len(order) - side]
    return {"head": order[:side], "middle": middle, "tail": order[len(order) - side :]}


def _average_precision(scores: Tensor, positive: Tensor) -> Tensor:
    """AP of one class: scores (N,), positive (N,) bool -> () float64."""
    ranked, order = scores.sort(descending=True)
    hits = positive[order].double().cumsum(0)
    last_of_group = torch.ones_like(positive)
    last_of_group[:-1] = ranked[1:] != ranked[:-1]
    seen = torch.arange(1, len(ranked) + 1, device=scores.device, dtype=torch.float64)
    precision = (hits / seen)[last_of_group]
    recall = hits[last_of_group] / positive.sum()
    return (torch.diff(recall, prepend=recall.new_zeros(1)) * precision).sum() / positive.any()


def _score_table(scores: Tensor, image_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Check the arguments of an image-level metric; return float scores and boolean labels, both (N, C)."""
    if scores.ndim != 2 or scores.shape != image_labels.shape:
        shapes = f"{tuple(scores.shape)} and {tuple(image_labels.shape)}"
        raise ValueError(f"scores and image_labels must both be (N, C), not {shapes}")
    scores = at_least_float32(scores, "scores")
    if scores.isnan().any():
        raise ValueError("scores contain NaN")
    positive = image_labels == 1
    if not (positive | (image_labels == 0)).all():
        raise ValueError("image_labels must be 0 or 1")
    return scores, positive


def _outcomes(confusion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """True positives, false positives and false negatives, each (..., K) float64, of a confusion (..., K, K)."""
    if confusion.ndim < 2 or confusion.shape[-1] != confusion.shape[-2] or confusion.shape[-1] == 0:
        raise ValueError(f"a confusion matrix must be square, not {tuple(confusion.shape)}")
    if (confusion < 0).any():
        raise ValueError("a confusion matrix must not contain negative counts")
    counts = confusion.double()
    true_positive = counts.diagonal(dim1=-2, dim2=-1)
    return true_positive, counts.sum(dim=-2) - true_positive, counts.sum(dim=-1) - true_positive


def _require_label_maps(num_classes: int, **maps: Tensor) -> None:
    """Raise ValueError unless the maps are integer tensors of one shape and there is at least one class."""
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    for name, labels in maps.items():
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"{name} must be an integer tensor, not {labels.dtype}")
    if len({labels.shape for labels in maps.values()}) > 1:
        raise ValueError("unequal shapes: " + ", ".join(f"{name} {tuple(m.shape)}" for name, m in maps.items()))


def _valid_pixels(target: Tensor, ignore_index: int, *maps: Tensor) -> list[Tensor]:
    """Flat maps of the pixels whose target counts; integers become int64, so that products do not overflow."""
    valid = target.long() != ignore_index
    chosen = [m[valid] for m in maps]
    return [m if m.is_floating_point() else m.long() for m in chosen]


def _require_class_range(num_classes: int, **maps: Tensor) -> None:
    """Raise ValueError unless the flat int64 maps lie in 0..K-1."""
    for name, labels in maps.items():
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            span = f"{int(labels.min())}..{int(labels.max())}"
            raise ValueError(f"{name} has values {span} on pixels that count; allowed are 0..{num_classes - 1}")

"""Label maps from scores: with an ignore band for training, complete for evaluation."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cam_pipeline.ops.dtypes import ROUNDING, at_least_float32
from cam_pipeline.ops.ignore import IGNORE_INDEX

Array = TypeVar("Array", NDArray[Any], Tensor)


def labels_from_scores(scores: Array, class_ids: Sequence[int], low: float, high: float) -> Array:
    """Label map with an ignore band: scores (1+n, H, W), background first -> (H, W) uint8.

    A pixel gets the id of its best class if that beats the background and its score is >= `high`; 0 if the score of its
    best class is < `low`; IGNORE_INDEX otherwise. `class_ids`: ids 1..254 of the n class channels, in their order;
    n = 0 gives background everywhere. The background wins ties, among classes the first wins. Scores are floats in
    0..1, so stored uint8 scores must be divided by 255 first. The result is numpy or a tensor, like the scores, and on
    the same device. Raises ValueError for integer scores, another shape or range, ids that do not fit, or low > high.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(f"thresholds must satisfy 0 <= low <= high <= 1, but low is {low} and high {high}")
    tensor = _checked_scores(scores, class_ids)
    complete, best_score = _best_labels(tensor, class_ids)
    labels = torch.full_like(complete, IGNORE_INDEX)
    labels[best_score < low] = 0
    labels = torch.where((complete > 0) & (best_score >= high), complete, labels)
    return _like(labels, scores)


def complete_labels(scores: Array, class_ids: Sequence[int]) -> Array:
    """Label map without an ignore band, the id of each pixel's best channel: (1+n, H, W) -> (H, W) uint8.

    The background wins ties, among classes the first wins. Arguments and errors as in `labels_from_scores`.
    """
    complete, _ = _best_labels(_checked_scores(scores, class_ids), class_ids)
    return _like(complete, scores)


def merge_high_low(high: Array, low: Array) -> Array:
    """One label map with an ignore band from two (..., H, W), refined with a high and with a low background score.

    A pixel keeps the class or IGNORE_INDEX that it has in `high`; it becomes 0 if it is 0 in both, else IGNORE_INDEX.
    Both maps are numpy or both torch, uint8 or a wider signed integer type; the result has the kind and dtype of
    `high`. Raises ValueError for two kinds, other types, or shapes that differ. Source: Xu et al. 2023 (TSCD).
    """
    first, second = (_checked_labels(labels, name) for labels, name in ((high, "high"), (low, "low")))
    if isinstance(high, Tensor) != isinstance(low, Tensor):
        raise ValueError("high and low must both be numpy arrays or both tensors")
    if first.shape != second.shape:
        raise ValueError(f"high and low must have the same shape, not {tuple(first.shape)} and {tuple(second.shape)}")
    return _like(torch.where((first == 0) & (second != 0), IGNORE_INDEX, first), high)


def _checked_labels(labels: NDArray[Any] | Tensor, name: str) -> Tensor:
    """The label map as a tensor that can hold IGNORE_INDEX."""
    tensor = labels if isinstance(labels, Tensor) else torch.from_numpy(np.array(labels, order="C"))
    if tensor.dtype not in (torch.uint8, torch.int16, torch.int32, torch.int64):
        raise ValueError(f"{name} must be uint8 or a wider signed integer type, not {tensor.dtype}")
    return tensor


def _best_labels(scores: Tensor, class_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Complete label map (H, W) uint8 and the score of the best class (H, W), -1 if there are no classes."""
    if len(scores) == 1:
        return torch.zeros_like(scores[0], dtype=torch.uint8), torch.full_like(scores[0], -1)
    best_score, best = scores[1:].max(dim=0)  # on the CPU ten times as fast as argmax, and the first wins here, too
    ids = torch.as_tensor(class_ids, dtype=torch.uint8, device=scores.device)
    return torch.where(best_score > scores[0], ids[best], 0), best_score


def _checked_scores(scores: NDArray[Any] | Tensor, class_ids: Sequence[int]) -> Tensor:
    """The scores as a tensor of at least float32, after all checks but those of the thresholds."""
    tensor = scores.detach() if isinstance(scores, Tensor) else torch.from_numpy(np.array(scores, order="C"))
    if tensor.ndim != 3 or tensor.shape[0] != 1 + len(class_ids):
        shape = tuple(tensor.shape)
        raise ValueError(f"scores must be (1+n, H, W) with n = {len(class_ids)} class ids, not {shape}")
    tensor = at_least_float32(tensor, "scores (floats in 0..1)")
    if tensor.numel() and not (tensor.min() >= -ROUNDING and tensor.max() <= 1 + ROUNDING):
        raise ValueError(f"scores must lie in 0..1, but span {float(tensor.min())}..{float(tensor.max())}")
    if len(set(class_ids)) < len(class_ids) or not all(0 < c < IGNORE_INDEX for c in class_ids):
        raise ValueError(f"class_ids must be different ids from 1 to {IGNORE_INDEX - 1}, not {list(class_ids)}")
    return tensor


def _like(labels: Tensor, scores: Array) -> Array:
    """Give the labels the kind of array that the scores have."""
    if isinstance(scores, Tensor):
        return labels
    array: NDArray[Any] = labels.numpy()
    return array

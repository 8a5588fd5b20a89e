"""Classes that an image shows: known, or predicted by the classifier."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cam_pipeline.cams.views import View
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.evaluating import evaluating

ClassIds = tuple[int, ...]


def presence(class_ids: Sequence[ClassIds], num_classes: int, device: torch.device) -> Tensor:
    """(B, C) float 0/1: 1 for the classes that an image shows."""
    present = torch.zeros(len(class_ids), num_classes, device=device)
    for row, ids in zip(present, class_ids, strict=True):
        row[[class_id - 1 for class_id in ids]] = 1
    return present


def class_ranks(class_ids: Sequence[ClassIds], device: torch.device) -> Tensor:
    """(B, R) long: column r holds the r-th class, counted from 0, of every image, and -1 for an image with fewer."""
    most = max((len(ids) for ids in class_ids), default=0)
    rows = [[class_id - 1 for class_id in ids] + [-1] * (most - len(ids)) for ids in class_ids]
    return torch.tensor(rows, dtype=torch.long, device=device).view(len(class_ids), most)


def predicted_classes(probabilities: Tensor, threshold: float, at_least_one: bool = False) -> ClassIds:
    """1-based ids of the classes whose probability (C,) exceeds `threshold`; else the likeliest if `at_least_one`."""
    chosen = [int(index) + 1 for index in (probabilities > threshold).nonzero().flatten()]
    return tuple(chosen or [int(probabilities.argmax()) + 1] * at_least_one)


def shown_classes(
    class_ids: Sequence[ClassIds | None] | None, probabilities: Tensor, threshold: float, at_least_one: bool = False
) -> list[ClassIds]:
    """Classes of every image: those known, else those predicted from `probabilities` (B, C)."""
    known: Sequence[ClassIds | None] = [None] * len(probabilities) if class_ids is None else class_ids
    pairs = zip(known, probabilities, strict=True)
    return [predicted_classes(own, threshold, at_least_one) if ids is None else ids for ids, own in pairs]


def classes_before_maps(
    classifier: Classifier,
    views: Sequence[View],
    class_ids: Sequence[ClassIds | None] | None,
    threshold: float,
    at_least_one: bool = False,
) -> tuple[list[ClassIds], Tensor | None]:
    """Classes of every image, predicted if unknown, and the probabilities (B, C) used for that; None if all are known.

    The prediction takes a forward pass for every view.
    """
    if class_ids is not None and None not in class_ids:
        return [ids or () for ids in class_ids], None
    probabilities = class_probabilities(classifier, views)
    return shown_classes(class_ids, probabilities, threshold, at_least_one), probabilities


def class_probabilities(classifier: Classifier, views: Sequence[View]) -> Tensor:
    """Probabilities (B, C) of the classes in B images, float32: the mean over their views."""
    with evaluating(classifier):
        logits = [classifier(view.images).logits for view in views]
    return torch.stack([own.float().sigmoid() for own in logits]).mean(dim=0)

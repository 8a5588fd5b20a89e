"""Which classes an image shows: as known, or as predicted."""

from collections.abc import Sequence

import torch
from torch import Tensor

ClassIds = tuple[int, ...]


def presence(class_ids: Sequence[ClassIds], num_classes: int, device: torch.device) -> Tensor:
    """(B, C) 0/1: which classes each image shows."""
    present = torch.zeros(len(class_ids), num_classes, device=device)
    for row, ids in zip(present, class_ids, strict=True):
        row[[class_id - 1 for class_id in ids]] = 1
    return present


def class_ranks(class_ids: Sequence[ClassIds], device: torch.device) -> Tensor:
    """(B, R) 0-based classes: column r holds every image's r-th present class, -1 where it has fewer."""
    most = max((len(ids) for ids in class_ids), default=0)
    rows = [[class_id - 1 for class_id in ids] + [-1] * (most - len(ids)) for ids in class_ids]
    return torch.tensor(rows, dtype=torch.long, device=device).view(len(class_ids), most)


def predicted_classes(probabilities: Tensor, threshold: float) -> ClassIds:
    """1-based ids of the classes whose probability (C,) exceeds `threshold`; at least the likeliest one."""
    chosen = {int(index) + 1 for index in (probabilities > threshold).nonzero().flatten()}
    return tuple(sorted(chosen | {int(probabilities.argmax()) + 1}))


def shown_classes(
    class_ids: Sequence[ClassIds | None] | None, probabilities: Tensor, threshold: float
) -> list[ClassIds]:
    """The classes of every image: as known, else those that `probabilities` (B, C) predict."""
    known: Sequence[ClassIds | None] = [None] * len(probabilities) if class_ids is None else class_ids
    pairs = zip(known, probabilities, strict=True)
    return [predicted_classes(likely, threshold) if ids is None else ids for ids, likely in pairs]

"""Self-Regulation: the exits of a multi-exit network teach each other.

Source: Zhang et al., "Self-Regulation for Semantic Segmentation", ICCV 2021 (arXiv 2108.09702), as released; what says
"our reading" is not in the released code. Teachers get no gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.ops.dtypes import at_least_float32


def sr_label_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mode: str = "presence",
    temperature: float = 1.0,
    ignore: Tensor | None = None,
) -> Tensor:
    """SR-L, deep teaches shallow: the mean cross entropy of a student's answer against its teacher's.

    `presence`: logits (B, C) of "the image shows the class"; binary cross entropy against the teacher's sigmoid.
    `pixel` (our reading): logits (B, K, h, w) and (B, K, H, W); cross entropy of softmax(. / t), the teacher's resized
    to the student's grid as probabilities, times t^2. `ignore` as in `sr_feature_loss`, for `pixel` alone.

    The least value is the teacher's entropy, not 0. Raises ValueError for other shapes, modes or temperatures.
    """
    student, teacher = _checked(student_logits, teacher_logits, temperature)
    if mode == "presence":
        if student.ndim != 2 or student.shape != teacher.shape or ignore is not None or temperature != 1:
            shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
            raise ValueError(f"presence takes two tensors (B, C), no temperature and nothing to ignore, not {shapes}")
        return F.binary_cross_entropy_with_logits(student, teacher.sigmoid())
    if mode != "pixel":
        raise ValueError(f"mode must be 'presence' or 'pixel', not {mode!r}")
    _check_maps(student, teacher)
    return _soft(student, teacher, temperature, ignore)


def sr_feature_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mode: str = "released",
    temperature: float = 1.0,
    ignore: Tensor | None = None,
) -> Tensor:
    """SR-F, shallow teaches deep: the mean cross entropy of a student's maps (B, K, h, w) against its teacher's.

    The teacher's maps are (B, K, H, W). `released`: against its best channel, resized by nearest to the student's grid.
    `soft` (our reading; takes feature maps, too): cross entropy of softmax(. / t) over channels, the teacher's
    area-pooled to the student's grid as probabilities, times t^2.

    `ignore` (B, any, any) bool: pixels that are left out; it is resized by nearest. If nothing is left the loss is 0,
    with a graph. Raises ValueError for other shapes, modes or temperatures.
    """
    student, teacher = _checked(student_logits, teacher_logits, temperature)
    _check_maps(student, teacher)
    if mode == "soft":
        return _soft(student, teacher, temperature, ignore)
    if mode != "released":
        raise ValueError(f"mode must be 'released' or 'soft', not {mode!r}")
    best = nearest(teacher.argmax(dim=1), student.shape[-2:])
    return _mean(F.cross_entropy(student, best, reduction="none"), ignore)


def presence_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross entropy of logits (B, C) against labels (B, C) in {0, 1}; NaN is an unknown label.

    Without a known label the loss is 0, with a graph. Raises ValueError for shapes that differ.
    """
    logits = at_least_float32(logits, "logits")
    if logits.ndim != 2 or logits.shape != labels.shape:
        raise ValueError(f"logits and labels must be (B, C), not {tuple(logits.shape)} and {tuple(labels.shape)}")
    known = ~labels.isnan()
    each = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num().to(logits), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def entropy(teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean entropy over channels of softmax(logits / t), (B, K, h, w): what a perfect copy scores, before t^2."""
    logs = (at_least_float32(teacher_logits, "teacher_logits").detach() / temperature).log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1).mean()


def nearest(labels: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Label maps or masks (B, H, W) of any dtype at another size: each pixel takes that under its centre."""
    if tuple(labels.shape[-2:]) == tuple(size):
        return labels
    rows, columns = (
        ((torch.arange(new, device=labels.device) + 0.5) * (old / new)).long().clamp_(max=old - 1)
        for new, old in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[..., rows[:, None], columns]


def _checked(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be finite and above 0, but is {temperature}")
    return at_least_float32(student, "student_logits"), at_least_float32(teacher, "teacher_logits").detach()


def _check_maps(student: Tensor, teacher: Tensor) -> None:
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[:2] != teacher.shape[:2]:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"maps of student and teacher must be (B, K, h, w) and (B, K, H, W), not {shapes}")


def _soft(student: Tensor, teacher: Tensor, temperature: float, ignore: Tensor | None) -> Tensor:
    target = (teacher / temperature).softmax(dim=1)
    if target.shape != student.shape:
        finer = target.shape[-2] >= student.shape[-2] and target.shape[-1] >= student.shape[-1]
        how = {"mode": "area"} if finer else {"mode": "bilinear", "align_corners": False}
        target = F.interpolate(target, student.shape[-2:], **how)
    each = -(target * (student / temperature).log_softmax(dim=1)).sum(dim=1)
    return _mean(each, ignore) * temperature**2


def _mean(each: Tensor, ignore: Tensor | None) -> Tensor:
    """Mean over the pixels (B, h, w) that are not ignored."""
    if ignore is None:
        return each.mean()
    if ignore.dtype != torch.bool or ignore.ndim != 3 or len(ignore) != len(each):
        raise ValueError(f"ignore must be (B, H, W) bool, not {tuple(ignore.shape)} {ignore.dtype}")
    counted = ~nearest(ignore, each.shape[-2:])
    return torch.where(counted, each, 0).sum() / counted.sum().clamp(min=1)

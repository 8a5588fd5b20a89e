"""Read class activation maps out of a classifier, over scales and flips."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.models.classifier import Classifier
from cam_pipeline.ops.cam import classifier_cam, place_view


@torch.inference_mode()
def multi_scale_cams(
    classifier: Classifier, images: Tensor, scales: Sequence[float], flip: bool
) -> tuple[Tensor, Tensor]:
    """Class maps and class probabilities of a batch: images (B, 3, H, W) in 0..1, sides multiples of the stride.

    Returns (B, C, h, w) >= 0, the mean of a scale's two views summed over scales, on the grid of scale 1 and placed as
    the network's cells lie, not normalised; and (B, C) in 0..1, the mean over views. Scaled sides are rounded to whole
    cells, so that every grid covers the image exactly.
    """
    rows, columns = images.shape[-2] // classifier.stride, images.shape[-1] // classifier.stride
    maps, probabilities = [], []
    for scale in scales:
        size = (max(1, round(rows * scale)) * classifier.stride, max(1, round(columns * scale)) * classifier.stride)
        scaled = (
            images
            if size == tuple(images.shape[-2:])
            else F.interpolate(images, size, mode="bilinear", align_corners=False)
        )
        for flipped in (False, True) if flip else (False,):
            view = scaled.flip(-1) if flipped else scaled
            features, logits = classifier(view.contiguous(memory_format=torch.channels_last))
            raw = classifier_cam(features, classifier.head.weight)
            maps.append(place_view(raw, (rows, columns), classifier.offset, flipped))
            probabilities.append(logits.float().sigmoid())
    return torch.stack(maps).sum(dim=0) / (2 if flip else 1), torch.stack(probabilities).mean(dim=0)


def predicted_classes(probabilities: Tensor, threshold: float) -> tuple[int, ...]:
    """1-based ids of the classes whose probability (C,) exceeds `threshold`; at least the likeliest one."""
    chosen = {int(index) + 1 for index in (probabilities > threshold).nonzero().flatten()}
    return tuple(sorted(chosen | {int(probabilities.argmax()) + 1}))

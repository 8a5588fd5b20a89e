"""A teacher's targets, and the strong views that a student learns them on: colours changed, boxes pasted.

Sources: Tarvainen and Valpola, "Mean teachers are better role models", NIPS 2017 (arXiv 1703.01780), for the average of
weights as the teacher; Yang et al., "UniMatch", CVPR 2023 (arXiv 2208.09910), for weak and strong views, CutMix and the
threshold; Rong et al., "BECO", CVPR 2023, for teaching against wrong labels from image labels. That a teacher may only
name the classes of an image's labels is as in these labels themselves.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.ops.dtypes import at_least_float32
from cam_pipeline.ops.ignore import IGNORE_INDEX

GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601), as in torchvision."""
REACH = 6
"""Pixels that a blur looks to each side: three times the largest sigma, 2."""


def within(boxes: Tensor, height: int, width: int) -> Tensor:
    """(B, height, width) bool: pixels inside their image's box, (B, 4) integers top, left, bottom, right."""
    top, left, bottom, right = (side[:, None] for side in boxes.unbind(dim=1))
    rows, columns = (torch.arange(side, device=boxes.device) for side in (height, width))
    high, wide = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return high[:, :, None] & wide[:, None, :]


def cutmix_boxes(
    drawn: Tensor, height: int, width: int, share: float, area: tuple[float, float], aspect: float
) -> Tensor:
    """Boxes (B, 4) int64, top, left, bottom, right, from random numbers `drawn` (B, 5) in [0, 1).

    An image gets a box with the probability `share`, else an empty one (zeros). The box's share of the view is drawn
    evenly from `area`, its height over its width evenly in the logarithm from 1 / `aspect` to `aspect`, its place
    evenly among those inside. A side that would be longer than the view's is cut to that. Source: Yun et al., "CutMix",
    ICCV 2019, in the form of UniMatch.
    """
    chosen, size, shape, high, wide = drawn.unbind(dim=1)
    pixels = (area[0] + size * (area[1] - area[0])) * height * width
    ratio = aspect ** (2 * shape - 1)
    rows = (pixels * ratio).sqrt().round().clamp(1, height)
    columns = (pixels / ratio).sqrt().round().clamp(1, width)
    top, left = (high * (height - rows + 1)).floor(), (wide * (width - columns + 1)).floor()
    boxes = torch.stack([top, left, top + rows, left + columns], dim=1).long()
    return torch.where((chosen < share)[:, None], boxes, 0)


def partners(count: int) -> Tensor:
    """(count,) int64: the image whose box each image gets. Neighbours swap, and a last one alone has the one before.

    So it does not matter how a batch is divided, if its parts are even.
    """
    order = torch.arange(count) ^ 1
    if count % 2:
        order[-1] = max(count - 2, 0)
    return order


def pasted(values: Tensor, boxes: Tensor) -> Tensor:
    """Values (B, H, W) or (B, C, H, W) of any type, with each image's box (B, 4) taken from its partner."""
    inside = within(boxes, *values.shape[-2:])
    other = values[partners(len(values)).to(values.device)]
    return torch.where(inside if values.ndim == 3 else inside[:, None], other, values)


def recolored(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, grey: Tensor) -> Tensor:
    """Images (B, 3, H, W) float in 0..1 with other colours, in this order; the rest (B,), 1 and False: as they are.

    `brightness` multiplies the image, `contrast` its distance from its mean brightness, `saturation` that from its own
    grey; what leaves 0..1 is cut. An image that is `grey` loses its colours.
    """
    brightness, contrast, saturation, grey = (
        each[:, None, None, None] for each in (brightness, contrast, saturation, grey)
    )
    images = (images * brightness).clamp(0, 1)
    mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
    images = (mean + contrast * (images - mean)).clamp(0, 1)
    own = _grey(images)
    images = (own + saturation * (images - own)).clamp(0, 1)
    return torch.where(grey, _grey(images), images)


def _grey(images: Tensor) -> Tensor:
    """The brightness (B, 1, H, W) of pixels."""
    return (images * images.new_tensor(GREY)[:, None, None]).sum(dim=1, keepdim=True)


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Images (B, 3, H, W) float through a Gaussian of `sigma` (B,) pixels, at most 2; 0 leaves an image as it is."""
    count, channels, *_ = images.shape
    steps = torch.arange(-REACH, REACH + 1, device=images.device)
    kernel = torch.exp(-((steps / sigma[:, None].clamp(min=1e-3)) ** 2) / 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)[:, None, None]
    flat = images.reshape(1, count * channels, *images.shape[-2:])
    wide = F.conv2d(F.pad(flat, (REACH, REACH, 0, 0), "replicate"), kernel, groups=len(kernel))
    both = F.conv2d(F.pad(wide, (0, 0, REACH, REACH), "replicate"), kernel.transpose(2, 3), groups=len(kernel))
    return both.reshape(images.shape)


def restricted_targets(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A teacher's class of every pixel (B, H, W) int64, and its probability (B, H, W) among the classes allowed.

    `logits` (B, 1 + C, H, W), background first; `labels` (B, C) of the images: 1 shown, 0 not shown, NaN not known.
    The background and classes that are shown or not known are allowed; probabilities are renormalised over these.
    Nothing has a gradient. Raises ValueError for other shapes.
    """
    logits = at_least_float32(logits, "logits").detach()
    if logits.ndim != 4 or labels.shape != (len(logits), logits.shape[1] - 1):
        shapes = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"logits and labels must be (B, 1 + C, H, W) and (B, C), not {shapes}")
    denied = F.pad(labels == 0, (1, 0), value=False)
    confidence, best = logits.masked_fill(denied[:, :, None, None], -torch.inf).softmax(dim=1).max(dim=1)
    return best, confidence


def teacher_loss(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Cross entropy of logits (B, K, H, W) against targets (B, H, W), summed, over the number of `counted` pixels.

    A target of 255 adds nothing, but counts: while the teacher is sure of little, the loss is small. `counted` bool
    (B, H, W); if it holds nothing the loss is 0, with a graph.
    """
    each = F.cross_entropy(at_least_float32(logits, "logits"), targets, ignore_index=IGNORE_INDEX, reduction="sum")
    return each / counted.sum().clamp(min=1)

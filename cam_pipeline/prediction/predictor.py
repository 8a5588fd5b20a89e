"""The segmenter's answer to an image of any size: one scale or several, mirrored, refined."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.config import Config
from cam_pipeline.data.grid import grid_size, resize_to_grid, to_tensor
from cam_pipeline.data.images import UInt8
from cam_pipeline.machine.device import autocast
from cam_pipeline.models.placing import image_batch
from cam_pipeline.models.segmenter import Segmenter
from cam_pipeline.ops.image_classes import with_image_classes

Presence = Callable[[UInt8], Tensor]
"""Takes an image (H, W, 3) and gives how much each class counts in it: (C,) in 0..1, as `with_image_classes` does."""
Refine = Callable[[UInt8, Tensor], Tensor]
"""Takes an image (H, W, 3) and probabilities (1 + C, H, W), and gives better ones."""


@dataclass(frozen=True)
class Predictor:
    """Probabilities and labels of images.

    `scales`: sizes at which the image is seen; `flip`: also its mirror image. The probabilities of all views are
    averaged; then `presence`, if there is one, says which classes the image shows, and `refine` has the last word.
    """

    segmenter: Segmenter
    config: Config
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    refine: Refine | None = None
    presence: Presence | None = None

    @torch.inference_mode()
    def probabilities(self, pixels: UInt8) -> Tensor:
        """(1 + C, H, W) float32 on the network's device, background first, summing to 1, for an image (H, W, 3)."""
        return self._mean(self._answers(pixels), pixels)

    @torch.inference_mode()
    def labels(self, pixels: UInt8) -> tuple[Tensor, float]:
        """The complete label map (H, W) uint8 on the CPU, and the mean probability of its labels, 0..1."""
        if len(self.scales) == 1 and not (self.flip or self.presence or self.refine):
            (logits,) = self._answers(pixels)
            largest, best = logits.max(dim=0)  # softmax may make equals of two logits, and costs more
            confidence = (logits - largest).exp_().sum(dim=0).reciprocal()
        else:
            confidence, best = self._mean(self._answers(pixels), pixels).max(dim=0)
        return best.to(torch.uint8).cpu(), float(confidence.mean())

    def _mean(self, answers: Iterable[Tensor], pixels: UInt8) -> Tensor:
        """The mean probabilities of all views, of the classes that the image shows, refined."""
        mean = reduce(torch.add, (logits.softmax(dim=0) for logits in answers)) / (len(self.scales) * (1 + self.flip))
        mean = mean if self.presence is None else with_image_classes(mean, self.presence(pixels))
        return mean if self.refine is None else self.refine(pixels, mean)

    def _answers(self, pixels: UInt8) -> Iterator[Tensor]:
        """Logits (1 + C, H, W) float32 at the image's size, of one view after the other."""
        device = self.segmenter.normalize.mean.device
        size = pixels.shape[0], pixels.shape[1]
        image, multiple = to_tensor(pixels), self.segmenter.multiple
        for scale in self.scales:
            grid = grid_size(*size, multiple, self.config.segmenter.max_side, scale)
            batch = resize_to_grid(image, grid, multiple)[None]
            for flipped in (False, True) if self.flip else (False,):
                with autocast(self.config.run, device):
                    logits = self.segmenter(image_batch(batch.flip(-1) if flipped else batch, device)).float()
                whole = logits.flip(-1) if flipped else logits
                yield F.interpolate(whole, size, mode="bilinear", align_corners=False)[0]

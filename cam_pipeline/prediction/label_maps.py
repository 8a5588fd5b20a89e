"""Label maps from a trained segmenter."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.config import Config
from cam_pipeline.data.images import UInt8, sample_size
from cam_pipeline.data.loading import grid_batches
from cam_pipeline.data.table import Sample
from cam_pipeline.machine.device import autocast
from cam_pipeline.machine.parallel import worker_count
from cam_pipeline.models.placing import image_batch
from cam_pipeline.models.segmenter import Segmenter
from cam_pipeline.ops.image_classes import with_image_classes
from cam_pipeline.prediction.predictor import Predictor

Presences = Mapping[str, Tensor]
"""How much each class counts in an image, by its id: (C,) in 0..1, for `ops.image_classes.with_image_classes`."""
PresencesOf = Callable[[Sequence[Sample]], Presences]


def predict_labels(
    segmenter: Segmenter, samples: Sequence[Sample], config: Config, presences: Presences | None = None
) -> Iterator[tuple[Sample, Tensor]]:
    """Every sample with its complete label map (H, W) uint8 at image size; single scale; in order of image size.

    `presences`: which classes the images show, if that is to change the answer.
    """
    for sample, [labels] in predict_variants(segmenter, samples, config, [presences]):
        yield sample, labels


@torch.inference_mode()
def predict_variants(
    segmenter: Segmenter, samples: Sequence[Sample], config: Config, variants: Sequence[Presences | None]
) -> Iterator[tuple[Sample, list[Tensor]]]:
    """As `predict_labels`, with a label map for each of `variants`, all from one forward pass."""
    device = segmenter.normalize.mean.device
    batches, loader = grid_batches(
        samples,
        stride=segmenter.multiple,
        max_side=config.segmenter.max_side,
        batch_size=config.cam.batch_size,
        workers=worker_count(config.run),
        device=device,
    )
    for indices, images in zip(batches, loader, strict=True):
        with autocast(config.run, device):
            logits = segmenter(image_batch(images, device)).float()
        for index, one in zip(indices, logits, strict=True):
            sample = samples[index]
            full = F.interpolate(one[None], sample_size(sample), mode="bilinear", align_corners=False)[0]
            yield sample, [_labels(full, None if presences is None else presences[sample.id]) for presences in variants]


def predict_image(segmenter: Segmenter, pixels: UInt8, config: Config) -> Tensor:
    """The complete label map (H, W) uint8 of one image (H, W, 3), as `predict_labels` gives it for a file."""
    return Predictor(segmenter, config).labels(pixels)[0]


def _labels(logits: Tensor, presence: Tensor | None) -> Tensor:
    """The labels (H, W) uint8 on the CPU of logits (1 + C, H, W), given which classes (C,) the image shows."""
    if presence is not None:
        logits = with_image_classes(logits.softmax(dim=0), presence.to(logits.device))
    return logits.max(dim=0).indices.to(torch.uint8).cpu()  # on the CPU several times as fast as argmax

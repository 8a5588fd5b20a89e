"""Label maps from a trained segmenter."""

from collections.abc import Iterator, Sequence

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
from cam_pipeline.prediction.predictor import Predictor


@torch.inference_mode()
def predict_labels(segmenter: Segmenter, samples: Sequence[Sample], config: Config) -> Iterator[tuple[Sample, Tensor]]:
    """Every sample with its complete label map (H, W) uint8 at image size; single scale; in order of image size."""
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
            yield samples[index], _labels_at(one, sample_size(samples[index]))


def predict_image(segmenter: Segmenter, pixels: UInt8, config: Config) -> Tensor:
    """The complete label map (H, W) uint8 of one image (H, W, 3), as `predict_labels` gives it for a file."""
    return Predictor(segmenter, config).labels(pixels)[0]


def _labels_at(logits: Tensor, size: tuple[int, int]) -> Tensor:
    full = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    return full.max(dim=0).indices.to(torch.uint8).cpu()  # on the CPU several times as fast as argmax

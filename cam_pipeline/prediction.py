"""Label maps from a trained segmenter."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.config import Config
from cam_pipeline.data.batches import grid_batches
from cam_pipeline.data.images import image_size
from cam_pipeline.data.table import Sample
from cam_pipeline.device import autocast, image_batch, worker_count
from cam_pipeline.models.segmenter import Segmenter


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
    )
    for indices, images in zip(batches, loader, strict=True):
        with autocast(config.run, device):
            logits = segmenter(image_batch(images, device)).float()
        for index, one in zip(indices, logits, strict=True):
            size = image_size(samples[index].image)
            full = F.interpolate(one[None], size, mode="bilinear", align_corners=False)[0]
            yield samples[index], full.argmax(dim=0).to(torch.uint8).cpu()

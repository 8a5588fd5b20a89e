"""What a trained network makes of images: figures at the end of an epoch, and whether a segmenter finds anything."""

import logging

import torch

from cam_pipeline.config import Config
from cam_pipeline.data.images import sample_image
from cam_pipeline.data.loading import grid_batches
from cam_pipeline.data.table import Sample
from cam_pipeline.data.views import image_labels
from cam_pipeline.errors import TrainingDiverged
from cam_pipeline.machine.device import autocast, uncompiled
from cam_pipeline.machine.parallel import worker_count
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.evaluating import evaluating
from cam_pipeline.models.placing import image_batch
from cam_pipeline.models.segmenter import Segmenter
from cam_pipeline.ops.metrics import average_precision, f1_score, mean_precision_interval
from cam_pipeline.prediction.label_maps import predict_image

logger = logging.getLogger(__name__)

LOOKED_AT = 8
"""Number of training images that the finished segmenter is tried on."""


@torch.inference_mode()
def validate(
    classifier: Classifier, samples: list[Sample], config: Config, stage: str = "train_cls"
) -> dict[str, float]:
    """mAP (mean over classes that occur) and micro F1 at probability 1/2, at scale 1. Empty without images.

    `mAP_low` and `mAP_high` say how far `images` images pin the mAP down (`ops.metrics.mean_precision_interval`).
    """
    if not samples:
        return {}
    device = classifier.head.weight.device
    scores = torch.zeros(len(samples), classifier.head.out_features)
    batches, loader = grid_batches(
        samples,
        stride=classifier.stride,
        max_side=config.cam.max_side,
        batch_size=config.cam.batch_size,
        workers=worker_count(config.run),
        device=device,
    )
    for indices, images in zip(batches, loader, strict=True):
        with autocast(config.run, device):
            logits = classifier(image_batch(images, device)).logits
        scores[indices] = logits.float().sigmoid().cpu()
    if wrong := int((~scores.isfinite()).any(dim=1).sum()):
        raise TrainingDiverged(
            f"{stage}: the network's answers to {wrong} of {len(samples)} validation images are not finite; "
            f"lower {stage}.lr (now {getattr(config, stage).lr}). The last checkpoint is kept"
        )
    truth = image_labels(samples, scores.shape[1])
    mean = float(average_precision(scores, truth).nanmean())
    low, high = mean_precision_interval(mean, truth)
    f1 = float(f1_score(scores, truth))
    return {"mAP": mean, "mAP_low": low, "mAP_high": high, "F1": f1, "images": float(len(samples))}


@torch.inference_mode()
def warn_if_blind(segmenter: Segmenter, train: list[Sample], config: Config, stage: str = "train_seg") -> None:
    """Log a warning if the segmenter finds no object in a few of its own training images: the loss does not show it."""
    few = [sample for sample in train if sample.class_ids][:LOOKED_AT]
    with evaluating(segmenter), uncompiled(config.run):
        found = any(predict_image(segmenter, sample_image(sample), config).any() for sample in few)
    if few and not found:
        look_at = "the pseudo-labels (cam-pipeline evaluate)" if stage == "train_seg" else "the class maps"
        logger.warning(
            "%s: the segmenter finds background alone in %d training images that show classes; train longer "
            "(%s.epochs), or look at %s", stage, len(few), stage, look_at,
        )  # fmt: skip

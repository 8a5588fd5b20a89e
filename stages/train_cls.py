"""Images with image-level labels -> a classifier (classifier.safetensors)."""

import logging

import torch

from cam_pipeline.assembly.classifier import new_classifier
from cam_pipeline.cams.extraction import cam_reading
from cam_pipeline.config import Config
from cam_pipeline.data.augment import Colors
from cam_pipeline.data.check.depth import warn_of_dark
from cam_pipeline.data.loading import grid_batches
from cam_pipeline.data.table import Sample, check_files, class_counts, labelled, warn_of_absent_classes, without_classes
from cam_pipeline.data.views import TrainingViews, image_labels
from cam_pipeline.errors import DataError, TrainingDiverged
from cam_pipeline.machine.device import autocast, pick_device
from cam_pipeline.machine.distributed import is_first
from cam_pipeline.machine.parallel import worker_count
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.placing import image_batch, place
from cam_pipeline.models.pretrained import starting_weights
from cam_pipeline.ops.metrics import average_precision, f1_score, mean_precision_interval
from cam_pipeline.pipeline import Inputs, Output
from cam_pipeline.store.checkpoints import save_model
from cam_pipeline.training.dry_run import check_views
from cam_pipeline.training.objectives import classifier_objectives
from cam_pipeline.training.trainer import Trainer

logger = logging.getLogger(__name__)


def train_cls(config: Config, inputs: Inputs, output: Output) -> None:
    """Train a multi-label classifier with the chosen `objectives`. The result is the weights after the last epoch.

    Each epoch ends with mAP and F1 on the image-level labels of the validation split. Masks are never read.
    """
    table = inputs.table
    train = labelled(table.split(config.data.train))
    if message := without_classes(train, config.data.train):
        raise DataError(message)
    val = [sample for sample in table.validation(config.data.val) if sample.class_ids is not None]
    if config.data.val and not val:
        logger.info("train_cls: split '%s' has no images with labels: no mAP and F1 are reported", config.data.val)
    check_files(train + val)
    warn_of_dark(train)
    logger.info("train_cls: %s", class_counts(table.classes, train))
    warn_of_absent_classes(table.classes, train)
    device = pick_device(config.run)
    torch.manual_seed(config.run.seed)
    classifier = new_classifier(config.classifier, len(table.classes))
    output.notes["starts_from"] = {"weights": config.classifier.weights, **starting_weights(classifier)}
    labels = image_labels(train, len(table.classes))
    objectives = classifier_objectives(classifier, config, labels)
    check_views(classifier, config, len(train))
    cam_reading(config.cam, classifier)  # raises now, not after training, if these maps are not possible
    place(classifier, device)

    settings, fill = config.train_cls, classifier.normalize.fill
    trainer = Trainer(
        name="train_cls",
        network=classifier,
        objectives=objectives,
        views=TrainingViews(
            train,
            crop=settings.crop,
            scale=settings.scale,
            fill=fill,
            seed=config.run.seed,
            labels=labels,
            colors=Colors(*settings.colors),
        ),
        report=lambda: validate(classifier, val, config),
        settings=settings,
        run=config.run,
        folder=output.folder,
    )
    trainer.fit()
    if is_first():
        trainer.write_history(output.logs / "train_cls.jsonl")
        save_model(output.path, classifier, {"classes": table.classes, "fingerprint": output.fingerprint})


@torch.inference_mode()
def validate(classifier: Classifier, samples: list[Sample], config: Config) -> dict[str, float]:
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
            f"train_cls: the network's answers to {wrong} of {len(samples)} validation images are not finite; "
            f"lower train_cls.lr (now {config.train_cls.lr}). The last checkpoint is kept"
        )
    truth = image_labels(samples, scores.shape[1])
    mean = float(average_precision(scores, truth).nanmean())
    low, high = mean_precision_interval(mean, truth)
    f1 = float(f1_score(scores, truth))
    return {"mAP": mean, "mAP_low": low, "mAP_high": high, "F1": f1, "images": float(len(samples))}

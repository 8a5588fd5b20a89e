"""Images with image-level labels -> one network that classifies and segments (e2e.safetensors)."""

import logging

import torch

from cam_pipeline.assembly.single_stage import new_single_stage
from cam_pipeline.config import Config
from cam_pipeline.data.augment import Colors
from cam_pipeline.data.views import TrainingViews, image_labels
from cam_pipeline.machine.device import pick_device
from cam_pipeline.machine.distributed import is_first
from cam_pipeline.models.placing import place
from cam_pipeline.models.pretrained import starting_weights
from cam_pipeline.models.single_stage import SingleStageSegmenter
from cam_pipeline.pipeline import Inputs, Output
from cam_pipeline.store.checkpoints import save_model
from cam_pipeline.training.dry_run import check_single_stage_crops, check_weights, try_single_stage
from cam_pipeline.training.labelled_images import labelled_images
from cam_pipeline.training.objectives.classification import ClassificationObjective
from cam_pipeline.training.objectives.tscd import TscdObjective
from cam_pipeline.training.trainer import Trainer
from cam_pipeline.training.validation import validate, warn_if_blind

logger = logging.getLogger(__name__)


def train_e2e(config: Config, inputs: Inputs, output: Output) -> None:
    """Train classification and segmentation together from image-level labels. The result is the last weights.

    Each epoch ends with mAP and F1 on the image-level labels of the validation split. Masks are never read.
    """
    table = inputs.table
    train, val = labelled_images(config, table, "train_e2e")
    device = pick_device(config.run)
    torch.manual_seed(config.run.seed)
    network = new_single_stage(config, len(table.classes))
    output.notes["starts_from"] = {"weights": config.classifier.weights, **starting_weights(network)}
    if config.tscd.affinity and network.affinity is None:
        logger.info(
            "train_e2e: %s has no attention between cells, so no affinity is learned", config.classifier.backbone
        )
    check_single_stage_crops(network, config, len(train))
    place(network, device)

    settings = config.train_e2e
    trainer = Trainer(
        name="train_e2e",
        network=network,
        objectives=[ClassificationObjective(), TscdObjective(network, config)],
        views=TrainingViews(
            train,
            crop=settings.crop,
            scale=settings.scale,
            fill=network.classifier.normalize.fill,
            seed=config.run.seed,
            labels=image_labels(train, len(table.classes)),
            colors=Colors(*settings.colors),
        ),
        report=lambda: validate(network.classifier, val, config, "train_e2e"),
        settings=settings,
        run=config.run,
        folder=output.folder,
    )
    trainer.fit()
    if is_first():
        warn_if_blind(SingleStageSegmenter(network), train, config, "train_e2e")
        trainer.write_history(output.logs / "train_e2e.jsonl")
        save_model(output.path, network, {"classes": table.classes, "fingerprint": output.fingerprint})


def check(config: Config) -> None:
    """Raise a UserError if the network cannot be built or trained with this config."""
    settings = config.classifier
    check_weights("classifier.weights", settings.weights, settings.backbone, settings.backbone_args)
    try_single_stage(config)

"""Images with image-level labels -> a classifier (classifier.safetensors)."""

import torch

from cam_pipeline.assembly.classifier import new_classifier
from cam_pipeline.cams.extraction import cam_reading
from cam_pipeline.config import Config
from cam_pipeline.data.augment import Colors
from cam_pipeline.data.views import TrainingViews, image_labels
from cam_pipeline.machine.device import pick_device
from cam_pipeline.machine.distributed import is_first
from cam_pipeline.models.placing import place
from cam_pipeline.models.pretrained import starting_weights
from cam_pipeline.pipeline import Inputs, Output
from cam_pipeline.store.checkpoints import save_model
from cam_pipeline.training.dry_run import check_views
from cam_pipeline.training.labelled_images import labelled_images
from cam_pipeline.training.objectives import classifier_objectives
from cam_pipeline.training.trainer import Trainer
from cam_pipeline.training.validation import validate


def train_cls(config: Config, inputs: Inputs, output: Output) -> None:
    """Train a multi-label classifier with the chosen `objectives`. The result is the weights after the last epoch.

    Each epoch ends with mAP and F1 on the image-level labels of the validation split. Masks are never read.
    """
    table = inputs.table
    train, val = labelled_images(config, table, "train_cls")
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

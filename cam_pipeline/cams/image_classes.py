"""Which classes an image shows, by the run's classifier, for the segmenter's answer (`predict.classes`)."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cam_pipeline.cams.classes import class_probabilities
from cam_pipeline.cams.views import scaled_views
from cam_pipeline.config import Config
from cam_pipeline.data.dataset import Dataset
from cam_pipeline.data.grid import grid_size, resize_to_grid, to_tensor
from cam_pipeline.data.images import UInt8
from cam_pipeline.data.loading import grid_batches
from cam_pipeline.data.table import Sample
from cam_pipeline.data.views import image_labels
from cam_pipeline.errors import CannotWrite, ConfigError, DataError, StageNotReady
from cam_pipeline.machine.atomic import read_json, write_text
from cam_pipeline.machine.device import autocast
from cam_pipeline.machine.parallel import worker_count
from cam_pipeline.machine.progress import track
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.placing import image_batch
from cam_pipeline.ops.image_classes import BETA, best_threshold

logger = logging.getLogger(__name__)

SEEN = ("cam.max_side", "run.precision")
"""Settings of how the classifier sees an image, and so of its probabilities."""
NOTE = "class_threshold.json"
"""The file of a run folder that holds the chosen threshold, and by what it was chosen."""


@dataclass(frozen=True)
class ImageClasses:
    """How much each class counts in an image: a number in 0..1 for each class, as `predict.by` says.

    The classifier sees an image and its mirror image, at scale 1 and at most `cam.max_side` pixels long; its
    probabilities are the means of both. The other scales of `cam.scales` cost five times as much and bring little (on
    the 363 images `val` of voc-mini a mean average precision of 82.9 instead of 82.3; without the mirror image 81.7).
    """

    classifier: Classifier
    config: Config

    @torch.inference_mode()
    def presence(self, pixels: UInt8) -> Tensor:
        """(C,) float32 on the network's device, for an image (H, W, 3)."""
        stride = self.classifier.stride
        grid = grid_size(pixels.shape[0], pixels.shape[1], stride, self.config.cam.max_side)
        return self._counted(self._probabilities(resize_to_grid(to_tensor(pixels), grid, stride)[None]))[0]

    def presences(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The same of many images, by their ids. They are read in batches, of which one at a time is in memory."""
        found = self._counted(self.probabilities(samples))
        return {sample.id: own for sample, own in zip(samples, found, strict=True)}

    @torch.inference_mode()
    def probabilities(self, samples: Sequence[Sample]) -> Tensor:
        """The classifier's probabilities (N, C) for N images, float32 on its device."""
        device = self._device
        batches, loader = grid_batches(
            samples,
            stride=self.classifier.stride,
            max_side=self.config.cam.max_side,
            batch_size=self.config.cam.batch_size,
            workers=worker_count(self.config.run),
            device=device,
        )
        found = torch.zeros(len(samples), len(self.classifier.head.weight), device=device)
        with track("classify", len(samples), "images") as progress:
            for indices, images in zip(batches, loader, strict=True):
                found[indices] = self._probabilities(images)
                progress.advance(len(indices))
        return found

    @property
    def _device(self) -> torch.device:
        return self.classifier.head.weight.device

    def _probabilities(self, images: Tensor) -> Tensor:
        device = self._device
        views = scaled_views(image_batch(images, device), self.classifier.stride, (1.0,), flip=True)
        with autocast(self.config.run, device):
            return class_probabilities(self.classifier, views)

    def _counted(self, probabilities: Tensor) -> Tensor:
        threshold = self.config.predict.fixed_threshold
        return probabilities if threshold is None else (probabilities >= threshold).float()


def classifier_file(config: Config) -> Path:
    """The file of the classifier that `predict.classes` asks for. Raises StageNotReady if there is none."""
    path = config.classifier_path
    if not path.is_file():
        command = config.cam.network.replace("_", "-")
        raise StageNotReady(
            f"predict.classes = 'classifier', but {config.folder} holds no classifier. Run: cam-pipeline {command}"
        )
    return path


def with_threshold(
    config: Config, dataset: Dataset, classifier: Callable[[], Classifier], look_at_data: bool = False
) -> Config:
    """The config with a number as `predict.threshold`, if it is `auto` and matters.

    It is chosen on those images of `data.val` whose labels are known (`ops.image_classes.best_threshold`), and
    noted in the run folder with the classifier and the way it sees images. A note that fits these is taken, without a
    look at the data set unless `look_at_data`. `classifier` is called to choose one. Raises StageNotReady without a
    classifier, ConfigError if no image of that split shows a class, DataError if the data set cannot be read.
    """
    if not config.predict.chooses:
        return config
    path = config.folder / NOTE
    key = {
        "classifier": dataset.digests.of(classifier_file(config)),
        "seen": config.pick(SEEN),
        "split": config.data.val,
        "beta": BETA,
    }
    noted = read_json(path)
    fits = noted.get("key") == key and isinstance(noted.get("threshold"), float)
    if not fits or look_at_data:
        samples, data = _labelled(config, dataset)
        if not fits or noted.get("data") != data:
            noted = _chosen(ImageClasses(classifier(), config), samples, key, data)
            _note(path, noted)
    return config.model_copy(update={"predict": config.predict.at(noted["threshold"])})


def _labelled(config: Config, dataset: Dataset) -> tuple[list[Sample], str]:
    """The images of `data.val` whose labels are known, and their digest.

    Raises ConfigError if these show no class, DataError if they cannot be read.
    """
    remedy = "set predict.threshold to a number, say 0.1, or predict.by to 'multiply'"
    try:
        samples = [one for one in dataset.table.validation(config.data.val) if one.class_ids is not None]
        data = dataset.digest(samples)
    except DataError as error:
        raise DataError(f"predict.threshold = 'auto' is chosen on labelled images: {error}; or {remedy}") from error
    if not any(sample.class_ids for sample in samples):
        split = f"no image of split '{config.data.val}' has one" if config.data.val else "data.val is empty"
        raise ConfigError(f"predict.threshold = 'auto' is chosen on image labels, but {split}; {remedy}")
    return samples, data


def _chosen(by: ImageClasses, samples: Sequence[Sample], key: dict[str, Any], data: str) -> dict[str, Any]:
    """The threshold for these images, and what it was chosen by."""
    probabilities = by.probabilities(samples).cpu()
    shown = image_labels(samples, probabilities.shape[1]).bool()
    threshold = best_threshold(probabilities, shown)
    logger.info("predict.threshold = %.3f, chosen on the labels of %d images", threshold, len(samples))
    return {"threshold": threshold, "images": len(samples), "key": key, "data": data}


def _note(path: Path, noted: dict[str, Any]) -> None:
    """Keep the threshold, if the run folder can be written to."""
    try:
        write_text(path, json.dumps(noted, indent=1))
    except CannotWrite as error:
        logger.warning("predict.threshold is chosen again next time: %s", error)

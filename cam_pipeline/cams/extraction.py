"""Class activation maps of images, as the settings ask for them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cam_pipeline.cams.classes import ClassIds, shown_classes
from cam_pipeline.cams.likeness import Border, FeatureWalk
from cam_pipeline.cams.multi_scale import calibrated_cams, multi_scale_cams
from cam_pipeline.cams.reading import CamReading, Propagation
from cam_pipeline.config import CamSettings, Config
from cam_pipeline.errors import ConfigError
from cam_pipeline.machine.device import autocast
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.sfc import Calibration
from cam_pipeline.store.cams import StoredCam


class CamExtractor:
    """Reads the maps of `cam.*` out of a classifier. Raises ConfigError when this classifier does not allow it."""

    def __init__(self, classifier: Classifier, config: Config) -> None:
        self.classifier, self.config = classifier, config
        self.reading = cam_reading(config.cam, classifier)

    def extract(
        self,
        images: Tensor,
        names: Sequence[str],
        class_ids: Sequence[ClassIds | None],
        sizes: Sequence[tuple[int, int]],
    ) -> list[tuple[StoredCam, Tensor]]:
        """Maps and probabilities (C,) of a batch (B, 3, H, W), in 0..1, resized to whole cells from images of `sizes`.

        Where nobody knows what an image shows (`class_ids` None), the classifier's prediction is taken.
        """
        settings = self.config.cam
        arguments = (settings.scales, settings.flip, self.reading, class_ids, settings.presence_threshold)
        calibration: Tensor | None = None
        with autocast(self.config.run, images.device):
            if self.reading.calibration is None:
                maps, probabilities = multi_scale_cams(self.classifier, images, *arguments)
            else:
                own, prototypes, probabilities = calibrated_cams(self.classifier, images, *arguments)
                maps, calibration = own[:, 1:], torch.cat([own[:, :1], prototypes], dim=1).float().cpu()
        found, (maps, probabilities) = [], (maps.float().cpu(), probabilities.cpu())
        shown = shown_classes(class_ids, probabilities, settings.presence_threshold)
        for index, (name, present, size) in enumerate(zip(names, shown, sizes, strict=True)):
            cam = maps[index, [class_id - 1 for class_id in present]]
            if calibration is None:
                stored = StoredCam(name, cam, present, size)
            else:
                prototype = calibration[index, [1, *(1 + class_id for class_id in present)]]
                stored = StoredCam(name, cam, present, size, calibration[index, 0], prototype)
            found.append((stored, probabilities[index]))
        return found


def cam_reading(settings: CamSettings, classifier: Classifier) -> CamReading:
    """How maps are to be read out of this classifier. Raises ConfigError when it can not be done."""
    propagation: Propagation | FeatureWalk | None = None
    if settings.propagate == "features":
        propagation = FeatureWalk(settings.walk_radius, settings.walk_steps, settings.walk_power)
    if settings.propagate == "attention":
        propagation = Propagation(settings.attention_layers, settings.attention_steps, settings.attention_normalize)
    border = None
    if settings.border:
        border = Border(settings.border, settings.border_steps, settings.border_power)
    calibration = None
    if settings.calibration == "sfc":
        calibration = Calibration(settings.background_over, settings.seed_background, settings.correlation_steps)
    reading = CamReading(
        source=settings.source,
        map_function=settings.map_function,
        start_layer=settings.start_layer,
        propagation=propagation,
        calibration=calibration,
        border=border,
        levels=settings.walk_levels,
    )
    try:
        reading.check(classifier)
    except ValueError as error:
        keys = ["source", "propagate", "calibration", *(["border", "walk_levels"] if reading.compares else [])]
        asked = ", ".join(f"cam.{key} = {getattr(settings, key)!r}" for key in keys)
        raise ConfigError(f"{asked}: this classifier does not allow it: {error}") from error
    return reading

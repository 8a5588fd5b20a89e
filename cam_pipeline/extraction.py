"""Class activation maps of images, as the settings ask for them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cam_pipeline.config import Config
from cam_pipeline.machine.device import autocast
from cam_pipeline.models.cams import ClassIds, calibrated_cams, multi_scale_cams, shown_classes
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.networks import cam_reading
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

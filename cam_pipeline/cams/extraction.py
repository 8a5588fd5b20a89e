"""Class activation maps of images, as the settings of a run ask for them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from cam_pipeline.cams.classes import ClassIds
from cam_pipeline.cams.likeness import Border, FeatureWalk
from cam_pipeline.cams.multi_scale import Maps, check_reading, read_maps
from cam_pipeline.cams.reading import AttentionPropagation, CamReading
from cam_pipeline.config import CamSettings, Config
from cam_pipeline.errors import ConfigError
from cam_pipeline.machine.device import autocast
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.sfc import Calibration
from cam_pipeline.store.cams import StoredCam


class CamExtractor:
    """Reads maps out of a classifier as `cam.*` says. Raises ConfigError if this classifier does not allow it."""

    def __init__(self, classifier: Classifier, config: Config) -> None:
        self.classifier = classifier
        self.run = config.run
        self.reading = cam_reading(config.cam, classifier)

    def extract(
        self,
        images: Tensor,
        names: Sequence[str],
        class_ids: Sequence[ClassIds | None],
        sizes: Sequence[tuple[int, int]],
    ) -> list[tuple[StoredCam, Tensor]]:
        """Maps of the classes shown, and probabilities (C,) of all, for each image of a batch.

        The batch (B, 3, H, W), in 0..1, was resized to whole cells from images of `sizes` (height, width). Unknown
        classes (`class_ids` None) are predicted.
        """
        with autocast(self.run, images.device):
            found = _on_cpu(read_maps(self.classifier, images, self.reading, class_ids))
        facts = enumerate(zip(names, sizes, found.probabilities, strict=True))
        return [(_stored(found, index, name, size), own) for index, (name, size, own) in facts]


def cam_reading(settings: CamSettings, classifier: Classifier) -> CamReading:
    """How maps are to be read out of this classifier. Raises ConfigError if it does not allow it."""
    calibration = None
    if settings.calibration == "sfc":
        calibration = Calibration(settings.background_over, settings.seed_background, settings.correlation_steps)
    border = None
    if settings.border:
        border = Border(settings.border, settings.border_steps, settings.border_power)
    reading = CamReading(
        scales=settings.scales,
        flip=settings.flip,
        source=settings.source,
        map_function=settings.map_function,
        start_layer=settings.start_layer,
        presence_threshold=settings.presence_threshold,
        at_least_one=settings.at_least_one,
        propagation=_propagation(settings),
        calibration=calibration,
        border=border,
        levels=settings.walk_levels,
        keep_features=settings.keep_features,
    )
    try:
        check_reading(reading, classifier)
    except ValueError as error:
        keys = ["source", "propagate", "calibration", *(["border", "walk_levels"] if reading.needs_features else [])]
        asked = ", ".join(f"cam.{key} = {getattr(settings, key)!r}" for key in keys)
        raise ConfigError(f"{asked}: this classifier does not allow it: {error}") from error
    return reading


def _propagation(settings: CamSettings) -> AttentionPropagation | FeatureWalk | None:
    """The propagation that `cam.propagate` names, with its settings."""
    if settings.propagate == "attention":
        return AttentionPropagation(settings.attention_layers, settings.attention_steps, settings.attention_normalize)
    if settings.propagate == "features":
        return FeatureWalk(settings.walk_radius, settings.walk_steps, settings.walk_power)
    return None


def _on_cpu(found: Maps) -> Maps:
    """The same tensors in float32 on the CPU."""
    tensors: dict[str, Any] = {name: one.float().cpu() for name, one in vars(found).items() if isinstance(one, Tensor)}
    return replace(found, **tensors)


def _stored(found: Maps, index: int, name: str, size: tuple[int, int]) -> StoredCam:
    """The record of one image: maps of the classes it shows."""
    shown = found.class_ids[index]
    cam = found.maps[index, [class_id - 1 for class_id in shown]]
    features = None if found.features is None else found.features[index]
    if found.background is None or found.prototype_maps is None:
        return StoredCam(name, cam, shown, size, features=features)
    prototypes = found.prototype_maps[index, [0, *shown]]
    return StoredCam(name, cam, shown, size, found.background[index], prototypes, features=features)

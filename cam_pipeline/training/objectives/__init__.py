"""What networks are trained for: one file for each method. `base` says what an objective is."""

import math
from collections.abc import Callable

from torch import Tensor

from cam_pipeline.config import Config
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.models.segmenter import Segmenter
from cam_pipeline.training.objectives.acr import AcrObjective
from cam_pipeline.training.objectives.base import Objective
from cam_pipeline.training.objectives.classification import ClassificationObjective
from cam_pipeline.training.objectives.dfr import DfrObjective
from cam_pipeline.training.objectives.moving_average import MovingAverageObjective
from cam_pipeline.training.objectives.segmentation import SegmentationObjective
from cam_pipeline.training.objectives.self_regulation import SelfRegulationObjective
from cam_pipeline.training.objectives.sfc import sfc_objective
from cam_pipeline.training.objectives.teacher import TeacherObjective

OBJECTIVES: dict[str, Callable[[Classifier, Config, Tensor], Objective]] = {
    "sfc": sfc_objective,
    "acr": AcrObjective,
}
"""Makes the objective of a method for a classifier, by the method's key in `config.objectives`.

Terms are added in this order, on which the last digits of a loss depend: a new method comes last.
"""


def segmenter_objectives(segmenter: Segmenter, config: Config, labels: Tensor) -> list[Objective]:
    """Segmentation, then what `segmenter.self_regulation`, `segmenter.regularizer`, `train_seg.teacher` and
    `train_seg.average` ask for.

    Some of these give the segmenter layers.

    `labels` (N, C): 0/1 image-level labels of the training images, NaN for an image that nobody labelled. Raises
    ConfigError if a method is not possible with this segmenter.
    """
    settings = config.train_seg
    main = SegmentationObjective(
        balance=settings.balance,
        clip=settings.clip_losses,
        powers=settings.powers,
        potts=settings.potts,
        soft=settings.soft,
    )
    methods: list[Objective] = [main]
    if config.segmenter.self_regulation:
        method = SelfRegulationObjective(segmenter, config, labels)
        main.weight, main.ignore_to_background = method.main_weight, config.self_regulation.ignore_to_background
        methods.append(method)
    if config.segmenter.regularizer == "dfr":
        methods.append(DfrObjective(segmenter, config, labels))
    average = settings.average
    if settings.teacher:
        methods.append(TeacherObjective(segmenter, config, labels))
    if average or settings.teacher:  # last, as it averages the layers of the others, too
        methods.append(MovingAverageObjective(segmenter, average or config.teacher.decay, kept=bool(average)))
    return methods


def classifier_objectives(classifier: Classifier, config: Config, labels: Tensor) -> list[Objective]:
    """Classification, then the methods that `config.objectives` switches on.

    `labels` (N, C): 0/1 image-level labels of the training images. Some methods give the classifier layers of their
    own. Raises ConfigError if a method is not possible with this classifier.
    """
    chosen = [make for name, make in OBJECTIVES.items() if getattr(config.objectives, name)]
    methods = [make(classifier, config, labels) for make in chosen]
    return [ClassificationObjective(math.prod(method.main_weight for method in methods)), *methods]

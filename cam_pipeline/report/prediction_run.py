"""Segment image files with the segmenter of a run folder."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cam_pipeline.api import image_classes, segmenter_file, stored_segmenter
from cam_pipeline.cams.image_classes import SEEN, classifier_file
from cam_pipeline.config import Config
from cam_pipeline.data.digest import content_digest
from cam_pipeline.machine.device import memory_errors_named
from cam_pipeline.machine.threads import use_threads
from cam_pipeline.pipeline import Pipeline
from cam_pipeline.prediction.image_files import ImageFile
from cam_pipeline.prediction.predictor import Predictor
from cam_pipeline.refinement.scores import crf_of, placed
from cam_pipeline.report.predictions import Prediction, predict_files
from cam_pipeline.store.checkpoints import load_metadata


def predict_with(
    config: Config,
    files: Sequence[ImageFile],
    folder: Path,
    *,
    scales: Sequence[float],
    flip: bool,
    crf: bool,
    overlays: bool,
    force: bool,
) -> tuple[list[Prediction], list[str]]:
    """`report.predictions.predict_files` with the segmenter in the config's run folder, as that was trained.

    The CRF is that of the config's `[refine]`. Raises StageNotReady if there is no segmenter (or no
    classifier, and `predict.classes` asks for it), OutOfMemory for an image that is too large.
    """
    path = segmenter_file(config)
    use_threads(config.run.threads)
    settings = placed(config.refine, config.run, torch.get_num_threads())[0] if crf else config.refine
    config = Pipeline(config).made_with()
    classes = tuple(load_metadata(path)["classes"])
    refine = partial(crf_of, settings=settings) if crf else None
    with memory_errors_named("predict", "cam.batch_size", config.cam.batch_size):
        found = image_classes(config, classes)
    presence = found.presence if found else None
    predictor = Predictor(stored_segmenter(config, classes), config, scales, flip, refine, presence)
    used: dict[str, Any] = {
        "segmenter": content_digest(path),
        "scales": [*scales],
        "flip": flip,
        "crf": settings.model_dump(mode="json", exclude={"crf_backend", "merge_with"}) if crf else False,
        "max_side": config.segmenter.max_side,
        "precision": config.run.precision,
    }
    if found:
        shown_by = content_digest(classifier_file(config))
        used["classes"] = {"classifier": shown_by, **found.config.pick(("predict", *SEEN))}
    with memory_errors_named("predict", "segmenter.max_side", config.segmenter.max_side):
        return predict_files(
            predictor,
            files,
            folder,
            ("background", *classes),
            made_by=repr(used),
            overlays=overlays,
            force=force,
            max_pixels=config.data.max_pixels,
        )

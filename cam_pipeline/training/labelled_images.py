"""The images that a network learns to classify, and those that it is compared on."""

import logging

from cam_pipeline.config import Config
from cam_pipeline.data.check.depth import warn_of_dark
from cam_pipeline.data.table import (
    Sample,
    Table,
    check_files,
    class_counts,
    labelled,
    warn_of_absent_classes,
    without_classes,
)
from cam_pipeline.errors import DataError

logger = logging.getLogger(__name__)


def labelled_images(config: Config, table: Table, stage: str) -> tuple[list[Sample], list[Sample]]:
    """Images with image-level labels of the training and of the validation split; logs what is striking about them.

    Raises DataError if there is no class to learn, or a file is missing.
    """
    train = labelled(table.split(config.data.train))
    if message := without_classes(train, config.data.train):
        raise DataError(message)
    val = [sample for sample in table.validation(config.data.val) if sample.class_ids is not None]
    if config.data.val and not val:
        logger.info("%s: split '%s' has no images with labels: no mAP and F1 are reported", stage, config.data.val)
    check_files(train + val)
    warn_of_dark(train)
    logger.info("%s: %s", stage, class_counts(table.classes, train))
    warn_of_absent_classes(table.classes, train)
    return train, val

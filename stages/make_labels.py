"""Scores -> pseudo-labels with an ignore band (pseudo_labels.h5); seconds, so thresholds are cheap to change."""

import logging
from collections.abc import Generator

import numpy as np

from cam_pipeline.config import Config, results_toml
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.pipeline import Inputs, Output
from cam_pipeline.refinement.labels import pseudo_labels
from cam_pipeline.store.hdf5 import Record, artefact_attributes
from cam_pipeline.store.labels import label_record
from cam_pipeline.store.parts import PartWriter, in_chunks, write_parts
from cam_pipeline.store.scores import ScoreStore, StoredScores

logger = logging.getLogger(__name__)

IMAGES_PER_PART = 256


def make_labels(config: Config, inputs: Inputs, output: Output) -> None:
    """Write labels and per-pixel confidence for every image that has scores; log the images that lost a class."""
    with ScoreStore.open(inputs["refine_cams"]) as scores:
        classes = ("background", *scores.classes)
        attributes = artefact_attributes(classes, output.fingerprint, results_toml(config), ignore_index=IGNORE_INDEX)
        writer = PartWriter(output.path, "pseudo-labels", attributes, in_chunks(scores.names, IMAGES_PER_PART))
        seen = writer.total - writer.done
        lost: list[str] = []

        def labels(number: int) -> Generator[Record, None, None]:
            for name in writer.chunks[number]:
                stored = scores.read(name)
                record = labelled(stored, config)
                if loses_class(stored, record):
                    lost.append(name)
                yield record

        write_parts("make_labels", writer, labels)
        writer.join(scores.names)
    if lost:
        what = "images have no pixel of a class that they show, the first is"
        remedy = "a lower refine.background gives classes more pixels"
        logger.info("make_labels: %d of %d %s %s; %s", len(lost), seen, what, lost[0], remedy)


def loses_class(stored: StoredScores, record: Record) -> bool:
    """Whether the labels have no pixel of one of the image's classes."""
    return not all((record.arrays["labels"] == class_id).any() for class_id in stored.class_ids)


def labelled(stored: StoredScores, config: Config) -> Record:
    """Labels as `labels.undecided` says; the confidence is the best channel's score."""
    labels = pseudo_labels(stored, config.labels)
    confidence = np.rint(stored.scores.max(axis=0) * 255).astype(np.uint8)
    return label_record(stored.name, labels, confidence)

"""Single-stage network -> pseudo-labels of its segmentation, restricted to each image's classes."""

import logging
from collections.abc import Generator

import numpy as np
import torch

from cam_pipeline.assembly.single_stage import trained_segmenter
from cam_pipeline.config import Config, to_toml
from cam_pipeline.data.images import UInt8, sample_image
from cam_pipeline.data.marks import has_marks, sample_marks
from cam_pipeline.data.table import Sample, check_files
from cam_pipeline.machine.device import pick_device
from cam_pipeline.models.placing import place
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.image_classes import with_image_classes
from cam_pipeline.pipeline import Inputs, Output
from cam_pipeline.prediction.predictor import Predictor
from cam_pipeline.refinement.labels import with_marks
from cam_pipeline.refinement.summary import Advice, counted, shares_line, warnings
from cam_pipeline.store.hdf5 import Record, artefact_attributes
from cam_pipeline.store.labels import LabelStore, label_record
from cam_pipeline.store.parts import PartWriter, in_chunks, write_parts

logger = logging.getLogger(__name__)

IMAGES_PER_PART = 64
ADVICE = Advice("raise tscd.low and tscd.high", "train longer (train_e2e.epochs), or lower tscd.low and tscd.high")


def label_e2e(config: Config, inputs: Inputs, output: Output) -> None:
    """Write complete labels and per-pixel confidence for every image of `cam.splits`.

    The network's answer is restricted to the classes that the image's labels name; to an image that nobody labelled it
    answers freely. Pixels that people have marked keep what they say.
    """
    table = inputs.table
    samples = {sample.id: sample for sample in table.split(*config.cam.splits)}
    check_files(list(samples.values()))
    segmenter = trained_segmenter(config, inputs["train_e2e"], table.classes)
    place(segmenter, pick_device(config.run))
    predictor = Predictor(segmenter, config)
    classes = ("background", *table.classes)
    attributes = artefact_attributes(classes, output.fingerprint, to_toml(config), ignore_index=IGNORE_INDEX)
    writer = PartWriter(output.path, "pseudo-labels", attributes, in_chunks(list(samples), IMAGES_PER_PART))

    def labels(number: int) -> Generator[Record, None, None]:
        for name in writer.chunks[number]:
            yield record_of(samples[name], predictor, len(table.classes))

    write_parts("label_e2e", writer, labels)
    writer.join(list(samples))
    with LabelStore.open(output.path) as made:
        images = [counted(name, sample.class_ids or (), made.read(name)) for name, sample in samples.items()]
    logger.info("label_e2e: %s", shares_line(images, classes))
    for line in warnings(images, classes, advice=ADVICE):
        logger.warning("label_e2e: %s", line)


def record_of(sample: Sample, predictor: Predictor, num_classes: int) -> Record:
    """The labels of one image, and how sure the network is of them."""
    pixels = sample_image(sample)
    labels, confidence = restricted(sample, pixels, predictor, num_classes)
    if not has_marks(sample):
        return label_record(sample.id, labels, confidence)
    marks = sample_marks(sample, num_classes)
    return label_record(sample.id, *with_marks(sample.id, labels, confidence, marks), marks.origin)


def restricted(sample: Sample, pixels: UInt8, predictor: Predictor, num_classes: int) -> tuple[UInt8, UInt8]:
    """Labels and confidence (H, W) uint8 among the classes that the image's labels name."""
    probabilities = predictor.probabilities(pixels)
    if sample.class_ids is not None:
        shown = torch.zeros(num_classes, device=probabilities.device)
        shown[[class_id - 1 for class_id in sample.class_ids]] = 1
        probabilities = with_image_classes(probabilities, shown)
    best = probabilities.max(dim=0)
    confidence = np.rint(best.values.cpu().numpy() * 255).astype(np.uint8)
    return best.indices.to(torch.uint8).cpu().numpy(), confidence

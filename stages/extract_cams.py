"""Classifier -> class activation maps of the present classes (cams.h5)."""

from collections.abc import Mapping
from pathlib import Path

import torch

from cam_pipeline.config import Config, to_toml
from cam_pipeline.data.batches import GridImages, loader_over, same_size_batches
from cam_pipeline.data.digest import FileDigests, data_digest
from cam_pipeline.data.images import grid_size, image_size
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.table import check_files
from cam_pipeline.device import autocast, image_batch, pick_device, place, worker_count
from cam_pipeline.interrupt import raise_if_stopped
from cam_pipeline.models.cams import multi_scale_cams, predicted_classes
from cam_pipeline.networks import load_classifier
from cam_pipeline.pipeline import Output, Stage
from cam_pipeline.progress import track
from cam_pipeline.store.cams import StoredCam, cam_record
from cam_pipeline.store.hdf5 import PartWriter, Record, artefact_attributes

BATCHES_PER_PART = 4


def extract_cams(config: Config, inputs: Mapping[str, Path], output: Output) -> None:
    """Write a CAM for every image of `cam.splits`; parts finished by an earlier run are kept.

    Images that share a grid share a forward pass. The batches are the same in every run, so that a map never depends
    on where an earlier run was stopped. Where nobody said what an image shows, the classifier's prediction is taken.
    """
    table, settings = load_table(config.data), config.cam
    samples = table.split(*settings.splits)
    check_files(samples)
    device = pick_device(config.run)
    classifier = load_classifier(config.classifier, inputs["train_cls"], table.classes)
    place(classifier, device)
    sizes = [image_size(sample.image) for sample in samples]
    grids = [grid_size(*size, classifier.stride, settings.max_side) for size in sizes]
    batches = same_size_batches(grids, settings.batch_size)
    parts = [batches[start : start + BATCHES_PER_PART] for start in range(0, len(batches), BATCHES_PER_PART)]
    attributes = artefact_attributes(table.classes, output.fingerprint, to_toml(config), stride=classifier.stride)
    writer = PartWriter(
        output.path, "cams", attributes, [[samples[i].id for batch in part for i in batch] for part in parts]
    )
    images_of = GridImages(samples, grids, classifier.stride)
    pending = [batch for number in writer.pending() for batch in parts[number]]
    loaded = loader_over(images_of, pending, worker_count(config.run))
    with track("extract_cams", writer.total, done=writer.done) as progress:
        for number in writer.pending():
            records: list[Record] = []
            for batch in parts[number]:
                raise_if_stopped()
                with torch.inference_mode(), autocast(config.run, device):
                    images = image_batch(next(loaded), device)
                    maps, probabilities = multi_scale_cams(classifier, images, settings.scales, settings.flip)
                for index, cam, chances in zip(batch, maps.float().cpu(), probabilities.cpu(), strict=True):
                    known = samples[index].class_ids
                    present = predicted_classes(chances, settings.presence_threshold) if known is None else known
                    chosen = cam[[class_id - 1 for class_id in present]]
                    records.append(cam_record(StoredCam(samples[index].id, chosen, present, sizes[index])))
                progress.advance(len(batch))
            writer.write(number, records)
    writer.join([sample.id for sample in samples])


def _data(config: Config, digests: FileDigests) -> str:
    table = load_table(config.data)
    return data_digest(table.classes, table.split(*config.cam.splits), digests)


STAGE = Stage(
    name="extract_cams",
    makes="cams.h5",
    run=extract_cams,
    params=("cam", "run.precision"),
    ignores=("cam.batch_size",),
    needs=lambda config: ("train_cls",),
    data=_data,
)

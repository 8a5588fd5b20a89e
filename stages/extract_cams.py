"""Classifier -> class activation maps of the present classes (cams.h5)."""

from collections.abc import Mapping
from pathlib import Path

from cam_pipeline.assembly.classifier import load_classifier
from cam_pipeline.cams.extraction import CamExtractor
from cam_pipeline.config import Config, to_toml
from cam_pipeline.data.batches import same_size_batches
from cam_pipeline.data.digest import FileDigests, data_digest
from cam_pipeline.data.grid import grid_size
from cam_pipeline.data.images import sample_size
from cam_pipeline.data.loading import loader_over
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.table import check_files
from cam_pipeline.data.views import GridImages
from cam_pipeline.machine.device import pick_device, worker_count
from cam_pipeline.machine.distributed import first_before_others, is_first, local_world_size, meet, rank, world_size
from cam_pipeline.machine.interrupt import raise_if_stopped
from cam_pipeline.machine.progress import track
from cam_pipeline.models.placing import image_batch, place
from cam_pipeline.pipeline import Output, Stage
from cam_pipeline.store.cams import cam_record
from cam_pipeline.store.hdf5 import PartWriter, Record, artefact_attributes

BATCHES_PER_PART = 4


def extract_cams(config: Config, inputs: Mapping[str, Path], output: Output) -> None:
    """Write a CAM for every image of `cam.splits`; parts finished by an earlier run are kept.

    Images that share a grid share a forward pass. The batches are the same in every run, so that a map never depends
    on where an earlier run was stopped. Where nobody said what an image shows, the classifier's prediction is taken.
    Of N processes each makes every Nth part; the first joins them.
    """
    table, settings = load_table(config.data), config.cam
    samples = table.split(*settings.splits)
    check_files(samples)
    device = pick_device(config.run)
    classifier = load_classifier(config.classifier, inputs["train_cls"], table.classes)
    extractor = CamExtractor(classifier, config)
    place(classifier, device)
    sizes = [sample_size(sample) for sample in samples]
    grids = [grid_size(*size, classifier.stride, settings.max_side) for size in sizes]
    batches = same_size_batches(grids, settings.batch_size)
    parts = [batches[start : start + BATCHES_PER_PART] for start in range(0, len(batches), BATCHES_PER_PART)]
    attributes = artefact_attributes(table.classes, output.fingerprint, to_toml(config), stride=classifier.stride)
    ids = [[samples[i].id for batch in part for i in batch] for part in parts]
    writer = first_before_others(lambda: PartWriter(output.path, "cams", attributes, ids))
    own = range(rank(), len(parts), world_size())
    pending = [number for number in own if number in writer.pending()]
    images_of = GridImages(samples, grids, classifier.stride)
    left = [batch for number in pending for batch in parts[number]]
    loaded = loader_over(images_of, left, worker_count(config.run, local_world_size()), device)
    total = sum(len(ids[number]) for number in own)
    with track("extract_cams", total, done=total - sum(len(batch) for batch in left)) as progress:
        for number in pending:
            records: list[Record] = []
            for batch in parts[number]:
                raise_if_stopped()
                chosen = [samples[index] for index in batch]
                found = extractor.extract(
                    image_batch(next(loaded), device),
                    [sample.id for sample in chosen],
                    [sample.class_ids for sample in chosen],
                    [sizes[index] for index in batch],
                )
                records += [cam_record(stored) for stored, _ in found]
                progress.advance(len(batch))
            writer.write(number, records)
    meet(stoppable=True)
    if is_first():
        writer.join([sample.id for sample in samples])


def _data(config: Config, digests: FileDigests) -> str:
    table = load_table(config.data)
    return data_digest(table.classes, table.split(*config.cam.splits), digests)


STAGE = Stage(
    name="extract_cams",
    makes="cams.h5",
    command="make-cams",
    run=extract_cams,
    params=("cam", "run.precision"),
    ignores=("cam.batch_size",),
    needs=lambda config: ("train_cls",),
    data=_data,
    shared=True,
    memory="cam.batch_size",
    version=3,
)

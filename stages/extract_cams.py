"""Classifier -> class activation maps of the present classes (cams.h5)."""

from collections.abc import Generator

from cam_pipeline.assembly.single_stage import trained_classifier
from cam_pipeline.cams.extraction import CamExtractor
from cam_pipeline.config import Config, to_toml
from cam_pipeline.data.batches import same_size_batches
from cam_pipeline.data.grid import grid_size
from cam_pipeline.data.images import sample_size
from cam_pipeline.data.loading import loader_over
from cam_pipeline.data.table import check_files
from cam_pipeline.data.views import GridImages
from cam_pipeline.machine.device import pick_device
from cam_pipeline.machine.distributed import first_before_others, is_first, local_world_size, meet, rank, world_size
from cam_pipeline.machine.parallel import worker_count
from cam_pipeline.models.placing import image_batch, place
from cam_pipeline.pipeline import Inputs, Output
from cam_pipeline.store.cams import cam_record
from cam_pipeline.store.hdf5 import Record, artefact_attributes
from cam_pipeline.store.parts import PartWriter, in_chunks, write_parts

BATCHES_PER_PART = 4


def extract_cams(config: Config, inputs: Inputs, output: Output) -> None:
    """Write a CAM for every image of `cam.splits`; parts finished by an earlier run are kept.

    Images that share a grid share a forward pass. The batches are the same in every run, so that a map never depends
    on where an earlier run was stopped. If an image has no labels, the classifier's prediction is used.
    Each of N processes makes every Nth part; the first joins them.
    """
    table = inputs.table
    settings = config.cam
    samples = table.split(*settings.splits)
    check_files(samples)
    device = pick_device(config.run)
    classifier = trained_classifier(config, inputs[config.cam.network], table.classes)
    extractor = CamExtractor(classifier, config)
    place(classifier, device)
    sizes = [sample_size(sample) for sample in samples]
    grids = [grid_size(*size, classifier.stride, settings.max_side) for size in sizes]
    parts = in_chunks(same_size_batches(grids, settings.batch_size), BATCHES_PER_PART)
    ids = [[samples[index].id for batch in part for index in batch] for part in parts]
    attributes = artefact_attributes(table.classes, output.fingerprint, to_toml(config), stride=classifier.stride)
    writer = first_before_others(lambda: PartWriter(output.path, "cams", attributes, ids))
    own = range(rank(), len(parts), world_size())
    left = [batch for number in own if number not in writer.finished for batch in parts[number]]
    images_of = GridImages(samples, grids, classifier.stride)
    loaded = loader_over(images_of, left, worker_count(config.run, local_world_size()), device)

    def maps(number: int) -> Generator[Record, None, None]:
        for batch in parts[number]:
            found = extractor.extract(
                image_batch(next(loaded), device),
                [samples[index].id for index in batch],
                [samples[index].class_ids for index in batch],
                [sizes[index] for index in batch],
            )
            yield from (cam_record(stored) for stored, _ in found)

    write_parts("extract_cams", writer, maps, own)
    meet(stoppable=True)
    if is_first():
        writer.join([sample.id for sample in samples])

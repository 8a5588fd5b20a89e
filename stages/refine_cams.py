"""CAMs -> per-pixel scores of background and present classes (scores.h5)."""

from cam_pipeline.config import Config, to_toml
from cam_pipeline.data.readers import load_table
from cam_pipeline.machine.parallel import Workers, worker_count
from cam_pipeline.pipeline import Inputs, Output
from cam_pipeline.refinement.background import settled
from cam_pipeline.refinement.choice import check_masks_to_choose_by
from cam_pipeline.refinement.in_workers import refined_records
from cam_pipeline.store.cams import CamStore
from cam_pipeline.store.hdf5 import artefact_attributes
from cam_pipeline.store.parts import PartWriter, in_chunks, write_parts

IMAGES_PER_PART = 64


def refine_cams(config: Config, inputs: Inputs, output: Output) -> None:
    """Write scores for every CAM: background score, local refinement, dense CRF, in worker processes."""
    classes = inputs.table.classes
    samples = {sample.id: sample for sample in inputs.table.split(*config.cam.splits)}
    with (
        CamStore.open(inputs[config.refine.maps_from]) as cams,
        Workers(config.run.backend, worker_count(config.run)) as workers,
    ):
        settings = settled(config.refine, workers, cams, [*samples.values()], 1 + len(classes), output.folder)
        attributes = artefact_attributes(
            classes, output.fingerprint, to_toml(config), background=settings.background_score
        )
        writer = PartWriter(output.path, "scores", attributes, in_chunks(cams.names, IMAGES_PER_PART))
        write_parts(
            "refine_cams",
            writer,
            lambda number: refined_records(workers, [*map(cams.read, writer.chunks[number])], samples, settings),
        )
        writer.join(cams.names)


def check(config: Config) -> None:
    """Raise DataError if the background score is to be chosen on masks that show no class."""
    if config.refine.background == "from-split":
        table = load_table(config.data)
        check_masks_to_choose_by(config.refine, table.split(*config.cam.splits), table.classes)

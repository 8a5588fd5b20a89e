"""CAMs -> per-pixel scores of background and present classes (scores.h5)."""

from cam_pipeline.config import Config, to_toml
from cam_pipeline.data.dataset import Dataset
from cam_pipeline.machine.device import worker_count
from cam_pipeline.machine.parallel import Workers
from cam_pipeline.pipeline import Inputs, Output, Stage
from cam_pipeline.refinement.background import images_to_choose_by, settled
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


def _data(config: Config, dataset: Dataset) -> str:
    samples = dataset.table.split(*config.cam.splits)
    digest = dataset.digest(samples, labels=False)
    if config.refine.background != "from-split":
        return digest
    return f"{digest}-{dataset.digest(images_to_choose_by(config.refine, samples), labels=False, masks=True)}"


STAGE = Stage(
    name="refine_cams",
    makes="scores.h5",
    command="make-cams",
    run=refine_cams,
    params=("refine",),
    ignores=("refine.merge_with",),
    needs=lambda config: (config.refine.maps_from,),
    data=_data,
    version=6,
)

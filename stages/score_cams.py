"""CAMs -> scores before the CRF (soft_scores.h5), which a segmenter learns from; only if `train_seg.soft_labels`."""

from cam_pipeline.config import Config, to_toml
from cam_pipeline.pipeline import Inputs, Output
from cam_pipeline.refinement.background import background_score
from cam_pipeline.refinement.in_parts import workers_for, write_scores
from cam_pipeline.refinement.scores import placed
from cam_pipeline.store.cams import CamStore
from cam_pipeline.store.hdf5 import artefact_attributes
from cam_pipeline.store.parts import PartWriter, in_chunks

IMAGES_PER_PART = 64


def score_cams(config: Config, inputs: Inputs, output: Output) -> None:
    """Write scores for every CAM as `refine_cams` does, at the background score that it settled on, without the CRF."""
    classes = inputs.table.classes
    samples = {sample.id: sample for sample in inputs.table.split(*config.cam.splits)}
    background = background_score(config.refine, inputs["refine_cams"])
    assert background is not None
    plain = config.refine.at(background).model_copy(update={"crf": False, "band": 0.0})
    settings, device = placed(plain, config.run)
    with CamStore.open(inputs[settings.maps_from]) as cams, workers_for(device, config.run) as workers:
        attributes = artefact_attributes(classes, output.fingerprint, to_toml(config), background=background)
        writer = PartWriter(output.path, "scores", attributes, in_chunks(cams.names, IMAGES_PER_PART))
        write_scores("score_cams", writer, cams, samples, settings, config.run, workers, device)

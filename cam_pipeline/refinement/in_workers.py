"""Refinement of many images in worker processes."""

import logging
from collections.abc import Generator, Mapping, Sequence
from functools import partial

from cam_pipeline.config import RefineSettings
from cam_pipeline.data.images import sample_image
from cam_pipeline.data.table import Sample
from cam_pipeline.machine.interrupt import ignore_in_worker
from cam_pipeline.machine.parallel import KILLED, Workers, survived
from cam_pipeline.refinement.scores import at_fewer_pixels, refined
from cam_pipeline.store.cams import StoredCam
from cam_pipeline.store.hdf5 import Record
from cam_pipeline.store.scores import StoredScores, score_record

logger = logging.getLogger(__name__)


def refined_records(
    workers: Workers, cams: Sequence[StoredCam], samples: Mapping[str, Sample], settings: RefineSettings
) -> Generator[Record, None, None]:
    """The scores of every image, as records, in order. An image that kills its worker is named, and refined smaller."""
    results = workers.results(cams, lambda cam: partial(refine_image, cam, samples[cam.name], settings))
    for cam, found in zip(cams, results, strict=True):
        yield score_record(_smaller(cam, samples[cam.name], settings) if found is None else found)


def refine_image(cam: StoredCam, sample: Sample, settings: RefineSettings) -> StoredScores:
    """The refined scores and other label maps of one image; runs in a worker process."""
    ignore_in_worker()
    return refined(cam, partial(sample_image, sample), settings)


def _smaller(cam: StoredCam, sample: Sample, settings: RefineSettings) -> StoredScores:
    """The scores of an image that killed a worker: by torch, which never aborts, at fewer pixels; else unrefined."""
    fewer = at_fewer_pixels(cam, settings).model_copy(update={"crf_backend": "torch"})
    logger.warning("image %s: %s; it is refined at %d pixels", cam.name, KILLED, fewer.max_pixels)
    (found,) = survived([partial(refine_image, cam, sample, fewer)])
    if found is None:
        logger.warning("image %s: %s; it stays unrefined", cam.name, KILLED)
        plain = settings.model_copy(update={"crf": False, "kernel": "none"})  # in this process, which must not die
        found = refined(cam, partial(sample_image, sample), plain)
    return found

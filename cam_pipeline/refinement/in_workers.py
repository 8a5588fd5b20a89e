"""Refinement of many images in worker processes."""

import logging
from collections.abc import Generator, Mapping, Sequence
from functools import partial

from cam_pipeline.config import RefineSettings
from cam_pipeline.data.images import sample_image
from cam_pipeline.data.table import Sample
from cam_pipeline.machine.interrupt import ignore_in_worker
from cam_pipeline.machine.parallel import KILLED, Workers
from cam_pipeline.refinement.scores import reduction, refined
from cam_pipeline.store.cams import StoredCam
from cam_pipeline.store.hdf5 import Record
from cam_pipeline.store.scores import StoredScores, score_record

logger = logging.getLogger(__name__)


def refined_records(
    workers: Workers, cams: Sequence[StoredCam], samples: Mapping[str, Sample], settings: RefineSettings
) -> Generator[Record, None, None]:
    """The scores of every image, as records, in order. An image that kills its worker is left unrefined and named."""
    _tell_of_large_images(cams, settings)
    results = workers.results(cams, lambda cam: partial(refine_image, cam, samples[cam.name], settings))
    for cam, found in zip(cams, results, strict=True):
        if found is None:
            logger.warning("refine_cams: image %s: %s; it stays unrefined", cam.name, KILLED)
            plain = settings.model_copy(update={"crf": False, "kernel": "none"})  # in this process, which must not die
            found = refined(cam, partial(sample_image, samples[cam.name]), plain)
        yield score_record(found)


def refine_image(cam: StoredCam, sample: Sample, settings: RefineSettings) -> StoredScores:
    """The refined scores and other label maps of one image; runs in a worker process."""
    ignore_in_worker()
    return refined(cam, partial(sample_image, sample), settings)


def _tell_of_large_images(cams: Sequence[StoredCam], settings: RefineSettings) -> None:
    large = [cam.name for cam in cams if reduction(cam.size, settings) < 1]
    if large and settings.refines:
        more = f"more than refine.max_pixels = {settings.max_pixels} pixels and are refined at that size"
        logger.warning("refine_cams: %d images, the first %s, have %s", len(large), large[0], more)

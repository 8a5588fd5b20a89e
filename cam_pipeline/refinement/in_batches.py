"""Refinement of many images on a GPU, images of one size together."""

from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from cam_pipeline.config import RefineSettings
from cam_pipeline.data.images import UInt8, sample_image
from cam_pipeline.data.table import Sample
from cam_pipeline.refinement.scores import refined_batch
from cam_pipeline.store.cams import StoredCam
from cam_pipeline.store.hdf5 import Record
from cam_pipeline.store.scores import score_record

BATCH_PIXELS = 2**20
"""Largest number of pixels refined together; one image may have more. They take about half a GB of the GPU's memory,
and the CRF keeps what depends on their size alone."""

Batch = list[tuple[StoredCam, Future[UInt8]]]


def refined_records_on(
    device: torch.device,
    cams: Sequence[StoredCam],
    samples: Mapping[str, Sample],
    settings: RefineSettings,
    threads: int,
) -> Generator[Record, None, None]:
    """The scores of every image, as records, batch by batch. `threads` read the next batch's images meanwhile."""
    pool = ThreadPoolExecutor(threads)
    try:

        def read(batch: Sequence[StoredCam]) -> Batch:
            return [(cam, pool.submit(sample_image, samples[cam.name])) for cam in batch]

        for batch in _one_ahead(map(read, batches(cams))):
            reads = [image.result for _, image in batch]
            yield from map(score_record, refined_batch([cam for cam, _ in batch], reads, settings, device))
    finally:
        pool.shutdown(cancel_futures=True)


def batches(cams: Sequence[StoredCam]) -> list[list[StoredCam]]:
    """The maps in batches of one image size and at most BATCH_PIXELS, or of one image."""
    of_size: dict[tuple[int, int], list[StoredCam]] = defaultdict(list)
    for cam in cams:
        of_size[cam.size].append(cam)
    found = []
    for (height, width), alike in of_size.items():
        length = max(1, BATCH_PIXELS // (height * width))
        found += [alike[start : start + length] for start in range(0, len(alike), length)]
    return found


def _one_ahead(started: Iterator[Batch]) -> Iterator[Batch]:
    """The same items, each asked for while the one before it is worked on."""
    current = next(started, None)
    while current is not None:
        following = next(started, None)
        yield current
        current = following

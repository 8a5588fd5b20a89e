"""Dense CRF: two worker processes against one, and present classes only against all of PASCAL VOC's 21 channels.

Generated images of 240 x 320, score maps made of their masks, and the road of the stage `refine_cams`: the backend
torch in joblib's processes, one thread for each. The sides alternate, so that both meet the same machine; what it costs
to start workers, which a run does once, is left out.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from joblib import delayed
from torch.nn import functional

from cam_pipeline.config import DataSettings, RefineSettings
from cam_pipeline.data.demo.synthetic import generate
from cam_pipeline.data.images import sample_image
from cam_pipeline.data.masks import sample_mask
from cam_pipeline.data.readers import load_table
from cam_pipeline.machine.parallel import joblib_workers, results_of
from cam_pipeline.ops.crf import dense_crf
from cam_pipeline.refinement.scores import refined_scores
from cam_pipeline.store.cams import StoredCam

IMAGES, SIZE, ROUNDS, CHANNELS = 32, (240, 320), 3, 21
SETTINGS = RefineSettings(crf_backend="torch")

Item = tuple[StoredCam, np.ndarray]


def items(folder: Path) -> list[Item]:
    """Images with maps (n, 15, 20) that cover their objects and a little more."""
    generate(folder, train=IMAGES, val=1, size=SIZE)
    table = load_table(DataSettings(root=folder))
    found = []
    for sample in table.split("train"):
        mask = torch.from_numpy(np.array(sample_mask(sample, len(table.classes))))
        present = torch.stack([(mask == class_id).float() for class_id in sample.class_ids or ()])
        grid = (mask.shape[0] // 16, mask.shape[1] // 16)
        coarse = functional.avg_pool2d(functional.interpolate(present[None], grid, mode="area"), 3, 1, 1)[0]
        cam = StoredCam(sample.id, coarse, sample.class_ids or (), (mask.shape[0], mask.shape[1]))
        found.append((cam, np.array(sample_image(sample))))
    return found


def refine(item: Item) -> None:
    refined_scores(item[0], lambda: item[1], SETTINGS)


def seconds_with(workers: int, work: list[Item]) -> float:
    with joblib_workers("loky", workers) as parallel:
        with results_of(parallel, (delayed(refine)(item) for item in work[:4])) as results:
            list(results)  # the workers start and import
        started = time.perf_counter()
        with results_of(parallel, (delayed(refine)(item) for item in work)) as results:
            list(results)
        return time.perf_counter() - started


def seconds_of_channels(work: list[Item], channels: int) -> float:
    """One process; `channels` 0: those of the present classes, else so many, most of them empty."""
    total = 0.0
    for cam, image in work:
        scores = refined_scores(cam, lambda: image, RefineSettings(crf=False))  # noqa: B023
        if channels:
            scores = np.concatenate([scores, np.zeros((channels - len(scores), *scores.shape[1:]), np.float32)])
        started = time.perf_counter()
        dense_crf(image, scores, backend="torch")
        total += time.perf_counter() - started
    return total


def main() -> None:
    torch.set_num_threads(1)  # in one process, too
    with tempfile.TemporaryDirectory() as folder:
        work = items(Path(folder))
    print(f"Dense CRF, {IMAGES} generated images of {SIZE[0]} x {SIZE[1]}, CPU, median of {ROUNDS}")
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for workers, measured in times.items():
            measured.append(seconds_with(workers, work))
    one, two = (IMAGES / statistics.median(times[workers]) for workers in (1, 2))
    print(f"  one process {one:6.1f} images/s")
    print(f"  two workers {two:6.1f} images/s")
    print(f"  two / one   {two / one:6.2f}   (target: at least 1.6)")
    few = work[:8]
    shares = [seconds_of_channels(few, CHANNELS) / seconds_of_channels(few, 0) for _ in range(ROUNDS)]
    print(f"  {CHANNELS} channels take {statistics.median(shares):.1f} times as long as the present classes alone")


if __name__ == "__main__":
    main()

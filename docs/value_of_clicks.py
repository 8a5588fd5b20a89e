"""Repeat the curve of docs/results/clicks.md: what clicks are worth, by how many there are and on which images.

Every image of `train` is refined with none, with some, and with all of its clicks, drawn in random order. Labels of any
choice of images are then those with clicks for the images chosen, and those without for all others.

    python docs/value_of_clicks.py -c my.toml [--clicks 0 1 2 5] [--every 1] [--seed 0]

The run folder needs CAMs that were made with `cam.keep_features` (32, say). Clicks come from `data.clicks`.
"""

import argparse
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor

from cam_pipeline.config import Config, load_config
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.evaluation.confusions import target_labels, with_masks
from cam_pipeline.ops.labels import complete_labels
from cam_pipeline.ops.metrics import confusion_matrix, mean_iou
from cam_pipeline.refinement.background import background_score
from cam_pipeline.refinement.clicks import with_marks
from cam_pipeline.refinement.in_workers import refine_image
from cam_pipeline.store.cams import CamStore

SHARES = (0.05, 0.2, 1.0)


def with_clicks(sample: Sample, count: int, seed: int) -> Sample:
    """The sample with `count` of its clicks, the first of a random order that depends on the seed and its name."""
    rng = np.random.default_rng([seed, *sample.id.encode()])
    chosen = rng.permutation(len(sample.clicks))[:count]
    return replace(sample, clicks=tuple(sample.clicks[place] for place in chosen), scribble=None)


def one_image(sample: Sample, counts: list[int], seed: int, config: Config, table: Table) -> tuple[Tensor, float]:
    """Confusions (len(counts), K, K) of an image's labels with so many clicks, and the confidence of those without."""
    target, num_labels = target_labels(sample, table).long(), 1 + len(table.classes)
    folder = config.folder
    settings = config.refine
    background = background_score(settings, folder / "scores.h5")
    assert background is not None
    found, confidence = [], 0.0
    with CamStore.open(folder / "cams.h5") as cams:
        stored = cams.read(sample.id)
    for count in counts:
        clicked = with_clicks(sample, count, seed)
        scores = refine_image(with_marks(stored, clicked, len(table.classes)), clicked, settings.at(background))
        labels = torch.from_numpy(complete_labels(scores.scores, scores.class_ids)).long()
        found.append(confusion_matrix(labels, target, num_labels))
        if count == counts[0]:
            confidence = float(scores.scores.max(axis=0).mean())
    return torch.stack(found), confidence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", required=True)
    parser.add_argument("--set", action="append", default=[], help="a setting, as in cam-pipeline")
    parser.add_argument("--clicks", type=int, nargs="+", default=[0, 1, 2, 5], help="the first must be 0")
    parser.add_argument("--every", type=int, default=1, help="use the first of every N images")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    config = load_config(given.config, given.set)
    torch.set_num_threads(1)  # a thread for each image
    table = load_table(config.data)
    samples = with_masks(table.split(config.data.train), given.every)
    work = partial(one_image, counts=given.clicks, seed=given.seed, config=config, table=table)
    results = Parallel(n_jobs=-1, verbose=1, prefer="threads")(delayed(work)(sample) for sample in samples)
    confusions = torch.stack([confusion for confusion, _ in results])  # (images, counts, K, K)
    by_confidence = np.argsort([confidence for _, confidence in results])
    at_random = np.random.default_rng(given.seed).permutation(len(samples))
    print(f"labels of {config.data.train} ({len(samples)}), mIoU %: without clicks", end=" ")
    print(f"{100 * float(mean_iou(confusions[:, 0].sum(dim=0))):.1f}\n")
    heads = [f"{count} click{'s' * (count > 1)}" for count in given.clicks[1:]]
    print(f"| images with clicks | chosen | {' | '.join(heads)} |")
    print("|---|---|" + "---|" * len(given.clicks[1:]))
    for share in SHARES:
        for name, order in (("at random", at_random), ("least confident first", by_confidence)):
            if share == 1 and name != "at random":
                continue
            chosen = torch.zeros(len(samples), dtype=torch.bool)
            chosen[torch.from_numpy(order[: round(share * len(samples))].copy())] = True
            cells = []
            for place in range(1, len(given.clicks)):
                total = torch.where(chosen[:, None, None], confusions[:, place], confusions[:, 0]).sum(dim=0)
                cells.append(f"{100 * float(mean_iou(total)):.1f}")
            print(f"| {100 * share:.0f} % | {'all' if share == 1 else name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

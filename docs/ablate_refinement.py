"""Repeat the refinement table of docs/results/refinement.md: propagation, local refinement, CRF and background score.

Every row starts from the maps of one finished classifier (`cam-pipeline train-cls`), at three background scores:
`auto` (no masks), `from-split` (masks of some images of `val`), oracle (the best on the very masks compared with).

    python docs/ablate_refinement.py --run outputs/voc-mini --data voc-mini [--propagate features] [--crf on]
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cam_pipeline.assembly.classifier import load_classifier
from cam_pipeline.cams.extraction import CamExtractor
from cam_pipeline.config import Config, RefineSettings, load_config
from cam_pipeline.data.images import sample_size
from cam_pipeline.data.loading import grid_batches
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.evaluation.confusions import with_masks
from cam_pipeline.ops.metrics import confusions_from_histogram, mean_iou
from cam_pipeline.refinement.background import (
    Measure,
    choose_background,
    confusion_when_refined,
    look_around,
    map_histogram,
)
from cam_pipeline.refinement.choice import images_to_choose_by
from cam_pipeline.refinement.merging import merged
from cam_pipeline.refinement.scores import THRESHOLDS
from cam_pipeline.store.cams import StoredCam

BATCH = 8


def maps_of(config: Config, table: Table, samples: Sequence[Sample]) -> dict[str, StoredCam]:
    """Maps of the images by name, by the classifier of the run folder."""
    classifier = load_classifier(config.classifier, config.folder / "classifier.safetensors", table.classes)
    extractor = CamExtractor(classifier, config)
    batches, loaded = grid_batches(
        samples, stride=classifier.stride, max_side=config.cam.max_side, batch_size=BATCH, workers=1
    )
    found: dict[str, StoredCam] = {}
    for batch, images in zip(batches, loaded, strict=True):
        chosen = [samples[index] for index in batch]
        ids, sizes = [one.id for one in chosen], [sample_size(one) for one in chosen]
        for stored, _ in extractor.extract(images, ids, [one.class_ids for one in chosen], sizes):
            found[stored.name] = stored
    return found


def total_over(maps: dict[str, StoredCam], measure: Measure, samples: Sequence[Sample]) -> Tensor:
    return torch.stack([measure(maps[sample.id], sample) for sample in samples]).sum(dim=0)


def row(
    settings: RefineSettings,
    maps: dict[str, StoredCam],
    compared: Sequence[Sample],
    few: Sequence[Sample],
    num_labels: int,
) -> str:
    """Backgrounds and mIoU of one row; `few` have masks that `from-split` may see."""
    seen: dict[float, float] = {}
    seconds = 0.0

    def value_at(background: float) -> float:
        nonlocal seconds
        if background not in seen:
            began = time.monotonic()
            measure = partial(confusion_when_refined, settings=settings.at(background), num_labels=num_labels)
            seen[background] = 100 * float(mean_iou(total(measure, compared)))
            seconds = (time.monotonic() - began) / len(compared)
        return seen[background]

    total = partial(total_over, maps)
    by_color = choose_background(settings.model_copy(update={"background": "auto"}), compared, num_labels, total)
    by_split = settings.model_copy(update={"background": "from-split", "background_images": len(few)})
    by_masks = choose_background(by_split, few, num_labels, total)
    if settings.refines:
        look_around(value_at, by_color, stride=0.04, top=0.98)
    else:
        histogram = total(partial(map_histogram, settings=settings, num_labels=num_labels), compared)
        value_at(round(float(THRESHOLDS[int(mean_iou(confusions_from_histogram(histogram)).argmax())]), 2))
    parts = [f"{name} {value_at(at):.1f} at {at:.2f}" for name, at in (("auto", by_color), ("from-split", by_masks))]
    best = max(seen, key=seen.__getitem__)
    return " | ".join([*parts, f"oracle {seen[best]:.1f} at {best:.2f}", f"{seconds:.3f} s an image"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="run folder with a trained classifier")
    parser.add_argument(
        "--merge", nargs="+", default=[], type=Path, help="other run folders whose maps are averaged with it"
    )
    parser.add_argument("--data", required=True, type=Path, help="folder of voc-mini")
    parser.add_argument("--split", default="train", help="whose masks the maps are compared with, for reporting")
    parser.add_argument("--every", type=int, default=4, help="keep the first of every so many images")
    parser.add_argument("--few", type=int, default=60, help="images of `val` whose masks `from-split` may see")
    parser.add_argument(
        "--propagate", nargs="+", default=["none", "features"], choices=["none", "features", "attention"]
    )
    parser.add_argument("--kernel", nargs="+", default=["none", "color", "par", "varm"])
    parser.add_argument("--crf", nargs="+", default=["off", "on"], choices=["off", "on"])
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for every row")
    given = parser.parse_args()
    here = [f"data.root={given.data}", *given.set]
    for propagate in given.propagate:
        runs = [
            load_config(run / "config.toml", [*here, f"output.dir={run}", f"cam.propagate={propagate}"])
            for run in (given.run, *given.merge)
        ]
        config, table = runs[0], load_table(runs[0].data)
        compared = with_masks(table.split(given.split), given.every)
        by_split = RefineSettings(background="from-split", background_images=given.few)
        few = images_to_choose_by(by_split, table.split("val"))
        needed = [*compared, *(one for one in few if one not in compared)]
        found = [maps_of(run, table, needed) for run in runs]
        maps = {sample.id: merged([of_run[sample.id] for of_run in found]) for sample in needed}
        for kernel in given.kernel:
            for crf in given.crf:
                settings = config.refine.model_copy(update={"kernel": kernel, "crf": crf == "on"})
                figures = row(settings, maps, compared, few, 1 + len(table.classes))
                print(f"{propagate} | {kernel} | CRF {crf} | {figures}", flush=True)


if __name__ == "__main__":
    main()

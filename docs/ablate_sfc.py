"""Repeat the SFC table of docs/results/sfc.md on voc-mini: what each part of the method is worth.

Every row is a MobileNetV2 trained as in configs/voc-mini-sfc.toml, with parts of SFC added one by one; trainings are
cached like any other. Of each, the plain CAM, the calibrated maps of the classifier, of the prototypes, and both.

    python docs/ablate_sfc.py --data voc-mini [--rows none full] [--seeds 0 1 2] [--split val] [--set cam.max_side=640]
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ablate_refinement import maps_of, total_over
from torch import Tensor

from cam_pipeline.config import Config, load_config
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.data.views import image_labels
from cam_pipeline.evaluation.confusions import with_masks
from cam_pipeline.ops.metrics import confusions_from_histogram, frequency_groups, iou_per_class, mean_iou
from cam_pipeline.pipeline import Pipeline
from cam_pipeline.refinement.background import map_histogram
from cam_pipeline.refinement.scores import THRESHOLDS

OFF = ("sfc.prototype_weight=0.0", "sfc.scale_weight=0.0")
ROWS = {
    "none": ("objectives.sfc=false",),
    "bank": ("objectives.sfc=true", *OFF),
    "prototype": ("objectives.sfc=true", OFF[1], "sfc.distribution_weights=false"),
    "weighted": ("objectives.sfc=true", OFF[1]),
    "full": ("objectives.sfc=true",),
}
TITLES = {
    "none": "no SFC",
    "bank": "image bank",
    "prototype": "+ prototype loss, classes alike",
    "weighted": "+ prototype loss, weighted",
    "full": "+ scale loss",
}
SHARES = {"classifier": 0.0, "prototype": 1.0, "merged": 0.25}


def configured(row: str, seed: int, calibration: str, given: argparse.Namespace) -> Config:
    """The run of a row."""
    folder = given.output / f"voc-mini-sfc-{row}-{seed}"
    settings = [f"data.root={given.data}", f"run.seed={seed}", f"output.dir={folder}", f"cam.calibration={calibration}"]
    return load_config(given.config, [*settings, *ROWS[row], *given.set])


def figures(config: Config, table: Table, compared: list[Sample]) -> Iterator[tuple[str, Tensor, float]]:
    """Readout, confusion (K, K) at its best constant background score, and that score."""
    maps = maps_of(config, table, compared)
    if config.cam.calibration == "none":
        readouts = {"plain CAM": config.refine}
    else:
        readouts = {
            f"{name}, background map {share}": config.refine.model_copy(
                update={"prototype_share": SHARES[name], "background_map": share}
            )
            for name in SHARES
            for share in (0.0, 0.5)
        }
    for name, settings in readouts.items():
        measure = partial(map_histogram, settings=settings, num_labels=1 + len(table.classes))
        confusions = confusions_from_histogram(total_over(maps, measure, compared))
        best = int(mean_iou(confusions).argmax())
        yield name, confusions[best], float(THRESHOLDS[best])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of voc-mini")
    parser.add_argument("--config", default="voc-mini-sfc", help="config whose SFC is taken apart")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the run folders")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--split", default="train", help="whose maps are made and compared with masks, for reporting")
    parser.add_argument("--every", type=int, default=1, help="keep the first of every so many images")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for every row")
    given = parser.parse_args()
    print(f"\nbest background score of each row on {given.split}, every {given.every}: oracle", flush=True)
    for row in given.rows:
        for seed in given.seeds:
            for calibration in ("none", "sfc"):
                config = configured(row, seed, calibration, given)
                pipeline = Pipeline(config)
                pipeline.run(["train_cls"], announce=print)
                table = load_table(config.data)
                compared = with_masks(table.split(given.split), given.every)
                counts = image_labels(table.split(config.data.train), len(table.classes)).sum(dim=0).int().tolist()
                groups = frequency_groups(counts)
                history = (pipeline.folder / "logs" / "train_cls.jsonl").read_text().splitlines()
                quality = f"mAP {100 * json.loads(history[-1])['mAP']:.1f}"
                for name, confusion, background in figures(config, table, compared):
                    iou = iou_per_class(confusion)[1:]
                    parts = [f"{group} {100 * float(iou[ids].nanmean()):.1f}" for group, ids in groups.items()]
                    best = f"{100 * float(mean_iou(confusion)):.1f} at {background:.2f}"
                    print(f"{TITLES[row]} | seed {seed} | {quality} | {name} | {best} | {', '.join(parts)}", flush=True)


if __name__ == "__main__":
    main()

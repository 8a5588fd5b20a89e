"""Repeat the ladder of docs/results/segmenter.md on voc-mini: what each way to train a segmenter is worth.

Every row is a segmenter with one change, trained on the labels of one finished run
(`cam-pipeline run -c configs/voc-mini-walk.toml`), on masks, or on marks (`--set data.scribbles=FOLDER`). Trainings are
cached like any other; figures of a finished row are kept beside it.

    python docs/ablate_segmenter.py --data voc-mini --labels outputs/voc-mini-walk-0 [--rows plain colours]
        [--epochs 8 24] [--seeds 0 1 2] [--supervision pseudo-labels masks scribbles mixed] [--train]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.measure import label as components
from torch import Tensor

from cam_pipeline.assembly.segmenter import load_segmenter
from cam_pipeline.config import Config, load_config
from cam_pipeline.data.images import sample_image
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.table import Table
from cam_pipeline.evaluation.boundary import near_outlines
from cam_pipeline.evaluation.confusions import labels_confusion, target_labels, with_masks
from cam_pipeline.models.placing import place
from cam_pipeline.ops.ignore import IGNORE_INDEX
from cam_pipeline.ops.metrics import confusion_matrix, iou_per_class, mean_iou
from cam_pipeline.prediction.predictor import Predictor

COLORS = ("train_seg.color_jitter=0.4", "train_seg.greyscale=0.2", "train_seg.blur=0.5")
AGREEING = (
    "segmenter.self_regulation=true",
    "self_regulation.gate='agreement'",
    "self_regulation.label_weight=0.1",
    "self_regulation.feature_weight=0.1",
)
SUPERVISIONS = ("pseudo-labels", "masks", "scribbles", "mixed")
DFR = ("segmenter.regularizer='dfr'",)
ROWS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "colours": COLORS,
    "cosine": ("train_seg.schedule='cosine'",),
    "average": ("train_seg.average=0.99",),
    "balance": ("train_seg.balance=true",),
    "exits": (
        "segmenter.self_regulation=true",
        "self_regulation.label_weight=0",
        "self_regulation.feature_weight=0",
    ),
    "exits + SR-F": (*AGREEING, "self_regulation.label_weight=0"),
    "exits + SR-L": (*AGREEING, "self_regulation.feature_weight=0"),
    "exits + SR-F + SR-L": AGREEING,
    "SR as released": ("segmenter.self_regulation=true",),
    "clipped": ("train_seg.clip_losses=true",),
    "confidence": ("train_seg.confidence_power=4.0",),
    "potts": ("train_seg.potts=0.1",),
    "soft labels": ("train_seg.soft_labels=true",),
    "soft labels, potts": ("train_seg.soft_labels=true", "train_seg.potts=0.1"),
    "repeat": ("train_seg.repeat=0.1",),
    "teacher": ("train_seg.teacher=true", "train_seg.average=0.99"),
    "static kernel": (*DFR, "dfr.features='none'"),
    "deep kernel": (*DFR, "dfr.features='backbone'", "dfr.kernel='gauss'"),
    "head apart": (*DFR, "dfr.detach_backbone=true"),
    "DFR": DFR,
    "DFR, gradient to features": (*DFR, "dfr.detach_features=false"),
}
SMALL = 32 * 32
"""Pixels below which a connected part of a class in a mask is a small object."""


def train(row: str, epochs: int, seed: int, supervision: str, given: argparse.Namespace) -> tuple[Config, Path]:
    """The config and run folder of a row's segmenter, trained if it is not there yet."""
    name = f"{row}-{epochs}-{seed}-{supervision}".replace(" + ", "+").replace(" ", "-")
    folder: Path = given.output / name
    if not folder.exists():
        folder.mkdir(parents=True)
        for file in ("cams.h5", "merged_cams.h5", "scores.h5", "pseudo_labels.h5", "classifier.safetensors"):
            for path in (given.labels / file, given.labels / f"{file}.manifest.json"):
                if path.exists():
                    os.link(path, folder / path.name)
        shutil.copy(given.labels / "digests.json", folder)
    settings = [
        f"data.root='{given.data}'",
        f"run.seed={seed}",
        f"train_seg.epochs={epochs}",
        f"train_seg.supervision='{supervision}'",
        f"output.dir='{folder}'",
        *ROWS[row],
        *given.set,
    ]
    words = ["-c", given.config, *(word for setting in settings for word in ("--set", setting))]
    if "train_seg.soft_labels=true" in ROWS[row]:
        subprocess.run([sys.executable, "-m", "cam_pipeline.cli", "make-cams", *words], check=True)
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "cam_pipeline.cli", "train-seg", *words])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{name}: training failed")
    if not (folder / "training.json").exists():
        told = {"seconds": time.monotonic() - began, "peak_memory_MiB": usage.ru_maxrss / 1024}
        (folder / "training.json").write_text(json.dumps(told))
    return load_config(given.config, settings), folder


def small_objects(target: Tensor) -> Tensor:
    """(H, W) bool: connected parts of a class of fewer than SMALL pixels."""
    array = target.numpy()
    parts = components(np.where(array == IGNORE_INDEX, 0, array), background=0)
    sizes = np.bincount(parts.ravel())
    return torch.from_numpy((parts > 0) & (sizes[parts] < SMALL))


def figures_on(split: str, folder: Path, config: Config, table: Table) -> dict[str, Any]:
    """Figures of the segmenter on a split, its answer as it is and restricted to the classes of the image's labels."""
    segmenter = load_segmenter(config.segmenter, folder / "segmenter.safetensors", table.classes)
    place(segmenter, torch.device("cpu"))
    predictor = Predictor(segmenter, config)
    num_labels = 1 + len(table.classes)
    names = ("as it is", "true classes", "band")
    totals = {name: torch.zeros(num_labels, num_labels, dtype=torch.int64) for name in names}
    small = found = 0
    for sample in with_masks(table.split(split)):
        target = target_labels(sample, table)
        probabilities = predictor.probabilities(sample_image(sample))
        labels = probabilities.max(dim=0).indices
        totals["as it is"] += confusion_matrix(labels, target.long(), num_labels)
        totals["band"] += confusion_matrix(labels, near_outlines(target), num_labels)
        shown = torch.zeros(num_labels, dtype=torch.bool)
        shown[[0, *(sample.class_ids or ())]] = True
        restricted = torch.where(shown[:, None, None], probabilities, 0).max(dim=0).indices
        totals["true classes"] += confusion_matrix(restricted, target.long(), num_labels)
        objects = small_objects(target)
        small += int(objects.sum())
        found += int((objects & (labels == target)).sum())
    figures: dict[str, Any] = {name: 100 * float(mean_iou(total)) for name, total in totals.items()}
    figures["small objects, recall"] = 100 * found / max(small, 1)
    names = ("background", *table.classes)
    figures["IoU"] = dict(zip(names, (100 * iou_per_class(totals["as it is"])).tolist(), strict=True))
    figures["IoU, true classes"] = dict(zip(names, (100 * iou_per_class(totals["true classes"])).tolist(), strict=True))
    return figures


def kept_figures(split: str, folder: Path, config: Config, table: Table) -> dict[str, Any]:
    """`figures_on`, kept beside the segmenter."""
    kept = folder / f"figures_{split}.json"
    if not kept.exists():
        kept.write_text(json.dumps(figures_on(split, folder, config, table), indent=1))
    figures: dict[str, Any] = json.loads(kept.read_text())
    return figures


def report(rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """A Markdown table."""
    names = list(dict.fromkeys(name for _, figures in rows for name in figures))
    lines = [f"| row | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for title, figures in rows:
        cells = [f"{figures[name]:.1f}" if name in figures else "-" for name in names]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of voc-mini")
    parser.add_argument("--labels", required=True, type=Path, help="run folder with the labels to learn from")
    parser.add_argument("--config", default="voc-mini-walk", help="name of the config of the runs")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the run folders")
    parser.add_argument("--rows", nargs="+", default=["plain"], choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--epochs", type=int, nargs="+", default=[8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--supervision", nargs="+", default=["pseudo-labels"], choices=SUPERVISIONS)
    parser.add_argument("--train", action="store_true", help="also compare on `train`, with the labels themselves")
    parser.add_argument("--set", action="append", default=[], help="a setting of every row")
    given = parser.parse_args()
    rows: list[tuple[str, dict[str, Any]]] = []
    for row in given.rows:
        for epochs in given.epochs:
            for supervision in given.supervision:
                for seed in given.seeds:
                    config, folder = train(row, epochs, seed, supervision, given)
                    table = load_table(config.data)
                    of_val = kept_figures(config.data.val, folder, config, table)
                    figures = {f"val, {name}": value for name, value in of_val.items() if isinstance(value, float)}
                    if given.train:
                        of_train = kept_figures(config.data.train, folder, config, table)
                        figures |= {f"train, {name}": of_train[name] for name in ("as it is", "true classes")}
                    told = json.loads((folder / "training.json").read_text())
                    figures |= {"peak memory, MiB": told["peak_memory_MiB"], "minutes": told["seconds"] / 60}
                    rows.append((f"{row}, {epochs} epochs, {supervision}, seed {seed}", figures))
                    print(report(rows[-1:]), flush=True)
    print("\n" + report(rows))
    if given.train and "pseudo-labels" in given.supervision:
        samples = with_masks(table.split(config.data.train))
        total, _ = labels_confusion(given.labels / "pseudo_labels.h5", given.labels / "scores.h5", table, samples)
        print(f"\nlabels of train ({len(samples)}): {100 * float(mean_iou(total)):.1f}")


if __name__ == "__main__":
    main()

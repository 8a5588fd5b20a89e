"""Repeat the voc-mini numbers of docs/results/voc-mini.md: three seeds, each with its fully supervised reference.

Every run is cached and resumable like any other: started again, this script goes on where it was stopped.

    make reproduce-voc-mini DATA=voc-mini [WEIGHTS=mobilenetv2_100_tf2ptq_in1k.pth]

With the best maps found so far, averaged over the seeds (the reference stays the same):

    make reproduce-voc-mini DATA=voc-mini ARGS="--config voc-mini-walk --merge"
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def cam_pipeline(*words: str) -> None:
    """Run one command; stop here when it fails."""
    print("$ cam-pipeline", *words, flush=True)
    code = subprocess.run([sys.executable, "-m", "cam_pipeline.cli", *words]).returncode
    if code:
        sys.exit(code)  # it has said why


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of the evaluation written last, by map."""
    report = json.loads((folder / "evaluation.json").read_text())
    return {row["map"]: row for row in report["rows"]}


def images_of(row: dict[str, Any], part: str = "") -> str:
    """What a row of an evaluation was compared on, with the number of images."""
    return f"{row['split']}{part} ({row['images']})"


def options(seed: int, config: str, shared: Sequence[str], folder: Path) -> list[str]:
    """Options of every command of a run."""
    return ["-c", config, *shared, "--set", f"run.seed={seed}", "--set", f"output.dir={folder}"]


def one_seed(seed: int, config: str, shared: Sequence[str], output: Path, others: Sequence[int]) -> dict[str, float]:
    """Figures of one seed in percent, its maps averaged with those of `others`.

    `shared` are the --set options that say where data and weights are.
    """
    folder, reference = output / f"{config}-{seed}", output / f"voc-mini-{seed}-masks"
    here = options(seed, config, shared, folder)
    if others:
        merged = [str((output / f"{config}-{other}" / "cams.h5").resolve()) for other in others]
        here += ["--set", f"refine.merge_with={json.dumps(merged)}"]
    there = [*options(seed, "voc-mini", shared, reference), "--set", "train_seg.supervision=masks"]
    started = time.monotonic()
    cam_pipeline("run", *here)
    minutes = (time.monotonic() - started) / 60
    cam_pipeline("train-seg", *there)
    cam_pipeline("evaluate", *there)
    masks = rows_of(reference)["segmenter"]["mIoU"]
    cam_pipeline("evaluate", "--oracle", "--every", "4", *here)
    quarter = rows_of(folder)
    cam_pipeline("evaluate", "--oracle", *here)
    full = rows_of(folder)
    history = (folder / "logs" / "train_cls.jsonl").read_text().splitlines()
    gain = quarter["refined"]["mIoU"] - quarter["CAM"]["mIoU"]
    gain_over_oracle = quarter["refined"]["mIoU"] - quarter["CAM, oracle"]["mIoU"]
    train, val = images_of(full["CAM"]), images_of(full["segmenter"])
    some = images_of(quarter["CAM"], ", every 4th")
    figures = {
        f"classifier mAP, {val}": json.loads(history[-1])["mAP"],
        f"CAM, {train}, configured background": full["CAM"]["mIoU"],
        f"CAM, {train}, oracle background": full["CAM, oracle"]["mIoU"],
        f"CAM, {some}, configured background": quarter["CAM"]["mIoU"],
        f"CAM, {some}, oracle background": quarter["CAM, oracle"]["mIoU"],
        f"CAM + CRF, {some}, configured background": quarter["refined"]["mIoU"],
        f"CRF gain, {some}, same background": gain,
        f"CRF gain, {some}, over CAM at oracle background": gain_over_oracle,
        f"CAM + CRF, {train}, configured background": full["refined"]["mIoU"],
        f"pseudo-labels, {train}, complete map": full["pseudo-label"]["mIoU"],
        "pseudo-labels, coverage": full["pseudo-label"]["coverage"],
        f"segmenter, {val}, from image labels": full["segmenter"]["mIoU"],
        f"segmenter, {val}, from masks": masks,
        "segmenter, share of the reference": full["segmenter"]["mIoU"] / masks,
    }
    return {name: 100 * value for name, value in figures.items()} | {"minutes of `run` (0 when cached)": minutes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder of voc-mini")
    parser.add_argument("--weights", type=Path, help="weights file; default: where the config looks, beside the data")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the run folders")
    parser.add_argument("--config", default="voc-mini", help="name of the config of the runs")
    parser.add_argument("--merge", action="store_true", help="every run averages its maps with those of the others")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    shared = ["--set", f"data.root={given.data}"]
    if given.weights:
        shared += ["--set", f"classifier.weights={given.weights}", "--set", f"segmenter.weights={given.weights}"]
    if given.merge:
        for seed in given.seeds:  # all maps first; without the CRF, as their own labels are not wanted
            alone = options(seed, given.config, shared, given.output / f"{given.config}-{seed}")
            cam_pipeline("train-cls", *alone)
            cam_pipeline("make-cams", *alone, "--set", "refine.crf=false")
    others = {seed: [other for other in given.seeds if given.merge and other != seed] for seed in given.seeds}
    results = [one_seed(seed, given.config, shared, given.output, others[seed]) for seed in given.seeds]
    print("\n| figure (%) | " + " | ".join(f"seed {seed}" for seed in given.seeds) + " | mean | spread |")
    print("|---|" + "---|" * (len(results) + 2))
    for name in results[0]:
        values = [result[name] for result in results]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cells = [f"{value:.1f}" for value in [*values, statistics.mean(values), spread]]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

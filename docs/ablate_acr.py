"""Repeat the ACR table of docs/results/acr.md on voc-mini: what each part of the method is worth.

Every row is a classifier trained for the same number of steps over the trunk of a finished voc-mini run of its seed
(`make reproduce-voc-mini`); its readouts come from one pass over the images. Trainings are cached like any other.

    python docs/ablate_acr.py --data voc-mini [--rows a e] [--seeds 0 1 2] [--split val] [--every 2]
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from cam_pipeline.assembly.classifier import load_classifier
from cam_pipeline.cams.classes import class_ranks
from cam_pipeline.cams.views import scaled_views
from cam_pipeline.config import Config, load_config
from cam_pipeline.data.loading import grid_batches
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.table import Table
from cam_pipeline.evaluation.confusions import target_labels, with_masks
from cam_pipeline.machine.device import autocast
from cam_pipeline.models.attention import AttentionTap
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.ops.acr import class_token_map, propagate_attention
from cam_pipeline.ops.cam import cam_scores, classifier_cam, place_view
from cam_pipeline.ops.metrics import confusions_from_histogram, mean_iou, threshold_histogram
from cam_pipeline.refinement.scores import THRESHOLDS

ROWS = {
    "a": ("objectives.acr=false", "classifier.pooling=patches", "cam.source=classifier_weights"),
    "b": ("acr.activation_weight=0.0", "acr.affinity_weight=0.0"),
    "c": ("acr.affinity_weight=0.0",),
    "d": ("acr.activation_weight=0.0",),
    "e": (),
}
TITLES = {
    "a": "classification on pooled patch tokens",
    "b": "class token, both views, no consistency",
    "c": "+ activation",
    "d": "+ affinity",
    "e": "both",
}
MODES = ("grad", "cam_grad", "cam_grad_s")
STEPS = (0, 1, 6)
"""How many times maps are propagated: not, as in the paper, and as was best on `val`."""
BATCH = 8


def train(row: str, seed: int, given: argparse.Namespace) -> Path:
    """The run folder of a row's classifier."""
    folder: Path = given.output / f"voc-mini-acr-{row}-{seed}"
    trunk = given.output / f"voc-mini-{seed}" / "classifier.safetensors"
    settings = (
        f"data.root={given.data}",
        f"classifier.trunk_weights={trunk}",
        f"run.seed={seed}",
        f"output.dir={folder}",
        *ROWS[row],
        *given.set,
    )
    words = ["train-cls", "-c", "voc-mini-acr", *(word for setting in settings for word in ("--set", setting))]
    print("$ cam-pipeline", *words, flush=True)
    subprocess.run([sys.executable, "-m", "cam_pipeline.cli", *words], check=True)
    return folder


def view_readouts(classifier: Classifier, images: Tensor, class_ids: list[tuple[int, ...]]) -> dict[str, Tensor]:
    """Raw maps (B, C, h, w) of one view for every readout, from one forward pass."""
    p, with_gradient = classifier.prefix_tokens, classifier.pooling == "class_token"
    tokens = classifier.backbone.patch_embed
    # The graph begins at the tokens: what the trunk made of the image needs none.
    leaf = tokens.register_forward_hook(lambda module, inputs, out: out.detach().requires_grad_())  # type: ignore[union-attr]
    try:
        with torch.enable_grad(), AttentionTap(classifier, heads=True) as tap:
            features, logits = classifier(images)
            attentions = tap.take()
    finally:
        leaf.remove()
    affinity = torch.stack([attention.detach().float().mean(dim=1) for attention in attentions]).mean(dim=0)[:, p:, p:]
    raw: dict[str, Tensor] = {}
    if with_gradient:
        ranks = class_ranks(class_ids, images.device)
        raw = {mode: torch.zeros(*logits.shape, *features.shape[-2:]) for mode in MODES}
        for classes in ranks.unbind(dim=1):
            present = (classes >= 0).nonzero().flatten()
            gradients = torch.autograd.grad(logits[present, classes[present]].sum(), attentions, retain_graph=True)
            for mode, maps in raw.items():
                found = class_token_map([one.detach() for one in attentions], list(gradients), mode, p)
                maps[present, classes[present]] = found[present].view(-1, *features.shape[-2:])
    else:
        raw = {"cam": classifier_cam(features.detach(), classifier.head.weight.detach())}
    return {
        f"{mode} x{steps}": propagate_attention(maps.flatten(2).relu(), affinity, steps).view_as(maps)
        for mode, maps in raw.items()
        for steps in STEPS
    }


def batch_readouts(
    classifier: Classifier, images: Tensor, class_ids: list[tuple[int, ...]], config: Config
) -> dict[str, Tensor]:
    """Maps (B, C, h, w) of every readout, summed over scales and flips as `read_maps` does."""
    size = (images.shape[-2] // classifier.stride, images.shape[-1] // classifier.stride)
    total: dict[str, Tensor] = {}
    for view, flipped in scaled_views(images, classifier.stride, config.cam.scales, config.cam.flip):
        with autocast(config.run, images.device):
            found = view_readouts(classifier, view, class_ids)
        for name, maps in found.items():
            placed = place_view(maps, size, classifier.offset, flipped)
            total[name] = total[name] + placed if name in total else placed
    return total


def sweep(folder: Path, split: str, every: int) -> Iterator[tuple[str, float, float]]:
    """Readout, its best mIoU on the masks of `split`, and the background score of that."""
    config = load_config(folder / "config.toml", [f"output.dir={folder}"])
    table: Table = load_table(config.data)
    samples = with_masks(table.split(split), every)
    classifier = load_classifier(config.classifier, folder / "classifier.safetensors", table.classes)
    classifier.requires_grad_(False)
    batches, loaded = grid_batches(
        samples, stride=classifier.stride, max_side=config.cam.max_side, batch_size=BATCH, workers=1
    )
    histograms: dict[str, Tensor] = {}
    for batch, images in zip(batches, loaded, strict=True):
        class_ids = [samples[index].class_ids or () for index in batch]
        for name, maps in batch_readouts(classifier, images, class_ids, config).items():
            for index, ids, cam in zip(batch, class_ids, maps, strict=True):
                if not ids:
                    raise SystemExit(f"image {samples[index].id} shows no class; voc-mini has no such image")
                truth = target_labels(samples[index], table)
                score, channel = cam_scores(cam[[one - 1 for one in ids]], (truth.shape[0], truth.shape[1])).max(dim=0)
                best = torch.tensor(ids)[channel]
                found = threshold_histogram(best, score, truth, THRESHOLDS, 1 + len(table.classes))
                histograms[name] = histograms[name] + found if name in histograms else found
    for name, histogram in histograms.items():
        scores = torch.stack([mean_iou(one) for one in confusions_from_histogram(histogram)])
        yield name, float(scores.max()), float(THRESHOLDS[int(scores.argmax())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of voc-mini")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder of the run folders")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--split", default="train", help="whose masks the maps are compared with, for reporting")
    parser.add_argument("--every", type=int, default=1, help="keep the first of every so many images")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for every training")
    given = parser.parse_args()
    print(f"\nbest background score of each row on {given.split}, every {given.every}: oracle", flush=True)
    for row in given.rows:
        for seed in given.seeds:
            folder = train(row, seed, given)
            history = (folder / "logs" / "train_cls.jsonl").read_text().splitlines()
            quality = json.loads(history[-1])["mAP"]
            for name, value, background in sweep(folder, given.split, given.every):
                print(
                    f"({row}) {TITLES[row]} | seed {seed} | mAP {100 * quality:.1f} | {name} | {100 * value:.1f} "
                    f"at {background:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()

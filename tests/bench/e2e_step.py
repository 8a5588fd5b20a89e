"""A step of the single stage (TSCD) with all its losses, against a plain segmenter's step of the same network.

Hybrid ViT (two blocks of ViT-S on MobileNetV2, stride 16) and MobileNetV2 alone, 16 crops of 256, 20 classes, two of
them in each image, CPU, float32. Steps of all kinds are interleaved, so that all meet the same machine; each is
forward, backward and optimiser as the trainer does them, without loading.
"""

import statistics
import time

import torch

from cam_pipeline.assembly.single_stage import new_single_stage
from cam_pipeline.config import Config
from cam_pipeline.machine.device import keep_freed_memory
from cam_pipeline.models.single_stage import SingleStageSegmenter
from cam_pipeline.training.loss import Loss
from cam_pipeline.training.objectives.classification import ClassificationObjective
from cam_pipeline.training.objectives.segmentation import SegmentationObjective
from cam_pipeline.training.objectives.tscd import TscdObjective
from cam_pipeline.training.optimizer import make_optimizer

IMAGES, CROP, CLASSES, STEPS = 16, 256, 20, 15
TARGET = 2.2
"""Plain steps that a step with all losses may cost."""
HYBRID = {
    "backbone": "vit_small_patch16_224",
    "backbone_args": {"depth": 2, "img_size": CROP},
    "weights": "none",
    "trunk": "mobilenetv2_100",
    "trunk_weights": "none",
    "stride": 16,
}
CNN = {"backbone": "mobilenetv2_100", "weights": "none", "stride": 16}
ALL = {"energy_weight": 0.01}
KINDS: dict[str, dict[str, object]] = {
    "all losses": ALL,
    "all losses, maps of the training pass alone": {**ALL, "map_scales": []},
    "SCD off": {"scd": "off"},
    "as released (mirror images, too)": {**ALL, "scd": "released", "map_flip": True},
}


def main() -> None:
    keep_freed_memory()
    draw = torch.Generator().manual_seed(0)
    labels = torch.zeros(IMAGES, CLASSES)
    for image in range(IMAGES):
        labels[image, torch.randperm(CLASSES, generator=draw)[:2]] = 1
    batch = {
        "image": torch.randint(0, 256, (IMAGES, 3, CROP, CROP), generator=draw, dtype=torch.uint8),
        "index": torch.arange(IMAGES),
        "box": torch.tensor([[0, 0, CROP, CROP]] * IMAGES),
        "labels": labels,
        "mask": torch.randint(0, 1 + CLASSES, (IMAGES, CROP, CROP), generator=draw).to(torch.uint8),
    }
    for title, classifier in (("hybrid ViT", HYBRID), ("MobileNetV2", CNN)):
        losses: dict[str, Loss] = {}
        optimizers = {}
        for kind in ("plain segmenter", *KINDS):
            torch.manual_seed(0)
            config = Config.model_validate({"classifier": classifier, "tscd": KINDS.get(kind, {})})
            network = new_single_stage(config, CLASSES)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if kind in KINDS:
                losses[kind] = Loss(network, [ClassificationObjective(), TscdObjective(network, config)])
            else:
                losses[kind] = Loss(SingleStageSegmenter(network), [SegmentationObjective()])
            optimizers[kind] = make_optimizer(network, config.train_e2e)
        times: dict[str, list[float]] = {kind: [] for kind in losses}
        for turn in range(1 + STEPS):  # the first warms up
            for kind, loss in losses.items():
                started = time.perf_counter()
                loss.train()
                total = loss(batch, 1.0)["loss"]
                optimizers[kind].zero_grad(set_to_none=True)
                total.backward()
                optimizers[kind].step()
                if turn:
                    times[kind].append(time.perf_counter() - started)
        plain = statistics.median(times["plain segmenter"])
        threads = torch.get_num_threads()
        print(f"A single stage's step, {title}, {IMAGES} crops of {CROP}, CPU, {threads} threads, median of {STEPS}")
        for kind, measured in times.items():
            seconds = statistics.median(measured)
            aim = f"   (target: at most {TARGET})" if kind == "all losses" else ""
            print(f"  {kind:44s} {seconds:7.3f} s = {seconds / plain:.2f} plain steps{aim}")


if __name__ == "__main__":
    main()

"""A segmenter's training step with Self-Regulation's exits, and with the other switches, against a plain one.

DeepLabV3+ on MobileNetV2 at stride 16, 16 crops of 256, 21 labels, CPU, float32. Steps of all kinds are interleaved, so
that all meet the same machine; each is forward, backward and optimiser as the trainer does them, without loading.
"""

import statistics
import time

import numpy as np
import torch

from cam_pipeline.config import Config
from cam_pipeline.data.augment import Colors, recolored
from cam_pipeline.machine.device import keep_freed_memory
from cam_pipeline.models.segmenter import build_segmenter
from cam_pipeline.training.loss import Loss
from cam_pipeline.training.objectives import segmenter_objectives
from cam_pipeline.training.optimizer import make_optimizer

IMAGES, CROP, LABELS, STEPS = 16, 256, 21, 15
KINDS = {
    "plain": ({}, 1.0),
    "exits, light, from stride 4": ({"segmenter": {"self_regulation": True}}, 1.15),
    "exits, light, from stride 2": (
        {"segmenter": {"self_regulation": True}, "self_regulation": {"shallowest_stride": 2}},
        1.25,
    ),
    "average, balance, clip, confidence": (
        {"train_seg": {"average": 0.999, "balance": True, "clip_losses": True, "confidence_power": 4.0}},
        1.1,
    ),
    "the same, neighbours": (
        {
            "train_seg": {
                "average": 0.999,
                "balance": True,
                "clip_losses": True,
                "confidence_power": 4.0,
                "potts": 0.1,
            }
        },
        1.1,
    ),
    "soft labels, neighbours, average": (
        {"train_seg": {"average": 0.999, "soft_labels": True, "potts": 0.1}},
        1.1,
    ),
    "EMA teacher": ({"train_seg": {"teacher": True}, "teacher": {"start": 0.0, "ramp": 0.0}}, None),
    "DFR-style": ({"segmenter": {"regularizer": "dfr"}, "dfr": {"start": 0.0}}, None),
}
"""Settings of each kind, and how many plain steps a step may cost; None: told, without an aim."""


def trained(settings: dict[str, object]) -> tuple[Loss, torch.optim.Optimizer, list[object]]:
    torch.manual_seed(0)
    config = Config.model_validate(settings)
    segmenter = build_segmenter("deeplabv3plus", "mobilenetv2_100", LABELS)
    objectives = segmenter_objectives(segmenter, config, torch.zeros(IMAGES, LABELS - 1))
    segmenter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Loss(segmenter, objectives), make_optimizer(segmenter, config.train_seg), objectives  # type: ignore[return-value]


def main() -> None:
    keep_freed_memory()
    draw = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randint(0, 256, (IMAGES, 3, CROP, CROP), generator=draw, dtype=torch.uint8),
        "index": torch.arange(IMAGES),
        "box": torch.tensor([[0, 0, CROP, CROP]] * IMAGES),
        "confidence": torch.full((IMAGES, CROP, CROP), 250, dtype=torch.uint8),
        "scores": torch.randint(0, 256, (IMAGES, LABELS, CROP, CROP), generator=draw, dtype=torch.uint8),
        "mask": torch.randint(0, LABELS, (IMAGES, CROP, CROP), generator=draw).to(torch.uint8),
    }
    kinds = {name: trained(settings) for name, (settings, _) in KINDS.items()}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(1 + STEPS):  # the first warms up
        for name, (loss, optimizer, objectives) in kinds.items():
            started = time.perf_counter()
            loss.train()
            total = loss(batch, 1.0)["loss"]
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            for objective in objectives:
                objective.after_step()  # type: ignore[attr-defined]
            if turn:
                times[name].append(time.perf_counter() - started)
    print(f"A segmenter's step, {IMAGES} crops of {CROP}, CPU, {torch.get_num_threads()} threads, median of {STEPS}")
    plain = statistics.median(times["plain"])
    for name, (_, target) in KINDS.items():
        seconds = statistics.median(times[name])
        aim = f"   (target: at most {target})" if target not in (1.0, None) else ""
        print(f"  {name:36s} {seconds:7.3f} s = {seconds / plain:.2f} plain steps{aim}")
    views = [(256 * torch.rand(3, CROP, CROP, generator=draw)).to(torch.uint8) for _ in range(IMAGES)]
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    for view in views:
        recolored(view, Colors(0.4, 0.2, 0.5), rng)
    seconds = time.perf_counter() - started
    print(f"  other colours of {IMAGES} views        {seconds:7.3f} s = {seconds / plain:.2f} plain steps")


if __name__ == "__main__":
    main()

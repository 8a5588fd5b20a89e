"""A training step with SFC against a plain one: time, and the memory at its peak.

MobileNetV2 at stride 16, crops of 256: 16 images against 16 and 4 from the bank. Steps alternate, so that both meet the
same machine; each is forward, backward and optimiser as the trainer does them, without loading. The peaks are those of
processes of their own.
"""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from cam_pipeline.config import Config
from cam_pipeline.machine.device import autocast, keep_freed_memory
from cam_pipeline.models.classifier import build_classifier
from cam_pipeline.models.placing import place
from cam_pipeline.training.loss import Loss, mean_over_processes
from cam_pipeline.training.objectives import classifier_objectives
from cam_pipeline.training.optimizer import make_optimizer

CLASSES, CROP, STEPS = 20, 256, 15
PRECISION = "float32"  # any CPU has it; in bfloat16 the convolutions take a smaller share
IMAGES = {"plain": 16, "SFC": 20}


def training(name: str) -> Callable[[], float]:
    """A function that makes one step and gives its seconds."""
    torch.manual_seed(0)
    device, count = torch.device("cpu"), IMAGES[name]
    config = Config.model_validate({"objectives": {"sfc": name == "SFC"}, "run": {"precision": PRECISION}})
    classifier = build_classifier(
        "mobilenetv2_100", CLASSES, arguments={"pad_type": "same"}, stride=16, freeze_batch_norm=True
    )
    labels = (torch.rand(count, CLASSES) < 0.08).float()
    loss = Loss(classifier, classifier_objectives(classifier, config, labels))
    place(classifier, device)
    classifier.train()
    optimizer = make_optimizer(classifier, config.train_cls)
    images = torch.randint(0, 256, (count, 3, CROP, CROP), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    boxes = torch.tensor([[0, 0, CROP, CROP]] * count)
    batch = {"image": images, "index": torch.arange(count), "labels": labels, "box": boxes}

    def step() -> float:
        started = time.perf_counter()
        with autocast(config.run, device):
            terms = loss(batch, 1.0)
        mean_over_processes(terms)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        optimizer.step()
        return time.perf_counter() - started

    return step


def peak_memory(name: str, answer: Connection) -> None:
    """MiB that two steps add to what a process holds before them."""
    keep_freed_memory()
    step = training(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(), step()
    answer.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def peaks() -> dict[str, float]:
    """The peak of each, in a process of its own."""
    context, found = multiprocessing.get_context("spawn"), {}
    for name in IMAGES:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=peak_memory, args=(name, sender))
        process.start()
        found[name] = receiver.recv()
        process.join()
    return found


def main() -> None:
    memory = peaks()
    keep_freed_memory()
    steps = {name: training(name) for name in IMAGES}
    times: dict[str, list[float]] = {name: [] for name in IMAGES}
    for turn in range(1 + STEPS):  # the first warms up
        for name, step in steps.items():
            took = step()
            if turn:
                times[name].append(took)
    plain, ours = (statistics.median(times[name]) for name in IMAGES)
    print(f"SFC training step, mobilenetv2_100 at stride 16, crop {CROP}, {PRECISION},")
    print(f"{torch.get_num_threads()} threads, median of {STEPS}")
    for name, count in IMAGES.items():
        print(
            f"  {name:5s} {count} images {statistics.median(times[name]):7.3f} s, peak memory {memory[name]:6.0f} MiB"
        )
    print(f"  SFC / plain {ours / plain:12.2f}   (target: at most 1.8)")


if __name__ == "__main__":
    main()

"""Local refinement: time and memory against a reference that gathers the 48 neighbours of every score.

One image of 256 x 256 with 6 score maps, 10 iterations of the default kernel, on one CPU thread. The reference has the
same weights and in each iteration one tensor (B, K, 48, H, W), which it multiplies in place. The two alternate, so that
both meet the same machine; memory is the peak of a process of its own beyond what it held with the inputs (Linux only).
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from cam_pipeline.ops.refine import DILATIONS, local_refine, neighbor_weights

SIZE, CHANNELS, ITERATIONS, ROUNDS = 256, 6, 10, 5


def gathering(image: Tensor, scores: Tensor) -> Tensor:
    """What `local_refine` computes, with all neighbours side by side."""
    weights = neighbor_weights(image, "varm").unsqueeze(1)
    height, width = scores.shape[2:]
    compass = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    places = [(24 + y * d, 24 + x * d) for d in DILATIONS for y, x in compass]
    for _ in range(ITERATIONS):
        padded = functional.pad(scores, (24, 24, 24, 24), mode="replicate")
        windows = [padded[..., y : y + height, x : x + width] for y, x in places]
        scores = torch.stack(windows, dim=2).mul_(weights).sum(dim=2)
    return scores


def streaming(image: Tensor, scores: Tensor) -> Tensor:
    return local_refine(image, scores, "varm", ITERATIONS)


SIDES = {"streaming": streaming, "gathering": gathering}


def inputs(size: int = SIZE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 9, 9, generator=generator)
    image = functional.interpolate(coarse, size=(size, size), mode="bilinear")
    image = (image + 0.02 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    return image, torch.rand(1, CHANNELS, size, size, generator=generator).softmax(dim=1)


def status(field: str) -> float:
    """MiB of one field of the process's memory report."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def print_peak(name: str) -> None:
    """In a process of its own: MiB that one call takes beyond what is held before it."""
    torch.set_num_threads(1)
    SIDES[name](*inputs(32))  # what the first call loads is not the call's
    given = inputs()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    held = status("VmRSS")
    SIDES[name](*given)
    print(status("VmHWM") - held)


def peak(name: str) -> float:
    # Freed memory goes back at once, so that none from before hides what the call takes.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    command = [sys.executable, __file__, name]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    torch.set_num_threads(1)
    image, scores = inputs()
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    results = {}
    for turn in range(1 + ROUNDS):  # the first round warms up
        for name, refine in SIDES.items():
            started = time.perf_counter()
            results[name] = refine(image, scores)
            if turn:
                times[name].append(time.perf_counter() - started)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    print(f"Local refinement, {SIZE} x {SIZE}, {CHANNELS} channels, {ITERATIONS} iterations,", end=" ")
    print(f"CPU, 1 thread, median of {ROUNDS}")
    for name in SIDES:
        print(f"  {name:42s} {seconds[name]:7.3f} s")
    print(f"  gathering / streaming {seconds['gathering'] / seconds['streaming']:26.2f}   (target: at least 2)")
    if sys.platform == "linux":
        peaks = {name: peak(name) for name in SIDES}
        for name in SIDES:
            print(f"  {name + ', peak beyond the inputs':42s} {peaks[name]:7.1f} MiB")
        print(f"  streaming / gathering {peaks['streaming'] / peaks['gathering']:26.2f}   (target: at most 0.2)")
    difference = float((results["streaming"] - results["gathering"]).abs().max())
    print(f"  largest difference of the two sides' scores: {difference:.1e}   (target: at most 1e-5)")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print_peak(sys.argv[1])
    else:
        main()

"""Dense CRF: the backend torch against pydensecrf, time and memory of one image.

Drawn scenes with a smooth change of light, so that neighbouring pixels differ as in photographs. Scores are smooth
random fields. The sides alternate, so that both meet the same machine; a time is the least of ROUNDS. Memory is the
peak of a process of its own beyond what it held with the inputs (Linux only).
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from local_refine import status
from torch import Tensor
from torch.nn import functional

from cam_pipeline.data.demo.scenes import draw_scene
from cam_pipeline.ops.crf import dense_crf
from cam_pipeline.ops.mean_field import _appearance, _smoothness

BACKENDS = ("pydensecrf", "torch")
SIZES = ((240, 320), (375, 500))
ROUNDS, IMAGES = 3, 3
AT_MOST = {(3, 1): 1.3, (21, 1): 1.5, (81, 1): 1.5, (3, 2): 0.8}
"""Targets, torch / pydensecrf, by channels and threads."""


def inputs(size: tuple[int, int], channels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Image (H, W, 3) uint8 and probabilities (channels, H, W)."""
    image, _ = draw_scene(np.random.default_rng(seed), (1, 2, 3), size)
    draw = torch.Generator().manual_seed(seed)
    coarse = 1.5 * torch.randn(1, channels, 6, 8, generator=draw)
    scores = functional.interpolate(coarse, size, mode="bicubic")[0].softmax(dim=0)
    return torch.from_numpy(image), scores


def seconds(size: tuple[int, int], channels: int) -> dict[str, float]:
    """Seconds an image with each backend: the median over images of the least of some."""
    least: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    for seed in range(IMAGES):
        image, probabilities = inputs(size, channels, seed)
        found = dict.fromkeys(BACKENDS, float("inf"))
        for _ in range(ROUNDS):
            for backend in BACKENDS:
                started = time.perf_counter()
                dense_crf(image, probabilities, backend=backend)
                found[backend] = min(found[backend], time.perf_counter() - started)
        for backend in BACKENDS:
            least[backend].append(found[backend])
    return {backend: statistics.median(values) for backend, values in least.items()}


def print_parts(size: tuple[int, int], channels: int) -> None:
    """Milliseconds of the parts of torch's backend."""
    image, probabilities = inputs(size, channels)
    values = probabilities.flatten(1).t().contiguous()
    appearance = _appearance(image[None], 10.0, 50.0, 5.0)
    smoothness = _smoothness(1, *size, 3.0, 3.0, image.device)
    at_points = appearance.splat @ values
    ones = torch.ones(channels, 1)

    def softmax() -> None:
        energy = values.clone().exp_()
        energy /= energy @ ones

    parts = {
        "lattice": lambda: _appearance(image[None], 10.0, 50.0, 5.0),
        "splat": lambda: appearance.splat @ values,
        "blur": lambda: appearance.blurred(at_points),
        "slice": lambda: appearance.slices @ at_points,
        "smoothness": lambda: smoothness(values),
        "softmax": softmax,
    }
    figures = []
    for name, part in parts.items():
        times = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            part()
            times.append(time.perf_counter() - started)
        figures.append(f"{name} {1000 * min(times):.1f}")
    print(f"    ms: {', '.join(figures)} (all but the lattice ten times)")


def print_peak(backend: str, height: int, width: int, channels: int) -> None:
    """Print the MiB that one call takes beyond what the process held before."""
    torch.set_num_threads(1)
    dense_crf(*inputs((8, 8), 2), backend=backend)  # type: ignore[call-overload]
    image, probabilities = inputs((height, width), channels)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    held = status("VmRSS")
    dense_crf(image, probabilities, backend=backend)  # type: ignore[call-overload]
    print(status("VmHWM") - held)


def peak(backend: str, size: tuple[int, int], channels: int) -> float:
    """MiB that one call takes, measured in a process of its own."""
    # Freed memory goes back at once, so that none from before hides what the call takes.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, backend, *map(str, size), str(channels)]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    print(f"Dense CRF, torch against pydensecrf, CPU: seconds an image (median of {IMAGES}, least of {ROUNDS}), MiB")
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for size in SIZES:
            for channels in (3, 21, 81):
                found = seconds(size, channels)
                ratio = found["torch"] / found["pydensecrf"]
                target = AT_MOST.get((channels, threads))
                memory = ""
                if threads == 1 and Path("/proc/self/clear_refs").exists():
                    memory = ", MiB " + " / ".join(f"{peak(one, size, channels):.0f}" for one in reversed(BACKENDS))
                print(
                    f"  {threads} thread{'s' if threads > 1 else ' '} {size[0]} x {size[1]} {channels:2d} channels: "
                    f"{found['torch']:.3f} / {found['pydensecrf']:.3f} s = {ratio:.2f}{memory}"
                    + (f"   (target: at most {target})" if target else "")
                )
                if target and ratio > target:
                    print_parts(size, channels)
    torch.set_num_threads(before)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print_peak(sys.argv[1], *map(int, sys.argv[2:]))
    else:
        main()

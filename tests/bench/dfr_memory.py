"""The regularised loss in the style of DFR: peak memory and time of its backends, forward and backward.

One image of 512 x 512 pixels, 21 classes, a window of 11 x 11: an unfold of the probabilities alone would take 2.5 GiB.
With colour and place alone, and with 64 channels of features beside them. Each is measured in processes of their own
with one thread: memory is the peak beyond what the process held with the inputs (Linux only), time the least of ROUNDS.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from local_refine import status

from cam_pipeline.ops.dfr import regularized_loss

SIDE, CLASSES, RADIUS, CHANNELS = 512, 21, 5, 64
ROUNDS = 3
AT_MOST = 500
"""MiB."""


def measure(backend: str, side: int, channels: int, rounds: int) -> None:
    """Print the MiB and the seconds of one loss and its gradient."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)

    def step(side: int) -> tuple[float, float]:
        probabilities = torch.randn(1, CLASSES, side, side, generator=draw).softmax(dim=1).requires_grad_()
        image = 0.1 * torch.randn(1, 3, side, side, generator=draw)
        features = torch.randn(1, channels, side, side, generator=draw) if channels else None
        beta = 0.5 if channels else 0.0
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
        held, started = status("VmRSS"), time.perf_counter()
        regularized_loss(probabilities, image, features, RADIUS, beta, backend=backend).backward()
        return status("VmHWM") - held, time.perf_counter() - started

    step(16)  # loads what torch loads late
    found = [step(side) for _ in range(rounds)]
    print(max(memory for memory, _ in found), min(seconds for _, seconds in found))


def measured(backend: str, side: int, channels: int) -> tuple[float, float]:
    """MiB and seconds, each measured in a process of its own."""
    # Freed memory goes back at once, so that none from before hides what the loss takes; that costs time.
    frugal = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    memory, _ = in_a_process(backend, side, channels, 1, frugal)
    _, seconds = in_a_process(backend, side, channels, ROUNDS, {})
    return memory, seconds


def in_a_process(backend: str, side: int, channels: int, rounds: int, more: dict[str, str]) -> tuple[float, float]:
    """What `measure` prints in a process with `more` in its environment."""
    command = [sys.executable, __file__, backend, *map(str, (side, channels, rounds))]
    printed = subprocess.run(command, env=os.environ | more, check=True, capture_output=True, text=True).stdout
    memory, seconds = map(float, printed.split())
    return memory, seconds


def main() -> None:
    if not Path("/proc/self/clear_refs").exists():
        print("Regularised loss: memory is measured on Linux alone")
        return
    unfold = CLASSES * (2 * RADIUS + 1) ** 2 * SIDE**2 * 4 / 2**20
    print(
        f"Regularised loss, {CLASSES} classes, window {2 * RADIUS + 1} x {2 * RADIUS + 1}, CPU, 1 thread, forward and "
        f"backward (an unfold of the probabilities at {SIDE} x {SIDE} would take {unfold:.0f} MiB)"
    )
    for channels in (0, CHANNELS):
        for side in (SIDE // 4, SIDE):
            for backend in ("loop", "quad"):
                memory, seconds = measured(backend, side, channels)
                target = f"   (target: at most {AT_MOST} MiB)" if side == SIDE else ""
                print(
                    f"  {backend} {side} x {side}, {channels:2d} features: {memory:4.0f} MiB, {seconds:.2f} s{target}"
                )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], *map(int, sys.argv[2:]))
    else:
        main()

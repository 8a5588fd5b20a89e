"""How to compute: device, precision, memory layout, number of processes."""

import ctypes
import os

import torch
from torch import Tensor, nn

from cam_pipeline.config import RunSettings
from cam_pipeline.errors import ConfigError


def pick_device(run: RunSettings) -> torch.device:
    """The device of `run.device`. Raises ConfigError for CUDA without CUDA: there is no silent fall-back."""
    if run.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(run.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"run.device = '{run.device}', but torch finds {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return device


def autocast(run: RunSettings, device: torch.device) -> torch.autocast:
    """bfloat16 autocast when `run.precision` asks for it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=run.precision == "bfloat16")


def place(network: nn.Module, device: torch.device) -> None:
    """Move a network to its device, in the memory layout in which convolutions are fastest (channels last)."""
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def image_batch(images: Tensor, device: torch.device) -> Tensor:
    """Images (B, 3, H, W) on the device, channels last in memory."""
    return images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)


def keep_freed_memory() -> None:
    """Have glibc keep the large blocks that a step frees, so that the next step does not wait for cleared pages.

    By default each activation map is mapped and unmapped anew: a quarter of the time of a training step on the CPU.
    Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no block gets a mapping of its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: free memory at the top of the heap is not given back


def worker_count(run: RunSettings) -> int:
    """Number of worker processes: as asked, else one for each core, at most 8."""
    return run.workers or min(os.cpu_count() or 1, 8)

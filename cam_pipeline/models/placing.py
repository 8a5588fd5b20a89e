"""Device and memory layout of networks and images."""

import torch
from torch import Tensor, nn

from cam_pipeline.models.depthwise import keep_depthwise_in_float32


def place(network: nn.Module, device: torch.device) -> None:
    """Move a network to a device, channels last in memory, which is fast; on the CPU see also `models.depthwise`."""
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu":
        keep_depthwise_in_float32(network)


def image_batch(images: Tensor, device: torch.device) -> Tensor:
    """Images (B, 3, H, W) on the device, channels last in memory."""
    return images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)

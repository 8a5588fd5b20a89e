"""Where a network and its images lie: device and memory layout."""

import torch
from torch import Tensor, nn

from cam_pipeline.models.depthwise import keep_depthwise_in_float32


def place(network: nn.Module, device: torch.device) -> None:
    """Move a network to its device, and make it fast there: channels last in memory, see also `models.depthwise`."""
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu":
        keep_depthwise_in_float32(network)


def image_batch(images: Tensor, device: torch.device) -> Tensor:
    """Images (B, 3, H, W) on the device, channels last in memory."""
    return images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)

"""A faster backward pass for the depthwise convolutions of mobile networks on the CPU."""

import torch
from torch import Tensor, nn


def keep_depthwise_in_float32(network: nn.Module) -> None:
    """Let depthwise convolutions with a stride or dilation compute in float32 while training under autocast.

    On the CPU their bfloat16 backward pass takes three to five times as long as the float32 one (oneDNN of torch 2.13):
    a third of a MobileNetV2's training step. Outputs have the dtype of the inputs. Nothing changes without gradients,
    without autocast and for other convolutions. A second call has no effect.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and _is_slow(module) and not isinstance(module, _InFloat32):
            own = type(module)  # timm's convolutions have a `forward` of their own
            module.__class__ = type(f"Float32{own.__name__}", (_InFloat32, own), {})


def _is_slow(convolution: nn.Conv2d) -> bool:
    depthwise = convolution.groups == convolution.in_channels > 1
    return depthwise and (max(convolution.stride) > 1 or max(convolution.dilation) > 1)


class _InFloat32(nn.Module):
    """Mixed in before the class of a convolution."""

    def forward(self, images: Tensor) -> Tensor:
        convolved: Tensor
        if not (torch.is_grad_enabled() and torch.is_autocast_enabled(images.device.type)):
            convolved = super().forward(images)
            return convolved
        with torch.autocast(images.device.type, enabled=False):
            convolved = super().forward(images.float())
        return convolved.to(images.dtype)

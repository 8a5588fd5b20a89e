"""BatchNorm over the batches of all processes, so that a network learns the same however many processes there are.

torch's SyncBatchNorm does this on GPUs only, and not for timm's layers that end in an activation.
"""

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


def share_batch_norm(network: nn.Module) -> None:
    """Let BatchNorm layers in training mode use the statistics of all processes of the default group.

    Batches may differ in size. Layers in evaluation mode, frozen ones among them, work as before.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.forward = partial(_forward, module, module.forward)  # type: ignore[method-assign]


def _forward(module: Any, alone: Any, images: Tensor) -> Tensor:
    """The forward pass of a BatchNorm layer on images (B, C, ...); `alone` is its own, for one process."""
    if not module.training:
        out: Tensor = alone(images)
        return out
    mean, variance, count = _statistics(images)
    if module.track_running_stats:
        _remember(module, mean, variance * count / (count - 1).clamp_min(1))
    out = _Normalise.apply(images, module.weight, module.bias, mean, variance, module.eps, count)
    return module.act(module.drop(out)) if hasattr(module, "act") else out  # timm's BatchNormAct2d


@torch.no_grad()
def _statistics(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (C,) over the images of all processes, and () the number of values in a channel."""
    axes = [0, *range(2, images.dim())]
    own = images.float().sum(axes)
    total = _sum_over_processes(torch.cat([own, own.new_tensor([images.numel() // images.shape[1]])]))
    count = total[-1]  # float32 counts exactly up to 16 million
    mean = total[:-1] / count
    deviations = images.float() - _per_channel(mean, images)
    return mean, _sum_over_processes(deviations.square().sum(axes)) / count, count


@torch.no_grad()
def _remember(module: Any, mean: Tensor, variance: Tensor) -> None:
    module.num_batches_tracked += 1
    factor = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
    module.running_mean.lerp_(mean.to(module.running_mean.dtype), factor)
    module.running_var.lerp_(variance.to(module.running_var.dtype), factor)


class _Normalise(torch.autograd.Function):
    """(images - mean) / sqrt(variance + eps) * weight + bias; mean and variance depend on the images, too."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        count: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(images, weight, mean, (variance + eps).rsqrt(), count)
        return F.batch_norm(images, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, mean, inverse, count = ctx.saved_tensors
        axes = [0, *range(2, images.dim())]
        normalised = (images.float() - _per_channel(mean, images)) * _per_channel(inverse, images)
        own = torch.stack([gradient.float().sum(axes), (gradient.float() * normalised).sum(axes)])
        mean_gradient, mean_product = _sum_over_processes(own.clone()) / count
        scale = inverse if weight is None else inverse * weight
        to_images = gradient - _per_channel(mean_gradient, images) - normalised * _per_channel(mean_product, images)
        to_images = (to_images * _per_channel(scale, images)).to(images.dtype)
        to_weight, to_bias = (None, None) if weight is None else (own[1], own[0])
        return to_images, to_weight, to_bias, None, None, None, None


def _per_channel(values: Tensor, images: Tensor) -> Tensor:
    return values.view(-1, *[1] * (images.dim() - 2))


def _sum_over_processes(values: Tensor) -> Tensor:
    dist.all_reduce(values)
    return values

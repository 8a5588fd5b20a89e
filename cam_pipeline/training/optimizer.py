"""The optimiser and the schedule of its learning rates."""

import math

import torch
from torch import nn

from cam_pipeline.config import TrainSettings
from cam_pipeline.models.pretrained import PretrainedHalf


def learning_rate_factor(step: int, total: int, settings: TrainSettings) -> float:
    """Linear warm-up over the first `warmup` share of the steps, times what `schedule` leaves of the rate."""
    warm = settings.warmup * total
    rise = min(1.0, (step + 1) / warm) if warm >= 1 else 1.0
    if settings.schedule == "cosine":
        return rise * (1 + math.cos(math.pi * step / total)) / 2
    return float(rise * (1 - step / total) ** settings.poly_power)


def make_optimizer(network: PretrainedHalf, settings: TrainSettings) -> torch.optim.Optimizer:
    """SGD or AdamW. New layers learn at `head_lr_factor` times the rate; norms and biases have no weight decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter, factor in network.learning_rate_factors(settings.head_lr_factor):
        if parameter.requires_grad:
            lr = settings.lr * factor
            decay = settings.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    described = [
        {"params": tensors, "lr": lr, "base_lr": lr, "weight_decay": decay} for (lr, decay), tensors in groups.items()
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(described, betas=(settings.momentum, 0.999))
    return torch.optim.SGD(described, lr=settings.lr, momentum=settings.momentum)

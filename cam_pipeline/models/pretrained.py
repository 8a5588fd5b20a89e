"""Networks with a pretrained half: input statistics, frozen BatchNorm, learning rates of new layers."""

import hashlib
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

Rgb = tuple[float, float, float]


class Normalize(nn.Module):
    """Images (B, 3, H, W), uint8 or float in 0..1 -> (image - mean) / std. Both are stored with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        unit = images.float() / 255 if images.dtype == torch.uint8 else images
        return (unit - self.mean) / self.std

    @property
    def fill(self) -> tuple[int, int, int]:
        """The colour (0..255) that becomes zero: pad images with it."""
        red, green, blue = (round(value * 255) for value in self.mean.flatten().tolist())
        return red, green, blue


class PretrainedHalf(nn.Module):
    """Base class of networks with a pretrained half, whose BatchNorm statistics can stay as loaded in training."""

    freeze_batch_norm = False

    def pretrained_half(self) -> nn.Module:
        """The part that may have pretrained weights; the rest is new and learns faster."""
        raise NotImplementedError

    def learning_rate_factors(self, new_layers: float) -> Iterator[tuple[nn.Parameter, float]]:
        """Every parameter with its multiple of the learning rate: 1 in the pretrained half, `new_layers` elsewhere."""
        pretrained = {id(parameter) for parameter in self.pretrained_half().parameters()}
        for parameter in self.parameters():
            yield parameter, 1.0 if id(parameter) in pretrained else new_layers

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but frozen BatchNorm keeps its statistics; its scale and shift still learn."""
        super().train(mode)
        for module in self.pretrained_half().modules() if self.freeze_batch_norm else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def default_statistics(backbone: nn.Module) -> tuple[Rgb, Rgb]:
    """Mean and standard deviation of a model's input, from timm's data config."""
    data: Any = backbone.pretrained_cfg
    return tuple(data["mean"]), tuple(data["std"])


def feature_width(backbone: nn.Module) -> int:
    """Channels of the feature map (timm: `num_features`)."""
    return int(backbone.num_features)  # type: ignore[arg-type]


def starting_weights(network: PretrainedHalf) -> dict[str, str]:
    """What the pretrained half starts from: timm's names of the models in it, and the SHA-256 of its tensors as loaded.

    A name alone does not say it: timm has changed the weights behind a name.
    """
    half = network.pretrained_half()
    named = [getattr(module, "pretrained_cfg", None) for module in half.modules()]
    configs = [vars(one) if hasattr(one, "tag") else one for one in named if one]
    names = [f"{one.get('architecture', '')}.{one.get('tag', '')}".strip(".") for one in configs]
    total = hashlib.sha256()
    for key, value in half.state_dict().items():
        total.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {"names": ", ".join(dict.fromkeys(filter(None, names))), "sha256": total.hexdigest()}

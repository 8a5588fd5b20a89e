"""One adapter over every timm backbone: feature map, image logits, and the number of prefix tokens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from cam_pipeline.errors import ConfigError
from cam_pipeline.models.stride import cell_offset, reduce_stride
from cam_pipeline.models.weights import UnknownArgument, create_timm, load_backbone

Rgb = tuple[float, float, float]


class ClassifierOutput(NamedTuple):
    """`features` (B, D, h, w); `logits` (B, C), before the sigmoid."""

    features: Tensor
    logits: Tensor


class Normalize(nn.Module):
    """(B, 3, H, W) uint8 or float in 0..1 -> float, minus mean over std. The statistics travel with the weights."""

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
        """The colour (0..255) that becomes zero: what to pad with."""
        red, green, blue = (round(value * 255) for value in self.mean.flatten().tolist())
        return red, green, blue


class PretrainedHalf(nn.Module):
    """Base of networks with a pretrained half, whose BatchNorm statistics can stay as loaded while the rest trains."""

    freeze_batch_norm = False

    def pretrained_half(self) -> nn.Module:
        """The part that came with weights; the rest is new and learns faster."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but frozen BatchNorm keeps its statistics; its scale and shift still learn."""
        super().train(mode)
        for module in self.pretrained_half().modules() if self.freeze_batch_norm else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


class Classifier(PretrainedHalf):
    """A timm backbone with a linear classifier on its average-pooled feature map.

    `head.weight` is (C, D); a class's activation map is its row applied to every cell, so logits are the maps' means.
    `prefix_tokens` is the number of non-patch tokens of a transformer, 0 for a CNN; `stride` input pixels per cell;
    `offset` by how many cells their centres lie right of and below an even division of the image (`cell_offset`).
    """

    def __init__(self, backbone: nn.Module, num_classes: int, stride: int, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.backbone = backbone
        self.prefix_tokens = int(getattr(backbone, "num_prefix_tokens", 0))
        self.stride = stride
        self.offset = cell_offset(backbone, stride) / stride
        self.width = feature_width(backbone)
        self.head = nn.Linear(self.width, num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=0.01)

    def pretrained_half(self) -> nn.Module:
        return self.backbone

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 or float in 0..1, sides multiples of the stride -> (B, D, H / stride, W / stride)."""
        out: Tensor = self.backbone.forward_features(self.normalize(images))  # type: ignore[operator]
        if out.dim() == 3:  # tokens (B, p + N, D)
            rows, columns = images.shape[-2] // self.stride, images.shape[-1] // self.stride
            patches = out[:, self.prefix_tokens :].transpose(1, 2)
            return patches.reshape(*patches.shape[:2], rows, columns)
        return out if out.shape[1] == self.width else out.permute(0, 3, 1, 2)  # some models put channels last

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Features and logits of images (B, 3, H, W), as `features` takes them."""
        features = self.features(images)
        return ClassifierOutput(features, self.head(features.mean(dim=(2, 3))))


def default_statistics(backbone: nn.Module) -> tuple[Rgb, Rgb]:
    """Mean and standard deviation of the input that timm's data config states for a model."""
    data: Any = backbone.pretrained_cfg
    return tuple(data["mean"]), tuple(data["std"])


def feature_width(backbone: nn.Module) -> int:
    """Channels of the feature map (timm: `num_features`)."""
    return int(backbone.num_features)  # type: ignore[arg-type]


def build_classifier(
    backbone: str,
    num_classes: int,
    *,
    arguments: Mapping[str, Any] | None = None,
    weights: str = "none",
    stride: int = 0,
    freeze_batch_norm: bool = False,
    mean: Rgb | None = None,
    std: Rgb | None = None,
) -> Classifier:
    """Build a classifier over the timm model `backbone`; arguments as in `config.ClassifierSettings`.

    Raises ConfigError for a backbone that is unknown or bound to one image size and for a stride out of reach,
    WeightsError for weights that do not fit.
    """
    network = _create_for_any_size(backbone, weights, {"num_classes": 0, **(arguments or {})})
    if weights not in ("pretrained", "none"):
        load_backbone(network, Path(weights))
    try:
        own_stride = _stride_of(network)
    except ValueError as error:
        raise ConfigError(f"classifier.backbone: '{backbone}' {error}") from error
    if stride:
        try:
            reduce_stride(network, stride)
        except ValueError as error:
            raise ConfigError(
                f"classifier.stride: backbone '{backbone}' {error}; its own is {own_stride} (write 0)"
            ) from error
    own_mean, own_std = default_statistics(network)
    classifier = Classifier(network, num_classes, stride or own_stride, mean or own_mean, std or own_std)
    classifier.freeze_batch_norm = freeze_batch_norm
    return classifier


def _create_for_any_size(name: str, weights: str, arguments: dict[str, Any]) -> nn.Module:
    """Create a timm model that takes images of any size: ViT and Swin families must be asked to."""
    for switch in ({"dynamic_img_size": True}, {"strict_img_size": False}):
        try:
            return create_timm(name, weights, switch | arguments)
        except UnknownArgument:
            continue
    return create_timm(name, weights, arguments)


@torch.no_grad()
def _stride_of(backbone: nn.Module) -> int:
    """Input pixels per feature cell: as the patch embedding says, else from a trial input.

    Raises ValueError for a backbone bound to one image size, or one that does not cut an image into whole cells.
    """
    patch: Any = getattr(backbone, "patch_embed", None)
    training = backbone.training
    backbone.eval()
    forward: Any = backbone.forward_features  # every timm model has it
    try:
        side = 8 * int(patch.feat_ratio()) if hasattr(patch, "dynamic_feat_size") else 256
        out: Tensor = forward(torch.zeros(1, 3, side, side))
        if out.dim() == 3:
            stride = int(patch.feat_ratio())
        else:
            stride = side // out.shape[2 if out.shape[1] == feature_width(backbone) else 1]
        out = forward(torch.zeros(1, 3, 2 * stride, 3 * stride))
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError) as error:
        raise ValueError(f"does not take images of any size: {error}") from error
    finally:
        backbone.train(training)
    tokens = 6 + int(getattr(backbone, "num_prefix_tokens", 0)) if out.dim() == 3 else 6
    if out.numel() != tokens * feature_width(backbone):
        raise ValueError(f"does not cut images into whole cells: 2 x 3 of them give features {tuple(out.shape)}")
    return stride

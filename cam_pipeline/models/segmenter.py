"""Segmenters over any timm CNN: DeepLabV3+ of segmentation-models-pytorch, and a DeepLabV2-style head."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cam_pipeline.errors import ConfigError, UserError
from cam_pipeline.models.backbone import check_arguments, create_timm, reason_of
from cam_pipeline.models.hub import quiet_hub
from cam_pipeline.models.pretrained import Normalize, PretrainedHalf, Rgb, default_statistics
from cam_pipeline.models.weights import load_backbone

NO_STRIDE = "timm cannot bring it to stride {stride}; take a CNN such as a ResNet"
DILATIONS = (6, 12, 18, 24)  # DeepLabV2 (Chen et al. 2018), ASPP-L


class Segmenter(PretrainedHalf):
    """Images (B, 3, H, W), uint8 or float in 0..1 -> logits (B, 1 + C, H, W), background first.

    H and W must be multiples of `multiple`. `exits`, `consistency` and `average` are there while it is trained, and are
    no part of the answer.
    """

    multiple = 32

    def __init__(self, network: nn.Module, encoder: nn.Module, mean: Rgb, std: Rgb) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.network = network
        self._encoder = [encoder]  # in a list, as `network` has registered it already
        self.exits: nn.Module | None = None
        self.consistency: nn.Module | None = None
        self.average: nn.Module | None = None

    def pretrained_half(self) -> nn.Module:
        return self._encoder[0]

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.network(self.normalize(images))
        return out


class DeepLabV2(nn.Module):
    """Sum of four dilated 3 x 3 convolutions on the encoder's last feature map, then bilinear upsampling."""

    def __init__(self, encoder: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.branches = nn.ModuleList(
            nn.Conv2d(width, num_classes, 3, padding=rate, dilation=rate) for rate in DILATIONS
        )
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(branch.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder(images)[-1]
        logits = sum(branch(features) for branch in self.branches)
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


def _pyramid(encoder: str, weights: str, stride: int, arguments: Mapping[str, Any]) -> nn.Module:
    """A timm CNN that gives features of several depths, the last at `stride`. Raises as `create_timm`."""
    try:
        return create_timm(encoder, weights, {"features_only": True, "output_stride": stride, **arguments})
    except ConfigError as error:
        create_timm(encoder, "none", {"num_classes": 0, **arguments})  # raises if the name or the arguments are wrong
        raise ConfigError(
            f"segmenter.encoder '{encoder}' cannot be used in deeplabv2: {NO_STRIDE.format(stride=stride)}"
        ) from error


def build_segmenter(
    architecture: str,
    encoder: str,
    num_labels: int,
    *,
    arguments: Mapping[str, Any] | None = None,
    weights: str = "none",
    stride: int = 16,
    freeze_batch_norm: bool = False,
    mean: Rgb | None = None,
    std: Rgb | None = None,
) -> Segmenter:
    """Build a segmenter with `num_labels` outputs (background included); arguments as in `config.SegmenterSettings`.

    Raises ConfigError for an encoder that is unknown or has no feature pyramid, WeightsError for weights that do not
    fit.
    """
    given = dict(arguments or {})
    check_arguments("segmenter.encoder_args", given, free=("out_indices",) if architecture == "deeplabv2" else ())
    try:
        if architecture == "deeplabv2":
            trunk = _pyramid(encoder, weights, stride, given)
            network: nn.Module = DeepLabV2(trunk, trunk.feature_info.channels()[-1], num_labels)  # type: ignore[union-attr, operator]
        else:
            create_timm(encoder, weights, {"num_classes": 0, **given})  # raises a one-line error for bad arguments
            import segmentation_models_pytorch as smp  # late: it takes seconds

            with quiet_hub() if weights == "pretrained" else nullcontext():
                network = deeplab = smp.DeepLabV3Plus(
                    f"tu-{encoder}",
                    encoder_weights="imagenet" if weights == "pretrained" else None,
                    encoder_output_stride=stride,
                    classes=num_labels,
                    **given,
                )
            trunk = deeplab.encoder.model
    except (MemoryError, UserError):
        raise
    except Exception as error:  # of any kind: the code of hundreds of models
        fixed = not str(error) or "output_stride" in str(error)
        reason = NO_STRIDE.format(stride=stride) if fixed else reason_of(error)
        raise ConfigError(f"segmenter.encoder '{encoder}' cannot be used in {architecture}: {reason}") from error
    if weights not in ("pretrained", "none"):
        load_backbone(trunk, Path(weights))
    own_mean, own_std = default_statistics(trunk)
    segmenter = Segmenter(network, trunk, mean or own_mean, std or own_std)
    segmenter.freeze_batch_norm = freeze_batch_norm
    return segmenter

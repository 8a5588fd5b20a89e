"""Classifier over any timm backbone: images in, feature map and image logits out."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from cam_pipeline.errors import ConfigError, one_line
from cam_pipeline.models.attention import NoAttention, attend_to_similar
from cam_pipeline.models.backbone import bring_to_stride, check_arguments, create_for_any_size
from cam_pipeline.models.hybrid import Trunk, channels_first, create_hybrid, create_trunk, trunk_of
from cam_pipeline.models.levels import NoLevels, feature_levels
from cam_pipeline.models.offset import NoPosition, cell_offset
from cam_pipeline.models.pretrained import Normalize, PretrainedHalf, Rgb, default_statistics, feature_width
from cam_pipeline.models.sfc import CalibrationHead
from cam_pipeline.models.weights import load_backbone

logger = logging.getLogger(__name__)


class ClassifierOutput(NamedTuple):
    """`features` (B, D, h, w) and `logits` (B, C), before the sigmoid."""

    features: Tensor
    logits: Tensor


class Classifier(PretrainedHalf):
    """A timm backbone with a linear classifier on its average-pooled feature map, or on its class token.

    `head.weight` is (C, D); a class's activation map is its row applied to every cell. With `pooling` "patches" logits
    are the means of these maps; with "class_token" they are read from the class token after the last norm.
    `prefix_tokens`: number of tokens before the patches of a transformer, 0 for a CNN. `stride`: input pixels per cell.
    `offset`: distance in cells by which the cells' centres lie right of and below an even division of the image
    (`models.offset.cell_offset`).
    """

    trunk_lr_factor = 1.0
    new_transformer = False

    def __init__(
        self, backbone: nn.Module, num_classes: int, stride: int, mean: Rgb, std: Rgb, pooling: str = "patches"
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.normalize = Normalize(mean, std)
        self.backbone = backbone
        self.prefix_tokens = int(getattr(backbone, "num_prefix_tokens", 0))
        self.stride = stride
        self.offset = _offset_in_cells(backbone, stride)
        self.width = feature_width(backbone)
        self.head = nn.Linear(self.width, num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=0.01)
        self.calibration: CalibrationHead | None = None

    def add_calibration(self, sides: bool = True, comparison: bool = True) -> None:
        """Add the layers that objective SFC learns. Raises ConfigError if the backbone's stages are not known."""
        try:
            levels = feature_levels(self.backbone)
        except NoLevels as error:
            raise ConfigError(f"objectives.sfc needs features of several depths, but {error}") from error
        self.calibration = CalibrationHead([level.width for level in levels], sides, comparison)

    def pretrained_half(self) -> nn.Module:
        trunk = trunk_of(self.backbone)
        return trunk if trunk is not None and self.new_transformer else self.backbone

    def learning_rate_factors(self, new_layers: float) -> Iterator[tuple[nn.Parameter, float]]:
        trunk = trunk_of(self.backbone)
        of_trunk = {id(parameter) for parameter in trunk.parameters()} if trunk else set()
        for parameter, factor in super().learning_rate_factors(new_layers):
            yield parameter, factor * (self.trunk_lr_factor if id(parameter) in of_trunk else 1.0)

    def train(self, mode: bool = True) -> Self:
        """As `PretrainedHalf.train`; a trunk that does not learn stays in evaluation mode."""
        super().train(mode)
        trunk = trunk_of(self.backbone)
        if trunk is not None and self.trunk_lr_factor == 0:
            trunk.eval()
        return self

    def forward(self, images: Tensor) -> ClassifierOutput:
        """Features and logits: images (B, 3, H, W) uint8 or float in 0..1, sides multiples of the stride.

        Sides of training crops need not be multiples. Raises ConfigError if the features do not have a cell for every
        `stride` pixels: maps would be drawn at wrong places.
        """
        out: Tensor = self.backbone.forward_features(self.normalize(images))  # type: ignore[operator]
        rows, columns = images.shape[-2] // self.stride, images.shape[-1] // self.stride
        if out.dim() == 3 and out.shape[1] == self.prefix_tokens + rows * columns:  # tokens (B, p + N, D)
            features = out[:, self.prefix_tokens :].transpose(1, 2).unflatten(2, (rows, columns))
        else:
            features = channels_first(out, self.width) if out.dim() == 4 else out
            self._check_grid(features, images)
        pooled = out[:, 0] if self.pooling == "class_token" else features.mean(dim=(2, 3))
        return ClassifierOutput(features, self.head(pooled))

    def _check_grid(self, features: Tensor, images: Tensor) -> None:
        """Raise ConfigError unless `features` is (B, D, h, w) with h and w of the images over the stride."""
        height, width = images.shape[-2:]
        apart = [
            abs(cells * self.stride - side) for cells, side in zip(features.shape[2:], (height, width), strict=False)
        ]
        if features.dim() != 4 or max(apart) >= self.stride:
            raise ConfigError(
                f"classifier.backbone: {type(self.backbone).__name__} gives features {tuple(features.shape)} for "
                f"images of {height} x {width} pixels, where stride {self.stride} has {height // self.stride} x "
                f"{width // self.stride} cells; take another backbone or stride"
            )


def _offset_in_cells(backbone: nn.Module, stride: int) -> float:
    """Mean of both axes, which no model of timm tells apart; 0, with a warning, if it cannot be measured."""
    try:
        down, right = cell_offset(backbone, stride)
        if abs(down - right) > stride / 8:  # recurrent layers see a whole row, each cell another part of it
            raise NoPosition(f"{down} pixels down, but {right} right")
        return (down + right) / 2 / stride
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        logger.warning(
            "classifier.backbone: where the cells of this %s lie cannot be measured (%s), so maps are drawn as if they "
            "divided the image evenly: compare them with the images",
            type(backbone).__name__,
            one_line(str(error))[:160],
        )
        return 0.0


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
    pooling: str = "patches",
    trunk: Trunk | None = None,
    trunk_lr_factor: float = 1.0,
    similar_attention: float = 0.0,
) -> Classifier:
    """Build a classifier over the timm model `backbone`; arguments as in `config.ClassifierSettings`.

    With a `trunk` the backbone is a ViT whose patches are the cells of the trunk's feature map; `stride` is the
    trunk's.

    Raises ConfigError for a backbone that is unknown or bound to one image size, for a stride out of reach, and for a
    class token that is to be pooled but missing; WeightsError for weights that do not fit.
    """
    check_start(weights, trunk is not None, similar_attention)
    check_arguments("classifier.backbone_args", arguments or {})
    headless = {"num_classes": 0, **(arguments or {})}
    cnn: nn.Module | None = None
    if trunk is None:
        network = create_for_any_size(backbone, weights, headless)
    else:
        cnn, trunk_stride = create_trunk(trunk, stride)
        network = create_hybrid(backbone, weights, headless, cnn, trunk_stride)
    if weights not in ("pretrained", "none"):
        load_backbone(network, Path(weights))
    if similar_attention:
        _attend_to_similar(network, similar_attention)
    own_stride = bring_to_stride(network, backbone, stride if trunk is None else 0, arguments)
    _check_pooling(pooling, network, backbone)
    own_mean, own_std = default_statistics(cnn or network)
    classifier = Classifier(network, num_classes, own_stride, mean or own_mean, std or own_std, pooling)
    classifier.freeze_batch_norm = freeze_batch_norm
    if trunk is not None:
        classifier.new_transformer = weights == "none"
    if trunk_lr_factor != 1:
        _scale_trunk_lr(classifier, backbone, trunk_lr_factor)
    return classifier


def _attend_to_similar(network: nn.Module, scale: float) -> None:
    """As `attend_to_similar`. Raises ConfigError for a network without attention."""
    try:
        attend_to_similar(network, scale)
    except NoAttention as error:
        raise ConfigError(f"classifier.similar_attention: {error}; write 0") from error


def _check_pooling(pooling: str, network: nn.Module, name: str) -> None:
    """Raise ConfigError if a class token is to be pooled that the network does not have."""
    if pooling == "class_token" and getattr(network, "cls_token", None) is None:
        raise ConfigError(
            f"classifier.pooling: '{name}' has no class token; write 'patches', or take a ViT that has one"
        )


def _scale_trunk_lr(classifier: Classifier, name: str, factor: float) -> None:
    """Multiply the trunk's learning rate by `factor`; 0 freezes it. Raises ConfigError if there is no trunk."""
    trunk = trunk_of(classifier.backbone)
    if trunk is None:
        raise ConfigError(f"classifier.trunk_lr_factor: '{name}' has no trunk; write 1")
    classifier.trunk_lr_factor = factor
    trunk.requires_grad_(factor > 0)


def check_start(weights: str, hybrid: bool, similar_attention: float) -> None:
    """Raise ConfigError for weights that the backbone cannot start from; `hybrid`: it has a trunk."""
    if hybrid and weights == "pretrained":
        raise ConfigError("classifier.weights: timm has no weights for a ViT with a trunk; write 'none', or a file")
    if similar_attention and weights != "none":
        raise ConfigError("classifier.similar_attention is a start for a ViT without weights; write 0")

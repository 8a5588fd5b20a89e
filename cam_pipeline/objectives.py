"""What a classifier is trained for: the classes of an image, and any of the methods' objectives beside them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cam_pipeline.config import AcrSettings, Config
from cam_pipeline.errors import ConfigError
from cam_pipeline.models.attention import AttentionTap, NoAttention
from cam_pipeline.models.classifier import Classifier
from cam_pipeline.ops.acr import consistency_losses, patch_permutation, transform_images

ImageLoss = Callable[[Tensor, Tensor, float], Tensor]


def image_loss(classifier: Classifier, config: Config) -> ImageLoss:
    """The loss of images (B, 3, H, W), their image labels (B, C) and the share of all steps done.

    Raises ConfigError for an objective that this classifier can not have.
    """
    if not config.objectives.acr:
        return lambda images, labels, progress: classification_loss(classifier(images).logits, labels)
    try:
        tap = AttentionTap(classifier, config.acr.layers)
    except NoAttention as error:
        raise ConfigError(
            f"objectives.acr compares attention between patches, but {error}; take a ViT as classifier.backbone "
            "(a CNN can be its classifier.trunk)"
        ) from error
    except ValueError as error:
        raise ConfigError(f"acr.layers: {error}") from error
    if getattr(classifier.backbone, "cls_token", None) is None:
        raise ConfigError(
            f"objectives.acr compares what the class token attends to, and '{config.classifier.backbone}' has none; "
            "take a ViT with a class token"
        )
    return lambda images, labels, progress: acr_loss(classifier, tap, images, labels, config.acr, progress)


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Multi-label soft margin: binary cross entropy of every class, mean over classes and images."""
    return F.multilabel_soft_margin_loss(logits.float(), labels)


def acr_loss(
    classifier: Classifier,
    tap: AttentionTap,
    images: Tensor,
    labels: Tensor,
    settings: AcrSettings,
    progress: float = 1.0,
) -> Tensor:
    """Classification of two views, seen in one pass, plus the distances of their attention; `images` are square.

    The two classification losses are summed, not averaged, as in the released code: the weights are relative to that.
    Source: ACR (arXiv 2308.04321), section 3.2; per-row weights are `weight * N` times the means over N patches.
    """
    kind = settings.transforms[int(torch.randint(len(settings.transforms), ()))]
    layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    views = torch.cat([images, transform_images(images, kind)]).contiguous(memory_format=layout)
    with tap:  # not open during validation, which needs no maps
        features, logits = classifier(views)
    rows, columns = features.shape[-2:]
    first, second = torch.stack(tap.take(), dim=1).chunk(2)
    permutation = patch_permutation(kind, rows, columns).to(images.device)
    activation, affinity = consistency_losses(first, second, permutation, classifier.prefix_tokens)
    consistency = settings.activation_weight * activation + settings.affinity_weight * affinity
    own, other = (classification_loss(view, labels) for view in logits.chunk(2))
    rise = min(1.0, progress / settings.ramp) if settings.ramp else 1.0
    total: Tensor = own + other + rise * rows * columns * consistency
    return total

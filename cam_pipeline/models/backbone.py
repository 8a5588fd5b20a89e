"""Backbones of timm: created for images of any size, and brought to a stride.

timm takes seconds to import, so that happens when the first network is built: `status` builds none.
"""

import difflib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from cam_pipeline.errors import ConfigError, WeightsError
from cam_pipeline.models.evaluating import evaluating
from cam_pipeline.models.pretrained import feature_width
from cam_pipeline.models.stride import reduce_stride

logger = logging.getLogger(__name__)


class UnknownArgument(ConfigError):
    """The timm model does not take one of these arguments."""


def create_timm(name: str, weights: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A timm model, with timm's weights if `weights` is "pretrained", else with random ones.

    Raises UnknownArgument, ConfigError for a model that cannot be built, and WeightsError for weights that cannot be
    loaded.
    """
    import timm

    check_name(name)
    try:
        if weights != "pretrained":
            return timm.create_model(name, pretrained=False, **arguments)
        _announce(name)
        with _quiet_hub():
            return timm.create_model(name, pretrained=True, **arguments)
    except TypeError as error:
        raise UnknownArgument(
            f"timm model '{name}' does not take these arguments {dict(arguments)}: {error}"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        if weights != "pretrained":
            raise ConfigError(f"timm model '{name}' cannot be built: {error}") from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"the pretrained weights of '{name}' cannot be loaded ({reason}); "
            "connect to the network once, or set weights to a file, or to 'none' to start from random weights"
        ) from error


@cache  # once, though a network is created again until its arguments suit it
def _announce(name: str) -> None:
    logger.info("weights of '%s': from timm's hub, or its copy here (takes a minute without a network)", name)


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Inside, the hub's library does not log each of its attempts; the caller reports the outcome in one line."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def check_name(name: str) -> None:
    """Raise ConfigError, with similar names, unless timm has a model of this name. Nothing is built."""
    import timm

    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ConfigError(f"timm has no model '{name}'; near: {', '.join(near) or 'none, see timm.list_models()'}")


def bring_to_stride(network: nn.Module, name: str, stride: int) -> int:
    """Bring a backbone to `stride` (0: keep its own) and return the stride it has.

    Raises ConfigError for a stride out of reach, and for a backbone bound to one image size.
    """
    try:
        own_stride = _stride_of(network)
    except ValueError as error:
        raise ConfigError(f"classifier.backbone: '{name}' {error}") from error
    if stride in (0, own_stride):
        return own_stride
    try:
        reduce_stride(network, stride)
    except ValueError as error:
        raise ConfigError(f"classifier.stride: backbone '{name}' {error}; its own is {own_stride} (write 0)") from error
    return stride


def create_for_any_size(name: str, weights: str, arguments: dict[str, Any]) -> nn.Module:
    """Create a timm model that takes images of any size; the ViT and Swin families need an argument for that."""
    try:
        for switch in ({"dynamic_img_size": True}, {"strict_img_size": False}):
            try:
                return create_timm(name, weights, switch | arguments)
            except UnknownArgument:
                continue
        return create_timm(name, weights, arguments)
    except AssertionError as error:
        reason = str(error) or "one of classifier.backbone_args does not suit it"
        raise ConfigError(f"timm model '{name}' cannot be built: {reason}") from error


@torch.no_grad()
def _stride_of(backbone: nn.Module) -> int:
    """Input pixels per feature cell, from the patch embedding or else from a trial input.

    Raises ValueError for a backbone bound to one image size, or one that does not cut an image into whole cells.
    """
    patch: Any = getattr(backbone, "patch_embed", None)
    forward: Any = backbone.forward_features  # every timm model has it
    try:
        with evaluating(backbone):
            side = 8 * int(patch.feat_ratio()) if hasattr(patch, "dynamic_feat_size") else 256
            out: Tensor = forward(torch.zeros(1, 3, side, side))
            if out.dim() == 3:
                stride = int(patch.feat_ratio())
            else:
                stride = side // out.shape[2 if out.shape[1] == feature_width(backbone) else 1]
            out = forward(torch.zeros(1, 3, 2 * stride, 3 * stride))
    except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError) as error:
        raise ValueError(f"does not take images of any size: {error}") from error
    tokens = 6 + int(getattr(backbone, "num_prefix_tokens", 0)) if out.dim() == 3 else 6
    if out.numel() != tokens * feature_width(backbone):
        raise ValueError(f"does not cut images into whole cells: 2 x 3 of them give features {tuple(out.shape)}")
    return stride

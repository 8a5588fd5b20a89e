"""Backbones of timm: created for images of any size, and brought to a stride.

timm takes seconds to import, so that happens when the first network is built: `status` builds none.
"""

import difflib
import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from cam_pipeline.errors import ConfigError, UserError, WeightsError, one_line
from cam_pipeline.models.evaluating import evaluating
from cam_pipeline.models.hub import cannot_be_loaded, missing, quiet_hub
from cam_pipeline.models.mit import MIX_TRANSFORMERS, create_mix_transformer
from cam_pipeline.models.pretrained import feature_width
from cam_pipeline.models.stride import reduce_stride

logger = logging.getLogger(__name__)


class UnknownArgument(ConfigError):
    """The timm model does not take one of these arguments."""


_DEPTHS = "it gives features of several depths, where the last map is needed"
_WEIGHTS = "write the file, or 'pretrained', as {section}.weights, and statistics as {section}.mean and {section}.std"
_NOT_FREE: dict[str, tuple[Any, str]] = {
    "features_only": (False, _DEPTHS),
    "feature_cls": (None, _DEPTHS),
    "out_indices": (None, _DEPTHS),
    "num_classes": (0, "the number of outputs follows from data.classes"),
    "in_chans": (3, "images have 3 channels"),
    "patch_drop_rate": (0, "every cell of a map is needed"),
    "pretrained": (None, _WEIGHTS),
    "pretrained_cfg": (None, _WEIGHTS),
    "pretrained_cfg_overlay": (None, _WEIGHTS),
    "checkpoint_path": (None, _WEIGHTS),
    "device": (None, "run.device says where a network computes"),
    "dtype": (None, "run.precision says in which precision a network computes"),
}
"""Arguments of timm that change what a model is: the value that they may have, and why no other."""

_OURS = {"num_classes": 0, "dynamic_img_size": True, "strict_img_size": False, "features_only": True}


def check_arguments(key: str, arguments: Mapping[str, Any], free: tuple[str, ...] = ()) -> None:
    """Raise ConfigError for arguments of timm, the setting `key`, that would make a model of another kind.

    `free`: names that are allowed nevertheless. A tag as `pretrained_cfg` is, too.
    """
    for name, value in arguments.items():
        allowed, reason = _NOT_FREE.get(name, (value, ""))
        if value in (allowed, None) or name in free or (name == "pretrained_cfg" and isinstance(value, str)):
            continue
        reason = reason.format(section=key.partition(".")[0])
        raise ConfigError(f"{key}: {name} = {value!r} does not suit; take it out: {reason}")
    for name, value in arguments.items():
        share = value is None or (isinstance(value, int | float) and 0 <= value <= 1)
        if "drop" in name and name.endswith("rate") and not share:
            raise ConfigError(f"{key}: {name} must be a number in 0..1, given {value!r}")


def create_timm(name: str, weights: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A timm model or a mix transformer, with its released weights if `weights` is "pretrained", else with random ones.

    Raises UnknownArgument, ConfigError for a model that cannot be built, and WeightsError for weights that cannot be
    loaded.
    """
    import timm

    check_name(name)
    create = create_mix_transformer if name in MIX_TRANSFORMERS else timm.create_model
    try:
        if weights != "pretrained":
            return create(name, pretrained=False, **arguments)
        if message := missing(name, arguments):
            raise WeightsError(message)
        _announce(name)
        with quiet_hub():
            return create(name, pretrained=True, **arguments)
    except (MemoryError, UserError):
        raise
    except TypeError as error:
        raise UnknownArgument(f"timm model '{name}' does not take these arguments {shown(arguments)}: {error}") from (
            error
        )
    except Exception as error:  # timm checks few of its arguments, and wrong ones fail anywhere inside
        if weights == "pretrained" and shown(arguments) and "state_dict" in str(error):
            raise WeightsError(
                f"the pretrained weights of '{name}' do not fit the arguments {shown(arguments)}; take these out, or "
                "set weights to 'none'"
            ) from error
        if weights == "pretrained" and isinstance(error, OSError | RuntimeError | ValueError):
            raise WeightsError(cannot_be_loaded(name, _first_line(error))) from error
        given = f" with the arguments {shown(arguments)}" if shown(arguments) else ""
        raise ConfigError(f"timm model '{name}' cannot be built{given}: {reason_of(error)}") from error


def shown(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a user gave: not those that are always set here, nor layers."""
    return {
        name: value
        for name, value in arguments.items()
        if not (name in _OURS and _OURS[name] == value) and not callable(value)
    }


def reason_of(error: Exception) -> str:
    """Kind and first line of an error inside timm, whose words alone may not say that it is one."""
    return f"{type(error).__name__}: {_first_line(error)}" if str(error) else type(error).__name__


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return one_line(line)[:300]


@cache  # once, though a network is created again until its arguments suit it
def _announce(name: str) -> None:
    logger.info("weights of '%s': from timm's hub, or its copy here", name)


def check_name(name: str) -> None:
    """Raise ConfigError, with similar names, unless there is a model of this name. Nothing is built."""
    import timm

    if name in MIX_TRANSFORMERS:
        return
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ConfigError(f"timm has no model '{name}'; near: {', '.join(near) or 'none, see timm.list_models()'}")


def bring_to_stride(network: nn.Module, name: str, stride: int, arguments: Mapping[str, Any] | None = None) -> int:
    """Bring a backbone to `stride` (0: keep its own) and return the stride it has.

    Raises ConfigError for a stride out of reach, and for a backbone bound to one image size; it names the `arguments`
    that the backbone was made with.
    """
    given = f" with the arguments {shown(arguments)}" if arguments and shown(arguments) else ""
    try:
        own_stride = _stride_of(network)
    except ValueError as error:
        raise ConfigError(f"classifier.backbone: '{name}'{given} {error}") from error
    if stride in (0, own_stride):
        return own_stride
    try:
        reduce_stride(network, stride)
    except ValueError as error:
        raise ConfigError(f"classifier.stride: backbone '{name}' {error}; its own is {own_stride} (write 0)") from error
    return stride


def create_for_any_size(name: str, weights: str, arguments: dict[str, Any]) -> nn.Module:
    """Create a timm model that takes images of any size; the ViT and Swin families need an argument for that."""
    # Swin first: in older timm it takes the argument of the ViTs, too, without effect.
    for switch in ({"strict_img_size": False}, {"dynamic_img_size": True}):
        try:
            return create_timm(name, weights, switch | arguments)
        except UnknownArgument:
            continue
    return create_timm(name, weights, arguments)


def _stride_of(backbone: nn.Module) -> int:
    """Input pixels per feature cell, from the patch embedding or else from a trial input.

    Raises ValueError for a backbone bound to one image size, or one that does not cut an image into whole cells.
    """
    patch: Any = getattr(backbone, "patch_embed", None)
    side = 8 * int(patch.feat_ratio()) if hasattr(patch, "dynamic_feat_size") else 256
    out = trial(backbone, side, side)
    if out.dim() == 3:
        if not hasattr(patch, "feat_ratio"):
            raise ValueError(
                "gives tokens that cannot be placed: timm does not say where in the image those of this family lie; "
                "take a CNN, or a ViT of timm's vision_transformer.py"
            )
        stride = int(patch.feat_ratio())
    elif out.dim() == 4:
        stride = side // out.shape[2 if out.shape[1] == feature_width(backbone) else 1]
    else:
        raise ValueError(f"gives features {tuple(out.shape)}, which are no map")
    out = trial(backbone, 2 * stride, 3 * stride)
    tokens = 6 + int(getattr(backbone, "num_prefix_tokens", 0)) if out.dim() == 3 else 6
    if out.numel() != tokens * feature_width(backbone):
        raise ValueError(f"does not cut images into whole cells: 2 x 3 of them give features {tuple(out.shape)}")
    return stride


@torch.no_grad()
def trial(backbone: nn.Module, height: int, width: int) -> Tensor:
    """Features of a black image, in evaluation mode. Raises ValueError that says why there are none."""
    forward: Any = backbone.forward_features  # every timm model has it
    with evaluating(backbone):
        try:
            out = forward(torch.zeros(1, 3, height, width))
        except MemoryError:
            raise
        except Exception as error:  # of any kind: the code of hundreds of models
            own = tuple(backbone.pretrained_cfg.get("input_size", (3, 224, 224)))[1:]  # type: ignore[union-attr, operator]
            try:
                forward(torch.zeros(1, 3, *own))
            except Exception:
                raise ValueError(f"fails on images: {reason_of(error)}") from error
            raise ValueError(f"does not take images of any size, only of {own[0]} x {own[1]} pixels") from error
    if not isinstance(out, Tensor):
        raise ValueError(f"gives a {type(out).__name__} of several results, where one feature map is needed")
    return out

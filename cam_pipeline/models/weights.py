"""Backbone weights from timm's hub or a file: all of them fit, or training does not begin."""

import difflib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cam_pipeline.errors import ConfigError, WeightsError

logger = logging.getLogger(__name__)


class UnknownArgument(ConfigError):
    """timm's model does not take one of the arguments given."""


def create_timm(name: str, weights: str, arguments: Mapping[str, Any]) -> nn.Module:
    """`timm.create_model` with `weights` "pretrained" or anything else (then without). Errors name what to do."""
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
            raise ConfigError(f"timm model '{name}' can not be built: {error}") from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"the pretrained weights of '{name}' can not be had ({reason}); "
            "connect to the network once, or set weights to a file, or to 'none' to start from random weights"
        ) from error


@cache  # a network is created anew until its arguments suit it
def _announce(name: str) -> None:
    logger.info("weights of '%s': from timm's hub, or its copy here (takes a minute without a network)", name)


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Inside, the hub's library does not report each of its attempts: what they come to is said in one line."""
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
    """Raise ConfigError, with names that are near, unless timm has a model of this name. Nothing is built."""
    if not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ConfigError(f"timm has no model '{name}'; near: {', '.join(near) or 'none, see timm.list_models()'}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or .pth file; `state_dict` or `model` wrappers and `module.` prefixes are removed.

    So is the `backbone.` before the names in a classifier.safetensors of ours.

    Raises WeightsError when the file is missing, damaged or holds anything but tensors.
    """
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the readers raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} can not be read as weights: {reason[:160]}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds something other than named tensors")
    return {key.removeprefix("module.").removeprefix("backbone."): value for key, value in state.items()}


def load_backbone(backbone: nn.Module, path: Path) -> None:
    """Load a file into a headless backbone. Every tensor of the backbone must be there and have its shape.

    Tensors of the file that the backbone lacks (its old classifier) are left out and named in the log. Keys are also
    looked up with the dots of timm's `features_only` models put back (`stages_0.x` for `stages.0.x`).
    Raises WeightsError listing the keys that are missing or differ in shape.
    """
    given = read_weights(path)
    flat = {_flattened(key): key for key in given}
    own = backbone.state_dict()
    source = {key: key if key in given else flat.get(_flattened(key), "") for key in own}
    optional = "num_batches_tracked"  # a counter that is not used; many exports leave it out
    missing = [key for key in own if not source[key] and not key.endswith(optional)]
    if missing:
        raise WeightsError(
            f"{path} does not fit the backbone: {len(missing)} of {len(own)} tensors are missing: {_shortened(missing)}"
        )
    chosen = {key: given[source[key]] for key in own if source[key]}
    wrong = [
        f"{key} {tuple(value.shape)} should be {tuple(own[key].shape)}"
        for key, value in chosen.items()
        if value.shape != own[key].shape
    ]
    if wrong:
        raise WeightsError(
            f"{path} does not fit the backbone: {len(wrong)} tensors have another shape: {_shortened(wrong)}"
        )
    backbone.load_state_dict(chosen, strict=False)
    unused = sorted(set(given) - set(source.values()))
    logger.info("loaded %d tensors from %s; not used: %s", len(chosen), path, _shortened(unused) or "none")


def _flattened(key: str) -> str:
    return key.replace(".", "_")


def _shortened(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

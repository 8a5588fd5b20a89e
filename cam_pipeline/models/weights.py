"""Backbone weights from a file: all of them fit, or training does not begin."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cam_pipeline.errors import WeightsError

logger = logging.getLogger(__name__)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors or .pth file by name.

    Wrappers named `state_dict` or `model` are opened. Prefixes `module.` (of DDP) and `backbone.` (of our
    classifier.safetensors) are removed. Raises WeightsError if the file is missing, damaged or holds anything but
    tensors.
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
        if "Weights only load failed" in reason:  # torch goes on with advice to load what may do harm
            reason = "it is no weights file, or a pickle of more than tensors, which is not loaded"
        raise WeightsError(f"{path} cannot be read as weights: {reason[:160]}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds something other than named tensors")
    return {key.removeprefix("module.").removeprefix("backbone."): value for key, value in state.items()}


def load_backbone(backbone: nn.Module, path: Path) -> None:
    """Load a file into a headless backbone; the file must have every tensor of the backbone, in its shape.

    Other tensors of the file (its old classifier) are left out and named in the log. Names match with dots or
    underscores, since timm's `features_only` models write `stages_0.x` for `stages.0.x`. Raises WeightsError that lists
    the names that are missing or differ in shape.
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
    unsound = [key for key, value in chosen.items() if _is_unsound(value, own[key])]
    if unsound:
        raise WeightsError(
            f"{path} does not fit the backbone: {len(unsound)} tensors hold other than finite real numbers: "
            f"{_shortened(unsound)}"
        )
    backbone.load_state_dict(chosen, strict=False)
    unused = sorted(set(given) - set(source.values()))
    logger.info("loaded %d tensors from %s; not used: %s", len(chosen), path, _shortened(unused) or "none")


def _is_unsound(given: Tensor, own: Tensor) -> bool:
    """True for values that a tensor of real numbers cannot take, or must not."""
    return own.is_floating_point() and not (given.is_floating_point() and bool(given.isfinite().all()))


def _flattened(key: str) -> str:
    return key.replace(".", "_")


def _shortened(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

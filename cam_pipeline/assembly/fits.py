"""Checks that a network fits its crops and classes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cam_pipeline.errors import ConfigError, OutOfMemory, UserError, WeightsError
from cam_pipeline.machine.device import is_memory_error
from cam_pipeline.models.backbone import reason_of
from cam_pipeline.models.pretrained import PretrainedHalf
from cam_pipeline.store.checkpoints import StoredModel


@torch.no_grad()
def check_crop(
    network: PretrainedHalf, crop: int, key: str, name: str = "", batch: int = 2, side: int | None = None
) -> None:
    """Raise ConfigError if a network on the CPU cannot be trained on crops of this size, `batch` of them in a step.

    Raises OutOfMemory if there is too little memory for one. The message names `key`, the setting of the size, and
    `name`, that of the network. `side`: that of the images which are made of the crops, if it is another. Statistics
    stay as they are; the network is left in evaluation mode.
    """
    network.train()
    learning = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    try:
        with _fewest_values(learning) as fewest:
            network.eval()(torch.zeros(1, 3, side or crop, side or crop))
    except UserError:
        raise
    except Exception as error:  # of any kind: the code of hundreds of models
        called = f" '{name}'" if name else ""
        if is_memory_error(error):
            raise OutOfMemory(
                f"{key} = {crop}: this machine has too little memory to try the network{called}; lower it"
            ) from error
        raise ConfigError(f"{key} = {crop} does not suit the network{called}: {reason_of(error)}") from error
    lone = [module for module, values in fewest.items() if values * batch < 2]
    if lone:
        section = key.partition(".")[0]
        own = "classifier" if section == "train_cls" else "segmenter"
        freezable = set(network.pretrained_half().modules()).issuperset(lone)
        raise ConfigError(
            f"{section}.batch_size = {batch} and {key} = {crop} leave one value per channel where BatchNorm needs two; "
            f"raise one of them{f', or set {own}.freeze_batch_norm' if freezable else ''}"
        )


@contextmanager
def _fewest_values(norms: Sequence[nn.Module]) -> Iterator[dict[nn.Module, int]]:
    """The smallest number of values per channel that each of `norms` gets of an image in a forward pass inside."""
    fewest: dict[nn.Module, int] = {}

    def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        values = inputs[0].numel() // (len(inputs[0]) * inputs[0].shape[1])
        fewest[module] = min(values, fewest.get(module, values))

    handles = [module.register_forward_pre_hook(see) for module in norms]
    try:
        yield fewest
    finally:
        for handle in handles:
            handle.remove()


def check_classes(stored: StoredModel, classes: tuple[str, ...], path: Path) -> None:
    """Raise WeightsError if a stored network was made for other classes."""
    made_for = tuple(stored.metadata["classes"])
    if made_for != classes:
        raise WeightsError(
            f"{path} was made for the classes {', '.join(made_for)}, the data has {', '.join(classes)}; "
            "set data.classes to the former, or make it again with --force"
        )

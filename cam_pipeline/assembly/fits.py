"""Checks that a network fits its crops and classes."""

from pathlib import Path

import torch

from cam_pipeline.errors import ConfigError, WeightsError
from cam_pipeline.models.pretrained import PretrainedHalf
from cam_pipeline.store.checkpoints import StoredModel


@torch.no_grad()
def check_crop(network: PretrainedHalf, crop: int, key: str) -> None:
    """Raise ConfigError, naming `key`, if a network on the CPU cannot take crops of this size."""
    try:
        network.eval()(torch.zeros(1, 3, crop, crop))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{key} = {crop} does not suit the network: {error}") from error


def check_classes(stored: StoredModel, classes: tuple[str, ...], path: Path) -> None:
    """Raise WeightsError if a stored network was made for other classes."""
    made_for = tuple(stored.metadata["classes"])
    if made_for != classes:
        raise WeightsError(
            f"{path} was made for the classes {', '.join(made_for)}, the data has {', '.join(classes)}; "
            "set data.classes to the former, or make it again with --force"
        )

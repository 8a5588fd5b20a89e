"""Trained models (safetensors with metadata) and training checkpoints (tensors only); nothing is ever unpickled."""

import json
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cam_pipeline.atomic import written_aside
from cam_pipeline.errors import DamagedFile, WeightsError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredModel:
    """The tensors of a trained model and what is needed to build it again."""

    state: dict[str, Tensor]
    metadata: dict[str, Any]

    def restore(self, model: nn.Module, path: Path) -> None:
        """Load the tensors into `model`, strictly. Raises WeightsError, naming keys and shapes that do not fit."""
        try:
            model.load_state_dict(self.state, strict=True)
        except RuntimeError as error:
            first = str(error).splitlines()[1:3]
            reason = " ".join(line.strip() for line in first)
            raise WeightsError(
                f"{path} does not fit the model of this config: {reason} Re-make it with --force"
            ) from error


def save_model(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write a model's tensors and JSON metadata."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with written_aside(path) as aside:
        aside.write_bytes(save(state, metadata={"cam-pipeline": json.dumps(dict(metadata))}))


def load_model(path: Path) -> StoredModel:
    """Read what `save_model` wrote. Raises DamagedFile when it is no such file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["cam-pipeline"])
            return StoredModel({key: file.get_tensor(key) for key in file.keys()}, metadata)  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise DamagedFile(f"there is no file {path}; re-make it with --force") from None
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise DamagedFile(f"{path} is damaged or no cam-pipeline model ({error}); re-make it with --force") from error


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training checkpoint: tensors, numbers and strings in dicts and lists."""
    with written_aside(path) as aside:
        torch.save(dict(state), aside)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The last checkpoint; None, with a warning, when it is damaged; None when there is none."""
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # torch.load looks at no checksum
        if broken:
            raise ValueError(f"wrong checksum of {broken}")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except Exception as error:  # damaged bytes make the reader raise almost anything
        logger.warning("%s can not be read and is ignored (%s); training starts over", path, error)
        return None

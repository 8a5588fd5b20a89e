"""Trained models (safetensors with metadata) and training checkpoints (tensors only); nothing is ever unpickled."""

import json
import logging
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cam_pipeline.errors import DamagedFile, WeightsError
from cam_pipeline.machine.atomic import file_aside, written_aside

logger = logging.getLogger(__name__)

CHECKSUM = "crc32"


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
                f"{path} does not fit the model of this config: {reason} Make it again with --force"
            ) from error


def save_model(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write a model's tensors and JSON metadata, with a checksum of both."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # One entry: safetensors writes several in an order that changes from run to run.
    text = json.dumps({**metadata, CHECKSUM: checksum(state, metadata)})
    with written_aside(path) as aside:
        aside.write_bytes(save(state, metadata={"cam-pipeline": text}))


def checksum(state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """CRC-32 of the tensors and metadata of a model file; safetensors itself has no checksum."""
    total = zlib.crc32(json.dumps(dict(metadata)).encode())
    for key in sorted(state):
        facts = f"{key} {state[key].dtype} {tuple(state[key].shape)}"
        content = state[key].reshape(-1).view(torch.uint8).numpy().data if state[key].numel() else b""
        total = zlib.crc32(content, zlib.crc32(facts.encode(), total))
    return f"{total:08x}"


def load_model(path: Path) -> StoredModel:
    """Read a model that `save_model` wrote. Raises DamagedFile if the file is none, or has changed since."""
    with _damage_named(path), safe_open(path, framework="pt") as file:
        metadata = _metadata(file)
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        stated = metadata.pop(CHECKSUM, None)
        first_version = stated is None and metadata.keys() <= {"classes", "fingerprint"}  # had no checksum
        if not first_version and stated != checksum(state, metadata):
            raise ValueError("its checksum is wrong")
        return StoredModel(state, metadata)


def load_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a model alone; tensors are neither read nor checked. Raises DamagedFile if there are none."""
    with _damage_named(path), safe_open(path, framework="pt") as file:
        metadata = _metadata(file)
        metadata.pop(CHECKSUM, None)
        return metadata


def _metadata(file: Any) -> dict[str, Any]:
    """What an open model file says of itself. Raises an error of any kind if it says nothing."""
    metadata = json.loads((file.metadata() or {})["cam-pipeline"])
    if not isinstance(metadata, dict):
        raise ValueError("its metadata are no table")
    return metadata


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Raise DamagedFile for whatever goes wrong inside: damaged bytes make the readers raise almost anything."""
    try:
        yield
    except FileNotFoundError:
        raise DamagedFile(f"there is no file {path}; make it again with --force") from None
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DamagedFile(
            f"{path} is damaged or no cam-pipeline model ({reason}); make it again with --force"
        ) from error


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training checkpoint: tensors, numbers and strings in dicts and lists."""
    with file_aside(path) as aside:
        torch.save(dict(state), cast(IO[bytes], aside))  # it needs only `write` and `flush`


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The last checkpoint; None if there is none or, with a warning, if it is damaged."""
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # torch.load checks no checksum
        if broken:
            raise ValueError(f"wrong checksum of {broken}")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except Exception as error:  # damaged bytes make the reader raise almost anything
        logger.warning("%s cannot be read and is ignored (%s); training starts over", path, error)
        return None


@contextmanager
def checkpoint_fits(path: Path) -> Iterator[None]:
    """Raise DamagedFile if a readable checkpoint turns out to be of another training (or another program)."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise DamagedFile(
            f"{path} is no checkpoint of this network ({reason or type(error).__name__}); start over with --force"
        ) from error

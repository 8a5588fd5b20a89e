"""What of two run folders differs, bit by bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np

ARTEFACTS = ("classifier.safetensors", "cams.h5", "scores.h5", "pseudo_labels.h5", "segmenter.safetensors")


MAY_CHANGE = {"lock", "config.toml", "digests.json"}
"""These tell who worked here last, with what settings, and what was read; they hold no result."""


def results_in(folder: Path) -> dict[str, bytes]:
    """Bytes of every file of a run folder that holds a result."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if name not in MAY_CHANGE}


def find_differences(first: Path, second: Path) -> list[str]:
    """What of the artefacts differs, bit by bit; a file that is missing on one side counts."""
    one, other = stored_values(first), stored_values(second)
    return sorted(name for name in one.keys() | other.keys() if not same(one.get(name), other.get(name)))


def same(one: Any, other: Any) -> bool:
    """Equal in type, shape and every bit (so that NaN equals NaN and 0.0 is not -0.0)."""
    if one is None or other is None:
        return one is other
    one, other = np.asarray(one), np.asarray(other)
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool((one == other).all()) if one.dtype == object else one.tobytes() == other.tobytes()


def stored_values(folder: Path) -> dict[str, Any]:
    """Everything that the artefacts of a run folder hold, by file and name."""
    found: dict[str, Any] = {}
    for path in (folder / name for name in ARTEFACTS if (folder / name).is_file()):
        values = hdf5_values(path) if path.suffix == ".h5" else safetensors_values(path)
        found |= {f"{path.name}:{name}": value for name, value in values.items()}
    return found


def hdf5_values(path: Path) -> dict[str, Any]:
    """Every dataset, and every attribute as `name@key`."""
    import h5py

    found: dict[str, Any] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]
        found.update({f"{name}@{key}": value for key, value in item.attrs.items()})

    with h5py.File(path, "r") as file:
        note("/", file)
        file.visititems(note)
    return found


def safetensors_values(path: Path) -> dict[str, Any]:
    """Every tensor, and the metadata as `@`."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        return tensors | {"@": json.dumps(file.metadata(), sort_keys=True)}

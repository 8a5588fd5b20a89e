"""Trained models and training checkpoints: strict, atomic, and never a pickle that is executed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cam_pipeline.errors import DamagedFile, WeightsError
from cam_pipeline.models.weights import read_weights
from cam_pipeline.store.checkpoints import load_checkpoint, load_metadata, load_model, save_checkpoint, save_model


def network(width: int = 3) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1))


class Malice:
    """A pickle of this makes a folder as soon as it is loaded by plain `pickle`."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


# Models


def test_model_comes_back_with_metadata(tmp_path: Path) -> None:
    path, model = tmp_path / "folder" / "model.safetensors", network()
    save_model(path, model, {"classes": ("cat", "猫"), "fingerprint": "12ab"})
    stored = load_model(path)
    assert stored.metadata == {"classes": ["cat", "猫"], "fingerprint": "12ab"}
    other = network(width=3).apply(lambda module: [p.data.zero_() for p in module.parameters(recurse=False)])
    stored.restore(other, path)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items())


def test_metadata_are_read_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, network(), {"classes": ["cat", "dog"], "fingerprint": "f"})
    assert load_metadata(path) == load_model(path).metadata == {"classes": ["cat", "dog"], "fingerprint": "f"}
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DamagedFile, match="is damaged or no cam-pipeline model"):
        load_metadata(path)
    with pytest.raises(DamagedFile, match="there is no file"):
        load_metadata(tmp_path / "gone.safetensors")


def test_model_in_channels_last_memory_is_stored_as_usual(tmp_path: Path) -> None:
    model = network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_model(tmp_path / "model.safetensors", model, {})
    assert torch.equal(load_model(tmp_path / "model.safetensors").state["0.weight"], network().state_dict()["0.weight"])


def test_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(tmp_path / name, network(), {"classes": ["cat"]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_shape_names_the_tensor_and_both_shapes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, network(width=3), {})
    with pytest.raises(
        WeightsError, match=r"model\.safetensors does not fit .*0\.weight.*\[3, 3, 3, 3\].*\[5, 3"
    ) as caught:
        load_model(path).restore(network(width=5), path)
    assert "\n" not in str(caught.value)


def test_other_layers_name_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, network(), {})
    bigger = nn.Sequential(*network(), nn.Linear(2, 7))
    with pytest.raises(WeightsError, match=r"3\.weight") as caught:
        load_model(path).restore(bigger, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_model_is_damaged(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, network(), {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedFile, match=r"model\.safetensors is damaged"):
        load_model(path)


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(DamagedFile, match=r"there is no file .*model\.safetensors"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("metadata", [None, {"other": "x"}, {"cam-pipeline": "no json"}])
def test_safetensors_of_somebody_else_is_no_model(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(2)}, path, metadata)
    with pytest.raises(DamagedFile, match="no cam-pipeline model"):
        load_model(path)


def test_failed_save_keeps_the_old_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, network(), {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_model(path, network(), {"classes": object()})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("place", [-1, -40])
def test_changed_tensors_of_a_model_are_found(tmp_path: Path, place: int) -> None:
    """safetensors has no checksum of its own."""
    path = tmp_path / "model.safetensors"
    save_model(path, network(), {})
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"model\.safetensors is damaged .*its checksum is wrong"):
        load_model(path)


def test_model_of_before_there_were_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    notes = {"classes": ["cat"], "fingerprint": "12ab"}
    save_file(network().state_dict(), path, {"cam-pipeline": json.dumps(notes)})
    assert load_model(path).metadata == notes
    save_file(network().state_dict(), path, {"cam-pipeline": json.dumps(notes | {"crc33": "1"})})
    with pytest.raises(DamagedFile, match="its checksum is wrong"):
        load_model(path)


# Checkpoints


def test_checkpoint_comes_back(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    path = tmp_path / "partial" / "checkpoint.pt"
    state = {"step": 7, "network": model.state_dict(), "optimizer": optimizer.state_dict(), "history": json.dumps([1])}
    save_checkpoint(path, state)
    loaded = load_checkpoint(path)
    assert loaded is not None
    assert (loaded["step"], loaded["history"]) == (7, "[1]")
    assert all(torch.equal(loaded["network"][key], value) for key, value in model.state_dict().items())
    torch.testing.assert_close(loaded["optimizer"], optimizer.state_dict(), rtol=0, atol=0)


def test_no_checkpoint_is_none_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_checkpoint(tmp_path / "checkpoint.pt") is None
    assert caplog.messages == []


@pytest.mark.parametrize("kept", [0, 2, 100, 0.5, -1])
def test_truncated_checkpoint_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: float
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1, "network": network().state_dict()})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 if kept == 0.5 else int(kept)])
    assert load_checkpoint(path) is None
    assert len(caplog.messages) == 1
    assert str(path) in caplog.messages[0]
    assert "training starts over" in caplog.messages[0]


def test_checkpoint_with_changed_tensors_is_ignored(tmp_path: Path) -> None:
    """A block of zeros, as a power cut may leave it; torch.load alone does not see it."""
    path, weights = tmp_path / "checkpoint.pt", torch.arange(1000.0)
    save_checkpoint(path, {"weights": weights})
    content = path.read_bytes()
    assert weights.numpy().tobytes() in content
    path.write_bytes(content.replace(weights.numpy().tobytes(), torch.zeros(1000).numpy().tobytes()))
    assert load_checkpoint(path) is None


def test_garbage_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"\x80\x02not a pickle at all")
    assert load_checkpoint(tmp_path / "checkpoint.pt") is None


# Nothing is unpickled


def malicious_files(folder: Path, victim: Path) -> list[Path]:
    import pickle

    files = [folder / "new.pt", folder / "old.pt", folder / "plain.pkl", folder / "hidden.pt"]
    torch.save({"network": Malice(victim)}, files[0])
    torch.save({"network": Malice(victim)}, files[1], _use_new_zipfile_serialization=False)
    files[2].write_bytes(pickle.dumps(Malice(victim), protocol=2))
    torch.save({"state_dict": {"0.weight": torch.zeros(1)}, "epoch": Malice(victim)}, files[3])
    return files


def test_the_malicious_files_would_do_harm(tmp_path: Path) -> None:
    """Else the two tests below would prove nothing."""
    for number, file in enumerate(malicious_files(tmp_path, tmp_path / "victim")):
        if file.suffix == ".pt":
            torch.load(file, weights_only=False)
            assert (tmp_path / "victim").is_dir(), number
            (tmp_path / "victim").rmdir()


@pytest.mark.parametrize("number", range(4))
def test_malicious_checkpoint_is_never_executed(tmp_path: Path, number: int) -> None:
    file = malicious_files(tmp_path, tmp_path / "victim")[number]
    assert load_checkpoint(file) is None
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
def test_malicious_weights_are_never_executed(tmp_path: Path, number: int, suffix: str) -> None:
    file = malicious_files(tmp_path, tmp_path / "victim")[number]
    file = file.rename(file.with_suffix(suffix))
    with pytest.raises(WeightsError, match="cannot be read as weights") as caught:
        read_weights(file)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "victim").exists()


def test_malicious_model_is_never_executed(tmp_path: Path) -> None:
    for file in malicious_files(tmp_path, tmp_path / "victim"):
        with pytest.raises(DamagedFile):
            load_model(file)
    assert not (tmp_path / "victim").exists()

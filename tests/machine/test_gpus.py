"""GPUs that torch can use, and why it cannot use others; torch and nvidia-smi are replaced."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cam_pipeline.machine import gpus as gpus_module
from cam_pipeline.machine.gpus import Driver, Gpu, gpus, hidden_by, nvidia_driver, torch_build, why_no_gpu

OPEN_DRIVER = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs@x)\nGCC version:\n"
)
OLD_DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\n"


def raising(error: Exception):
    def refuse(*_: object, **__: object) -> None:
        raise error

    return refuse


@pytest.mark.parametrize(
    ("cuda", "hip", "build"), [("12.6", None, "CUDA 12.6"), (None, "6.2", "ROCm 6.2"), (None, None, "")]
)
def test_what_torch_is_built_for(monkeypatch: pytest.MonkeyPatch, cuda: str, hip: str, build: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert torch_build() == build


def test_each_gpu_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"H{number}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (10, 20))
    monkeypatch.setattr(torch, "ones", lambda size, device: torch.full((size,), float(device == "cuda:0")))
    assert gpus() == [Gpu("H0", 20, 10, ""), Gpu("H1", 20, 10, "it counts wrongly")]
    monkeypatch.setattr(torch.cuda, "mem_get_info", raising(RuntimeError("CUDA error: out of memory\nCUDA kernel")))
    assert gpus()[0] == Gpu("H0", None, None, "CUDA error: out of memory CUDA kernel")


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpus() == []


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
            "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx",
            "The NVIDIA driver on your system is too old (found version 11040)",
        ),
        ("Found no NVIDIA driver on your system. Please check that ...", "Found no NVIDIA driver on your system"),
        (
            "CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env variable "
            "CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be zero.",
            "CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing env variable "
            "CUDA_VISIBLE_DEVICES after program start",
        ),
        ("No CUDA GPUs are available", "No CUDA GPUs are available"),
        ("", "RuntimeError"),
    ],
)
def test_why_torch_finds_none(monkeypatch: pytest.MonkeyPatch, message: str, reason: str) -> None:
    monkeypatch.setattr(torch.cuda, "init", raising(RuntimeError(message)))
    assert why_no_gpu() == reason


@pytest.mark.parametrize(("value", "name"), [("", "CUDA_VISIBLE_DEVICES"), ("-1", "CUDA_VISIBLE_DEVICES"), ("0", "")])
def test_what_hides_them(monkeypatch: pytest.MonkeyPatch, value: str, name: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert hidden_by() == name


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What nvidia-smi returns; it hangs if that is changed to raise."""
    ended = SimpleNamespace(returncode=0, stdout="570.86.15, NVIDIA H200\n570.86.15, NVIDIA T4\n")
    monkeypatch.setattr(gpus_module.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    return ended


def test_what_nvidia_smi_lists(tmp_path: Path, listed: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nvidia_driver(tmp_path) == Driver("570.86.15", ("NVIDIA H200", "NVIDIA T4"))
    listed.returncode = 9  # "couldn't communicate with the NVIDIA driver"
    assert nvidia_driver(tmp_path) is None
    monkeypatch.setattr(subprocess, "run", raising(subprocess.TimeoutExpired("nvidia-smi", 5)))
    assert nvidia_driver(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "version"), [(OPEN_DRIVER, "570.86.15"), (OLD_DRIVER, "470.57.02"), ("something else", "")]
)
def test_driver_in_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, version: str) -> None:
    monkeypatch.setattr(gpus_module.shutil, "which", lambda name: None)
    assert nvidia_driver(tmp_path) is None
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(text)
    assert nvidia_driver(tmp_path) == Driver(version, ())

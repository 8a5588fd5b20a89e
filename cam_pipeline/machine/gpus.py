"""GPUs: those that torch can use, and why it cannot use one that the system has."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cam_pipeline.errors import one_line
from cam_pipeline.machine.cgroup import ROOT

SECONDS = 5.0
"""How long nvidia-smi may take. It can hang if the driver does."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees; memory in bytes, None if it cannot be told."""

    name: str
    total: int | None
    free: int | None
    failure: str
    """Why it cannot compute; "" if it can."""


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver of the system. "" and () for what it does not tell."""

    version: str
    names: tuple[str, ...]
    """The GPUs that it lists."""


def torch_build() -> str:
    """What torch was built for: `CUDA 12.6`, `ROCm 6.2`, or "" for the CPU alone."""
    import torch  # late: it may be what is broken

    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else ""


def gpus() -> list[Gpu]:
    """The GPUs that torch sees. Each is tried, which takes a moment and some of its memory until this process ends."""
    import torch

    return [_tried(number) for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def _tried(number: int) -> Gpu:
    import torch

    name, total, free, failure = f"GPU {number}", None, None, ""
    try:
        name = torch.cuda.get_device_name(number)
        free, total = torch.cuda.mem_get_info(number)
        if torch.ones(8, device=f"cuda:{number}").sum().item() != 8:
            failure = "it counts wrongly"
    except Exception as error:  # torch has several, of the driver, of lacking kernels and of memory
        failure = _reason(error)
    return Gpu(name, total, free, failure)


def why_no_gpu() -> str:
    """What torch, built for CUDA or ROCm, says about not finding a GPU."""
    import torch

    try:
        torch.cuda.init()
    except Exception as error:  # RuntimeError and AssertionError, as they come
        return _reason(error)
    return "it finds 0 devices"


def hidden_by() -> str:
    """The environment variable that hides all GPUs from torch; "" if none does."""
    names = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    return next((name for name in names if os.environ.get(name, "0").strip() in ("", "-1")), "")


def nvidia_driver(root: Path = ROOT) -> Driver | None:
    """The NVIDIA driver, if the system shows one; `root` holds proc/."""
    listed = _listed()
    try:
        text = (root / "proc/driver/nvidia/version").read_text()
    except (OSError, ValueError):
        return listed
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]*\d)", text)
    return Driver(found[1] if found else "", listed.names if listed else ())


def _listed() -> Driver | None:
    """What nvidia-smi lists; None without it, or if it finds no driver."""
    program = shutil.which("nvidia-smi")
    if not program:
        return None
    command = [program, "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    rows = [line.partition(",") for line in ended.stdout.splitlines() if "," in line]
    if ended.returncode or not rows:
        return None
    return Driver(rows[0][0].strip(), tuple(row[2].strip() for row in rows))


def _reason(error: Exception) -> str:
    """The first sentence of an error, without the advice that follows it."""
    text = one_line(str(error)) or type(error).__name__
    return re.split(r"\.? (?=Please|Setting|If )|\.?$", text, maxsplit=1)[0][:200]

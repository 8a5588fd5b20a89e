"""Settings of how to compute, and where results go."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cam_pipeline.config.section import Section


class RunSettings(Section):
    """How to compute, not what: only `seed` and `precision` make results stale."""

    seed: int = Field(
        0, ge=0, le=2**32 - 1, description="seed of initial weights, order of images, augmentation and dropout"
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$", description="`auto`, `cpu` or `cuda[:n]` (also `--device`)"
    )
    workers: int = Field(
        0,
        ge=0,
        le=1024,
        description="processes that load images and run the CRF; 0: one for each core that may be used, "
        "at most 8 (also `--workers`)",
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="threads that torch computes with in the main process; 0: one for each core that may be "
        "used, unless OMP_NUM_THREADS says otherwise. Fewer leave cores to other programs",
    )
    backend: Literal["loky", "threading", "dask", "ray"] = Field(
        "loky",
        description="what runs the CRF, by joblib: `loky` (processes on this machine), `threading`, `dask` (the "
        "scheduler at DASK_SCHEDULER_ADDRESS, else processes on this machine) or `ray`",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="`bfloat16`: autocast, which is faster, if the processor is made for it; else float32, and a "
        "warning",
    )
    compile: bool = Field(
        False,
        description="compile the networks for training (`torch.compile`): a slow first step, faster ones after it",
    )


class OutputSettings(Section):
    """Where results go."""

    dir: Path | None = Field(None, description="run folder; unset: `outputs/<name of the config file>`")

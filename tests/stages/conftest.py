"""Stages are called as functions here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cam_pipeline.config import Config
from cam_pipeline.data.dataset import Dataset
from cam_pipeline.data.digest import FileDigests
from cam_pipeline.pipeline import Inputs


@pytest.fixture
def inputs(tmp_path: Path) -> Callable[..., Inputs]:
    """What a stage is given: `inputs(config, extract_cams=path)`."""

    def make(config: Config, **results: Path) -> Inputs:
        return Inputs(Dataset(config.data, FileDigests(tmp_path / "digests.json")), results)

    return make

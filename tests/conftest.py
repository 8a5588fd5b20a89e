"""Shared by all tests: no network, no display, no GPU unless asked for."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Set before torch, timm and matplotlib are imported, here or in a subprocess of a test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# A slow machine must not fail a property test, and a failure must come back in the next run.
settings.register_profile("cam-pipeline", deadline=None, derandomize=True)
settings.load_profile("cam-pipeline")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch  # late: most tests do not need it

        if not torch.cuda.is_available():
            pytest.skip("needs CUDA")

"""How threads wait is settled before torch is loaded; a user's own choice wins."""

import os
import subprocess
import sys

import pytest
import torch

from cam_pipeline.machine.threads import thread_count, use_threads, wait_without_spinning, waiting


@pytest.fixture
def no_choice(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    return monkeypatch


def test_threads_sleep_while_they_wait(no_choice: pytest.MonkeyPatch) -> None:
    assert waiting() == ""
    wait_without_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert waiting() == "OMP_WAIT_POLICY=PASSIVE"


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "100"), ("KMP_BLOCKTIME", "200")]
)
def test_own_choice_wins(no_choice: pytest.MonkeyPatch, name: str, value: str) -> None:
    no_choice.setenv(name, value)
    before = dict(os.environ)
    wait_without_spinning()
    assert dict(os.environ) == before


def test_a_command_sets_it_before_torch_is_loaded() -> None:
    program = """
import os, sys
from cam_pipeline.cli import main
try:
    main(["train-cls", "--help"])
except SystemExit:
    print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.stdout.splitlines()[-1] == "PASSIVE False", ended.stderr


def test_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        use_threads(3)
        assert torch.get_num_threads() == 3
        use_threads(0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("asked", "chosen", "cores", "threads"),
    [(0, "", 2, 2), (0, "", 128, 64), (5, "", 2, 5), (0, "64", 2, 64), (5, "64", 2, 5)],
)
def test_a_container_has_no_more_threads_than_cores(
    monkeypatch: pytest.MonkeyPatch, asked: int, chosen: str, cores: int, threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr("cam_pipeline.machine.threads.usable_cores", lambda: cores)
    assert thread_count(asked) == threads

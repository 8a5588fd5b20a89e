"""What needs no network is told at once: help, the state of a run, and mistakes in the config or the table."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from cam_pipeline.cli import main
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""
TABLE = "image,labels,split\nimages/1.png,cat,train\n"


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command in a Python of its own."""
    (folder / "my.toml").write_text('data.root = "data"\noutput.dir = "run"\n')
    command = [sys.executable, "-c", PROGRAM, *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    return ended.returncode, ended.stderr


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "1.png").touch()
    (folder / "data.csv").write_text(TABLE)
    return folder


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["status", "-c", "my.toml"]])
def test_without_torch(data: Path, arguments: list[str]) -> None:
    code, stderr = run(data.parent, *arguments)
    assert code == 0 and stderr.splitlines()[-1] == "False", stderr


@pytest.mark.parametrize("command", ["check-data", "train-cls", "run", "status"])
def test_wrong_header_is_told_without_torch(data: Path, command: str) -> None:
    (data / "data.csv").write_text(TABLE.replace("labels", "label"))
    code, stderr = run(data.parent, command, "-c", "my.toml")
    assert code == 2 and stderr.splitlines()[-1] == "False", stderr


@pytest.mark.parametrize("command", ["check-data", "train-cls", "make-cams", "run", "status", "evaluate", "doctor"])
def test_wrong_setting_is_told_without_torch(data: Path, command: str) -> None:
    code, stderr = run(data.parent, command, "-c", "my.toml", "--set", "cam.sclaes=[1]")
    assert code == 2 and "did you mean" in stderr and stderr.splitlines()[-1] == "False", stderr

"""`make install` takes pydensecrf2 along where it can, and where not, it ends well and says so in one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Stands for Python: notes what pip is asked for, and lends `python -m venv` its own file.
PYTHON = """#!/bin/sh
case "$*" in
    *Python.h*) exit $NO_HEADERS ;;
    "-m venv"*) for folder; do :; done; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python" ;;
    *pip*) echo "$*" >>asked; echo "a long report"; case "$*" in *crf*) exit $PIP_FAILS ;; esac ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def make_install(folder: Path, **environment: str) -> tuple[list[str], list[str]]:
    """What `make install` prints besides commands, and what it asks pip for, with programs that only look like it."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    settings = {"MAKEFLAGS": "", "CXX": sys.executable, "NO_HEADERS": "0", "PIP_FAILS": "0"} | environment
    command = ["make", "--silent", "install", "PYTHON=./python"]
    done = subprocess.run(command, cwd=folder, env=os.environ | settings, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (folder / ".venv/.installed").exists() and not (folder / ".venv/.installing").exists()
    told = [line for line in done.stdout.splitlines() if line != "a long report"]
    return told, (folder / "asked").read_text().splitlines()


def test_with_a_compiler_pydensecrf2_comes_along(tmp_path: Path) -> None:
    told, asked = make_install(tmp_path)
    assert told == []
    assert asked == ["-m pip install --editable .[dev]", "-m pip install --editable .[crf]"]


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        ({"CXX": "no-such-compiler"}, "no C++ compiler"),
        ({"NO_HEADERS": "1"}, "no Python.h"),
        ({"CXX": "no-such-compiler", "NO_HEADERS": "1"}, "no C++ compiler"),
    ],
)
def test_without_what_it_compiles_with_only_a_wheel_is_tried(
    tmp_path: Path, lacking: dict[str, str], reason: str
) -> None:
    told, asked = make_install(tmp_path, PIP_FAILS="1", **lacking)
    assert told == [f"pydensecrf2 is not installed ({reason}): the CRF runs in torch."]
    assert asked[1:] == ["-m pip install --only-binary pydensecrf2 --editable .[crf]"]


def test_a_wheel_needs_no_compiler(tmp_path: Path) -> None:
    told, _ = make_install(tmp_path, CXX="no-such-compiler")
    assert told == []


def test_a_build_that_fails_is_told_in_one_line(tmp_path: Path) -> None:
    told, _ = make_install(tmp_path, PIP_FAILS="1")
    assert told == [
        "pydensecrf2 is not installed (pip failed, see .venv/pydensecrf2.log): the CRF runs in torch.",
    ]
    assert "a long report" in (tmp_path / ".venv/pydensecrf2.log").read_text()

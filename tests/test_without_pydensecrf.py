"""Without pydensecrf2, which compiles when it is installed, all modules import, and commands work.

That the CRF refines without it: tests/ops/test_crf.py and tests/stages/test_refine_cams.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest

# As on a machine without it, whether this one has it or not: neither the module nor the package is found.
HIDDEN = """
import importlib.metadata
import sys

def version(name, found=importlib.metadata.version):
    if name == "pydensecrf2":
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)

importlib.metadata.version = version
sys.modules["pydensecrf"] = None
"""
IMPORTS = """
from importlib import import_module
from pkgutil import walk_packages
import cam_pipeline
import cam_pipeline.stages

for package in (cam_pipeline, cam_pipeline.stages):
    for module in walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(".__main__"):
            print(import_module(module.name).__name__)
"""
CONFIGS = """
from cam_pipeline.config import load_config, shipped_configs
print(*(load_config(name).output.dir for name in shipped_configs()), sep="\\n")
"""


def run(folder: Path, code: str, *arguments: str) -> str:
    """Output of a program that finds no pydensecrf."""
    command = [sys.executable, "-c", HIDDEN + code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_imported(tmp_path: Path) -> None:
    assert {"cam_pipeline.ops.crf", "cam_pipeline.stages.refine_cams"} <= set(run(tmp_path, IMPORTS).split())


def test_configs_load(tmp_path: Path) -> None:
    assert run(tmp_path, CONFIGS).strip()


@pytest.mark.parametrize("arguments", [["--help"], ["make-cams", "--help"], ["status", "-c", "my.toml"]])
def test_commands_answer(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "data.csv").write_text("image,labels,split\n1.png,cat,train\n")
    (tmp_path / "1.png").touch()
    (tmp_path / "my.toml").write_text('data.root = "."\noutput.dir = "run"\n')
    shown = run(tmp_path, "from cam_pipeline.cli import main\nmain()", *arguments)
    assert "Usage" in shown or "refine_cams" in shown

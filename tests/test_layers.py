"""The floors: a module imports only from a lower floor or its own folder; a stage imports no stage."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = """
errors version
config ops
models
machine
data store
assembly cams refinement prediction pipeline
training evaluation export api
report stages
cli
"""
"""From the ground up; CONTRIBUTING.md shows the same list."""
HEIGHT = {part: height for height, line in enumerate(FLOORS.split("\n")) for part in line.split()}
# The package's own __init__.py may show what lies below it, and configs/ holds only files.
HEIGHT |= {"configs": 0, "cam_pipeline": len(HEIGHT)}
FOLDERS = {"cam_pipeline": ROOT / "cam_pipeline", "cam_pipeline.stages": ROOT / "stages"}


def part_of(module: str) -> str:
    """The piece that has a floor: `cam_pipeline.ops.acr` -> `ops`; the package itself is `cam_pipeline`."""
    return ".".join(module.split(".")[1:2]) or module


def imported(module: str, source: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and name of every import in `source`, wherever it stands: in a function, under TYPE_CHECKING."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            # `from cam_pipeline import ops` names a module; `from cam_pipeline.ops import x` need not.
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "cam_pipeline" else [base]
            yield from ((node.lineno, name) for name in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            literals = [argument for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            yield from ((node.lineno, str(literal.value)) for literal in literals)


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    """One line for every import in `source` that goes up, sideways, or to an unknown place."""
    own = part_of(module)
    if own not in HEIGHT:
        return [f"{module} has no floor: place `{own}` in FLOORS of tests/test_layers.py and in CONTRIBUTING.md"]
    found = []
    for line, target in imported(module, source, is_package):
        top, where = target.split(".")[0], f"{module}:{line}: imports {target}"
        if top in ("stages", "configs"):
            found.append(f"{where}; its name is cam_pipeline.{target}")
        if top != "cam_pipeline":
            continue
        # What has no floor of its own is an attribute of the package's __init__.py.
        other = part_of(target) if part_of(target) in HEIGHT else "cam_pipeline"
        if own == other == "stages":
            found.append(f"{where}; a stage never imports a stage")
        elif own == "models" and other == "config":
            found.append(f"{where}; models takes numbers and tensors, no config")
        elif own != other and HEIGHT[other] >= HEIGHT[own]:
            found.append(f"{where}; from {own} to {other} is not down")
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


@pytest.mark.parametrize(("module", "path"), [pytest.param(*found, id=found[0]) for found in modules()])
def test_imports_go_down(module: str, path: Path) -> None:
    found = violations(module, path.read_text(), is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("cam_pipeline.ops.acr", "from cam_pipeline.config import Config", "from ops to config is not down"),
        ("cam_pipeline.ops.acr", "import cam_pipeline.models.exits", "from ops to models is not down"),
        ("cam_pipeline.models.exits", "from ..config import Config", "models takes numbers and tensors, no config"),
        ("cam_pipeline.models.exits", "from cam_pipeline import config", "models takes numbers and tensors, no config"),
        ("cam_pipeline.ops", "from .. import pipeline", "from ops to pipeline is not down"),
        ("cam_pipeline.data.voc", "from cam_pipeline.store import labels", "from data to store is not down"),
        (
            "cam_pipeline.evaluation.rows",
            "from cam_pipeline import training",
            "from evaluation to training is not down",
        ),
        ("cam_pipeline.errors", "def f():\n    import cam_pipeline.machine.progress", "errors:2: imports"),
        (
            "cam_pipeline.store.cams",
            "if TYPE_CHECKING:\n    from cam_pipeline import training",
            "from store to training is not down",
        ),
        (
            "cam_pipeline.pipeline",
            "import_module('cam_pipeline.stages.train_cls')",
            "from pipeline to stages is not down",
        ),
        ("cam_pipeline.report.sheet", "from cam_pipeline import load_run", "from report to cam_pipeline is not down"),
        ("cam_pipeline.stages.a", "from cam_pipeline.stages.b import STAGE", "a stage never imports a stage"),
        ("cam_pipeline.stages.a", "from . import b", "a stage never imports a stage"),
        ("cam_pipeline.stages.a", "from .b import STAGE", "a stage never imports a stage"),
        ("cam_pipeline.cli", "import stages.train_cls", "its name is cam_pipeline.stages.train_cls"),
        ("cam_pipeline.novelty", "", "place `novelty` in FLOORS"),
        ("cam_pipeline.novelty.deep", "", "place `novelty` in FLOORS"),
    ],
)
def test_checker_complains(module: str, source: str, complaint: str) -> None:
    found = violations(module, source, is_package=module == "cam_pipeline.ops")
    assert len(found) == 1 and complaint in found[0], found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cam_pipeline.ops.acr", "import torch\nfrom cam_pipeline.ops.cam import resize\nfrom . import cam"),
        ("cam_pipeline.models.exits", "from cam_pipeline import ops\nfrom ..errors import ModelError"),
        ("cam_pipeline.machine.interrupt", "from cam_pipeline.errors import Interrupted"),
        ("cam_pipeline.store.cams", "from cam_pipeline.version import __version__"),
        ("cam_pipeline.stages.a", "from cam_pipeline.training import Loop\nfrom cam_pipeline import ops"),
        ("cam_pipeline.cli", "import_module(f'cam_pipeline.stages.{name}')"),
        ("cam_pipeline", "from cam_pipeline.evaluation import evaluate"),
    ],
)
def test_checker_is_content(module: str, source: str) -> None:
    assert violations(module, source, is_package=module == "cam_pipeline") == []


def test_modules_import_each_other_in_no_circle() -> None:
    """Also inside a folder: whoever follows the imports comes to an end."""
    known = dict(modules())
    imports = {
        module: {
            found
            for _, target in imported(module, path.read_text(), is_package=path.name == "__init__.py")
            for found in (target, target.rpartition(".")[0])
            if found in known and found != module and not module.startswith(found + ".")
        }
        for module, path in known.items()
    }
    left = dict(imports)
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert not left, sorted(left)


def test_contributing_shows_the_floors() -> None:
    assert f"```{FLOORS}```" in (ROOT / "CONTRIBUTING.md").read_text()


def test_command_line_starts_without_heavy_libraries() -> None:
    code = "import sys, cam_pipeline.cli; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    heavy = {"torch", "torchvision", "timm", "h5py", "matplotlib", "skimage", "segmentation_models_pytorch"}
    assert not heavy & set(shown.stdout.split())

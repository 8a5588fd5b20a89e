"""What is installed: every package, stage and config, and it works from a wheel in an empty folder."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Where the packages lie in the checkout; the keys are their installed names.
FOLDERS = {"cam_pipeline": "cam_pipeline", "cam_pipeline.stages": "stages", "cam_pipeline.configs": "configs"}
# What an extra brings that need not be installed: pydensecrf2 compiles.
OPTIONAL = {"pydensecrf": ["pydensecrf2"]}


def metadata(section: str, key: str) -> list[str]:
    """The lines of a list in setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser[section][key].split("\n")[1:]


def shipped_files() -> dict[str, Path]:
    """Path inside the package -> file in the checkout, for everything that the packages hold."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                found[f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"] = path
    return found


def requirement_names(lines: list[str]) -> set[str]:
    """`scikit-image >= 0.22` -> `scikit-image`."""
    return {re.split(r"[ <>=!~\[;]", line)[0] for line in lines if not line.startswith("#")}


def test_every_package_is_listed() -> None:
    on_disk = {name.rpartition("/")[0].replace("/", ".") for name in shipped_files() if name.endswith(".py")}
    assert metadata("options", "packages") == sorted(on_disk)


@pytest.mark.parametrize("extra", [None, "dev", "dask", "ray"])
def test_installing_needs_no_compiler(extra: str | None) -> None:
    lines = metadata("options.extras_require", extra) if extra else metadata("options", "install_requires")
    assert "pydensecrf2" not in requirement_names(lines)


def test_versions_of_python_are_those_that_were_tried() -> None:
    prefix = "Programming Language :: Python :: 3."
    claimed = [line.removeprefix(prefix) for line in metadata("metadata", "classifiers") if line.startswith(prefix)]
    tried = re.findall(r"^\| 3\.(\d+)", (ROOT / "docs/installing.md").read_text(), flags=re.M)
    assert claimed == sorted(set(tried), key=int)


def test_every_library_is_required() -> None:
    """By all, or by those who ask for the extra that a part of the work needs."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    extras = set(parser["options.extras_require"]) - {"dev"}
    required = requirement_names(metadata("options", "install_requires")).union(
        *(requirement_names(metadata("options.extras_require", extra)) for extra in extras)
    )
    providers = OPTIONAL | dict(packages_distributions())
    missing = set()
    for path in shipped_files().values():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"cam_pipeline"}:
                distributions = {name.lower().replace("_", "-") for name in providers.get(top, [top])}
                if not distributions & required:
                    missing.add(f"{path.relative_to(ROOT)} imports {top}, which setup.cfg does not bring")
    assert not missing, "\n".join(sorted(missing))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no old `build/` folder can lend it a file, nor a new one be left behind."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "wheel", "."], cwd=source)
    return next((source / "wheel").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel: what pip puts into site-packages."""
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run(command: list[str], cwd: Path, **environment: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_installed(installed: Path, cwd: Path, *arguments: str) -> str:
    """Run Python with the wheel and the libraries, but without the editable install of this checkout.

    `-S` keeps Python from reading the .pth files in site-packages, which would put the checkout back.
    """
    path = os.pathsep.join([str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return run([sys.executable, "-S", *arguments], cwd, PYTHONPATH=path)


def test_wheel_holds_every_file(installed: Path) -> None:
    names = {
        path.relative_to(installed).as_posix()
        for path in installed.rglob("*")
        if path.is_file() and ".dist-info" not in str(path)
    }
    assert names == set(shipped_files())


def test_wheel_takes_one_name_in_site_packages(installed: Path) -> None:
    assert sorted(path.name for path in installed.iterdir() if path.suffix != ".dist-info") == ["cam_pipeline"]
    entry_points = next(installed.glob("*.dist-info/entry_points.txt")).read_text()
    assert "cam-pipeline = cam_pipeline.cli:main" in entry_points


def test_demo_starts_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    shown = run_installed(installed, tmp_path, "-m", "cam_pipeline.cli", "demo", "--help")
    assert "Usage" in shown
    assert not list(tmp_path.iterdir())


def test_shipped_configs_load_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    code = """
import cam_pipeline.config as config
print(config.__file__)
for name in config.shipped_configs():
    config.load_config(name)
    print(name)
"""
    where, *names = run_installed(installed, tmp_path, "-c", code).split()
    assert Path(where).is_relative_to(installed)
    assert sorted(Path(name).stem for name in names) == sorted(path.stem for path in ROOT.glob("configs/*.toml"))
    assert names


def test_stages_import_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    code = """
from importlib import import_module
from cam_pipeline.pipeline import load_stages
for name in ("records", *load_stages()):
    print(import_module(f"cam_pipeline.stages.{name}").__file__)
"""
    files = run_installed(installed, tmp_path, "-c", code).split()
    expected = {path.stem for path in ROOT.glob("stages/*.py")} - {"__init__"}
    assert {Path(file).stem for file in files} == expected
    assert all(Path(file).is_relative_to(installed) for file in files)


def test_plain_stages_is_refused() -> None:
    code = "import sys; sys.path.insert(0, '.'); import stages"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "import cam_pipeline.stages, not stages" in done.stderr.splitlines()[-1]

"""The command: with a config or without, as a table or JSON, its exit code, and with a torch that cannot be loaded."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cam_pipeline.cli import main
from cam_pipeline.config import Config
from cam_pipeline.report.findings import Finding, Problem

OK, WARNING, ERROR = (
    Finding("fine"),
    Finding("slow", problems=(Problem("warning", "it is slow; do b"),)),
    Finding("gone", problems=(Problem("error", "it fails; do c"),)),
)


class Looks:
    """Stands for `examine`: notes what it was asked, and finds what the test says."""

    def __init__(self) -> None:
        self.found = {"cores": OK}
        self.config, self.given = Config(), False

    def __call__(self, config: Config, given: bool) -> dict[str, Finding]:
        self.config, self.given = config, given
        return self.found


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    stand_in = Looks()
    monkeypatch.setattr("cam_pipeline.report.doctor.examine", stand_in)
    monkeypatch.setattr("cam_pipeline.cli.options.configure_output", lambda verbose, quiet: None)
    yield stand_in


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments])


def test_without_a_config_the_defaults_are_looked_at(looks: Looks) -> None:
    result = call()
    assert (result.exit_code, result.stderr) == (0, "")
    assert (looks.config.folder, looks.config.run.device, looks.given) == (Path("outputs"), "auto", False)


@pytest.mark.parametrize(
    ("arguments", "folder", "workers"),
    [
        (["-c", "demo"], "outputs/demo", 0),
        (["-c", "demo", "--set", "output.dir=a", "--workers", "3"], "a", 3),
        (["--set", "output.dir=a"], "a", 0),
        (["--workers", "3"], "outputs", 3),
    ],
)
def test_config_and_settings(looks: Looks, arguments: list[str], folder: str, workers: int) -> None:
    assert call(*arguments).exit_code == 0
    assert (looks.config.folder, looks.config.run.workers, looks.given) == (Path(folder), workers, True)


@pytest.mark.parametrize(("finding", "code"), [(OK, 0), (WARNING, 0), (ERROR, 2)])
@pytest.mark.parametrize("options", [[], ["--json"], ["--quiet"]])
def test_exit_code(looks: Looks, finding: Finding, code: int, options: list[str]) -> None:
    looks.found = {"cores": finding}
    result = call(*options)
    assert (result.exit_code, result.stderr) == (code, "")


def test_json_is_all_there_is_on_stdout(looks: Looks) -> None:
    looks.found = {"cores": OK, "shared memory": ERROR}
    content = json.loads(call("--json").stdout)
    assert content["would_fail"] is True and list(content["findings"]) == ["cores", "shared_memory"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-c", "nothere.toml"], "Error: there is no config file nothere.toml"),
        (["--set", "run.worker=3"], "Error: command line: unknown key run.worker; did you mean run.workers?"),
        (["-c", "demo", "-c", "voc12"], "give one, not demo and voc12"),
    ],
)
def test_a_mistake_is_told_as_everywhere(looks: Looks, arguments: list[str], message: str) -> None:
    result = call("--json", *arguments)
    assert (result.exit_code, result.stdout) == (2, "") and message in result.stderr


def with_torch(source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`doctor --json` with this torch, in a Python of its own: the other libraries do import it there."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(source)
    command = [sys.executable, "-m", "cam_pipeline.cli", "doctor", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_with_a_torch_that_ends_python(tmp_path: Path) -> None:
    """As one does that was built for another processor: it is told where that happens."""
    ended = with_torch("import os; os.kill(os.getpid(), 4)", tmp_path)
    assert ended.returncode == -4
    assert ended.stderr.startswith("Fatal Python error: Illegal instruction") and "torch/__init__.py" in ended.stderr


def test_with_a_torch_that_cannot_be_loaded(tmp_path: Path) -> None:
    ended = with_torch("raise OSError('libcudart.so.13: cannot open shared object file')", tmp_path)
    assert (ended.returncode, ended.stderr) == (2, "")
    findings = json.loads(ended.stdout)["findings"]
    assert "libcudart.so.13: cannot open shared object file" in findings["libraries"]["problems"][0]["line"]
    states = {name: finding["state"] for name, finding in findings.items()}
    assert [name for name, state in states.items() if state == "unknown"] == ["device", "threads", "crf", "weights"]
    assert (states["cores"], states["output"]) == ("ok", "ok")

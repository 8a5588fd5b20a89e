"""Findings together: a failing check is "unknown", nothing private is shown, errors come first."""

import json
import re
from pathlib import Path

import pytest

from cam_pipeline.config import Config, default_config
from cam_pipeline.report import doctor
from cam_pipeline.report.doctor import CHECKS, as_json, examine, show, would_fail
from cam_pipeline.report.findings import Finding, Problem

WARNING, ERROR = Problem("warning", "a is slow; do b"), Problem("error", "c fails; do d")


def of(finding: Finding):
    return {"one thing": lambda config, given: finding}


def failing(config: Config, given: bool) -> Finding:
    raise PermissionError(13, "Permission denied", "/proc/meminfo")


def test_a_check_that_fails_is_unknown() -> None:
    (found,) = examine(Config(), False, {"memory": failing}).values()
    assert found.found == "unknown ([Errno 13] Permission denied: '/proc/meminfo')"
    assert (found.state, found.problems, found.values) == ("unknown", (), {})


@pytest.mark.parametrize("home", ["/home/jane", "/root"])
def test_the_home_is_not_named(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setenv("HOME", home)
    finding = Finding(
        f"{home}/run",
        {"a": {"folder": f"{home}/run", "free": 7}, "b": home},
        (Problem("error", f"{home}/x; /mnt{home}"),),
    )
    (found,) = examine(Config(), False, of(finding)).values()
    assert (found.found, found.problems[0].line) == ("~/run", f"~/x; /mnt{home}")
    assert found.values == {"a": {"folder": "~/run", "free": 7}, "b": "~"}


def test_other_paths_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for home, text in (("/", "/tmp/a"), ("/home/jane", "/home/janet/a and /home/jane.old")):
        monkeypatch.setenv("HOME", home)
        (found,) = examine(Config(), False, of(Finding(text))).values()
        assert found.found == text


def documented(page: str) -> dict[str, set[str]]:
    """The keys of `values` by finding, from the last table of the page."""
    rows = [row.split("|") for row in page.rpartition("| `values` |")[2].splitlines() if row.startswith("| `")]
    return {name: set(re.findall(r"`(\w+)`", row[2])) for row in rows for name in re.findall(r"`(\w+)`", row[1])}


def test_every_check_runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    """On whatever machine this is, no check fails. The page names the keys of the JSON."""
    monkeypatch.setattr("cam_pipeline.models.hub._ask", lambda address, patience: "")
    settings = [f"output.dir={tmp_path}", "classifier.weights=none", "segmenter.weights=none"]
    found = examine(default_config(settings), False)
    assert list(found) == list(CHECKS)
    assert [name for name, finding in found.items() if finding.state == "unknown"] == []
    content = json.loads(as_json(found))["findings"]
    assert content["output"]["values"]["writable"] is True
    page = documented((repository / "docs" / "troubleshooting.md").read_text())
    assert list(page) == list(content)
    content["weights"]["values"] = next(iter(content["weights"]["values"].values()))  # by setting
    for name, finding in content.items():
        assert set(finding["values"]) <= page[name], f"docs/troubleshooting.md: keys of {name}"


def test_without_torch_the_rest_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def why_broken(module: str) -> str:
        return "OSError: libcudart.so" if module == "torch" else ""

    monkeypatch.setattr("cam_pipeline.report.findings.why_broken", why_broken)
    found = examine(default_config([f"output.dir={tmp_path}"]), False)
    unknown = [name for name, finding in found.items() if finding.state == "unknown"]
    assert unknown == ["device", "threads", "CRF", "weights"] and would_fail(found)
    assert {found[name].found for name in unknown} == {"unknown (torch cannot be imported)"}
    assert [problem.line for problem in found["libraries"].problems] == [
        "torch cannot be imported (OSError: libcudart.so); install it again: pip install --force-reinstall torch "
        "torchvision"
    ]


def test_json() -> None:
    found = {"shared memory": Finding("a", {"free": 1}, (WARNING,)), "cam-pipeline": Finding("b")}
    content = json.loads(as_json(found))
    assert list(content) == ["version", "would_fail", "findings"] and content["would_fail"] is False
    assert content["findings"] == {
        "shared_memory": {
            "state": "warning",
            "found": "a",
            "problems": [{"state": "warning", "line": "a is slow; do b"}],
            "values": {"free": 1},
        },
        "cam_pipeline": {"state": "ok", "found": "b", "problems": [], "values": {}},
    }


FOUND = {
    "cores": Finding("2 [red]", problems=(WARNING,)),
    "memory": Finding("unknown (x)", known=False),
    "device": Finding("cpu", problems=(ERROR,)),
}


def test_table_then_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    show(FOUND)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "warning  cores   2 [red]", "unknown  memory  unknown (x)", "error    device  cpu", "",
        "error: c fails; do d", "warning: a is slow; do b", "A run would fail.",
    ]  # fmt: skip


def test_nothing_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    show({"cores": Finding("2")})
    assert capsys.readouterr().out.splitlines()[1:] == ["", "Nothing found here would stop a run."]
    show({"cores": Finding("2")}, quiet=True)
    assert capsys.readouterr().out == ""


def test_quiet_shows_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    show(FOUND, quiet=True)
    assert capsys.readouterr().out.splitlines() == [
        "error: c fails; do d", "warning: a is slow; do b", "A run would fail.",
    ]  # fmt: skip


def test_states_have_colours() -> None:
    assert set(doctor.COLOURS) == {"ok", "warning", "error", "unknown"}

import pytest
from click.testing import CliRunner

from cam_pipeline.cli import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "report takes one run or two, not 0"),
        (["a", "b", "c"], "report takes one run or two, not 3"),
        (["."], "is no run folder"),
    ],
)
def test_mistakes_are_one_line(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["report", *arguments])
    assert result.exit_code == 2 and words in result.output and len(result.output.strip().splitlines()) == 1


def test_one_run_and_two(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("cam_pipeline.report.html_report.write_report", lambda *given: calls.append(given) or "page")
    monkeypatch.setattr("cam_pipeline.report.two_runs.write_comparison", lambda *given: calls.append(given) or "page")
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(f'[output]\ndir = "{name}"\n')
    monkeypatch.chdir(tmp_path)
    for arguments in (["-c", "a.toml"], ["-c", "a.toml", "b.toml"], ["a.toml", "b.toml", "-o", "c.html"]):
        result = CliRunner().invoke(main, ["report", *arguments])
        assert result.output == "Report: page\n", result.output
    folders = [[one.folder.name if hasattr(one, "folder") else one and one.name for one in call] for call in calls]
    assert folders == [["a", None], ["a", "b", None], ["a", "b", "c.html"]]

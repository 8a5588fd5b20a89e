"""The command line: options become settings, mistakes become one line and exit code 2, a stop becomes 130."""

import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from cam_pipeline import __version__, errors
from cam_pipeline.cli import main
from cam_pipeline.cli.errors import REPORT, Commands
from cam_pipeline.cli.options import Options, configure_output, run_options
from cam_pipeline.config import Config, load_config, to_toml
from cam_pipeline.machine.atomic import UNNAMED
from cam_pipeline.machine.progress import set_quiet


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Commands set up logging for a process of their own."""
    root, own = logging.getLogger(), logging.getLogger("cam_pipeline")
    handlers, levels = root.handlers[:], (root.level, own.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    own.setLevel(levels[1])
    set_quiet(False)


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "mine.toml"
    path.write_text("[run]\nseed = 3\n")
    return str(path)


class PipelineOfNothing:
    """Stands for `pipeline.Pipeline`; notes what a command asks for."""

    calls: list[tuple[Any, ...]]

    def __init__(self, config: Config, source: str, same: str) -> None:
        self.config, self.folder = config, config.folder
        PipelineOfNothing.config = config

    def order(self, names: list[str]) -> list[str]:
        return ["everything before", *names]

    def finals(self) -> list[str]:
        return ["train_seg"]

    def made_by(self, command: str) -> list[str]:
        return ["all of", command]

    def run(self, names: list[str], force: bool = False) -> None:
        PipelineOfNothing.calls.append((*names, force))


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> type[PipelineOfNothing]:
    PipelineOfNothing.calls = []
    monkeypatch.setattr("cam_pipeline.pipeline.Pipeline", PipelineOfNothing)
    return PipelineOfNothing


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


# Options


def test_options_become_settings(config_file: str, pipeline: Any) -> None:
    result = call(
        "train-cls", "-c", config_file, "--set", "train_cls.epochs=2", "--set", "output.dir=x",
        "--device", "cuda:1", "--workers", "3",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    config = pipeline.config
    assert (config.run.seed, config.train_cls.epochs, config.run.device, config.run.workers) == (3, 2, "cuda:1", 3)
    assert config.folder == Path("x")


def test_device_and_workers_beat_set(config_file: str, pipeline: Any) -> None:
    call("train-cls", "-c", config_file, "--device", "cpu", "--set", "run.device=cuda", "--set", "run.workers=9",
         "--workers", "0")  # fmt: skip
    assert (pipeline.config.run.device, pipeline.config.run.workers) == ("cpu", 0)


@pytest.mark.parametrize(
    ("command", "stages"),
    [
        ("train-cls", ("train_cls",)),
        ("make-cams", ("all of", "make-cams")),
        ("train-seg", ("train_seg",)),
        ("run", ("everything before", "train_seg")),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_command_runs_its_stages(
    config_file: str, pipeline: Any, command: str, stages: tuple[str, ...], force: bool
) -> None:
    result = call(command, "-c", config_file, *["--force"] * force)
    assert result.exit_code == 0, result.output
    assert pipeline.calls == [(*stages, force)]


# Settings without effect


IN_VAIN = ["refine.crf=false", "refine.crf_iterations=5"]
WARNING = "refine.crf_iterations = 5 has no effect because refine.crf is false\n"


def with_settings(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


@pytest.mark.parametrize("options", [[], ["--quiet"], ["-v"]])
def test_setting_without_effect_is_warned_of_once(config_file: str, pipeline: Any, options: list[str]) -> None:
    result = call("train-cls", "-c", config_file, *with_settings(*IN_VAIN), *options)
    assert (result.exit_code, result.stderr) == (0, WARNING)
    assert call("train-cls", "-c", config_file, "--set", "refine.crf=false", *options).stderr == ""


def test_setting_without_effect_in_the_file_is_warned_of(tmp_path: Path, pipeline: Any) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[refine]\ncrf = false\ncrf_iterations = 5\ngaussian_sxy = 3.0\n")
    assert call("run", "-c", str(path)).stderr == WARNING


def test_demo_loads_its_config_twice_and_warns_once(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cam_pipeline.data.demo.synthetic.generate", lambda *args, **rest: None)
    monkeypatch.setattr("cam_pipeline.report.run_report.evaluate_run", lambda *args, **rest: {"sheet": ""})
    monkeypatch.setattr("cam_pipeline.report.terminal.show", lambda report: None)
    monkeypatch.setattr("cam_pipeline.cli.data.predict_new", lambda pipeline, root: root)
    result = call("demo", *with_settings(*IN_VAIN))
    assert (result.exit_code, result.stderr) == (0, WARNING)
    assert pipeline.calls == [("everything before", "train_seg", False)]


def test_of_many_settings_without_effect_five_are_named(config_file: str, pipeline: Any) -> None:
    many = [f"sfc.{setting}" for setting in ("draws=1", "ramp=1", "scale_weight=1", "prototype_weight=1", "extra=1")]
    assert len(call("run", "-c", config_file, *with_settings(*many)).stderr.splitlines()) == 5
    *lines, last = call("run", "-c", config_file, *with_settings(*many, *IN_VAIN, "acr.ramp=1")).stderr.splitlines()
    assert len(lines) == 5 and all("has no effect because objectives." in line for line in lines)
    assert last == "and 2 more settings have no effect"


def test_of_several_processes_the_first_warns(config_file: str, pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cam_pipeline.cli.options.is_first", lambda: False)
    assert call("run", "-c", config_file, *with_settings(*IN_VAIN), "-v").stderr == ""


def test_warning_is_one_line(config_file: str, pipeline: Any) -> None:
    result = call("run", "-c", config_file, "--set", 'classifier.trunk_weights="a\\nb\\u001b[2J"')
    assert len(result.stderr.splitlines()) == 1 and "\x1b" not in result.stderr


def test_loading_a_config_does_not_warn(config_file: str, caplog: pytest.LogCaptureFixture) -> None:
    load_config(config_file, IN_VAIN)  # as `open_run` does
    assert caplog.messages == []


@pytest.mark.parametrize("arguments", [["--workers", "-1"], ["--workers", "two"], ["--frobnicate"], ["extra"]])
def test_wrong_options_are_refused(config_file: str, pipeline: Any, arguments: list[str]) -> None:
    result = call("run", "-c", config_file, *arguments)
    assert result.exit_code == 2
    assert pipeline.calls == []


def test_odd_device_is_refused_in_one_line(config_file: str, pipeline: Any) -> None:
    result = call("run", "-c", config_file, "--device", "gpu")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert "run.device" in result.stderr and len(result.stderr.splitlines()) == 1


def test_quotes_in_the_device_do_not_become_toml(config_file: str, pipeline: Any) -> None:
    result = call("run", "-c", config_file, "--device", 'cpu"\nseed = "4')
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["train-cls", "make-cams", "train-seg", "run", "status", "evaluate"])
def test_config_must_be_given(command: str) -> None:
    result = call(command)
    assert result.exit_code == 2
    assert "--config" in result.output


def test_version_and_help() -> None:
    assert __version__ in call("--version").output
    assert all(name in call("-h").output for name in ("train-cls", "make-cams", "train-seg", "run", "status", "demo"))


@pytest.mark.parametrize(
    ("verbose", "quiet", "level"), [(False, False, "INFO"), (True, False, "DEBUG"), (False, True, "WARNING")]
)
def test_verbosity(verbose: bool, quiet: bool, level: str) -> None:
    configure_output(verbose, quiet)
    assert logging.getLevelName(logging.getLogger("cam_pipeline.training.trainer").getEffectiveLevel()) == level


def test_run_options_hand_over_what_a_command_adds(config_file: str) -> None:
    seen: list[Any] = []

    @click.command()
    @click.option("--split")
    @run_options(force=False)
    def command(options: Options, split: str) -> None:
        seen.extend([options, split])

    CliRunner().invoke(command, ["-c", config_file, "--split", "val"])
    assert seen == [Options(config_file, (), given=("-c", config_file)), "val"]
    assert CliRunner().invoke(command, ["-c", config_file, "--force"]).exit_code == 2


# Errors


def ended_by(error: BaseException) -> Result:
    @click.group(cls=Commands)
    def group() -> None:
        pass

    @group.command()
    def fail() -> None:
        raise error

    return CliRunner().invoke(group, ["fail"])


def all_mistakes() -> list[type[errors.UserError]]:
    classes = [errors.UserError]
    for each in classes:
        classes += each.__subclasses__()
    return classes


@pytest.mark.parametrize("mistake", all_mistakes())
def test_mistake_is_one_line_and_exit_code_2(mistake: type[errors.UserError]) -> None:
    result = ended_by(mistake("photo.jpg is torn; take another"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: photo.jpg is torn; take another\n"


def test_mistake_stays_one_line_whatever_library_words_are_in_it() -> None:
    result = ended_by(errors.ConfigError("segmenter.encoder: sizes differ:\n\t3 and\n\t4"))
    assert len(result.stderr.splitlines()) == 1
    assert "3 and" in result.stderr


def test_system_error_with_a_file_names_it() -> None:
    result = ended_by(PermissionError(13, "Permission denied", "/photos/a.jpg"))
    remedy = "get the permission, then start the same command again: finished work is kept"
    assert (result.exit_code, result.stderr) == (2, f"Error: /photos/a.jpg: Permission denied; {remedy}\n")


def test_full_disk_without_a_file_name_says_what_to_do() -> None:
    result = ended_by(OSError(28, "No space left on device"))
    remedy = "free some space, then start the same command again: finished work is kept"
    assert (result.exit_code, result.stderr) == (2, f"Error: No space left on device {UNNAMED}; {remedy}\n")


def test_too_little_memory_names_the_keys() -> None:
    result = ended_by(MemoryError())
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: too little memory; use fewer --workers, a smaller train_cls.batch_size")
    assert len(result.stderr.splitlines()) == 1


def test_message_with_control_characters_is_shown_as_they_are_written() -> None:
    result = ended_by(errors.DataError("unknown class 'a\x1b[31mb\udcff\u2028c'"))
    assert result.stderr == "Error: unknown class 'a\\x1b[31mb\\udcff c'\n"


def test_message_of_a_megabyte_is_cut_in_the_middle() -> None:
    result = ended_by(errors.DataError(f"begin {'x' * 10**6} end"))
    assert result.stderr.startswith("Error: begin xxx") and result.stderr.endswith("xxx end\n")
    assert len(result.stderr) < 2100


@pytest.mark.parametrize("error", [OSError("no number, no name"), RuntimeError("a bug"), KeyError("a bug")])
def test_our_own_mistakes_keep_their_traceback_and_say_how_to_report_them(error: Exception) -> None:
    assert ended_by(error).exception is error
    assert traceback.format_exception(error)[-1] == f"{REPORT}\n" and "`cam-pipeline doctor`" in REPORT


def test_a_closed_pipe_is_nobodys_fault() -> None:
    error = BrokenPipeError(32, "Broken pipe")
    ended_by(error)
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.Interrupted("stopped by SIGTERM; work is saved"), "stopped by SIGTERM; work is saved"),
        (KeyboardInterrupt(), "stopped at once"),
    ],
)
def test_stop_is_130_and_says_how_to_go_on(error: BaseException, words: str) -> None:
    result = ended_by(error)
    assert result.exit_code == 130
    assert result.stderr == f"Interrupted: {words}. The same command resumes from there.\n"


# The module as a program


def test_module_runs_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cam_pipeline.cli", "run", "-c", "absent.toml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: there is no config file absent.toml")
    assert list(tmp_path.iterdir()) == []


def test_options_load_the_shipped_demo_config() -> None:
    assert Options("demo", ("run.seed=5",)).load().run.seed == 5


def test_status_of_a_folder_with_brackets(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "data.csv").write_text("image,labels\na.jpg,cat\n")
    path = tmp_path / "mine.toml"
    path.write_text(f"[data]\nroot = '{tmp_path}'\n[classifier]\nweights = 'none'\n[segmenter]\nweights = 'none'\n")
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main, ["status", "-c", str(path), "--set", "output.dir=r[/b]n"])
    assert result.exit_code == 0, result.output
    assert "r[/b]n/cams.h5" in result.output


def test_a_device_number_has_two_digits_at_most(config_file: str) -> None:
    result = call("train-cls", "-c", config_file, "--device", "cuda:99999999999999999999")
    assert result.exit_code == 2
    assert "run.device" in result.output


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gb2312"])
@pytest.mark.parametrize(("config", "code"), [("\u00df\u732b\u05d0", 0), ("absent\u00df\u732b\u05d0", 2)])
def test_letters_that_the_terminal_lacks_are_escaped(tmp_path: Path, encoding: str, config: str, code: int) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1.png").touch()
    (tmp_path / "data" / "data.csv").write_text("image,labels\n1.png,cat\n")
    (tmp_path / "\u00df\u732b\u05d0.toml").write_text('data.root = "data"\n')
    ended = subprocess.run(
        [sys.executable, "-m", "cam_pipeline.cli", "status", "-c", f"{config}.toml"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "200"},
        capture_output=True,
        timeout=120,
    )
    assert ended.returncode == code and b"Traceback" not in ended.stderr
    # click takes an encoding of ASCII for a mistake in the settings of the terminal, and writes UTF-8.
    assert any(shown in ended.stdout + ended.stderr for shown in (b"\\u05d0", "\u05d0".encode()))


# Commands that are offered next


def test_options_are_carried_on_as_given_and_quoted_for_the_shell() -> None:
    seen: list[Options] = []
    command = click.command()(run_options()(seen.append))
    CliRunner().invoke(
        command, ["-c", "my photos.toml", "--set", "output.dir=a b", "--workers", "2", "--device", "cpu"]
    )
    assert seen[0].same == "-c 'my photos.toml' --set 'output.dir=a b' --device cpu --workers 2"
    assert seen[0].overrides == ("output.dir=a b", 'run.device="cpu"', "run.workers=2")


def test_a_result_that_is_missing_names_the_command_with_its_options(tmp_path: Path) -> None:
    (tmp_path / "1.png").touch()
    (tmp_path / "data.csv").write_text("image,labels\n1.png,cat\n")
    path = tmp_path / "my photos.toml"
    path.write_text(
        f"[data]\nroot = '{tmp_path}'\n[output]\ndir = '{tmp_path}/run'\n[train_seg]\nsupervision='masks'\n"
    )
    result = call("make-cams", "-c", str(path), "--set", "run.seed=3")
    assert result.exit_code == 2
    assert f"Run: cam-pipeline train-cls -c '{path}' --set run.seed=3" in result.output


# Two configs of one name


@pytest.fixture
def two_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1.png").touch()
    (tmp_path / "data.csv").write_text("image,labels\n1.png,cat\n")
    paths = [tmp_path / "a" / "my.toml", tmp_path / "b" / "my.toml"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(f"[data]\nroot = '{tmp_path}'\n")
    return paths


def wrote(path: Path) -> None:
    """What a stage of that config leaves in the folder that both use."""
    Path("outputs/my").mkdir(parents=True, exist_ok=True)
    Path("outputs/my/config.toml").write_text(f"# from ../../{path.parent.name}/my.toml\n{to_toml(load_config(path))}")


def test_two_configs_that_share_a_run_folder_are_told_of(two_configs: list[Path]) -> None:
    first, _ = two_configs
    wrote(first)
    assert "replace" not in call("status", "-c", str(first)).output
    assert "replace" not in call("status", "-c", "outputs/my/config.toml").output
    words = "outputs/my holds results of a/my.toml, and this is b/my.toml: they replace each other's; set output.dir"
    assert words in call("status", "-c", "b/my.toml").output


def test_a_project_that_was_copied_is_no_second_config(two_configs: list[Path], tmp_path: Path) -> None:
    wrote(two_configs[0])
    for name in ("a", "outputs"):
        shutil.copytree(tmp_path / name, tmp_path / "copy" / name)
    os.chdir(tmp_path / "copy")
    assert "replace" not in call("status", "-c", "a/my.toml").output


def test_a_config_that_was_moved_is_no_second_one(two_configs: list[Path]) -> None:
    first, second = two_configs
    wrote(first)
    first.unlink()
    assert "replace" not in call("status", "-c", str(second)).output


def test_a_run_folder_knows_its_config(two_configs: list[Path]) -> None:
    result = call("make-cams", "-c", str(two_configs[0]))  # it ends at the missing classifier
    assert result.exit_code == 2
    assert Path("outputs/my/config.toml").read_text().startswith("# from ../../a/my.toml\n")
    call("make-cams", "-c", "outputs/my/config.toml")
    assert Path("outputs/my/config.toml").read_text().startswith("# from ../../a/my.toml\n")
    assert load_config("outputs/my/config.toml") == load_config(two_configs[0])


def test_a_second_config_is_refused(config_file: str, pipeline: Any) -> None:
    result = call("run", "-c", config_file, "-c", "other.toml")
    assert result.exit_code == 2 and "give one, not" in result.output and pipeline.calls == []

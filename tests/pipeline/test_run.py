"""The stage engine, with a bakery of three stages that write a few bytes, and the staleness of the real stages."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cam_pipeline.config import Config, DataSettings, load_config
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.table import Table
from cam_pipeline.errors import ConfigError, DamagedFile, Interrupted, OutOfMemory, RunFolderBusy, StageNotReady
from cam_pipeline.machine.atomic import read_json
from cam_pipeline.pipeline import Inputs, Output, Pipeline, Stage, load_stages, state
from cam_pipeline.pipeline import run as engine

NAMES = ("grow", "mill", "bake")


class Bakery:
    """Stages grow -> mill -> bake. What each writes tells everything that it was made from.

    `made` lists the stages that ran. A stage named in `fails` finishes 2 of its 5 pieces and is then interrupted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[str] = []
        self.fails: set[str] = set()
        self.pieces_found: list[int] = []
        self.stages = {
            "grow": self.stage("grow", "wheat.bin", params=("cam",)),
            "mill": self.stage("mill", "flour.bin", params=("refine",), needs=("grow",)),
            "bake": self.stage("bake", "bread.bin", params=("labels", "run.seed"), needs=("mill",)),
        }

    def stage(self, name: str, makes: str, params: tuple[str, ...], needs: tuple[str, ...] = ()) -> Stage:
        def run(config: Config, inputs: Inputs, output: Output) -> None:
            self.made.append(name)
            pieces = sorted(output.folder.glob("piece-*"))
            self.pieces_found.append(len(pieces))
            if name in self.fails:
                for number in range(2):
                    (output.folder / f"piece-{number}").touch()
                progress = {"done": 2, "total": 5, "unit": "pieces"}
                (output.folder / "progress.json").write_text(json.dumps(progress))
                raise Interrupted("the oven is cold")
            recipe = {"params": config.pick(params), "inputs": {need: inputs[need].read_text() for need in needs}}
            output.path.write_text(json.dumps(recipe))

        return Stage(name, makes, name, run, params, needs=lambda config: needs)

    def pipeline(self, *overrides: str) -> Pipeline:
        here = f"output.dir={json.dumps(str(self.folder))}"
        config = load_config("demo", [here, "refine.background=0.25", *overrides])
        return Pipeline(config, self.stages)

    def run(self, *overrides: str, names: tuple[str, ...] = NAMES, force: bool = False) -> list[str]:
        """Run stages; the names of those that were made."""
        self.made.clear()
        self.pipeline(*overrides).run(names, force=force)
        return list(self.made)

    def kinds(self, *overrides: str) -> dict[str, str]:
        return {name: state.kind for name, state in self.pipeline(*overrides).states(["bake"]).items()}

    def reason(self, name: str, *overrides: str) -> str:
        return self.pipeline(*overrides).states([name])[name].reason

    def manifest(self, name: str) -> dict[str, Any]:
        return read_json(self.folder / f"{self.stages[name].makes}.manifest.json")

    def files(self) -> dict[str, bytes]:
        """Everything in the run folder, by relative path."""
        paths = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def bakery(tmp_path: Path) -> Bakery:
    return Bakery(tmp_path / "run")


@pytest.fixture
def baked(bakery: Bakery) -> Bakery:
    """A bakery in which everything is current."""
    bakery.run()
    return bakery


def all_of(kind: str) -> dict[str, str]:
    return dict.fromkeys(NAMES, kind)


# Order and the first run


def test_stages_come_after_what_they_need_and_once(bakery: Bakery) -> None:
    assert bakery.pipeline().order(["bake"]) == ["grow", "mill", "bake"]
    assert bakery.pipeline().order(["bake", "grow", "bake"]) == ["grow", "mill", "bake"]
    bakery.stages["feast"] = bakery.stage("feast", "feast.bin", params=(), needs=("bake", "grow"))
    assert bakery.pipeline().order(["feast"]) == ["grow", "mill", "bake", "feast"]


def test_everything_is_missing_at_first_and_asking_makes_no_folder(bakery: Bakery) -> None:
    assert bakery.kinds() == all_of("missing")
    assert not bakery.folder.exists()


def test_first_run_makes_everything_in_order(bakery: Bakery) -> None:
    assert bakery.run() == list(NAMES)
    assert bakery.kinds() == all_of("current")
    assert not list(bakery.folder.glob("partial/*"))


def test_second_run_makes_nothing_and_says_so(baked: Bakery) -> None:
    lines: list[str] = []
    before = baked.files()
    baked.made.clear()
    baked.pipeline().run(NAMES, announce=lines.append)
    assert baked.made == []
    assert [line.split(" (")[0] for line in lines] == [f"{name}: current, nothing to do" for name in NAMES]
    after = baked.files()
    assert before.pop("lock") and after.pop("lock")
    assert after == before


def test_manifest_tells_what_the_result_was_made_from(baked: Bakery) -> None:
    manifest = baked.manifest("bake")
    assert manifest["stage"] == "bake"
    assert manifest["facts"]["params"] == {"labels": {"undecided": "scores", "low": 0.35, "high": 0.55}, "run.seed": 0}
    assert manifest["facts"]["needs"] == {"mill": baked.manifest("mill")["run_id"]}
    assert manifest["bytes"] == (baked.folder / "bread.bin").stat().st_size


def test_resolved_config_is_in_the_run_folder(baked: Bakery) -> None:
    baked.run("labels.high=0.9")
    assert load_config(baked.folder / "config.toml") == baked.pipeline("labels.high=0.9").config


def test_config_is_written_before_the_first_stage(bakery: Bakery) -> None:
    bakery.fails = {"grow"}
    with pytest.raises(Interrupted):
        bakery.run()
    assert (bakery.folder / "config.toml").is_file()


def test_later_stages_are_checked_before_the_first_unless_they_are_current(bakery: Bakery) -> None:
    def check(config: Config) -> None:
        raise ConfigError(f"no oven of {config.labels.high}")

    bakery.stages = {name: dataclasses.replace(stage, check=check) for name, stage in bakery.stages.items()}
    with pytest.raises(ConfigError, match=r"no oven of 0\.55"):
        bakery.run()
    assert bakery.made == [] and bakery.kinds() == all_of("missing")
    for name in NAMES:  # alone, each says itself what is wrong
        assert bakery.run(names=(name,)) == [name]
    assert bakery.run() == []
    with pytest.raises(ConfigError):
        bakery.run(force=True)
    with pytest.raises(ConfigError):
        bakery.run("labels.high=0.9")
    assert bakery.made == []


def test_what_is_replaced_and_why_is_said_before_it_happens(baked: Bakery) -> None:
    lines: list[str] = []
    pipeline = baked.pipeline("refine.background=0.4")
    pipeline.run(NAMES, announce=lines.append)
    assert lines[0].startswith("refine.background was ")
    assert f", is 0.4: flour.bin, bread.bin in {baked.folder} will be replaced; to keep them" in lines[0]
    lines.clear()
    baked.pipeline("refine.background=0.4").run(NAMES, announce=lines.append)
    assert not [line for line in lines if "will be replaced" in line]


# What a change makes stale


@pytest.mark.parametrize(
    ("override", "remade"),
    [
        ("labels.high=0.9", ["bake"]),
        ("run.seed=1", ["bake"]),
        ("refine.background=0.4", ["mill", "bake"]),
        ("cam.scales=[0.5]", ["grow", "mill", "bake"]),
        ("run.workers=7", []),
        ("run.device=cpu", []),
        ("train_cls.epochs=99", []),  # of no stage here
    ],
)
def test_change_remakes_what_depends_on_it(baked: Bakery, override: str, remade: list[str]) -> None:
    states = baked.kinds(override)
    assert [name for name in NAMES if states[name] == "stale"] == remade
    assert baked.run(override) == remade
    assert baked.kinds(override) == all_of("current")


def test_changed_and_remade_result_holds_the_change(baked: Bakery) -> None:
    baked.run("refine.background=0.4")
    bread = json.loads((baked.folder / "bread.bin").read_text())
    assert json.loads(bread["inputs"]["mill"])["params"]["refine"]["background"] == 0.4


def test_change_taken_back_before_a_run_costs_nothing(baked: Bakery) -> None:
    assert baked.kinds("cam.scales=[0.5]") == all_of("stale")
    assert baked.kinds() == all_of("current")
    assert baked.run() == []


def test_change_taken_back_after_a_run_gives_the_first_results_again(baked: Bakery) -> None:
    first = baked.files()
    baked.run("cam.scales=[0.5]")
    assert baked.run() == list(NAMES)
    names = [stage.makes for stage in baked.stages.values()]
    assert {name: baked.files()[name] for name in names} == {name: first[name] for name in names}


def test_reason_names_the_setting(baked: Bakery) -> None:
    assert baked.reason("mill", "refine.background=0.4") == "refine.background was 0.25, is 0.4"
    assert baked.reason("bake", "run.seed=3") == "run.seed was 0, is 3"
    assert baked.reason("bake", "refine.background=0.4") == "made from an earlier mill"


def test_reason_names_a_new_version(baked: Bakery) -> None:
    baked.stages["mill"] = dataclasses.replace(baked.stages["mill"], version=2)
    assert baked.reason("mill") == "the stage's code changed (version 1 to 2)"
    assert baked.run() == ["mill", "bake"]


def test_reason_names_the_data(baked: Bakery) -> None:
    baked.stages["grow"] = dataclasses.replace(baked.stages["grow"], data=lambda config, dataset: "other seeds")
    assert baked.reason("grow") == "the data changed"
    assert baked.run() == list(NAMES)


def test_an_earlier_result_is_offered_only_if_the_data_alone_is_another(baked: Bakery) -> None:
    """Neither after a change of settings, nor after `--force`, nor if its content is not that of its manifest."""
    offered: list[Any] = []
    bake = baked.stages["mill"].run

    def run(config: Config, inputs: Inputs, output: Output) -> None:
        offered.append(output.earlier and (output.earlier.path.name, output.earlier.manifest["stage"]))
        bake(config, inputs, output)

    def with_data(data: str) -> None:
        baked.stages["mill"] = dataclasses.replace(baked.stages["mill"], run=run, data=lambda config, dataset: data)

    with_data("more clicks")
    baked.run()
    baked.run("refine.background=0.5")
    baked.run("refine.background=0.5", names=("mill",), force=True)
    baked.run("refine.background=0.5", "cam.flip=false")  # made from other maps
    with_data("even more")
    (baked.folder / "flour.bin").write_text("?")
    baked.run("refine.background=0.5", "cam.flip=false")
    (baked.folder / "flour.bin").unlink()
    with_data("most")
    baked.run("refine.background=0.5", "cam.flip=false")
    assert offered == [("flour.bin", "mill"), None, None, None, None, None]


def test_reason_is_the_setting_where_it_decides_what_is_read_of_the_data(baked: Bakery) -> None:
    baked.stages["grow"] = dataclasses.replace(
        baked.stages["grow"], data=lambda config, dataset: str(config.cam.splits)
    )
    baked.run()
    assert baked.reason("grow", 'cam.splits=["val"]') == "cam.splits was ['train'], is ['val']"


def test_stage_with_other_needs_is_stale(baked: Bakery) -> None:
    baked.stages["bake"] = dataclasses.replace(baked.stages["bake"], needs=lambda config: ())
    baked.stages["bake"] = dataclasses.replace(
        baked.stages["bake"], run=lambda config, inputs, output: output.path.touch()
    )
    state = baked.pipeline().states(["bake"])["bake"]
    assert (state.kind, state.reason) == ("stale", "it now needs no other result")


def test_failed_remake_keeps_the_old_result_under_its_old_config(baked: Bakery) -> None:
    baked.fails = {"mill"}
    with pytest.raises(Interrupted):
        baked.run("refine.background=0.4")
    assert baked.kinds() == all_of("current")


# Missing files


def test_deleted_result_remade_leaves_what_follows_current(baked: Bakery) -> None:
    (baked.folder / "wheat.bin").unlink()
    assert baked.kinds() == {"grow": "missing", "mill": "stale", "bake": "stale"}
    assert baked.reason("mill") == "grow is missing"
    assert baked.run() == ["grow"]
    assert baked.kinds() == all_of("current")


def test_other_bytes_under_the_same_settings_make_what_follows_stale(baked: Bakery) -> None:
    """As from training again with another number of processes."""
    grow = baked.stages["grow"]

    def run(config: Config, inputs: Inputs, output: Output) -> None:
        grow.run(config, inputs, output)
        output.path.write_bytes(output.path.read_bytes() + b"other")

    (baked.folder / "wheat.bin").unlink()
    baked.stages["grow"] = dataclasses.replace(grow, run=run)
    assert baked.run(names=("grow",)) == ["grow"]
    assert baked.kinds() == {"grow": "current", "mill": "stale", "bake": "stale"}
    assert baked.reason("mill") == "made from an earlier grow"
    assert baked.run() == ["mill", "bake"]


def test_a_file_of_the_same_size_put_in_its_place_is_damaged(baked: Bakery) -> None:
    path = baked.folder / "flour.bin"
    state = path.stat()
    path.write_bytes(bytes(reversed(path.read_bytes())))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert baked.kinds() == {"grow": "current", "mill": "damaged", "bake": "stale"}
    assert baked.reason("mill").endswith("has another content than when it was made")


def test_manifest_of_an_earlier_version_states_no_digest(baked: Bakery) -> None:
    path = baked.folder / "flour.bin.manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"], manifest["libraries"]
    path.write_text(json.dumps(manifest))
    assert baked.kinds() == all_of("current")


def test_status_tells_of_other_versions_of_libraries(baked: Bakery) -> None:
    path = baked.folder / "flour.bin.manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["libraries"].keys() >= {"torch", "timm"}
    now = manifest["libraries"]["timm"]
    manifest["libraries"]["timm"] = "0.1"
    path.write_text(json.dumps(manifest))
    assert baked.kinds() == all_of("current")
    assert baked.reason("mill").endswith(f" with timm 0.1 (now {now})")
    assert "with" not in baked.reason("grow")


def test_optional_libraries_need_not_be_there(baked: Bakery, monkeypatch: pytest.MonkeyPatch) -> None:
    """pydensecrf2 may be missing, today or when a result was made; both results are current."""
    path = baked.folder / "flour.bin.manifest.json"
    manifest = json.loads(path.read_text())
    manifest["libraries"]["no-such-library"] = "1.1"
    path.write_text(json.dumps(manifest))
    monkeypatch.setattr(state, "LIBRARIES", (*state.LIBRARIES, "no-such-library"))
    assert baked.kinds() == all_of("current")
    assert baked.reason("mill").endswith(" with no-such-library 1.1 (now not installed)")
    assert "no-such-library" not in state.libraries()
    assert "no-such-library" not in baked.reason("bake")


@pytest.mark.parametrize("content", [None, "", "{half a mani", "[]", "{}", '{"fingerprint": 3}'])
def test_result_without_a_readable_manifest_is_made_again(baked: Bakery, content: str | None) -> None:
    path = baked.folder / "flour.bin.manifest.json"
    path.unlink() if content is None else path.write_text(content)
    assert baked.kinds()["mill"] == "missing"
    assert baked.run() == ["mill"]
    assert baked.kinds() == all_of("current")


def test_stage_alone_needs_current_results_and_names_the_command(baked: Bakery) -> None:
    before = baked.files()
    with pytest.raises(StageNotReady, match=r"wheat\.bin is stale \(cam\.scales was .*\)\. Run: cam-pipeline grow"):
        baked.run("cam.scales=[0.5]", names=("mill", "bake"))
    assert baked.made == []
    changed = {name for name, content in baked.files().items() if before.get(name) != content}
    assert changed <= {"lock", "config.toml", "digests.json"}


def test_not_ready_names_the_command_that_users_type() -> None:
    assert {stage.command for stage in load_stages().values()} == {"train-cls", "train-e2e", "make-cams", "train-seg"}


def test_ensure_gives_the_path_of_a_current_result(baked: Bakery) -> None:
    assert baked.pipeline().ensure("mill") == baked.folder / "flour.bin"
    with pytest.raises(StageNotReady, match="stale"):
        baked.pipeline("refine.background=0.4").ensure("mill")


# Interrupted work


def test_interrupted_stage_is_partial_and_goes_on(bakery: Bakery) -> None:
    bakery.fails = {"mill"}
    with pytest.raises(Interrupted):
        bakery.run()
    assert bakery.kinds() == {"grow": "current", "mill": "partial", "bake": "missing"}
    assert bakery.reason("mill") == "2 of 5 pieces done"
    bakery.fails, bakery.pieces_found = set(), []
    assert bakery.run() == ["mill", "bake"]
    assert bakery.pieces_found == [2, 0]
    assert not list(bakery.folder.glob("partial/*"))


def test_unfinished_work_is_never_taken_up_under_another_config(bakery: Bakery) -> None:
    bakery.fails = {"mill"}
    with pytest.raises(Interrupted):
        bakery.run()
    assert bakery.kinds("refine.background=0.4")["mill"] == "missing"
    bakery.fails, bakery.pieces_found = set(), []
    bakery.run("refine.background=0.4")
    assert bakery.pieces_found == [0, 0]


def test_unfinished_work_waits_while_the_config_is_another(bakery: Bakery) -> None:
    bakery.fails = {"bake"}
    with pytest.raises(Interrupted):
        bakery.run()
    with pytest.raises(Interrupted):
        bakery.run("labels.high=0.9")
    bakery.fails, bakery.pieces_found = set(), []
    assert bakery.run() == ["bake"]
    assert bakery.pieces_found == [2]


def test_making_a_result_keeps_the_interrupted_work_of_two_other_settings(bakery: Bakery) -> None:
    bakery.fails = {"mill"}
    settings, folders = [f"refine.background={score}" for score in (0.1, 0.2, 0.3)], list[Path]()
    for setting in settings:
        with pytest.raises(Interrupted):
            bakery.run(setting)
        (folder,) = set(bakery.folder.glob("partial/mill-*")) - set(folders)
        folders.append(folder)
    for age, folder in zip((2, 3, 1), folders, strict=True):  # the second is the oldest
        for path in (*folder.iterdir(), folder):
            os.utime(path, (1e9 - age, 1e9 - age))
    bakery.fails, bakery.pieces_found = set(), []
    for _ in range(2):  # made, then current
        bakery.run()
        assert [folder.exists() for folder in folders] == [True, False, True]
    bakery.pieces_found = []
    assert bakery.run(settings[0]) == ["mill", "bake"]
    assert bakery.pieces_found == [2, 0]


def test_finishing_a_stage_leaves_the_unfinished_work_of_others(bakery: Bakery) -> None:
    bakery.fails = {"mill"}
    with pytest.raises(Interrupted):
        bakery.run()
    bakery.run(names=("grow",), force=False)
    assert bakery.kinds()["mill"] == "partial"


# Damage


def test_file_of_another_size_is_damaged(baked: Bakery) -> None:
    path = baked.folder / "flour.bin"
    path.write_bytes(path.read_bytes()[:-1])
    assert baked.kinds() == {"grow": "current", "mill": "damaged", "bake": "stale"}
    assert str(path.stat().st_size) in baked.reason("mill")
    assert baked.reason("bake") == "mill is damaged"


def test_damage_is_reported_and_only_force_overwrites_it(baked: Bakery) -> None:
    path = baked.folder / "flour.bin"
    path.write_bytes(b"")
    before = baked.files()
    with pytest.raises(DamagedFile, match=r"flour\.bin has 0 bytes, .* cam-pipeline mill --force"):
        baked.run()
    assert baked.made == []
    assert baked.files() | {"lock": b""} == before | {"lock": b""}
    assert baked.run(names=("mill",), force=True) == ["mill"]
    assert baked.run() == ["bake"]


# --force


def test_force_makes_everything_behind_it_stale(baked: Bakery) -> None:
    old = baked.manifest("grow")["run_id"]
    assert baked.run(names=("grow",), force=True) == ["grow"]
    assert baked.manifest("grow")["run_id"] != old
    assert baked.kinds() == {"grow": "current", "mill": "stale", "bake": "stale"}
    assert baked.reason("mill") == "made from an earlier grow"
    assert baked.run() == ["mill", "bake"]
    assert baked.run() == []


def test_force_on_all_makes_all_once(baked: Bakery) -> None:
    assert baked.run(force=True) == list(NAMES)
    assert baked.kinds() == all_of("current")


def test_two_forced_runs_have_two_run_ids(baked: Bakery) -> None:
    baked.run(names=("grow",), force=True)
    first = baked.manifest("grow")["run_id"]
    baked.run(names=("grow",), force=True)
    assert baked.manifest("grow")["run_id"] != first


def test_force_starts_over(bakery: Bakery) -> None:
    bakery.fails = {"grow"}
    with pytest.raises(Interrupted):
        bakery.run()
    bakery.fails, bakery.pieces_found = set(), []
    bakery.run(names=("grow",), force=True)
    assert bakery.pieces_found == [0]


def test_killed_force_goes_on_at_the_next_plain_run_with_its_run_id(baked: Bakery) -> None:
    baked.fails = {"grow"}
    with pytest.raises(Interrupted):
        baked.run(names=("grow",), force=True)
    state = baked.pipeline().states(["grow"])["grow"]
    assert state.kind == "partial"
    assert state.run_id != state.fingerprint
    baked.fails, baked.pieces_found = set(), []
    assert baked.run() == list(NAMES)
    assert baked.pieces_found[0] == 2
    assert baked.manifest("grow")["run_id"] == state.run_id


def test_force_killed_before_any_progress_goes_on_too(baked: Bakery, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(config: Config, inputs: Inputs, output: Output) -> None:
        raise Interrupted("at once")

    good, baked.stages["grow"] = baked.stages["grow"], dataclasses.replace(baked.stages["grow"], run=die)
    with pytest.raises(Interrupted):
        baked.run(names=("grow",), force=True)
    run_id = baked.pipeline().states(["grow"])["grow"].run_id
    baked.stages["grow"] = good
    assert baked.run() == list(NAMES)
    assert baked.manifest("grow")["run_id"] == run_id


# The manifest is the "done" bit


class Crash(BaseException):
    """Stands for a power cut: nothing catches it."""


def test_manifest_is_written_last(baked: Bakery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between the rename and the manifest: the new file stands there, without the old manifest."""
    write = engine.write_text

    def crash_at_the_manifest(path: Path, text: str) -> None:
        if path.name == "flour.bin.manifest.json":
            raise Crash
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "write_text", crash_at_the_manifest)
        with pytest.raises(Crash):
            baked.run("refine.background=0.4")
    assert '"background": 0.4' in (baked.folder / "flour.bin").read_text()
    assert baked.manifest("mill") == {}
    assert baked.kinds("refine.background=0.4")["mill"] != "current"
    assert baked.kinds()["mill"] != "current"
    assert baked.run("refine.background=0.4") == ["mill", "bake"]
    assert baked.kinds("refine.background=0.4") == all_of("current")


def test_crash_before_the_rename_keeps_the_finished_file(baked: Bakery, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old manifest went before the rename, so that at no moment it stood beside the new file."""

    rename = os.replace

    def crash_at_the_result(source: Path, target: Path) -> None:
        if target == baked.folder / "flour.bin":
            assert not (baked.folder / "flour.bin.manifest.json").exists()
            raise Crash
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash_at_the_result)
        with pytest.raises(Crash):
            baked.run("refine.background=0.4")
    assert '"background": 0.25' in (baked.folder / "flour.bin").read_text()
    assert baked.kinds()["mill"] != "current"
    assert baked.run("refine.background=0.4") == ["mill", "bake"]


# One process at a time


@contextlib.contextmanager
def another_process_holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a run folder, and says so in it, until it is killed."""
    code = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'a+')\nfcntl.lockf(file, fcntl.LOCK_EX)\n"
        "file.write('process 4711 on moon')\nfile.flush()\nprint('held', flush=True)\nsys.stdin.read()"
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lock").write_text("")
    command = [sys.executable, "-c", code, str(folder / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        yield holder
        holder.kill()


def test_second_process_names_the_holder_and_changes_nothing(baked: Bakery) -> None:
    with another_process_holding(baked.folder):
        before = baked.files()
        with pytest.raises(RunFolderBusy, match=r"is in use by process 4711 on moon; .*output\.dir"):
            baked.run("cam.scales=[0.5]")
        assert baked.made == []
        assert baked.files() == before


def test_status_is_told_while_another_process_works(baked: Bakery) -> None:
    with another_process_holding(baked.folder):
        assert baked.kinds() == all_of("current")


def test_lock_ends_with_the_process_that_held_it(baked: Bakery) -> None:
    with another_process_holding(baked.folder) as holder:
        holder.kill()
        holder.wait(timeout=30)
        assert baked.run("cam.scales=[0.5]") == list(NAMES)


def can_be_locked(path: Path) -> bool:
    code = "import fcntl, sys\nfcntl.lockf(open(sys.argv[1], 'a+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 or "BlockingIOError" in done.stderr, done.stderr
    return done.returncode == 0


def test_run_holds_the_lock_while_it_works_and_releases_it_after(bakery: Bakery) -> None:
    seen: dict[str, Any] = {}

    def look(config: Config, inputs: Inputs, output: Output) -> None:
        seen["free"] = can_be_locked(bakery.folder / "lock")
        seen["holder"] = (bakery.folder / "lock").read_text()
        raise Interrupted("enough")

    bakery.stages["grow"] = dataclasses.replace(bakery.stages["grow"], run=look)
    with pytest.raises(Interrupted):
        bakery.run()
    assert seen["free"] is False
    assert f"process {os.getpid()} on " in seen["holder"]
    assert can_be_locked(bakery.folder / "lock")


# The real stages: what their records say depends on what

REAL = ("train_cls", "extract_cams", "refine_cams", "make_labels", "train_seg")


class Real:
    """The real stages' records on the tiny data set; their work is replaced by writing a line."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        self.made: list[str] = []

        def pretend(name: str) -> Callable[[Config, Inputs, Output], None]:
            def run(config: Config, inputs: Inputs, output: Output) -> None:
                self.made.append(name)
                output.path.write_text(name)

            return run

        self.stages = {
            name: dataclasses.replace(stage, run=pretend(name), check=None, content=None)
            for name, stage in load_stages().items()
        }

    def pipeline(self, *overrides: str) -> Pipeline:
        own = [f"output.dir={json.dumps(str(self.folder))}", f"data.root={json.dumps(str(self.data))}"]
        return Pipeline(load_config("demo", [*own, *overrides]), self.stages)

    def run(self, *overrides: str) -> list[str]:
        self.made.clear()
        pipeline = self.pipeline(*overrides)
        pipeline.run(pipeline.order(["train_seg"]))
        return list(self.made)

    def to_make(self, *overrides: str) -> list[str]:
        states = self.pipeline(*overrides).states(["train_seg"])
        return [name for name, state in states.items() if state.kind != "current"]


@pytest.fixture
def real(tmp_path: Path, tiny_data: Path) -> Real:
    """Everything current, on a copy of the tiny data."""
    real = Real(tmp_path / "run", Path(shutil.copytree(tiny_data, tmp_path / "data")))
    assert real.run() == list(REAL)
    assert real.run() == []
    return real


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("classifier.backbone=resnet18", "train_cls"),
        ("classifier.backbone_args={}", "train_cls"),
        ("classifier.stride=32", "train_cls"),
        ("classifier.weights=pretrained", "train_cls"),
        ("classifier.pooling=class_token", "train_cls"),
        ("classifier.trunk=resnet18", "train_cls"),
        ("objectives.acr=true", "train_cls"),
        ("train_cls.epochs=3", "train_cls"),
        ("train_cls.lr=0.5", "train_cls"),
        ("run.seed=1", "train_cls"),
        ("cam.scales=[0.5, 1.0]", "extract_cams"),
        ("cam.flip=false", "extract_cams"),
        ("cam.source=class_token_gradient", "extract_cams"),
        ("cam.propagate=attention", "extract_cams"),
        ("cam.splits=['train', 'val']", "extract_cams"),
        ("refine.background=0.4", "refine_cams"),
        ("refine.crf=false", "refine_cams"),
        ("refine.normalize=minmax", "refine_cams"),
        ("refine.bilateral_srgb=7.0", "refine_cams"),
        ("labels.high=0.9", "make_labels"),
        ("labels.low=0.1", "make_labels"),
        ("segmenter.encoder=resnet18", "train_seg"),
        ("segmenter.architecture=deeplabv2", "train_seg"),
        ("train_seg.epochs=3", "train_seg"),
        ("train_seg.supervision=masks", "train_seg"),
    ],
)
def test_setting_remakes_its_stage_and_all_behind_it(real: Real, override: str, first: str) -> None:
    expected = list(REAL[REAL.index(first) :])
    assert [name for name in real.to_make(override) if name in expected] == expected
    assert real.run(override) == expected


@pytest.mark.parametrize(
    "override",
    [
        "run.workers=5",
        "run.device=cpu",
        "run.device=cuda",
        "data.val=",
        "data.format=csv",
        "acr.affinity_weight=1.0",
        "cam.map_function=cam_grad",
        "cam.start_layer=-1",
        "cam.attention_steps=2",
        "classifier.trunk_weights=none",
    ],
)
def test_how_to_compute_remakes_nothing(real: Real, override: str) -> None:
    assert real.to_make(override) == []
    assert real.run(override) == []


def test_run_folder_may_be_moved(real: Real, tmp_path: Path) -> None:
    real.folder = Path(shutil.move(real.folder, tmp_path / "elsewhere"))
    assert real.run() == []


def test_data_may_be_moved(real: Real, tmp_path: Path) -> None:
    real.data = Path(shutil.move(real.data, tmp_path / "photos"))
    assert real.run() == []


def test_touching_a_file_remakes_nothing(real: Real) -> None:
    for path in real.data.rglob("*"):
        os.utime(path, (1, 1))
    assert real.run() == []


def replace_line(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_other_pixels_of_a_training_image_remake_everything(real: Real) -> None:
    (real.data / "images" / "train_00003.jpg").write_bytes((real.data / "images" / "train_00004.jpg").read_bytes())
    assert real.run() == list(REAL)


def test_other_image_level_labels_remake_everything(real: Real) -> None:
    lines = (real.data / "data.csv").read_text().splitlines()
    image, labels, *_ = next(line for line in lines if line.startswith("images/train_00003")).split(",")
    replace_line(real.data / "data.csv", f"{image},{labels},", f"{image},{'car' if labels != 'car' else 'fish'},")
    assert real.run() == list(REAL)


def test_image_left_out_remakes_everything(real: Real) -> None:
    lines = (real.data / "data.csv").read_text().splitlines(keepends=True)
    (real.data / "data.csv").write_text("".join(line for line in lines if "train_00003" not in line))
    assert real.run() == list(REAL)


def test_other_class_order_remakes_everything(real: Real) -> None:
    replace_line(real.data / "classes.txt", "car\nfish\n", "fish\ncar\n")
    assert real.run() == list(REAL)


def test_new_clicks_remake_scores_and_labels_but_no_maps(real: Real) -> None:
    image, labels = next(
        line.split(",")[:2] for line in (real.data / "data.csv").read_text().splitlines() if "train_00003" in line
    )
    behind = list(REAL[REAL.index("refine_cams") :])
    for line in (f"{image},5,5,{labels.split(';')[0]}", f"{image},5,5,background"):
        (real.data / "clicks.csv").write_text(f"image,x,y,class\n{line}\n")
        assert real.run("data.clicks=clicks.csv") == behind
        assert real.run("data.clicks=clicks.csv") == []
    assert real.run() == behind


def test_masks_count_only_where_they_are_learned_from(real: Real) -> None:
    mask = real.data / "masks" / "train_00003.png"
    real.run("train_seg.supervision=masks")
    mask.write_bytes((real.data / "masks" / "train_00004.png").read_bytes())
    assert real.run("train_seg.supervision=masks") == ["train_seg"]
    real.run()
    mask.write_bytes((real.data / "masks" / "train_00005.png").read_bytes())
    assert real.run() == []


def test_the_table_is_read_once_a_command(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(settings: DataSettings, problems: Problems) -> Table:
        calls.append(settings)
        return load_table(settings, problems)

    monkeypatch.setattr("cam_pipeline.data.dataset.load_table", counted)
    assert real.run("train_cls.epochs=3") == list(REAL)
    assert len(calls) == 1
    assert real.to_make() == list(REAL)
    assert len(calls) == 2


def test_a_command_makes_the_stages_that_apply(real: Real, tmp_path: Path) -> None:
    assert real.pipeline().made_by("make-cams") == ["extract_cams", "refine_cams", "make_labels"]
    merging = real.pipeline(f"refine.merge_with=['{tmp_path / 'cams.h5'}']")
    assert merging.made_by("make-cams") == ["extract_cams", "merge_cams", "refine_cams", "make_labels"]
    assert merging.made_by("train-seg") == ["train_seg"]
    soft = real.pipeline("train_seg.soft_labels=true")
    assert soft.made_by("make-cams") == ["extract_cams", "refine_cams", "make_labels", "score_cams"]


def test_validation_images_are_not_what_results_are_made_from(real: Real) -> None:
    (real.data / "images" / "val_00003.jpg").write_bytes((real.data / "images" / "val_00004.jpg").read_bytes())
    assert real.run() == []


def test_weights_count_by_content_not_by_place(real: Real, tmp_path: Path) -> None:
    first, copy = tmp_path / "first.pth", tmp_path / "folder" / "copy.pth"
    first.write_bytes(b"weights")
    copy.parent.mkdir()
    shutil.copy(first, copy)
    real.run(f"classifier.weights={first}", f"segmenter.weights={first}")
    assert real.run(f"classifier.weights={copy}", f"segmenter.weights={copy}") == []
    copy.write_bytes(b"better!")
    assert real.to_make(f"classifier.weights={first}", f"segmenter.weights={copy}") == ["train_seg"]
    assert real.to_make(f"classifier.weights={copy}", f"segmenter.weights={first}") == list(REAL)


def test_merged_maps_count_by_content_not_by_place(real: Real, tmp_path: Path) -> None:
    first, copy = tmp_path / "cams.h5", tmp_path / "copy.h5"
    first.write_bytes(b"maps")
    shutil.copy(first, copy)
    behind = list(REAL[REAL.index("refine_cams") :])
    assert real.run(f"refine.merge_with=['{first}']") == ["merge_cams", *behind]
    assert real.run(f"refine.merge_with=['{copy}']") == []
    copy.write_bytes(b"more")
    assert real.to_make(f"refine.merge_with=['{copy}']") == ["merge_cams", *behind]
    assert real.run() == behind


def test_scores_of_merged_maps_are_stale_when_nothing_is_merged_and_say_so(real: Real, tmp_path: Path) -> None:
    (tmp_path / "cams.h5").write_bytes(b"maps")
    real.run(f"refine.merge_with=['{tmp_path / 'cams.h5'}']")
    states = real.pipeline().states(["refine_cams"])
    assert list(states) == ["train_cls", "extract_cams", "refine_cams"]
    assert states["refine_cams"].reason == "it is now made from extract_cams"


def test_scores_before_the_crf_are_made_only_if_they_are_learned(real: Real) -> None:
    soft = "train_seg.soft_labels=true"
    assert real.run(soft) == ["score_cams", "train_seg"]
    assert real.run(soft) == []
    assert real.run(soft, "labels.high=0.9") == ["make_labels", "train_seg"]
    assert real.run(soft, "refine.crf_iterations=3") == ["refine_cams", "make_labels", "score_cams", "train_seg"]
    assert real.run(soft, "train_seg.supervision=masks") == ["train_seg"]
    assert list(real.pipeline().states(["train_seg"])) == list(REAL)
    reason = real.pipeline(soft).states(["train_seg"])["train_seg"].reason
    assert reason == "it is now made from make_labels, score_cams"


def test_agreement_is_measured_only_if_it_weights_pixels(real: Real, tmp_path: Path) -> None:
    (tmp_path / "cams.h5").write_bytes(b"maps")
    merged = f"refine.merge_with=['{tmp_path / 'cams.h5'}']"
    real.run(merged)
    assert real.run(merged, "train_seg.agreement_power=1") == ["compare_cams", "train_seg"]
    assert real.run(merged, "train_seg.agreement_power=2") == ["train_seg"]
    assert real.run(merged, "train_seg.agreement_power=2", "train_seg.supervision=masks") == ["train_seg"]
    (tmp_path / "cams.h5").write_bytes(b"other")
    assert "compare_cams" in real.to_make(merged, "train_seg.agreement_power=2")


def test_force_on_the_classifier_makes_everything_behind_it_stale(real: Real) -> None:
    real.pipeline().run(["train_cls"], force=True)
    assert real.to_make() == list(REAL[1:])
    assert real.run() == list(REAL[1:])


def test_segmenter_on_masks_needs_no_labels(tmp_path: Path, tiny_data: Path) -> None:
    reference = Real(tmp_path / "reference", tiny_data)
    assert reference.run("train_seg.supervision=masks") == ["train_seg"]


def test_records_agree_with_the_list_of_stages() -> None:
    stages = load_stages()
    assert set(stages) == {*REAL, "train_e2e", "label_e2e", "merge_cams", "score_cams", "compare_cams"}
    assert [stage.name for stage in stages.values()] == list(stages)
    assert len({stage.makes for stage in stages.values()}) == len(stages)


# Memory


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "the GPU"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), "this machine"),
        (MemoryError(), "this machine"),
    ],
)
def test_memory_that_does_not_suffice_names_the_key_and_loses_nothing(
    bakery: Bakery, error: Exception, place: str
) -> None:
    def run(config: Config, inputs: Inputs, output: Output) -> None:
        (output.folder / "piece-0").touch()
        raise error

    bakery.run(names=("grow",))
    before = bakery.files()
    bakery.stages["mill"] = dataclasses.replace(bakery.stages["mill"], run=run, memory="cam.batch_size")
    line = rf"^mill: {place} has too little memory; lower cam\.batch_size \(now \d+\)\. Finished work is kept$"
    with pytest.raises(OutOfMemory, match=line):
        bakery.run(names=("mill",))
    bakery.stages["mill"] = dataclasses.replace(bakery.stages["mill"], memory="", divides="train_cls.batch_size")
    line = r"lower train_cls\.batch_size \(now \d+\), or raise mill\.accumulate, for the same batch in parts\. Finished"
    with pytest.raises(OutOfMemory, match=line):
        bakery.run(names=("mill",))
    after = bakery.files()
    assert {name: after.get(name) for name in before if name not in ("lock", "digests.json")} == {
        name: content for name, content in before.items() if name not in ("lock", "digests.json")
    }
    assert any(name.endswith("/piece-0") for name in after)


def test_other_faults_are_no_matter_of_memory(bakery: Bakery) -> None:
    def run(config: Config, inputs: Inputs, output: Output) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    bakery.stages["grow"] = dataclasses.replace(bakery.stages["grow"], run=run)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        bakery.run(names=("grow",))


def test_every_stage_names_a_setting_to_lower() -> None:
    named = {name: stage.memory or stage.divides or "run.workers" for name, stage in load_stages().items()}
    assert named == {
        "train_cls": "train_cls.batch_size",
        "train_e2e": "train_e2e.batch_size",
        "label_e2e": "run.workers",
        "extract_cams": "cam.batch_size",
        "merge_cams": "run.workers",
        "refine_cams": "run.workers",
        "make_labels": "run.workers",
        "score_cams": "run.workers",
        "compare_cams": "run.workers",
        "train_seg": "train_seg.batch_size",
    }

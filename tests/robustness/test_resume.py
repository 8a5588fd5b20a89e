"""Killed or interrupted at any moment and started again, a run ends as if nothing had happened."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Differences = Callable[[Path, Path], list[str]]

SMALL_PARTS = {
    "cam_pipeline.stages.extract_cams.BATCHES_PER_PART": 1,
    "cam_pipeline.stages.refine_cams.IMAGES_PER_PART": 5,
    "cam_pipeline.stages.make_labels.IMAGES_PER_PART": 7,
}
"""The undisturbed run has one part a stage; that parts are cut otherwise must not matter."""

SAVE_CHECKPOINT = "cam_pipeline.training.trainer.save_checkpoint"
WRITE_PART = "cam_pipeline.store.parts.write_artefact"
RENAME = "os.replace"

KILLS = [  # what the process is about to do when it is killed, and what the next one says of what it found
    (SAVE_CHECKPOINT, "train_cls-", 1, "train_cls: starts (0 of 6 steps done)"),
    (SAVE_CHECKPOINT, "train_cls-", 3, "train_cls: starts (2 of 6 steps done)"),  # in the middle of an epoch
    (SAVE_CHECKPOINT, "train_cls-", 2, "train_cls: starts (3 of 6 steps done)"),  # between two epochs
    ("cam_pipeline.stages.train_cls.save_model", "train_cls-", 1, "train_cls: starts (6 of 6 steps done)"),
    (WRITE_PART, "extract_cams-", 3, "extract_cams: starts (7 of 24 images done)"),
    (RENAME, ".part-00003.h5.", 1, "extract_cams: starts (11 of 24 images done)"),
    (RENAME, ".part-00001.h5.", 1, "refine_cams: starts (5 of 24 images done)"),
    (WRITE_PART, "/scores.h5", 1, "refine_cams: starts (24 of 24 images done)"),
    (
        "cam_pipeline.pipeline.run.write_text",
        "/scores.h5.manifest.json",
        1,
        "refine_cams: starts (24 of 24 images done)",
    ),
    (RENAME, "/pseudo_labels.h5", 1, "make_labels: starts (24 of 24 images done)"),
    (SAVE_CHECKPOINT, "train_seg-", 2, "train_seg: starts (1 of 6 steps done)"),
    (SAVE_CHECKPOINT, "train_seg-", 4, "train_seg: starts (4 of 6 steps done)"),
    (RENAME, "/segmenter.safetensors", 1, "train_seg: starts (6 of 6 steps done)"),
]


def run(commands: Any, folder: Path, *more: str, **options: Any) -> Any:
    return commands.run("run", "-c", "tiny.toml", *more, folder=folder, patch=SMALL_PARTS, **options)


def signal_at(function: str, holds: str, call: int, send: str = "SIGKILL", group: bool = False) -> dict[str, Any]:
    return {"function": function, "holds": holds, "call": call, "send": send, "group": group}


def logs(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / "logs").iterdir()}


def test_killed_in_every_stage_and_started_again(
    commands: Any, workspace: Path, undisturbed: Path, differences: Differences
) -> None:
    """Each run is killed in the middle and followed by the next, which goes on and is killed further on."""
    found = ""
    for function, holds, call, next_says in KILLS:
        ended = run(commands, workspace, signal_at=signal_at(function, holds, call))
        assert ended.code == -signal.SIGKILL, f"never came to {function} {holds}\n{ended.stderr}"
        assert found in ended.stderr
        found = next_says
    ended = run(commands, workspace)
    assert ended.code == 0, ended.stderr
    assert found in ended.stderr
    assert differences(workspace / "run", undisturbed / "run") == []
    assert logs(workspace / "run") == logs(undisturbed / "run")
    assert not list((workspace / "run" / "partial").iterdir())


def test_torn_checkpoint_and_part_are_dropped_with_a_warning(
    commands: Any, workspace: Path, undisturbed: Path, differences: Differences
) -> None:
    """What a power cut may leave, whatever the kernel had promised."""
    run(commands, workspace, signal_at=signal_at(SAVE_CHECKPOINT, "train_cls-", 4))
    tear(workspace, "train_cls-*/checkpoint.pt")
    ended = run(commands, workspace, signal_at=signal_at(WRITE_PART, "refine_cams-", 3))
    assert "checkpoint.pt cannot be read and is ignored" in ended.stderr
    tear(workspace, "refine_cams-*/part-00001.h5")
    ended = run(commands, workspace, signal_at=signal_at(SAVE_CHECKPOINT, "train_seg-", 6))
    assert "part-00001.h5 is dropped and made again" in ended.stderr
    tear(workspace, "train_seg-*/checkpoint.pt")
    ended = run(commands, workspace)
    assert ended.code == 0, ended.stderr
    assert "training starts over" in ended.stderr
    assert differences(workspace / "run", undisturbed / "run") == []


def tear(workspace: Path, pattern: str) -> None:
    (path,) = (workspace / "run" / "partial").glob(pattern)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_how_often_checkpoints_are_written_changes_no_tensor(
    commands: Any, workspace: Path, undisturbed: Path, differences: Differences
) -> None:
    rarely = ("--set", "train_cls.checkpoint_seconds=1000", "--set", "train_seg.checkpoint_seconds=1000")
    assert run(commands, workspace, *rarely).code == 0
    different = differences(workspace / "run", undisturbed / "run")
    assert [name for name in different if not name.endswith("@config")] == []


def test_killed_force_goes_on_without_force(
    commands: Any, finished: Path, undisturbed: Path, differences: Differences
) -> None:
    """The forced classifier is the same by value, but everything behind it is made from it."""
    moment = signal_at(SAVE_CHECKPOINT, "train_cls-", 3)
    ended = commands.run("train-cls", "-c", "tiny.toml", "--force", folder=finished, signal_at=moment)
    assert ended.code == -signal.SIGKILL
    ended = run(commands, finished)
    assert ended.code == 0, ended.stderr
    assert "train_cls: starts (2 of 6 steps done)" in ended.stderr
    assert ended.stderr.count(": done in") == 5
    assert [name for name in differences(finished / "run", undisturbed / "run") if "@" not in name] == []
    manifest = json.loads((finished / "run" / "classifier.safetensors.manifest.json").read_text())
    assert manifest["run_id"] != manifest["fingerprint"]


# Ctrl-C and SIGTERM

SAVED = "finished work is saved. The same command resumes from there."


@pytest.mark.parametrize("send", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
def test_interrupted_in_every_stage_and_started_again(
    commands: Any, workspace: Path, undisturbed: Path, differences: Differences, send: str, group: bool
) -> None:
    """A terminal sends Ctrl-C to the whole group: to the processes that load images, too."""
    moments = [
        (SAVE_CHECKPOINT, "train_cls-", 2, "train_cls: starts (2 of 6 steps done)"),
        (WRITE_PART, "extract_cams-", 2, "extract_cams: starts (7 of 24 images done)"),
        (WRITE_PART, "refine_cams-", 2, "refine_cams: starts (10 of 24 images done)"),
        (WRITE_PART, "make_labels-", 2, "make_labels: starts (14 of 24 images done)"),
        (SAVE_CHECKPOINT, "train_seg-", 4, "train_seg: starts (4 of 6 steps done)"),
    ]
    found = ""
    for function, holds, call, next_says in moments:
        ended = run(commands, workspace, signal_at=signal_at(function, holds, call, send, group))
        assert ended.code == 130, ended.stderr
        assert ended.stderr.splitlines()[-1] == f"Interrupted: stopped by {send}; {SAVED}"
        assert "Traceback" not in ended.stderr
        assert found in ended.stderr
        found = next_says
    ended = run(commands, workspace)
    assert ended.code == 0, ended.stderr
    assert found in ended.stderr
    assert differences(workspace / "run", undisturbed / "run") == []


@pytest.mark.parametrize("stage", ["train_cls", "train_seg"])
def test_interrupted_training_saves_the_step_although_no_checkpoint_is_due(
    commands: Any, finished: Path, stage: str
) -> None:
    rarely = ("--set", f"{stage}.checkpoint_seconds=1000", "--set", f"{stage}.epochs=1")
    moment = signal_at("cam_pipeline.training.trainer.Trainer._step", f"name='{stage}'", 2, "SIGTERM")
    assert run(commands, finished, *rarely, signal_at=moment).code == 130
    (progress,) = (finished / "run" / "partial").glob(f"{stage}-*/progress.json")
    assert json.loads(progress.read_text()) == {"done": 2, "total": 3, "unit": "steps"}
    assert f"{stage}: goes on from step 2" in run(commands, finished, *rarely).stderr


WORKERS_START = "joblib.externals.loky.process_executor.ProcessPoolExecutor._start_executor_manager_thread"


@pytest.mark.parametrize(
    ("function", "call", "send"),
    [(WORKERS_START, 1, "SIGINT"), ("cam_pipeline.store.cams.CamStore.read", 8, "SIGTERM")],
    ids=["starting", "working"],
)
def test_interrupted_with_several_crf_workers(
    commands: Any, finished: Path, function: str, call: int, send: str
) -> None:
    """Workers that are still importing libraries know nothing of the signals that they should leave to the parent."""
    moment = signal_at(function, "", call, send, group=True)
    other = ("--set", "refine.background=0.4")
    ended = run(commands, finished, *other, "--workers", "2", signal_at=moment)
    assert ended.code == 130, ended.stderr
    assert ended.stderr.splitlines()[-1] == f"Interrupted: stopped by {send}; {SAVED}"
    assert "Traceback" not in ended.stderr
    assert run(commands, finished, *other).code == 0


@pytest.mark.parametrize("send", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_interrupted_evaluation_is_130_too(commands: Any, finished: Path, send: str) -> None:
    moment = signal_at("cam_pipeline.evaluation.confusions.CamStore.read", "", 3, send)
    ended = commands.run("evaluate", "-c", "tiny.toml", folder=finished, signal_at=moment)
    assert ended.code == 130, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (finished / "run" / "evaluation.json").exists()


# The demo, killed for real

KILLS_OF_THE_DEMO = {"Images:": 1, "train_cls: starts": 5, "extract_cams: starts": 4, "refine_cams: starts": 4,
                     "train_seg: starts": 6}  # fmt: skip
"""How often the demo is killed, by what it says last before; the first while it generates the images."""


def demo(folder: Path) -> subprocess.Popen[bytes]:
    """Start `cam-pipeline demo` in a process group of its own, with a run folder of the same name everywhere."""
    command = [str(Path(sys.executable).with_name("cam-pipeline")), "demo", "--set", "output.dir=demo"]
    log = (folder / "log.txt").open("ab")
    return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def wait_for(process: subprocess.Popen[bytes], log: Path, sign: str, seen: int) -> bool:
    """Wait until the log says `sign` behind its first `seen` bytes; False when the process ends without."""
    while process.poll() is None:
        if sign.encode() in log.read_bytes()[seen:]:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_demo_killed_at_random_moments_ends_as_if_nothing_had_happened(
    tmp_path: Path, differences: Differences
) -> None:
    """Twenty runs are killed, one after the other, at random moments of every stage that takes a while.

    A stage that is to be killed n times in the d seconds that it takes is killed within d / n seconds of going on, so
    that the moments are spread over its work, and its end is not reached before the last of them.
    """
    first, second = tmp_path / "undisturbed", tmp_path / "killed"
    first.mkdir()
    second.mkdir()
    assert demo(first).wait(timeout=3600) == 0, (first / "log.txt").read_text()
    took = dict(re.findall(r"(\w+: )done in (\d+) s", (first / "log.txt").read_text()))
    rng, log = random.Random(0), second / "log.txt"
    for sign, kills in KILLS_OF_THE_DEMO.items():
        seconds = float(took.get(sign.removesuffix("starts"), 5))
        for _ in range(kills):
            seen = log.stat().st_size if log.exists() else 0
            process = demo(second)
            assert wait_for(process, log, sign, seen), f"never came to {sign}"
            time.sleep(rng.uniform(0, seconds / kills))
            assert process.poll() is None, "it must be killed before it ends"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert demo(second).wait(timeout=3600) == 0, (second / "log.txt").read_text()
    assert differences(first / "demo", second / "demo") == []
    assert logs(first / "demo") == logs(second / "demo")
    text = (second / "log.txt").read_text(errors="replace")
    assert "Traceback" not in text
    for sign, kills in KILLS_OF_THE_DEMO.items():
        assert text.count(sign) == (1 + sum(KILLS_OF_THE_DEMO.values()) if sign == "Images:" else 1 + kills)

"""Two processes on one run: they make what one makes, end together, and one of them says why."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Differences = Callable[[Path, Path], list[str]]

SMALL_PARTS = {
    "cam_pipeline.stages.extract_cams.BATCHES_PER_PART": 1,
    "cam_pipeline.stages.refine_cams.IMAGES_PER_PART": 5,
}
SAVE_CHECKPOINT = "cam_pipeline.training.trainer.save_checkpoint"
STEP = "cam_pipeline.training.trainer.Trainer._step"
LOST = (
    "Error: another process of this run ended without a message; finished work is saved. Start the same command again"
)


# Two processes


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def start(
    commands: Any,
    *arguments: str,
    folder: Path,
    patch: Mapping[str, Any] | None = None,
    at: Mapping[int, Any] = {},
    elsewhere: Path | None = None,
) -> list[int]:
    """Start a command in two processes; `at` says where which of them gets a signal (see command_server.py).

    `elsewhere` is where the second process looks for its files.
    """
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LOCAL_WORLD_SIZE": "2"}
    return [
        commands.start(
            *arguments,
            folder=elsewhere if rank and elsewhere else folder,
            patch=patch,
            signal_at=at.get(rank),
            environment=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]


def together(commands: Any, *arguments: str, folder: Path, **more: Any) -> list[Any]:
    """Run a command in two processes; how they ended, by rank."""
    return [commands.wait(pid) for pid in start(commands, *arguments, folder=folder, **more)]


def codes(ended: list[Any]) -> list[int]:
    return [one.code for one in ended]


def spoken(ended: list[Any]) -> list[str]:
    """What they said of how they ended."""
    assert not any("Traceback" in one.stderr for one in ended), [one.stderr for one in ended]
    lines = [line for one in ended for line in one.stderr.splitlines()]
    return [line for line in lines if line.startswith(("Error: ", "Interrupted: "))]


def signal_at(function: str, holds: str = "", call: int = 1, send: str = "SIGKILL") -> dict[str, Any]:
    return {"function": function, "holds": holds, "call": call, "send": send}


def remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()
        (folder / f"{name}.manifest.json").unlink()


def tensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def farthest(one: Path, other: Path) -> float:
    """The largest difference of two models' tensors, relative to the largest value of each tensor."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys() and len(first) > 20
    return max(
        float(np.abs(value - second[name]).max() / max(np.abs(value).max(), 1e-3))
        for name, value in first.items()
        if value.dtype.kind == "f"
    )


ACR = (
    "classifier.backbone=vit_tiny_patch16_224",
    "classifier.backbone_args={depth = 2, embed_dim = 24, num_heads = 3, img_size = 48}",
    "classifier.pooling=class_token",
    "classifier.trunk=resnet10t",
    "classifier.trunk_args={channels = [8, 16, 24, 32], stem_width = 8}",
    "classifier.trunk_weights=none",
    "objectives.acr=true",
)
MANY_TRANSFORMS = "acr.transforms=['hflip', 'vflip', 'rot90']"
# Distances of maps have kinks, where rounding turns a gradient around; at their full weight that adds up to .001. The
# three images that the bank draws are two for one process and one for the other.
SFC = ("objectives.sfc=true", "sfc.draws=3", "sfc.prototype_weight=0.016", "sfc.scale_weight=0.008")

# Random heads with BatchNorm make much of rounding, and the best class of a pixel may turn; small steps keep it small.
SR = (
    "segmenter.self_regulation=true",
    "self_regulation.start=0.3",
    "self_regulation.label_mode=pixel",
    "train_seg.lr=1e-4",
)
TEACHER = ("train_seg.teacher=true", "teacher.start=0.3", "teacher.confidence=0.0", "train_seg.lr=1e-4")
PARTS = ("train_seg.accumulate=2", "train_seg.repeat=1.0")
DFR = ("segmenter.regularizer=dfr", "dfr.threshold=0.0", "train_seg.lr=1e-4")
OWN_FIGURES = {
    "sr.shallow_right", "sr.deep_right", "dfr.kernel", "dfr.same_class", "dfr.other_class", "dfr.known"
}  # fmt: skip
"""Are means over the pairs or pixels of each process, whose mean is not that over all."""
V2 = ("train_seg.optimizer=sgd", "segmenter.architecture=deeplabv2")

BEARING = (
    "train_seg.clip_losses=true",
    "train_seg.balance=true",
    "train_seg.confidence_power=2.0",
    "train_seg.potts=0.5",
)
SOFT = ("train_seg.soft_labels=true", "train_seg.potts=0.5")


@pytest.mark.parametrize(
    ("command", "model", "chosen"),
    [
        ("train-cls", "classifier.safetensors", ("train_cls.optimizer=sgd",)),
        ("train-cls", "classifier.safetensors", ("train_cls.optimizer=sgd", *ACR)),
        ("train-cls", "classifier.safetensors", ("train_cls.optimizer=sgd", *ACR, MANY_TRANSFORMS)),
        ("train-cls", "classifier.safetensors", ("train_cls.optimizer=sgd", *SFC)),
        ("train-cls", "classifier.safetensors", ("train_cls.optimizer=sgd", "train_cls.accumulate=2")),
        *(
            ("train-seg", "segmenter.safetensors", (*V2, *more))
            for more in ((), SR, BEARING, SOFT, TEACHER, PARTS, (*TEACHER, *PARTS), DFR)
        ),
    ],
)
def test_training_ends_as_in_one_process(
    commands: Any, finished: Path, tmp_path: Path, command: str, model: str, chosen: tuple[str, ...]
) -> None:
    """Up to rounding: sums are formed in another order. In AdamW a rounded gradient near 0 may turn a step around, and
    each process draws its own dropout (DeepLabV3+), so both are left out here."""
    arguments = [command, "-c", "tiny.toml", *(word for setting in chosen for word in ("--set", setting))]
    if {*SOFT} <= {*chosen}:
        assert commands.run("make-cams", *arguments[1:], folder=finished).code == 0
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    assert commands.run(*arguments, folder=finished).code == 0
    ended = together(commands, *arguments, folder=other)
    assert codes(ended) == [0, 0], [one.stderr for one in ended]
    assert ended[1].stdout + ended[1].stderr == ""
    assert farthest(finished / "run" / model, other / "run" / model) < 1e-4
    log = f"logs/{command.replace('-', '_')}.jsonl"
    epochs = [
        [json.loads(line) for line in (folder / "run" / log).read_text().splitlines()] for folder in (finished, other)
    ]
    assert len(epochs[0]) == len(epochs[1]) == 2
    for one, two in zip(*epochs, strict=True):
        assert one.keys() == two.keys()
        one, two = ({name: each[name] for name in each.keys() - OWN_FIGURES} for each in (one, two))
        assert two == pytest.approx(one, rel=1e-5, abs=1e-8)  # the Potts term begins near 1e-6
    again = commands.run(*arguments, folder=other)
    assert "current, nothing to do" in again.stderr, "the number of processes makes nothing stale"


def test_the_single_stage_is_trained_by_two_processes(commands: Any, workspace: Path) -> None:
    """Each draws its own points and dropout, so it does not end as in one process; but both hold the same network."""
    chosen = (
        *(setting for setting in ACR if "objectives" not in setting and "pooling" not in setting),
        "train_e2e.epochs=2", "train_e2e.batch_size=8", "train_e2e.crop=48", "train_e2e.lr=1e-3", "tscd.start=0.3",
        "tscd.decoder_width=8", "tscd.points=8", "tscd.energy_weight=0.01",
    )  # fmt: skip
    arguments = ["train-e2e", "-c", "tiny.toml", *(word for setting in chosen for word in ("--set", setting))]
    ended = together(commands, *arguments, folder=workspace)
    assert codes(ended) == [0, 0], [one.stderr for one in ended]
    assert "label_e2e: done" in ended[0].stderr
    last = json.loads((workspace / "run" / "logs" / "train_e2e.jsonl").read_text().splitlines()[-1])
    assert {"tscd.background", "tscd.objects", "tscd.affinity", "tscd.scd", "tscd.energy"} <= last.keys()
    assert all(np.isfinite(value) for value in last.values())
    assert "current, nothing to do" in commands.run(*arguments, folder=workspace).stderr


def test_parameters_that_no_loss_reaches_are_no_obstacle(
    commands: Any, workspace: Path, new_workspace: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """ConvNeXt has a norm behind the pooling that CAMs do without."""
    alone = new_workspace(tmp_path_factory.mktemp("alone"))
    network = "classifier.backbone_args={depths=[1, 1, 1, 1], dims=[4, 4, 8, 8]}"
    chosen = (network, "classifier.backbone=convnext_atto", "classifier.stride=0", "train_cls.optimizer=sgd")
    arguments = ["train-cls", "-c", "tiny.toml", *(word for setting in chosen for word in ("--set", setting))]
    assert commands.run(*arguments, folder=alone).code == 0
    ended = together(commands, *arguments, folder=workspace)
    assert codes(ended) == [0, 0], [one.stderr for one in ended]
    assert "backbone.head.norm.weight" in tensors(workspace / "run" / "classifier.safetensors")
    assert farthest(*(folder / "run" / "classifier.safetensors" for folder in (alone, workspace))) < 1e-4


def test_cams_scores_and_labels_are_equal(
    commands: Any, finished: Path, undisturbed: Path, differences: Differences
) -> None:
    remove(finished / "run", "cams.h5", "scores.h5", "pseudo_labels.h5")
    ended = together(commands, "make-cams", "-c", "tiny.toml", folder=finished, patch=SMALL_PARTS)
    assert codes(ended) == [0, 0], [one.stderr for one in ended]
    assert ended[0].stderr.count(": done in") == 3 and ended[1].stderr == ""
    assert differences(finished / "run", undisturbed / "run") == []
    assert not list((finished / "run" / "partial").iterdir())


def test_each_makes_its_own_parts(commands: Any, finished: Path) -> None:
    """The second is killed before its first part; the first has by then made those of even number, or makes them."""
    remove(finished / "run", "cams.h5")
    moment = {1: signal_at("cam_pipeline.store.parts.write_artefact", "part-00001")}
    # The process that loads its images outlives it, and holds its connections, until it sees that it is alone.
    patch = SMALL_PARTS | {"torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL": 0.5}
    pids = start(commands, "make-cams", "-c", "tiny.toml", folder=finished, patch=patch, at=moment)
    ended = [commands.wait(pid, 60) for pid in pids]
    assert codes(ended) == [2, -signal.SIGKILL] and spoken(ended) == [LOST]
    (folder,) = (finished / "run" / "partial").glob("extract_cams-*")
    numbers = sorted(int(path.stem[-5:]) for path in folder.glob("part-*.h5"))
    assert numbers and all(number % 2 == 0 for number in numbers)
    assert not (finished / "run" / "cams.h5").exists()
    again = commands.run("make-cams", "-c", "tiny.toml", folder=finished, patch=SMALL_PARTS)
    assert again.code == 0 and "extract_cams: starts (" in again.stderr


@pytest.mark.parametrize("key", ["train_cls.batch_size", "train_seg.batch_size"])
def test_a_batch_that_can_not_be_divided_is_refused_before_the_first_stage(
    commands: Any, workspace: Path, key: str
) -> None:
    ended = together(commands, "run", "-c", "tiny.toml", "--set", f"{key}=7", folder=workspace)
    assert codes(ended) == [2, 2]
    assert spoken(ended) == [f"Error: {key} = 7 cannot be divided over 2 processes; make it a multiple of 2"]
    assert {path.name for path in (workspace / "run").iterdir()} <= {"lock"}


def test_fewer_images_than_a_batch_must_be_divisible_too(commands: Any, workspace: Path) -> None:
    table = (workspace / "data" / "data.csv").read_text().splitlines()
    kept = [table[0], *[line for line in table if ",train" in line][:5]]
    (workspace / "data" / "data.csv").write_text("\n".join(kept) + "\n")
    ended = together(commands, "train-cls", "-c", "tiny.toml", folder=workspace)
    assert codes(ended) == [2, 2]
    (line,) = spoken(ended)
    assert "train_cls.batch_size = 8, but there are only 5 images, which cannot be divided over 2 processes" in line


def test_batch_norm_takes_one_value_from_each_process(commands: Any, workspace: Path) -> None:
    """Alone each would have too few: an image of a single cell."""
    chosen = ("train_cls.batch_size=2", "train_cls.crop=16", "train_cls.epochs=1")
    arguments = ["train-cls", "-c", "tiny.toml", *(word for setting in chosen for word in ("--set", setting))]
    ended = together(commands, *arguments, folder=workspace)
    assert codes(ended) == [0, 0], [one.stderr for one in ended]


# One ends, all end


def test_an_unreadable_image_is_named_once(commands: Any, workspace: Path) -> None:
    """Only one of the two meets it; the other waits for it in the middle of a step."""
    path = sorted((workspace / "data").rglob("*train*.jpg") or (workspace / "data").rglob("*.jpg"))[0]
    path.write_bytes(path.read_bytes()[:200])
    ended = together(commands, "train-cls", "-c", "tiny.toml", folder=workspace)
    assert codes(ended) == [2, 2]
    (line,) = spoken(ended)
    assert path.name in line
    assert not (workspace / "run" / "classifier.safetensors").exists()


@pytest.mark.parametrize("settings", [("train_cls.lr=1e30",), ("train_cls.lr=30", "train_cls.optimizer=sgd")])
def test_a_training_that_diverges_is_said_once(commands: Any, workspace: Path, settings: tuple[str, ...]) -> None:
    arguments = ["train-cls", "-c", "tiny.toml", *(word for setting in settings for word in ("--set", setting))]
    ended = together(commands, *arguments, folder=workspace)
    assert codes(ended) == [2, 2]
    (line,) = spoken(ended)
    assert "not finite" in line or "the loss " in line
    assert not (workspace / "run" / "classifier.safetensors").exists()


def test_a_busy_run_folder_is_said_once(commands: Any, workspace: Path) -> None:
    moment = signal_at(SAVE_CHECKPOINT, "train_cls-", 1, "SIGSTOP")
    holder = commands.start("train-cls", "-c", "tiny.toml", folder=workspace, signal_at=moment)
    assert commands.wait(holder).code is None
    ended = together(commands, "train-cls", "-c", "tiny.toml", folder=workspace)
    os.killpg(holder, signal.SIGKILL)
    commands.wait(holder)
    assert codes(ended) == [2, 2]
    (line,) = spoken(ended)
    assert "is in use by" in line


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_stops_both_at_the_same_step(
    commands: Any, workspace: Path, undisturbed: Path, rank: int
) -> None:
    rarely = ("--set", "train_cls.checkpoint_seconds=1000")
    moment = {rank: signal_at(STEP, "name='train_cls'", 2, "SIGTERM")}
    ended = together(commands, "train-cls", "-c", "tiny.toml", *rarely, folder=workspace, at=moment)
    assert codes(ended) == [130, 130]
    (line,) = spoken(ended)
    assert line.startswith("Interrupted: stopped ") and "finished work is saved" in line
    (progress,) = (workspace / "run" / "partial").glob("train_cls-*/progress.json")
    assert json.loads(progress.read_text()) == {"done": 2, "total": 6, "unit": "steps"}
    again = commands.run("train-cls", "-c", "tiny.toml", folder=workspace)
    assert again.code == 0 and "train_cls: starts (2 of 6 steps done)" in again.stderr


def test_a_signal_to_the_one_that_waits_stops_the_one_that_works(commands: Any, finished: Path) -> None:
    """While the first refines, the others have nothing to do but to listen."""
    remove(finished / "run", "scores.h5")
    # Twice for each of: what is prepared, that CAMs are current, that scores are to be made. Then it waits for these.
    waiting = {1: signal_at("cam_pipeline.machine.distributed._wait", "", 7, "SIGTERM")}
    slow = {
        "cam_pipeline.stages.refine_cams.IMAGES_PER_PART": 1,
        "cam_pipeline.machine.distributed.SECONDS_BETWEEN_LOOKS": 0.0,
    }
    arguments = ("make-cams", "-c", "tiny.toml", "--set", "refine.crf_iterations=400")
    ended = together(commands, *arguments, folder=finished, patch=slow, at=waiting)
    assert codes(ended) == [130, 130]
    assert spoken(ended) == [
        "Interrupted: stopped by SIGTERM; finished work is saved. The same command resumes from there."
    ]
    assert "refine_cams: starts" in ended[0].stderr and not (finished / "run" / "scores.h5").exists()


@pytest.mark.parametrize("killed", [0, 1])
def test_the_survivor_of_a_kill_says_so_and_the_next_run_goes_on(commands: Any, workspace: Path, killed: int) -> None:
    moment = {killed: signal_at(STEP, "name='train_cls'", 5)}
    pids = start(commands, "train-cls", "-c", "tiny.toml", folder=workspace, at=moment)
    victim = commands.wait(pids[killed])
    died = time.monotonic()
    survivor = commands.wait(pids[1 - killed], 60)
    assert time.monotonic() - died < 15
    assert (victim.code, survivor.code) == (-signal.SIGKILL, 2)
    assert spoken([victim, survivor]) == [LOST]
    assert not (workspace / "run" / "classifier.safetensors").exists()
    if killed:
        ended = together(commands, "train-cls", "-c", "tiny.toml", folder=workspace)
    else:
        ended = [commands.run("train-cls", "-c", "tiny.toml", folder=workspace)]
    assert codes(ended) == [0] * len(ended)
    assert "train_cls: starts (4 of 6 steps done)" in ended[0].stderr
    assert (workspace / "run" / "classifier.safetensors").is_file()


def test_processes_with_different_run_folders_are_refused(
    commands: Any, workspace: Path, new_workspace: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As on two machines without a common file system: the first goes on, the second would start over."""
    moment = signal_at(SAVE_CHECKPOINT, "train_cls-", 2)
    assert commands.run("train-cls", "-c", "tiny.toml", folder=workspace, signal_at=moment).code == -signal.SIGKILL
    checkpoint = next((workspace / "run" / "partial").glob("*/checkpoint.pt"))
    before = checkpoint.read_bytes()
    elsewhere = new_workspace(tmp_path_factory.mktemp("elsewhere"))
    ended = together(commands, "train-cls", "-c", "tiny.toml", folder=workspace, elsewhere=elsewhere)
    assert codes(ended) == [2, 2]
    assert spoken(ended) == [
        "Error: output.dir: the processes of this run find different checkpoints there; all machines must share it"
    ]
    assert checkpoint.read_bytes() == before


def test_an_incomplete_environment_is_refused(commands: Any, workspace: Path) -> None:
    alone = {"WORLD_SIZE": "2", "RANK": "0"}
    ended = commands.run("train-cls", "-c", "tiny.toml", folder=workspace, environment=alone)
    assert ended.code == 2
    assert spoken([ended]) == [
        "Error: the environment sets WORLD_SIZE=2, but not MASTER_ADDR; start the processes with torchrun, "
        "or unset WORLD_SIZE"
    ]
    assert not (workspace / "run").exists()


# torchrun


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, timeout=60).stdout
    pairs = [line.split() for line in listed.splitlines()]
    return [int(child) for child, parent in pairs if int(parent) == pid]


def torchrun(*arguments: str, folder: Path) -> "subprocess.Popen[str]":
    launcher = str(Path(sys.executable).with_name("torchrun"))
    command = [launcher, "--nproc-per-node", "2", "-m", "cam_pipeline.cli", *arguments, "-c", "tiny.toml"]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_torchrun_and_a_kill_and_torchrun_again(workspace: Path, killed: int) -> None:
    """torchrun itself ends in a traceback of its own whenever a process fails; ours say one line."""
    epochs = ("train-cls", "--set", "train_cls.epochs=40")
    started = torchrun(*epochs, folder=workspace)
    while not (found := list((workspace / "run" / "partial").glob("*/checkpoint.pt"))):
        assert started.poll() is None
        time.sleep(0.05)
    os.kill(children(started.pid)[killed], signal.SIGKILL)
    said, _ = started.communicate(timeout=120)
    lines = [line for line in said.splitlines() if line.startswith(("Error: ", "Interrupted: "))]
    assert len(lines) == 1 and (lines == [LOST] or "finished work is saved" in lines[0]), said
    assert found[0].is_file()
    again = torchrun(*epochs, folder=workspace)
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert "train_cls: starts (" in said and "of 120 steps done)" in said
    assert said.count(": starts") == said.count(": done in") == 1

"""What users get wrong: one clear line, exit code 2, and every file of the run folder as it was."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image


def cut(path: Path, share: float = 0.5) -> Path:
    """Shorten a file, as an interrupted copy does."""
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def forget_digest(path: Path) -> None:
    """Leave a result as an earlier version did, whose manifests state no digest: its content is looked at when read."""
    manifest = path.with_name(f"{path.name}.manifest.json")
    facts = json.loads(manifest.read_text()) | {"bytes": path.stat().st_size}
    del facts["sha256"]
    manifest.write_text(json.dumps(facts))


# Images and masks


def test_missing_training_image(mistake: Callable[..., str], finished: Path) -> None:
    (finished / "data" / "images" / "train_00003.jpg").unlink()
    for command in ("run", "train-cls", "make-cams", "status"):
        line = mistake(command)
        assert "data/images/train_00003.jpg cannot be read (No such file or directory)" in line
        assert "restore it" in line


def test_missing_validation_image(mistake: Callable[..., str], finished: Path) -> None:
    (finished / "data" / "images" / "val_00003.jpg").unlink()
    assert "data/images/val_00003.jpg" in mistake("evaluate")
    assert "data/images/val_00003.jpg" in mistake("train-cls", "--set", "train_cls.epochs=1")


def test_truncated_training_image(mistake: Callable[..., str], finished: Path) -> None:
    cut(finished / "data" / "images" / "train_00003.jpg")
    line = mistake("run")
    assert line.startswith("data/images/train_00003.jpg cannot be read as an image (")
    assert "replace it" in line


def test_truncated_validation_image(mistake: Callable[..., str], finished: Path) -> None:
    cut(finished / "data" / "images" / "val_00003.jpg")
    line = mistake("train-cls", "--set", "train_cls.epochs=1")
    assert line.startswith("data/images/val_00003.jpg cannot be read as an image (")
    line = mistake("make-cams", "--set", "cam.splits=['train', 'val']")
    assert line.startswith("data/images/val_00003.jpg cannot be read as an image (")
    line = mistake("evaluate")
    assert line.startswith("data/images/val_00003.jpg cannot be read as an image (")


def test_broken_image_met_by_the_crf_in_a_worker(mistake: Callable[..., str], commands: Any, finished: Path) -> None:
    """The image breaks after the CAMs were made, and worker processes are the first to open it."""
    commands.run("status", "-c", "tiny.toml", folder=finished)  # now the digests of the files are remembered
    image = finished / "data" / "images" / "train_00003.jpg"
    image.write_bytes(b"no image")
    memory = finished / "run" / "digests.json"
    known = json.loads(memory.read_text())
    state = image.stat()  # so that its digest is taken from memory
    known[str(image)][:4] = state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino
    memory.write_text(json.dumps(known))
    line = mistake("make-cams", "--set", "refine.background=0.7", "--workers", "2")
    assert line.startswith("data/images/train_00003.jpg cannot be read as an image (")


def test_installed_program_ends_after_a_mistake(finished: Path) -> None:
    """It says its line and ends, although the processes that load images are still there."""
    cut(finished / "data" / "images" / "train_00003.jpg")
    program = str(Path(sys.executable).with_name("cam-pipeline"))
    command = [program, "train-cls", "-c", "tiny.toml", "--quiet", "--workers", "2"]
    done = subprocess.run(command, cwd=finished, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("Error: data/images/train_00003.jpg cannot be read as an image (")


def test_file_that_is_no_image(mistake: Callable[..., str], finished: Path) -> None:
    (finished / "data" / "images" / "train_00003.jpg").write_text("<html>404</html>")
    assert "data/images/train_00003.jpg cannot be read as an image" in mistake("run")


def test_masks_missing_or_of_colour_or_with_unknown_values(mistake: Callable[..., str], finished: Path) -> None:
    mask = finished / "data" / "masks" / "train_00003.png"
    size = Image.open(mask).size
    Image.new("L", size, 77).save(mask)
    assert "masks/train_00003.png: value 77 is neither 0..6 nor 255" in mistake(
        "train-seg", "--set", "train_seg.supervision=masks"
    )
    Image.new("RGB", size).save(mask)
    assert "must be an indexed or greyscale PNG" in mistake("train-seg", "--set", "train_seg.supervision=masks")
    mask.unlink()
    assert "masks/train_00003.png" in mistake("train-seg", "--set", "train_seg.supervision=masks")


# The table


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_unknown_class_name(mistake: Callable[..., str], finished: Path) -> None:
    lines = (finished / "data" / "data.csv").read_text().splitlines()
    lines[4] = ",".join([lines[4].split(",")[0], "car;zebra", *lines[4].split(",")[2:]])
    (finished / "data" / "data.csv").write_text("\n".join(lines) + "\n")
    line = mistake("run")
    assert line.startswith("data/data.csv, line 5: unknown class 'zebra'; the classes are car, fish, apple")


def test_class_left_out_of_the_list(mistake: Callable[..., str], finished: Path) -> None:
    edit(finished / "data" / "classes.txt", "fish\n", "")
    assert "unknown class 'fish'" in mistake("run")


def test_missing_table_folder_and_split(mistake: Callable[..., str], finished: Path) -> None:
    assert "there is no file data/other.csv" in mistake("run", "--set", "data.table=other.csv")
    assert "data.root: there is no folder elsewhere" in mistake("run", "--set", "data.root=elsewhere")
    assert "no images in split 'training' (it has: train, val)" in mistake("run", "--set", "data.train=training")


def test_training_images_without_labels(mistake: Callable[..., str], finished: Path) -> None:
    lines = (finished / "data" / "data.csv").read_text().splitlines()
    lines[4] = ",".join([lines[4].split(",")[0], "?", *lines[4].split(",")[2:]])
    (finished / "data" / "data.csv").write_text("\n".join(lines) + "\n")
    assert "train_00003 of split 'train' has no image-level labels" in mistake("run")


# The configuration


def test_unknown_config_key(mistake: Callable[..., str], finished: Path) -> None:
    edit(finished / "tiny.toml", "background = 0.3", "backgruond = 0.3")
    assert mistake("run") == "tiny.toml: unknown key refine.backgruond; did you mean refine.background?\n"
    edit(finished / "tiny.toml", "backgruond = 0.3", "background = 0.3")
    assert "unknown key labels.hihg; did you mean labels.high?" in mistake("run", "--set", "labels.hihg=1")


def test_maps_to_merge_that_are_not_there(mistake: Callable[..., str], finished: Path) -> None:
    expected = "refine.merge_with: there is no file no/cams.h5; make the CAMs of that run first\n"
    for command in ("make-cams", "status", "evaluate"):
        assert mistake(command, "--set", "refine.merge_with=['no/cams.h5']") == expected


def test_wrong_values_and_files(mistake: Callable[..., str]) -> None:
    line = mistake("run", "--set", "train_cls.epochs=ten")
    assert line == "command line: train_cls.epochs must be a whole number, given 'ten'\n"
    assert "data is a folder; give a TOML file" in mistake("run", config="data")
    assert "there is no config file" in mistake("run", config="absent.toml")
    near = "timm has no model 'resnt18'; near: resnet18"
    assert near in mistake("run", "--set", "classifier.backbone=resnt18")
    assert near in mistake("train-seg", "--set", "segmenter.encoder=resnt18")
    assert "classifier.stride" in mistake("run", "--set", "classifier.stride=5")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_cuda(mistake: Callable[..., str]) -> None:
    line = mistake("train-cls", "--device", "cuda", "--set", "train_cls.epochs=1")
    assert "run.device = 'cuda', but torch finds 0 CUDA devices" in line


def test_everything_ignored(commands: Any, finished: Path) -> None:
    nothing = ("--set", "labels.low=0.0", "--set", "labels.high=1.0", "--set", "refine.crf=false")
    ended = commands.run("run", "-c", "tiny.toml", "--quiet", *nothing, folder=finished)
    assert ended.code == 2
    assert ended.stderr.splitlines() == [
        "refine.crf_iterations = 2 has no effect because refine.crf is false",  # tiny.toml has it for the other tests
        "make_labels: every pixel is ignored; lower labels.high or raise labels.low",
        "Error: run/pseudo_labels.h5: every pixel is ignored; lower labels.high or raise labels.low",
    ]


# Weights


def state_with_other_shapes(workspace: Path) -> Path:
    from cam_pipeline.models.classifier import build_classifier

    network = build_classifier("resnet10t", 6, arguments={"channels": [8, 16, 24, 40], "stem_width": 8})
    path = workspace / "other.pth"
    torch.save(network.backbone.state_dict(), path)
    return path


@pytest.mark.parametrize(("command", "section"), [("train-cls", "classifier"), ("train-seg", "segmenter")])
def test_weights_of_another_shape(mistake: Callable[..., str], finished: Path, command: str, section: str) -> None:
    path = state_with_other_shapes(finished)
    line = mistake(command, "--set", f"{section}.weights={path.name}")
    assert line.startswith("other.pth does not fit the backbone: ")
    assert "(40," in line and "should be (32," in line
    cut(path)
    assert line != mistake(command, "--set", f"{section}.weights={path.name}")
    path.unlink()
    assert "there is no weights file other.pth" in mistake(command, "--set", f"{section}.weights={path.name}")


def test_stored_classifier_of_another_shape(mistake: Callable[..., str], finished: Path) -> None:
    """Somebody put another classifier in its place."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = finished / "run" / "classifier.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        notes = json.loads(file.metadata()["cam-pipeline"])
    tensors["head.weight"] = tensors["head.weight"].T.contiguous()
    notes = {key: notes[key] for key in ("classes", "fingerprint")}  # without the checksum of the other tensors
    save_file(tensors, path, {"cam-pipeline": json.dumps(notes)})
    forget_digest(path)
    line = mistake("make-cams", "--set", "cam.flip=false")
    assert "classifier.safetensors does not fit the model of this config: size mismatch for head.weight" in line


def test_checkpoint_of_another_network(commands: Any, workspace: Path) -> None:
    """As a new version of timm may build under the same name."""
    again = ("train-cls", "-c", "tiny.toml", "--quiet")
    moment = {"function": "cam_pipeline.training.trainer.save_checkpoint", "call": 3, "send": "SIGKILL"}
    commands.run(*again, folder=workspace, signal_at=moment)
    (path,) = (workspace / "run" / "partial").glob("train_cls-*/checkpoint.pt")
    state = torch.load(path, weights_only=True)
    state["network"]["head.weight"] = state["network"]["head.weight"].T.contiguous()
    for other, words in ((state, "size mismatch for head.weight"), ({"step": 2}, "'network'"), ({}, "'step'")):
        torch.save(other, path)
        before = path.read_bytes()
        ended = commands.run(*again, folder=workspace)
        assert ended.code == 2
        assert len(ended.stderr.splitlines()) == 1
        assert "checkpoint.pt is no checkpoint of this network (" in ended.stderr
        assert words in ended.stderr
        assert path.read_bytes() == before
    assert commands.run(*again, "--force", folder=workspace).code == 0


# Stored results


def test_labels_of_other_classes(mistake: Callable[..., str], finished: Path) -> None:
    """Somebody put the labels of another data set in their place."""
    path = finished / "run" / "pseudo_labels.h5"
    with h5py.File(path, "a") as file:
        classes = bytes(file.attrs["classes"])
        assert b'"car"' in classes
        file.attrs.modify("classes", np.array(classes.replace(b'"car"', b'"dog"'), dtype=f"S{len(classes)}"))
    forget_digest(path)
    line = mistake("train-seg", "--set", "train_seg.epochs=1")
    assert line.startswith("run/pseudo_labels.h5 has the classes ")
    assert "dog" in line.split(", the data has ")[0] and "car" in line.split(", the data has ")[1]


def test_result_of_an_older_format(mistake: Callable[..., str], finished: Path) -> None:
    with h5py.File(finished / "run" / "cams.h5", "a") as file:
        file.attrs.modify("version", 1)
    forget_digest(finished / "run" / "cams.h5")
    line = mistake("make-cams", "--set", "refine.background=0.7")
    assert "run/cams.h5 is not a cams file of version 2 (found: HDF5 file, version 1); make it again with" in line


@pytest.mark.parametrize(
    ("name", "command"),
    [("cams.h5", "make-cams"), ("scores.h5", "make-cams"), ("pseudo_labels.h5", "make-cams"),
     ("classifier.safetensors", "train-cls"), ("segmenter.safetensors", "train-seg")],
)  # fmt: skip
def test_truncated_result(mistake: Callable[..., str], commands: Any, finished: Path, name: str, command: str) -> None:
    whole = (finished / "run" / name).stat().st_size
    half = cut(finished / "run" / name).stat().st_size
    for each in ("run", command):
        line = mistake(each)
        assert f"run/{name} has {half} bytes, its manifest says {whole}" in line
        assert f"cam-pipeline {command} -c tiny.toml --force" in line
    assert "damaged" in commands.run("status", "-c", "tiny.toml", folder=finished).stdout


def test_truncated_labels_stop_the_segmenter(mistake: Callable[..., str], finished: Path) -> None:
    cut(finished / "run" / "pseudo_labels.h5")
    line = mistake("train-seg", "--force")
    assert "pseudo_labels.h5 is damaged" in line
    assert "Run: cam-pipeline make-cams -c tiny.toml --force" in line


@pytest.mark.parametrize(
    ("name", "kind", "command"), [("cams.h5", "cams", "make-cams"), ("pseudo_labels.h5", "labels", "train-seg")]
)
def test_damage_that_keeps_the_size(
    mistake: Callable[..., str], finished: Path, name: str, kind: str, command: str
) -> None:
    """The digest in the manifest tells, and without one the checksum beside the pixels."""
    path = finished / "run" / name
    with h5py.File(path, "r") as file:
        where = file[kind]["images%2Ftrain_00003"].id.get_chunk_info(0).byte_offset
    damaged = bytearray(path.read_bytes())
    damaged[where + 4] ^= 0xFF
    path.write_bytes(damaged)
    change = "train_seg.epochs=1" if command == "train-seg" else "refine.background=0.7"
    assert f"run/{name} has another content than when it was made" in mistake(command, "--set", change)
    forget_digest(path)
    line = mistake(command, "--set", change)
    assert line.startswith(f"run/{name} is damaged at image images/train_00003; make it again with --force")


def test_damaged_result_is_made_again_by_force(commands: Any, finished: Path, undisturbed: Path) -> None:
    cut(finished / "run" / "pseudo_labels.h5")
    assert commands.run("make-cams", "-c", "tiny.toml", "--force", folder=finished).code == 0
    assert commands.run("run", "-c", "tiny.toml", folder=finished).code == 0
    assert "damaged" not in commands.run("status", "-c", "tiny.toml", folder=finished).stdout


# Order, folders, divergence


def test_stage_before_what_it_needs(commands: Any, workspace: Path) -> None:
    for command, needed in (("make-cams", "train-cls"), ("train-seg", "train-cls"), ("evaluate", "run")):
        ended = commands.run(command, "-c", "tiny.toml", "--quiet", folder=workspace)
        assert ended.code == 2
        assert len(ended.stderr.splitlines()) == 1
        assert f"Run: cam-pipeline {needed}" in ended.stderr


def test_run_folder_that_is_a_file(mistake: Callable[..., str], finished: Path) -> None:
    (finished / "occupied").write_text("something else")
    line = mistake("run", "--set", "output.dir=occupied")
    assert line.startswith("occupied cannot be written (File exists); set output.dir to another folder")
    assert (finished / "occupied").read_text() == "something else"


def test_run_folder_in_use(mistake: Callable[..., str], commands: Any, finished: Path) -> None:
    """The first process is stopped in the middle of its work; killed, it leaves a folder that can be used."""
    again = ("train-cls", "-c", "tiny.toml", "--set", "train_cls.epochs=1")
    moment = {"function": "cam_pipeline.training.trainer.save_checkpoint", "call": 2, "send": "SIGSTOP"}
    first = commands.start(*again, folder=finished, signal_at=moment)
    assert commands.wait(first).code is None
    for command in ("run", "train-cls", "make-cams", "train-seg"):
        line = mistake(command, "--force")
        assert line.startswith(f"run folder run is in use by process {first} on ")
        assert "output.dir" in line
    os.kill(first, signal.SIGKILL)
    assert commands.wait(first).code == -signal.SIGKILL
    ended = commands.run(*again, folder=finished)
    assert ended.code == 0, ended.stderr
    assert "goes on from step 1" in ended.stderr


@pytest.mark.parametrize(("command", "stage"), [("train-cls", "train_cls"), ("train-seg", "train_seg")])
def test_loss_that_is_not_finite(mistake: Callable[..., str], command: str, stage: str) -> None:
    line = mistake(command, "--set", f"{stage}.lr=1e30")
    assert line.startswith(f"{stage}: the loss is ")
    assert "at epoch 1, step 2 of 3" in line
    assert f"lower {stage}.lr (now 1e+30)" in line


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("train-cls", ("train_cls.lr=30", "train_cls.optimizer=sgd")),
        ("train-cls", ("train_cls.lr=30", "train_cls.optimizer=sgd", "data.val=''")),
        ("train-cls", ("train_cls.lr=100",)),
        ("train-seg", ("train_seg.lr=100",)),
    ],
)
def test_a_training_that_diverges_replaces_nothing(
    mistake: Callable[..., str], command: str, settings: tuple[str, ...]
) -> None:
    """With and without images to validate on; `mistake` compares the files of the run before and after."""
    line = mistake(command, *(word for setting in settings for word in ("--set", setting)))
    assert re.match(r"train_(cls|seg): the (loss|network's answers|weights) .*; lower train_...\.lr \(now ", line)

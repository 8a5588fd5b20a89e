"""What the kernel does when a file cannot grow, at every size: one line, no crash, and what was finished is kept.

The limit on file sizes (RLIMIT_FSIZE) stands for a full disk: the same call fails, with EFBIG in place of ENOSPC.
Without PatientFile, HDF5 ends in a segmentation fault here, so every case has a process of its own.
"""

import os
import resource
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cam_pipeline.errors import CannotWrite
from cam_pipeline.store.checkpoints import load_checkpoint, load_model, save_checkpoint, save_model
from cam_pipeline.store.hdf5 import Record, artefact_attributes
from cam_pipeline.store.labels import LabelStore, label_record
from cam_pipeline.store.parts import PartWriter

NAMES = [f"x/{number}" for number in range(24)]
CHUNKS = [NAMES[:12], NAMES[12:]]


def limited(limit: int, action: Callable[[], object]) -> str:
    """What a process says that can make no file larger than `limit` bytes: nothing when all went well."""
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(sender, 2)  # HDF5 complains there
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            action()
            answer = ""
        except CannotWrite as error:
            answer = str(error)
        except BaseException:
            answer = traceback.format_exc()
        os.write(sender, answer.encode())
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver) as answers:
        said = answers.read()
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"ended with {status} at {limit} bytes: {said}"
    return said


def record(name: str) -> Record:
    noise = np.random.default_rng(list(name.encode())).integers(0, 255, (2, 40, 40)).astype(np.uint8)
    return label_record(name, noise[0], noise[1])


def writer_in(folder: Path) -> PartWriter:
    attributes = artefact_attributes([str(label) for label in range(255)], "print", "x" * 3000)
    return PartWriter(folder / "pseudo_labels.h5", "pseudo-labels", attributes, CHUNKS)


def work(folder: Path) -> None:
    """What a stage does: the parts that are missing, then the join."""
    writer = writer_in(folder)
    for number in writer.pending():
        writer.write(number, [record(name) for name in CHUNKS[number]])
    writer.join(NAMES)


def test_stored_results_go_on_when_there_is_room_again(tmp_path: Path) -> None:
    work(tmp_path / "undisturbed")
    whole = (tmp_path / "undisturbed" / "pseudo_labels.h5").stat().st_size
    part = (tmp_path / "undisturbed" / "part-00000.h5").stat().st_size
    seen = set()
    for limit in [0, 10, 48, 96, 1000, *range(2000, whole, 4999), whole + 3000]:
        folder = tmp_path / str(limit)
        folder.mkdir()
        said = limited(limit, lambda folder=folder: work(folder))  # type: ignore[misc]
        stopped = "progress.json" if limit < 20 else "part-00000.h5" if limit < part - 500 else "pseudo_labels.h5"
        seen.add(stopped if said else "done")
        if said:
            assert said.startswith(f"{folder}/")
            assert "cannot be written (File too large); raise the largest file size allowed" in said
            assert not (folder / "pseudo_labels.h5").exists()
            kept = sorted(path.name for path in folder.iterdir() if path.name != "progress.json")
            assert kept in ([], ["part-00000.h5"], ["part-00000.h5", "part-00001.h5"])
            assert len(writer_in(folder).finished) == len(kept)
            times = {path: path.stat().st_mtime_ns for path in folder.glob("part-*")}
            work(folder)
            assert {path: path.stat().st_mtime_ns for path in times} == times, "finished parts are kept"
        with LabelStore.open(folder / "pseudo_labels.h5") as store:
            assert store.names == NAMES
            assert all(np.array_equal(store.read(name), record(name).arrays["labels"]) for name in NAMES)
    assert seen == {"progress.json", "part-00000.h5", "pseudo_labels.h5", "done"}


def test_old_result_stays_when_the_new_one_has_no_room(tmp_path: Path) -> None:
    work(tmp_path)
    path = tmp_path / "pseudo_labels.h5"
    before = path.read_bytes()
    said = limited(len(before) - 1, lambda: writer_in(tmp_path).join(NAMES))
    assert said.startswith(f"{path} cannot be written (File too large)")
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_old_checkpoint_stays_when_the_new_one_has_no_room(tmp_path: Path, share: float) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1, "weights": torch.rand(5000)})
    before = path.read_bytes()
    limit = int(share * len(before))
    said = limited(limit, lambda: save_checkpoint(path, {"step": 2, "weights": torch.rand(5000)}))
    assert said.startswith(f"{path} cannot be written (File too large)")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    loaded = load_checkpoint(path)
    assert loaded is not None and loaded["step"] == 1


def test_old_model_stays_when_the_new_one_has_no_room(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, nn.Linear(50, 50), {"classes": ["cat"]})
    before = path.read_bytes()
    said = limited(len(before) // 2, lambda: save_model(path, nn.Linear(50, 50), {"classes": ["dog"]}))
    assert said.startswith(f"{path} cannot be written (File too large)")
    assert path.read_bytes() == before
    assert load_model(path).metadata == {"classes": ["cat"]}

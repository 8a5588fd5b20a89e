"""Every stage on a GPU against the same stage on the CPU (`make test ARGS="-m gpu -n 0"`; skipped without CUDA).

The two add in other orders, and cuDNN multiplies in TF32 (10 bits of mantissa), so equality is to be had within
tolerances only: class maps within 2 % of their maximum, label maps in all but 2 % of the pixels, the mean loss of the
first epoch within 2 %; with bfloat16 (8 bits) within 5 %. What follows from many steps is not compared.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cam_pipeline.ops.cam import cam_scores
from cam_pipeline.store.cams import CamStore
from cam_pipeline.store.labels import LabelStore

pytestmark = pytest.mark.gpu


def command(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run the program in a process of its own, as CUDA wants it; what it said on stderr."""
    program = [str(Path(sys.executable).with_name("cam-pipeline")), *arguments, "-c", "tiny.toml"]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == code, done.stderr
    return done.stderr


def first_loss(folder: Path, stage: str) -> float:
    return float(json.loads((folder / "run" / "logs" / f"{stage}.jsonl").read_text().splitlines()[0])["loss"])


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.02), ("bfloat16", 0.05)])
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_train_cls(workspace: Path, undisturbed: Path, precision: str, tolerance: float, compiled: str) -> None:
    settings = ("--set", f"run.precision={precision}", "--set", f"run.compile={compiled}")
    command(workspace, "train-cls", "--device", "cuda", *settings)
    assert first_loss(workspace, "train_cls") == pytest.approx(first_loss(undisturbed, "train_cls"), rel=tolerance)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.02), ("bfloat16", 0.05)])
def test_make_cams_with_one_classifier(finished: Path, undisturbed: Path, precision: str, tolerance: float) -> None:
    """With the classifier of the CPU's run, and without what was made from it."""
    for name in ("cams.h5", "scores.h5", "pseudo_labels.h5"):
        (finished / "run" / name).unlink()
    command(finished, "make-cams", "--device", "cuda", *keep_classifier(finished, precision))
    with CamStore.open(finished / "run" / "cams.h5") as ours, CamStore.open(undisturbed / "run" / "cams.h5") as theirs:
        for name in theirs.names:
            one, other = ours.read(name), theirs.read(name)
            assert one.class_ids == other.class_ids
            difference = cam_scores(one.cam, one.size) - cam_scores(other.cam, other.size)
            assert difference.abs().max() < tolerance
    same, pixels = 0, 0
    paths = [folder / "run" / "pseudo_labels.h5" for folder in (finished, undisturbed)]
    with LabelStore.open(paths[0]) as ours, LabelStore.open(paths[1]) as theirs:
        for name in theirs.names:
            one, other = ours.read(name), theirs.read(name)
            same, pixels = same + int((one == other).sum()), pixels + one.size
    assert same / pixels > 1 - tolerance


def keep_classifier(folder: Path, precision: str) -> tuple[str, ...]:
    """Let the run folder's classifier count as made with this precision; the options that go with it."""
    path = folder / "run" / "classifier.safetensors.manifest.json"
    options = ("--set", f"run.precision={precision}")
    if precision == "float32":
        return options
    from cam_pipeline.config import load_config
    from cam_pipeline.pipeline import Pipeline

    config = load_config(folder / "tiny.toml", [f"run.precision={precision}", f"output.dir='{folder / 'run'}'"])
    data = config.data.model_copy(update={"root": folder / "data"})
    state = Pipeline(config.model_copy(update={"data": data})).states(["train_cls"])["train_cls"]
    manifest = json.loads(path.read_text())
    manifest |= {"fingerprint": state.fingerprint, "run_id": state.fingerprint, "facts": state.facts}
    path.write_text(json.dumps(manifest))
    return options


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.02), ("bfloat16", 0.05)])
def test_train_seg_on_masks(
    workspace: Path, new_workspace: Callable[[Path], Path], tmp_path: Path, precision: str, tolerance: float
) -> None:
    other = new_workspace(tmp_path / "other")
    settings = ("--set", "train_seg.supervision=masks", "--set", f"run.precision={precision}")
    command(workspace, "train-seg", "--device", "cuda", *settings)
    command(other, "train-seg", "--device", "cpu", *settings)
    assert first_loss(workspace, "train_seg") == pytest.approx(first_loss(other, "train_seg"), rel=tolerance)


def test_results_of_the_gpu_are_read_on_the_cpu(workspace: Path) -> None:
    command(workspace, "run", "--device", "cuda")
    said = command(workspace, "run", "--device", "cpu")
    assert said.count("nothing to do") == 5
    command(workspace, "evaluate", "--device", "cpu")


def test_killed_on_the_gpu_and_resumed_on_the_cpu(workspace: Path) -> None:
    """A checkpoint belongs to no device."""
    options = ("--set", "train_cls.epochs=40")
    program = [str(Path(sys.executable).with_name("cam-pipeline")), "train-cls", "-c", "tiny.toml", *options]
    process = subprocess.Popen([*program, "--device", "cuda"], cwd=workspace, stderr=subprocess.DEVNULL)
    while not list(workspace.glob("run/partial/train_cls-*/checkpoint.pt")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    said = command(workspace, "train-cls", "--device", "cpu", *options)
    assert "train_cls: starts (" in said and "of 120 steps done)" in said


def test_out_of_memory_names_the_batch_key(workspace: Path) -> None:
    """A limit of the process's share of the GPU stands for a small one."""
    limit = "import torch; torch.cuda.set_per_process_memory_fraction(1e-5)\n"
    code = limit + "import sys; from cam_pipeline.cli import main; main(sys.argv[1:])"
    arguments = ["train-cls", "-c", "tiny.toml", "--device", "cuda"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=workspace, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "train_cls.batch_size" in done.stderr and "Traceback" not in done.stderr


def test_check_data_tells_how_long_a_run_takes(workspace: Path) -> None:
    program = [str(Path(sys.executable).with_name("cam-pipeline")), "check-data", "-c", "tiny.toml", "--device", "cuda"]
    done = subprocess.run(program, cwd=workspace, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "takes about, on this GPU" in done.stdout, done.stderr
    assert "no time" not in done.stderr

"""The Python interface: a trained run gives for an image what its stages stored."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cam_pipeline
from cam_pipeline import open_run
from cam_pipeline.data.images import read_image
from cam_pipeline.errors import ConfigError, DataError, LibraryMissing, StageNotReady
from cam_pipeline.ops.cam import cam_scores
from cam_pipeline.refinement.scores import class_scores
from cam_pipeline.store.cams import CamStore
from cam_pipeline.store.labels import LabelStore
from cam_pipeline.store.scores import ScoreStore

NAME = "images/train_00003"


@pytest.fixture(scope="module")
def folder(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished run, moved to a place without the data set, and a photo."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(undisturbed / "run", folder / "moved")
    shutil.copy(undisturbed / "data" / f"{NAME}.jpg", folder / "photo.jpg")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> cam_pipeline.TrainedRun:
    return open_run(folder / "moved", device="cpu")


def test_annotation_is_what_the_stages_stored(run: cam_pipeline.TrainedRun, folder: Path) -> None:
    with CamStore.open(folder / "moved" / "cams.h5") as store:
        stored = store.read(NAME)
    with ScoreStore.open(folder / "moved" / "scores.h5") as score_store:
        scores = score_store.read(NAME).scores
    with LabelStore.open(folder / "moved" / "pseudo_labels.h5") as label_store:
        labels = label_store.read(NAME)
    names = [run.classes[class_id - 1] for class_id in stored.class_ids]
    found = run.annotate(folder / "photo.jpg", classes=names)
    assert found.class_ids == stored.class_ids and list(found.names) == names
    assert found.cams.shape == (len(names), *stored.size) and found.cams.dtype == np.float32
    np.testing.assert_allclose(found.cams, cam_scores(stored.cam, stored.size).numpy(), atol=2e-3)  # stored as float16
    assert found.scores.shape == (1 + len(names), *stored.size)
    np.testing.assert_allclose(found.scores.sum(axis=0), 1, atol=1e-5)
    assert np.abs(found.scores - scores).mean() < 2 / 255
    assert found.labels.dtype == np.uint8 and (found.labels == labels).mean() > 0.98


def test_array_and_file_give_the_same(run: cam_pipeline.TrainedRun, folder: Path) -> None:
    by_file, by_array = run.annotate(folder / "photo.jpg"), run.annotate(read_image(folder / "photo.jpg"))
    np.testing.assert_array_equal(by_file.labels, by_array.labels)
    assert by_file.names == by_array.names


def test_without_classes_the_classifier_is_asked(run: cam_pipeline.TrainedRun, folder: Path) -> None:
    found = run.annotate(folder / "photo.jpg")
    everything = run.annotate(folder / "photo.jpg", classes=run.classes)
    assert everything.class_ids == tuple(range(1, len(run.classes) + 1))
    likely = {int(row) + 1 for row in np.flatnonzero(everything.probabilities > 0.5)}
    assert set(found.class_ids) == likely | {int(everything.probabilities.argmax()) + 1}


def test_an_image_of_nothing_is_background(run: cam_pipeline.TrainedRun, folder: Path) -> None:
    found = run.annotate(folder / "photo.jpg", classes=[])
    assert found.names == () and found.cams.shape[0] == 0
    assert not found.labels.any()
    assert (found.scores == 1).all()


def test_images_of_any_size(run: cam_pipeline.TrainedRun) -> None:
    for height, width in [(1, 1), (3, 50), (200, 31)]:
        found = run.annotate(np.full((height, width, 3), 90, dtype=np.uint8), classes=run.classes[:2])
        assert found.labels.shape == (height, width) and np.isfinite(found.scores).all()


def test_segment_is_complete(run: cam_pipeline.TrainedRun, folder: Path) -> None:
    labels = run.segment(folder / "photo.jpg")
    assert labels.shape == Image.open(folder / "photo.jpg").size[::-1]
    assert labels.max() <= len(run.classes)


def test_a_segmenter_alone_can_segment(
    run: cam_pipeline.TrainedRun, folder: Path, commands: Any, finished: Path
) -> None:
    """Masks and scribbles need no classifier."""
    masks = ("--set", "train_seg.supervision=masks", "--set", "output.dir=masks")
    assert commands.run("train-seg", "-c", "tiny.toml", *masks, folder=finished).code == 0
    alone = cam_pipeline.open_run(finished / "masks", device="cpu")
    assert alone.classes == run.classes
    image = next((finished / "data" / "images").iterdir())
    assert alone.segment(image).max() <= len(alone.classes)
    for ask in (lambda: alone.annotate(image), lambda: alone.classifier):
        with pytest.raises(StageNotReady, match=r"masks holds no classifier\. Run: cam-pipeline train-cls$"):
            ask()


def test_a_model_is_left_as_it_came(run: cam_pipeline.TrainedRun, folder: Path) -> None:
    before = {key: value.clone() for key, value in run.classifier.state_dict().items()}
    run.annotate(folder / "photo.jpg")
    assert not run.classifier.training
    assert all(torch.equal(value, before[key]) for key, value in run.classifier.state_dict().items())


def test_a_failed_command_leaves_the_run_as_it_was_made(
    commands: Any, folder: Path, finished: Path, run: cam_pipeline.TrainedRun
) -> None:
    """It wrote its config into the run folder before it failed; the results were made with another."""
    other = ("--set", "classifier.stride=8", "--set", "cam.scales=[0.5]", "--set", "refine.background=0.9")
    assert commands.run("train-seg", "-c", "tiny.toml", *other, folder=finished).code == 2
    assert "stride = 8" in (finished / "run" / "config.toml").read_text()
    expected = run.annotate(folder / "photo.jpg")
    found = open_run(finished / "run", device="cpu").annotate(folder / "photo.jpg")
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_merged_maps_are_read_from_all_their_runs(commands: Any, finished: Path) -> None:
    """The classifier of another run folder, whose maps are read otherwise, has its say in annotations, too."""
    shutil.copytree(finished / "run", finished / "other")
    there = ("--set", "output.dir=other", "--set", "cam.scales=[0.5]")
    assert commands.run("make-cams", "-c", "tiny.toml", *there, folder=finished).code == 0
    others = [finished / "other" / "cams.h5"]
    both = ("--set", f"refine.merge_with=['{others[0]}']")
    assert commands.run("make-cams", "-c", "tiny.toml", *both, folder=finished).code == 0
    run = open_run(finished / "run", device="cpu")
    with CamStore.open(finished / "run" / "merged_cams.h5") as store, CamStore.open(others[0]) as other:
        stored, beside = store.read(NAME), other.read(NAME)
    names = [run.classes[class_id - 1] for class_id in stored.class_ids]
    found = run.annotate(finished / "data" / f"{NAME}.jpg", classes=names).cams
    np.testing.assert_allclose(found, class_scores(stored, run.config.refine)[0].numpy(), atol=2e-3)
    assert np.abs(found - cam_scores(beside.cam, beside.size).numpy()).max() > 0.01
    assert run.annotate(finished / "data" / f"{NAME}.jpg").class_ids
    calibrated = ("--set", "output.dir=other", "--set", "cam.calibration=sfc")
    assert commands.run("make-cams", "-c", "tiny.toml", *calibrated, folder=finished).code == 0
    with pytest.raises(ConfigError, match="other has changed since it was merged with"):
        open_run(finished / "run", device="cpu")
    (finished / "run" / "config.toml").write_text(
        (finished / "run" / "config.toml").read_text().replace(f'merge_with = ["{others[0]}"]', "merge_with = []")
    )
    with pytest.raises(
        ConfigError,
        match=r"scores\.h5 is made from extract_cams, but was made from merge_cams; correct it, or run cam-pipeline",
    ):
        open_run(finished / "run", device="cpu")


def test_results_of_another_version_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "moved", tmp_path / "old")
    manifest = tmp_path / "old" / "cams.h5.manifest.json"
    manifest.write_text(manifest.read_text().replace('"scales"', '"scale_list"'))
    with pytest.raises(ConfigError, match="was made by another version; make its results again with --force"):
        open_run(tmp_path / "old")


def test_mistakes_are_one_line(run: cam_pipeline.TrainedRun, folder: Path, tmp_path: Path) -> None:
    near = run.classes[0][:-1] + "z"
    with pytest.raises(DataError, match=f"unknown class '{near}'; did you mean '{run.classes[0]}'"):
        run.annotate(folder / "photo.jpg", classes=[near])
    with pytest.raises(DataError, match=r"classes must be a list of names; write \['car'\]"):
        run.annotate(folder / "photo.jpg", classes="car")
    with pytest.raises(DataError, match="unknown class '1'"):
        run.annotate(folder / "photo.jpg", classes=[1])
    with pytest.raises(DataError, match=r"not NoneType"):
        run.annotate(None)
    with pytest.raises(DataError, match="there is no image file"):
        run.annotate(tmp_path / "absent.jpg")
    with pytest.raises(DataError, match=r"must be \(H, W, 3\) uint8 RGB, not \(4, 4\) float64"):
        run.annotate(np.zeros((4, 4)))
    with pytest.raises(StageNotReady, match="is no run folder"):
        open_run(tmp_path)
    shutil.copytree(folder / "moved", tmp_path / "half")
    (tmp_path / "half" / "segmenter.safetensors").unlink()
    with pytest.raises(StageNotReady, match="holds no segmenter"):
        open_run(tmp_path / "half", device="cpu").segment(folder / "photo.jpg")
    (tmp_path / "half" / "classifier.safetensors").unlink()
    with pytest.raises(StageNotReady, match="holds no classifier"):
        open_run(tmp_path / "half", device="cpu")


def test_a_missing_crf_backend_matters_only_to_what_is_refined(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "moved", tmp_path / "moved")
    config = tmp_path / "moved" / "config.toml"
    config.write_text(config.read_text().replace('crf_backend = "auto"', 'crf_backend = "pydensecrf"'))
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    run = open_run(tmp_path / "moved", device="cpu")
    assert run.segment(folder / "photo.jpg").ndim == 2
    with pytest.raises(LibraryMissing, match="pip install pydensecrf2"):
        run.annotate(folder / "photo.jpg")


def test_the_five_lines_of_the_readme(folder: Path, repository: Path) -> None:
    """They stand in README.md and run as they stand there, but for the two paths."""
    text = (repository / "README.md").read_text()
    start = text.index("from cam_pipeline import open_run")
    lines = text[start : text.index("```", start)].strip().splitlines()
    assert len([line for line in lines if line.strip()]) <= 5
    code = "\n".join(lines).replace("outputs/my", "moved").replace("photos/img/001.jpg", "photo.jpg")
    shown = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip()


def test_the_package_names_what_it_has() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'open_walk'"):
        cam_pipeline.open_walk  # noqa: B018

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from joblib.externals.loky.backend import context as loky
from PIL import Image

from cam_pipeline.config import Config
from cam_pipeline.data.table import Sample
from cam_pipeline.pipeline import Output
from cam_pipeline.refinement import background as background_module
from cam_pipeline.refinement import in_workers
from cam_pipeline.refinement.background import explained_by_map
from cam_pipeline.stages import refine_cams as module
from cam_pipeline.store.cams import StoredCam, cam_record
from cam_pipeline.store.hdf5 import artefact_attributes
from cam_pipeline.store.parts import PartWriter
from cam_pipeline.store.scores import ScoreStore, StoredScores

SIZE = (24, 36)


@pytest.fixture
def sample(tmp_path):
    """An image whose left half is red."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:, : SIZE[1] // 2, 0] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return Sample("a", tmp_path / "a.png", "train", (2, 1))


def stored(cam, class_ids):
    return StoredCam("a", torch.tensor(cam), class_ids, SIZE)


def test_the_stage_works_in_this_process_and_leaves_ctrl_c_alone(sample, tmp_path, inputs):
    """With a single worker joblib starts no process: signals must still reach the command."""
    (tmp_path / "data.csv").write_text("image,labels\na.png,cat\n")
    writer = PartWriter(tmp_path / "cams.h5", "cams", artefact_attributes(("cat",), "f", ""), [["a"]])
    writer.write(0, [cam_record(stored([[[1.0, 0.0]]], (1,)))])
    writer.join(["a"])
    config = Config.model_validate({"data": {"root": tmp_path}, "run": {"workers": 1}})
    output = Output(tmp_path / "out" / "scores.h5", tmp_path / "logs", "f")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        module.refine_cams(config, inputs(config, extract_cams=tmp_path / "cams.h5"), output)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    with ScoreStore.open(output.path) as store:
        record = store.read("a")
    assert record.class_ids == (1,) and record.scores.shape == (2, *SIZE)
    assert (record.scores[1, :, :12] > 0.9).all() and (record.scores[0, :, -12:] > 0.9).all()


def abort_at_three(cam, sample, settings):
    """What pydensecrf does with an image for which memory does not suffice."""
    if cam.name == "c":
        os.abort()
    scores = np.full((2, *cam.size), 0.5, np.float32)
    return StoredScores(cam.name, scores, cam.class_ids, {"unrefined": np.zeros(cam.size, np.uint8)})


def measured_but_three(measure, cam, sample):
    """The same while the background score is searched; no map is refined for what is known without."""
    if cam.name == "c" and measure.func is not explained_by_map:
        os.abort()
    return measure(cam, sample)


@pytest.fixture
def warm_workers():
    """Worker processes of joblib that are forked from a process which has imported everything, not started anew.

    Each death of one ends all of them, and importing torch would take seconds each time.
    """
    multiprocessing.set_forkserver_preload([module.__name__, __name__])
    loky.set_start_method("forkserver", force=True)
    yield
    loky.set_start_method(None, force=True)


@pytest.mark.parametrize("background", [0.35, "auto"])
@pytest.mark.usefixtures("warm_workers")
def test_an_image_at_which_the_crf_aborts_is_named_and_the_rest_survives(
    tmp_path, monkeypatch, caplog, inputs, background
):
    names = ["a", "b", "c", "d"]
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:, : SIZE[1] // 2, 0] = 200
    for name in names:
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "data.csv").write_text("image,labels\n" + "".join(f"{name}.png,cat\n" for name in names))
    writer = PartWriter(tmp_path / "cams.h5", "cams", artefact_attributes(("cat",), "f", ""), [names])
    maps = torch.tensor([[[1.0, 0.0]]])
    writer.write(0, [cam_record(StoredCam(name, maps, (1,), SIZE)) for name in names])
    writer.join(names)
    monkeypatch.setattr(in_workers, "refine_image", abort_at_three)
    monkeypatch.setattr(background_module, "measured", measured_but_three)
    monkeypatch.setattr(module, "IMAGES_PER_PART", 3)
    settings = {"kernel": "par", "background": background}
    config = Config.model_validate({"data": {"root": tmp_path}, "run": {"workers": 2}, "refine": settings})
    output = Output(tmp_path / "out" / "scores.h5", tmp_path / "logs", "f")
    module.refine_cams(config, inputs(config, extract_cams=tmp_path / "cams.h5"), output)
    assert (
        "image c: a worker process was killed, for lack of memory or by a crash of the CRF; it stays unrefined"
        in caplog.text
    )
    assert ("chosen without the images that cause this" in caplog.text) == (background == "auto")
    with ScoreStore.open(output.path) as store:
        assert list(store.names) == names
        assert [bool((store.read(name).scores == store.read("a").scores).all()) for name in names] == [
            True,
            True,
            False,
            True,
        ]
        alone = 1 / (1 + store.background)  # its map, which is 1 there, and the background, as they are
        assert store.read("c").scores[1, :, 0] == pytest.approx(alone, abs=1 / 255)

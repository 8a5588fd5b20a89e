import signal

import numpy as np
import pytest
import torch
from PIL import Image

from cam_pipeline.config import Config, RefineSettings
from cam_pipeline.data.table import Sample
from cam_pipeline.pipeline import Output
from cam_pipeline.stages import refine_cams as module
from cam_pipeline.stages.refine_cams import refined_scores
from cam_pipeline.store.cams import StoredCam, cam_record
from cam_pipeline.store.hdf5 import PartWriter, artefact_attributes
from cam_pipeline.store.scores import ScoreStore

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


def test_without_crf_scores_are_shares_with_the_background_first(sample):
    cam = stored([[[4.0, 0.0]], [[0.0, 9.0]]], (2, 1))
    scores = refined_scores(cam, sample, RefineSettings(background=0.25, crf=False))
    assert scores.shape == (3, *SIZE) and scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(scores[:, 5, 0], [0.2, 0.8, 0], atol=1e-4)  # 1/4 beside 1 and 0
    np.testing.assert_allclose(scores[:, 5, -1], [0.2, 0, 0.8], atol=1e-4)


def test_the_crf_moves_borders_to_those_of_the_image(sample):
    cam = stored([[[6.0, 5.0, 0.0, 0.0]]], (2,))  # reaches too far: a part of the right half as well
    settings = RefineSettings(background=0.3, bilateral_sxy=20, bilateral_srgb=10)
    plain = refined_scores(cam, sample, settings.model_copy(update={"crf": False}))
    refined = refined_scores(cam, sample, settings)
    truth = np.zeros(SIZE, bool)
    truth[:, : SIZE[1] // 2] = True
    errors = [int((scores.argmax(axis=0) != truth).sum()) for scores in (plain, refined)]
    assert errors[0] > 20 and errors[1] == 0
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-5)


def test_crf_settings_reach_the_crf(sample, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "dense_crf", lambda image, probabilities, **rest: (seen.append(rest), probabilities)[1])
    chosen = dict(gaussian_sxy=1.0, gaussian_weight=2.0, bilateral_sxy=3.0, bilateral_srgb=4.0, bilateral_weight=5.0)
    refined_scores(stored([[[1.0, 0.0]]], (2,)), sample, RefineSettings(crf_iterations=6, **chosen))
    assert seen == [{"iterations": 6, **chosen}]


def test_an_image_without_classes_is_background(sample):
    cam = StoredCam("a", torch.zeros(0, 2, 3), (), SIZE)
    assert (refined_scores(cam, sample, RefineSettings()) == 1).all()


def test_the_stage_works_in_this_process_and_leaves_ctrl_c_alone(sample, tmp_path):
    """With a single worker joblib starts no process: signals must still reach the command."""
    (tmp_path / "data.csv").write_text("image,labels\na.png,cat\n")
    writer = PartWriter(tmp_path / "cams.h5", "cams", artefact_attributes(("cat",), "f", ""), [["a"]])
    writer.write(0, [cam_record(stored([[[1.0, 0.0]]], (1,)))])
    writer.join(["a"])
    config = Config.model_validate({"data": {"root": tmp_path}, "run": {"workers": 1}})
    output = Output(tmp_path / "out" / "scores.h5", tmp_path / "logs", "f")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        module.refine_cams(config, {"extract_cams": tmp_path / "cams.h5"}, output)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    with ScoreStore.open(output.path) as store:
        record = store.read("a")
    assert record.class_ids == (1,) and record.scores.shape == (2, *SIZE)
    assert (record.scores[1, :, :12] > 0.9).all() and (record.scores[0, :, -12:] > 0.9).all()

"""The scores that a segmenter learns from if labels are soft."""

import numpy as np
import pytest
import torch
from PIL import Image

from cam_pipeline.config import Config
from cam_pipeline.data.images import sample_image
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import Interrupted
from cam_pipeline.pipeline import Output
from cam_pipeline.refinement import in_parts
from cam_pipeline.refinement.in_workers import refined_records
from cam_pipeline.refinement.scores import refined
from cam_pipeline.stages import score_cams as module
from cam_pipeline.store.cams import StoredCam, cam_record
from cam_pipeline.store.hdf5 import artefact_attributes
from cam_pipeline.store.parts import PartWriter
from cam_pipeline.store.scores import ScoreStore, StoredScores, score_record

SIZE = (24, 36)
NAMES = ("a", "b", "c")
MAPS = torch.tensor([[[1.0, 0.5, 0.0], [0.25, 0.0, 0.0]]])
SETTLED = 0.4


@pytest.fixture
def stage(tmp_path, inputs):
    """Runs the stage on three images whose background score was settled at SETTLED; gives config and output."""
    for name in NAMES:
        pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "data.csv").write_text("image,labels\n" + "".join(f"{name}.png,cat\n" for name in NAMES))
    cams = [cam_record(StoredCam(name, MAPS, (1,), SIZE)) for name in NAMES]
    scores = [score_record(StoredScores(name, np.zeros((2, *SIZE), np.float32), (1,))) for name in NAMES]
    for kind, records, more in (("cams", cams, {}), ("scores", scores, {"background": SETTLED})):
        writer = PartWriter(tmp_path / f"{kind}.h5", kind, artefact_attributes(("cat",), "f", "", **more), [NAMES])
        writer.write(0, records)
        writer.join(NAMES)
    for part in tmp_path.glob("part-*"):
        part.unlink()

    def run(**refine):
        settings = {"data": {"root": tmp_path}, "run": {"device": "cpu", "workers": 1}}
        config = Config.model_validate(settings | {"refine": refine, "train_seg": {"soft_labels": True}})
        output = Output(tmp_path / "out" / "soft_scores.h5", tmp_path / "logs", "f")
        results = {"extract_cams": tmp_path / "cams.h5", "refine_cams": tmp_path / "scores.h5"}
        module.score_cams(config, inputs(config, **results), output)
        return config, output

    return run


@pytest.mark.parametrize("refine", [{}, {"background": "auto"}, {"background": "auto", "kernel": "par"}])
def test_scores_are_those_before_the_crf_at_the_settled_background(tmp_path, stage, refine):
    config, output = stage(**refine)
    background = config.refine.background if not refine else SETTLED
    with ScoreStore.open(output.path) as store:
        found = store.read("a")
        assert store.background == background and store.names == list(NAMES) and store.classes == ("cat",)
    settings = config.refine.at(background).model_copy(update={"crf": False})
    sample = Sample("a", tmp_path / "a.png", "train", (1,))
    expected = refined(StoredCam("a", MAPS, (1,), SIZE), lambda: sample_image(sample), settings)
    assert np.abs(found.scores - expected.scores).max() <= 0.51 / 255
    assert found.class_ids == (1,)
    if not refine:  # by hand: the corner has a map of 1
        assert found.scores[:, 0, 0] == pytest.approx([background / (1 + background), 1 / (1 + background)], abs=3e-3)


def test_a_second_run_makes_what_the_first_did_not(stage, monkeypatch):
    def stopped(workers, cams, *rest):
        if cams[0].name == "b":
            raise Interrupted("stopped")
        yield from refined_records(workers, cams, *rest)

    monkeypatch.setattr(module, "IMAGES_PER_PART", 1)
    with monkeypatch.context() as patch:
        patch.setattr(in_parts, "refined_records", stopped)
        with pytest.raises(Interrupted):
            stage()
    made = []

    def counted(workers, cams, *rest):
        made.extend(cam.name for cam in cams)
        yield from refined_records(workers, cams, *rest)

    monkeypatch.setattr(in_parts, "refined_records", counted)
    _, output = stage()
    assert made == ["b", "c"]
    with ScoreStore.open(output.path) as store:
        assert all(np.array_equal(store.read(name).scores, store.read("a").scores) for name in NAMES)

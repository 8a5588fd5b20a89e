import json

import pytest

from cam_pipeline.config import Config
from cam_pipeline.errors import StageNotReady
from cam_pipeline.pipeline.state import Results
from cam_pipeline.report.html_report import gather
from cam_pipeline.report.run_facts import run_facts


@pytest.fixture
def results(tmp_path):
    """A run folder of two images in which nothing was run."""
    from PIL import Image

    data = tmp_path / "data"
    data.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(data / f"{name}.png")
    (data / "data.csv").write_text("image,split,labels\na.png,train,cat\nb.png,val,dog\n")
    config = {
        "data": {"root": str(data)},
        "run": {"seed": 3, "device": "cpu"},
        "segmenter": {"weights": "none"},
        "output": {"dir": str(tmp_path / "run")},
    }
    return Results(Config.model_validate(config))


def test_what_was_run(results):
    logs = results.folder / "logs"
    logs.mkdir(parents=True)
    (logs / "forecast.json").write_text(json.dumps({"stages": {"train_cls": {"seconds": 60}, "train_seg": 5}}))
    found = run_facts(results, results.states(["train_seg"]))
    assert found.classes == ("cat", "dog") and found.images == {"train": 1, "val": 1} and found.masks == {}
    assert found.settings["run.seed"] == "3" and found.defaults["run.seed"] == "0"
    assert "output.dir" not in found.defaults
    assert found.device == "cpu"
    classifier, segmenter = found.weights
    assert classifier.network == Config().classifier.backbone and classifier.licence
    assert segmenter.licence == "none needed"
    by_stage = {one.stage: one for one in found.stages}
    assert by_stage["train_cls"].forecast == 60 and by_stage["train_seg"].forecast == 5
    assert by_stage["train_cls"].state == "missing" and by_stage["train_cls"].bytes is None


def test_a_run_folder_without_results_is_told(results):
    with pytest.raises(StageNotReady, match=r"nothing to report yet.*train-cls"):
        gather(results)

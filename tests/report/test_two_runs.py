from dataclasses import replace
from types import SimpleNamespace

import pytest

from cam_pipeline.report import two_runs
from cam_pipeline.report.curves import Training
from cam_pipeline.report.html_report import RunReport
from cam_pipeline.report.mask_facts import ClassFigures, Compared
from cam_pipeline.report.run_facts import RunFacts, StageFact
from cam_pipeline.report.two_runs import comparison_page, different_settings, figures, names_of

FACTS = RunFacts(
    name="outputs/a",
    classes=("cat",),
    images={"train": 4},
    masks={},
    settings={"run.seed": "0", "output.dir": '"outputs/a"', "cam.flip": "true"},
    defaults={},
    versions={},
    device="cpu",
    weights=(),
    stages=(StageFact("train_cls", "classifier.safetensors", "current", "", 60.0, 1000),),
)


def report(iou, **changes):
    classes = (ClassFigures("cat", "head", 4, iou, 0.0, 1 - iou, None),)
    compared = Compared("pseudo-labels", "train", 4, 4, iou, 0.25, 0.0, classes, {"tail": None}, (), ())
    return RunReport(
        replace(FACTS, **changes), [Training("train_cls", {"loss": [(1, 0.5)]}, {})], None, compared=[compared]
    )


def test_settings_that_differ_and_matter():
    other = FACTS.settings | {"output.dir": '"outputs/b"', "run.seed": "1"}
    assert different_settings(FACTS.settings, other) == [("run.seed", "0", "1")]
    assert different_settings({}, {"a.b": "1"}) == [("a.b", "–", "1")]


def test_figures_of_both_and_their_difference():
    found = {one.name: one for one in figures(report(0.5), report(0.75))}
    one = found["pseudo-labels: mean IoU (train)"]
    assert (one.first, one.second, one.difference) == (0.5, 0.75, 0.25)
    assert found["train_cls: last loss"].difference == 0 and found["train_cls: time"].kind == "seconds"
    alone = replace(report(0.5), compared=[])
    missing = {one.name: one for one in figures(alone, report(0.75))}["pseudo-labels: IoU of cat"]
    assert (missing.first, missing.second, missing.difference) == (None, 0.75, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "outputs/b"}, "+25.0 points"),
        ({"name": "outputs/b"}, "Both runs have the same settings"),
        ({"settings": FACTS.settings | {"run.seed": "7"}}, "Settings that differ"),
        ({"classes": ("dog",)}, "different classes"),
        ({"images": {"train": 5}}, "different numbers of images"),
        (
            {"stages": (StageFact("train_seg", "segmenter.safetensors", "stale", "seed", None, None),)},
            "train_seg is stale",
        ),
    ],
)
def test_the_page_of_two_runs(changes, words):
    assert words in comparison_page(report(0.5), report(0.75, **changes))


def test_short_names_tell_runs_apart():
    assert names_of("outputs/a", "outputs/b") == ("a", "b")
    assert names_of("x/run", "y/run") == ("x/run", "y/run")


def test_a_comparison_leaves_the_report_of_a_run_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(two_runs, "gather", lambda *_, **__: None)
    monkeypatch.setattr(two_runs, "comparison_page", lambda *_: "compared")
    (tmp_path / "report.html").write_text("its own")
    run = SimpleNamespace(folder=tmp_path)

    assert two_runs.write_comparison(run, run).read_text() == "compared"
    assert (tmp_path / "report.html").read_text() == "its own"

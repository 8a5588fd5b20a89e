from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console

from cam_pipeline.data.check.data_set import DataCheck, SplitFacts
from cam_pipeline.data.check.problems import Problem
from cam_pipeline.report import terminal
from cam_pipeline.report.terminal import class_table, cost_table, duration, number_table, problem_lines, size_lines


def shown(table):
    """The cells of each line that holds any."""
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return [line.split() for line in capture.get().splitlines() if line.strip(" ─")]


def found(*splits, classes=("cat", "[red]dog"), costs=()):
    return DataCheck(classes, splits, (), costs, (), ())


TRAIN = SplitFacts("train", 1300, Counter({1: 1200, 2: 7}), Counter({0: 1, 1: 90, 5: 2, 9: 3}), unlabelled=4, masks=5)
VAL = SplitFacts("val", 3, Counter({2: 1}), Counter({1: 1}), unlabelled=2, masks=0)


def test_images_of_each_class_by_split():
    assert shown(class_table(found(TRAIN, VAL))) == [
        ["images", "that", "show", "train", "val"], ["cat", "1,200", "0"], ["[red]dog", "7", "1"],
        ["none", "of", "them", "1", "0"], ["unknown", "(no", "labels)", "4", "2"], ["all", "images", "1,300", "3"],
        ["of", "these", "with", "a", "mask", "5", "0"],
    ]  # fmt: skip


def test_images_with_marks_are_counted_if_there_are_any():
    train = replace(TRAIN, clicks=1200, clicked=6000, scribbles=3)
    rows = [" ".join(row) for row in shown(class_table(found(train, VAL)))]
    assert rows[-2:] == ["with clicks (number) 1,200 (6,000) 0 (0)", "with a scribble 3 0"]
    assert " ".join(shown(class_table(found(TRAIN, replace(VAL, scribbles=7))))[-1]) == "with a scribble 0 7"


def test_images_by_number_of_labels():
    rows = shown(number_table(found(TRAIN, VAL)))
    assert rows[1:] == [
        ["0", "1", "0"], ["1", "90", "1"], ["2", "0", "0"], ["3", "0", "0"], ["4", "0", "0"],
        ["5", "or", "more", "5", "0"],
    ]  # fmt: skip


def test_not_more_splits_than_fit():
    splits = [SplitFacts(f"s{number}", 1, Counter(), Counter(), 0, 0) for number in range(50)]
    assert shown(class_table(found(*splits)))[0][3:] == [f"s{number}" for number in range(6)]


def test_sizes():
    assert list(size_lines([(10, 20), (10, 20), (30, 5), (12, 20)])) == [
        "height: 10 to 30 pixels, median 11",
        "width: 5 to 20 pixels, median 20",
        "most common (width x height): 20 x 10 (2), 5 x 30 (1), 20 x 12 (1)",
    ]
    assert list(size_lines([])) == []


def test_costs():
    assert shown(cost_table(found(costs=(("train_cls", "5 steps"),))))[1:] == [["train_cls", "5", "steps"]]


def test_times_of_steps():
    costs = (("train_cls", "5 steps"), ("refine_cams", "3 images"), ("scores.h5", "1 MB"))
    rows = shown(cost_table(found(costs=costs), {"train_cls": 600.0, "refine_cams": 20.0}, "cpu"))
    assert [" ".join(row) for row in rows] == [
        "a run does takes about, on this CPU",
        "train_cls 5 steps 10 min",
        "refine_cams 3 images under a minute",
        "scores.h5 1 MB",
        "these together: about 10 min",
    ]
    short = shown(cost_table(found(costs=costs), {"refine_cams": 20.0}, "cpu"))
    assert " ".join(short[-1]) == "these together: under a minute"
    assert "this GPU" in " ".join(shown(cost_table(found(costs=costs), {"train_cls": 600.0}, "cuda"))[0])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "under a minute"), (60, "1 min"), (5000, "83 min"), (6000, "1.7 hours"), (86400 * 1.5, "36.0 hours"),
     (86400 * 7.2, "7 days")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_ten_problems_of_a_kind_are_shown_unless_all_are_asked_for():
    problems = [Problem("b", f"message {number}") for number in range(322)] + [Problem("a", "one")]
    lines = list(problem_lines(problems, every=False))
    assert lines[0] == ("  ", "b: 322") and lines[1] == ("    ", "message 0") and lines[10] == ("    ", "message 9")
    assert lines[11:] == [("    ", "and 312 more (--all lists them)"), ("  ", "a: 1"), ("    ", "one")]
    assert len(list(problem_lines(problems, every=True))) == 325


def test_names_with_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """To rich they would be markup."""
    figures = dict.fromkeys(("mIoU", "precision", "recall", "false_positive", "false_negative"), 0.5)
    row = {"map": "CAM", "split": "[/i]val", "images": 3, "seed": 0, "used": "masks", "background": None}
    row |= figures | {"coverage": None, "IoU": {"[/b]duck": 0.25, "[red]car": None}, "groups": {"head": 0.25}}
    report = {"rows": [row], "groups": {"head": ["[/b]duck"]}, "training_images": {"[/b]duck": 7, "[red]car": 4}}
    terminal.show(report)
    terminal.show_classes(report)
    shown = capsys.readouterr().out
    assert "[/b]duck" in shown and "[red]car" in shown and "[/i]val, 3 images" in shown
    assert "head" not in shown


def test_the_spread_of_few_images_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    figures = dict.fromkeys(("precision", "recall", "false_positive", "false_negative"), 0.5)
    row = {"map": "CAM", "split": "val", "images": 9, "seed": 0, "used": "masks", "background": None, "coverage": None}
    terminal.show({"rows": [row | figures | {"mIoU": 0.5, "mIoU_interval": [0.414, 0.596]}]})
    shown = capsys.readouterr().out
    assert "50.0 (41-60)" in shown and "in brackets 95 %" in shown
    terminal.show({"rows": [row | figures | {"mIoU": 0.5, "mIoU_interval": None}]})
    assert "brackets" not in capsys.readouterr().out


def test_groups_of_classes_are_shown_where_they_say_more_than_the_classes(capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"duck": 7, "car": 5, "cow": 4}
    row = {"map": "CAM", "IoU": dict.fromkeys(counts, 0.5), "groups": {"head": 0.25}}
    terminal.show_classes({"rows": [row], "groups": {"head": list(counts)}, "training_images": counts})
    shown = capsys.readouterr().out
    assert "head (3)" in shown and "4-7" in shown and "25.0" in shown

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cam_pipeline import open_run


def predict(commands: Any, folder: Path, *more: str) -> Any:
    return commands.run("predict", "-c", "tiny.toml", "-o", "labels", *more, folder=folder)


def rows_of(folder: Path) -> list[dict[str, str]]:
    return [*csv.DictReader((folder / "labels" / "predictions.csv").open())]


def test_new_images_need_no_data_set(commands: Any, finished: Path) -> None:
    (finished / "data").rename(finished / "new")
    ended = predict(commands, finished, "new/images", "--overlays")
    assert ended.code == 0, ended.stderr
    assert ended.stdout == "Label maps of 32 images: labels\nTable: labels/predictions.csv\n"
    rows = rows_of(finished)
    assert len(rows) == 32 and [row["confidence"] for row in rows] == sorted(row["confidence"] for row in rows)
    run = open_run(finished / "run", device="cpu")
    for row in rows[:3]:
        with Image.open(finished / "labels" / row["labels"]) as image:
            labels = np.asarray(image)
        assert np.array_equal(labels, run.segment(finished / row["image"]))
        probabilities = run.segment(finished / row["image"], probabilities=True)
        assert probabilities.shape == (1 + len(run.classes), *labels.shape)
        assert float(row["confidence"]) == pytest.approx(probabilities.max(axis=0).mean(), abs=1e-3)
    again = predict(commands, finished, "new/images", "--overlays")
    assert again.code == 0 and rows_of(finished) == rows


def test_views_and_the_crf_are_other_predictions(commands: Any, finished: Path) -> None:
    chosen = ("data/images/val*",)
    assert predict(commands, finished, *chosen).code == 0
    plain = rows_of(finished)
    for options in (("--scales", "0.5,1", "--flip"), ("--crf", "--set", "refine.crf_backend=torch")):
        ended = predict(commands, finished, *chosen, *options)
        assert ended.code == 0, ended.stderr
        other = rows_of(finished)
        assert len(other) == len(plain) and other != plain


BY_THRESHOLD = ("--set", "predict.classes=classifier")
BY_FACTOR = (*BY_THRESHOLD, "--set", "predict.by=multiply")


def test_the_classifier_has_a_say(commands: Any, finished: Path) -> None:
    """It makes nothing stale, gives the same from Python, and needs the data set once, for a threshold."""
    images = ("data/images/val*",)
    assert predict(commands, finished, *images).code == 0
    plain = rows_of(finished)
    first = predict(commands, finished, *images, *BY_THRESHOLD)
    assert first.code == 0, first.stderr
    by_classifier = rows_of(finished)
    assert by_classifier != plain
    kept = commands.run("run", "-c", "tiny.toml", *BY_THRESHOLD, folder=finished)
    assert kept.stderr.count("current, nothing to do") == 5
    (finished / "data").rename(finished / "new")
    images = ("new/images/val*",)
    again = predict(commands, finished, *images, *BY_THRESHOLD)
    assert again.code == 0, again.stderr
    assert [row["confidence"] for row in rows_of(finished)] == [row["confidence"] for row in by_classifier]
    run = open_run(finished / "run", device="cpu")
    row = rows_of(finished)[0]
    probabilities = run.segment(finished / row["image"], probabilities=True)
    assert float(row["confidence"]) == pytest.approx(probabilities.max(axis=0).mean(), abs=1e-3)
    (finished / "run" / "class_threshold.json").unlink()
    ended = predict(commands, finished, *images, *BY_THRESHOLD)
    assert ended.code == 2
    line = "Error: predict.threshold = 'auto' is chosen on labelled images: "
    assert ended.stderr.startswith(line) and ended.stderr.count("\n") == 1


def test_evaluate_tells_both_answers_apart(commands: Any, finished: Path) -> None:
    def rows(*options: str) -> list[dict[str, Any]]:
        ended = commands.run("evaluate", "-c", "tiny.toml", *options, folder=finished)
        assert ended.code == 0, ended.stderr
        found = json.loads((finished / "run" / "evaluation.json").read_text())["rows"]
        return [row for row in found if row["map"].startswith("segmenter")]

    [plain] = rows()
    same, seen = rows(*BY_THRESHOLD)
    assert same == plain and seen["map"] == "segmenter + classifier"
    threshold = json.loads((finished / "run" / "class_threshold.json").read_text())["threshold"]
    assert seen["used"] == f"image labels; without classes under {threshold:.3g}"
    assert rows(*BY_THRESHOLD) == [plain, seen]
    multiplied = rows(*BY_FACTOR, "--oracle")
    assert [row["map"] for row in multiplied] == ["segmenter", "segmenter + classifier", "segmenter, true classes"]
    assert "probabilities multiplied" in multiplied[1]["used"]
    assert [row["split"] for row in rows("--split", "train", "--oracle")] == ["train", "train"]
    assert rows() == [plain]


def test_a_run_on_masks_has_no_classifier_to_ask(commands: Any, finished: Path) -> None:
    masks = ("--set", "train_seg.supervision=masks", "--set", "output.dir=masks")
    ended = commands.run("train-seg", "-c", "tiny.toml", *masks, folder=finished)
    assert ended.code == 0, ended.stderr
    line = "Error: predict.classes = 'classifier', but masks holds no classifier. Run: cam-pipeline train-cls\n"
    ended = predict(commands, finished, "data/images", *masks, *BY_FACTOR)
    assert (ended.code, ended.stderr) == (2, line)
    ended = commands.run("evaluate", "-c", "tiny.toml", *masks, *BY_FACTOR, folder=finished)
    assert (ended.code, ended.stderr) == (2, line)
    assert commands.run("train-cls", "-c", "tiny.toml", *masks, folder=finished).code == 0
    ended = commands.run("evaluate", "-c", "tiny.toml", *masks, *BY_FACTOR, folder=finished)
    assert ended.code == 0 and "segmenter + classifier" in ended.stdout, ended.stderr


def test_a_folder_with_bad_files_gives_all_the_others(commands: Any, finished: Path) -> None:
    images = finished / "data" / "images"
    (images / "a.jpg").write_bytes(b"\xff\xd8\xff broken")
    (images / "b.jpg").write_bytes(b"")
    (images / "notes.txt").write_text("no image")
    ended = predict(commands, finished, "data/images", "--quiet")
    assert ended.code == 2 and len(rows_of(finished)) == 32
    first, second, last = ended.stderr.splitlines()
    assert first.startswith("data/images/a.jpg cannot be read as an image")
    assert second.startswith("data/images/b.jpg cannot be read as an image")
    assert last == "Error: 2 of 34 images could not be read, see above"


def test_a_killed_prediction_goes_on(commands: Any, finished: Path) -> None:
    moment = {"function": "cam_pipeline.report.predictions._told", "call": 9, "send": "SIGKILL", "group": True}
    ended = commands.run(
        "predict", "-c", "tiny.toml", "-o", "labels", "data/images", folder=finished, signal_at={"holds": "", **moment}
    )
    assert ended.code == -9
    done = len([*(finished / "labels").glob("*.png")])
    assert 0 < done < 32
    assert predict(commands, finished, "data/images").code == 0
    assert len(rows_of(finished)) == 32 and not [*(finished / "labels").glob(".*.tmp")][1:]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("gone.jpg", "-o", "labels"), "gone.jpg: no such file or folder"),
        (
            ("data/images", "-o", "labels", "--set", "output.dir=elsewhere"),
            "elsewhere holds no segmenter. Run: cam-pipe",
        ),
    ],
)
def test_mistakes_are_one_line(mistake: Any, arguments: tuple[str, ...], line: str) -> None:
    assert mistake("predict", *arguments).startswith(line)


@pytest.mark.parametrize("value", ["0", "a", "1,,2", "9", "1,1,1,1,1,1,1,1,1"])
def test_scales_are_checked(commands: Any, finished: Path, value: str) -> None:
    ended = predict(commands, finished, "data/images", "--scales", value)
    assert ended.code == 2 and "give one to eight numbers from 0.1 to 4" in ended.stderr

import csv
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

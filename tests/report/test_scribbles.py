"""Marks for a whole data set: what is kept, what is made again, what is never replaced."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.data.marks import sample_marks
from cam_pipeline.data.scribbles import clicks_from_mask, s4_scribble_from_mask, scribble_from_mask
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import Interrupted, UserError
from cam_pipeline.report import scribbles
from cam_pipeline.report.scribbles import Manner, make_marks

CLASSES = ("cat", "dog")
STROKES, CLICKS = Manner(), Manner("clicks")


def mask(index: int) -> np.ndarray:
    labels = np.zeros((40, 50), np.uint8)
    labels[5:25, 5 + index : 30] = 1
    labels[28:38, 20:45] = 255 if index else 2
    return labels


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    found = []
    for index in range(3):
        image, file = tmp_path / f"{index}.jpg", tmp_path / f"masks/{index}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (50, 40)).save(image)
        Image.fromarray(mask(index)).save(file)
        found.append(Sample(f"a/{index}", image, "train", (1, 2) if index == 0 else (1,), file))
    return found


@pytest.fixture
def make(samples: list[Sample], tmp_path: Path) -> Callable[..., tuple]:
    def run(manner: Manner = STROKES, among: list[Sample] | None = None, **more: bool) -> tuple:
        return make_marks(samples if among is None else among, CLASSES, tmp_path / "out", manner, 1, **more)

    return run


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


@pytest.mark.parametrize("style", ["strokes", "s4"])
def test_strokes_are_indexed_pngs_by_id(make, samples: list[Sample], tmp_path: Path, style: str) -> None:
    made, failed = make(Manner(style, width=1))
    assert failed == [] and [*made] == ["a/0", "a/1", "a/2"]
    draw = {"strokes": scribble_from_mask, "s4": s4_scribble_from_mask}[style]
    for index, sample in enumerate(samples):
        file = tmp_path / "out" / f"{sample.id}.png"
        with Image.open(file) as image:
            assert image.mode == "P" and len(set(image.getpalette()[3:9])) > 1
        marks = sample_marks(replace(sample, mask=None, scribble=file), 2)
        assert (marks.labels == draw(mask(index), width=1, min_area=20)).all()
        assert made[sample.id].marked == (marks.labels != 255).sum() and made[sample.id].pixels == 2000


@pytest.mark.parametrize("manner", [STROKES, CLICKS])
def test_the_same_masks_give_the_same_files(make, samples, tmp_path: Path, manner: Manner) -> None:
    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    make(manner)
    before = contents()
    for sample in samples:
        sample.mask.touch()
    make(manner, force=True)
    assert contents() == before


def test_clicks_are_one_table(make, tmp_path: Path) -> None:
    made, _ = make(CLICKS)
    rows = [*csv.DictReader((tmp_path / "out/clicks.csv").open())]
    names = ["background", *CLASSES]
    assert rows == [
        {"image": f"a/{index}", "x": str(x), "y": str(y), "class": names[label]}
        for index in range(3)
        for x, y, label in clicks_from_mask(mask(index))
    ]
    assert {row["class"] for row in rows} == {*names}
    assert made["a/1"].marked == 2 * 13  # a disc of radius 2 for each


def test_random_clicks_do_not_depend_on_the_other_images(make, samples: list[Sample]) -> None:
    manner = Manner("clicks", seed=3)
    made = make(manner)[0]
    assert make(manner, samples[1:2], force=True)[0]["a/1"] == made["a/1"] != make(CLICKS)[0]["a/1"]


@pytest.mark.parametrize("manner", [STROKES, CLICKS])
def test_what_is_there_is_not_made_again(make, samples, tmp_path: Path, monkeypatch, manner: Manner) -> None:
    first = make(manner)
    before = times(tmp_path / "out")
    tried = []

    def counted(*arguments):
        tried.append(arguments[-1].id)
        return real(*arguments)

    real = scribbles._make
    monkeypatch.setattr(scribbles, "_make", counted)
    assert make(manner) == first and tried == [] and times(tmp_path / "out") == before
    Image.fromarray(mask(2)).save(samples[1].mask)  # another mask
    make(manner)
    assert tried == ["a/1"]
    make(replace(manner, min_area=30))
    assert tried[1:] == ["a/0", "a/1", "a/2"]
    make(replace(manner, min_area=30), force=True)
    assert len(tried) == 7


@pytest.mark.parametrize("manner", [STROKES, CLICKS])
def test_an_interrupted_run_goes_on(make, tmp_path: Path, monkeypatch, manner: Manner) -> None:
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(scribbles, "raise_if_stopped", stop)
        with pytest.raises(Interrupted):
            make(manner)
    tried = []
    real = scribbles._make
    monkeypatch.setattr(scribbles, "_make", lambda *given: tried.append(given[-1].id) or real(*given))
    made, _ = make(manner)
    assert tried == ["a/2"] and made == make(manner, force=True)[0]


@pytest.mark.parametrize("manner", [STROKES, CLICKS])
def test_a_bad_mask_is_named_and_the_rest_goes_on(make, samples, caplog, tmp_path: Path, manner: Manner) -> None:
    samples[1].mask.write_bytes(b"no picture")
    made, failed = make(manner)
    assert [*made] == ["a/0", "a/2"] and len(failed) == 1 and str(samples[1].mask) in failed[0]
    assert failed[0] in caplog.text
    samples[1].mask.unlink()
    assert len(make(manner)[1]) == 1
    Image.fromarray(mask(1)).save(samples[1].mask)
    assert sorted(make(manner)[0]) == ["a/0", "a/1", "a/2"]


@pytest.mark.parametrize(("name", "manner"), [("a/1.png", STROKES), ("clicks.csv", CLICKS)])
def test_a_persons_work_is_never_replaced(make, tmp_path: Path, name: str, manner: Manner) -> None:
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    Image.new("L", (50, 40)).save(file, "PNG")
    before = file.read_bytes()
    with pytest.raises(UserError, match="was not made by make-scribbles"):
        make(manner, force=True)
    assert file.read_bytes() == before and [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [file]


@pytest.mark.parametrize("manner", [STROKES, CLICKS])
def test_marks_do_not_contradict_the_labels(make, samples: list[Sample], manner: Manner) -> None:
    samples[0] = replace(samples[0], class_ids=(1,))
    made, _ = make(manner)
    assert made["a/0"].denied == (2,) and made["a/1"].denied == ()
    assert 2 not in {label for _, _, label in made["a/0"].clicks}
    assert make(manner)[0] == made
    samples[0] = replace(samples[0], class_ids=None)
    assert make(manner)[0]["a/0"].denied == ()


def test_a_damaged_record_is_made_again(make, tmp_path: Path) -> None:
    made = make(CLICKS)
    (tmp_path / "out/clicks.json").write_text(json.dumps({"a/0": {}, "a/1": [1], "a/2": {"mask": 1}}))
    assert make(CLICKS) == made

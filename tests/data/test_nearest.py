from pathlib import Path

import pytest

from cam_pipeline.data.digest import FileDigests, data_digest
from cam_pipeline.data.nearest import did_you_mean, nearest_file
from cam_pipeline.data.table import Sample, without_image, without_mask
from cam_pipeline.errors import DataError


@pytest.mark.parametrize(
    ("there", "named"),
    [
        ("img/a.png", "img/a.jpg"),
        ("img/A.JPG", "img/a.jpg"),
        ("Img/a.jpg", "img/a.jpg"),
        ("img/train/a.jpg", "img/a.jpg"),
        ("pictures/a.jpg", "a.jpg"),
        ("img/e\u0301.jpg", "img/\u00e9.jpg"),
        ("img/a.jpg.jpg", "img/a.jpg"),
        ("img/007.jpg", "img/7.jpg"),
        ("img/my cat.jpg", "img/my_cat.jpg"),
        ("img/a.jpg", "C:\\data\\img\\a.jpg"),
        ("other/deep/a.JPEG", "img/a.jpg"),
    ],
)
def test_nearest_file(tmp_path: Path, there: str, named: str) -> None:
    (tmp_path / there).parent.mkdir(parents=True)
    (tmp_path / there).touch()
    (tmp_path / "unlike.jpg").touch()
    assert nearest_file(tmp_path / named, tmp_path) == tmp_path / there
    assert did_you_mean(tmp_path / named, tmp_path) == f" (did you mean {there}, below {tmp_path}?)"


def test_a_file_beside_it_comes_before_others(tmp_path: Path) -> None:
    for name in ("x/a.jpg", "img/a.jpg", "img/b.png", "x/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert nearest_file(tmp_path / "img/A.jpg", tmp_path) == tmp_path / "img/a.jpg"
    assert nearest_file(tmp_path / "x/b.jpg", tmp_path) == tmp_path / "x/b.png"


def test_nothing_is_near(tmp_path: Path) -> None:
    (tmp_path / "other.jpg").touch()
    assert did_you_mean(tmp_path / "a.jpg", tmp_path) == ""
    assert did_you_mean(tmp_path / "other.jpg", tmp_path) == ""
    assert did_you_mean(tmp_path / "no/a.jpg", tmp_path / "no") == ""


def test_messages_about_missing_files_ask_for_the_near_one(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img/a.png").touch()
    sample = Sample("img/a", tmp_path / "img/a.jpg", "train", (), mask=tmp_path / "m/a.png", source="data.csv, line 2")
    asked = f"(did you mean img/a.png, below {tmp_path}?)"
    assert f"there is no file {tmp_path / 'img/a.jpg'} {asked}; restore it" in without_image(sample)
    assert f"(looked for {tmp_path / 'm/a.png'}) {asked} (data.csv, line 2); add it" in without_mask(sample)
    with pytest.raises(
        DataError, match=r"a\.jpg cannot be read \(No such file .*line 2\) \(did you mean .*a\.png, below .*\?\)$"
    ):
        data_digest(("cat",), [sample], FileDigests(tmp_path / "digests.json"))


def test_the_mask_of_a_missing_image_is_not_offered_for_it(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "5.png").touch()
    assert did_you_mean(tmp_path / "img/5.png", tmp_path, tmp_path / "m/5.png") == ""

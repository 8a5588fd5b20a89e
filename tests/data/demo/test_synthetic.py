"""The generated data set: it repeats bit by bit, its labels are true, its classes have a long tail."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.data.demo.scenes import CLASS_NAMES
from cam_pipeline.data.demo.synthetic import generate, plan_labels
from cam_pipeline.errors import UserError

SIZE = (48, 66)


def make(root: Path, train: int = 6, seed: int = 0) -> Path:
    generate(root, train=train, val=3, size=SIZE, seed=seed)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def rows(root: Path) -> list[dict[str, str]]:
    with (root / "data.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def visible_classes(mask: Path) -> list[str]:
    with Image.open(mask) as image:
        assert image.mode == "P"
        labels = np.unique(np.asarray(image)).tolist()
    return [["background", *CLASS_NAMES][label] for label in labels if label]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("generated"))


def test_layout(dataset: Path) -> None:
    table = rows(dataset)
    assert list(table[0]) == ["image", "labels", "mask", "split"]
    assert Counter(row["split"] for row in table) == {"train": 6, "val": 3}
    assert (dataset / "classes.txt").read_text().split() == list(CLASS_NAMES)
    assert len({Image.open(dataset / row["image"]).size for row in table}) > 1, "mixed sizes"


def test_labels_are_what_the_mask_shows(dataset: Path) -> None:
    for row in rows(dataset):
        assert row["labels"].split(";") == visible_classes(dataset / row["mask"])
        assert Image.open(dataset / row["image"]).size == Image.open(dataset / row["mask"]).size


def test_same_seed_same_bytes_and_another_seed_others(dataset: Path, tmp_path: Path) -> None:
    assert contents(make(tmp_path / "again")) == contents(dataset)
    assert (
        contents(make(tmp_path / "other", seed=1))["images/train_00000.jpg"]
        != (dataset / "images/train_00000.jpg").read_bytes()
    )


def test_more_images_leave_the_first_ones_as_they_are(dataset: Path, tmp_path: Path) -> None:
    more = contents(make(tmp_path / "more", train=8))
    fewer = contents(dataset)
    assert all(more[name] == fewer[name] for name in fewer if name.startswith(("images", "masks")))


def test_finished_folder_is_left_alone(dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    assert make(dataset) == dataset
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before


def test_interrupted_run_is_completed(dataset: Path, tmp_path: Path) -> None:
    root = make(tmp_path / "interrupted")
    for name in ("data.csv", "images/train_00001.jpg", "masks/val_00002.png"):
        (root / name).unlink()
    kept = (root / "images/train_00000.jpg").stat().st_mtime_ns
    assert contents(make(root)) == contents(dataset)
    assert (root / "images/train_00000.jpg").stat().st_mtime_ns == kept


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("image,labels\n")
    with pytest.raises(UserError, match="not generated here"):
        make(tmp_path)
    assert contents(tmp_path) == {"data.csv": b"image,labels\n"}


def test_folder_of_another_request_is_refused(tmp_path: Path) -> None:
    make(tmp_path, train=1)
    with pytest.raises(UserError, match="other settings"):
        make(tmp_path, train=2)


def test_plan_has_a_long_tail_and_the_head_meets_every_class() -> None:
    plan = plan_labels(0, "train", 200)
    count = Counter(class_id for class_ids in plan for class_id in class_ids)
    together = Counter(class_id for class_ids in plan if 1 in class_ids for class_id in class_ids)
    assert count[1] == 90 and count[1] > 3 * count[6]
    assert [count[class_id] for class_id in range(1, 7)] == sorted(count.values(), reverse=True)
    assert all(together[class_id] > 0 for class_id in range(1, 7))
    assert all(1 <= len(set(class_ids)) == len(class_ids) <= 3 for class_ids in plan)

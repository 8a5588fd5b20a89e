"""`cam-pipeline init`: the layouts that it recognises, and the configs that it writes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cam_pipeline.cli import main
from cam_pipeline.config import load_config
from cam_pipeline.data.check.data_set import check_data
from cam_pipeline.data.check.problems import AllProblems
from cam_pipeline.data.layout import layouts
from cam_pipeline.errors import DataError
from cam_pipeline.report import new_config
from cam_pipeline.report.new_config import Backbone, Contents, Machine


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def as_csv(root: Path) -> None:
    for number in range(4):
        picture(root / "img" / f"{number}.jpg")
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(root / "img" / "3.png")
    (root / "img" / "3.png").rename(root / "mask.png")
    rows = ["img/0.jpg,cat,,train", "img/1.jpg,dog;cat,,train", "img/2.jpg,,,train", "img/3.jpg,dog,mask.png,valid"]
    write(root / "labels.csv", "\n".join(["image,labels,mask,split", *rows, ""]))


def as_folders(root: Path) -> None:
    for split in ("train", "valid"):
        for name in ("cat", "dog", "negative"):
            picture(root / split / name / "1.jpg")


def as_voc(root: Path) -> None:
    root = root / "VOCdevkit" / "VOC2012"
    for name in "abc":
        picture(root / "JPEGImages" / f"{name}.jpg")
        write(root / "Annotations" / f"{name}.xml", "<annotation><object><name>crack</name></object></annotation>")
    write(root / "ImageSets" / "Main" / "train.txt", "a\nb\n")
    write(root / "ImageSets" / "Main" / "val.txt", "c\n")


def as_coco(root: Path) -> None:
    outline = [[2, 2, 20, 2, 20, 20]]
    for split in ("train", "valid"):
        for number in (1, 2):
            picture(root / split / f"{number}.jpg")
        images = [{"id": number, "file_name": f"{number}.jpg", "height": 48, "width": 64} for number in (1, 2)]
        shown = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 162, "bbox": [2, 2, 18, 18]}
        content = {
            "images": images,
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [shown | {"segmentation": outline}],
        }
        write(root / split / "_annotations.coco.json", json.dumps(content))


def as_labelme(root: Path) -> None:
    for number, label in enumerate(("cat", "dog", "__ignore__", None)):
        picture(root / f"{number}.jpg")
        shape = {"label": label, "shape_type": "polygon", "points": [[2, 2], [20, 2], [20, 20]]}
        content = {"shapes": [shape], "imageHeight": 48, "imageWidth": 64, "imagePath": f"{number}.jpg"}
        if label:
            write(root / f"{number}.json", json.dumps(content))


LAYOUTS = {"csv": as_csv, "folders": as_folders, "voc": as_voc, "coco": as_coco, "labelme": as_labelme}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights are on this machine, no GPU is in it, and the network is away."""
    monkeypatch.setattr(new_config, "is_kept", lambda name: False)
    monkeypatch.setattr(new_config, "hub_silence", lambda: "no answer")
    monkeypatch.setattr(new_config, "nvidia_driver", lambda: None)
    monkeypatch.chdir(tmp_path)


def init(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["init", *arguments])


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_recognised_and_its_config_passes_the_check(tmp_path: Path, name: str) -> None:
    LAYOUTS[name](tmp_path / "photos")
    ended = init("photos", "-o", "my.toml")
    assert ended.exit_code == 0, ended.output
    assert f"Layout: {name}, as " in ended.output and "cam-pipeline check-data -c my.toml" in ended.output
    config = load_config("my.toml")
    assert config.classifier.weights == config.segmenter.weights == "none" and "connect to the network" in ended.output
    problems = AllProblems()
    found = check_data(config, 1, problems)
    assert not problems.errors and not found.errors
    assert set(found.classes) <= {"cat", "dog", "crack"} and found.table is not None
    assert config.data.val == {"csv": "valid", "folders": "valid", "voc": "val", "coco": "valid", "labelme": ""}[name]


def test_marks_and_splits_of_labelme(tmp_path: Path) -> None:
    as_labelme(tmp_path / "photos")
    ended = init("photos")
    assert "scribbles of 2 images" in ended.output and "1 images have no JSON file of shapes" in ended.output
    rows = (tmp_path / "my.csv").read_text().splitlines()
    assert rows == ["image,labels,split", "0.jpg,cat,train", "1.jpg,dog,train", "2.jpg,,train", "3.jpg,?,unlabelled"]


@pytest.mark.parametrize("there", ["my.toml", "my.csv"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    as_labelme(tmp_path / "photos")
    (tmp_path / there).write_text("mine")
    ended = init("photos", "-o", "my.toml")
    assert ended.exit_code == 2 and f"{there} is there already" in ended.output
    assert (tmp_path / there).read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_of_two_layouts_it_says_which_it_took_and_how_to_take_the_other(tmp_path: Path) -> None:
    as_coco(tmp_path / "photos")
    write(tmp_path / "photos" / "data.csv", "image,labels\ntrain/1.jpg,cat\n")
    ended = init("photos")
    assert "Layout: csv" in ended.output and "--format coco takes that" in ended.output
    assert "Layout: coco" in init("photos", "-o", "other.toml", "--format", "coco").output
    refused = init("photos", "-o", "third.toml", "--format", "voc")
    assert refused.exit_code == 2 and "it has: csv, coco" in refused.output


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "there is no folder"),
        (lambda root: root.mkdir(), "holds no image"),
        (lambda root: picture(root / "img" / "1.jpg"), "nothing that says what they show"),
        (lambda root: picture(root / "JPEGImages" / "1.jpg"), "no list of ids"),
    ],
)
def test_no_layout(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "photos")
    with pytest.raises(DataError, match=message):
        layouts(tmp_path / "photos")


def test_one_coco_file_for_all_images(tmp_path: Path) -> None:
    as_coco(tmp_path)
    (tmp_path / "valid" / "_annotations.coco.json").unlink()
    (tmp_path / "train" / "_annotations.coco.json").rename(tmp_path / "all.json")
    [layout] = [one for one in layouts(tmp_path) if one.format == "coco"]
    assert layout.data["annotations"] == "all.json" and layout.data["val"] == ""


def chosen(train: int, machine: Machine, backbone: Backbone, size: tuple[int, int] = (375, 500)) -> dict[str, object]:
    """The settings that are chosen, by section and key."""
    layout = new_config.Layout("csv", Path("photos"), "", {"format": "csv"})
    found = new_config._sections(layout, Path("photos"), Contents(train, train, 2, size), machine, backbone)
    return {f"{section}.{key}": value for section, rows in found.items() for key, value, _ in rows}


LAPTOP, SERVER = Machine("", 4, 8 * 10**9), Machine("NVIDIA A100", 16, 10**11)
SMALL, LARGE = Backbone("resnet10t", False, ""), Backbone("resnet50", True, "")


def test_settings_fit_the_images_and_the_machine() -> None:
    few, many = chosen(40, LAPTOP, SMALL), chosen(10_000, SERVER, LARGE)
    assert few["train_cls.batch_size"] == 4 and many["train_cls.batch_size"] == 16
    assert few["train_cls.epochs"] == 100 and many["train_cls.epochs"] == 8
    assert few["run.precision"] == "float32" and many["run.precision"] == "bfloat16"
    assert few["train_cls.crop"] == 160 and many["train_cls.crop"] == 320
    assert chosen(40, LAPTOP, SMALL, (48, 64))["train_cls.crop"] == 64
    assert chosen(5000, Machine("", 4, 10**9), LARGE)["train_cls.batch_size"] == 2
    assert chosen(5000, Machine("", 4, 10**9), LARGE)["run.workers"] == 1
    assert chosen(3, LAPTOP, SMALL)["train_cls.batch_size"] == 3


@pytest.mark.parametrize(
    ("kept", "silence", "name", "pretrained"),
    [
        ({"resnet18"}, "no answer", "resnet18", True),
        ({"resnet50"}, "no answer", "resnet50", True),
        (set(), "", "resnet18", True),
        (set(), "no answer", "resnet10t", False),
    ],
)
def test_the_backbone_is_one_whose_weights_can_be_had(
    monkeypatch: pytest.MonkeyPatch, kept: set[str], silence: str, name: str, pretrained: bool
) -> None:
    monkeypatch.setattr(new_config, "is_kept", lambda one: one in kept)
    monkeypatch.setattr(new_config, "hub_silence", lambda: silence)
    backbone = new_config.choose_backbone(LAPTOP)
    assert (backbone.name, backbone.pretrained, bool(backbone.remedy)) == (name, pretrained, not pretrained)

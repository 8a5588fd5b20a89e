"""Data sets that are wrong: one line, exit code 2, nothing written or lost; those that are odd but sound work.

`check-data` must say the same, and all of it at once.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Mistake = Callable[..., str]


@pytest.fixture
def files(finished: Path) -> Callable[[], dict[str, bytes]]:
    """Bytes of every file in the workspace, but for those that only tell who worked here last and what was read."""
    passing = {"run/lock", "run/config.toml", "run/digests.json"}

    def read() -> dict[str, bytes]:
        paths = {path.relative_to(finished).as_posix(): path for path in finished.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in paths.items() if name not in passing}

    return read


@pytest.fixture
def mistake(commands: Any, finished: Path, files: Callable[[], dict[str, bytes]]) -> Mistake:
    """Runs a command that must fail as a user's mistake: its line. check-data must say the same line, and also fail."""

    def run(*arguments: str) -> str:
        before = files()
        ended = commands.run(*arguments, "-c", "tiny.toml", "--quiet", folder=finished)
        assert ended.code == 2, f"{ended.code}\n{ended.stderr}"
        assert ended.stderr.startswith("Error: ") and len(ended.stderr.splitlines()) == 1, ended.stderr
        line = str(ended.stderr.removeprefix("Error: ").strip())
        checked = commands.run("check-data", "-c", "tiny.toml", "--all", *arguments[1:], folder=finished)
        assert checked.code == 2, checked.stdout
        assert checked.stderr.splitlines()[-1].endswith("in the data or the config, see above; a run would fail")
        assert any(line in shown for shown in checked.stdout.splitlines()), f"{line}\n{checked.stdout}"
        assert files() == before
        return line

    return run


def rows(workspace: Path) -> list[list[str]]:
    """The cells of the table, header first: image, labels, mask, split."""
    return [line.split(",") for line in (workspace / "data" / "data.csv").read_text().splitlines()]


def write_rows(workspace: Path, cells: list[list[str]]) -> None:
    (workspace / "data" / "data.csv").write_text("".join(",".join(row) + "\n" for row in cells))


def change(workspace: Path, line: int, **cells: str) -> None:
    """Replace cells in a line of the table."""
    table = rows(workspace)
    for name, value in cells.items():
        table[line - 1][table[0].index(name)] = value
    write_rows(workspace, table)


def test_label_without_image(commands: Any, finished: Path, files: Callable[[], dict[str, bytes]]) -> None:
    change(finished, 5, image="images/gone.jpg")
    before = files()
    for command in ("run", "train-cls", "make-cams"):
        ended = commands.run(command, "-c", "tiny.toml", "--quiet", folder=finished)
        assert ended.code == 2
        assert ended.stderr == (
            "Error: data/images/gone.jpg cannot be read (No such file or directory); restore it, or take it out of "
            "the data set (data/data.csv, line 5)\n"
        )
    ended = commands.run("check-data", "-c", "tiny.toml", folder=finished)
    assert ended.code == 2
    assert (
        "image images/gone (data/data.csv, line 5): there is no file data/images/gone.jpg; restore it" in ended.stdout
    )
    assert files() == before


def test_duplicate_id(mistake: Mistake, finished: Path) -> None:
    table = rows(finished)
    write_rows(finished, [*table, table[3]])
    assert mistake("run") == (
        f"data/data.csv, line {len(table) + 1}: the id images/train_00002 appears twice; "
        "data/data.csv, line 4 names it already"
    )


def test_two_images_with_one_stem(mistake: Mistake, finished: Path) -> None:
    shutil.copy(finished / "data/masks/train_00002.png", finished / "data/images/train_00002.png")
    change(finished, 6, image="images/train_00002.png")
    assert mistake("run") == (
        "data/data.csv, line 6: the id images/train_00002 appears twice: for train_00002.png, and for train_00002.jpg "
        "in data/data.csv, line 4; rename one of the two files"
    )


def test_labels_that_contradict_themselves(mistake: Mistake, finished: Path) -> None:
    change(finished, 4, labels="car;?")
    assert mistake("run") == (
        "data/data.csv, line 4: 'car;?' is known and unknown at once; write either `?` or the labels"
    )


def test_a_click_that_contradicts_the_labels(mistake: Mistake, finished: Path) -> None:
    change(finished, 4, labels="car")
    (finished / "data" / "clicks.csv").write_text("image,x,y,class\nimages/train_00002,5,5,duck\n")
    line = mistake("run", "--set=data.clicks=clicks.csv")
    assert line == (
        "data/clicks.csv, line 2: a click on duck, but the labels of image images/train_00002 are car "
        "(data/data.csv, line 4); add duck to the labels, make them unknown, or delete the click"
    )


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("images/train_00002.jpg", ("train-cls",)),
        ("masks/train_00002.png", ("train-seg", "--set=train_seg.supervision=masks")),
    ],
)
def test_a_file_that_can_not_be_read(commands: Any, finished: Path, file: str, command: tuple[str, ...]) -> None:
    (finished / "data" / file).write_bytes(b"")
    ended = commands.run(*command, "-c", "tiny.toml", "--quiet", folder=finished)
    assert ended.code == 2 and ended.stderr.startswith(f"Error: data/{file} cannot be read as a")
    assert ended.stderr.endswith("; replace it, or take it out of the data set (data/data.csv, line 4)\n")
    checked = commands.run("check-data", "-c", "tiny.toml", folder=finished)
    assert ended.stderr.removeprefix("Error: ") in checked.stdout


def test_unknown_class_offers_the_nearest(mistake: Mistake, finished: Path) -> None:
    change(finished, 4, labels="baloon")
    assert mistake("run") == "data/data.csv, line 4: unknown class 'baloon'; did you mean 'balloon'?"


def test_a_cell_with_a_line_break(mistake: Mistake, finished: Path) -> None:
    change(finished, 4, labels='"car\nballoon"')
    assert mistake("run") == (
        "data/data.csv, line 4: a line break in a cell; remove it, or add the quotation mark that is missing"
    )


def test_a_class_name_that_is_no_text(mistake: Mistake, finished: Path) -> None:
    with (finished / "data/classes.txt").open("a") as file:
        file.write("do\x1b[31mg\n")
    assert mistake("run") == "the class name 'do\\x1b[31mg' is no printable text; rename it"


def test_a_weights_file_that_is_not_there(mistake: Mistake, finished: Path) -> None:
    assert mistake("train-cls", "--set=classifier.weights=gone.pth") == "there is no weights file gone.pth"


PLAIN = ("--set=train_cls.epochs=1", "--set=segmenter.encoder_args={}", "--set=classifier.backbone_args={}")


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("segmenter.encoder=test_vit", "segmenter.encoder 'test_vit' cannot be used in deeplabv3plus: "),
        ("segmenter.weights=gone.pth", "segmenter.weights: there is no weights file gone.pth; put it there, or set "),
        ("train_seg.crop=50", "train_seg.crop = 50 does not suit the network 'resnet10t': "),
        ("classifier.stride=12", "classifier.stride: backbone 'resnet10t' cannot be brought to stride 12"),
        ("cam.source=class_token_gradient", "cam.source = 'class_token_gradient', cam.propagate = 'none', "),
        ("refine.merge_with=['nix.h5']", "refine.merge_with: there is no file nix.h5; make the CAMs of that run first"),
    ],
)
def test_what_stops_a_stage_is_said_before_the_first(mistake: Mistake, setting: str, line: str) -> None:
    """The classifier would have to be trained, and the run folder shows that it was not."""
    assert mistake("run", *PLAIN, f"--set={setting}").startswith(line)


@pytest.mark.parametrize("column", ["image", "mask"])
def test_paths_that_leave_the_data_root(mistake: Mistake, finished: Path, column: str) -> None:
    secret = finished / "secret.png"
    shutil.copy(finished / "data/masks/train_00002.png", secret)
    for name in ("../secret.png", str(secret), "images/../../secret.png"):
        change(finished, 4, **{column: name})
        assert mistake("run") == (
            f"data/data.csv, line 4: '{name}' is no path below the data root data; write it without `..` and relative "
            "to the root"
        )
    (finished / "data/link.png").symlink_to(secret)
    (finished / "data/folder").symlink_to(finished)
    for name in ("link.png", "folder/secret.png"):
        change(finished, 4, **{column: name})
        assert mistake("run") == (
            f"data/data.csv, line 4: '{name}' leads out of the data root data by a symbolic link; put the files "
            "themselves there"
        )


def test_a_data_root_that_is_a_link_is_current_as_before(commands: Any, finished: Path) -> None:
    (finished / "data").rename(finished / "elsewhere")
    (finished / "data").symlink_to(finished / "elsewhere")
    ended = commands.run("run", "-c", "tiny.toml", folder=finished)
    assert ended.code == 0, ended.stderr
    assert ended.stderr.count("current, nothing to do") == 5


def test_empty_data_set(mistake: Mistake, finished: Path) -> None:
    write_rows(finished, rows(finished)[:1])
    for command in ("run", "train-cls"):
        assert mistake(command) == "the data set has no images in split 'train' (it has no images at all)"
    (finished / "data/classes.txt").unlink()
    listed = "give data.classes, or a file data/classes.txt"
    assert mistake("run") == f"no image has a label, and no class is named: write labels, or {listed}"


def test_a_validation_split_without_images(mistake: Mistake, commands: Any, finished: Path) -> None:
    line = "the data set has no images in split 'vall' (it has: train, val); set data.val to one that it has, or to ''"
    for command in ("run", "train-cls"):
        assert mistake(command, "--set=data.val=vall", "--set=train_cls.epochs=1") == line
    table = rows(finished)
    write_rows(finished, [row for row in table if row[3] != "val"])
    ended = commands.run("train-cls", "-c", "tiny.toml", "--set=train_cls.epochs=1", folder=finished)
    assert ended.code == 0, ended.stderr
    assert "train_cls: split 'val' has no images with labels: no mAP and F1 are reported\n" in ended.stderr


def test_one_training_image_is_too_few_for_deeplabv3plus(
    commands: Any, finished: Path, files: Callable[[], dict[str, bytes]]
) -> None:
    table = rows(finished)
    write_rows(finished, [table[0], table[1], table[-1]])
    before = files()
    ended = commands.run(
        "train-seg", "-c", "tiny.toml", "--quiet", "--set", "train_seg.supervision=masks", folder=finished
    )
    assert ended.code == 2 and "DeepLabV3+ needs two images in a batch" in ended.stderr
    ended = commands.run("check-data", "-c", "tiny.toml", folder=finished)
    assert ended.code == 2 and "too few images: 1" in ended.stdout
    assert files() == before


def test_everything_at_once_and_nothing_written(commands: Any, workspace: Path) -> None:
    """12 broken images: ten are listed, and all with --all; no run folder appears."""
    for number in range(12):
        (workspace / f"data/images/train_{number:05d}.jpg").write_bytes(b"")
    change(workspace, 20, labels="baloon")
    before = sorted(workspace.rglob("*"))
    ended = commands.run("check-data", "-c", "tiny.toml", folder=workspace)
    assert ended.code == 2
    assert ended.stderr.endswith("Error: 13 mistakes in the data or the config, see above; a run would fail\n")
    assert ended.stdout.count("cannot be read as an image") == 10
    assert "image that cannot be read: 12" in ended.stdout and "and 2 more (--all lists them)" in ended.stdout
    assert "data/images/train_00003.jpg cannot be read as an image" in ended.stdout
    assert "(data/data.csv, line 5)" in ended.stdout and "did you mean 'balloon'?" in ended.stdout
    every = commands.run("check-data", "-c", "tiny.toml", "--all", "--quiet", folder=workspace)
    assert every.code == 2 and every.stdout.count("cannot be read as an image") == 12
    assert "images that show" in ended.stdout and "images that show" not in every.stdout
    assert sorted(workspace.rglob("*")) == before


def test_a_sound_data_set_passes(commands: Any, workspace: Path) -> None:
    ended = commands.run("check-data", "-c", "tiny.toml", folder=workspace)
    assert ended.code == 0, ended.stdout
    assert "No mistakes found." in ended.stdout and "6 steps: 2 epochs of 3 steps, 8 images in each" in ended.stdout
    assert not (workspace / "run").exists()


# What is odd, but works


def completed(commands: Any, workspace: Path, *arguments: str) -> Any:
    """Run everything, and check-data, both of which must succeed; gives what `run` said."""
    checked = commands.run("check-data", "-c", "tiny.toml", *arguments, folder=workspace)
    assert checked.code == 0, checked.stdout
    ended = commands.run("run", "-c", "tiny.toml", *arguments, folder=workspace)
    assert ended.code == 0, ended.stderr
    assert (workspace / "run" / "segmenter.safetensors").is_file()
    return ended


def history(workspace: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workspace / "run/logs/train_cls.jsonl").read_text().splitlines()]


def test_fewer_images_than_a_batch(commands: Any, workspace: Path) -> None:
    table = rows(workspace)
    write_rows(workspace, [*table[:6], *table[-2:]])
    completed(commands, workspace)
    assert len(history(workspace)) == 2


def test_one_class_only(commands: Any, workspace: Path) -> None:
    table = rows(workspace)
    for row in table[1:]:
        row[1] = "car" if "car" in row[1].split(";") else ""
        path = workspace / "data" / row[2]
        with Image.open(path) as mask:
            mask.point([value if value in (0, 1, 255) else 0 for value in range(256)]).save(path)
    write_rows(workspace, table)
    (workspace / "data/classes.txt").write_text("car\n")
    completed(commands, workspace)
    ended = commands.run("evaluate", "-c", "tiny.toml", folder=workspace)
    assert ended.code == 0, ended.stderr
    assert all(0 <= line["mAP"] <= 1 for line in history(workspace))


def test_class_without_images_is_warned_of_once(commands: Any, workspace: Path) -> None:
    with (workspace / "data/classes.txt").open("a") as file:
        file.write("zebra\n")
    ended = completed(commands, workspace)
    line = "1 of 7 classes have no training image, so nothing is learned about them: zebra"
    assert ended.stderr.count("zebra") == 1 and line in ended.stderr.splitlines()
    assert all(0 <= line["mAP"] <= 1 for line in history(workspace))
    ended = commands.run("evaluate", "-c", "tiny.toml", folder=workspace)
    assert ended.code == 0, ended.stderr


def test_doubtful_names_are_told_once_by_a_run_and_by_check_data_but_not_by_status(
    commands: Any, workspace: Path
) -> None:
    (workspace / "data/classes.txt").unlink()
    table = rows(workspace)
    table[1][1], table[2][1], table[3][3] = "nan", f"{table[2][1]};caar", "Train"
    write_rows(workspace, table)
    warnings = (
        "class named like a missing value: 'nan': leave the cell empty",
        "splits with nearly the same name: 'train' (23 images) and 'Train' (1 image) differ only in case",
        "class that a single training image shows: caar",
    )
    checked = commands.run("check-data", "-c", "tiny.toml", folder=workspace)
    assert all(line.partition(": ")[2] in checked.stdout for line in warnings)
    assert commands.run("status", "-c", "tiny.toml", folder=workspace).stderr == ""
    ended = commands.run("run", "-c", "tiny.toml", folder=workspace)
    assert ended.code == 0 and all(ended.stderr.count(line) == 1 for line in warnings), ended.stderr
    assert ended.stderr.count("train_cls: 8 classes, 23 training images: ") == 1
    assert commands.run("status", "-c", "tiny.toml", folder=workspace).stderr == ""
    again = commands.run("run", "-c", "tiny.toml", folder=workspace)
    assert again.code == 0 and "nan" not in again.stderr


@pytest.mark.parametrize("layout", ["folders", "coco", "voc"])
def test_other_layouts_run(commands: Any, workspace: Path, layout: str) -> None:
    root = workspace / "other"
    settings = {"folders": as_folders, "coco": as_coco, "voc": as_voc}[layout](workspace, root)
    arguments = [f"--set=data.{key}={value}" for key, value in ({"root": "other", "format": layout} | settings).items()]
    completed(commands, workspace, *arguments)
    ended = commands.run("evaluate", "-c", "tiny.toml", "--quiet", *arguments, folder=workspace)
    assert ended.code == 0, ended.stderr
    assert ("No mIoU for segmenter: no image of split 'val' has a mask" in ended.stdout) == (layout == "folders")
    assert (workspace / "run/report/contact_sheet.png").is_file()


def as_folders(workspace: Path, root: Path) -> dict[str, str]:
    for image, labels, _, split in rows(workspace)[1:]:
        target = root / split / (labels.split(";")[0] or "none") / Path(image).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(workspace / "data" / image, target)
    return {}


def as_coco(workspace: Path, root: Path) -> dict[str, str]:
    """Every class of a mask becomes one annotation by run lengths."""
    names = (workspace / "data/classes.txt").read_text().split()
    content: dict[str, dict[str, list[Any]]] = {}
    for number, (image, _, mask, split) in enumerate(rows(workspace)[1:]):
        file = content.setdefault(split, {"images": [], "annotations": [], "categories": []})
        (root / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(workspace / "data" / image, root / split)
        labels = np.asarray(Image.open(workspace / "data" / mask))
        height, width = labels.shape
        file["images"].append({"id": number, "file_name": Path(image).name, "height": height, "width": width})
        for value in sorted({*np.unique(labels).tolist()} - {0, 255}):
            flat = (labels == value).T.ravel()
            counts = np.diff([0, *np.flatnonzero(np.diff(flat, prepend=False)), flat.size]).tolist()
            shape = {"size": [height, width], "counts": counts}
            file["annotations"].append({"image_id": number, "category_id": 10 * value, "segmentation": shape})
    for split, file in content.items():
        file["categories"] = [{"id": 10 * number, "name": name} for number, name in enumerate(names, 1)]
        (root / f"{split}.json").write_text(json.dumps(file))
    return {"annotations": "{split}.json"}


def as_voc(workspace: Path, root: Path) -> dict[str, str]:
    for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for image, labels, mask, split in rows(workspace)[1:]:
        shutil.copy(workspace / "data" / image, root / "JPEGImages")
        shutil.copy(workspace / "data" / mask, root / "SegmentationClass")
        objects = "".join(f"<object><name>{name}</name></object>" for name in labels.split(";") if name)
        (root / "Annotations" / f"{Path(image).stem}.xml").write_text(f"<annotation>{objects}</annotation>")
        with (root / f"ImageSets/Segmentation/{split}.txt").open("a") as file:
            file.write(f"{Path(image).stem}\n")
    shutil.copy(workspace / "data/classes.txt", root)
    return {"labels": "Annotations"}


def white_objects(workspace: Path, split: str) -> None:
    """Every object in the masks of a split becomes 255, as other programs draw it."""
    for path in (workspace / "data" / "masks").glob(f"{split}_*.png"):
        with Image.open(path) as mask:
            labels = np.asarray(mask)
        Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)).save(path)


def test_masks_of_nought_and_255_are_not_trained_on(mistake: Mistake, finished: Path) -> None:
    white_objects(finished, "train")
    line = mistake("train-seg", "--set", "train_seg.supervision=masks")
    assert line.startswith(
        "train_seg.supervision = 'masks': no mask of split 'train' has a pixel of a class: they hold 0"
    )


def test_masks_of_nought_and_255_choose_no_score_and_that_is_said_before_the_training(
    mistake: Mistake, finished: Path
) -> None:
    white_objects(finished, "val")
    by_masks = ("refine.background=from-split", 'cam.splits=["train","val"]', "train_cls.epochs=9")
    line = mistake("run", *(word for setting in by_masks for word in ("--set", setting)))
    assert line.startswith("refine.background = 'from-split': no mask of split 'val' that is looked at shows a class")


def test_masks_in_jpeg_are_not_compared_with(mistake: Mistake, finished: Path) -> None:
    path = finished / "data" / "masks" / "val_00003.png"
    with Image.open(path) as mask:
        Image.fromarray(np.asarray(mask)).save(path, format="JPEG")
    assert mistake("evaluate").startswith("data/masks/val_00003.png: a mask in JPEG has wrong numbers at every edge; ")

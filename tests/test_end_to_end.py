"""The whole pipeline on a tiny data set, as users run it; and the demo, which must reach its quality bar (slow)."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cam_pipeline.config import load_config
from cam_pipeline.data.readers import load_table
from cam_pipeline.store.labels import LabelStore

ARTEFACTS = ("classifier.safetensors", "cams.h5", "scores.h5", "pseudo_labels.h5", "segmenter.safetensors")
STAGES = ("train_cls", "extract_cams", "refine_cams", "make_labels", "train_seg")
Differences = Callable[[Path, Path], list[str]]


def console_script(*arguments: str, folder: Path, seconds: float = 600) -> subprocess.CompletedProcess[str]:
    """Run the installed `cam-pipeline`; it must succeed."""
    command = [str(Path(sys.executable).with_name("cam-pipeline")), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file: other ones after a rewrite, even with the same bytes."""
    found = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in found.items()}


def figures(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "evaluation.json").read_text())["rows"]
    return rows


# The tiny run


def test_installed_program_runs_everything(workspace: Path, undisturbed: Path, differences: Differences) -> None:
    """In a process of its own and from the console script, the results are those of the tests' forked commands."""
    done = console_script("run", "-c", "tiny.toml", folder=workspace)
    starts = [line.split(":")[0] for line in done.stderr.splitlines() if line.endswith(": starts")]
    assert starts == list(STAGES)
    assert "Results are in run" in done.stdout
    assert all((workspace / "run" / name).is_file() for name in ARTEFACTS)
    assert differences(workspace / "run", undisturbed / "run") == []


def test_comparison_of_runs_sees_another_seed(
    commands: Any, workspace: Path, undisturbed: Path, differences: Differences
) -> None:
    """Else the tests that find no difference would prove nothing."""
    ended = commands.run("run", "-c", "tiny.toml", "--set", "run.seed=1", folder=workspace)
    assert ended.code == 0, ended.stderr
    different = differences(workspace / "run", undisturbed / "run")
    assert {name.split(":")[0] for name in different} == set(ARTEFACTS)


def test_second_run_makes_nothing(commands: Any, finished: Path) -> None:
    before = stamps(finished / "run")
    started = time.monotonic()
    ended = commands.run("run", "-c", "tiny.toml", folder=finished)
    assert (ended.code, time.monotonic() - started < 60) == (0, True)
    assert [line.split(" (")[0] for line in ended.stderr.splitlines()] == [
        f"{name}: current, nothing to do" for name in STAGES
    ]
    after = stamps(finished / "run")
    written_again = {"lock", "config.toml", "digests.json", "predictions/predictions.csv"}
    assert {name for name in after if before.get(name) != after[name]} <= written_again
    assert set(before) <= set(after)


def test_status_of_a_finished_run(commands: Any, finished: Path) -> None:
    shown = commands.run("status", "-c", "tiny.toml", folder=finished).stdout
    lines = [line.split("│")[1:3] for line in shown.splitlines() if line.startswith("│")]
    assert [tuple(cell.strip() for cell in cells) for cells in lines] == [(name, "current") for name in STAGES]


def test_status_names_the_reason_and_changes_nothing(commands: Any, finished: Path) -> None:
    before = stamps(finished / "run")
    ended = commands.run("status", "-c", "tiny.toml", "--set", "refine.background=0.7", folder=finished)
    kinds = {line.split("│")[1].strip(): line for line in ended.stdout.splitlines() if line.startswith("│")}
    assert "refine.background was 0.3, is 0.7" in kinds["refine_cams"]
    assert ["stale" in kinds[name] for name in STAGES] == [False, False, True, True, True]
    assert {name for name, stamp in stamps(finished / "run").items() if before.get(name) != stamp} <= {"digests.json"}


def test_status_before_the_first_run(commands: Any, workspace: Path) -> None:
    ended = commands.run("status", "-c", "tiny.toml", folder=workspace)
    assert ended.stdout.count("missing") >= len(STAGES)
    assert not (workspace / "run").exists()


def test_make_cams_after_another_background_keeps_cams(commands: Any, finished: Path) -> None:
    before = stamps(finished / "run")
    ended = commands.run("make-cams", "-c", "tiny.toml", "--set", "refine.background=0.7", folder=finished)
    assert ended.code == 0, ended.stderr
    after = stamps(finished / "run")
    remade = [name for name in ARTEFACTS if after[name] != before[name]]
    assert remade == ["scores.h5", "pseudo_labels.h5"]


def test_several_workers_make_the_same(
    commands: Any, workspace: Path, undisturbed: Path, differences: Differences
) -> None:
    ended = commands.run("run", "-c", "tiny.toml", "--workers", "2", folder=workspace)
    assert ended.code == 0, ended.stderr
    different = differences(workspace / "run", undisturbed / "run")
    assert [name for name in different if not name.endswith("@config")] == []
    assert commands.run("run", "-c", "tiny.toml", folder=workspace).stderr.count("nothing to do") == len(STAGES)


@pytest.fixture(scope="module")
def evaluation(commands: Any, undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A workspace after `evaluate`, and what was printed; not to be changed."""
    folder = tmp_path_factory.mktemp("evaluated") / "copy"
    shutil.copytree(undisturbed, folder)
    ended = commands.run("evaluate", "-c", "tiny.toml", folder=folder)
    assert ended.code == 0, ended.stderr
    return folder, ended.stdout


@pytest.fixture
def evaluated(evaluation: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(evaluation[0], tmp_path / "evaluated"))


def test_evaluation_states_what_every_number_is_of(evaluation: tuple[Path, str]) -> None:
    folder, shown = evaluation
    rows = figures(folder / "run")
    facts = [(row["map"], row["split"], row["images"], row["seed"], row["used"]) for row in rows]
    assert facts == [
        ("CAM", "train", 24, 0, "image labels"),
        ("refined", "train", 24, 0, "image labels"),
        ("pseudo-label", "train", 24, 0, "image labels"),
        ("segmenter", "val", 8, 0, "image labels"),
    ]
    assert all(0 < row["mIoU"] <= 1 for row in rows)
    assert all(set(row["IoU"]) >= {"background", "car", "fish"} for row in rows)
    assert 0 < rows[2]["coverage"] <= 1
    report = json.loads((folder / "run" / "evaluation.json").read_text())
    table = load_table(load_config(folder / "run" / "config.toml", [f"data.root={folder / 'data'}"]).data)
    shown_by = [
        sum(number in (sample.class_ids or ()) for sample in table.split("train"))
        for number in range(1, 1 + len(table.classes))
    ]
    assert list(report["training_images"].values()) == shown_by
    assert sorted(name for names in report["groups"].values() for name in names) == sorted(report["training_images"])
    assert all(f"{100 * row['mIoU']:.1f}" in shown for row in rows)


def test_contact_sheet_is_a_picture(evaluation: tuple[Path, str]) -> None:
    folder, shown = evaluation
    assert "run/report/contact_sheet.png" in shown
    with Image.open(folder / "run" / "report" / "contact_sheet.png") as image:
        assert min(image.size) > 100
        assert len(set(image.convert("L").tobytes())) > 50, "there is nothing on it"


def test_evaluation_is_not_repeated_without_need(commands: Any, evaluated: Path) -> None:
    before = stamps(evaluated / "run")["evaluation.json"]
    commands.run("evaluate", "-c", "tiny.toml", folder=evaluated)
    assert stamps(evaluated / "run")["evaluation.json"] == before


def test_evaluation_of_another_split_with_the_oracle(commands: Any, evaluated: Path) -> None:
    commands.run("evaluate", "-c", "tiny.toml", "--split", "train", "--every", "5", "--oracle", folder=evaluated)
    rows = figures(evaluated / "run")
    of_segmenter = ["segmenter", "segmenter, true classes"]
    assert [row["map"] for row in rows] == ["CAM", "CAM, oracle", "refined", "pseudo-label", *of_segmenter]
    assert {(row["split"], row["images"]) for row in rows} == {("train", 5)}
    assert "oracle" in rows[1]["used"]
    assert rows[1]["mIoU"] >= rows[0]["mIoU"]


def test_other_masks_and_a_lost_picture_are_noticed(commands: Any, evaluated: Path) -> None:
    """Masks of `val` are of no stage, but the segmenter's number is."""
    before, sheet = figures(evaluated / "run"), evaluated / "run" / "report" / "contact_sheet.png"
    for mask in (evaluated / "data" / "masks").glob("val_*.png"):
        with Image.open(mask) as image:
            image.point(lambda label: 1 if label else 0).save(mask)
    commands.run("evaluate", "-c", "tiny.toml", folder=evaluated)
    after = figures(evaluated / "run")
    assert after[3] != before[3]
    assert after[:3] == before[:3]
    sheet.unlink()
    commands.run("evaluate", "-c", "tiny.toml", folder=evaluated)
    assert sheet.is_file()


def test_what_is_not_current_is_named_and_not_on_the_picture(commands: Any, evaluated: Path) -> None:
    before = (evaluated / "run/report/contact_sheet.png").read_bytes()
    ended = commands.run("evaluate", "-c", "tiny.toml", "--set", "refine.background=0.9", folder=evaluated)
    assert ended.code == 0, ended.stderr
    assert [row["map"] for row in figures(evaluated / "run")] == ["CAM"]
    assert re.search(r"^No mIoU for refined: stale \(refine.background was .*, is 0.9\)$", ended.stdout, re.M)
    assert "No mIoU for segmenter: stale (made from an earlier make_labels)" in ended.stdout
    same = "-c tiny.toml --set refine.background=0.9"
    assert f"Not all results are current. Run: cam-pipeline run {same}" in ended.stdout.splitlines()
    assert (evaluated / "run/report/contact_sheet.png").read_bytes() != before


def test_of_stale_results_alone_is_said_why_and_what_to_do(commands: Any, finished: Path) -> None:
    ended = commands.run("evaluate", "-c", "tiny.toml", "--set", "train_cls.epochs=3", folder=finished)
    assert ended.code == 2
    assert ended.stderr.splitlines()[-1] == (
        "Error: nothing is current that can be evaluated: classifier.safetensors is stale (train_cls.epochs was 2, is "
        "3), cams.h5 is stale (made from an earlier train_cls), scores.h5 is stale (made from an earlier "
        "extract_cams), pseudo_labels.h5 is stale (made from an earlier refine_cams), segmenter.safetensors is stale "
        "(made from an earlier make_labels). Run: cam-pipeline run -c tiny.toml --set train_cls.epochs=3"
    )
    with (finished / "run/cams.h5").open("ab") as file:
        file.write(b"x")
    ended = commands.run("evaluate", "-c", "tiny.toml", folder=finished)
    assert "cams.h5 is damaged (run/cams.h5 has " in ended.stderr
    assert ended.stderr.endswith(". Run: cam-pipeline make-cams -c tiny.toml --force\n")


def test_images_of_the_contact_sheet_are_chosen_without_new_figures(commands: Any, evaluated: Path) -> None:
    sheet = evaluated / "run/report/contact_sheet.png"

    def height(*options: str) -> int:
        """That of the sheet; the figures must stay as they are."""
        before = json.loads((evaluated / "run/evaluation.json").read_text())["rows"]
        ended = commands.run("evaluate", "-c", "tiny.toml", *options, folder=evaluated)
        assert ended.code == 0 and "evaluate CAM" not in ended.stderr, ended.stderr
        assert json.loads((evaluated / "run/evaluation.json").read_text())["rows"] == before
        with Image.open(sheet) as image:
            return image.height

    three = height("--images", "3")
    assert height("--images", "6") > three + 100
    changed = sheet.stat().st_mtime_ns
    assert height("--images", "6") > three and sheet.stat().st_mtime_ns == changed
    assert height("--ids", "images/val_00003,images/train_00001") < three
    ended = commands.run("evaluate", "-c", "tiny.toml", "--ids", "train_00001", folder=evaluated)
    assert ended.code == 2
    assert "Error: --ids: there is no image train_00001; did you mean images/train_00001?" in ended.stderr
    ended = commands.run("evaluate", "-c", "tiny.toml", "--ids", "a", "--images", "3", folder=evaluated)
    assert ended.code == 2 and "--ids names the images of the contact sheet" in ended.stderr


def test_labels_that_lost_a_class_are_told_of(commands: Any, evaluated: Path) -> None:
    options = ("-c", "tiny.toml", "--set", "refine.background=0.99", "--set", "refine.crf=false")
    ended = commands.run("make-cams", *options, folder=evaluated)
    with LabelStore.open(evaluated / "run/pseudo_labels.h5") as store:
        names = [name for name in store.names if not (store.read(name) % 255).any()]
    assert len(names) > 12
    assert "make_labels: no pixel has a class, " in ended.stderr or int(
        re.search(r"make_labels: (\d+) of 24 images have no pixel of a class that they show: ", ended.stderr)[1]
    ) >= len(names)
    assert "make_labels: 24 images: background " in ended.stderr


def test_labels_of_background_alone_are_not_trained_on(commands: Any, finished: Path) -> None:
    settings = ("refine.background=0.99", "refine.crf=false", "labels.low=0.9", "labels.high=0.999")
    ended = commands.run(
        "run", "-c", "tiny.toml", *(word for setting in settings for word in ("--set", setting)), folder=finished
    )
    assert ended.code == 2
    assert "Error: run/pseudo_labels.h5: no pixel has a class, so there is nothing to learn" in ended.stderr
    assert "make_labels: no pixel has a class" in ended.stderr and "epoch 1 of" not in ended.stderr


def test_evaluation_without_masks_draws(commands: Any, evaluated: Path) -> None:
    table = evaluated / "data/data.csv"
    header, *lines = table.read_text().splitlines()
    column = header.split(",").index("mask")
    cells = [line.split(",") for line in lines]
    kept = [",".join([*row[:column], "", *row[column + 1 :]]) for row in cells]
    table.write_text("\n".join([header, *kept]))
    sheet = evaluated / "run/report/contact_sheet.png"
    sheet.unlink()
    ended = commands.run("evaluate", "-c", "tiny.toml", folder=evaluated)
    assert ended.code == 0, ended.stderr
    assert figures(evaluated / "run") == [] and sheet.is_file()
    assert ended.stdout.splitlines() == [
        "No mIoU for CAM, refined, pseudo-label: no image of split 'train' has a mask",
        "No mIoU for segmenter: no image of split 'val' has a mask",
        "Pictures: run/report/contact_sheet.png",
    ]
    ended = commands.run("evaluate", "-c", "tiny.toml", "--split", "val", folder=evaluated)
    assert ended.code == 2
    assert "nothing can be compared on split 'val': CAM, refined, pseudo-label: no maps are made" in ended.stderr


def test_reference_on_masks_needs_nothing_else(commands: Any, workspace: Path) -> None:
    options = ("-c", "tiny.toml", "--set", "train_seg.supervision=masks")
    ended = commands.run("train-seg", *options, folder=workspace)
    assert ended.code == 0, ended.stderr
    assert [name for name in ARTEFACTS if (workspace / "run" / name).exists()] == ["segmenter.safetensors"]
    assert commands.run("evaluate", *options, folder=workspace).code == 0
    assert [(row["map"], row["used"]) for row in figures(workspace / "run")] == [("segmenter", "masks")]


def test_images_without_labels_get_pseudo_labels_too(commands: Any, finished: Path) -> None:
    """`?` says that nobody knows what an image shows; the classifier is asked."""
    table = finished / "data" / "data.csv"
    cells = [line.split(",") for line in table.read_text().splitlines()]
    rows = [[image, "?" if split == "val" else labels, mask, split] for image, labels, mask, split in cells]
    table.write_text("".join(",".join(row) + "\n" for row in rows))
    ended = commands.run("make-cams", "-c", "tiny.toml", "--set", "cam.splits=['train', 'val']", folder=finished)
    assert ended.code == 0, ended.stderr
    with LabelStore.open(finished / "run" / "pseudo_labels.h5") as store:
        assert len(store.names) == 32
        with Image.open(finished / "data" / "images" / "val_00003.jpg") as image:
            assert store.read("images/val_00003").shape == (image.height, image.width)


# The demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after `cam-pipeline demo --set output.dir=demo`."""
    folder = tmp_path_factory.mktemp("demo")
    done = console_script("demo", "--set", "output.dir=demo", folder=folder, seconds=3600)
    assert "contact_sheet.png" in done.stdout
    return folder


def row_of(folder: Path, name: str) -> dict[str, Any]:
    return next(row for row in figures(folder) if row["map"] == name)


@pytest.mark.slow
def test_demo_classifier_reaches_its_bar(demo: Path) -> None:
    epochs = (demo / "demo" / "logs" / "train_cls.jsonl").read_text().splitlines()
    assert json.loads(epochs[-1])["mAP"] >= 0.9


@pytest.mark.slow
def test_demo_refinement_adds_three_points(demo: Path) -> None:
    """At the same background score, on the same images, without a look at the masks."""
    cam, refined = row_of(demo / "demo", "CAM"), row_of(demo / "demo", "refined")
    for fact in ("background", "split", "images", "used"):
        assert cam[fact] == refined[fact]
    assert cam["used"] == "image labels"
    assert refined["mIoU"] >= cam["mIoU"] + 0.03


@pytest.mark.slow
def test_demo_segmenter_reaches_most_of_the_supervised_one(demo: Path) -> None:
    options = (
        "-c", "demo", "--set", "data.root=demo/data", "--set", "output.dir=masks",
        "--set", "train_seg.supervision=masks",
    )  # fmt: skip
    console_script("train-seg", *options, folder=demo, seconds=3600)
    console_script("evaluate", *options, folder=demo, seconds=3600)
    ours, reference = row_of(demo / "demo", "segmenter"), row_of(demo / "masks", "segmenter")
    assert (ours["split"], ours["images"]) == (reference["split"], reference["images"]) == ("val", 120)
    assert (ours["used"], reference["used"]) == ("image labels", "masks")
    assert reference["mIoU"] >= 0.3, "a reference that learned nothing would make the next line easy"
    assert ours["mIoU"] >= 0.7 * reference["mIoU"]


@pytest.mark.slow
def test_demo_again_takes_seconds(demo: Path) -> None:
    before = stamps(demo / "demo")
    started = time.monotonic()
    done = console_script("demo", "--set", "output.dir=demo", folder=demo)
    assert time.monotonic() - started < 60
    assert done.stderr.count("nothing to do") == len(STAGES)
    after = stamps(demo / "demo")
    written_again = {"lock", "config.toml", "digests.json", "predictions/predictions.csv"}
    assert {name for name in after if before.get(name) != after[name]} <= written_again

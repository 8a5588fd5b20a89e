"""make-scribbles: what it says, and what it refuses."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cam_pipeline.cli import main
from cam_pipeline.cli.data import draw_scribbles
from cam_pipeline.config import load_config
from cam_pipeline.data.readers import load_table


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def run(data: Path, *more: str) -> Result:
    config = data.parent / "my.toml"
    config.write_text(f'[data]\nroot = "{data}"\n')
    return CliRunner().invoke(main, ["make-scribbles", "-c", str(config), "--workers", "1", *more])


def test_scribbles_of_a_split(data: Path) -> None:
    ended = run(data, "-o", str(data / "scribbles"), "--split", "val")
    assert ended.exit_code == 0, ended.output
    first, second = ended.stdout.splitlines()
    assert first.startswith("Scribbles of 8 images, ") and first.endswith(f"% of the pixels: {data / 'scribbles'}")
    marks = "--set data.scribbles=scribbles"
    assert second == f"Beside image labels: {marks}; alone: {marks} --set train_seg.supervision=scribbles"
    assert len([*(data / "scribbles/images").glob("val_*.png")]) == 8


def test_clicks_elsewhere(data: Path, tmp_path: Path) -> None:
    ended = run(data, "-o", str(tmp_path / "new"), "--style", "clicks", "--seed", "1", "--width", "5")
    assert ended.exit_code == 0, ended.output
    assert " clicks on 24 images, as discs " in ended.stdout
    assert f"data.clicks={tmp_path / 'new/clicks.csv'} " in ended.stdout
    assert "--width, --keep and --shrink have no effect" in ended.stderr


def test_a_bad_mask_gives_exit_code_2(data: Path) -> None:
    (data / "masks/train_00003.png").write_bytes(b"")
    ended = run(data, "-o", str(data / "scribbles"))
    assert ended.exit_code == 2 and "Scribbles of 23 images" in ended.stdout
    assert "train_00003.png" in ended.stderr and "Error: 1 of 24 masks could not be used, see above" in ended.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--seed", "1"), "--seed places clicks"),
        (("--split", "test"), "no images in split 'test'"),
        (("--set", "data.table=plain.csv"), "no image of split 'train' has a mask"),
        (("--keep", "2"), "0<=x<=1"),
    ],
)
def test_refused(data: Path, more: tuple[str, ...], message: str) -> None:
    (data / "plain.csv").write_text("image,labels\nimages/train_00000.jpg,duck\n")
    ended = run(data, "-o", str(data / "scribbles"), *more)
    assert ended.exit_code == 2 and message in ended.stderr and not (data / "scribbles").exists()


def test_shorter_strokes(data: Path) -> None:
    shares = []
    for shrink in ("1", "0.5", "0"):
        ended = run(data, "-o", str(data / "scribbles"), "--shrink", shrink)
        shares.append(float(ended.stdout.split("images, ")[1].split("%")[0]))
    assert shares == sorted(shares, reverse=True) and shares[-1] < shares[0] / 3


def test_the_demo_draws_scribbles_if_its_config_names_them(data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    draw_scribbles(load_config("demo", ["run.workers=1"]), data)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
    config = load_config("demo-scribbles", ["run.workers=1", f"data.root={data}"])
    draw_scribbles(config, data)
    scribbled = [sample for sample in load_table(config.data).samples if sample.scribble]
    assert len(scribbled) == 24 and {sample.split for sample in scribbled} == {"train"}

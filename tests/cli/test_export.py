"""export of labels, and the way back: only the corrected image is made anew."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cam_pipeline.cli import main
from cam_pipeline.cli.export import LABELS
from cam_pipeline.export.formats import WRITERS
from cam_pipeline.store.labels import LabelStore


def test_the_command_knows_all_formats() -> None:
    assert list(LABELS) == list(WRITERS)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--to", "png"), "pseudo_labels.h5 is missing (not made yet). Run: cam-pipeline make-cams -c "),
        (("--to", "png", "--only", "segmenter"), "--only chooses a network, and --to is png"),
        (("--to", "onnx", "--split", "val"), "--split chooses images, and --to is onnx"),
    ],
)
def test_refused(tiny_data: Path, tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    config = tmp_path / "my.toml"
    config.write_text(f'[data]\nroot = "{tiny_data}"\n[output]\ndir = "{tmp_path / "run"}"\n')
    ended = CliRunner().invoke(main, ["export", "-c", str(config), *more])
    assert ended.exit_code == 2 and message in ended.stderr, ended.output


def test_out_corrected_and_back(commands: Any, undisturbed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(undisturbed, tmp_path / "copy"))
    ended = commands.run("export", "-c", "tiny.toml", "--to", "png", "-o", "mine", folder=folder)
    assert ended.code == 0, ended.stderr
    assert ended.stdout.startswith("Labels of 24 images: mine\nKeep what you have looked at, then: cam-pipeline run -c")
    again = commands.run("export", "-c", "tiny.toml", "--to", "png", "-o", "mine", folder=folder)
    assert again.code == 2 and "mine is not empty" in again.stderr
    with LabelStore.open(folder / "run" / "pseudo_labels.h5") as store:
        name, before = store.names[0], {name: store.read(name) for name in store.names}
    for path in (folder / "mine").rglob("*.png"):
        given = np.array(Image.open(path))
        decided = before[path.relative_to(folder / "mine").with_suffix("").as_posix()]
        assert (given != 255).all() and (given == decided)[decided != 255].all()
        if path != folder / "mine" / f"{name}.png":
            path.unlink()
    path = folder / "mine" / f"{name}.png"
    mended = np.array(Image.open(path))
    mended[:5], mended[-3:] = 0, 255
    Image.fromarray(mended).save(path)
    corrected = ("-c", "tiny.toml", "--set", "data.corrected=../mine")
    ended = commands.run("make-cams", *corrected, folder=folder)
    assert ended.code == 0, ended.stderr
    assert "23 of 24 images are as before and keep their scores" in ended.stderr
    with LabelStore.open(folder / "run" / "pseudo_labels.h5") as store:
        assert np.array_equal(store.read(name), mended) and (store.origin(name) == 4).all()
        assert all(np.array_equal(store.read(one), before[one]) for one in store.names if one != name)
        assert not any(store.origin(one).any() for one in store.names if one != name)

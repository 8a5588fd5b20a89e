import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from cam_pipeline.errors import Interrupted
from cam_pipeline.prediction.image_files import find_images
from cam_pipeline.report import predictions as module
from cam_pipeline.report.colors import class_color
from cam_pipeline.report.predictions import predict_files

CLASSES = ("background", "cat", "dog")


class ByColor:
    """Stands for a network: label 1 where red is strong, 2 where green is; less sure of larger images."""

    def __init__(self):
        self.calls = 0

    def labels(self, pixels):
        self.calls += 1
        red, green = (torch.from_numpy(np.array(pixels[..., channel])) > 150 for channel in (0, 1))
        return (red + 2 * green).to(torch.uint8), 1 / pixels.shape[0]


@pytest.fixture
def photos(tmp_path):
    """Two images, one in a folder below and turned by its EXIF tag, and three files that are none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, :3, 0] = 200
    Image.fromarray(pixels).save(folder / "a.png")
    pixels[:, :3, 1], pixels[:, :3, 0] = 200, 0
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(pixels).save(folder / "more" / "b.png", exif=exif)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("a text")
    return folder


def run(photos, folder, network=None, made_by="x", **more):
    network = network or ByColor()
    found, failed = predict_files(
        network, find_images([str(photos)], folder), folder, CLASSES, made_by=made_by, max_pixels=1000, **more
    )
    return network, found, failed


def test_label_maps_are_indexed_png_of_the_images_upright_size(photos, tmp_path):
    _, found, failed = run(photos, tmp_path / "out")
    assert [one.name for one in found] == ["a", "more/b"] and len(failed) == 3
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.mode == "P" and image.size == (6, 4)
        assert (np.asarray(image) == np.repeat([1, 0], 3)).all()
        palette = image.getpalette()
    assert [tuple(palette[3 * label : 3 * label + 3]) for label in range(3)] == [
        class_color(label) for label in range(3)
    ]
    with Image.open(tmp_path / "out" / "more" / "b.png") as image:
        assert image.size == (4, 6)
        assert (np.asarray(image) == np.repeat([2, 0], 3)[:, None]).all()
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["a.png", "b.png", "more", "predictions.csv"]


def test_the_table_has_the_least_confident_image_first(photos, tmp_path):
    run(photos, tmp_path / "out")
    rows = [*csv.DictReader((tmp_path / "out" / "predictions.csv").open())]
    assert rows == [
        {
            "image": str(photos / "more" / "b.png"),
            "labels": "more/b.png",
            "height": "6",
            "width": "4",
            "confidence": "0.1667",
            "classes": "dog",
            "shares": "0.5000",
        },
        {
            "image": str(photos / "a.png"),
            "labels": "a.png",
            "height": "4",
            "width": "6",
            "confidence": "0.2500",
            "classes": "cat",
            "shares": "0.5000",
        },
    ]


def test_bad_files_are_named_and_the_rest_goes_on(photos, tmp_path, caplog):
    _, _, failed = run(photos, tmp_path / "out")
    for name, line in zip(("broken.jpg", "empty.jpg", "text.jpg"), failed, strict=True):
        assert line.startswith(f"{photos / name} cannot be read as an image")
        assert line in caplog.messages


def test_what_is_there_is_not_made_again(photos, tmp_path):
    out = tmp_path / "out"
    run(photos, out)
    table = (out / "predictions.csv").read_text()
    (out / "predictions.csv").unlink()
    network, found, failed = run(photos, out)
    assert network.calls == 0 and len(found) == 2 and len(failed) == 3
    assert (out / "predictions.csv").read_text() == table
    assert run(photos, out, made_by="another")[0].calls == 2
    assert run(photos, out, made_by="another", force=True)[0].calls == 2
    Image.new("RGB", (5, 5)).save(photos / "a.png")
    assert run(photos, out, made_by="another")[0].calls == 1
    (out / "a.png").write_bytes(b"no image")
    assert run(photos, out, made_by="another")[0].calls == 1
    assert run(photos, out, made_by="another", overlays=True)[0].calls == 2
    assert run(photos, out, made_by="another", overlays=True)[0].calls == 0


@pytest.mark.parametrize("note", ["[]", "{}", '"x"', '{"made_by": "x", "bytes": 0, "changed": 0}', "no json"])
def test_another_programs_png_is_made_anew(photos, tmp_path, note):
    from PIL import PngImagePlugin

    out = tmp_path / "out"
    out.mkdir()
    text = PngImagePlugin.PngInfo()
    text.add_text("cam-pipeline", note)
    Image.new("P", (6, 4)).save(out / "a.png", pnginfo=text)
    assert run(photos, out)[0].calls == 2


def test_overlays_are_pictures_of_the_same_size(photos, tmp_path):
    run(photos, tmp_path / "out", overlays=True)
    with Image.open(tmp_path / "out" / "overlays" / "more" / "b.jpg") as image:
        assert image.format == "JPEG" and image.size == (4, 6)


def test_a_stop_keeps_what_is_done(photos, tmp_path, monkeypatch):
    for number in range(12):
        Image.new("RGB", (6, 4), (200, 0, 0)).save(photos / f"c{number:02}.png")
    network, out, calls = ByColor(), tmp_path / "out", []

    def stop_at_ten():
        calls.append(1)
        if len(calls) == 10:
            raise Interrupted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(module, "raise_if_stopped", stop_at_ten)
        with pytest.raises(Interrupted):
            run(photos, out, network)
    done = network.calls
    assert 0 < done < 14 and not (out / "predictions.csv").exists()
    again, found, _ = run(photos, out)
    assert again.calls == 14 - done and len(found) == 14


def test_the_note_of_a_label_map_names_no_file(photos, tmp_path):
    run(photos, tmp_path / "out")
    with Image.open(tmp_path / "out" / "a.png") as image:
        note = json.loads(image.info["cam-pipeline"])
    assert set(note) == {"made_by", "bytes", "changed", "confidence", "shares"}

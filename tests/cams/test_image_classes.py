import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cam_pipeline.cams import image_classes as module
from cam_pipeline.cams.image_classes import NOTE, ImageClasses, classifier_file, with_threshold
from cam_pipeline.config import Config
from cam_pipeline.data.dataset import Dataset
from cam_pipeline.data.digest import FileDigests
from cam_pipeline.data.images import read_image
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import CannotWrite, ConfigError, DataError, StageNotReady
from cam_pipeline.models.classifier import ClassifierOutput


class ByColor(nn.Module):
    """Stands for a classifier: the logits of its two classes are the mean red and green of the left half."""

    stride = 16

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 2, bias=False)
        self.batches = []

    def forward(self, images):
        self.batches.append(tuple(images.shape))
        return ClassifierOutput(images, 10 * images[:, :2, :, : images.shape[-1] // 2].mean(dim=(2, 3)) - 5)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four images of two sizes, all `val` but one, of which one has no labels; and a run folder with a classifier."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    colors = {"a": (255, 0, 0), "b": (200, 128, 0), "c": (100, 255, 0), "d": (255, 255, 0)}
    for number, (name, color) in enumerate(colors.items()):
        Image.new("RGB", (40 + 20 * (number % 2), 33), color).save(tmp_path / "data" / f"{name}.png")
    lines = ["image,labels,split", "a.png,red,val", "b.png,red;green,val", "c.png,green,train", "d.png,?,val"]
    (tmp_path / "data" / "data.csv").write_text("\n".join(lines))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "classifier.safetensors").write_bytes(b"weights")
    return tmp_path


def config(**predict):
    values = {"classes": "classifier", "by": "multiply", **predict}
    return Config.model_validate(
        {
            "predict": values,
            "run": {"device": "cpu", "workers": 1},
            "cam": {"batch_size": 2},
            "output": {"dir": "run"},
            "data": {"classes": ["red", "green"]},
        }
    )


BY_THRESHOLD = config(by="threshold")


def settled(of=BY_THRESHOLD, network=None, **more):
    """What `with_threshold` gives, and how often it asked for the classifier."""
    network, asked = network or ByColor(), []

    def classifier():
        asked.append(1)
        return network

    dataset = Dataset(of.data, FileDigests(of.folder / "digests.json"))
    return with_threshold(of, dataset, classifier, **more).predict.threshold, len(asked)


def samples_of(folder):
    return [Sample(name, folder / "data" / f"{name}.png", "val") for name in "abc"]


def test_an_image_and_its_mirror_image_have_the_same_classes(folder):
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32, 0] = 255  # red on the left
    network = ByColor()
    found = ImageClasses(network, config()).presence(pixels)
    red = (torch.tensor([5.0, -5.0]).sigmoid()).mean()
    torch.testing.assert_close(found, torch.stack([red, torch.tensor(-5.0).sigmoid()]))
    torch.testing.assert_close(ImageClasses(network, config()).presence(pixels[:, ::-1]), found)
    assert set(network.batches) == {(1, 3, 32, 64)}, "at scale 1 alone"


def test_many_images_have_the_same_classes_as_each(folder):
    for settings in (config(), config(by="threshold", threshold=0.4)):
        by = ImageClasses(ByColor(), settings)
        found = by.presences(samples_of(folder))
        assert list(found) == ["a", "b", "c"]
        for name, presence in found.items():
            pixels = read_image(folder / "data" / f"{name}.png", 10_000)
            torch.testing.assert_close(presence, by.presence(pixels))
    assert [presence.tolist() for presence in found.values()] == [[1, 0], [1, 1], [0, 1]]


def test_large_images_are_reduced(folder):
    network, small = ByColor(), config().model_copy(update={"cam": config().cam.model_copy(update={"max_side": 32})})
    ImageClasses(network, small).presence(np.zeros((64, 128, 3), np.uint8))
    assert network.batches[0] == (1, 3, 16, 32)


def test_a_threshold_is_chosen_on_labelled_images_of_val_once(folder, caplog):
    threshold, asked = settled()
    # Shown are red of a and b and green of b; green of b is the least sure. Green of a is not shown, and lower.
    least = ImageClasses(ByColor(), config()).presence(read_image(folder / "data" / "b.png", 10_000))[1]
    assert threshold == float(least) and asked == 1
    noted = json.loads((folder / "run" / NOTE).read_text())
    assert (noted["threshold"], noted["images"]) == (threshold, 2)
    assert settled() == (threshold, 0)


def test_the_data_set_is_not_needed_again(folder):
    threshold, _ = settled()
    (folder / "data").rename(folder / "elsewhere")
    assert settled() == (threshold, 0)
    with pytest.raises(DataError, match=r"^predict\.threshold = 'auto' is chosen on labelled images: "):
        settled(look_at_data=True)


def test_labels_that_changed_choose_another(folder):
    threshold, _ = settled()
    table = folder / "data" / "data.csv"
    table.write_text(table.read_text().replace("red;green", "red"))
    assert settled() == (threshold, 0), "without a look at the data set"
    changed, asked = settled(look_at_data=True)
    assert changed > threshold and asked == 1
    assert settled(look_at_data=True) == settled() == (changed, 0)


@pytest.mark.parametrize("change", ["classifier", "max_side", "split", "note"])
def test_a_note_of_something_else_is_not_taken(folder, change):
    settled()
    of = BY_THRESHOLD
    if change == "classifier":
        (folder / "run" / "classifier.safetensors").write_bytes(b"others")
    elif change == "max_side":
        of = of.model_copy(update={"cam": of.cam.model_copy(update={"max_side": 32})})
    elif change == "split":
        of = of.model_copy(update={"data": of.data.model_copy(update={"val": "train"})})
    else:
        (folder / "run" / NOTE).write_text("{")
    assert settled(of)[1] == 1


def test_nothing_is_chosen_that_does_not_matter(folder):
    for of in (config(), config(by="threshold", threshold=0.3), config(classes="all", by="threshold")):
        assert settled(of) == (of.predict.threshold, 0)


def test_a_run_folder_that_cannot_be_written_to_keeps_no_threshold(folder, monkeypatch, caplog):
    def refuse(path, text):
        raise CannotWrite(f"{path} cannot be written (Read-only file system)")

    monkeypatch.setattr(module, "write_text", refuse)
    assert settled()[1] == 1
    assert "predict.threshold is chosen again next time: run/class_threshold.json cannot be written" in caplog.text


@pytest.mark.parametrize(
    ("table", "val", "words"),
    [
        ("a.png,red,train", "val", "but no image of split 'val' has one; set predict.threshold to a number"),
        ("a.png,?,val", "val", "but no image of split 'val' has one; set predict.threshold to a number"),
        ("a.png,red,val", "", "but data.val is empty; set predict.threshold to a number, say 0.1, or predict.by"),
    ],
)
def test_without_labels_to_choose_by(folder, table, val, words):
    (folder / "data" / "data.csv").write_text(f"image,labels,split\n{table}\nc.png,green,train\n")
    of = BY_THRESHOLD.model_copy(update={"data": BY_THRESHOLD.data.model_copy(update={"val": val})})
    with pytest.raises(ConfigError, match=words):
        settled(of)


def test_without_a_classifier(folder):
    (folder / "run" / "classifier.safetensors").unlink()
    with pytest.raises(
        StageNotReady, match=r"^predict\.classes = 'classifier', but run holds no classifier\. Run: cam-"
    ):
        classifier_file(BY_THRESHOLD)

import numpy as np
import pytest
import torch
from PIL import Image

from cam_pipeline.config import Config
from cam_pipeline.data.table import Sample
from cam_pipeline.data.views import BLANK
from cam_pipeline.errors import DataError, TrainingDiverged
from cam_pipeline.models.classifier import ClassifierOutput
from cam_pipeline.models.pretrained import PretrainedHalf
from cam_pipeline.pipeline import Output, load_stages
from cam_pipeline.stages import train_cls as module
from cam_pipeline.training.validation import validate

CONFIG = Config.model_validate({"run": {"workers": 1, "device": "cpu"}, "cam": {"batch_size": 2, "max_side": 64}})
COLOURS = {(): (0, 0, 0), (1,): (255, 0, 0), (2,): (0, 255, 0), (1, 2): (255, 255, 0)}


class ColourClassifier(PretrainedHalf):
    """Class 1 is red, class 2 is green: right about every image, unless it is told to look at other channels."""

    stride = 16

    def __init__(self, channels=(0, 1)):
        super().__init__()
        self.head = torch.nn.Linear(3, 2, bias=False)
        self.channels = list(channels)

    def forward(self, images):
        return ClassifierOutput(images, 10 * (images.mean(dim=(2, 3))[:, self.channels] - 0.5))


@pytest.fixture
def samples(tmp_path):
    """Images of mixed sizes, so that batches come in another order than the samples."""
    shown = [(1,), (2,), (), (1, 2), (1,), (2,), (1,)]
    sizes = [(32, 48), (16, 16), (48, 32), (32, 48), (16, 16), (48, 32), (30, 50)]  # (height, width)
    found = []
    for number, (class_ids, (height, width)) in enumerate(zip(shown, sizes, strict=True)):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((height, width, 3), COLOURS[class_ids], np.uint8)).save(path)
        found.append(Sample(str(number), path, "val", class_ids))
    return found


def test_a_classifier_that_is_right_scores_one(samples):
    figures = validate(ColourClassifier(), samples, CONFIG)
    assert figures == {"mAP": 1.0, "mAP_low": figures["mAP_low"], "mAP_high": 1.0, "F1": 1.0, "images": 7.0}
    # Classes of 4 and 3 images: as good as 4 / (1/4 + 1/3) = 48/7 images.
    assert figures["mAP_low"] == pytest.approx(1 / (1 + 1.96**2 * 7 / 48))


def test_a_classifier_that_confuses_the_classes_is_found_out(samples):
    figures = validate(ColourClassifier(channels=(1, 0)), samples, CONFIG)
    # Each class is predicted where the other is. Class 1 is in 4 images of 7, class 2 in 3; both in one of them.
    assert figures["F1"] == pytest.approx(2 * 2 / (7 + 7))
    # Class 1: 3 images score high, one of them rightly; then 4 score low, 3 of them rightly: AP = 1/4 1/3 + 3/4 4/7.
    # Class 2: 4 score high, one rightly; then 3 score low, 2 of them rightly: AP = 1/3 1/4 + 2/3 3/7.
    first, second = 1 / 4 * 1 / 3 + 3 / 4 * 4 / 7, 1 / 3 * 1 / 4 + 2 / 3 * 3 / 7
    assert figures["mAP"] == pytest.approx((first + second) / 2)


def test_a_class_that_does_not_occur_is_left_out_of_the_mean(samples):
    only_first = [sample for sample in samples if sample.class_ids in ((), (1,))]
    assert validate(ColourClassifier(), only_first, CONFIG)["mAP"] == 1.0


def test_without_labelled_images_there_are_no_figures():
    assert validate(ColourClassifier(), [], CONFIG) == {}


def test_answers_that_are_not_finite_are_no_figures(samples):
    """Of one image alone: training may never have seen its like."""
    classifier = ColourClassifier()
    own = classifier.forward

    def forward(images):
        features, logits = own(images)
        return ClassifierOutput(
            features, torch.where(images.mean(dim=(1, 2, 3)) == 0, torch.nan, 1.0)[:, None] * logits
        )

    classifier.forward = forward
    line = r"^train_cls: the network's answers to 1 of 7 validation images are not finite; lower train_cls.lr \(now "
    with pytest.raises(TrainingDiverged, match=line):
        validate(classifier, samples, CONFIG)


def test_the_stage_needs_nothing_and_depends_on_the_seed():
    stage = load_stages()["train_cls"]
    assert stage.needs(CONFIG) == () and "run.seed" in stage.params and "run" not in stage.params


# What the stage gives to the trainer


class StopHere(Exception):
    pass


def handed_over(tmp_path, monkeypatch, inputs, **objectives):
    """The trainer that the stage makes of four images of the classes 1, 1 2, 1, none."""
    rows = ["a.png,cat", "b.png,cat;dog", "c.png,cat", "d.png,"]
    for row in rows:
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / row.split(",")[0])
    (tmp_path / "data.csv").write_text("image,labels\n" + "\n".join(rows) + "\n")
    config = Config.model_validate(
        {
            "data": {"root": tmp_path, "classes": ("cat", "dog")},
            "classifier": {"backbone": "test_resnet", "weights": "none"},
            "objectives": objectives,
            "train_cls": {"crop": 64, "batch_size": 2, "epochs": 3},
            "run": {"workers": 1, "device": "cpu", "seed": 5},
        }
    )
    seen = {}

    def fit(trainer):
        seen["trainer"] = trainer
        raise StopHere

    monkeypatch.setattr(module.Trainer, "fit", fit)
    with pytest.raises(StopHere):
        module.train_cls(config, inputs(config), Output(tmp_path / "model", tmp_path / "logs", "f"))
    return seen["trainer"]


def test_views_have_the_labels_of_their_images(tmp_path, monkeypatch, inputs):
    views = handed_over(tmp_path, monkeypatch, inputs).views
    shown = [views[0, index]["labels"].tolist() for index in (0, 1, 2, 3, BLANK)]
    assert shown == [[1, 0], [1, 1], [1, 0], [0, 0], [0, 0]]


def test_objectives_are_made_for_the_labels_and_their_views_reach_the_batches(tmp_path, monkeypatch, inputs):
    trainer = handed_over(tmp_path, monkeypatch, inputs, sfc=True)
    main, method = trainer.objectives
    assert main.weight == 0.5
    assert method.more_views.class_ids == [(1,), (1, 2), (1,), ()]
    assert {len(batch) for batch in trainer.batches} == {2 + 4}
    assert [objective.weight for objective in handed_over(tmp_path, monkeypatch, inputs).objectives] == [1.0]


def test_training_images_that_all_show_nothing_are_refused(tmp_path, inputs):
    (tmp_path / "data.csv").write_text("image,labels\na.png,\nb.png,\n")
    config = Config.model_validate({"data": {"root": tmp_path, "classes": ("cat",)}})
    with pytest.raises(DataError, match="no image of split 'train' shows a class, so there is nothing to learn"):
        module.train_cls(config, inputs(config), Output(tmp_path / "model", tmp_path / "logs", "f"))

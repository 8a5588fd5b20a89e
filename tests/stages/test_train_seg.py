import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cam_pipeline.assembly.segmenter import new_segmenter
from cam_pipeline.config import Config
from cam_pipeline.data.strokes import Click
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.errors import ConfigError, DataError
from cam_pipeline.pipeline import Output, load_stages
from cam_pipeline.stages import train_seg as module
from cam_pipeline.stages.train_seg import check_coverage, repeats, supervision, warn_if_blind
from cam_pipeline.store.hdf5 import artefact_attributes
from cam_pipeline.store.labels import label_record
from cam_pipeline.store.parts import PartWriter

MAPS = {"a": [[0, 1, 255], [2, 2, 2]], "b": [[0, 1], [255, 1], [0, 0]], "unused": [[0]]}
SMALL = {"encoder": "resnet10t", "encoder_args": {"channels": [8, 16, 24, 32], "stem_width": 8}, "weights": "none"}
MASKS = Config.model_validate({"train_seg": {"supervision": "masks"}})


def write(path, maps, classes=("background", "cat", "dog"), origins=None):
    writer = PartWriter(path, "pseudo-labels", artefact_attributes(classes, "f", ""), [list(maps)])
    arrays = {name: np.array(labels, dtype=np.uint8) for name, labels in maps.items()}
    others = origins or {}
    writer.write(
        0, [label_record(name, labels, np.zeros_like(labels), others.get(name)) for name, labels in arrays.items()]
    )
    writer.join(list(maps))
    return path


@pytest.fixture
def table(tmp_path):
    for name, size in (("a", (3, 2)), ("b", (2, 3))):  # (width, height)
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
        Image.new("L", size, 1 if name == "a" else 2).save(tmp_path / f"m{name}.png")
    samples = [Sample(name, tmp_path / f"{name}.png", "train", (1,), tmp_path / f"m{name}.png") for name in "ba"]
    return Table(("cat", "dog"), tuple(samples))


def test_labels_that_fit_are_counted(table, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "cam_pipeline"):
        check_coverage(write(tmp_path / "l.h5", MAPS), table, list(table.samples))
    assert "2 images, 16.7 % of the pixels are ignored" in caplog.text


@pytest.mark.parametrize(
    ("maps", "classes", "complaint"),
    [
        (MAPS, ("background", "dog", "cat"), "has the classes dog, cat, the data has cat, dog"),
        (MAPS, ("cat", "dog"), "has the classes dog, the data has cat, dog"),
        ({"b": MAPS["b"]}, None, "lacks 1 of 2 training images, the first is a; run make-cams"),
        ({**MAPS, "a": np.zeros((3, 2))}, None, r"labels of a are \(3, 2\), its image is \(2, 3\)"),
        (
            {"a": np.full((2, 3), 255), "b": np.full((3, 2), 255)},
            None,
            "every pixel is ignored; lower labels.high or raise labels.low",
        ),
        (
            {"a": np.zeros((2, 3)), "b": np.zeros((3, 2))},
            None,
            "no pixel has a class, so there is nothing to learn from these labels; lower refine.background, or train",
        ),
        (
            {"a": np.full((2, 3), 255), "b": np.zeros((3, 2))},
            None,
            "no pixel has a class, .*; lower refine.background or labels.high, or train the classifier longer",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(table, tmp_path, maps, classes, complaint):
    path = write(tmp_path / "l.h5", maps, classes or ("background", "cat", "dog"))
    with pytest.raises(DataError, match=complaint):
        check_coverage(path, table, list(table.samples))


def test_images_that_show_nothing_may_have_labels_of_background_alone(table, tmp_path):
    bare = [replace(sample, class_ids=()) for sample in table.samples]
    check_coverage(write(tmp_path / "l.h5", {"a": np.zeros((2, 3)), "b": np.zeros((3, 2))}), table, bare)


@pytest.mark.parametrize(
    ("maps", "warning"),
    [
        (MAPS, ""),
        ({**MAPS, "a": [[0, 2, 255], [2, 2, 2]], "b": [[0, 2], [255, 2], [0, 0]]}, "train_seg: no label is cat, so "),
        ({"a": [[1, 1, 1], [2, 2, 2]], "b": [[1, 1], [255, 1], [2, 2]]}, "train_seg: no label is background, so "),
    ],
)
def test_labels_that_lack_something_are_told_of(table, tmp_path, caplog, maps, warning):
    with caplog.at_level(logging.INFO, "cam_pipeline"):
        check_coverage(write(tmp_path / "l.h5", maps), table, list(table.samples))
    assert [record.getMessage().startswith(warning) for record in caplog.records[1:]] == [True] * bool(warning)


def test_supervision_by_pseudo_labels_reads_the_training_images_in_their_order(table, tmp_path):
    read = supervision(Config(), {"make_labels": write(tmp_path / "l.h5", MAPS)}, table, list(table.samples))
    assert [read(index).tolist() for index in (1, 0)] == [MAPS["a"], MAPS["b"]]


def test_mixed_supervision_is_that_by_pseudo_labels_and_wants_marks(table, tmp_path, caplog):
    """Masks of the training split are never read."""
    origin = np.array([[0, 1, 2], [0, 0, 0]], np.uint8)
    path = write(tmp_path / "l.h5", MAPS, origins={"a": origin})
    mixed = Config.model_validate({"train_seg": {"supervision": "mixed"}})
    for sample in table.samples:
        sample.mask.unlink()
    with pytest.raises(DataError, match=r"^train_seg\.supervision = 'mixed': no image of split 'train' has a click or"):
        supervision(mixed, {"make_labels": path}, table, list(table.samples))
    marked = [replace(one, clicks=(Click(0, 0, 1),)) if one.id == "a" else one for one in table.samples]
    for config in (mixed, Config()):
        caplog.clear()
        with caplog.at_level(logging.INFO, "cam_pipeline"):
            read = supervision(config, {"make_labels": path}, table, marked)
        assert [read(index).tolist() for index in (1, 0)] == [MAPS["a"], MAPS["b"]]
        assert "train_seg: people say what 16.67 % of the pixels are, in 1 images" in caplog.messages


def test_supervision_by_masks_needs_no_labels(table):
    read = supervision(MASKS, {}, table, list(table.samples))
    assert [read(index).tolist() for index in (1, 0)] == [[[1] * 3] * 2, [[2] * 2] * 3]
    bare = Sample("c", table.samples[0].image, "train", (1,))
    with pytest.raises(DataError, match="image c of split 'train' has no mask"):
        supervision(MASKS, {}, table, [*table.samples, bare])


def test_a_mask_of_another_size_is_refused_when_it_is_read(table):
    Image.new("L", (2, 3)).save(table.samples[1].mask)
    with pytest.raises(DataError, match=r"ma\.png: the mask is \(3, 2\), its image is \(2, 3\)"):
        supervision(MASKS, {}, table, list(table.samples))(1)


def test_needs():
    needs = load_stages()["train_seg"].needs
    assert needs(Config()) == ("make_labels",) and needs(MASKS) == ()
    assert needs(Config.model_validate({"train_seg": {"supervision": "mixed"}})) == ("make_labels",)


def test_deeplabv3plus_needs_two_images_in_a_batch(table, tmp_path, inputs):
    output = Output(tmp_path / "s.safetensors", tmp_path / "logs", "f")
    one = Config.model_validate({"train_seg": {"supervision": "masks", "batch_size": 1}})
    given = inputs(one)
    given.dataset.table = table
    with pytest.raises(ConfigError, match=r"DeepLabV3\+ needs two .* there are 2, train_seg\.batch_size is 1"):
        module.train_seg(one, given, output)


def test_masks_that_teach_nothing_stop_the_training(table):
    for sample in table.samples:
        with Image.open(sample.mask) as mask:
            size = mask.size
        Image.new("L", size, 255).save(sample.mask)
    with pytest.raises(
        DataError, match=r"^train_seg\.supervision = 'masks': no mask of split 'train' has a pixel of a"
    ):
        supervision(MASKS, {}, table, list(table.samples))


@pytest.mark.parametrize("label", [0, 1])
def test_a_segmenter_that_finds_nothing_is_told_of(table, caplog, label):
    segmenter = new_segmenter(Config.model_validate({"segmenter": SMALL}).segmenter, 2).train()
    for layer in (
        layer for layer in segmenter.modules() if isinstance(layer, torch.nn.Conv2d) and layer.bias is not None
    ):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        if len(layer.bias) == 3:
            layer.bias.data[label] = 1
    warn_if_blind(segmenter, list(table.samples), Config())
    assert segmenter.training
    assert ("finds background alone in 2 training images" in caplog.text) == (label == 0)


def test_repeats_that_change_nothing_are_told_of(caplog):
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert repeats(labels, 0.0) == [] and not caplog.text
    assert repeats(labels, 0.3) == [1.0, 1.0]
    assert "train_seg.repeat = 0.3 changes nothing" in caplog.text
    assert repeats(labels, 1.0) == pytest.approx([2**0.5] * 2)


SCRIBBLES = Config.model_validate({"train_seg": {"supervision": "scribbles"}})


def scribbled(table, tmp_path):
    """The table; one image has a scribble, the other clicks, and no mask counts."""
    b, a = table.samples
    Image.fromarray(np.array([[1, 1, 255], [255, 255, 0]], np.uint8)).save(tmp_path / "sa.png")
    clicks = (Click(0.5, 0.5, 2), Click(1.5, 2.5, 0))
    return Table(table.classes, (replace(b, clicks=clicks), replace(a, scribble=tmp_path / "sa.png")))


def test_supervision_by_marks_reads_clicks_and_scribbles_alone(table, tmp_path):
    marked = scribbled(table, tmp_path)
    read = supervision(SCRIBBLES, {}, marked, list(marked.samples))
    assert read(1).tolist() == [[1, 1, 255], [255, 255, 0]]
    assert read(0)[0, 0] == 2 and read(0)[2, 1] == 0
    with pytest.raises(DataError, match="no image of split 'train' has a click or a scribble"):
        supervision(SCRIBBLES, {}, table, list(table.samples))


def test_marks_alone_are_part_of_the_digest_of_such_a_training(table, tmp_path, inputs):
    stage = load_stages()["train_seg"]
    assert stage.needs(SCRIBBLES) == ()
    digests = {}
    for name, one in (("bare", table), ("marked", scribbled(table, tmp_path))):
        for config in (SCRIBBLES, Config(), MASKS):
            dataset = inputs(config).dataset
            dataset.table = one
            digests[name, config.train_seg.supervision] = stage.data(config, dataset)
    assert digests["bare", "scribbles"] != digests["marked", "scribbles"]
    assert digests["bare", "masks"] == digests["marked", "masks"]
    assert digests["bare", "pseudo-labels"] == digests["marked", "pseudo-labels"] == digests["bare", "scribbles"]

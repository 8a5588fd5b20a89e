"""Figures from hand-made maps of 2 x 3 pixels, and a sweep that must equal the plain way of doing it."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cam_pipeline.config import Config, RefineSettings
from cam_pipeline.data.strokes import Click
from cam_pipeline.data.table import Sample, Table
from cam_pipeline.errors import DataError
from cam_pipeline.evaluation import confusions, rows
from cam_pipeline.evaluation.confusions import (
    cam_sweep,
    labels_confusion,
    scores_confusion,
    segmenter_confusions,
    with_masks,
)
from cam_pipeline.evaluation.rows import Row, cam_rows, evaluate, left_out
from cam_pipeline.ops.cam import cam_scores, with_background
from cam_pipeline.ops.metrics import confusion_matrix, mean_iou
from cam_pipeline.refinement.merging import merged
from cam_pipeline.refinement.scores import THRESHOLDS, class_scores
from cam_pipeline.store.cams import CamStore, StoredCam, cam_record
from cam_pipeline.store.hdf5 import artefact_attributes
from cam_pipeline.store.labels import label_record
from cam_pipeline.store.parts import PartWriter
from cam_pipeline.store.scores import StoredScores, score_record

CLASSES = ("cat", "dog")
CONFIG = Config.model_validate({"run": {"workers": 1, "device": "cpu", "seed": 4}, "refine": {"background": 0.4}})


def write(path, kind, records, classes=CLASSES):
    names = [record.name for record in records]
    writer = PartWriter(path, kind, artefact_attributes(classes, "f", ""), [names])
    writer.write(0, records)
    writer.join(names)
    return path


def make_sample(folder, name, mask, split="train"):
    mask = np.array(mask, dtype=np.uint8)
    Image.new("RGB", mask.shape[::-1]).save(folder / f"{name}.jpg")
    Image.fromarray(mask).save(folder / f"{name}.png")
    return Sample(name, folder / f"{name}.jpg", split, (1, 2), folder / f"{name}.png")


@pytest.fixture
def table(tmp_path):
    samples = [
        make_sample(tmp_path, "a", [[0, 1, 1], [2, 2, 255]]),
        make_sample(tmp_path, "b", [[1, 0], [0, 0], [0, 2]]),
        make_sample(tmp_path, "v", [[0, 1, 2], [0, 1, 2]], split="val"),
    ]
    return Table(CLASSES, tuple(samples))


@pytest.fixture
def scores(table, tmp_path):
    first = np.array(  # best channel: background, dog, cat; cat, dog, dog. Channels are background, dog, cat.
        [[[0.8, 0.2, 0.0], [0.2, 0.2, 0.2]], [[0.1, 0.6, 0.2], [0.2, 0.6, 0.8]], [[0.1, 0.2, 0.8], [0.6, 0.2, 0.0]]],
        dtype=np.float32,
    )
    second = np.ones((1, 3, 2), dtype=np.float32)  # shows none of the classes
    return write(
        tmp_path / "scores.h5",
        "scores",
        [score_record(StoredScores("a", first, (2, 1))), score_record(StoredScores("b", second, ()))],
    )


SCORES_CONFUSION = [  # rows truth: image a  0 1 1 / 2 2 -  against  0 2 1 / 1 2 2, image b  1 0 0 0 0 2  against 0
    [5, 0, 0],
    [1, 1, 1],
    [1, 1, 1],
]


def test_scores_count_with_their_best_channel(table, scores):
    assert scores_confusion(scores, table, table.split("train")).tolist() == SCORES_CONFUSION


def test_labels_count_with_their_scores_where_they_are_undecided(table, scores, tmp_path):
    decided = {"a": [[0, 2, 255], [255, 1, 255]], "b": [[255, 1], [0, 0], [0, 0]]}
    confidence = np.zeros((1, 1), np.uint8)
    path = write(
        tmp_path / "pseudo_labels.h5",
        "pseudo-labels",
        [label_record(name, np.array(labels, dtype=np.uint8), confidence) for name, labels in decided.items()],
        ("background", *CLASSES),
    )
    confusion, coverage = labels_confusion(path, scores, table, table.split("train"))
    # Image a is 0 2 [1] / [1] 1 [2], image b [0] 1 0 0 0 0; in brackets what comes from the scores.
    assert confusion.tolist() == [[4, 1, 0], [1, 1, 1], [1, 2, 0]]
    assert coverage == pytest.approx(1 - 4 / 12)


def random_cams(folder):
    """Maps of three images on small grids; the second shows no class, the third has a map of zeros."""
    rng = np.random.default_rng(0)
    samples, records = [], []
    for name, size, class_ids in [("a", (5, 7), (1, 3)), ("b", (4, 3), ()), ("c", (6, 5), (2, 3))]:
        samples.append(make_sample(folder, name, rng.choice([0, 1, 2, 3, 255], size)))
        cam = torch.from_numpy(rng.random((len(class_ids), 2, 3), dtype=np.float32)) * 7
        if name == "c":
            cam[0] = 0
        records.append(cam_record(StoredCam(name, cam, class_ids, size)))
    classes = ("cat", "dog", "eel")
    return Table(classes, tuple(samples)), write(folder / "cams.h5", "cams", records, classes)


def test_sweep_equals_an_argmax_for_every_background_score(tmp_path):
    table, path = random_cams(tmp_path)
    sweep = cam_sweep(path, table, table.samples, RefineSettings())
    assert sweep.shape == (100, 4, 4)
    expected = torch.zeros_like(sweep)
    with CamStore.open(path) as store:
        for sample in table.samples:
            stored = store.read(sample.id)
            target = torch.from_numpy(np.array(Image.open(sample.mask)))
            ids = torch.tensor([0, *stored.class_ids])
            for number, threshold in enumerate(THRESHOLDS.tolist()):
                scores = with_background(cam_scores(stored.cam, stored.size), threshold)
                expected[number] += confusion_matrix(ids[scores.argmax(dim=0)], target, 4)
    assert torch.equal(sweep, expected)
    assert len({tuple(one.flatten().tolist()) for one in sweep}) > 20


def test_sweep_covers_only_the_images_asked_for(tmp_path):
    table, path = random_cams(tmp_path)
    parts = [cam_sweep(path, table, [sample], RefineSettings()) for sample in table.samples]
    assert torch.equal(sum(parts), cam_sweep(path, table, table.samples, RefineSettings()))
    assert [int(part[0].sum()) for part in parts] == [
        int((np.array(Image.open(sample.mask)) != 255).sum()) for sample in table.samples
    ]


def test_sweep_divides_no_maximum_away_from_merged_maps(tmp_path):
    """A second network that sees the right place where the first sees the wrong one."""
    sample = make_sample(tmp_path, "a", np.array([[0, 1, 1], [0, 1, 1]]))
    table = Table(("cat",), (sample,))
    wrong, right = (StoredCam("a", torch.tensor([cam]), (1,), (2, 3)) for cam in ([[8.0, 0.0, 4.0]], [[0.0, 1.0, 1.0]]))
    alone, both = (
        cam_sweep(write(tmp_path / name, "cams", [cam_record(cam)], table.classes), table, [sample], RefineSettings())
        for name, cam in [("a.h5", wrong), ("b.h5", merged([wrong, right]))]
    )
    assert alone[45].tolist() == [[0, 2], [2, 2]]
    # Merged the columns score 1/2, 1/2 and 3/4: the networks disagree, and no maximum is divided away.
    assert both[60].tolist() == [[2, 0], [2, 2]]
    assert both[76].tolist() == [[2, 0], [4, 0]]


def test_sweep_of_calibrated_maps_equals_the_rule_of_the_background(tmp_path):
    rng = np.random.default_rng(1)
    sample = make_sample(tmp_path, "a", rng.choice([0, 1, 2, 3, 255], (5, 7)))
    cam, background, prototype = (
        torch.from_numpy(rng.random(shape, np.float32)) for shape in ((2, 2, 3), (2, 3), (3, 2, 3))
    )
    record = cam_record(StoredCam("a", cam, (1, 3), (5, 7), background, prototype))
    table = Table(("cat", "dog", "eel"), (sample,))
    path = write(tmp_path / "cams.h5", "cams", [record], table.classes)
    settings = RefineSettings(prototype_share=0.4, background_map=0.3)
    sweep = cam_sweep(path, table, [sample], settings)
    with CamStore.open(path) as store:
        scores, beside = class_scores(store.read("a"), settings)
    target = torch.from_numpy(np.array(Image.open(sample.mask)))
    for number, threshold in enumerate(THRESHOLDS.tolist()):
        whole = with_background(scores, threshold)
        whole[0] += beside
        labels = torch.tensor([0, 1, 3])[whole.argmax(dim=0)]
        assert torch.equal(sweep[number], confusion_matrix(labels, target, 4))


def test_figures_of_groups_of_classes():
    confusion = torch.tensor([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]])
    row = Row("CAM", "val", 5, "image labels", confusion)
    figures = row.figures(("background", "cat", "dog", "eel"), 0, {"head": [0], "middle": [2, 1], "tail": []})
    assert figures["groups"]["head"] == pytest.approx(3 / 6) and figures["groups"]["tail"] is None
    assert figures["groups"]["middle"] == pytest.approx((1 / 2 + 0 / 1) / 2)


def test_figures_of_a_row():
    confusion = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    row = Row("CAM", "val", 5, "image labels", confusion, background=0.35)
    figures = row.figures(("background", "cat", "dog"), seed=3)
    assert (figures["map"], figures["split"], figures["images"], figures["seed"]) == ("CAM", "val", 5, 3)
    assert (figures["used"], figures["background"], figures["coverage"]) == ("image labels", 0.35, None)
    assert figures["IoU"]["background"] == pytest.approx(6 / 9) and figures["IoU"]["cat"] == pytest.approx(3 / 6)
    assert figures["IoU"]["dog"] is None
    assert figures["mIoU"] == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert figures["precision"] == pytest.approx((6 / 7 + 3 / 5) / 2)
    assert figures["recall"] == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert figures["false_positive"] == pytest.approx((1 / 9 + 2 / 6) / 2)
    assert figures["false_negative"] == pytest.approx((2 / 9 + 1 / 6) / 2)
    assert not any(isinstance(value, float) and math.isnan(value) for value in figures.values())


def test_cam_rows_stand_at_the_configured_background_and_at_the_best():
    confusions = torch.ones(100, 2, 2, dtype=torch.int64)
    confusions[71] = torch.tensor([[9, 0], [0, 9]])
    (row,) = cam_rows(confusions, 0.354, oracle=False, split="val", images=2)
    assert row.background == 0.35 and row.map == "CAM" and row.used == "image labels"
    assert torch.equal(row.confusion, confusions[35])
    _, best = cam_rows(confusions, 0.35, oracle=True, split="val", images=2)
    assert best.background == 0.71 and "oracle" in best.map and "masks" in best.used
    assert torch.equal(best.confusion, confusions[71]) and (best.split, best.images) == ("val", 2)


def test_with_masks_thins_out_and_then_leaves_out_what_has_none(table):
    a, b, v = table.samples
    bare = Sample("n", a.image, "train", (1,))
    assert with_masks([a, bare, b, v]) == [a, b, v]
    assert with_masks(iter([a, bare, b, v]), every=2) == [a, b]
    assert with_masks([bare, a, b], every=2) == [b]
    with pytest.raises(DataError, match="no image of this split has a mask"):
        with_masks([bare])


def test_masks_of_another_size_are_a_mistake_in_the_data(table, scores):
    Image.new("L", (2, 3)).save(table.samples[0].mask)
    with pytest.raises(DataError, match=r"a\.png: the mask is \(3, 2\), its image is \(2, 3\)"):
        scores_confusion(scores, table, table.split("train"))


def fake_segmenter(monkeypatch, predictions):
    monkeypatch.setattr(rows, "trained_segmenter", lambda config, path, classes: SimpleNamespace())
    monkeypatch.setattr(rows, "place", lambda network, device: None)
    monkeypatch.setattr(
        confusions,
        "predict_variants",
        lambda segmenter, samples, config, variants: (
            (one, [given(predictions[one.id], one.id, presences) for presences in variants])
            for one in reversed(samples)
        ),
    )


def given(labels, name, presences):
    """The labels, with background in place of the classes that the image does not show."""
    labels = torch.tensor(labels)
    shown = torch.ones(2) if presences is None else presences[name]
    return torch.where(torch.cat([torch.ones(1), shown])[labels] > 0, labels, 0)


def test_segmenter_confusion_pairs_predictions_with_their_own_masks(table, monkeypatch):
    fake_segmenter(monkeypatch, {"a": [[0, 1, 1], [2, 1, 2]], "b": [[1, 2], [0, 0], [0, 2]]})
    each = []
    variants = {"all": (None, each), "none": (dict.fromkeys("ab", torch.zeros(2)), None)}
    found = segmenter_confusions(SimpleNamespace(), table, table.split("train"), CONFIG, variants)
    assert found["all"].tolist() == [[4, 0, 1], [0, 3, 0], [0, 1, 2]] == sum(each).tolist()
    assert found["none"].tolist() == [[5, 0, 0], [3, 0, 0], [3, 0, 0]]


@pytest.fixture
def results(table, scores, tmp_path):
    cams = [
        cam_record(StoredCam("a", torch.tensor([[[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]]), (1,), (2, 3))),
        cam_record(StoredCam("b", torch.zeros(0, 3, 2), (), (3, 2))),
    ]
    labels = [
        label_record("a", np.full((2, 3), 255, np.uint8), np.zeros((2, 3), np.uint8)),
        label_record("b", np.zeros((3, 2), np.uint8), np.zeros((3, 2), np.uint8)),
    ]
    return {
        "extract_cams": write(tmp_path / "cams.h5", "cams", cams),
        "refine_cams": scores,
        "make_labels": write(tmp_path / "pseudo_labels.h5", "pseudo-labels", labels, ("background", *CLASSES)),
        "train_seg": tmp_path / "segmenter.safetensors",
    }


def test_evaluate_makes_a_row_for_everything_that_exists(table, results, monkeypatch):
    fake_segmenter(monkeypatch, {"v": [[0, 1, 2], [0, 1, 1]]})
    rows = {row.map: row for row in evaluate(CONFIG, table, results, oracle=True)}
    of_segmenter = ["segmenter", "segmenter, true classes"]
    assert list(rows) == ["CAM", "CAM, oracle", "refined", "pseudo-label", *of_segmenter]
    assert {(row.split, row.images) for name, row in rows.items() if name not in of_segmenter} == {("train", 2)}
    # The CAM at background 0.4: image a is 0 1 1 / 1 0 0, image b 0.
    assert rows["CAM"].confusion.tolist() == [[5, 0, 0], [1, 2, 0], [2, 1, 0]]
    assert {rows[name].used for name in ("CAM", "refined", "pseudo-label")} == {"image labels"}
    assert rows["CAM"].background == rows["refined"].background == rows["pseudo-label"].background == 0.4
    assert rows["refined"].confusion.tolist() == SCORES_CONFUSION == rows["pseudo-label"].confusion.tolist()
    assert rows["pseudo-label"].coverage == 0.5 and rows["refined"].coverage is None
    assert (rows["segmenter"].split, rows["segmenter"].images) == ("val", 1)
    assert rows["segmenter"].confusion.tolist() == [[2, 0, 0], [0, 2, 0], [0, 1, 1]]
    assert rows["segmenter"].background is None and rows["segmenter"].used == "image labels"
    assert [row.map for row in evaluate(CONFIG, table, results)].count("CAM, oracle") == 0


@pytest.mark.parametrize("supervision", ["pseudo-labels", "mixed", "masks"])
def test_evaluate_says_where_people_helped(table, results, monkeypatch, supervision):
    """Marks have no part in maps, and those of a split only in its labels."""
    fake_segmenter(monkeypatch, {"v": [[0, 1, 2], [0, 1, 1]]})
    config = CONFIG.model_copy(update={"train_seg": CONFIG.train_seg.model_copy(update={"supervision": supervision})})
    clicked = [replace(table.samples[0], clicks=(Click(0, 0, 1),)), *table.samples[1:]]
    used = {row.map: row.used for row in evaluate(config, replace(table, samples=tuple(clicked)), results, oracle=True)}
    helped = "image labels, clicks and scribbles"
    assert used["CAM"] == "image labels" and used["refined"] == used["pseudo-label"] == helped
    assert used["segmenter"] == ("masks" if supervision == "masks" else helped)


def test_evaluate_compares_the_segmenter_with_the_classes_of_each_image(table, results, monkeypatch):
    """Those that the classifier sees are told apart from all, and true ones are an oracle."""
    fake_segmenter(monkeypatch, {"v": [[0, 1, 2], [0, 1, 1]]})
    config = Config.model_validate({"predict": {"classes": "classifier", "by": "threshold", "threshold": 0.25}})
    asked = []

    def presences(samples):
        asked.append([sample.id for sample in samples])
        return {"v": torch.tensor([1.0, 0.0])}

    only = {"train_seg": results["train_seg"]}
    plain, seen = evaluate(config, table, only, presences=presences)
    assert asked == [["v"]] and (plain.map, seen.map) == ("segmenter", "segmenter + classifier")
    assert (seen.split, seen.images) == ("val", 1)
    assert plain.confusion.tolist() == [[2, 0, 0], [0, 2, 0], [0, 1, 1]]
    assert seen.confusion.tolist() == [[2, 0, 0], [0, 2, 0], [1, 1, 0]]
    assert seen.used == "image labels; without classes under 0.25"
    cats = replace(table, samples=(*table.samples[:2], replace(table.samples[2], class_ids=(1,))))
    _, _, true = evaluate(config, cats, only, oracle=True, presences=presences)
    assert true.map == "segmenter, true classes" and true.confusion.tolist() == seen.confusion.tolist()
    assert true.used == "image labels; with the classes of these labels (oracle)"
    multiplied = Config.model_validate(
        {"predict": {"classes": "classifier", "by": "multiply"}, "train_seg": {"supervision": "masks"}}
    )
    used = evaluate(multiplied, table, only, presences=presences)[1].used
    assert used == "masks; probabilities multiplied"


def test_true_classes_need_the_labels_of_all_images(table, results, monkeypatch):
    fake_segmenter(monkeypatch, {"v": [[0, 1, 2], [0, 1, 1]]})
    bare = replace(table, samples=(*table.samples[:2], replace(table.samples[2], class_ids=None)))
    only = {"train_seg": results["train_seg"]}
    assert [row.map for row in evaluate(CONFIG, bare, only, oracle=True)] == ["segmenter"]
    line = "segmenter, true classes: 1 of 1 images of split 'val' have no labels"
    assert left_out(CONFIG, bare, only, {}, oracle=True) == [line] and not left_out(CONFIG, bare, only, {})


def test_evaluate_tells_of_classes_that_no_mask_shows(table, results, monkeypatch, caplog):
    fake_segmenter(monkeypatch, {"v": [[0, 1, 2], [0, 1, 1]]})
    evaluate(CONFIG, table, results)
    assert not caplog.messages
    Image.fromarray(np.array([[0, 1, 255], [0, 1, 255]], np.uint8)).save(table.samples[2].mask)
    evaluate(CONFIG, table, results)
    assert caplog.messages == ["evaluate: labels of split 'val' name dog, but no mask has a pixel of it"]


def test_evaluate_takes_split_share_and_supervision_into_account(table, results, monkeypatch):
    fake_segmenter(monkeypatch, {"a": [[0] * 3] * 2, "b": [[0] * 2] * 3, "v": [[0] * 3] * 2})
    rows = evaluate(CONFIG, table, results, split="val")
    assert [(row.map, row.split) for row in rows] == [("segmenter", "val")], "no CAMs were made of this split"
    rows = evaluate(CONFIG, table, results, split="train", every=2)
    assert [(row.map, row.split, row.images) for row in rows] == [
        (name, "train", 1) for name in ("CAM", "refined", "pseudo-label", "segmenter")
    ]
    assert int(rows[0].confusion.sum()) == 5, "image a alone"
    reference = CONFIG.model_copy(update={"train_seg": CONFIG.train_seg.model_copy(update={"supervision": "masks"})})
    assert evaluate(reference, table, {"train_seg": results["train_seg"]})[0].used == "masks"


def test_evaluate_leaves_out_what_it_can_not_compare_and_says_why(table, results, monkeypatch):
    fake_segmenter(monkeypatch, {"v": [[0, 1, 2], [0, 1, 1]]})
    assert evaluate(CONFIG, table, {}) == []
    not_ready = {"refine_cams": "stale (x was 1, is 2)", "make_labels": "stale (refine_cams is stale)"}
    assert left_out(CONFIG, table, ["extract_cams", "train_seg"], not_ready) == [
        "refined: stale (x was 1, is 2)",
        "pseudo-label: stale (refine_cams is stale)",
    ]
    assert left_out(CONFIG, table, results, {}) == []
    assert left_out(CONFIG, table, results, {}, split="val") == [
        "CAM, refined, pseudo-label: no maps are made for split 'val'; name it in cam.splits"
    ]
    bare = replace(table, samples=tuple(replace(sample, mask=None) for sample in table.samples))
    assert evaluate(CONFIG, bare, results) == []
    assert left_out(CONFIG, bare, results, {}) == [
        "CAM, refined, pseudo-label: no image of split 'train' has a mask",
        "segmenter: no image of split 'val' has a mask",
    ]
    assert left_out(CONFIG, replace(table, samples=(bare.samples[0], *table.samples[1:])), results, {}, every=2) == [
        "CAM, refined, pseudo-label: no image of split 'train' (the first of every 2) has a mask"
    ]
    no_val = replace(table, samples=table.samples[:2])
    assert [row.map for row in evaluate(CONFIG, no_val, results)] == ["CAM", "refined", "pseudo-label"]
    with pytest.raises(DataError, match="no images in split 'test'"):
        evaluate(CONFIG, table, results, split="test")


def test_pseudo_labels_need_their_scores(table, results):
    partial = {"extract_cams": results["extract_cams"], "make_labels": results["make_labels"]}
    assert [row.map for row in evaluate(CONFIG, table, partial)] == ["CAM"]


def test_of_few_images_the_spread_is_told(table, results, monkeypatch):
    fake_segmenter(monkeypatch, {"v": [[0, 1, 2], [0, 1, 1]]})
    found = evaluate(CONFIG, table, results)
    assert [row.interval is None for row in found] == [False] * 3 + [True]  # the segmenter was compared on one image
    for row in found[:3]:
        low, high = row.figures(("background", *CLASSES), 0)["mIoU_interval"]
        assert 0 <= low <= float(mean_iou(row.confusion)) <= high <= 1 and low < high
    monkeypatch.setattr(rows, "FEW", 1)
    assert [row.interval for row in evaluate(CONFIG, table, results)] == [None] * 4


def test_the_spread_is_that_of_the_images(table, results, scores):
    each = []
    total = scores_confusion(scores, table, table.split("train"), each)
    assert len(each) == 2 and torch.equal(sum(each), total)
    each = []
    sweep = cam_sweep(results["extract_cams"], table, table.split("train"), CONFIG.refine, each, 0.4)
    assert len(each) == 2 and torch.equal(sum(each), sweep[40])

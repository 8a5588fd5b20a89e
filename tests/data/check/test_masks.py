"""Masks of a split taken together: classes without a pixel, palettes, labels that deny what masks show."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.data.check.masks import (
    MaskFacts,
    check_denied,
    check_palettes,
    check_shown,
    check_supervision,
    decoded,
    shown_in,
    warn_if_unseen,
)
from cam_pipeline.data.check.problems import AllProblems
from cam_pipeline.data.coco_masks import CocoMask, Region, packed_runs
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError

CLASSES = ("cat", "dog")
CROWD = CocoMask(2, 3, (Region(1, True, runs=packed_runs([0, 6], 2, 3)),), "x.json, image 1")


def split_of(folder, *masks, split="train"):
    """Samples of 2 x 3 pixels: each is given as its class ids and the numbers in its mask."""
    samples = []
    for number, (class_ids, numbers) in enumerate(masks):
        name = f"{split}{number}"
        Image.new("RGB", (3, 2)).save(folder / f"{name}.png")
        mask = np.resize(np.array(numbers, np.uint8), (2, 3))
        Image.fromarray(mask).save(folder / f"m{name}.png")
        samples.append(Sample(name, folder / f"{name}.png", split, class_ids, folder / f"m{name}.png"))
    return samples


def facts_of(samples):
    found = []
    for sample in samples:
        if sample.mask is CROWD:
            pixels = {255: 6}
        else:
            with Image.open(sample.mask) as image:
                values, counts = np.unique(np.asarray(image), return_counts=True)
            pixels = dict(zip(values.tolist(), counts.tolist(), strict=True))
        found.append((sample, MaskFacts(pixels, {})))
    return found


WHITE = r"no mask of split 'train' has a pixel of a class: they hold 0 and 255, and 255 means ignore; write class"
VOID = r"no mask of split 'train' has a pixel of a class: every pixel is 255, which means ignore; .* \(1: cat\)$"
BLACK = r"no mask of split 'train' has a pixel of a class: they hold background alone; write class numbers into them"
CROWDS = r"no mask of split 'train' has a pixel of a class: their outlines count as crowds \(iscrowd\)"
NO_DOG = r"split 'train': the labels of 1 image with a mask name dog, but no mask of theirs shows a pixel of that"

WRONG = [
    ([((1,), [0, 255]), ((2,), [255]), ((), [0])], WHITE),
    ([((1,), [255]), ((2,), [255])], VOID),
    ([(None, [255])], VOID),
    ([((1,), [0]), ((2,), [0])], BLACK),
]
DOUBTFUL = [
    ([((1,), [0, 1]), ((2,), [0, 255])], NO_DOG + "; 255 means ignore, not an object$"),
    ([((1,), [0, 1]), ((2,), [0, 1])], NO_DOG + "$"),
    ([(None, [0, 255]), ((), [0])], WHITE),
]
FINE = [
    [((1,), [0, 1]), ((2,), [0, 2, 255]), ((2,), [255])],
    [((1,), [0, 1]), ((1, 2), [0, 1, 2]), (None, [0])],
    [((1,), [0, 2]), ((2,), [0, 1]), ((1,), [1])],
]


@pytest.mark.parametrize(("masks", "message"), WRONG)
def test_a_training_on_masks_without_a_class_is_refused(tmp_path, masks, message):
    with pytest.raises(DataError, match=rf"^train_seg\.supervision = 'masks': {message}"):
        check_supervision("train", split_of(tmp_path, *masks), CLASSES)


@pytest.mark.parametrize(("masks", "message"), DOUBTFUL)
def test_a_training_on_masks_that_lack_a_class_warns(tmp_path, masks, message, caplog):
    check_supervision("train", split_of(tmp_path, *masks), CLASSES)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert pytest.raises(DataError, match=rf"^train_seg: {message}").matches(DataError(record.getMessage()))


@pytest.mark.parametrize("masks", FINE)
def test_sound_masks_are_nothing_to_tell_of(tmp_path, masks, caplog):
    samples, problems = split_of(tmp_path, *masks), AllProblems()
    check_supervision("train", samples, CLASSES)
    check_shown(facts_of(samples), CLASSES, problems, "train", "train")
    assert not caplog.records and not problems.errors and not problems.warnings


def test_of_sound_masks_one_of_each_class_is_decoded(tmp_path):
    samples = split_of(tmp_path, *[((1,), [0, 1])] * 5, *[((2,), [0, 2])] * 5, *[((), [0])] * 5)
    asked = []

    def labels_in(sample):
        asked.append(sample.id)
        return decoded(2)(sample)

    assert not shown_in(samples, labels_in).missing and asked == ["train0", "train5"]


@pytest.mark.parametrize(("masks", "message"), [*WRONG, *DOUBTFUL])
def test_the_check_of_a_data_set_tells_the_same(tmp_path, masks, message):
    samples = split_of(tmp_path, *masks)
    for settings, is_error in (({}, False), ({"trained_on": "train"}, (masks, message) in WRONG)):
        problems = AllProblems()
        check_shown(facts_of(samples), CLASSES, problems, **settings)
        (found,) = problems.errors if is_error else problems.warnings
        assert len(problems.errors) == is_error
        start = r"train_seg\.supervision = 'masks': " if is_error else ""
        assert pytest.raises(DataError, match=rf"^{start}{message}").matches(DataError(found.message))


def test_splits_are_looked_at_one_by_one(tmp_path):
    samples = [
        *split_of(tmp_path, ((1,), [0, 1])),
        *split_of(tmp_path, ((1,), [0, 255]), split="val"),
        *split_of(tmp_path, ((), [0]), split="test"),
    ]
    problems = AllProblems()
    check_shown(facts_of(samples), CLASSES, problems)
    assert [problem.message.split(" has")[0] for problem in problems.warnings] == ["no mask of split 'val'"]
    problems = AllProblems()
    check_shown(facts_of(samples), CLASSES, problems, chosen_on="val")
    assert not problems.warnings and problems.errors[0].kind == "masks without a class"
    assert "refine.background = 'from-split': no mask of split 'val' that is looked at" in problems.errors[0].message


def test_outlines_that_all_count_as_crowds(tmp_path):
    samples = [replace(sample, mask=CROWD) for sample in split_of(tmp_path, ((1,), [0]), ((1,), [0]))]
    with pytest.raises(DataError, match=CROWDS):
        check_supervision("train", samples, CLASSES)


BLACK_RED_GREEN = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0)}


def palettes(tmp_path, *found):
    samples = split_of(tmp_path, *[((1,), [0])] * len(found))
    problems = AllProblems()
    check_palettes([(sample, MaskFacts({}, one)) for sample, one in zip(samples, found, strict=True)], problems)
    assert not problems.errors and {problem.kind for problem in problems.warnings} <= {"palettes that disagree"}
    return [problem.message.replace(f"{tmp_path}/", "") for problem in problems.warnings]


def test_a_colour_that_has_two_numbers_is_warned_of(tmp_path):
    swapped = {0: (0, 0, 0), 1: (0, 128, 0), 2: (128, 0, 0)}
    remedy = "; if the colours are right, name them in data.colors"
    assert palettes(tmp_path, BLACK_RED_GREEN, swapped, BLACK_RED_GREEN) == [
        f"the colour #008000 is 2 in mtrain0.png (1 more), 1 in mtrain1.png{remedy}",
        f"the colour #800000 is 1 in mtrain0.png (1 more), 2 in mtrain1.png{remedy}",
    ]
    assert palettes(tmp_path, {0: (0, 0, 0), 1: (9, 9, 9)}, {0: (0, 0, 0), 1: (7, 7, 7)}) == [
        f"the number 1 is #090909 in mtrain0.png, #070707 in mtrain1.png{remedy}"
    ]


def test_palettes_that_agree_or_say_nothing_are_not_warned_of(tmp_path):
    assert palettes(tmp_path, BLACK_RED_GREEN, {0: (0, 0, 0)}, {1: (128, 0, 0)}, {}) == []
    assert palettes(tmp_path, {0: (0, 0, 0), 255: (255, 255, 255)}, {0: (0, 0, 0), 255: (224, 224, 192)}) == []
    assert palettes(tmp_path, dict.fromkeys(range(3), (0, 0, 0)), dict.fromkeys(range(2), (0, 0, 0))) == []


def test_classes_that_labels_deny_are_summed_up(tmp_path):
    samples = split_of(
        tmp_path, ((1,), [0, 2]), ((1,), [2]), ((), [0, 0, 0, 0, 0, 1]), ((1,), [1, 255]), (None, [2]), ((2,), [0, 2])
    )
    problems = AllProblems()
    check_denied(facts_of(samples), CLASSES, problems)
    assert [problem.message for problem in problems.warnings] == [
        "3 of 5 images with masks (60 %) have pixels of classes that their labels deny; the most in train1 (dog, "
        "100.0 %), train0 (dog, 50.0 %), train2 (cat, 16.7 %); compare the order of the classes"
    ]
    problems = AllProblems()
    check_denied(facts_of(samples[1:]), CLASSES, problems)
    assert not problems.warnings, "two are told one by one"


def test_an_evaluation_tells_of_classes_without_a_pixel(tmp_path, caplog):
    samples = split_of(tmp_path, ((1, 2), [0]))
    warn_if_unseen("val", samples, CLASSES, [5, 1, 2])
    assert not caplog.records
    warn_if_unseen("val", samples, CLASSES, [5, 1, 0])
    assert caplog.messages == ["evaluate: labels of split 'val' name dog, but no mask has a pixel of it"]
    caplog.clear()
    warn_if_unseen("val", samples, CLASSES, [5, 0, 0])
    assert "no mask of split 'val' has a pixel of a class (255 means ignore)" in caplog.messages[0]

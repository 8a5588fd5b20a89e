import json

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import AllProblems
from cam_pipeline.data.masks import sample_mask
from cam_pipeline.data.readers import load_table
from cam_pipeline.errors import DataError

SQUARE = [[0.0, 0.0, 3.0, 0.0, 3.0, 2.0, 0.0, 2.0]]  # the upper left 2 x 3 of an image
CATEGORIES = [{"id": 17, "name": "cat"}, {"id": 3, "name": "zebra"}, {"id": 90, "name": "dog"}]


def content(images=(), annotations=(), categories=CATEGORIES):
    """A file of images (id, file name), 4 x 5, and annotations (image id, category id, other keys)."""
    return {
        "images": [{"id": key, "file_name": name, "height": 4, "width": 5, "license": 1} for key, name in images],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "segmentation": SQUARE, "iscrowd": 0} | more
            for number, (image, category, more) in enumerate(annotations)
        ],
        "categories": list(categories),
    }


def write(root, **by_split):
    (root / "annotations").mkdir(exist_ok=True)
    for split, value in by_split.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (root / "annotations" / f"instances_{split}.json").write_text(text)


def table_of(root, problems=None, **settings):
    settings = {"val": ""} | settings
    return load_table(DataSettings(root=root, format="coco", **settings), problems)


def facts(table):
    return [(sample.id, sample.split, sample.class_ids) for sample in table.samples]


def test_categories_become_labels_by_rising_id_and_images_without_annotations_are_negatives(tmp_path):
    write(
        tmp_path,
        train=content(
            [(7, "a.jpg"), (5, "sub/b.png"), (6, "c.jpg")], [(5, 90, {}), (7, 17, {}), (5, 3, {}), (7, 17, {})]
        ),
        val=content([(7, "a.jpg")], [(7, 3, {})]),
    )
    table = table_of(tmp_path, val="val")
    assert table.classes == ("zebra", "cat", "dog")
    assert facts(table) == [
        ("train/a", "train", (2,)), ("train/sub/b", "train", (1, 3)), ("train/c", "train", ()), ("val/a", "val", (1,)),
    ]  # fmt: skip
    assert [sample.image for sample in table.samples][:2] == [tmp_path / "train/a.jpg", tmp_path / "train/sub/b.png"]
    assert table.samples[1].source == f"{tmp_path}/annotations/instances_train.json, image 5"


def test_patterns_name_files_and_folders_of_a_split(tmp_path):
    write(tmp_path, train2014=content([(1, "COCO_train2014_01.jpg")]))
    pattern = {"annotations": "annotations/instances_{split}2014.json", "images": "{split}2014"}
    assert facts(table_of(tmp_path, **pattern)) == [("train2014/COCO_train2014_01", "train", ())]
    assert facts(table_of(tmp_path, train="train2014", images=""))[0][0] == "COCO_train2014_01"


def test_given_classes_decide_the_labels(tmp_path):
    write(tmp_path, train=content([(1, "a.jpg")], [(1, 17, {}), (1, 90, {})]))
    table = table_of(tmp_path, classes=("dog", "eel", "cat"))  # zebra has no annotation, so that nobody misses it
    assert table.classes == ("dog", "eel", "cat") and table.samples[0].class_ids == (1, 3)
    with pytest.raises(DataError, match=r"train\.json, category 90: unknown class 'dog'; did you mean 'dogs'\?"):
        table_of(tmp_path, classes=("dogs", "cat"))


def test_a_category_named_background_is_no_class(tmp_path):
    categories = [{"id": 0, "name": "background"}, *CATEGORIES]
    write(tmp_path, train=content([(1, "a.jpg")], [(1, 0, {}), (1, 17, {})], categories))
    table = table_of(tmp_path)
    assert table.classes == ("zebra", "cat", "dog") and table.samples[0].class_ids == (2,)


def test_masks_are_drawn_from_the_annotations(tmp_path):
    runs = {"size": [4, 5], "counts": [16, 4]}  # the last column
    crowd = {"segmentation": {"size": [4, 5], "counts": [12, 4, 4]}, "iscrowd": 1}  # the last but one
    write(tmp_path, train=content([(1, "a.png")], [(1, 3, {}), (1, 90, {"segmentation": runs}), (1, 17, crowd)]))
    (tmp_path / "train").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "train" / "a.png")
    sample = table_of(tmp_path).samples[0]
    assert sample.class_ids == (1, 2, 3)  # a crowd of cats is there, too
    row = [0, 0, 0, 255, 3]
    assert sample_mask(sample, 3).tolist() == [[1, 1, 1, 255, 3]] * 2 + [row] * 2
    assert sample_mask(sample, 3).dtype == np.uint8


@pytest.mark.parametrize("missing", [{"segmentation": []}, {"segmentation": None}, {"bbox": [0, 0, 2, 2]}])
def test_an_image_with_an_object_without_outline_has_no_mask(tmp_path, missing):
    value = content([(1, "a.jpg"), (2, "b.jpg"), (3, "c.jpg")], [(1, 3, {}), (1, 17, missing), (2, 3, {})])
    if "bbox" in missing:
        del value["annotations"][1]["segmentation"]
    write(tmp_path, train=value)
    samples = table_of(tmp_path).samples
    assert [sample.class_ids for sample in samples] == [(1, 2), (1,), ()]
    assert [sample.mask is not None for sample in samples] == [False, True, True]


def test_a_file_is_read_again_when_it_changes(tmp_path):
    write(tmp_path, train=content([(1, "a.jpg")], [(1, 3, {})]))
    first = table_of(tmp_path)
    assert table_of(tmp_path) == first
    write(tmp_path, train=content([(1, "a.jpg")], [(1, 17, {})]))
    assert table_of(tmp_path).samples[0].class_ids == (2,)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "cannot be read as JSON"),
        ('{"images": [', "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "missing: images, annotations, categories"),
        (
            '{"images": [], "categories": {}}',
            "with the lists images, annotations, categories; missing: annotations, categories",
        ),
        ('{"images": [], "annotations": [], "categories": []}', "no class is named"),
    ],
)
def test_what_is_no_coco_file_is_named(tmp_path, text, complaint):
    write(tmp_path, train=text)
    with pytest.raises(DataError, match=complaint) as caught:
        table_of(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    reason = r"cannot be read \(No such file or directory\); put it there, or set"
    with pytest.raises(DataError, match=rf"instances_train\.json {reason} data\.annotations or data\.train$"):
        table_of(tmp_path)
    write(tmp_path, train=content([(1, "a.jpg")]))
    with pytest.raises(DataError, match=rf"instances_val\.json {reason} data\.annotations, or data\.val to ''$"):
        table_of(tmp_path, val="val")


WRONG = [
    ({"annotations": [{"image_id": 1, "category_id": 3, "segmentation": [[0, 0, 1]]}]},
     "outline that cannot be drawn", r"annotations\[0\]: a polygon needs three points"),
    ({"annotations": [{"image_id": 1, "category_id": 3, "segmentation": {"size": [4, 5], "counts": "04"}}]},
     "outline that cannot be drawn", r"annotations\[0\]: its run lengths do not fill the image of 5 x 4"),
    ({"annotations": [{"image_id": 1, "category_id": 3, "segmentation": {"size": [5, 4], "counts": [16, 4]}}]},
     "outline that cannot be drawn", r"annotations\[0\]: its run .* size \[5, 4\], the image is \[4, 5\] .*; correct"),
    ({"annotations": [{"image_id": 1, "category_id": 3, "segmentation": {"counts": [16, 4]}}]},
     "outline that cannot be drawn", r"annotations\[0\]: its run lengths are for the size \[\], the image"),
    ({"annotations": [{"image_id": 1, "category_id": 3, "segmentation": [[0, 0, 1, 1, float("nan"), 2]]}]},
     "entry that cannot be read", r"annotations\[0\]\.segmentation.*finite"),
    ({"annotations": [{"image_id": 9, "category_id": 3}]},
     "label without image", r"annotations\[0\]: there is no image 9 in the file; add it, or delete the annotation"),
    ({"annotations": [{"image_id": 1, "category_id": 4}]},
     "unknown class", r"annotations\[0\]: there is no category 4; add it"),
    ({"annotations": [{"image_id": 1}]}, "entry that cannot be read", r"annotations\[0\]\.category_id: .*; correct it"),
    ({"annotations": ["x"]}, "entry that cannot be read", r"annotations\[0\].*; correct it"),
    ({"images": [{"id": 1, "file_name": "a.jpg", "width": 5, "height": 0}]},
     "entry that cannot be read", r"images\[0\]\.height: .*greater"),
    ({"images": [{"id": 1, "file_name": "../a.jpg", "width": 5, "height": 4}]},
     "outside the data root", r"image 1: 'train/\.\./a\.jpg' is no path below the data root"),
    ({"images": [{"id": 1, "file_name": "/etc/a.jpg", "width": 5, "height": 4}]},
     "outside the data root", r"image 1: '/etc/a\.jpg' is no path below the data root"),
    ({"images": 2 * content([(1, "a.jpg")])["images"]}, "duplicate id", "the image id 1 appears twice"),
    ({"images": content([(1, "a.jpg"), (2, "a.png")])["images"]},
     "two images with one stem", "image 2: the id train/a appears twice: for a.png, and for a.jpg in .*image 1; re"),
    ({"categories": [*CATEGORIES, {"id": 3, "name": "eel"}]}, "duplicate id", "the category id 3 appears twice"),
    ({"categories": [{"id": "three", "name": "eel"}, *CATEGORIES]},
     "entry that cannot be read", r"categories\[0\]\.id: .*integer"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "complaint"), WRONG)
def test_mistakes_are_named_with_file_and_entry(tmp_path, change, kind, complaint):
    write(tmp_path, train=content([(1, "a.jpg")]) | change)
    with pytest.raises(DataError, match=complaint) as caught:
        table_of(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    problems = AllProblems()
    table_of(tmp_path, problems)
    assert [problem.kind for problem in problems.errors] == [kind]
    assert problems.errors[0].message == str(caught.value)


def test_files_of_two_splits_must_agree(tmp_path):
    write(tmp_path, train=content([(1, "a.jpg")]), val=content([(1, "a.jpg")], (), [{"id": 3, "name": "horse"}]))
    with pytest.raises(DataError, match=r"val\.json: category 3 is 'horse', but 'zebra' in another split's file"):
        table_of(tmp_path, val="val")

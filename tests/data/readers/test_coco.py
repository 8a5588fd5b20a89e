import json

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import AllProblems
from cam_pipeline.data.marks import CLICK, MASK, sample_marks
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
        ('{"images": [], "annotations": [], "categories": []}', "no image has a label, and no class is named"),
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
    ({"annotations": [{"image_id": 9, "category_id": 3}]},
     "label without image", r"annotations\[0\]: there is no image 9 in the file; add it, or delete the annotation"),
    ({"annotations": [{"image_id": 1, "category_id": 4}]},
     "unknown class", r"annotations\[0\]: there is no category 4; add it"),
    ({"annotations": [{"image_id": 1}]}, "entry that cannot be read", r"annotations\[0\]\.category_id: .*; correct it"),
    ({"annotations": ["x"]}, "entry that cannot be read", r"annotations\[0\].*; correct it"),
    ({"images": [{"id": 1, "file_name": "../a.jpg", "width": 5, "height": 4}]},
     "outside the data root", r"image 1: 'train/\.\./a\.jpg' is no path below the data root"),
    ({"images": [{"id": 1, "file_name": "/etc/a.jpg", "width": 5, "height": 4}]},
     "outside the data root", r"image 1: '/etc/a\.jpg' is no path below the data root"),
    ({"images": 2 * content([(1, "a.jpg")])["images"]}, "duplicate id", "the image id 1 appears twice"),
    ({"images": content([(1, "a.jpg"), (2, "a.png")])["images"]},
     "two images with one stem", "image 2: the id train/a appears twice: for a.png, and for a.jpg in .*image 1; re"),
    ({"categories": [*CATEGORIES, {"id": 3, "name": "eel"}]}, "duplicate id", "the category id 3 appears twice"),
    ({"categories": [{"id": None, "name": "eel"}, *CATEGORIES]},
     "entry that cannot be read", r"categories\[0\]\.id: .*; correct it"),
    ({"images": [{"id": 1}], "annotations": [{"image_id": "1", "category_id": 3}]},
     "entry that cannot be read", r"images\[0\]\.file_name: .*; correct it"),
    ({"categories": [{"id": "3"}, *CATEGORIES[:1]], "annotations": [{"image_id": 1, "category_id": 3}]},
     "entry that cannot be read", r"categories\[0\]\.name: .*; correct it"),
    ({"categories": [*CATEGORIES, {"id": 4, "name": "cat"}],
      "annotations": [{"image_id": 1, "category_id": 4}, {"image_id": 1, "category_id": 17}]},
     "category named twice", r"train\.json: the categories 17 and 4 have one name, 'cat'; rename all but one, or set "
     r'data\.classes = \["zebra", "cat", "dog"\] to make them one class'),
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


def warned(root, **settings):
    """The table, and the warnings about it; there must be no mistakes."""
    problems = AllProblems()
    table = table_of(root, problems, **settings)
    assert problems.errors == []
    return table, [
        (problem.kind, problem.message.removeprefix(f"{root}/annotations/")) for problem in problems.warnings
    ]


def one_image(root, *shapes, image=None, **more):
    """A file with one image of 4 x 5 that shows zebras with these segmentations; its table and warnings."""
    value = content([(1, "a.png")], [(1, 3, {"segmentation": shape} | more) for shape in shapes])
    value["images"][0] |= image or {}
    write(root, train=value)
    (root / "train").mkdir(exist_ok=True)
    Image.new("RGB", (5, 4)).save(root / "train" / "a.png")
    return warned(root)


BOX = SQUARE[0]


@pytest.mark.parametrize("shape", [[BOX, [1.0, 1.0]], [[0, 0, 1, 1], BOX], [BOX, []], [BOX, [1.0]], BOX])
def test_stray_parts_of_an_outline_are_left_out(tmp_path, shape):
    table, warnings = one_image(tmp_path, shape, shape, SQUARE)
    assert sample_mask(table.samples[0], 3).tolist() == [[1, 1, 1, 0, 0]] * 2 + [[0] * 5] * 2
    expected = "instances_train.json, annotations[0]: a part of fewer than three points is left out (1 more like this)"
    assert warnings == ([] if shape is BOX else [("part of an outline", expected)])  # BOX: a list less


@pytest.mark.parametrize("shape", [[[]], [], {}, None, [[1.0, 1.0]], [[], [0, 0, 3, 3]], ""])
def test_an_object_without_an_outline_keeps_its_label(tmp_path, shape):
    table, warnings = one_image(tmp_path, SQUARE, shape)
    assert table.samples[0].class_ids == (1,) and table.samples[0].mask is None
    assert warnings[-1][1].startswith("instances_train.json, annotations[1]: ")
    assert "so its image has no mask" in warnings[-1][1]


def test_a_file_of_boxes_alone_is_nothing_to_warn_of(tmp_path):
    table, warnings = one_image(tmp_path, None, [], {})
    assert table.samples[0].class_ids == (1,) and table.samples[0].mask is None and warnings == []


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"size": [4, 5], "counts": "04"}, "its run lengths do not fill the image of 5 x 4"),
        ({"size": [5, 4], "counts": [16, 4]}, "its run lengths are for the size [5, 4], the image is [4, 5]"),
        ({"counts": [16, 4]}, "its run lengths are for the size [], the image is [4, 5]"),
        ({"size": [4, 5], "counts": None}, "its run lengths cannot be read"),
        ([[0, 0, 1, 1, float("nan"), 2]], "a polygon is a list of finite numbers"),
        ([[0, 0, 1, 1, "x", 2]], "a polygon is a list of numbers"),
        ([[[0, 0], [1, 1], [1, 0]]], "a polygon is a list of numbers"),
        ([[0, 0, 1, 1, 3, 2, 4]], "a polygon needs pairs of x and y; it has 7 numbers"),
        ([[0, 0, 1, 1, 100, 2]], "a polygon has points far outside its image"),
        ("cat", "a segmentation is a list of polygons, or run lengths"),
    ],
)
def test_an_outline_that_cannot_be_drawn_costs_the_mask_and_not_the_label(tmp_path, shape, reason):
    table, warnings = one_image(tmp_path, SQUARE, shape)
    assert table.samples[0].class_ids == (1,) and table.samples[0].mask is None
    assert [kind for kind, _ in warnings] == ["outline that cannot be drawn"]
    assert warnings[0][1].startswith(f"instances_train.json, annotations[1]: {reason}")
    assert warnings[0][1].endswith("so its image has no mask; correct or delete it")


@pytest.mark.parametrize("crowd", [None, {}, [], 0, "0", 0.0, False])
def test_nothing_for_iscrowd_is_no(tmp_path, crowd):
    table, warnings = one_image(tmp_path, SQUARE, iscrowd=crowd)
    assert not table.samples[0].mask.regions[0].crowd and warnings == []


@pytest.mark.parametrize(
    ("of_images", "of_annotations", "shown"),
    [(["1", "2"], [1, 2], "1 is taken for '1'"), ([1, 2], ["1", "2"], "'1' is taken for 1"), ([1, 2], [1.0, 2.0], None),
     (["001", "002"], [1, 2], "1 is taken for '001'"), ([1, 2], ["1.0", "2.0"], "'1.0' is taken for 1"),
     (["a", "b"], ["a", "b"], None), ([1, "1"], [1, "1"], None)],
)  # fmt: skip
def test_ids_of_another_type_are_found(tmp_path, of_images, of_annotations, shown):
    names = zip(of_images, ("a.jpg", "b.jpg"), strict=True)
    write(tmp_path, train=content(names, [(of_annotations[0], 3, {}), (of_annotations[1], 17, {})]))
    table, warnings = warned(tmp_path)
    assert [sample.class_ids for sample in table.samples] == [(1,), (2,)]
    message = f"instances_train.json: annotations write ids in another way than images do: {shown}"
    assert warnings == ([("ids of two types", message)] if shown else [])


def test_an_id_that_fits_two_images_or_none_is_told_as_it_is_written(tmp_path):
    write(tmp_path, train=content([("1", "a.jpg"), ("01", "b.jpg")], [("001", 3, {})]))
    with pytest.raises(DataError, match=r"annotations\[0\]: there is no image '001' in the file"):
        table_of(tmp_path)


@pytest.mark.parametrize(("of_categories", "of_annotations"), [(["7", "3"], [7, 3]), (["x", "a"], ["x", "a"])])
def test_ids_of_categories_may_be_text(tmp_path, of_categories, of_annotations):
    categories = [{"id": key, "name": name} for key, name in zip(of_categories, ("cat", "dog"), strict=True)]
    write(tmp_path, train=content([(1, "a.jpg"), (2, "b.jpg")], [(2, of_annotations[1], {})], categories))
    table, warnings = warned(tmp_path)
    assert table.classes == ("dog", "cat") and table.samples[1].class_ids == (1,) and warnings == []


@pytest.mark.parametrize(
    "size",
    [{}, {"height": 0, "width": 0}, {"height": 4}, {"height": "?", "width": 1e9}, {"height": -4, "width": 5}],
)
def test_an_image_without_a_size_gets_that_of_its_file(tmp_path, size):
    table, warnings = one_image(tmp_path, *[SQUARE] * 5, image={"height": None, "width": None} | size)
    sample = table.samples[0]
    assert sample.class_ids == (1,)
    assert sample_mask(sample, 3).tolist() == [[1, 1, 1, 0, 0]] * 2 + [[0] * 5] * 2
    message = "instances_train.json: image 1 has no height and width; those of the image file are taken"
    assert warnings == [("COCO image without size", message)]


def test_an_image_without_a_size_may_be_missing_or_not_fit_its_outlines(tmp_path):
    nothing = {"height": None, "width": None}
    table, _ = one_image(tmp_path, [[0, 0, 9, 0, 9, 9]], image=nothing)
    with pytest.raises(DataError, match=r"train\.json, image 1: a polygon has points far outside its image of 5 x 4"):
        sample_mask(table.samples[0], 3)
    (tmp_path / "train" / "a.png").unlink()
    with pytest.raises(DataError, match="there is no image file"):
        sample_mask(table.samples[0], 3)
    runs = {"size": [4, 5], "counts": [16, 4]}
    table, warnings = one_image(tmp_path, runs, SQUARE, image=nothing)
    assert sample_mask(table.samples[0], 3)[3].tolist() == [0, 0, 0, 0, 1] and warnings == []


LARGE = {"height": 40, "width": 50}


def test_outlines_in_shares_of_the_image_make_no_mask(tmp_path):
    shares = [[0.1, 0.1, 0.6, 0.1, 0.6, 0.7]]
    table, warnings = one_image(tmp_path, shares, shares, image=LARGE, bbox=[5, 4, 25, 24], area=600)
    assert table.samples[0].class_ids == (1,) and table.samples[0].mask is None
    message = "all 2 outlines lie in 0..1, so the images have no masks; multiply x by the width, y by the height"
    assert warnings == [("outlines in 0..1", f"instances_train.json: {message}")]
    table, warnings = one_image(tmp_path, shares, [[0, 0, 40, 0, 40, 39]], image=LARGE)
    assert table.samples[0].mask is not None
    assert [kind for kind, _ in warnings] == ["outline of less than a pixel"]


FAR = "outline far from its bbox"
SQUARE_20 = [[10, 10, 30, 10, 30, 30, 10, 30]]
RUNS_100 = {"size": [40, 50], "counts": [100, 100, 1800]}


@pytest.mark.parametrize(
    ("shape", "more", "expected"),
    [
        (SQUARE_20, {"bbox": [10, 10, 20, 20], "area": 1}, []),
        (SQUARE_20, {"bbox": [10, 10, 30, 30]}, []),  # by its corners
        (SQUARE_20, {"bbox": [0, 0, 0, 0], "area": 0}, []),  # not given
        (SQUARE_20, {"bbox": "x", "area": None}, []),
        ([[10, 10, 12, 10, 12, 12]], {"bbox": [9, 9, 4, 4]}, []),  # small
        ([[5, 5, 15, 5, 15, 15, 5, 15]], {"bbox": [10, 10, 20, 20]}, [FAR]),
        (SQUARE_20, {"area": 390}, []),
        (SQUARE_20, {"area": 40_000}, [FAR]),
        (RUNS_100, {"area": 100, "bbox": [0, 0, 1, 1]}, []),
        (RUNS_100, {"area": 1600}, [FAR]),
        ([[10, 10, 70, 10, 70, 50]], {}, ["outline beyond its image"]),
        ([[10, 10, 52, 10, 52, 41]], {}, []),
    ],
)
def test_outlines_far_from_what_their_annotation_says_are_warned_of(tmp_path, shape, more, expected):
    table, warnings = one_image(tmp_path, shape, image=LARGE, **more)
    assert [kind for kind, _ in warnings] == expected
    assert table.samples[0].mask is not None


@pytest.mark.parametrize(("side", "count", "warns"), [(20, 4, True), (20, 3, False), (32, 4, False)])
def test_outlines_drawn_on_smaller_images_are_warned_of(tmp_path, side, count, warns):
    shape = [[2, 2, side, 2, side, side, 2, side]]
    _, warnings = one_image(tmp_path, *[shape] * count, image=LARGE)
    assert [kind for kind, _ in warnings] == ["outlines in a corner of their images"] * warns


def category(number, name, over=None):
    return {"id": number, "name": name} | ({} if over is None else {"supercategory": over})


@pytest.mark.parametrize(
    ("categories", "classes", "warns"),
    [
        ([category(0, "cat", "none"), category(3, "cat", "cat"), category(17, "dog", "cat")], ("cat", "dog"), True),
        ([category(0, "pets", "none"), category(3, "cat", "pets"), category(17, "dog", "pets")], ("cat", "dog"), True),
        ([category(3, "cat", "cat"), category(17, "dog", "cat")], ("cat", "dog"), False),  # it has annotations
        ([category(3, "cat"), category(17, "dog"), category(20, "dog")], ("cat", "dog"), False),
        ([category(3, "cat"), category(17, "dog"), category(20, "eel", "eel")], ("cat", "dog", "eel"), False),
    ],
)
def test_a_category_that_only_stands_above_others_is_no_class(tmp_path, categories, classes, warns):
    write(tmp_path, train=content([(1, "a.jpg"), (2, "b.jpg")], [(1, 3, {}), (2, 17, {})], categories))
    table, warnings = warned(tmp_path)
    assert table.classes == classes and [sample.class_ids for sample in table.samples] == [(1,), (2,)]
    assert [kind for kind, _ in warnings] == ["category that is left out"] * warns
    table, warnings = warned(tmp_path, classes=("dog", "cat"))
    assert [sample.class_ids for sample in table.samples] == [(2,), (1,)] and warnings == []


def test_a_category_may_stand_twice_and_have_a_number_for_a_name(tmp_path):
    categories = [category(3, 7), category(17, "dog"), category("3", "7")]
    write(tmp_path, train=content([(1, "a.jpg")], [(1, 3, {})], categories))
    table, warnings = warned(tmp_path)
    assert table.classes == ("7", "dog") and table.samples[0].class_ids == (1,) and warnings == []


def test_categories_of_one_name_are_one_class_if_the_settings_name_it(tmp_path):
    categories = [category(3, "cat"), category(17, "dog"), category(20, "cat")]
    write(tmp_path, train=content([(1, "a.jpg")], [(1, 3, {}), (1, 20, {}), (1, 17, {})], categories))
    table, warnings = warned(tmp_path, classes=("cat", "dog"))
    assert table.samples[0].class_ids == (1, 2) and warnings == []
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert warned(tmp_path)[0].samples[0].class_ids == (1, 2)


@pytest.mark.parametrize("name", ["background", "Background", "_background_", "BACKGROUND"])
@pytest.mark.parametrize("number", [0, 5, 99])
def test_background_by_any_name_and_id_is_no_class(tmp_path, name, number):
    categories = [category(number, name), category(3, "cat"), category(17, "dog")]
    write(tmp_path, train=content([(1, "a.jpg")], [(1, number, {}), (1, 17, {})], categories))
    table, _ = warned(tmp_path)
    assert table.classes == ("cat", "dog") and table.samples[0].class_ids == (2,)


def test_what_labelme_ignores_is_undecided(tmp_path):
    categories = [category(-1, "__ignore__"), category(0, "_background_"), category(3, "cat")]
    small = {"segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]]}
    write(tmp_path, train=content([(1, "a.png")], [(1, -1, {}), (1, 3, small)], categories))
    (tmp_path / "train").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "train" / "a.png")
    table, _ = warned(tmp_path)
    assert table.classes == ("cat",) and table.samples[0].class_ids == (1,)
    assert sample_mask(table.samples[0], 1).tolist() == [[1, 255, 255, 0, 0], [255, 255, 255, 0, 0], [0] * 5, [0] * 5]


@pytest.mark.parametrize("name", ["_background_", "__background__", "Background"])
def test_categories_of_the_background_are_no_classes_and_told(tmp_path, name):
    categories = [{"id": 0, "name": name}, {"id": 1, "name": "__ignore__"}, *CATEGORIES]
    whole = {"segmentation": {"size": [4, 5], "counts": [0, 20]}}
    part = {"segmentation": {"size": [4, 5], "counts": [12, 4, 4]}}
    write(tmp_path, train=content([(1, "a.png")], [(1, 0, whole), (1, 1, part), (1, 17, {})], categories))
    (tmp_path / "train").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "train" / "a.png")
    problems = AllProblems()
    table = table_of(tmp_path, problems)
    assert table.classes == ("zebra", "cat", "dog") and table.samples[0].class_ids == (2,) and not problems.errors
    assert [problem.kind for problem in problems.warnings] == ["name that is no class"] * 2
    assert sample_mask(table.samples[0], 3).tolist() == [[2, 2, 2, 255, 0]] * 2 + [[0, 0, 0, 255, 0]] * 2


def test_a_file_that_is_a_link_out_of_the_root_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    write(root, train=content([(1, "a.jpg")]))
    (root / "annotations/instances_train.json").rename(tmp_path / "outside.json")
    (root / "annotations/instances_train.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(DataError, match=r"instances_train\.json leads out of the data root .* by a symbolic link"):
        table_of(root)


def test_images_that_systems_make_are_left_out(tmp_path):
    write(tmp_path, train=content([(1, "@eaDir/a.jpg/thumb.jpg"), (2, "a.jpg"), (3, "._a.jpg")]))
    problems = AllProblems()
    assert [sample.id for sample in table_of(tmp_path, problems).samples] == ["train/a"]
    assert [problem.kind for problem in problems.warnings] == ["file left out"] * 2 and not problems.errors


def test_files_named_in_another_unicode_form_are_found(tmp_path):
    write(tmp_path, train=content([(1, "\u00e9.jpg")]))
    (tmp_path / "train").mkdir()
    (tmp_path / "train/e\u0301.jpg").touch()
    problems = AllProblems()
    assert table_of(tmp_path, problems).samples[0].image.is_file()
    assert [problem.kind for problem in problems.warnings] == ["name written in another way"]


def test_a_file_that_is_not_utf8_says_what_to_do(tmp_path):
    write(tmp_path, train=content())
    (tmp_path / "annotations/instances_train.json").write_bytes('{"images":\n ["Bär"]}'.encode("cp1252"))
    with pytest.raises(DataError, match=r"train\.json, line 2: byte 5 \(0xe4\) is not UTF-8; save the file as UTF-8$"):
        table_of(tmp_path)


def test_what_is_wrong_with_an_entry_is_told_without_kinds_of_ids(tmp_path):
    write(tmp_path, train=content([(1, "a.jpg")], [(None, 3, {})]))
    with pytest.raises(DataError, match=r"annotations\[0\]\.image_id: Input should be a valid integer; correct it$"):
        table_of(tmp_path)


def test_annotations_of_images_that_were_taken_out_are_left_out_and_told(tmp_path):
    """As after taking some of the images of a data set, and not their annotations."""
    write(tmp_path, train=content([(1, "a.jpg")], [(1, 3, {}), (7, 17, {}), (8, 17, {})]))
    table, warnings = warned(tmp_path)
    assert [sample.class_ids for sample in table.samples] == [(1,)]
    message = "annotations[1]: there is no image 7 in the file (1 more like this); it is left out"
    assert warnings == [("annotation without image", f"instances_train.json, {message}")]


NO_OUTLINE = {"segmentation": None}


@pytest.mark.parametrize(
    ("fields", "points"),
    [
        ({"point": [1.5, 2]}, [(1.5, 2)]),
        ({"points": [[1, 2], [3, 0]]}, [(1, 2), (3, 0)]),
        ({"keypoints": [1, 2, 2, 3, 3, 1, 0, 0, 0, 4, 0, 2], "num_keypoints": 3}, [(1, 2), (4, 0)]),
        ({"segmentation": [], "point": [1, 2]}, [(1, 2)]),
        ({"segmentation": SQUARE, "point": [1, 2]}, [(1, 2)]),
        ({"segmentation": SQUARE, "keypoints": [1, 2, 2]}, []),
        ({"point": None, "points": None, "keypoints": []}, []),
        ({"keypoints": [1, 2], "points": "1,2"}, []),
    ],
    ids=["point", "points", "keypoints", "empty outline", "with outline", "keypoints with outline", "none", "other"],
)
def test_points_of_annotations_are_clicks(tmp_path, fields, points):
    write(tmp_path, train=content([(1, "a.jpg")], [(1, 17, NO_OUTLINE | fields)]))
    problems = AllProblems()
    (sample,) = table_of(tmp_path, problems).samples
    assert [(click.x, click.y) for click in sample.clicks] == points
    assert {click.label for click in sample.clicks} <= {*sample.class_ids} == {2}
    assert all(click.source.endswith("instances_train.json, annotations[0]") for click in sample.clicks)
    assert (sample.mask is None) == (fields.get("segmentation") != SQUARE)
    assert not problems.errors and not problems.warnings


def test_points_of_the_background_and_polygons_beside_them(tmp_path):
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    categories = [*CATEGORIES, {"id": 1, "name": "background"}]
    annotations = [(1, 1, NO_OUTLINE | {"point": [4, 3]}), (1, 17, {}), (1, 90, NO_OUTLINE | {"point": [4, 0]})]
    write(tmp_path, train=content([(1, "a.png")], annotations, categories))
    (sample,) = table_of(tmp_path, images="").samples
    assert sample.mask is None and sample.class_ids == (2, 3)
    marks = sample_marks(sample, 3)
    found = {(x, y): (int(marks.labels[y, x]), int(marks.origin[y, x])) for x, y in [(4, 3), (1, 1), (4, 0)]}
    assert found == {(4, 3): (0, CLICK), (1, 1): (2, MASK), (4, 0): (3, CLICK)}


def test_points_that_are_none_are_left_out_with_a_warning(tmp_path):
    fields = NO_OUTLINE | {"points": [[1], [1, 2], ["x", 1], 3, [float("inf"), 1]]}
    write(tmp_path, train=content([(1, "a.jpg")], [(1, 17, fields)]))
    problems = AllProblems()
    (sample,) = table_of(tmp_path, problems).samples
    assert [(click.x, click.y) for click in sample.clicks] == [(1, 2)]
    assert [problem.kind for problem in problems.warnings] == ["point that is left out"] * 4
    assert "annotations[0].points: [1] is no point [x, y]" in problems.warnings[0].message

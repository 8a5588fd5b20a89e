import json
import os

import numpy as np
import pytest
from PIL import ExifTags, Image

from cam_pipeline.config import Config
from cam_pipeline.data.check.data_set import check_data, used_splits
from cam_pipeline.data.table import Sample

SIZE = (40, 50)  # height, width


@pytest.fixture
def data(tmp_path):
    """A data set without a mistake: three training images with masks and two classes, one image in `val`."""
    root = tmp_path / "data"
    root.mkdir()
    rows = [("a", "cat", "train"), ("b", "cat;dog", "train"), ("c", "", "train"), ("v", "dog", "val")]
    for number, (name, labels, _) in enumerate(rows):
        draw(root / f"{name}.png", number)
        save_mask(root / f"m{name}.png", {"cat": 1, "dog": 2}[label] if (label := labels[:3]) else 0, "dog" in labels)
    write(root, [f"{name}.png,{labels},m{name}.png,{split}" for name, labels, split in rows])
    return root


def draw(path, seed, size=SIZE):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def save_mask(path, label, dog=False, size=SIZE):
    mask = np.full(size, label, np.uint8)
    mask[:5] = 2 if dog else mask[:5]
    Image.fromarray(mask).save(path)


def write(root, rows):
    (root / "data.csv").write_text("\n".join(["image,labels,mask,split", *rows]) + "\n")


def add(root, *rows):
    with (root / "data.csv").open("a") as file:
        file.write("".join(f"{row}\n" for row in rows))


def check(root, **settings):
    sections = {"train_cls": {"batch_size": 2}, "train_seg": {"batch_size": 2}} | settings
    sections["data"] = {"root": root} | sections.get("data", {})
    return check_data(Config.model_validate(sections), workers=1)


def kinds(problems):
    return [problem.kind for problem in problems]


def test_a_sound_data_set(data):
    before = {path: path.read_bytes() for path in data.parent.rglob("*") if path.is_file()}
    found = check(data)
    assert not found.errors and not found.warnings
    assert found.classes == ("cat", "dog") and found.sizes == (SIZE,) * 4
    train, val = found.splits
    assert (train.name, train.images, train.unlabelled, train.masks) == ("train", 3, 0, 3)
    assert train.by_class == {1: 2, 2: 1} and train.by_number == {0: 1, 1: 1, 2: 1}
    assert (val.name, val.images, val.by_class) == ("val", 1, {2: 1})
    assert {path: path.read_bytes() for path in data.parent.rglob("*") if path.is_file()} == before


def test_the_cost_of_a_run(data):
    found = check(
        data,
        train_cls={"batch_size": 2, "epochs": 7},
        train_seg={"batch_size": 3, "epochs": 4},
        cam={"scales": [1, 2, 3]},
    )
    assert dict(found.costs) == {
        "train_cls": "7 steps: 7 epochs of 1 step, 2 images in each",
        "extract_cams": "18 views: 3 images, 3 scales and their mirror images",
        "refine_cams": "3 images through the CRF",
        "train_seg": "4 steps: 4 epochs of 1 step, 3 images in each",
        "scores.h5": "at most 1 MB (before compression)",
        "pseudo_labels.h5": "at most 1 MB (before compression)",
    }
    files = [name for name, _ in check(data, train_seg={"soft_labels": True}).costs if name.endswith(".h5")]
    assert files == ["scores.h5", "soft_scores.h5", "pseudo_labels.h5"]


@pytest.mark.parametrize(
    ("settings", "views"),
    [
        ({"scales": [1], "flip": False}, "3 views: 3 images, 1 scale"),
        ({"scales": [1]}, "6 views: 3 images, 1 scale and its mirror image"),
        ({"scales": [1, 2], "flip": False, "splits": ["val"]}, "2 views: 1 image, 2 scales"),
    ],
)
def test_costs_are_written_in_the_singular_where_there_is_one(data, settings, views):
    found = dict(check(data, cam=settings, train_cls={"batch_size": 3, "epochs": 1}).costs)
    assert found["extract_cams"] == views and found["train_cls"] == "1 step: 1 epoch of 1 step, 3 images in each"


def test_everything_wrong_is_told_at_once(data):
    whole = (data / "a.png").read_bytes()
    (data / "a.png").write_bytes(whole[: len(whole) // 2])
    (data / "b.png").unlink()
    save_mask(data / "mc.png", 7)
    save_mask(data / "mv.png", 2, size=(50, 40))
    draw(data / "d.png", 9)
    add(data, "d.png,?,,train", "e.png,cow,,train", "d.png,cat,,val", "d.jpg,cat,,val", "../x.png,cat,,val")
    add(data, "gone.png,cat,mgone.png,val", "v2.png,cat;?,gone.png,val", "only,two")
    draw(data / "v2.png", 10)
    found = check(data, data={"classes": ["cat", "dog"]})
    messages = {problem.kind: problem.message for problem in found.errors}
    assert kinds(found.errors) == [
        "row that cannot be read", "unknown class", "duplicate id", "two images with one stem",
        "outside the data root", "label that contradicts itself",
        "image that cannot be read", "label without image", "mask that cannot be used", "mask that cannot be used",
        "label without image", "label without image", "missing mask file", "training image without labels",
    ]  # fmt: skip
    table = data / "data.csv"
    assert messages["image that cannot be read"].startswith(f"{data / 'a.png'} cannot be read as an image (")
    assert messages["image that cannot be read"].endswith(f"({table}, line 2)")
    assert f"({table}, line 11): there is no file {data / 'gone.png'}; restore it" in [
        problem.message.removeprefix("image gone ").split(", or")[0] for problem in found.errors
    ]
    assert "(looked for " in messages["missing mask file"] and "line 12" in messages["missing mask file"]
    masks = [problem.message for problem in found.errors if problem.kind == "mask that cannot be used"]
    assert "value 7 is neither 0..2 nor 255" in masks[0] and "the mask is (50, 40), its image is (40, 50)" in masks[1]
    assert "image d of split 'train' has no image-level labels" in messages["training image without labels"]


def test_what_stops_reading_is_the_last_mistake(data):
    assert [problem.message for problem in check(data / "nowhere").errors] == [
        f"data.root: there is no folder {data / 'nowhere'}; set it with --set data.root=FOLDER"
    ]
    write(data, ["only,two"])
    found = check(data)
    assert kinds(found.errors) == ["row that cannot be read", "data set that cannot be read"]
    assert not found.splits and not found.costs


def test_splits_that_the_config_does_not_use_only_give_warnings(data):
    add(data, "gone.png,cat,,test")
    found = check(data)
    assert not found.errors and kinds(found.warnings) == ["label without image"]
    found = check(data, cam={"splits": ["train", "test"]})
    assert kinds(found.errors) == ["label without image"] and not found.warnings


def test_splits_without_images(data):
    found = check(data, data={"train": "trian", "val": "vla"}, cam={"splits": ["train"]})
    assert kinds(found.errors) == ["split without images"] * 2
    assert "no images in split 'trian' (it has: train, val); see data.train" in found.errors[0].message
    assert "no images in split 'vla' (it has: train, val); set data.val to one that" in found.errors[1].message
    assert dict(found.costs)["train_cls"] == "no images"
    write(data, ["a.png,cat,ma.png,train", "b.png,dog,,train", "c.png,,,train"])
    found = check(data)
    assert not found.errors and [one.message for one in found.warnings if one.kind == "split without images"] == [
        "no images in split 'val', so training reports no mAP and F1"
    ]
    write(data, [])
    empty = check(data, data={"classes": ["cat"]})
    assert "it has no images at all" in empty.errors[0].message and not empty.sizes


def test_masks_must_be_there_only_to_train_on_them(data):
    write(data, ["a.png,cat,,train", "b.png,cat;dog,mb.png,train", "c.png,,,train", "v.png,dog,,val"])
    assert not check(data).errors
    found = check(data, train_seg={"batch_size": 2, "supervision": "masks"})
    assert kinds(found.errors) == ["training image without mask"] * 2
    assert "image a of split 'train' has no mask" in found.errors[0].message


def test_there_must_be_marks_to_mix(data):
    write(data, ["a.png,cat,,train", "b.png,cat;dog,,train", "c.png,,,train", "v.png,dog,,val"])
    mixed = {"train_seg": {"batch_size": 2, "supervision": "mixed"}}
    assert kinds(check(data, **mixed).errors) == ["training split without a click or scribble"]
    (data / "clicks.csv").write_text("image,x,y,class\na.png,1,1,cat\n")
    assert not check(data, **mixed, data={"clicks": "clicks.csv"}).errors


def test_a_split_without_any_mask_is_warned_of(data):
    write(data, ["a.png,cat,ma.png,train", "b.png,cat;dog,,train", "c.png,,,train", "v.png,dog,,val"])
    found = check(data)
    assert not found.errors and [(one.kind, one.message) for one in found.warnings] == [
        ("split without masks", "no image of split 'val' has a mask: evaluate has nothing to compare with there")
    ]
    assert not check(data, data={"val": ""}).warnings
    write(data, ["a.png,cat,,train", "b.png,cat;dog,,train", "c.png,,,train", "v.png,dog,mv.png,val"])
    assert kinds(check(data).warnings) == ["split without masks"]
    assert not check(data, cam={"splits": ["val"]}).warnings  # evaluate opens only masks of val then


def test_maps_to_be_merged_must_be_there(data, tmp_path):
    (tmp_path / "cams.h5").touch()
    found = check(data, refine={"merge_with": [tmp_path / "cams.h5", tmp_path / "nix.h5"]})
    assert [(problem.kind, problem.message) for problem in found.errors] == [
        (
            "missing file of maps",
            f"refine.merge_with: there is no file {tmp_path / 'nix.h5'}; make the CAMs of that run first",
        )
    ]


def test_classes_whose_names_are_nearly_alike(data):
    write(data, ["a.png,cat,ma.png,train", "b.png,Cat;é,,train", "c.png,e\u0301,,train", "v.png,cat,mv.png,val"])
    found = check(data, data={"classes": ["cat", "Cat", "é", "e\u0301"]})
    alike = [one.message for one in found.warnings if one.kind == "classes with nearly the same name"]
    assert len(alike) == 2 and alike[0].startswith("'cat' and 'Cat' differ only in case or Unicode form; use one")
    assert alike[1].startswith("'é' and 'e\u0301' differ")


def test_fewer_images_than_a_batch(data):
    found = check(data, train_cls={"batch_size": 4})
    assert not found.errors and kinds(found.warnings) == ["fewer images than a batch"]
    assert "3 training images, train_cls.batch_size = 4: each step takes them all" in found.warnings[0].message
    write(data, ["b.png,cat;dog,,train", "v.png,dog,,val"])
    found = check(data)
    assert (
        kinds(found.errors) == ["too few images"]
        and "there are 1, train_seg.batch_size is 2" in found.errors[0].message
    )
    assert not check(data, segmenter={"architecture": "deeplabv2"}).errors


def test_fewer_images_than_a_batch_that_is_seen_in_parts(data):
    found = check(data, train_cls={"batch_size": 4, "accumulate": 2})
    assert kinds(found.errors) == ["batch that cannot be divided"]
    assert found.errors[0].message == (
        "train_cls.accumulate = 2, but the 3 images of a batch cannot be divided into so many equal parts; change it, "
        "or train_cls.batch_size"
    )
    assert not check(data, train_cls={"batch_size": 6, "accumulate": 3}).errors
    found = check(data, train_seg={"batch_size": 2, "accumulate": 2})
    assert kinds(found.errors) == ["too few images"]
    assert "train_seg.batch_size is 2, train_seg.accumulate is 2; change these" in found.errors[0].message


def test_classes_without_images(data):
    write(data, ["a.png,cat,,train", "c.png,,,train", "v.png,dog,,val"])
    found = check(data, data={"classes": ["cat", "dog", "eel"]})
    assert not found.errors
    warnings = [problem for problem in found.warnings if problem.kind != "split without masks"]
    assert [problem.message.split(":")[0] for problem in warnings[:2]] == ["dog", "eel"]
    assert warnings[2].message == f"image v ({data / 'data.csv'}, line 4) shows dog"


def test_one_class_needs_negatives(data):
    write(data, ["a.png,cat,ma.png,train", "b.png,cat,,train"])
    save_mask(data / "ma.png", 1)
    found = check(data, data={"val": ""})
    assert not found.errors and kinds(found.warnings) == ["one class and no negatives"]
    add(data, "c.png,,,train")
    assert not check(data, data={"val": ""}).warnings


def test_small_images_and_pictures_that_come_twice(data):
    draw(data / "tiny.png", 5, (31, 200))
    for name, source in (("copy", "a"), ("leak", "b")):
        os.link(data / f"{source}.png", data / f"{name}.png")
    add(data, "tiny.png,cat,,train", "copy.png,dog,,train", "leak.png,cat;dog,,val")
    found = check(data)
    assert not found.errors
    assert kinds(found.warnings) == [
        "image with a side of less than 32 pixels", "same image twice in a split", "same image in two splits",
    ]  # fmt: skip
    assert found.warnings[0].message.startswith(f"{data / 'tiny.png'}: 200 x 31 pixels")
    assert found.warnings[1].message == f"{data / 'a.png'} (train) and {data / 'copy.png'} (train), with other labels"
    assert found.warnings[2].message == f"{data / 'b.png'} (train) and {data / 'leak.png'} (val)"


def test_masks_and_labels_that_disagree(data):
    save_mask(data / "ma.png", 2)
    assert [problem.message for problem in check(data).warnings] == [
        f"image a ({data / 'data.csv'}, line 2): dog only in the mask; cat only in the labels"
    ]
    mask = np.full(SIZE, 2, np.uint8)
    mask[0, 0] = 255  # which may hide the cat
    Image.fromarray(mask).save(data / "ma.png")
    assert "line 2): dog only in the mask" in check(data).warnings[0].message
    assert "only in the labels" not in check(data).warnings[0].message


def test_coco_masks_are_checked_as_well(data):
    annotations = [{"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9]]}]
    images = [{"id": 1, "file_name": "a.png", "height": 50, "width": 40}]
    (data / "x.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]})
    )
    settings = {"format": "coco", "annotations": "x.json", "images": "", "val": ""}
    found = check(data, data=settings, segmenter={"architecture": "deeplabv2"})
    assert [problem.message for problem in found.errors] == [
        f"{data / 'x.json'}, image 1: the mask is (50, 40), its image is (40, 50) (height, width); "
        "correct height and width of the entry, or replace the image"
    ]


@pytest.mark.parametrize(("orientation", "expected"), [(3, ["COCO image that is turned by EXIF"]), (1, [])])
def test_coco_images_that_exif_turns_are_told(data, orientation, expected):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with Image.open(data / "a.png") as image:
        image.save(data / "a.png", exif=exif)
    annotations = [{"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 49, 0, 49, 39]]}]
    images = [
        {"id": number, "file_name": f"{name}.png", "height": 40, "width": 50} for number, name in enumerate("ab", 1)
    ]
    (data / "x.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]})
    )
    found = check(data, data={"format": "coco", "annotations": "x.json", "images": "", "val": ""})
    assert not found.errors and kinds(found.warnings) == expected
    assert all(f"{data / 'a.png'}: EXIF turns it upright" in problem.message for problem in found.warnings)


def test_used_splits():
    config = Config.model_validate({"data": {"val": ""}, "cam": {"splits": ["val", "train"]}})
    assert used_splits(config) == ("train", "val")
    assert used_splits(Config()) == ("train", "val")


def test_masks_of_nought_and_255_are_a_mistake_only_if_they_are_needed(data):
    for name in "abv":
        Image.fromarray(np.pad(np.zeros((30, 50), np.uint8), ((0, 10), (0, 0)), constant_values=255)).save(
            data / f"m{name}.png"
        )
    found = check(data)
    assert not found.errors and kinds(found.warnings) == ["masks without a class"] * 2
    assert "no mask of split 'train' has a pixel of a class: they hold 0 and 255, and 255 " in found.warnings[0].message
    found = check(data, train_seg={"batch_size": 2, "supervision": "masks"})
    assert kinds(found.errors) == kinds(found.warnings) == ["masks without a class"]
    by_masks = {"background": "from-split", "background_split": "val"}
    found = check(data, refine=by_masks, cam={"splits": ["train", "val"]})
    assert "split 'val'" in found.errors[0].message and "split 'train'" in found.warnings[0].message


def test_masks_with_loss_and_palettes_that_differ(data):
    Image.fromarray(np.ones(SIZE, np.uint8)).save(data / "ma.png", format="JPEG")
    for name, colours in (("b", [0, 0, 0, 9, 9, 9, 7, 7, 7]), ("v", [0, 0, 0, 7, 7, 7, 9, 9, 9])):
        with Image.open(data / f"m{name}.png") as mask:
            mask.putpalette(colours)
            mask.save(data / f"m{name}.png")
    found = check(data)
    assert [problem.message for problem in found.errors] == [
        f"{data / 'ma.png'}: a mask in JPEG has wrong numbers at every edge; make it again from its source, as PNG "
        f"({data / 'data.csv'}, line 2)"
    ]
    assert kinds(found.warnings) == ["palettes that disagree"]
    found = check(data, data={"colors": ["#000000", "#090909", "#070707"]})
    assert "palettes that disagree" not in kinds(found.warnings)


def test_images_of_sixteen_bits_that_look_black(data):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, SIZE).astype(np.uint16)).save(data / "a.png")
    found = check(data)
    assert not found.errors and kinds(found.warnings) == ["images that look black"]
    assert found.warnings[0].message.startswith("1 of 1 images of 16 bits use less than 1/16 of their range")


def test_a_file_is_decoded_once(data, monkeypatch):
    from cam_pipeline.data.check.image import inspect

    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **more: opened.append(path) or original(path, **more))
    image = Sample("a", data / "a.png", "train", (1,), data / "ma.png")
    assert inspect(image, ("cat", "dog")).mask.pixels == {1: SIZE[0] * SIZE[1]}
    assert opened.count(data / "ma.png") == 1
    assert opened.count(data / "a.png") <= 2  # its size is remembered, but a PNG may hide its orientation


def save_scribble(path, *strokes, rest=255, size=SIZE):
    numbers = np.full(size, rest, np.uint8)
    for row, label in enumerate(strokes):
        numbers[row, 3:9] = label
    Image.fromarray(numbers).save(path)


def with_scribbles(root, **cells):
    """Give images a scribble each by their name; the others have none."""
    lines = (root / "data.csv").read_text().splitlines()
    rows = [f"{line},{cells.get(line[0], '')}" for line in lines[1:]]
    (root / "data.csv").write_text("\n".join([f"{lines[0]},scribble", *rows]) + "\n")


def test_sound_marks_are_counted(data):
    save_scribble(data / "s.png", 0, 1)
    (data / "s.xml").write_text(
        "<annotation><polygon><tag>dog</tag><point><X>1</X><Y>1</Y></point></polygon></annotation>"
    )
    (data / "clicks.csv").write_text("image,x,y,class\na,1,1,cat\na,3,1,background\nv,49,39,2\n")
    with_scribbles(data, a="s.png", b="s.xml")
    found = check(data, data={"clicks": "clicks.csv"})
    assert not found.errors and not found.warnings
    assert [(split.clicks, split.clicked, split.scribbles) for split in found.splits] == [(1, 2, 2), (1, 1, 0)]


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda path: None, "missing scribble file", "there is no scribble"),
        (lambda path: save_scribble(path, 3), "scribble that cannot be used", "value 3 is neither 0..2 nor 255"),
        (
            lambda path: save_scribble(path, 1, size=(4, 4)),
            "scribble that cannot be used",
            r"is for an image of (4, 4)",
        ),
        (lambda path: path.write_text("no image"), "scribble that cannot be used", "cannot be read"),
    ],
    ids=["missing", "number", "size", "damaged"],
)
def test_scribbles_at_which_a_run_would_stop(data, make, kind, words):
    make(data / "s.png")
    with_scribbles(data, a="s.png")
    found = check(data)
    assert kinds(found.errors) == [kind] and words in found.errors[0].message and "line 2" in found.errors[0].message


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda path: save_scribble(path, 2), "scribble and labels that disagree", "dog only in the scribble"),
        (lambda path: save_scribble(path), "scribble without a stroke", "every pixel is 255"),
        (lambda path: save_scribble(path, 1, rest=0), "scribble that leaves no pixel open", "0 means background"),
    ],
    ids=["labels", "empty", "full"],
)
def test_doubtful_scribbles(data, make, kind, words):
    make(data / "s.png")
    with_scribbles(data, a="s.png")
    found = check(data)
    assert not found.errors
    assert (
        kinds(found.warnings) == [kind] and words in found.warnings[0].message and "line 2" in found.warnings[0].message
    )


def test_an_unknown_tag_is_named_with_its_file(data):
    (data / "s.xml").write_text(
        "<annotation><polygon><tag>cow</tag><point><X>1</X><Y>1</Y></point></polygon></annotation>"
    )
    with_scribbles(data, a="s.xml")
    (error,) = check(data).errors
    assert "s.xml, polygon 1: unknown class 'cow'; the classes are cat, dog" in error.message


def test_clicks_that_are_wrong(data):
    (data / "clicks.csv").write_text(
        "image,x,y,class\na,1,1,cat\na,2,1,dog\na,1,1,background\na,300,1,cat\nb,1,1,cow\nb,1,x,dog\nz,1,1,cat\n"
    )
    found = check(data, data={"clicks": "clicks.csv"})
    assert kinds(found.errors) == ["unknown class", "click that cannot be read", "click that contradicts the labels"]
    assert "clicks.csv, line 3: a click on dog, but the labels of image a are cat" in found.errors[2].message
    assert kinds(found.warnings) == ["click without image", "click off the image", "two classes clicked on one pixel"]
    assert "clicks.csv, line 5: the click at x 300, y 1 is off the image a of 50 x 40" in found.warnings[1].message
    assert "clicks.csv, line 4: background, and cat before it, on one pixel" in found.warnings[2].message


def test_training_on_marks_needs_some(data):
    chosen = {"train_seg": {"batch_size": 2, "supervision": "scribbles"}}
    (found,) = check(data, **chosen).errors
    assert found.kind == "training split without a click or scribble"
    assert found.message.startswith("train_seg.supervision = 'scribbles': no image of split 'train' has a click or")
    (data / "clicks.csv").write_text("image,x,y,class\na,20,20,cat\nv,20,20,dog\n")
    found = check(data, data={"clicks": "clicks.csv"}, **chosen)
    assert not found.errors
    (warning,) = [one for one in found.warnings if one.kind == "training images without click and scribble"]
    assert warning.message == "2 of 3 training images have no click and no scribble: b, c"
    assert not check(data, data={"clicks": "clicks.csv"}).warnings


def test_clicks_on_an_image_that_is_turned_upright_are_worth_a_look(data):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(data / "c.png") as image:
        image.save(data / "c.png", exif=exif)
    save_mask(data / "mc.png", 0, size=SIZE[::-1])
    (data / "clicks.csv").write_text("image,x,y,class\nc,39,49,background\n")
    found = check(data, data={"clicks": "clicks.csv"})
    assert not found.errors and kinds(found.warnings) == ["image with clicks that is turned by EXIF"]


@pytest.mark.parametrize("wrong", [0, 2, 3])
def test_clicks_that_masks_deny(data, wrong):
    """More than two, and more than people get wrong: the mask of b is `dog` in its upper five rows, else `cat`."""
    rows = ["b,9,2,cat"] * wrong + ["b,2,9,cat", "b,9,2,dog", "b,0,300,dog"] * 4
    (data / "clicks.csv").write_text("\n".join(["image,x,y,class", *rows]) + "\n")
    warnings = [one.message for one in check(data, data={"clicks": "clicks.csv"}).warnings if "masks deny" in one.kind]
    assert len(warnings) == (wrong == 3)
    for message in warnings:
        assert (
            message.startswith("3 of 11 clicks on images with masks (27 %)")
            and "clicks.csv, line 2 (cat, the mask has dog)" in message
        )

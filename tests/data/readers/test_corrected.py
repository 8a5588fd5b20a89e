import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.marks import inspect_marks
from cam_pipeline.data.check.problems import AllProblems, Problems
from cam_pipeline.data.digest import FileDigests, data_digest
from cam_pipeline.data.marks import CORRECTED, has_marks, sample_marks
from cam_pipeline.data.readers import load_table
from cam_pipeline.errors import DataError
from cam_pipeline.export.formats import WRITERS
from cam_pipeline.export.label_maps import label_map, write_label_maps

HEIGHT, WIDTH = 6, 9
CLASSES = ("cat", "dog")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    (folder / "img").mkdir(parents=True)
    for name in "abc":
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "img" / f"{name}.png")
    (folder / "data.csv").write_text("image,labels\nimg/a.png,cat\nimg/b.png,?\nimg/c.png,\n")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return folder


@pytest.fixture
def load(root):
    def load(corrected="", problems=None):
        return load_table(DataSettings(root=root, corrected=str(corrected)), problems)

    return load


@pytest.fixture
def labels():
    found = np.zeros((HEIGHT, WIDTH), np.uint8)
    found[1:3, 2:5], found[4, 4], found[5] = 1, 2, 255
    return found


@pytest.fixture
def corrected(root, load, labels, tmp_path):
    """Writes labels of some images in a format, and gives the folder."""

    def write(target, ids=("img/a",), labels=labels, classes=CLASSES):
        maps = [label_map(sample, labels, root) for sample in load().samples if sample.id in ids]
        folder = tmp_path / f"corrected {target}"
        shutil.rmtree(folder, ignore_errors=True)
        write_label_maps(WRITERS[target], maps, classes, folder)
        return folder

    return write


MASKS = [name for name in WRITERS if name != "yolo"]


@pytest.mark.parametrize("target", MASKS)
def test_a_corrected_map_is_what_is_said_about_its_image(target, corrected, load, labels):
    table = load(corrected(target))
    marks = sample_marks(table.samples[0], 2)
    assert np.array_equal(marks.labels, labels)
    assert (marks.origin == CORRECTED).all()
    assert [has_marks(sample) for sample in table.samples] == [True, False, False]


@pytest.mark.parametrize("target", MASKS)
def test_a_class_that_a_correction_shows_is_a_label(target, corrected, load):
    problems = Problems()
    table = load(corrected(target, ("img/a", "img/b", "img/c")), problems)
    assert [sample.class_ids for sample in table.samples] == [(1, 2), (1, 2), (1, 2)]
    kinds = [problem.kind for problem in problems.warnings]
    assert kinds == ["class that a correction adds"] * 2
    assert "shows dog, which the labels of image img/a lack" in problems.warnings[0].message


@pytest.mark.parametrize("target", list(WRITERS))
def test_a_map_of_background_makes_unknown_labels_none_and_is_doubted_otherwise(target, corrected, load):
    problems = Problems()
    empty = np.zeros((HEIGHT, WIDTH), np.uint8)
    table = load(corrected(target, ("img/a", "img/b"), empty), problems)
    assert [sample.class_ids for sample in table.samples] == [(1,), (), ()]
    assert [problem.kind for problem in problems.warnings] == ["correction without a class"]


@pytest.mark.parametrize("target", list(WRITERS))
def test_an_unknown_class_is_named_with_the_likely_one(target, corrected, load):
    with pytest.raises(DataError, match=r"corrected .*unknown class 'Dog'; did you mean 'dog'\?"):
        load(corrected(target, classes=("cat", "Dog")))


@pytest.mark.parametrize("target", list(WRITERS))
def test_classes_are_matched_by_name(target, corrected, load, labels):
    labels[labels == 255] = 0
    marks = sample_marks(load(corrected(target, classes=("dog", "cat"))).samples[0], 2)
    assert np.array_equal(marks.labels, np.array([0, 2, 1])[labels])


@pytest.mark.parametrize("target", list(WRITERS))
def test_an_image_that_the_data_lack_is_named(target, corrected, load, root):
    folder = corrected(target, ("img/a", "img/c"))
    (root / "data.csv").write_text("image,labels\nimg/a.png,cat\n")
    problems = Problems()
    load(folder, problems)
    assert "the data set has no image" in problems.warnings[0].message and "img/c" in problems.warnings[0].message
    (root / "data.csv").write_text("image,labels\nimg/b.png,cat\n")
    with pytest.raises(DataError, match=r"has no image img/a.*name corrections by ids"):
        load(folder)


@pytest.mark.parametrize("target", MASKS)
def test_a_correction_of_another_size_is_named(target, corrected, load, root):
    folder = corrected(target)
    Image.new("RGB", (WIDTH + 1, HEIGHT)).save(root / "img" / "a.png")
    sample = load(folder).samples[0]
    problems = AllProblems()
    inspect_marks(sample, CLASSES, HEIGHT, WIDTH + 1, problems)
    [found] = problems.errors
    assert found.kind == "correction that cannot be used"
    assert "the correction is for an image of (6, 9), image img/a is (6, 10) (height, width)" in found.message


@pytest.mark.parametrize("target", list(WRITERS))
def test_the_digest_of_an_image_changes_with_its_correction_alone(target, corrected, load, labels, tmp_path):
    def digests():
        known = FileDigests(tmp_path / "digests.json")
        return [data_digest(CLASSES, [one], known, labels=False, marks=True) for one in load(folder).samples]

    folder = ""
    without = digests()
    folder = corrected(target)
    first = digests()
    assert [one == other for one, other in zip(without, first, strict=True)] == [False, True, True]
    labels[0, 0] = 2
    folder = corrected(target)
    assert [one == other for one, other in zip(first, digests(), strict=True)] == [False, True, True]


def test_what_is_not_there_or_of_no_kind(load, root, tmp_path):
    with pytest.raises(DataError, match=r"data.corrected: there is no file or folder .*/corected; correct it"):
        load("corected")
    (root / "empty").mkdir()
    (root / "empty" / "a.txt").write_text("x")
    with pytest.raises(DataError, match="empty is of no known kind"):
        load("empty")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match=r"a.json cannot be read as JSON"):
        load(tmp_path / "a.json")


def test_numbers_of_png_without_classes_are_labels(load, root):
    (root / "corrected" / "img").mkdir(parents=True)
    Image.fromarray(np.full((HEIGHT, WIDTH), 2, np.uint8)).save(root / "corrected" / "img" / "a.png")
    assert (sample_marks(load("corrected").samples[0], 2).labels == 2).all()


def test_two_corrections_of_one_image(load, root):
    for folder in ("img", "more/img"):
        (root / "corrected" / folder).mkdir(parents=True)
        Image.new("L", (WIDTH, HEIGHT)).save(root / "corrected" / folder / "a.png")
    with pytest.raises(DataError, match="are both of image img/a; delete one"):
        load("corrected")


def test_points_and_rectangles_of_labelme_are_left_out(load, root, corrected):
    path = corrected("labelme") / "img" / "a.json"
    content = json.loads(path.read_text())
    content["shapes"] += [
        {"label": "cat", "shape_type": "point", "points": [[0, 0]]},
        {"label": "cat", "shape_type": "rectangle", "points": [[0, 0], [8, 5]]},
        {"label": "dog", "shape_type": "polygon", "points": [[0, 0], [2, 0], [2, 1], [0, 1]]},
    ]
    path.write_text(json.dumps(content))
    problems = Problems()
    marks = sample_marks(load(path.parents[1], problems).samples[0], 2)
    assert marks.labels[0].tolist() == [2, 2, 0, 0, 0, 0, 0, 0, 0]
    assert [problem.kind for problem in problems.warnings][:2] == ["shape that is left out"] * 2


def reported(load, place):
    """What loading a correction reports, and the labels of the first image."""
    problems = AllProblems()
    sample = load(place, problems).samples[0]
    found = [*problems.errors, *problems.warnings]
    labels = sample_marks(sample, 2).labels if sample.corrected is not None else None
    return [(problem.kind, problem.message.partition(": ")[2]) for problem in found], labels


CVAT = """<annotations><image id="0" name="photos/img/a.png" width="9" height="6">
<polygon label="dog" points="1,1;4,1;4,3;1,3" z_order="2"/>
<mask label="cat" rle="0, 6" left="0" top="0" width="2" height="3" z_order="1"/>{}</image></annotations>"""


@pytest.mark.parametrize("zipped", [False, True])
def test_cvat_draws_by_z_order_and_reads_its_zip(load, tmp_path, zipped):
    path = tmp_path / ("task.zip" if zipped else "annotations.xml")
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("annotations.xml", CVAT.format(""))
    else:
        path.write_text(CVAT.format(""))
    _, labels = reported(load, path)
    assert labels[:4, :5].tolist() == [[1, 1, 0, 0, 0], [1, 2, 2, 2, 0], [1, 2, 2, 2, 0], [0] * 5]


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ('<box label="cat" xtl="0"/>', "shape that is left out", "a box is no region; draw a mask or a polygon"),
        ('<mask label="cow" rle="1"/>', "unknown class", "unknown class 'cow'; the classes are cat, dog"),
        ('<polygon label="cat" points="1,1;2,2"/>', "shape that cannot be used", "the polygon cannot be read (a polyg"),
        (
            '<mask label="cat" rle="1" left="0" top="0" width="2" height="2"/>', "shape that cannot be used",
            "the mask cannot be read (its run lengths do not fill its box)",
        ),
    ],
)  # fmt: skip
def test_a_shape_of_cvat_that_cannot_be_used_is_named(load, tmp_path, shape, kind, message):
    path = tmp_path / "annotations.xml"
    path.write_text(CVAT.format(shape))
    found, labels = reported(load, path)
    assert found[0][0] == kind and found[0][1].startswith(message)
    assert (labels > 0).sum() == 10


def test_no_annotations_of_images(load, tmp_path):
    path = tmp_path / "a.xml"
    path.write_text("<annotation/>")
    with pytest.raises(DataError, match=r"export it from CVAT as 'CVAT for images 1.1'"):
        load(path)


def task(image, *regions, **more):
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    return {"data": {"image": image}, "annotations": [{"result": [size | region for region in regions]}], **more}


UPPER_HALF = [[0, 0], [100, 0], [100, 50], [0, 50]]
HALF = {"type": "polygonlabels", "value": {"polygonlabels": ["dog"], "points": UPPER_HALF}}


@pytest.mark.parametrize(
    "image", ["/data/upload/3/0123abcd-a.png", "/data/local-files/?d=img/a.png", "s3://bucket/img/a.png", "a.png"]
)
def test_polygons_and_images_of_label_studio(load, tmp_path, image):
    path = tmp_path / "export.json"
    path.write_text(json.dumps([task(image, HALF)]))
    found, labels = reported(load, path)
    assert found == [("class that a correction adds", found[0][1])]
    assert (labels[:3] == 2).all() and not labels[3:].any()


def test_what_label_studio_leaves_out(load, tmp_path):
    path = tmp_path / "export.json"
    brush = {"type": "brushlabels", "value": {"brushlabels": ["cat"], "rle": [0, 0, 0, 4]}}
    tasks = [task("a.png", {"type": "rectanglelabels", "value": {}}, brush), {"data": {"image": "b.png"}}, 7]
    path.write_text(json.dumps(tasks))
    found, _ = reported(load, path)
    assert [kind for kind, _ in found] == [
        "shape that cannot be used", "task that cannot be read", "shape that is left out", "task that is left out",
        "correction without a class",
    ]  # fmt: skip
    assert "its run lengths do not fill the image of 9 x 6 pixels" in found[0][1]


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("0 0 0 1 0 1 .5 0 .5", "", ""),
        ("0 .5 .5 1 1", "shape that is left out", "a box holds more than its object; draw a polygon"),
        ("7 0 0 1 0 1 1", "line that cannot be used", "class 7 has no name in data.yaml or data.yml or classes.txt"),
        ("cat 0 0 1 0 1 1", "line that cannot be used", "'cat' is no class"),
        ("0 0 0 9 0 9 6", "line that cannot be used", "a class and three points or more are expected, as shares"),
    ],
)
@pytest.mark.parametrize("names", ["data.yaml", "classes.txt"])
def test_lines_of_yolo(load, tmp_path, line, kind, message, names):
    folder = tmp_path / "yolo"
    (folder / "labels" / "img").mkdir(parents=True)
    (folder / names).write_text("names: [cat, dog]" if names == "data.yaml" else "cat\ndog\n")
    (folder / "labels" / "img" / "a.txt").write_text(f"{line}\n0 0 0 1 0 1 .5 0 .5\n")
    found, labels = reported(load, folder)
    assert [one for one, _ in found] == ([kind] if kind else [])
    assert not kind or found[0][1].startswith(message)
    assert (labels[:3] == 1).all() and not labels[3:].any()


def test_yolo_without_names(load, tmp_path):
    (tmp_path / "yolo" / "labels").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no file names the classes of its polygons; add data.yaml or classes.txt"):
        load(tmp_path / "yolo")
    (tmp_path / "yolo" / "data.yaml").write_text("nc: 2")
    with pytest.raises(DataError, match=r"data.yaml: it has no list of names"):
        load(tmp_path / "yolo")

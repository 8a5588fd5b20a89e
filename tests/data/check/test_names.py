import logging
from pathlib import Path

import pytest

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.names import check_names
from cam_pipeline.data.check.problems import AllProblems
from cam_pipeline.data.dataset import Dataset
from cam_pipeline.data.digest import FileDigests
from cam_pipeline.data.readers import VOC_CLASSES, load_table
from cam_pipeline.data.table import Sample, Table


def warnings_of(root, labels, header="image,labels", **settings):
    """(kind, message) of the warnings about the names in a table of {cells behind the image: number of rows}."""
    cells = [cell for cell, count in labels.items() for _ in range(count)]
    (root / "data.csv").write_text("\n".join([header, *(f"{n}.jpg,{cell}" for n, cell in enumerate(cells))]))
    given, problems = DataSettings(root=root, **settings), AllProblems()
    check_names(load_table(given), given, problems)
    return [(problem.kind, problem.message) for problem in problems.warnings]


def kinds(found):
    return [kind for kind, _ in found]


@pytest.mark.parametrize("name", ["nan", "NaN", "None", "none", "null", "N/A", "unknown", "Unlabeled", "-"])
def test_names_of_missing_values(tmp_path, name):
    found = warnings_of(tmp_path, {"cat": 3, name: 2})
    assert kinds(found) == ["class named like a missing value"]
    assert f"'{name}': " in found[0][1] and "leave the cell empty if the image shows none" in found[0][1]


@pytest.mark.parametrize("name", ["bg", "void", "Ignore", "backgroud", "back-grund"])
def test_names_like_the_background(tmp_path, name):
    assert kinds(warnings_of(tmp_path, {"cat": 3, name: 2})) == ["class named like the background"]


@pytest.mark.parametrize(
    ("one", "other"), [("cat", "Cat"), ("red panda", "red_panda"), ("cat", "'cat'"), ("1", "01"), ("é", "É")]
)
def test_names_that_look_alike(tmp_path, one, other):
    found = warnings_of(tmp_path, {one: 3, other: 3})
    assert kinds(found) == ["classes with nearly the same name"]


def test_none_beside_the_folder_of_negatives(tmp_path):
    for name in ("cat/1.jpg", "none/1.jpg", "None/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    settings = DataSettings(root=tmp_path, format="folders")
    problems = AllProblems()
    check_names(load_table(settings), settings, problems)
    assert "'none' and 'None' differ only in case" in problems.warnings[0].message
    assert "set data.negatives = 'None' if its images show none" in problems.warnings[1].message


@pytest.mark.parametrize("name", ["cat dog", "cat_dog", "cat-dog", "cat and dog"])
def test_names_that_may_join_others(tmp_path, name):
    found = warnings_of(tmp_path, {"cat": 2, "dog": 2, name: 2})
    assert kinds(found) == ["class that joins others"] and f"'{name}' is one class beside cat and dog" in found[0][1]
    assert not warnings_of(tmp_path, {"cat": 2, "dog": 2, name: 2}, classes=("cat", "dog", name))


def test_a_name_with_a_comma(tmp_path):
    found = warnings_of(tmp_path, {'"cat,dog"': 2, "eel": 2})
    assert kinds(found) == ["class that joins others"]
    assert found[0][1] == "'cat,dog' is one class: labels are joined by ; and not by ,"


@pytest.mark.parametrize(
    ("name", "count", "other", "more"),
    [
        ("buss", 1, "bus", 3),
        ("bus", 1, "buss", 3),
        ("persn", 2, "person", 30),
        ("Aeroplan", 1, "aeroplane", 4),
        ("buss", 2, "bus", 6),
    ],
)
def test_rare_names_that_are_nearly_another(tmp_path, name, count, other, more):
    found = dict(warnings_of(tmp_path, {name: count, other: more}))
    plural = "s" if count > 1 else ""
    assert (
        f"'{name}' ({count} image{plural}) is nearly '{other}' ({more} images)" in found["class that may be misspelt"]
    )


@pytest.mark.parametrize(
    "labels",
    [
        {"goat": 1, "boat": 9},
        {"bus": 5, "buss": 6},
        {"cat": 1, "car": 9},
        {"11": 1, "111": 9},
        {"class1": 9, "class10": 1},
    ],
)
def test_names_that_are_rightly_near(tmp_path, labels):
    assert "class that may be misspelt" not in kinds(warnings_of(tmp_path, labels))


def test_names_that_are_listed_are_not_taken_for_misspelt(tmp_path):
    assert "class that may be misspelt" not in kinds(
        warnings_of(tmp_path, {"buss": 1, "bus": 3}, classes=("bus", "buss"))
    )


def test_classes_of_a_single_image(tmp_path):
    labels = {"cat": 3, **{f"a{chr(n)}": 1 for n in range(ord("a"), ord("m"))}}
    found = dict(warnings_of(tmp_path, labels))
    assert found["class that a single training image shows"].startswith("aa, ab, ac, ad, ae, af, ag, ah, ai, aj and 2 ")
    assert not warnings_of(tmp_path, {"cat": 2, "dog": 1})  # all are rare


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["0", "1", "2"], "class whose name is another number than its label"),
        (["1", "3"], "class whose name is another number than its label"),
        (["class1", "class2", "class10"], "classes that end in numbers, ordered as text"),
        (["1", "2", "3"], None), (["class1", "class2"], None), (["cat", "b2"], None), (["01", "02", "03"], None),
    ],
)  # fmt: skip
def test_names_that_are_numbers_beside_masks(tmp_path, names, kind):
    masks = warnings_of(tmp_path, {f"{name},m.png": 1 for name in names}, "image,labels,mask")
    assert kinds(masks) == ([kind] if kind else [])
    assert not warnings_of(tmp_path, {f"{name},": 1 for name in names}, "image,labels,mask")


@pytest.mark.parametrize("name", ["c\u0430t", "d\u03bfg"])
def test_letters_of_two_scripts(tmp_path, name):
    assert "class name in letters of two scripts" in kinds(warnings_of(tmp_path, {name: 2, "eel": 2}))


@pytest.mark.parametrize("name", ["# classes", "//classes"])
def test_comments_in_the_list(tmp_path, name):
    (tmp_path / "classes.txt").write_text(f"{name}\ncat\n")
    assert "class named like a comment" in kinds(warnings_of(tmp_path, {"cat": 2}))


@pytest.mark.parametrize(
    ("split", "kind"),
    [("Train", "splits with nearly the same name"), ("TRAIN", "splits with nearly the same name"),
     ("trian", "splits with nearly the same name"), ("Val", "splits with nearly the same name"),
     ("nan", "split named like a missing value"), ("test", None), ("extra", None), ("trainval", None)],
)  # fmt: skip
def test_splits(tmp_path, split, kind):
    found = warnings_of(tmp_path, {"cat,train": 1, f"cat,{split}": 1}, "image,labels,split")
    assert kinds(found) == ([kind] if kind else []) and all(f"'{split}' (1 image)" in message for _, message in found)


def test_a_data_set_logs_its_warnings_once_and_only_if_asked_to(tmp_path, caplog):
    (tmp_path / "data.csv").write_text("image,labels,author\na.jpg,cat,me\nb.jpg,nan,me\n")
    with caplog.at_level(logging.WARNING):
        dataset = Dataset(DataSettings(root=tmp_path), FileDigests(tmp_path / "digests.json"))
        dataset.warn_once()
        assert len(dataset.table.samples) == 2 and not caplog.records
        dataset.warn_once()
        dataset.warn_once()
    assert [record.getMessage().split(": ")[0] for record in caplog.records] == [
        "column that is not used", "class named like a missing value",
    ]  # fmt: skip


def test_a_validation_split_that_is_nearly_the_default(tmp_path):
    found = warnings_of(tmp_path, {"cat,train": 2, "cat,vall": 1}, "image,labels,split")
    assert found == [
        ("splits with nearly the same name", "'vall' (1 image) is nearly 'val'; correct it if it is misspelt")
    ]
    found = warnings_of(tmp_path, {"cat,train": 2, "cat,VAL": 1}, "image,labels,split")
    assert "'val' (0 images) and 'VAL' (1 image) differ only in case" in found[0][1]
    assert not warnings_of(tmp_path, {"cat,train": 2, "cat,val": 1}, "image,labels,split", val="vall")


COCO = """
person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,bench,
bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,
sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,
bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,
toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,
teddy bear,hair drier,toothbrush"""


@pytest.mark.parametrize("rare", [0, 1])
@pytest.mark.parametrize("classes", [tuple(COCO.replace("\n", "").split(",")), VOC_CLASSES])
def test_the_names_of_coco_and_voc_are_in_order(classes, rare):
    counts = [2 if number % 2 == rare else 6 for number in range(len(classes))]
    samples = [Sample(str(n), Path("x"), "train", (n,)) for n, count in enumerate(counts, 1) for _ in range(count)]
    problems = AllProblems()
    check_names(Table(classes, tuple(samples)), DataSettings(root="nowhere", format="coco"), problems)
    assert len(classes) in (80, 20) and not problems.warnings


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["cat"] * 4 + ["cta"], "class that may be misspelt"),
        (["dog"] * 4 + ["dog/person"], "class that joins others"),
        (["dog"] * 4 + ["dog and person"], "class that joins others"),
        (["train"] * 4 + ["train station"], ""),
    ],
)
def test_labels_that_a_tired_hand_writes(tmp_path, labels, kind):
    rows = "".join(f"{number}.png,{name}\n" for number, name in enumerate(labels * 2))
    (tmp_path / "data.csv").write_text("image,labels\n" + rows)
    problems = AllProblems()
    settings = DataSettings(root=tmp_path)
    check_names(load_table(settings, problems), settings, problems)
    assert {problem.kind for problem in problems.warnings} == ({kind} if kind else set())


def test_swapped_cells_of_a_row(tmp_path):
    (tmp_path / "data.csv").write_text("image,labels,split\n1.png,sheep,train\n2.png,sheep,train\n3.png,dog,sheep\n")
    problems = AllProblems()
    settings = DataSettings(root=tmp_path)
    check_names(load_table(settings, problems), settings, problems)
    assert "split named like a class" in {problem.kind for problem in problems.warnings}


def test_one_hot_cells(tmp_path):
    (tmp_path / "data.csv").write_text("image,labels,cat,dog\n1.png,0;1,0,1\n2.png,1;0,1,0\n")
    problems = AllProblems()
    settings = DataSettings(root=tmp_path)
    check_names(load_table(settings, problems), settings, problems)
    assert "classes named 0 and 1" in {problem.kind for problem in problems.warnings}


def test_a_run_tells_of_a_single_class_without_negatives(tmp_path, caplog):
    (tmp_path / "data.csv").write_text("image,labels\na.jpg,cat\nb.jpg,cat\n")
    dataset = Dataset(DataSettings(root=tmp_path), FileDigests(tmp_path / "digests.json"))
    assert dataset.table.classes == ("cat",)
    dataset.warn_once()
    assert "one class and no negatives: cat: every training image shows it" in caplog.text

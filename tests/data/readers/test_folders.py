import pytest

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import AllProblems
from cam_pipeline.data.readers import load_table
from cam_pipeline.errors import DataError


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def table_of(root, problems=None, **settings):
    return load_table(DataSettings(root=root, format="folders", **settings), problems)


def facts(table):
    return [(sample.id, sample.split, sample.class_ids) for sample in table.samples]


def test_split_folders_with_class_folders(root):
    put(
        root,
        "train/dog/1.jpg",
        "train/dog/2.PNG",
        "train/cat/1.jpg",
        "val/dog/1.jpg",
        "train/none/n.jpg",
        "other/x.jpg",
    )
    table = table_of(root)
    assert table.classes == ("cat", "dog")
    assert facts(table) == [
        ("train/cat/1", "train", (1,)), ("train/dog/1", "train", (2,)), ("train/dog/2", "train", (2,)),
        ("train/none/n", "train", ()), ("val/dog/1", "val", (2,)),
    ]  # fmt: skip
    assert table.samples[2].image == root / "train/dog/2.PNG"
    assert {split for _, split, _ in facts(table_of(root, val=""))} == {"train"}


def test_class_folders_alone_are_the_training_split(root):
    put(root, "dog/1.jpg", "cat/1.jpg", "cat/old/2.jpg", "nothing/1.jpg")
    assert facts(table_of(root, negatives="nothing", train="all")) == [
        ("cat/1", "all", (1,)), ("cat/old/2", "all", (1,)), ("dog/1", "all", (2,)), ("nothing/1", "all", ()),
    ]  # fmt: skip
    assert table_of(root).classes == ("cat", "dog", "nothing")


def test_a_class_may_be_named_like_a_split(root):
    put(root, "train/1.jpg", "bus/1.jpg", "train/steam/2.jpg")
    table = table_of(root)
    assert table.classes == ("bus", "train")
    assert [(sample.id, sample.class_ids) for sample in table.samples] == [
        ("bus/1", (1,)), ("train/1", (2,)), ("train/steam/2", (2,)),
    ]  # fmt: skip


def test_given_classes_decide_labels_and_what_is_unknown(root):
    put(root, "dog/1.jpg", "cat/1.jpg")
    table = table_of(root, classes=("dog", "cat", "eel"))
    assert table.classes == ("dog", "cat", "eel") and [sample.class_ids for sample in table.samples] == [(2,), (1,)]
    with pytest.raises(DataError, match=r"data/dog: unknown class 'dog'; did you mean 'dogs'\?"):
        table_of(root, classes=("cat", "dogs"))


def test_files_of_one_stem_in_a_class_folder_are_refused(root):
    put(root, "cat/1.jpg", "cat/1.png", "dog/1.jpg")
    with pytest.raises(
        DataError, match=r"data/cat: the id cat/1 appears twice: for 1.png, and for 1.jpg in .*data/cat"
    ):
        table_of(root)


def test_what_is_no_image_is_left_out_and_said(root):
    put(root, "cat/1.jpg", "cat/.DS_Store", "cat/.hidden/2.jpg", "cat/notes.txt", "dog/1.jpg", ".cache/x.jpg")
    (root / "cat/linked").symlink_to(root / "dog")
    problems = AllProblems()
    table = table_of(root, problems)
    assert [sample.id for sample in table.samples] == ["cat/1", "dog/1"] and not problems.errors
    assert [problem.message.split(":")[0] for problem in problems.warnings] == [
        str(root / "cat/linked"), str(root / "cat/notes.txt"),
    ]  # fmt: skip


def test_links_do_not_lead_out_of_the_root(root):
    put(root, "cat/1.jpg")
    put(root.parent, "elsewhere/2.jpg")
    (root / "dog").symlink_to(root.parent / "elsewhere")
    with pytest.raises(DataError, match=r"data/dog: 'dog/2.jpg' leads out of the data root"):
        table_of(root)
    (root / "dog").unlink()
    (root / "cat/2.jpg").symlink_to(root.parent / "elsewhere/2.jpg")
    with pytest.raises(DataError, match=r"data/cat: 'cat/2.jpg' leads out of the data root"):
        table_of(root)


def test_an_empty_folder(root):
    root.mkdir()
    with pytest.raises(DataError, match=r"data: there is no class folder in it; put the images of each class into"):
        table_of(root)
    (root / "cat").mkdir()
    assert table_of(root).classes == ("cat",) and table_of(root).samples == ()


@pytest.mark.parametrize("names", [("train/1.jpg", "val/2.jpg"), ("Training/cat/1.jpg", "Val/cat/2.jpg")])
def test_class_folders_named_like_splits_are_warned_of(root, names):
    put(root, *names, "dog/3.jpg")
    problems = AllProblems()
    table = table_of(root, problems)
    folders = [name.split("/")[0] for name in names]
    assert [problem.message.split(":")[0] for problem in problems.warnings] == [str(root / name) for name in folders]
    assert {problem.kind for problem in problems.warnings} == {"class named like a split"}
    assert problems.warnings[1].message.endswith(
        f"read as the class '{folders[1]}'; if it is a split, name it by data.train or data.val and put its images "
        "into a folder for each class"
    )
    assert {*folders, "dog"} == {*table.classes} and not problems.errors
    named = AllProblems()
    table_of(root, named, classes=("dog", *folders))
    assert not named.warnings


def test_split_folders_with_a_class_named_like_a_split_are_not_warned_of(root):
    put(root, "train/train/1.jpg", "train/bus/1.jpg", "val/train/2.jpg")
    problems = AllProblems()
    assert table_of(root, problems).classes == ("bus", "train") and not problems.warnings


SYSTEM = ["@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", "@Recycle", "#recycle", "System Volume Information"]


@pytest.mark.parametrize("name", SYSTEM)
@pytest.mark.parametrize("where", ["", "cat/", "train/", "train/cat/"])
def test_folders_that_systems_make_are_no_classes_and_told(root, where, name):
    put(root, f"{where}{name}/0.jpg/thumb.jpg", f"{where}{name}/1.jpg")
    put(root, *("train/cat/1.jpg", "train/dog/1.jpg") if "train" in where else ("cat/1.jpg", "dog/1.jpg"))
    problems = AllProblems()
    table = table_of(root, problems)
    assert table.classes == ("cat", "dog") and len(table.samples) == 2 and not problems.errors
    assert {problem.kind for problem in problems.warnings} == {"file left out"}
    assert problems.warnings[0].message.startswith(str(root / f"{where}{name}"))


@pytest.mark.parametrize("name", ["._1.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/1.jpg"])
def test_files_that_systems_make_are_no_images(root, name):
    put(root, "cat/1.jpg", f"cat/{name}", "dog/1.jpg", f"{name}")
    problems = AllProblems()
    table = table_of(root, problems)
    assert [sample.id for sample in table.samples] == ["cat/1", "dog/1"] and table.classes == ("cat", "dog")
    assert not problems.errors


def test_folders_named_by_whole_numbers_are_sorted_as_numbers(root):
    put(root, *(f"{number}/1.jpg" for number in range(1, 12)))
    assert table_of(root).classes == tuple(str(number) for number in range(1, 12))


@pytest.mark.parametrize("name", ["background", "_background_", "Background"])
def test_a_folder_of_background_says_how_to_name_it(root, name):
    put(root, "cat/1.jpg", f"{name}/1.jpg")
    with pytest.raises(DataError, match=f"set data.negatives to '{name}' if its images show none of the classes"):
        table_of(root)
    assert facts(table_of(root, negatives=name))[-1][2] in ((), (1,))


def test_phone_images_are_left_out_and_told_how_to_convert(root):
    put(root, "cat/1.jpg", "dog/1.HEIC", "dog/2.avif")
    problems = AllProblems()
    table_of(root, problems)
    assert [problem.message.split(": ")[1] for problem in problems.warnings] == [
        "it is HEIC; convert it to JPEG or PNG (magick 1.HEIC 1.jpg)",
        "it is AVIF; convert it to JPEG or PNG (magick 2.avif 2.jpg)",
    ]


@pytest.mark.parametrize("name", ["Val", "valid", "validation", "dev"])
def test_a_validation_folder_of_another_name_is_told(root, name):
    put(root, "train/cat/1.jpg", f"{name}/cat/1.jpg", "test/cat/2.jpg")
    problems = AllProblems()
    assert len(table_of(root, problems).samples) == 1
    assert [(one.kind, one.message) for one in problems.warnings] == [
        ("split that is not used", f"{root / name}: set data.val = '{name}' to report on it")
    ]


def test_a_folder_around_the_splits_is_told_with_the_root_to_set(root):
    put(root, "dataset/train/cat/1.jpg", "dataset/train/dog/1.jpg", "dataset/val/cat/2.jpg")
    with pytest.raises(DataError, match=r"dataset holds the splits, one folder deeper; set data\.root = '.*dataset'$"):
        table_of(root)


def test_jfif_is_jpeg(root):
    put(root, "cat/1.jfif", "dog/1.jpg")
    assert facts(table_of(root)) == [("cat/1", "train", (1,)), ("dog/1", "train", (2,))]

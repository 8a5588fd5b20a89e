import re

import pytest

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import AllProblems
from cam_pipeline.data.readers import load_table
from cam_pipeline.errors import DataError


def csv_table(root, *lines, encoding="utf-8", **settings):
    (root / "data.csv").write_text("".join(f"{line}\n" for line in lines), encoding=encoding)
    return load_table(DataSettings(root=root, **settings))


def facts(table):
    return [(sample.id, sample.split, sample.class_ids) for sample in table.samples]


def test_csv_with_masks_and_splits(tmp_path):
    table = csv_table(
        tmp_path, "image,labels,mask,split", "in/a.jpg,dog;cat,m/a.png,train", "b.png,,,val", "c.jpg,?,,train"
    )
    assert table.classes == ("cat", "dog")
    assert facts(table) == [("in/a", "train", (1, 2)), ("b", "val", ()), ("c", "train", None)]
    assert [sample.image for sample in table.samples] == [tmp_path / name for name in ("in/a.jpg", "b.png", "c.jpg")]
    assert [sample.mask for sample in table.samples] == [tmp_path / "m/a.png", None, None]


def test_csv_columns_may_stand_in_any_order_and_more_are_left_out(tmp_path):
    table = csv_table(tmp_path, "labels,author,image", "dog,me,a.jpg")
    assert facts(table) == [("a", "train", (1,))]


def test_csv_columns_that_are_not_used_are_warned_of(tmp_path):
    """However like a column they are, where that column is there, too."""
    (tmp_path / "data.csv").write_text("task,labels,label,image,,Image\nx,dog,3,a.jpg,,A\n")
    problems = AllProblems()
    assert facts(load_table(DataSettings(root=tmp_path), problems)) == [("a", "train", (1,))]
    assert not problems.errors
    where = f"{tmp_path / 'data.csv'}, line 1"
    assert [(problem.kind, problem.message) for problem in problems.warnings] == [
        ("column that is not used", f"{where}: '{name}'") for name in ("task", "label", "Image")
    ]


def test_csv_without_a_split_column_is_the_training_split(tmp_path):
    assert facts(csv_table(tmp_path, "image,labels", "a.jpg,cat", train="all")) == [("a", "all", (1,))]
    assert facts(csv_table(tmp_path, "image,labels,split", "a.jpg,cat,", train="all")) == [("a", "all", (1,))]


def test_csv_cells_are_unquoted_and_names_stripped(tmp_path):
    table = csv_table(tmp_path, '"image","labels"', '"a, b.jpg"," cat ; dog;cat; "', '"c ""d"".jpg","dog"')
    assert facts(table) == [("a, b", "train", (1, 2)), ('c "d"', "train", (2,))]


def test_csv_cells_are_stripped_and_a_blank_split_is_none(tmp_path):
    table = csv_table(tmp_path, "image , labels,mask, split,,", " a.jpg ,cat, m.png , ,,", "b.jpg,,  , val ,x,y")
    assert facts(table) == [("a", "train", (1,)), ("b", "val", ())]
    assert [sample.image.name for sample in table.samples] == ["a.jpg", "b.jpg"]
    assert [sample.mask for sample in table.samples] == [tmp_path / "m.png", None]


def test_csv_saved_by_excel_begins_with_a_byte_order_mark(tmp_path):
    assert facts(csv_table(tmp_path, "image,labels", "ä.jpg,cat", encoding="utf-8-sig")) == [("ä", "train", (1,))]


def test_csv_ids_keep_every_dot_but_the_suffix(tmp_path):
    assert facts(csv_table(tmp_path, "image,labels", "x/photo.v1.jpg,cat"))[0][0] == "x/photo.v1"


def test_csv_classes_come_from_the_settings_then_a_file_then_the_table(tmp_path):
    lines = ("image,labels", "a.jpg,dog")
    assert csv_table(tmp_path, *lines).classes == ("dog",)
    (tmp_path / "classes.txt").write_text("background\nzebra\n\n dog \n")
    table = csv_table(tmp_path, *lines)
    assert table.classes == ("zebra", "dog") and table.samples[0].class_ids == (2,)
    table = csv_table(tmp_path, *lines, classes=("cat", "dog", "eel"))
    assert table.classes == ("cat", "dog", "eel") and table.samples[0].class_ids == (2,)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (["a.jpg,cat"], "line 1: .* missing: image, labels"),
        (["image,split", "a.jpg,train"], "line 1: .* missing: labels"),
        ([], "line 1: .* missing: image, labels; the header is ''$"),
        (["image;labels;mask", "a.jpg;cat;"], "columns .*, separated by commas; .* the header is 'image;labels;mask'$"),
        (["image\tlabels", "a.jpg\tcat"], r"missing: image, labels; the header is 'image\\tlabels'$"),
        (["x" * 500], r"the header is 'x+ \.\.\. x+'$"),
        (["image,labels,masks", "a.jpg,cat,m.png"], "line 1: unknown column 'masks'; did you mean 'mask'\\? If not"),
        (["image,labels,Split", "a.jpg,cat,val"], "line 1: unknown column 'Split'; did you mean 'split'"),
        (["image,label", "a.jpg,cat"], "line 1: unknown column 'label'; did you mean 'labels'"),
        (["IMAGES,labels", "a.jpg,cat"], "line 1: unknown column 'IMAGES'; did you mean 'image'"),
        (["image,labels", "a.jpg,cat", "", "b.jpg,cat;cow"], "line 4: unknown class 'cow'; the classes are cat, dog"),
        (["image,labels", "a.jpg,cat", ",dog"], "line 3: the image cell is empty"),
        (["image,labels", "a.jpg,cat,dog"], "line 2: more or fewer cells than the header"),
        (["image,labels", "a.jpg,cat", "b.jpg"], "line 3: more or fewer cells than the header"),
        (["image,labels", "a.jpg,cat", '"b.jpg","cat', 'dog"'], "line 3: a line break in a cell; remove it"),
        (["image,labels", 'a.jpg,"cat', "b.jpg,dog"], "line 2: a line break .* quotation mark that is missing"),
        (["image,labels,labels", "a.jpg,cat,dog"], "line 1: the column labels appears twice; keep one"),
        (["image,labels, image", "a.jpg,cat,dog"], "line 1: the column image appears twice"),
        (["image,labels", "a\u2028b\vc\x85d.jpg,cat", "b.jpg,cow"], "line 3: unknown class 'cow'"),
        (["image,labels", 'a.jpg,"cat', "x" * 140_000], "data.csv, line .* quotation mark"),
        (["image,labels", "a.jpg,cat", "b.jpg,dog", "a.png,cat"], "the id a appears twice"),
    ],
)
def test_csv_mistakes_are_named_with_file_and_line(tmp_path, lines, complaint):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=complaint):
        csv_table(tmp_path, *lines)


def test_mistakes_in_the_class_list(tmp_path):
    with pytest.raises(DataError, match=r"no class is named: give data.classes, or a file .*classes\.txt"):
        csv_table(tmp_path, "image,labels", "a.jpg,")
    with pytest.raises(DataError, match="the class name 'cat' appears twice in cat, dog, cat"):
        csv_table(tmp_path, "image,labels", "a.jpg,cat", classes=("cat", "dog", "cat"))
    assert len(csv_table(tmp_path, "image,labels", "a.jpg,", classes=tuple(map(str, range(254)))).classes) == 254
    with pytest.raises(DataError, match="255 classes are too many"):
        csv_table(tmp_path, "image,labels", "a.jpg,", classes=tuple(map(str, range(255))))


@pytest.mark.parametrize("name", ["\ud800cat", "do\ng\x1b[31m", "", " ", "a\u2028b", "\u202ecat", "a\u00a0b"])
def test_class_names_are_printable_text(tmp_path, name):
    with pytest.raises(DataError, match=r"^the class name '.*' is no printable text; rename it$") as caught:
        csv_table(tmp_path, "image,labels", "a.jpg,", classes=("dog", name))
    assert str(caught.value).isprintable()
    (tmp_path / "classes.txt").write_text("cat\vdog\n")
    with pytest.raises(DataError, match=r"'cat\\x0bdog' is no printable text"):
        csv_table(tmp_path, "image,labels", "a.jpg,")


def test_class_names_of_any_script_are_taken(tmp_path):
    names = ("Straßenbahn", "می\u200cشود", "猫", "🐈", "red panda")
    assert csv_table(tmp_path, "image,labels", "a.jpg,", classes=names).classes == names


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=rf"there is no file {re.escape(str(tmp_path / 'data.csv'))}"):
        load_table(DataSettings(root=tmp_path))
    with pytest.raises(DataError, match=r"data.root: there is no folder .*nowhere.* --set data.root=FOLDER"):
        load_table(DataSettings(root=tmp_path / "nowhere"))
    (tmp_path / "data.csv").write_bytes(b"image,labels\n\xff\xfe.jpg,cat\n")
    with pytest.raises(DataError, match=r"data\.csv cannot be read"):
        load_table(DataSettings(root=tmp_path))


def test_samples_know_their_line_and_the_limit_of_pixels(tmp_path):
    table = csv_table(tmp_path, "image,labels", "a.jpg,cat", "", "b.jpg,cat", max_pixels=99)
    assert [sample.source for sample in table.samples] == [f"{tmp_path / 'data.csv'}, line {n}" for n in (2, 4)]
    assert [sample.max_pixels for sample in table.samples] == [99, 99]


@pytest.mark.parametrize("cell", ["cat;?", "?;cat", "? ; dog"])
def test_csv_labels_are_known_or_unknown_not_both(tmp_path, cell):
    with pytest.raises(DataError, match=r"data\.csv, line 3: '.*' is known and unknown at once; write either `\?` or"):
        csv_table(tmp_path, "image,labels", "a.jpg,cat;dog", f"b.jpg,{cell}")


def test_csv_unknown_labels_are_a_lone_question_mark(tmp_path):
    table = csv_table(tmp_path, "image,labels", "a.jpg,cat", "b.jpg,?", "c.jpg, ? ;", "d.jpg,")
    assert [ids for _, _, ids in facts(table)] == [(1,), None, None, ()]


def test_csv_duplicates_name_both_lines(tmp_path):
    with pytest.raises(DataError, match=r"line 4: the id x/a appears twice; .*data\.csv, line 2 names it already"):
        csv_table(tmp_path, "image,labels", "x/a.jpg,cat", "y/a.jpg,cat", "x/a.jpg,dog")
    with pytest.raises(DataError, match=r"line 3: the id x/a appears twice: for a.png, and for a.jpg in .*line 2; ren"):
        csv_table(tmp_path, "image,labels", "x/a.jpg,cat", "x/./a.png,cat")


def test_csv_with_many_mistakes_tells_them_all_and_keeps_the_rest(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    lines = ("good.jpg,cat", "../x.jpg,dgo", ",dog", "a.jpg,cat,train,more", "good.jpg,dog", "b.jpg,cat;?", "c.jpg,dog")
    (tmp_path / "data.csv").write_text("image,labels,split\n" + "".join(f"{line},train\n" for line in lines))
    problems = AllProblems()
    table = load_table(DataSettings(root=tmp_path), problems)
    assert [sample.id for sample in table.samples] == ["good", "b", "c"]
    assert [(problem.kind, re.search(r"line (\d)", problem.message)[1]) for problem in problems.errors] == [
        ("row that cannot be read", "5"), ("unknown class", "3"), ("outside the data root", "3"),
        ("row that cannot be read", "4"), ("duplicate id", "6"), ("label that contradicts itself", "7"),
    ]  # fmt: skip
    assert "did you mean 'dog'?" in problems.errors[1].message
    with pytest.raises(DataError) as first:
        load_table(DataSettings(root=tmp_path))
    assert str(first.value) == problems.errors[0].message

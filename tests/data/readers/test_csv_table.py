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
        (["picture:labels:mask", "a.jpg:cat:"], "separated by commas; .* the header is 'picture:labels:mask'$"),
        (["filename,tags", "a.jpg,cat"], "the header is 'filename,tags'; rename 'filename' to image and 'tags' to lab"),
        (["Path;class", "a.jpg;cat"], "missing: image, labels; .*; rename 'Path' to image and 'class' to labels$"),
        (["image;label", "a.jpg;cat"], "line 1: unknown column 'label'; did you mean 'labels'"),
        (["image;labels", "a.jpg;cat;dog"], r'line 2: 3 cells, the header has 2; .* quotation marks \("cat;dog"\)'),
        (["image,cat,dog", "a.jpg,1,0"], "missing: labels; .*; it is one column, with the names of an image's classes"),
        (["a.jpg,cat", "b.jpg,dog"], "it looks like an image's row: put the line image,labels above it"),
        (['"image,labels"', '"a.jpg,cat"'], "; remove the quotation marks around the whole line$"),
        (["x" * 500], r"the header is 'x+ \.\.\. x+'$"),
        (["image,labels,masks", "a.jpg,cat,m.png"], "line 1: unknown column 'masks'; did you mean 'mask'\\? If not"),
        (["image,labels,Split", "a.jpg,cat,val"], "line 1: unknown column 'Split'; did you mean 'split'"),
        (["image,label", "a.jpg,cat"], "line 1: unknown column 'label'; did you mean 'labels'"),
        (["IMAGES,labels", "a.jpg,cat"], "line 1: unknown column 'IMAGES'; did you mean 'image'"),
        (["image,labels", "a.jpg,cat", "", "b.jpg,cat;cow"], "line 4: unknown class 'cow'; the classes are cat, dog"),
        (["image,labels", "a.jpg,cat", ",dog"], "line 3: the image cell is empty"),
        (["image,labels", "a.jpg,cat,dog"], "line 2: 3 cells, the header has 2; join labels by"),
        (["image,labels", "a.jpg,cat", "b.jpg"], "line 3: 1 cell, the header has 2; a comma is missing"),
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
    with pytest.raises(
        DataError,
        match=r"no image has a label, and no class is named: write labels, or .*classes\.txt",
    ):
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
    with pytest.raises(DataError, match=r"data\.csv, line 2: byte 1 \(0xff\) is not UTF-8; save"):
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


def noted(root, *lines, **settings):
    """The table of these lines, and what was noted about it as (kind, message)."""
    (root / "data.csv").write_text("".join(f"{line}\n" for line in lines))
    problems = AllProblems()
    table = load_table(DataSettings(root=root, **settings), problems)
    return table, *([(one.kind, one.message) for one in found] for found in (problems.errors, problems.warnings))


@pytest.mark.parametrize(
    ("cell", "remedy"),
    [
        ('"cat,dog"', "write cat;dog"),
        ('"dog, cat"', "write dog;cat"),
        ("cat|dog", "write cat;dog"),
        ("cat/dog", "write cat;dog"),
        ("cat + dog", "write cat;dog"),
        ("cat & dog", "write cat;dog"),
        ("cat\uff0cdog", "write cat;dog"),
        ("cat\uff1bdog", "write cat;dog"),
        ("cat\u3001dog", "write cat;dog"),
        ("cat:dog", "write cat;dog"),
        ("cat\tdog", "write cat;dog"),
        ("1 2", "write 1;2"),
        ("['cat' 'dog']", "write cat;dog"),
        ("eel;cat|dog", "write eel;cat;dog"),
        ("\"['cat', 'dog']\"", "write cat;dog"),
        ('"[""cat""]"', "write cat"),
        ("[cat]", "write cat"),
        ("\"('cat', 'dog')\"", "write cat;dog"),
        ("\"{'cat'}\"", "write cat"),
        ("['cat'; 'dog']", "write cat;dog"),
        ("[]", "leave the cell empty for no label"),
    ],
)
def test_csv_labels_joined_in_another_way_are_refused_with_the_right_cell(tmp_path, cell, remedy):
    rows = ("a.jpg,cat;1", "b.jpg,dog;2", "d.jpg,eel", f"c.jpg,{cell}")
    table, errors, _ = noted(tmp_path, "image,labels", *rows)
    assert [kind for kind, _ in errors] == ["labels that are not joined by ;"]
    assert f"{tmp_path / 'data.csv'}, line 5: " in errors[0][1] and remedy in errors[0][1]
    assert table.classes == ("1", "2", "cat", "dog", "eel")
    with pytest.raises(DataError, match=r"line 5: .* would be one class; .*"):
        csv_table(tmp_path, "image,labels", *rows)


def test_csv_labels_that_come_only_joined_are_refused_too(tmp_path):
    _, errors, _ = noted(tmp_path, "image,labels", 'a.jpg,"cat,dog"', 'b.jpg,"dog,cow"', 'c.jpg,"cow,cat"')
    assert len(errors) == 3


@pytest.mark.parametrize(
    "names",
    [
        ("tench, Tinca tinca", "goldfish, Carassius auratus", "crane"),
        ("maillot", "maillot, tank suit"),
        ("AC/DC", "R&B"),
        ("fire truck", "fire", "cat"),
        ("C++", "C"),
    ],
)
def test_csv_names_with_such_signs_are_names_if_their_parts_are_none(tmp_path, names):
    _, errors, _ = noted(tmp_path, "image,labels", *(f'{n}.jpg,"{name}"' for n, name in enumerate(names)))
    assert not errors


def test_csv_names_that_are_listed_are_names_whatever_they_look_like(tmp_path):
    names = ("cat", "dog", "cat,dog", "[x]")
    rows = [f'{n}.jpg,"{name}"' for n, name in enumerate(names)]
    table, errors, warnings = noted(tmp_path, "image,labels", *rows, classes=names)
    assert table.classes == names and not errors and not warnings
    _, errors, _ = noted(tmp_path, "image,labels", *rows, classes=("cat", "dog"))
    assert "unknown class 'cat,dog'; cat and dog are labels of their own" in errors[0][1]


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ([str(n) for n in range(12, 0, -1)], [str(n) for n in range(1, 13)]),
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["10.0", "9.0", "2.0"], ["2.0", "9.0", "10.0"]),
        (["10", "9", "a"], ["10", "9", "a"]),
        (["b", "a10", "a9"], ["a10", "a9", "b"]),
        (["1" * 5000, "2"], ["1" * 5000, "2"]),
    ],
)
def test_csv_classes_that_are_whole_numbers_are_sorted_as_numbers(tmp_path, names, order):
    rows = [f"{n}.jpg,{name}" for n, name in enumerate(names)]
    assert csv_table(tmp_path, "image,labels", *rows).classes == tuple(order)


@pytest.mark.parametrize("name", ["background", "_background_", "__background__", "Background", "BACKGROUND"])
def test_csv_label_background_says_leave_the_cell_empty(tmp_path, name):
    table, errors, _ = noted(tmp_path, "image,labels", "a.jpg,cat", f"b.jpg,{name}")
    assert table.classes == ("cat",)
    assert errors == [
        (
            "label that is no class",
            f"{tmp_path / 'data.csv'}, line 3: '{name}' is no label of an image; leave the cell empty if the image "
            "shows none of the classes",
        )
    ]


def test_csv_class_list_of_labelme(tmp_path):
    (tmp_path / "classes.txt").write_text("__ignore__\n_background_\ncat\ndog\n")
    table, errors, warnings = noted(tmp_path, "image,labels", "a.jpg,cat", "b.jpg,dog")
    assert table.classes == ("cat", "dog") and not errors
    assert [message.split(": ", 1)[1] for _, message in warnings] == [
        "'__ignore__' is taken for ignored pixels (255 in masks) and gets no label",
        "'_background_' is taken for the background (label 0)",
    ]


@pytest.mark.parametrize("name", ["_ignore_", "__background__", "Background", "BACKGROUND", "back ground"])
def test_csv_other_names_of_what_is_no_class(tmp_path, name):
    table, _, warnings = noted(tmp_path, "image,labels", "a.jpg,cat", classes=(name, "cat", "dog"))
    assert table.classes == ("cat", "dog") and [kind for kind, _ in warnings] == ["name that is no class"]


def test_csv_background_behind_classes_is_told(tmp_path):
    _, _, warnings = noted(tmp_path, "image,labels", "a.jpg,cat", classes=("cat", "dog", "background"))
    assert "(label 0), though it stands after 'dog': check the numbers in the masks" in warnings[0][1]
    _, _, warnings = noted(tmp_path, "image,labels", "a.jpg,cat", classes=("background", "cat"))
    assert not warnings


@pytest.mark.parametrize("blank", ["\u00a0", "\u200b", "\ufeff", "\u3000", "\u2009", "\u200e"])
def test_csv_blanks_of_any_kind_around_cells_do_not_count(tmp_path, blank):
    table = csv_table(
        tmp_path, f"image{blank},labels,{blank}split", f"{blank}a.jpg{blank},cat{blank};{blank}dog,{blank}val{blank}"
    )
    assert table.classes == ("cat", "dog") and facts(table) == [("a", "val", (1, 2))]


def test_csv_a_label_in_another_unicode_form_is_the_class(tmp_path):
    table = csv_table(tmp_path, "image,labels", "a.jpg,cafe\u0301", "b.jpg,caf\u00e9", classes=("caf\u00e9", "x"))
    assert [ids for _, _, ids in facts(table)] == [(1,), (1,)]


@pytest.mark.parametrize("rows", [[",", ","], [" , "], [",,,,"], ["\u00a0,\u200b", ""]])
def test_csv_rows_without_content_are_no_rows(tmp_path, rows):
    assert len(csv_table(tmp_path, "image,labels", "a.jpg,cat", *rows, "b.jpg,cat,,", *rows).samples) == 2


@pytest.mark.parametrize("start", [("",), (",", ""), ("sep=,",), ("\ufeff", ",,,")])
def test_csv_rows_without_content_above_the_header_do_not_count(tmp_path, start):
    table = csv_table(tmp_path, *start, "image,labels", "a.jpg,cat")
    assert len(table.samples) == 1 and table.samples[0].source.endswith(f"line {len(start) + 2}")


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_csv_cells_may_be_separated_as_excel_does_it(tmp_path, delimiter):
    rows = [["image", "labels", "split"], ["a.jpg", '"cat;dog"', "val"], ["b, c.jpg", "cat", ""], ["", "", ""]]
    table = csv_table(tmp_path, *(delimiter.join(row) for row in rows))
    assert facts(table) == [("a", "val", (1, 2)), ("b, c", "train", (1,))]


def test_csv_first_line_may_tell_excel_the_separator(tmp_path):
    table = csv_table(tmp_path, "sep=;", "image;labels", "a.jpg;cat")
    assert facts(table) == [("a", "train", (1,))] and table.samples[0].source.endswith("data.csv, line 3")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_csv_with_a_byte_order_mark(tmp_path, encoding):
    assert facts(csv_table(tmp_path, "image\tlabels", "ä.jpg\tcat", encoding=encoding)) == [("ä", "train", (1,))]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            "image,labels\n\na.jpg,Bär\n".encode("cp1252"),
            r"line 3: byte 8 \(0xe4\) is not UTF-8; save the file as UTF-8",
        ),
        ("image,labels\n训练.jpg,cat\n".encode("gbk"), r"line 2: byte 3 \(0xc1\) is not UTF-8; save the file as UTF-8"),
        ("image,labels\n".encode("utf-16-le"), "line 1: it holds zero bytes, as UTF-16 without its mark does; save it"),
        (b"PK\x03\x04\x14\0", "is a spreadsheet .* not text; save it as CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0\xa1", "is a spreadsheet .* not text; save it as CSV UTF-8"),
        (b"\x1f\x8b\x08", "is a gzip file, not text"),
        ("image,labels\na.jpg,cat\n".encode("utf-16")[:-1], "line .* is not UTF-16-LE; save the file as UTF-8"),
    ],
)
def test_csv_that_is_no_utf8_says_what_to_do(tmp_path, content, complaint):
    (tmp_path / "data.csv").write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        load_table(DataSettings(root=tmp_path))


@pytest.mark.parametrize(
    "name", ["@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/img/._0.png", "img/._0.png", ".ipynb_checkpoints/a.png"]
)
def test_csv_rows_of_files_that_systems_make_are_left_out_and_told(tmp_path, name):
    table, errors, warnings = noted(tmp_path, "image,labels", f"{name},@eaDir", "b.jpg,dog")
    assert table.classes == ("dog",) and [sample.id for sample in table.samples] == ["b"] and not errors
    assert [kind for kind, _ in warnings] == ["file left out"] and "line 2: " in warnings[0][1]


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", ".DS_Store", "Thumbs.db", "$RECYCLE.BIN", "lost+found"])
def test_csv_class_named_like_what_systems_make_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"the class name '.*' is that of a file or folder that systems make; take it"):
        csv_table(tmp_path, "image,labels", f"a.jpg,{name}", "b.jpg,dog")
    (tmp_path / "classes.txt").write_text(f"{name}\ndog\n")
    with pytest.raises(DataError, match=r"systems make; take it out of .*classes\.txt"):
        csv_table(tmp_path, "image,labels", "b.jpg,dog")


@pytest.mark.parametrize(
    ("written", "stored"),
    [("img/\u00e90.png", "img/e\u03010.png"), ("e\u0301/0.png", "\u00e9/0.png"), ("img\\0.png", "img/0.png")],
)
def test_csv_files_named_in_another_unicode_form_are_taken(tmp_path, written, stored):
    (tmp_path / stored).parent.mkdir()
    (tmp_path / stored).touch()
    table, errors, warnings = noted(tmp_path, "image,labels", f"{written},cat")
    assert table.samples[0].image == tmp_path / stored and not errors
    assert [kind for kind, _ in warnings] == ["name written in another way"] and written in warnings[0][1]


def test_csv_files_are_taken_as_written_if_they_are_there_or_two_would_fit(tmp_path):
    for name in ("\u00e9.png", "a\\b.png", "u\u0308\u0301.png"):
        (tmp_path / name).touch()
    table, _, warnings = noted(tmp_path, "image,labels", "\u00e9.png,cat", "a\\b.png,cat", "\u00ea.png,cat")
    assert [sample.image.name for sample in table.samples] == ["\u00e9.png", "a\\b.png", "\u00ea.png"] and not warnings


@pytest.mark.parametrize("name", ["data.csv", "classes.txt"])
def test_csv_links_out_of_the_root_are_refused(tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / name).write_text("image,labels\na.jpg,cat\n" if name == "data.csv" else "cat\n")
    (root / "data.csv").write_text("image,labels\na.jpg,cat\n")
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name} leads out of the data root .*root by a symbolic link; put the file"):
        load_table(DataSettings(root=root))


def test_csv_links_inside_the_root_and_tables_named_by_the_config_are_read(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "real.csv").write_text("image,labels\na.jpg,cat\n")
    (root / "data.csv").symlink_to(root / "real.csv")
    (tmp_path / "beside.csv").write_text("image,labels\nb.jpg,cat\n")
    assert facts(load_table(DataSettings(root=root)))[0][0] == "a"
    for table in ("../beside.csv", str(tmp_path / "beside.csv")):
        assert facts(load_table(DataSettings(root=root, table=table)))[0][0] == "b"
    (root / "loop.csv").symlink_to(root / "loop.csv")
    with pytest.raises(DataError, match=r"loop\.csv cannot be read"):
        load_table(DataSettings(root=root, table="loop.csv"))


def test_a_missing_root_names_the_folder_that_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"there is no folder photos \(looked for {tmp_path}/photos\); set it with"):
        load_table(DataSettings(root="photos"))
    (tmp_path / "photos").touch()
    with pytest.raises(DataError, match=r"data\.root: a file, not a folder: photos"):
        load_table(DataSettings(root="photos"))


def test_csv_of_another_name_is_offered(tmp_path):
    (tmp_path / "labels.csv").touch()
    with pytest.raises(DataError, match=r"there is no file .*/data\.csv; there is labels\.csv: set data\.table$"):
        load_table(DataSettings(root=tmp_path))
    (tmp_path / "Data.CSV").touch()
    with pytest.raises(
        DataError, match=r"no file .*/data\.csv \(did you mean Data\.CSV, below .*\?\); there is Data\.CSV, lab"
    ):
        load_table(DataSettings(root=tmp_path))


@pytest.mark.parametrize("name", ["nan", "None", "N/A"])
def test_csv_masks_named_like_a_missing_value_are_none(tmp_path, name):
    table, errors, warnings = noted(tmp_path, "image,labels,mask", f"a.jpg,cat,{name}", "b.jpg,cat,")
    assert [sample.mask for sample in table.samples] == [None, None] and not errors
    assert [kind for kind, _ in warnings] == ["mask named like a missing value"]


def test_csv_a_wide_question_mark_is_one(tmp_path):
    assert facts(csv_table(tmp_path, "image,labels", "a.jpg,cat", "b.jpg,\uff1f"))[1][2] is None


@pytest.mark.parametrize(
    ("folder", "layout"), [("ImageSets/Main", "voc"), ("annotations", "coco"), ("cat", "folders"), (".git", None)]
)
def test_a_data_set_of_another_layout_is_seen(tmp_path, folder, layout):
    (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(DataError, match=rf"is data\.format '{layout}'\?$" if layout else r"there is no file .*csv$"):
        load_table(DataSettings(root=tmp_path))


def test_csv_a_label_in_two_unicode_forms_is_one_class_and_told(tmp_path):
    table, errors, warnings = noted(tmp_path, "image,labels", "a.jpg,\u00e9", "b.jpg,e\u0301", "c.jpg,z")
    assert table.classes == ("e\u0301", "z") and [ids for _, _, ids in facts(table)] == [(1,), (1,), (2,)]
    assert [kind for kind, _ in warnings] == ["label written in two Unicode forms"] and not errors

import json

import pytest

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import AllProblems, Problems
from cam_pipeline.data.readers import load_table
from cam_pipeline.data.readers.clicks import read_clicks
from cam_pipeline.data.strokes import Click
from cam_pipeline.errors import DataError

CLASSES = ("aeroplane", "dog")


def read(root, content, classes=CLASSES, problems=None):
    path = root / "clicks"
    path.write_text(content)
    return read_clicks(path, root, classes, problems or Problems())


def in_csv(root, *lines, problems=None, **settings):
    (root / "data.csv").write_text("".join(f"{line}\n" for line in lines))
    return load_table(DataSettings(root=root, **settings), problems).samples


TWO = {"a": [Click(12.5, 3, 2), Click(0, 1, 0)], "in/b.jpg": [Click(7, 8, 1)]}


@pytest.mark.parametrize(
    "content",
    [
        "image,x,y,class\na,12.5,3,dog\na,0,1,background\nin/b.jpg,7,8,aeroplane\n",
        "image,x,y,class\r\na,12.5,3,2\r\na,0,1,0\r\n\r\nin/b.jpg,7,8,1\r\n",
        "class;image;who;y;x\ndog;a;me;3;12.5\nbg;a;me;1;0\nplane;in/b.jpg;me;8;7\n",
        "Image\tX\tY\tClass\na\t12.5\t3\tdog\na\t0\t1\tBackground\nin/b.jpg\t7\t8\taeroplane\n",
        json.dumps({"a": [[12.5, 3, "dog"], [0, 1, "background"]], "in/b.jpg": [[7, 8, "aeroplane"]]}),
        json.dumps({"a": [[12.5, 3, 2], [0, 1, 0]], "in/b.jpg": [[7.0, 8, 1.0]]}),
        json.dumps({"a": [{"x": 12.5, "y": 3, "class": "dog"}, [0, 1, "0"]], "in/b.jpg": [[7, "8", "plane"]]}),
        json.dumps(
            [
                {"image": "a", "x": 12.5, "y": 3, "class": "dog"},
                {"image": "a", "x": 0, "y": 1, "class": "_background_"},
                {"image": "in/b.jpg", "x": 7, "y": 8, "class": "aeroplane"},
            ]
        ),
    ],
)
def test_forms_of_one_file(tmp_path, content):
    assert read(tmp_path, content) == TWO


@pytest.mark.parametrize("content", ["x,y,class\n1,2,dog\n", "[[1, 2, 2]]", '[{"x": 1, "y": 2, "class": "dog"}]'])
def test_a_file_for_one_image_needs_not_name_it(tmp_path, content):
    assert read(tmp_path, content) == {"": [Click(1, 2, 2)]}


def test_where_a_click_stands(tmp_path):
    of_table = read(tmp_path, "image,x,y,class\na,1,2,dog\n\na,3,4,dog\n")["a"]
    assert [click.source for click in of_table] == [f"{tmp_path / 'clicks'}, line {line}" for line in (2, 4)]
    of_json = read(tmp_path, '{"a": [[1, 2, 1], [3, 4, 1]]}')["a"]
    assert of_json[1].source == f"{tmp_path / 'clicks'}, image a, click 2"


def test_a_number_is_a_name_if_classes_are_named_by_numbers(tmp_path):
    assert read(tmp_path, '{"a": [[1, 1, 7], [1, 1, "3"], [1, 1, 0]]}', ("3", "7")) == {
        "a": [Click(1, 1, 2), Click(1, 1, 1), Click(1, 1, 0)]
    }
    with pytest.raises(DataError, match="click 1: unknown class '2'"):
        read(tmp_path, '{"a": [[1, 1, 2]]}', ("3", "7"))
    assert read(tmp_path, '{"a": [[1, 1, 0]]}', ("0", "1")) == {"a": [Click(1, 1, 1)]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,x,y,class\na,1,2,dgo\n", r"clicks, line 2: unknown class 'dgo'; did you mean 'dog'\?"),
        ("image,x,y,class\na,1,2,3\n", r"clicks, line 2: unknown class '3'; the classes are aeroplane, dog"),
        ("image,x,y,class\na,1,2,-1\n", "clicks, line 2: unknown class '-1'"),
        ("image,x,y,class\na,1,2,\n", "clicks, line 2: unknown class ''"),
        ("image,x,y,class\na,left,2,dog\n", "clicks, line 2: 'left' is no number of pixels"),
        ("image,x,y,class\na,1,nan,dog\n", "clicks, line 2: 'nan' is no number of pixels"),
        ("image,x,y,class\na,1,,dog\n", "clicks, line 2: '' is no number of pixels"),
        ("image,x,y,class\na,1,2\n", "clicks, line 2: 3 cells, the header has 4"),
        ("image,x,y,class\n,1,2,dog\n", "clicks, line 2: the image cell is empty"),
        ('image,x,y,class\n"a,1,2,dog\na,1,2,dog\n', "clicks, line 2: a line break in a cell"),
        ("a,1,2,dog\n", r"clicks, line 1: a table of clicks needs the columns image, x, y, class, .* not 'a,1,2,dog'"),
        ("", "clicks, line 1: a table of clicks needs"),
        ("image,x,x,y,class\n", "each once"),
        ('{"a": [[1, 2]]}', r"clicks, image a, click 1: a click is a list \[x, y, class\], not '\[1, 2\]'"),
        ('{"a": [[true, 2, 1]]}', "clicks, image a, click 1: 'True' is no number"),
        ('{"a": [[1, 2, null]]}', "clicks, image a, click 1: unknown class 'None'"),
        ('{"a": 3}', "clicks, image a: the clicks of an image are a list"),
        ('{"a": [', "clicks cannot be read as JSON"),
        ("PK\x03\x04", "is a spreadsheet"),
    ],
)
def test_mistakes_are_named(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)


def test_reading_goes_on_after_a_mistake(tmp_path):
    problems = AllProblems()
    content = "image,x,y,class\na,1,2,unicorn\na,x,2,dog\na,3,4,dog\n"
    assert read(tmp_path, content, problems=problems) == {"a": [Click(3, 4, 2)]}
    assert [problem.kind for problem in problems.errors] == ["unknown class", "click that cannot be read"]


def test_shares_of_the_width_and_height_are_no_pixels(tmp_path):
    rows = ["a,0.5,0.25,dog", "b,0,1,dog", "c,0.1,0.9,aeroplane", "d,1,1,background"]
    with pytest.raises(DataError, match=r"clicks: all clicks lie in 0..1; x and y are pixels, so multiply"):
        read(tmp_path, "\n".join(["image,x,y,class", *rows]))
    assert len(read(tmp_path, "\n".join(["image,x,y,class", *rows[:3]]))) == 3, "too few to tell"
    assert len(read(tmp_path, "\n".join(["image,x,y,class", *rows, "e,2,1,dog"]))) == 5
    assert len(read(tmp_path, "image,x,y,class\na,0,0,1\na,0,1,1\na,1,0,1\na,1,1,1\n")["a"]) == 4, "whole numbers"


def test_clicks_find_their_images(tmp_path):
    (tmp_path / "clicks.csv").write_text(
        "image,x,y,class\nin/a.jpg,1,1,dog\na.jpg,2,2,dog\nin/a,3,3,dog\na,4,4,dog\n./b.png,5,5,dog\nin\\c.jpg,6,6,dog\n"
    )
    lines = ["image,labels", "in/a.jpg,dog", "b.png,dog", "in/c.jpg,dog"]
    samples = in_csv(tmp_path, *lines, clicks="clicks.csv")
    assert [[click.x for click in sample.clicks] for sample in samples] == [[1, 2, 3, 4], [5], [6]]


def test_a_name_of_two_images_is_none(tmp_path):
    (tmp_path / "clicks.csv").write_text("image,x,y,class\na,1,1,dog\nv/b,1,1,dog\nb,2,2,dog\n")
    problems = AllProblems()
    lines = ["image,labels", "a.jpg,dog", "v/a.jpg,dog", "v/b.jpg,dog", "w/b.jpg,dog"]
    samples = in_csv(tmp_path, *lines, clicks="clicks.csv", problems=problems)
    assert [len(sample.clicks) for sample in samples] == [1, 0, 1, 0], "an id is never ambiguous"
    assert [problem.message for problem in problems.warnings] == [
        f"{tmp_path / 'clicks.csv'}, line 4: the data set has no image b, or several of this name; "
        "its clicks are left out"
    ]


def test_clicks_of_no_image_at_all_are_a_mistake(tmp_path):
    (tmp_path / "clicks.csv").write_text("image,x,y,class\n007,1,1,dog\n")
    with pytest.raises(DataError, match=r"clicks.csv, line 2: the data set has no image 007.*write ids"):
        in_csv(tmp_path, "image,labels", "a.jpg,dog", clicks="clicks.csv")
    (tmp_path / "clicks.csv").write_text("x,y,class\n1,1,dog\n")
    with pytest.raises(DataError, match=r"clicks.csv, line 2: it names no image"):
        in_csv(tmp_path, "image,labels", "a.jpg,dog", clicks="clicks.csv")


def test_a_file_of_clicks_that_is_not_there(tmp_path):
    (tmp_path / "click.csv").write_text("image,x,y,class\n")
    with pytest.raises(DataError, match=r"there is no file .*clicks.csv .*\(data.clicks\)"):
        in_csv(tmp_path, "image,labels", "a.jpg,dog", clicks="clicks.csv")
    problems = AllProblems()
    assert len(in_csv(tmp_path, "image,labels", "a.jpg,dog", clicks="clicks.csv", problems=problems)) == 1
    assert len(problems.errors) == 1


def test_the_columns_of_a_table(tmp_path):
    (tmp_path / "a.csv").write_text("x,y,class\n1,2,dog\n")
    (tmp_path / "all.json").write_text('{"b": [[3, 4, "dog"]], "z": [[5, 6, "cat"]]}')
    lines = ["image,labels,clicks,scribble", "a.jpg,dog,a.csv,", "b.jpg,dog;cat,all.json,s/b.png", "c.jpg,,,nan"]
    a, b, c = in_csv(tmp_path, *lines)
    assert a.clicks == (Click(1, 2, 2),) and a.scribble is None
    assert b.clicks == (Click(3, 4, 2),) and b.scribble == tmp_path / "s/b.png"
    assert c.clicks == () and c.scribble is None


def test_a_file_of_a_cell_that_names_other_images_is_warned_of(tmp_path):
    (tmp_path / "all.json").write_text('{"b": [[3, 4, "dog"]]}')
    problems = AllProblems()
    in_csv(tmp_path, "image,labels,clicks", "a.jpg,dog,all.json", problems=problems)
    assert "names other images, such as b, and not a" in problems.warnings[0].message


@pytest.mark.parametrize("name", ["click", "Scribbles", "scribble_"])
def test_a_column_that_is_nearly_one_is_warned_of_and_left_out(tmp_path, name):
    problems = AllProblems()
    (sample,) = in_csv(tmp_path, f"image,labels,{name}", "a.jpg,dog,7", problems=problems)
    assert not problems.errors and not sample.clicks and sample.scribble is None
    assert "did you mean" in problems.warnings[0].message


def test_numbers_in_a_column_of_clicks_count_something_else(tmp_path):
    problems = AllProblems()
    assert not in_csv(tmp_path, "image,labels,clicks", "a.jpg,dog,12", problems=problems)[0].clicks
    assert not problems.errors and "'12' in the column clicks is left out" in problems.warnings[0].message


def test_a_class_that_is_clicked_counts_as_labelled(tmp_path):
    (tmp_path / "clicks.json").write_text('{"a": [[1, 1, "dog"], [1, 1, 1], [1, 1, 0]], "b": [[1, 1, 0]]}')
    lines = ["image,labels", "a.jpg,?", "b.jpg,?", "c.jpg,cat;dog"]
    samples = in_csv(tmp_path, *lines, clicks="clicks.json")
    assert [sample.class_ids for sample in samples] == [(1, 2), None, (1, 2)], "background alone says nothing"


@pytest.mark.parametrize(
    ("labels", "words"), [("cat", "are cat"), ("", "say that it shows no class")], ids=["other", "negative"]
)
def test_a_click_that_contradicts_the_labels_is_a_mistake(tmp_path, labels, words):
    (tmp_path / "clicks.csv").write_text("image,x,y,class\na,1,1,background\na,1,2,dog\n")
    lines = ["image,labels", f"a.jpg,{labels}", "b.jpg,dog"]
    message = rf"clicks.csv, line 3: a click on dog, but the labels of image a {words} .*data.csv, line 2.*; add dog"
    with pytest.raises(DataError, match=message):
        in_csv(tmp_path, *lines, clicks="clicks.csv")
    problems = AllProblems()
    samples = in_csv(tmp_path, *lines, clicks="clicks.csv", problems=problems)
    assert [problem.kind for problem in problems.errors] == ["click that contradicts the labels"]
    assert [click.label for click in samples[0].clicks] == [0]

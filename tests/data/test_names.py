import pytest

from cam_pipeline.data.names import (
    BLANKS,
    all_joined,
    clean,
    fold,
    in_brackets,
    in_order,
    is_background,
    is_class,
    is_ignored,
    is_missing,
    is_number,
    joined,
    label_of,
    system_part,
)


@pytest.mark.parametrize("text", [" cat ", "\u00a0cat\u200b", "\ufeffcat", "cat\u3000\u200b \u00a0", "\u200ecat\n"])
def test_clean(text):
    assert clean(text) == "cat"


def test_blanks_are_all_that_python_knows():
    assert {letter for number in range(0x110000) if (letter := chr(number)).isspace()} == set(BLANKS)
    assert clean("\u200b " * 100_000 + "\u00e9" + " \u200b" * 100_000) == "\u00e9"  # at once


def test_clean_keeps_what_stands_inside():
    assert clean(" red\u00a0panda ") == "red\u00a0panda" and clean("می\u200cشود") == "می\u200cشود" and clean("") == ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cat", "Cat"), ("é", "e\u0301"), ("dining table", "diningtable"), ("dining_table", "Dining-Table"),
        ("cat", "'cat'"), ("cat", "ｃａｔ"), ("1", "01"), ("1", "1.0"), ("red panda", "red\u00a0panda"),
        ("❤", "❤\ufe0f"), ("cat", "ca\u200bt"),
    ],
)  # fmt: skip
def test_texts_that_look_alike_share_a_key(one, other):
    assert fold(one) == fold(other)


def test_other_texts_have_other_keys():
    names = ["cat", "cats", "1", "-1", "10", "-", "_", "", "C", "C+"]
    assert len({fold(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    "name", ["background", "_background_", "__background__", "Background", "BACKGROUND", "back_ground", "back ground"]
)
def test_names_of_the_background(name):
    assert is_background(name) and not is_class(name)


@pytest.mark.parametrize("name", ["__ignore__", "_ignore_", "__IGNORE__", "__ignored__"])
def test_names_of_ignored_pixels(name):
    assert is_ignored(name) and not is_class(name)


@pytest.mark.parametrize("name", ["ignore", "foreground", "backgrounds", "bg", "cat", "none", ""])
def test_names_of_classes(name):
    assert is_class(name)


@pytest.mark.parametrize(
    "name", ["nan", "NaN", "None", "none", "null", "NULL", "N/A", "n/a", "NA", "<NA>", "#N/A", "-"]
)
def test_names_of_missing_values(name):
    assert is_missing(name)


def test_whole_numbers():
    assert all(map(is_number, ["0", "12", "-3", "+4", "5.0", "6."]))
    assert not any(map(is_number, ["", "1.5", "1e3", "a1", "1a", "٣", "²", "9" * 16, "nan"]))


def test_order():
    assert in_order(["10", "9", "9", "background", "1.0"]) == ["background", "1.0", "9", "10"]
    assert in_order(["b10", "b9", "1"]) == ["1", "b10", "b9"] and in_order([]) == []


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("['cat', 'dog']", ["cat", "dog"]), ('["cat"]', ["cat"]), ("[cat|dog]", ["cat", "dog"]), ("[]", []),
        ("{'a'; 'b'}", ["a", "b"]), ("['a b' 'c']", ["a b", "c"]),
        ("[1 0 1]", ["1", "0", "1"]),
        ("(cat)", ["cat"]), ("[cat", None), ("cat (tabby)", None), ("[", None), ("", None),
    ],
)  # fmt: skip
def test_lists_in_brackets(cell, names):
    assert in_brackets(cell) == names


def test_joined_names():
    assert joined("cat, dog", {"cat", "dog"}) == ["cat", "dog"]
    assert joined("cat, dog", {"cat"}) == joined("cat", {"cat"}) == joined(",cat,", {"cat"}) == []
    assert all_joined({"a,b", "b|c", "a"}) == {"a,b": ["a", "b"]}
    assert all_joined({"a,b", "b|c", "c, a"}) == {"a,b": ["a", "b"], "b|c": ["b", "c"], "c, a": ["c", "a"]}
    assert all_joined({"left/hand", "left/foot", "right/hand", "right/foot"}) == {}
    assert all_joined({"1 2", "1", "2", "fire truck", "fire", "truck"}) == {"1 2": ["1", "2"]}
    assert all_joined({"cat/dog", "cat", "dog"}) == {"cat/dog": ["cat", "dog"]}
    assert all_joined({"tench, Tinca tinca", "crane"}) == {}


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("x/@eaDir/a.jpg", "@eaDir"), ("__MACOSX/a.jpg", "__MACOSX"), ("x/._a.jpg", "._a.jpg"), ("Thumbs.db",) * 2,
        ("x/a.jpg", ""), ("lost and found/a.jpg", ""), (".hidden/a.jpg", ""), ("x/..a.jpg", ""),
    ],
)  # fmt: skip
def test_parts_that_systems_make(path, part):
    assert system_part(path.split("/")) == part


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("cat", 1), ("aeroplane", 2), ("plane", 2), ("Airplane", 2), ("caf\u00e9", 3), ("cafe\u0301", 3),
        ("background", 0), ("_background_", 0), ("bkg", 0), ("BG", 0),
        ("Cat", None), ("tv", None), ("", None), ("0", None),
    ],
)  # fmt: skip
def test_labels_of_names(name, label):
    assert label_of(name, ("cat", "aeroplane", "caf\u00e9")) == label


def test_a_class_may_be_named_like_a_short_name_of_the_background():
    assert label_of("bg", ("bg",)) == 1
    assert label_of("0", ("1", "0")) == 2

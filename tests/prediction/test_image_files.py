import os
from pathlib import Path

import pytest

from cam_pipeline.errors import DataError, UserError
from cam_pipeline.prediction.image_files import find_images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of files of all kinds, which is the current one."""
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "sub/c.jpg", "sub/.x/d.jpg", "empty/readme.md", "e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*given):
    return [file.name for file in find_images(given, Path("out"))]


def test_a_folder_gives_all_images_below_it(folder):
    assert names(".") == ["a", "b", "sub/c"]
    assert names(str(folder)) == ["a", "b", "sub/c"]


def test_files_and_patterns(folder):
    assert names("sub/c.jpg", "e") == ["c", "e"]
    assert names("*.*") == ["a", "b"]
    assert names("**/*.jpg") == ["b", "c"]
    assert names("b.jpg", "b.jpg", "*.jpg") == ["b"]


def test_a_file_whose_name_looks_like_a_pattern(folder):
    (folder / "x[1].jpg").write_bytes(b"")
    assert names("x[1].jpg") == ["x[1]"]


def test_names_that_differ_in_their_ending_alone_keep_it(folder):
    (folder / "b.png").write_bytes(b"")
    assert names(".") == ["a", "b_jpg", "b_png", "sub/c"]


def test_two_files_of_one_name_are_refused(folder):
    (folder / "sub" / "b.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"would both be written to b_jpg.png; predict them into two folders"):
        names("b.jpg", "sub/b.jpg")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gone.jpg", r"gone.jpg: no such file or folder"),
        ("empty", r"empty has no image files \(.jpg, "),
        ("*.gif", r"\*.gif: no such file or folder"),
        ("*.txt", r"\*.txt matches no image files"),
    ],
)
def test_what_is_not_there(folder, given, message):
    with pytest.raises(DataError, match=message):
        names("b.jpg", given)


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_loop_of_links_ends(folder):
    (folder / "sub" / "loop").symlink_to(folder)
    assert names(".") == ["a", "b", "sub/c"]


def test_results_inside_the_folder_are_no_images(folder):
    (folder / "sub" / "out" / "overlays").mkdir(parents=True)
    for name in ("b.png", "overlays/b.jpg"):
        (folder / "sub" / "out" / name).write_bytes(b"")
    found = find_images(["."], Path("sub/../sub/out"))
    assert [file.name for file in found] == ["a", "b", "sub/c"]


def test_an_image_that_its_own_labels_would_replace_is_refused(folder):
    (folder / "c.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"^c.png would be replaced by its own labels; write them into another folder"):
        find_images(["."], folder)
    assert [file.name for file in find_images(["b.jpg"], folder)] == ["b"]

import os
from pathlib import PurePosixPath

import pytest

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import Problems
from cam_pipeline.data.readers.listing import Listing, image_files
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import DataError


@pytest.fixture
def root(tmp_path):
    """A data root with one image; beside it lies another that it must not reach."""
    for folder in ("root/in", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.jpg").touch()
    return tmp_path / "root"


def listing_of(root, classes=("cat", "dog")):
    return Listing(DataSettings(root=root), classes, Problems())


def test_paths_below_the_root_come_back_clean(root):
    listing = listing_of(root)
    for name in ("in/a.jpg", "./in//a.jpg", str(root / "in" / "a.jpg")):
        assert listing.path(name, "") == PurePosixPath("in/a.jpg")
    assert listing.path("not/there.jpg", "") == PurePosixPath("not/there.jpg")


@pytest.mark.parametrize("name", ["../elsewhere/a.jpg", "in/../in/a.jpg", "/etc/hostname", "in/../../elsewhere/a.jpg"])
def test_paths_that_leave_the_root_are_refused(root, name):
    with pytest.raises(DataError, match=rf"^here: '{name}' is no path below the data root .*root; write it without"):
        listing_of(root).path(name, "here")


@pytest.mark.parametrize("name", ["", ".", "a\0.jpg", "x" * 300 + ".jpg", "x/" * 600 + "a.jpg", "\ud800.jpg"])
def test_what_is_no_path_of_a_file_is_refused(root, name):
    with pytest.raises(DataError, match=r"^here: .* is no path of a file") as caught:
        listing_of(root).path(name, "here")
    assert len(str(caught.value)) < 500


def test_symbolic_links_must_stay_inside(root):
    listing, outside = listing_of(root), root.parent / "elsewhere"
    (root / "inside.jpg").symlink_to(root / "in" / "a.jpg")
    (root / "folder").symlink_to(root / "in")
    (root / "out.jpg").symlink_to(outside / "a.jpg")
    (root / "out").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    assert listing.path("inside.jpg", "") and listing.path("folder/a.jpg", "")
    for name in ("out.jpg", "out/a.jpg", "out/not-there.jpg"):
        with pytest.raises(DataError, match=rf"^here: '{name}' leads out of the data root .* by a symbolic link; put"):
            listing.path(name, "here")
    for name in ("loop/a.jpg", "loop/folder/a.jpg", "loop"):
        with pytest.raises(DataError, match="is no path of a file"):
            listing.path(name, "here")


def test_the_root_itself_may_be_a_link(root):
    link = root.parent / "link"
    link.symlink_to(root)
    assert listing_of(link).path("in/a.jpg", "") == PurePosixPath("in/a.jpg")


def test_a_relative_root(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    listing = listing_of("root")
    assert listing.path(os.path.abspath("root/in/a.jpg"), "") == PurePosixPath("in/a.jpg")
    with pytest.raises(DataError, match="no path below the data root root"):
        listing.path("../elsewhere/a.jpg", "here")


def test_class_ids_are_sorted_and_unknown_names_answered_with_the_nearest(root):
    listing = listing_of(root)
    assert listing.class_ids(["dog", "cat", "dog"], "") == (1, 2) and listing.class_ids([], "") == ()
    with pytest.raises(DataError, match=r"^line 7: unknown class 'dgo'; did you mean 'dog'\?$"):
        listing.class_ids(["cat", "dgo"], "line 7")


def test_every_id_is_taken_once(root):
    listing = listing_of(root)
    listing.add(Sample("a", root / "a.jpg", "train"), "line 1")
    with pytest.raises(DataError, match=r"^line 5: the id a appears twice; line 1 names it already$"):
        listing.add(Sample("a", root / "a.jpg", "val"), "line 5")
    with pytest.raises(DataError, match=r"^line 6: the id a appears twice: for a.png, and for a.jpg in line 1; rename"):
        listing.add(Sample("a", root / "a.png", "train"), "line 6")
    assert [(sample.id, sample.split) for sample in listing.table().samples] == [("a", "train")]


def test_image_files_are_listed_by_stem(tmp_path):
    for name in ("b.PNG", "a.jpg", "a.png", "a.txt", "c.v1.jpeg"):
        (tmp_path / name).touch()
    assert image_files(tmp_path) == {"a": ["a.jpg", "a.png"], "b": ["b.PNG"], "c.v1": ["c.v1.jpeg"]}
    assert image_files(tmp_path / "not there") == {}

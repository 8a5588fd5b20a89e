import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cam_pipeline.report.colors import class_color
from cam_pipeline.report.contact_sheet import SheetRow, _with_marks, _wrapped, contact_sheet, draw_sheet, text_font

NAMES = ("background", "car", "fish", "apple")


def make_row(name="train_00001", size=(48, 80), class_ids=(1, 3), **given):
    """A row with every step: class 1 on the left, class 3 on the right, an ignore band between."""
    height, width = size
    labels = np.zeros(size, dtype=np.uint8)
    labels[height // 4 :, : width // 3] = 1
    labels[height // 4 :, -width // 3 :] = 3
    banded = labels.copy()
    banded[height // 4 :, width // 3 : -width // 3] = 255
    cam = np.zeros((len(class_ids), 6, 10), dtype=np.float32)
    cam[:1, :, :5] = 1
    cam[1:, :, 5:] = 0.5
    image = np.full((*size, 3), 100, dtype=np.uint8)
    steps = dict(cam=cam, class_ids=class_ids, pseudo_label=banded, prediction=labels, truth=labels)
    return SheetRow(name, image, **{**steps, **given})


def colors_in(sheet):
    return {color for _, color in sheet.getcolors(maxcolors=1 << 20)}


def test_sheet_is_written_as_png_and_nothing_else(tmp_path):
    path = tmp_path / "report" / "sheet.png"
    contact_sheet([make_row(), make_row("val_2", (90, 60))], NAMES, path, title="train")
    assert os.listdir(path.parent) == ["sheet.png"]
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        assert sheet.mode == "RGB"
        assert 1000 < sheet.width < 1400
        assert 250 < sheet.height < 500


def test_eight_rows_fit_a_large_screen():
    sheet = draw_sheet([make_row(f"train_{i}", (375, 500)) for i in range(8)], NAMES)
    assert sheet.width < 1400
    assert sheet.height < 1700


def test_columns_that_no_row_has_are_left_out():
    full = draw_sheet([make_row()], NAMES)
    without_truth = draw_sheet([make_row(truth=None)], NAMES)
    image_only = draw_sheet([SheetRow("a", make_row().image)], NAMES)
    assert full.width > without_truth.width > image_only.width
    assert full.height == without_truth.height == image_only.height
    assert draw_sheet([make_row(), make_row(truth=None)], NAMES).width == full.width


def test_images_of_any_size_share_a_sheet():
    sizes = [(1, 1), (9, 1000), (1000, 9), (64, 64), (375, 500)]
    sheet = draw_sheet([make_row(f"{h}x{w}", (h, w)) for h, w in sizes], NAMES)
    assert sheet.width < 1400


def test_classes_are_outlined_in_their_colour_and_absent_ones_do_not_appear():
    colors = colors_in(draw_sheet([make_row()], NAMES))
    assert {class_color(1), class_color(3), class_color(255)} <= colors
    assert class_color(2) not in colors


def test_cam_takes_the_hue_of_the_best_class_and_the_strength_of_its_score():
    row = make_row(pseudo_label=None, prediction=None, truth=None)
    pixels = np.asarray(draw_sheet([row], NAMES)).astype(int)
    second_column = pixels[:150, pixels.shape[1] // 2 + 80 :]
    first, last = (second_column @ hue(class_id) for class_id in (1, 3))
    assert first.max() > 0.85 * hue(1) @ class_color(1)  # at full strength
    assert 0.35 < last.max() / (hue(3) @ class_color(3)) < 0.6  # at half strength


def hue(class_id):
    """A vector that is orthogonal to grey, and of greatest product with the colour of a class."""
    color = np.array(class_color(class_id), dtype=float)
    return (color - color.mean()) / np.linalg.norm(color - color.mean())


def test_cam_of_an_image_without_classes_and_with_wild_values():
    empty = make_row(class_ids=(), cam=np.zeros((0, 3, 4)))
    wild = make_row(cam=np.array([[[np.nan, -5.0]], [[7.0, 0.1]]], dtype=np.float16))
    draw_sheet([empty, wild], NAMES)


def test_legend_grows_with_the_classes_and_names_unknown_ones():
    many = np.arange(120, dtype=np.uint8).reshape(8, 15)
    short = draw_sheet([make_row(size=(8, 15))], NAMES)
    long = draw_sheet([make_row(size=(8, 15), truth=many)], NAMES)
    assert long.width == short.width
    assert long.height > short.height + 100


def test_long_names_stay_beside_their_row():
    plain, long = make_row("a"), make_row("häuser und straßen " * 40, class_ids=(1, 3))
    assert draw_sheet([plain], NAMES).size == draw_sheet([long], NAMES).size
    left = np.asarray(draw_sheet([long], NAMES))[:, 128:136]
    assert (left == 255).all()  # nothing runs into the first column


def test_a_note_is_drawn_under_the_name():
    plain, noted = (np.asarray(draw_sheet([make_row(note=note)], NAMES)) for note in ("", "least confident (0.412)"))
    assert plain.shape == noted.shape and (plain[:, 130:] == noted[:, 130:]).all()
    assert (plain[:, :130] != noted[:, :130]).any()


@pytest.mark.parametrize(
    ("text", "room", "lines"),
    [
        ("least confident (0.412)", 100, ["least confident", "(0.412)"]),
        ("for cat, dog", 200, ["for cat, dog"]),
        ("", 50, [""]),
    ],
)
def test_lines_are_broken_at_spaces(text, room, lines):
    assert _wrapped(text, text_font(11), room) == lines


def test_long_words_are_broken_anywhere():
    lines = _wrapped("a " + "b" * 60 + " c", text_font(11), 100)
    assert "".join(lines).replace(" ", "") == "a" + "b" * 60 + "c" and all(
        text_font(11).getlength(line) <= 100 for line in lines
    )


def test_arguments_are_not_changed():
    row = make_row()
    before = [a.copy() for a in (row.image, row.cam, row.pseudo_label)]
    for array in (row.image, row.cam, row.pseudo_label):
        array.setflags(write=False)
    draw_sheet([row], NAMES)
    assert all(np.array_equal(a, b) for a, b in zip((row.image, row.cam, row.pseudo_label), before, strict=True))


def test_drawing_leaves_no_matplotlib_state(tmp_path):
    code = (
        "import sys, numpy as np, pathlib\n"
        "from cam_pipeline.report.contact_sheet import SheetRow, contact_sheet\n"
        "assert 'matplotlib' not in sys.modules\n"
        "row = SheetRow('a', np.zeros((4, 6, 3), np.uint8))\n"
        "contact_sheet([row], ['background'], pathlib.Path(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_sheet_needs_rows(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([], NAMES, tmp_path / "sheet.png")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"truth": np.zeros((80, 48), dtype=np.uint8)}, "truth"),
        ({"prediction": np.zeros((48, 80))}, "segmenter"),
        ({"pseudo_label": np.full((48, 80), 256)}, "pseudo-label"),
        ({"truth": np.full((48, 80), -1)}, "truth"),
        ({"cam": np.zeros((3, 4, 5))}, "cam"),
        ({"cam": np.zeros((4, 5))}, "cam"),
        ({"class_ids": (0, 1)}, "class ids"),
    ],
)
def test_rows_are_checked_by_name(given, message):
    with pytest.raises(ValueError, match=f"train_00001: .*{message}"):
        make_row(**given)


@pytest.mark.parametrize("image", [np.zeros((4, 5), np.uint8), np.zeros((4, 5, 3)), np.zeros((0, 5, 3), np.uint8)])
def test_images_are_checked(image):
    with pytest.raises(ValueError, match="image"):
        SheetRow("a", image)


def test_what_people_said_is_drawn_on_the_image_in_the_colour_of_its_class():
    marks = np.full((48, 80), 255, np.uint8)
    marks[10, 20], marks[30, 40:60] = 2, 0
    plain = draw_sheet([SheetRow("a", make_row().image)], NAMES)
    marked = draw_sheet([SheetRow("a", make_row().image, marks=marks)], NAMES)
    assert class_color(2) in colors_in(marked) - colors_in(plain)
    tile = np.asarray(_with_marks(Image.fromarray(make_row().image), marks))
    dark = np.all(tile == class_color(0), axis=2)
    assert tuple(tile[10, 20]) == class_color(2) and tuple(tile[10, 17]) == (255, 255, 255), "a ring around a dot"
    assert dark[30, 40:60].all() and not dark[:25].any(), "a stroke"
    assert np.all(tile[:5] == 100)
    with pytest.raises(ValueError, match="marks must be"):
        SheetRow("a", make_row().image, marks=marks.T)

import pytest

from cam_pipeline.config import DataSettings
from cam_pipeline.data.check.problems import AllProblems
from cam_pipeline.data.readers import VOC_CLASSES, load_table
from cam_pipeline.errors import DataError


def voc_folder(root, labels, train=(), val=()):
    lists = root / "ImageSets" / "Segmentation"
    for folder in (lists, root / "JPEGImages", root / "SegmentationClass"):
        folder.mkdir(parents=True)
    (root / "image_labels.txt").write_text(labels)
    for split, names in (("train", train), ("val", val)):
        if names:
            (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def voc_table(root, **settings):
    return load_table(DataSettings(root=root, format="voc", **settings))


def facts(table):
    return [(sample.id, sample.split, sample.class_ids) for sample in table.samples]


def test_voc_layout(tmp_path):
    voc_folder(tmp_path, "p1 dog cat\n\nv1\np2  cat \nelsewhere cat\n", train=["p1", "p2", "p3"], val=["v1"])
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    (tmp_path / "JPEGImages" / "p2.png").touch()
    (tmp_path / "SegmentationClass" / "p1.png").touch()
    table = voc_table(tmp_path)
    assert table.classes == ("cat", "dog")
    assert facts(table) == [
        ("p1", "train", (1, 2)), ("p2", "train", (1,)), ("p3", "train", None), ("v1", "val", ()),
    ]  # fmt: skip
    images = [sample.image.relative_to(tmp_path).as_posix() for sample in table.samples]
    assert images == ["JPEGImages/p1.jpg", "JPEGImages/p2.png", "JPEGImages/p3.jpg", "JPEGImages/v1.jpg"]
    assert [sample.mask is not None for sample in table.samples] == [True, False, False, False]


def test_voc_without_a_class_file_has_the_twenty_classes(tmp_path):
    voc_folder(tmp_path, "p1 tvmonitor aeroplane\n", train=["p1"])
    table = voc_table(tmp_path, val="")
    assert table.classes == VOC_CLASSES and len(VOC_CLASSES) == 20
    assert table.samples[0].class_ids == (1, 20)


def test_voc_mistakes_are_named(tmp_path):
    voc_folder(tmp_path, "p1 cat\np2 cat unicorn\n", train=["p1"])
    with pytest.raises(DataError, match=r"image_labels\.txt, line 2: unknown class 'unicorn'"):
        voc_table(tmp_path, val="")
    (tmp_path / "image_labels.txt").write_text("p1 cat\n")
    with pytest.raises(DataError, match=r"there is no file .*ImageSets/Segmentation/val\.txt"):
        voc_table(tmp_path)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("v1\np1\n")
    with pytest.raises(DataError, match="the id p1 appears twice"):
        voc_table(tmp_path)
    (tmp_path / "image_labels.txt").unlink()
    with pytest.raises(DataError, match=r"there is no file .*image_labels\.txt"):
        voc_table(tmp_path)


def test_voc_takes_images_of_any_ending_and_masks_of_another_folder(tmp_path):
    voc_folder(tmp_path, "p1 cat\nsub/p2 cat\n", train=["p1", "sub/p2"])
    for name in ("JPEGImages/p1.TIF", "JPEGImages/sub/p2.png", "Other/p1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    table = voc_table(tmp_path, val="", masks="Other")
    images = [sample.image.relative_to(tmp_path).as_posix() for sample in table.samples]
    assert images == ["JPEGImages/p1.TIF", "JPEGImages/sub/p2.png"]
    assert [sample.mask for sample in table.samples] == [tmp_path / "Other/p1.png", None]
    assert [sample.class_ids for sample in table.samples] == [(8,), (8,)]


def test_voc_two_images_of_one_stem_are_refused(tmp_path):
    voc_folder(tmp_path, "p1 cat\n", train=["p1"])
    for name in ("p1.jpg", "p1.png"):
        (tmp_path / "JPEGImages" / name).touch()
    with pytest.raises(DataError, match=r"train\.txt, line 1: p1\.jpg and p1\.png in .*JPEGImages both fit; rename or"):
        voc_table(tmp_path, val="")


def test_voc_ids_do_not_lead_out_of_the_root(tmp_path):
    root = tmp_path / "root"
    voc_folder(root, "p1 cat\n", train=["p1", "../../x"])
    (tmp_path / "x.jpg").touch()
    with pytest.raises(DataError, match=r"train\.txt, line 2: 'JPEGImages/../../x.jpg' is no path below the data root"):
        voc_table(root, val="")
    (root / "ImageSets/Segmentation/train.txt").write_text("p1\n")
    (root / "JPEGImages/p1.png").symlink_to(tmp_path / "x.jpg")
    with pytest.raises(DataError, match=r"train\.txt, line 1: 'JPEGImages/p1.png' leads out of the data root"):
        voc_table(root, val="")


def test_voc_lists_and_labels_have_a_line_for_each_image(tmp_path):
    voc_folder(tmp_path, "p1 cat\n\np2 dog\np1 dog\n", train=["p1"])
    with pytest.raises(DataError, match=r"image_labels\.txt, line 4: p1 already has labels in .*txt, line 1; put all"):
        voc_table(tmp_path, val="")
    (tmp_path / "image_labels.txt").write_text("p1 cat\n")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("p1\np1 1\n")
    with pytest.raises(DataError, match=r"train\.txt, line 2: there must be one id in a line, not 'p1 1'"):
        voc_table(tmp_path, val="")


XML = "<annotation>{}</annotation>"
OBJECT = "<object><name>{}</name><difficult>{}</difficult><part><name>head</name></part></object>"


def xml_folder(root, annotations):
    voc_folder(root, "", train=[*annotations, "bare"])
    (root / "Annotations").mkdir()
    for name, objects in annotations.items():
        content = "".join(OBJECT.format(shown, int(difficult)) for shown, difficult in objects)
        (root / "Annotations" / f"{name}.xml").write_text(XML.format(content))


def xml_table(root, **settings):
    return voc_table(root, val="", labels="Annotations", **settings)


def test_voc_labels_from_xml(tmp_path):
    objects = [("dog", False), ("cat", True), ("dog", False)]  # a difficult object is there all the same
    xml_folder(tmp_path, {"p1": objects, "p2": []})
    table = xml_table(tmp_path)
    assert table.classes == VOC_CLASSES
    assert facts(table) == [("p1", "train", (8, 12)), ("p2", "train", ()), ("bare", "train", None)]


def test_voc_xml_of_other_classes_brings_its_own(tmp_path):
    xml_folder(tmp_path, {"p1": [("zebra", False)], "p2": [("ape", False), ("cat", False)]})
    table = xml_table(tmp_path)
    assert table.classes == ("ape", "cat", "zebra") and table.samples[1].class_ids == (1, 2)
    with pytest.raises(DataError, match=r"Annotations/p1\.xml: unknown class 'zebra'; did you mean 'zebras'\?"):
        xml_table(tmp_path, classes=("ape", "cat", "zebras"))


def test_voc_xml_is_read_again_when_it_changes(tmp_path):
    xml_folder(tmp_path, {"p1": [("dog", False)]})
    assert xml_table(tmp_path).samples[0].class_ids == (12,)
    (tmp_path / "Annotations/p1.xml").write_text(XML.format(OBJECT.format("person", 0)))
    assert xml_table(tmp_path).samples[0].class_ids == (15,)


BOMB = '<!DOCTYPE a [<!ENTITY e "{}">{}]><annotation><object><name>&e9;</name></object></annotation>'.format(
    "x" * 1000, "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "&e;" * 10}">' for n in range(10))
)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "cannot be read as XML"),
        ("<annotation><object>", "cannot be read as XML"),
        ("<annotation>\0</annotation>", "cannot be read as XML"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', "cannot be read as XML"),
        ("<html/>", "not a VOC annotation"),
        ("<annotation><object/></annotation>", "each <object> of an <annotation> has a <name>"),
        ("<annotation><object><name> </name></object></annotation>", "each <object> of an <annotation> has a <name>"),
        ('<!DOCTYPE a SYSTEM "file:///etc/hostname"><annotation/>', "declares a document type or entities"),
        (BOMB, "declares a document type or entities, which are not read; delete them"),
    ],
)
def test_voc_xml_that_can_not_be_read_is_named(tmp_path, content, complaint):
    xml_folder(tmp_path, {"p1": []})
    (tmp_path / "Annotations/p1.xml").write_text(content)
    with pytest.raises(DataError, match=rf"Annotations/p1\.xml.*{complaint}") as caught:
        xml_table(tmp_path)
    assert "\n" not in str(caught.value)


def test_voc_without_a_label_file_points_to_the_xml(tmp_path):
    xml_folder(tmp_path, {"p1": []})
    (tmp_path / "image_labels.txt").unlink()
    with pytest.raises(DataError, match=r"no file .*image_labels\.txt; for XML files set data\.labels to their folder"):
        voc_table(tmp_path, val="")


def test_voc_lines_are_those_that_an_editor_counts(tmp_path):
    voc_folder(tmp_path, "p1\u2028cat\vdog\np2 unicorn\n", train=["p1\x0c", "p1 1"])
    with pytest.raises(DataError, match=r"train\.txt, line 2: there must be one id"):
        voc_table(tmp_path, val="")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("p1\n")
    with pytest.raises(DataError, match=r"image_labels\.txt, line 2: unknown class 'unicorn'"):
        voc_table(tmp_path, val="")


def noted(root, **settings):
    """The table, and what was noted about it as (kind, message)."""
    problems = AllProblems()
    table = load_table(DataSettings(root=root, format="voc", val="", **settings), problems)
    return table, *([(one.kind, one.message) for one in found] for found in (problems.errors, problems.warnings))


TWENTY = {f"v{number}": [(name, False)] for number, name in enumerate(VOC_CLASSES)}


@pytest.mark.parametrize(
    ("stray", "meant"),
    [("Person", "person"), ("dining table", "diningtable"), ("TVmonitor", "tvmonitor"), ("aeroplan", "aeroplane"),
     ("potted-plant", "pottedplant"), ("buss", "bus"), ("AEROPLANE", "aeroplane"), ("motobike", "motorbike")],
)  # fmt: skip
def test_voc_a_misspelt_name_does_not_renumber_the_twenty(tmp_path, stray, meant):
    xml_folder(tmp_path, {"p1": [(stray, False)], **TWENTY})
    table, errors, warnings = noted(tmp_path, labels="Annotations")
    assert table.classes == VOC_CLASSES and not warnings
    message = f"{tmp_path / 'Annotations/p1.xml'}: unknown class '{stray}'; did you mean '{meant}'?"
    assert errors == [("unknown class", message)]


def test_voc_few_classes_and_one_misspelt(tmp_path):
    xml_folder(tmp_path, {"p1": [("Person", False)], "p2": [("dog", False), ("cat", False)]})
    table, errors, _ = noted(tmp_path, labels="Annotations")
    assert table.classes == VOC_CLASSES and len(errors) == 1


def test_voc_names_that_are_mostly_its_own_and_some_others_are_told(tmp_path):
    xml_folder(tmp_path, {"p1": [("dog", False), ("zebra", False)], "p2": [("cat", False)]})
    table, errors, warnings = noted(tmp_path, labels="Annotations")
    assert table.classes == ("cat", "dog", "zebra") and not errors
    assert warnings == [
        (
            "classes other than VOC's",
            "the XML files show zebra, none of VOC's twenty, so labels are 1..3 in the order cat, dog, zebra; give "
            "data.classes for other numbers",
        )
    ]
    assert not noted(tmp_path, labels="Annotations", classes=("cat", "dog", "zebra"))[2]


@pytest.mark.parametrize("names", [("Person", "Car", "Dog"), ("person", "Car"), ("ape", "zebra")])
def test_voc_names_of_other_data_sets_are_taken_as_they_are(tmp_path, names):
    xml_folder(tmp_path, {f"p{number}": [(name, False)] for number, name in enumerate(names)})
    table, errors, _ = noted(tmp_path, labels="Annotations")
    assert table.classes == tuple(sorted(names)) and not errors


def test_voc_names_that_are_numbers_are_sorted_as_numbers(tmp_path):
    xml_folder(tmp_path, {f"p{number}": [(str(number), False)] for number in range(1, 12)})
    assert xml_table(tmp_path).classes == tuple(str(number) for number in range(1, 12))


@pytest.mark.parametrize("name", ["_background_", "__ignore__", "Background"])
def test_voc_objects_that_are_no_class(tmp_path, name):
    xml_folder(tmp_path, {"p1": [("dog", False), (name, False)]})
    table, errors, _ = noted(tmp_path, labels="Annotations")
    assert table.classes == VOC_CLASSES
    assert errors == [
        (
            "label that is no class",
            f"{tmp_path / 'Annotations/p1.xml'}: '{name}' is no label of an image; delete it",
        )
    ]


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [("GB2312", "gb2312"), ("gbk", "gbk"), ("GB18030", "gb18030"), ("Big5", "big5"), ("Shift_JIS", "shift_jis"),
     ("EUC-JP", "euc_jp"), ("EUC-KR", "euc_kr"), ("utf-16", "utf-16"), ("iso-8859-1", "latin-1"), ("UTF-8", "utf-8"),
     ("UTF-8", "utf-8-sig"), ("GBK", "utf-8-sig"), ("HZ-GB-2312", "hz"), ("utf8", "utf-8"), ("windows-1252", "cp1252")],
)  # fmt: skip
def test_voc_xml_in_the_encoding_that_it_declares(tmp_path, declared, encoding):
    name = "한국" if "KR" in declared else "né" if encoding in ("latin-1", "cp1252") else "山"
    xml_folder(tmp_path, {"p1": []})
    text = f'<?xml version="1.0" encoding="{declared}"?>\n' + XML.format(OBJECT.format(name, 0))
    (tmp_path / "Annotations/p1.xml").write_bytes(text.encode(encoding))
    assert xml_table(tmp_path).classes == (name,)


@pytest.mark.parametrize("declared", ["gbk", "big5", "shift_jis"])
def test_voc_xml_in_other_encodings_is_guarded_as_well(tmp_path, declared):
    xml_folder(tmp_path, {"p1": []})
    content = f'<?xml version="1.0" encoding="{declared}"?>' + BOMB
    (tmp_path / "Annotations/p1.xml").write_bytes(content.encode(declared))
    with pytest.raises(DataError, match="declares a document type or entities"):
        xml_table(tmp_path)


@pytest.mark.parametrize("start", ["", '<?xml version="1.0" encoding="UTF-8"?>\n', '<?xml version="1.0"?>\n'])
def test_voc_xml_that_is_not_what_it_declares_says_what_to_do(tmp_path, start):
    xml_folder(tmp_path, {"p1": []})
    text = start + XML.format(OBJECT.format("cat", 0) + "\n<path>C:\\训练</path>")
    (tmp_path / "Annotations/p1.xml").write_bytes(text.encode("gbk"))
    line = text.count("\n", 0, text.index("训")) + 1
    with pytest.raises(DataError, match=rf"p1\.xml, line {line}: byte .* is not UTF-8; save the file as UTF-8"):
        xml_table(tmp_path)


def lists(root, name, *lines):
    path = root / "ImageSets" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    "line",
    [
        "/JPEGImages/p1.jpg /SegmentationClass/p1.png",
        "JPEGImages/p1.jpg SegmentationClass/p1.png",
        "VOC2012/JPEGImages/p1.jpg VOC2012/SegmentationClass/p1.png",
        "/JPEGImages/p1.jpg",
        "p1.jpg",
        "p1.jpg p1.png",
        "p1 p1",
        "./JPEGImages/p1.png",
        "p1",
        "\ufeffp1\u00a0",
    ],
)
def test_voc_lists_as_other_programs_write_them(tmp_path, line):
    voc_folder(tmp_path, f"{line.split()[0]} cat\n", train=["x"])
    (tmp_path / "SegmentationClass/p1.png").touch()
    (tmp_path / "JPEGImages/p1.jpg").touch()
    lists(tmp_path, "Segmentation/train.txt", line)
    table, errors, warnings = noted(tmp_path)
    assert facts(table) == [("p1", "train", (8,))] and not errors and not warnings
    assert table.samples[0].image == tmp_path / "JPEGImages/p1.jpg" and table.samples[0].mask


def test_voc_ids_keep_an_ending_that_their_file_has_twice(tmp_path):
    voc_folder(tmp_path, "p1.jpg cat\n", train=["p1.jpg", "v1.2"])
    (tmp_path / "JPEGImages/p1.jpg.jpg").touch()
    table, _, _ = noted(tmp_path)
    assert [(one.id, one.image.name) for one in table.samples] == [("p1.jpg", "p1.jpg.jpg"), ("v1.2", "v1.2.jpg")]


def test_voc_list_that_names_masks_of_another_folder_is_told(tmp_path):
    voc_folder(tmp_path, "", train=["/JPEGImages/p1.jpg /SegmentationClassAug/p1.png"])
    _, _, warnings = noted(tmp_path)
    assert [kind for kind, _ in warnings] == ["masks of another folder"]
    assert "masks in SegmentationClassAug, data.masks is SegmentationClass; set data.masks" in warnings[0][1]
    assert not noted(tmp_path, masks="SegmentationClassAug")[2]


def test_voc_lists_of_images_in_folders(tmp_path):
    voc_folder(tmp_path, "sub/p1 cat\n", train=["/JPEGImages/sub/p1.jpg /SegmentationClass/sub/p1.png"])
    table, errors, warnings = noted(tmp_path)
    assert facts(table) == [("sub/p1", "train", (8,))] and not errors and not warnings
    lists(tmp_path, "Segmentation/train.txt", "/JPEGImages/sub/p1.jpg /SegmentationClass/other/p1.png")
    assert "there must be one id in a line" in noted(tmp_path)[1][0][1]


@pytest.mark.parametrize("line", ["p1 1", "p1 -1", "p1  0"])
def test_voc_list_of_one_class_is_refused(tmp_path, line):
    voc_folder(tmp_path, "", train=[line])
    _, errors, _ = noted(tmp_path)
    assert "there must be one id in a line, not 'p1 " in errors[0][1]
    assert "; this is the list of one class: take one without the name of a class" in errors[0][1]


@pytest.mark.parametrize("folder", ["Main", "."])
def test_voc_lists_are_looked_for_in_other_folders_and_told(tmp_path, folder):
    voc_folder(tmp_path, "p1 cat\n")
    lists(tmp_path, f"{folder}/train.txt", "p1")
    table, errors, warnings = noted(tmp_path)
    assert facts(table) == [("p1", "train", (8,))] and not errors
    assert [kind for kind, _ in warnings] == ["split list of another folder"]
    assert "train.txt, so this list is taken" in warnings[0][1]


def test_voc_lists_that_are_nowhere_are_named_with_those_that_are_there(tmp_path):
    voc_folder(tmp_path, "")
    with pytest.raises(DataError, match=r"train\.txt, nor one of this name in ImageSets/Main or ImageSets$"):
        noted(tmp_path)
    lists(tmp_path, "Main/trainval.txt", "p1")
    with pytest.raises(DataError, match=r"; there are lists of trainval: set data\.train to one of them$"):
        noted(tmp_path)
    lists(tmp_path, "Segmentation/train.txt", "p1")
    with pytest.raises(DataError, match=r"val\.txt, .*: set data\.val to one of them, or data\.val to ''$"):
        voc_table(tmp_path)


def test_voc_files_named_in_another_unicode_form_are_found(tmp_path):
    voc_folder(tmp_path, "\u00e91 cat\n", train=["e\u03011", "o\u03082"])
    for name in ("JPEGImages/\u00e91.png", "SegmentationClass/\u00e91.png", "JPEGImages/\u00f62.jpg"):
        (tmp_path / name).touch()
    table, errors, _ = noted(tmp_path)
    assert [one.image.name for one in table.samples] == ["\u00e91.png", "\u00f62.jpg"] and not errors
    assert table.samples[0].class_ids == (8,) and table.samples[0].mask
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/\u00e91.xml").write_text(XML.format(OBJECT.format("dog", 0)))
    assert noted(tmp_path, labels="Annotations")[0].samples[0].class_ids == (12,)


@pytest.mark.parametrize("what", ["ImageSets/Segmentation/train.txt", "image_labels.txt", "Annotations/p1.xml"])
def test_voc_links_out_of_the_root_are_refused(tmp_path, what):
    root = tmp_path / "root"
    xml_folder(root, {"p1": [("dog", False)]})
    (root / what).rename(tmp_path / "outside")
    (root / what).symlink_to(tmp_path / "outside")
    labels = "image_labels.txt" if what == "image_labels.txt" else "Annotations"
    with pytest.raises(DataError, match=rf"{what} leads out of the data root .*root by a symbolic link; put the file"):
        voc_table(root, val="", labels=labels)


def test_voc_folder_of_xml_that_is_a_link_out_of_the_root_is_refused(tmp_path):
    root = tmp_path / "root"
    xml_folder(root, {"p1": [("dog", False)]})
    (root / "Annotations").rename(tmp_path / "outside")
    (root / "Annotations").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="Annotations leads out of the data root"):
        xml_table(root)


def test_voc_ids_of_files_that_systems_make_are_left_out(tmp_path):
    voc_folder(tmp_path, "p1 cat\n", train=["._p1", "p1"])
    table, errors, warnings = noted(tmp_path)
    assert [sample.id for sample in table.samples] == ["p1"] and not errors
    assert [kind for kind, _ in warnings] == ["file left out"]


@pytest.mark.parametrize("line", ["p1,cat,dog", "p1: cat dog", "other cat"])
def test_labels_that_fit_no_id_are_told_where_they_stand(tmp_path, line):
    voc_folder(tmp_path, f"{line}\n", train=["p1"])
    with pytest.raises(DataError, match=r"image_labels\.txt, line 1: no line .* such as p1; .* `id class class`"):
        voc_table(tmp_path, val="")


def test_names_that_differ_from_the_twenty_in_form_alone_are_warned_of_if_they_renumber(tmp_path):
    voc_folder(tmp_path, "", train=["p1"])
    (tmp_path / "Annotations").mkdir()
    objects = "".join(f"<object><name>{name}</name></object>" for name in ("dining table", "tv monitor"))
    (tmp_path / "Annotations" / "p1.xml").write_text(f"<annotation>{objects}</annotation>")
    problems = AllProblems()
    settings = DataSettings(root=tmp_path, format="voc", val="", labels="Annotations")
    assert load_table(settings, problems).classes == ("dining table", "tv monitor")
    assert [problem.kind for problem in problems.warnings] == ["classes other than VOC's"]

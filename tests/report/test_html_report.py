import re
from html.parser import HTMLParser

import numpy as np
import pytest

from cam_pipeline.report.curves import Training
from cam_pipeline.report.html_report import RunReport, report_page
from cam_pipeline.report.label_facts import LabelFacts, Lost, OddArea
from cam_pipeline.report.mask_facts import ClassFigures, Compared, Sweep
from cam_pipeline.report.page import thumbnail
from cam_pipeline.report.run_facts import RunFacts, StageFact, Weights
from cam_pipeline.report.shown import Shown

FACTS = RunFacts(
    name="outputs/my <run>",
    classes=("cat", "dog & co"),
    images={"train": 1200, "val": 3},
    masks={"val": 2},
    settings={"run.seed": "1", "cam.flip": "true"},
    defaults={"run.seed": "0"},
    versions={"torch": "2.6"},
    device="cpu (run.device = auto)",
    weights=(Weights("classifier.weights", "resnet50", "resnet50.a1_in1k", "apache-2.0"),),
    stages=(
        StageFact("train_cls", "classifier.safetensors", "current", "made", 71.8, 2_663_504, 60.0),
        StageFact("train_seg", "segmenter.safetensors", "missing", "not made yet", None, None),
    ),
)
LABELS = LabelFacts(
    images=500,
    of=1200,
    confidence=(1,) * 20,
    mean_confidence=0.5,
    doubtful=(("a", 0.25),),
    lost=(Lost("b", 2),),
    odd=(OddArea("c", 1, 0.9, 0.1),),
    ignored=0.125,
    origins={"pseudo-label": 90, "click": 10},
    together={(1, 2): 7},
)
REPORT = RunReport(
    FACTS, [Training("train_cls", {"loss": [(1, 2.0), (2, 1.0)]}, {"mAP": [(1, 0.5)]})], LABELS, [("d", 0.4)]
)


class Outline(HTMLParser):
    """Levels of headings, ids, what is linked to, and pictures without words."""

    def __init__(self, html):
        super().__init__()
        self.levels, self.ids, self.links, self.silent = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"][1:]] if found.get("href", "").startswith("#") else []
        if tag == "img" and not found.get("alt"):
            self.silent.append(found)


@pytest.fixture(scope="module")
def page():
    return report_page(REPORT)


@pytest.mark.parametrize(
    "words",
    [
        "outputs/my &lt;run&gt;: 2 classes, 1,203 images",
        "dog &amp; co",
        "train_seg is missing (not made yet)",
        "71.8 s",
        ">60 s<",
        "2.66 MB",
        "apache-2.0",
        "cpu (run.device = auto)",
        "Loss terms of train_cls by epoch. loss ends at 1.",
        "500 of 1,200 labels were looked at",
        "a class that the image shows: 1.",
        "90.0 %",
        "12.5 % of the pixels are undecided",
        ">0.400<",
    ],
)
def test_the_page_says(page, words):
    assert words in page


def test_the_page_needs_no_network_and_can_be_read_by_all(page):
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//|url\(\s*["']?https?:""", page, re.IGNORECASE)
    assert "default-src 'none'" in page and '<html lang="en">' in page and "prefers-color-scheme: dark" in page
    outline = Outline(page)
    assert outline.levels[0] == 1 and outline.levels.count(1) == 1
    steps = zip(outline.levels, outline.levels[1:], strict=False)
    assert all(after <= before + 1 for before, after in steps), "no level is left out"
    assert len(outline.ids) == len(set(outline.ids)) and set(outline.links) <= set(outline.ids)
    assert not outline.silent


def test_only_what_is_there_is_shown():
    page = report_page(RunReport(FACTS, [], None, []))
    assert "Labels, seen without masks" not in page and 'href="#curves"' not in page


def test_what_masks_say():
    figures = ClassFigures("cat", "head", 4, 0.5, 0.125, None, 0.25)
    compared = Compared(
        "pseudo-labels",
        "train",
        3,
        9,
        0.625,
        0.375,
        0.0625,
        (figures,),
        {"head": 0.5},
        (("cat", "dog", 0.75),),
        (("a", 0.5),),
    )
    picture = thumbnail(np.zeros((4, 4, 3), np.uint8), "image of a")
    curve = Sweep(3, (0.0, 0.5), (0.1, 0.2), 0.5, "auto")
    worst = [Shown("a", 0.0625, (("image", picture),))]
    page = report_page(RunReport(FACTS, [], None, sweep=curve, compared=[compared], worst=worst))
    for words in ("Mean IoU 62.5 %", "37.5 %", "3 of 9 images with masks", "12.5 %", "Chosen is 0.50 (auto)", "75.0 %"):
        assert words in page
    assert 'alt="image of a"' in page and "a: mean IoU 6.2 %" in page and "Best pseudo-labels" not in page
    assert Outline(page).levels == [1, 2, 2, 3, 3, 3]

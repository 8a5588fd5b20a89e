"""The background score that nobody gave: searched, chosen, kept, and told."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cam_pipeline.config import LabelSettings, RefineSettings, load_config
from cam_pipeline.data.images import UInt8, sample_image
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import ConfigError, DataError
from cam_pipeline.refinement.background import (
    background_score,
    choose_background,
    look_around,
    middle_of_top,
)
from cam_pipeline.refinement.choice import check_masks_to_choose_by, images_to_choose_by
from cam_pipeline.refinement.labels import pseudo_labels
from cam_pipeline.refinement.scores import refined
from cam_pipeline.store.cams import StoredCam
from cam_pipeline.store.labels import LabelStore
from cam_pipeline.store.scores import ScoreStore, StoredScores

# A class map of 12 x 18 cells, drawn at 24 x 36 pixels: high at the object, falling off around it.
COARSE = [[0.1, 0.1, 0.1, 0.1, 0.1, 0.1], [0.1, 0.5, 1.0, 1.0, 0.5, 0.1], [0.1, 0.5, 1.0, 1.0, 0.5, 0.1], [0.1] * 6]
MAP = F.interpolate(torch.tensor([[COARSE]]), (12, 18), mode="bilinear")[0]
SIZE = (24, 36)


@pytest.fixture
def image(tmp_path: Path) -> tuple[StoredCam, Sample]:
    """A red object in the middle, its map, and its mask; the map reaches beyond it."""
    pixels, mask = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, np.uint8)
    pixels[6:18, 12:24] = (200, 30, 30)
    mask[6:18, 12:24] = 2
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    sample = Sample("a", tmp_path / "a.png", "val", (2,), tmp_path / "mask.png")
    return StoredCam("a", MAP, (2,), SIZE), sample


def drawn(cam: StoredCam, background: float) -> np.ndarray[Any, Any]:
    """Where the unrefined map exceeds the background score."""
    area: np.ndarray[Any, Any] = (
        refined(cam, lambda: np.zeros((*SIZE, 3), np.uint8), RefineSettings(background=background, crf=False))
        .labels["unrefined"]
        .astype(bool)
    )
    return area


def choose(settings: RefineSettings, cam: StoredCam, sample: Sample) -> float:
    return choose_background(settings, [sample], 3, lambda measure, samples: measure(cam, samples[0]))


@pytest.mark.parametrize("how", ["auto", "from-split"])
def test_the_score_is_where_the_object_ends(image: tuple[StoredCam, Sample], how: str) -> None:
    settings = RefineSettings(background=how, crf=False)
    found = choose(settings, *image)
    truth = np.zeros(SIZE, bool)
    truth[6:18, 12:24] = True
    areas = [drawn(image[0], score) for score in (found, 0.3, 0.95)]
    overlaps = [(area & truth).sum() / (area | truth).sum() for area in areas]
    assert overlaps[0] > 0.7 and max(overlaps[1:]) < 0.6, (found, overlaps)


def test_with_a_crf_the_score_is_judged_by_what_it_makes(
    image: tuple[StoredCam, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refinement that makes objects smaller, as if the background scored .2 more, asks for a lower one."""
    from cam_pipeline.refinement import background as module

    plain = RefineSettings(background="auto", crf=False)
    start = choose(plain, *image)

    def eroded(cam: StoredCam, read: Any, settings: RefineSettings, device: torch.device) -> Any:
        return refined(cam, read, plain.at(settings.background_score + 0.2)).scores

    monkeypatch.setattr(module, "refined_scores", eroded)
    moved = choose(RefineSettings(background="auto"), *image)
    first, second = drawn(image[0], start), drawn(image[0], moved + 0.2)
    assert moved < start and (first & second).sum() > 0.8 * (first | second).sum(), (start, moved)


@pytest.mark.parametrize("how", ["auto", "from-split"])
def test_maps_that_say_nothing_choose_nothing(image: tuple[StoredCam, Sample], how: str) -> None:
    empty = StoredCam("a", torch.zeros(1, 4, 6), (1,), SIZE)  # of a class that the image does not show
    if how == "from-split":
        Image.fromarray(np.full(SIZE, 2, np.uint8)).save(image[1].mask)
    with pytest.raises(DataError, match=rf"refine\.background = '{how}': no map tried separates .* set a number"):
        choose(RefineSettings(background=how, crf=False), empty, image[1])


@pytest.mark.parametrize("number", [0, 255])
def test_masks_that_show_no_class_choose_nothing(image: tuple[StoredCam, Sample], number: int) -> None:
    Image.fromarray(np.where(np.indices(SIZE)[0] > 5, number, 0).astype(np.uint8)).save(image[1].mask)
    settings = RefineSettings(background="from-split", crf=False)
    refused = r"refine\.background = 'from-split': no mask of split 'val' that is looked at shows a class \(255 means"
    with pytest.raises(DataError, match=refused):
        choose(settings, *image)
    with pytest.raises(DataError, match=refused):
        check_masks_to_choose_by(settings, [image[1]], ("cat", "dog"))
    check_masks_to_choose_by(RefineSettings(background="auto"), [image[1]], ("cat", "dog"))
    Image.fromarray(np.full(SIZE, 2, np.uint8)).save(image[1].mask)
    check_masks_to_choose_by(settings, [image[1]], ("cat", "dog"))


def test_the_middle_of_the_top() -> None:
    """By hand: 1, .9 and .86 exceed .8 by .2, .1 and .06, so (.2 * .2 + .3 * .1 + .4 * .06) / .36."""
    assert middle_of_top({0.1: 0.8, 0.2: 1.0, 0.3: 0.9, 0.4: 0.86, 0.5: 0.0}) == 0.26
    assert middle_of_top({0.1: 0.0, 0.3: 3.0, 0.5: 0.0}) == 0.3
    assert middle_of_top({0.2: 0.0, 0.4: 0.0}) == 0.3, "where nothing is praised, all is as good"


def test_a_flat_top_is_halved_though_its_best_is_at_one_end() -> None:
    values = {round(0.05 * step, 2): 1.0 for step in range(2, 13)} | {0.05: 0.1, 0.65: 0.1}
    assert middle_of_top(values) == 0.35
    values[0.1] = 1.02  # what one image of fifty may do
    assert middle_of_top(values) == 0.35, "(.184 * 3.75 + .204 * .1) / 2.044, by hand"


def test_the_search_looks_to_both_sides_and_stays_inside() -> None:
    asked: list[float] = []

    def hill(place: float, top: float) -> float:
        asked.append(place)
        return max(0.0, 1 - abs(place - top))

    seen = look_around(partial(hill, top=0.37), 0.62, stride=0.06)
    assert sorted(seen) == [0.14, 0.2, 0.26, 0.32, 0.38, 0.44, 0.5, 0.56, 0.62, 0.68]
    assert len(asked) == len(set(asked)) == len(seen)
    assert middle_of_top(seen) == pytest.approx(0.37, abs=0.01)
    everywhere = look_around(lambda place: 1.0, 0.94, stride=0.04, top=0.5)
    assert (min(everywhere), max(everywhere), len(everywhere)) == (0.02, 0.98, 25)
    assert sorted(look_around(lambda place: 0.0, 0.5)) == [0.4, 0.5, 0.6], "a plain is no hill"


def test_images_are_spread_evenly_and_of_the_named_split() -> None:
    samples = [Sample(str(i), Path("x"), "train" if i < 6 else "val", (), None) for i in range(9)]
    some = images_to_choose_by(RefineSettings(background="auto", background_images=3), samples)
    assert [sample.id for sample in some] == ["0", "4", "8"]
    assert len(images_to_choose_by(RefineSettings(background="auto"), samples)) == 9
    by_masks = RefineSettings(background="from-split")
    with pytest.raises(DataError, match="no image of split 'val' has a mask"):
        images_to_choose_by(by_masks, samples)
    masked = [
        *samples,
        Sample("m", Path("x"), "val", (), Path("m.png")),
        Sample("t", Path("x"), "train", (), Path("m")),
    ]
    assert [sample.id for sample in images_to_choose_by(by_masks, masked)] == ["m"]
    with pytest.raises(DataError, match="there are no images to choose it on; set a number"):
        images_to_choose_by(RefineSettings(background="auto"), [])


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match=r"needs maps of split 'val': set cam\.splits = \['train', 'val'\]$"):
        load_config("demo", ["refine.background=from-split"])
    with pytest.raises(ConfigError, match=r"labels\.undecided = 'backgrounds' needs refine.band above 0"):
        load_config("demo", ["labels.undecided=backgrounds"])
    for value in ("automatic", "true", "0", "[0.3]", "nan"):
        with pytest.raises(ConfigError, match=r"refine\.background"):
            load_config("demo", [f"refine.background={value}"])
    with pytest.raises(ValueError, match=r"still to be chosen \(auto\)"):
        _ = RefineSettings(background="auto").background_score


def test_labels_leave_undecided_what_settings_say(image: tuple[StoredCam, Sample]) -> None:
    settings = RefineSettings(background=0.6, band=0.25, crf=False)
    found = refined(image[0], lambda: np.zeros((*SIZE, 3), np.uint8), settings)
    assert set(found.labels) == {"unrefined", "high", "low"}
    areas = {name: int((labels == 2).sum()) for name, labels in found.labels.items()}
    assert areas["high"] < areas["unrefined"] < areas["low"]
    merged = pseudo_labels(found, LabelSettings(undecided="backgrounds"))
    assert (merged == 2).sum() == areas["high"] and (merged == 255).sum() == areas["low"] - areas["high"]
    assert (merged[found.labels["low"] == 0] == 0).all()


def test_agreement_leaves_undecided_what_refinement_changed() -> None:
    scores = np.array([[[0.6, 0.4, 0.4]], [[0.4, 0.6, 0.6]]], np.float32)  # 0, class, class
    found = StoredScores("a", scores, (7,), {"unrefined": np.array([[0, 0, 7]], np.uint8)})
    labels = pseudo_labels(found, LabelSettings(undecided="agreement"))
    assert labels.tolist() == [[0, 255, 7]] and labels.dtype == np.uint8


AUTO = ("--set", "refine.background=auto", "--set", "refine.background_images=4")


def test_a_run_chooses_once_and_tells(commands: Any, finished: Path) -> None:
    ended = commands.run("make-cams", "-c", "tiny.toml", *AUTO, folder=finished)
    assert ended.code == 0, ended.stderr
    with ScoreStore.open(finished / "run" / "scores.h5") as scores:
        chosen = scores.background
    assert 0 < chosen < 1 and f"refine_cams: background score {chosen:.2f} (auto)" in ended.stderr
    assert "extract_cams: current" in ended.stderr
    assert commands.run("make-cams", "-c", "tiny.toml", *AUTO, folder=finished).stderr.count("nothing to do") == 3
    ended = commands.run("evaluate", "-c", "tiny.toml", *AUTO, folder=finished)
    assert ended.code == 0, ended.stderr
    rows = json.loads((finished / "run" / "evaluation.json").read_text())["rows"]
    assert {row["background"] for row in rows if row["map"] in ("refined", "pseudo-label")} == {chosen}
    again = commands.run("status", "-c", "tiny.toml", *AUTO, "--set", "refine.background_images=5", folder=finished)
    assert "refine.background_images was 4, is 5" in " ".join(again.stdout.split())


def test_a_choice_outlives_a_kill(commands: Any, finished: Path) -> None:
    """The number lies beside the parts; here the run of an earlier day is feigned to have found another."""
    ended = commands.run("make-cams", "-c", "tiny.toml", *AUTO, folder=finished)
    with h5py.File(finished / "run" / "scores.h5") as file:
        fingerprint = bytes(file.attrs["fingerprint"]).decode()
    for name in ("scores.h5", "scores.h5.manifest.json"):
        (finished / "run" / name).unlink()
    partial_folder = finished / "run" / "partial" / f"refine_cams-{fingerprint}"
    partial_folder.mkdir(parents=True)
    (partial_folder / "background.json").write_text(json.dumps({"background": 0.11}))
    ended = commands.run("make-cams", "-c", "tiny.toml", *AUTO, folder=finished)
    assert "refine_cams: background score 0.11 (auto)" in ended.stderr
    assert background_score(RefineSettings(background="auto"), finished / "run" / "scores.h5") == 0.11


def test_a_masked_split_chooses_and_is_told_of(commands: Any, finished: Path) -> None:
    given = ("--set", "refine.background=from-split", "--set", "cam.splits=['train', 'val']")
    band = ("--set", "refine.band=0.1", "--set", "labels.undecided=backgrounds")
    ended = commands.run("make-cams", "-c", "tiny.toml", *given, *band, folder=finished)
    assert ended.code == 0, ended.stderr
    assert "(from-split)" in ended.stderr
    ended = commands.run("evaluate", "-c", "tiny.toml", *given, *band, folder=finished)
    assert ended.code == 0, ended.stderr
    rows = json.loads((finished / "run" / "evaluation.json").read_text())["rows"]
    assert [row["used"] for row in rows if row["map"] == "refined"] == [
        "image labels; background from up to 200 masks of val"
    ]
    ended = commands.run(
        "make-cams", "-c", "tiny.toml", *given, *band, "--set", "labels.undecided=agreement", folder=finished
    )
    assert "refine_cams: current" in ended.stderr and "make_labels: done" in ended.stderr
    with (
        LabelStore.open(finished / "run" / "pseudo_labels.h5") as labels,
        ScoreStore.open(finished / "run" / "scores.h5") as scores,
    ):
        for name in labels.names:
            refined_away = scores.read(name).labels["unrefined"] != labels.read(name)
            assert (labels.read(name)[refined_away] == 255).all()


@pytest.mark.parametrize("band", [0.0, 0.1])
def test_an_image_is_read_once_a_refinement(image: tuple[StoredCam, Sample], band: float) -> None:
    cam, sample = image
    calls = []

    def read() -> UInt8:
        calls.append(sample)
        return sample_image(sample)

    refined(cam, read, RefineSettings(kernel="par", kernel_iterations=1, crf_iterations=1, band=band))
    assert len(calls) == 1
    refined(cam, read, RefineSettings(crf=False))
    assert len(calls) == 1, "and not at all without need"

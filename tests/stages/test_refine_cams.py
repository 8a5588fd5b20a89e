import logging
import multiprocessing
import os
import shutil
import signal
import sys
from contextlib import nullcontext

import h5py
import numpy as np
import pytest
import torch
from joblib.externals.loky.backend import context as loky
from PIL import Image

from cam_pipeline.config import Config
from cam_pipeline.data.images import sample_image
from cam_pipeline.data.table import Sample
from cam_pipeline.errors import Interrupted, LibraryMissing
from cam_pipeline.pipeline import Earlier, Output
from cam_pipeline.refinement import background as background_module
from cam_pipeline.refinement import in_parts, in_workers
from cam_pipeline.refinement.background import explained_by_map
from cam_pipeline.refinement.scores import refined
from cam_pipeline.stages import refine_cams as module
from cam_pipeline.store.cams import StoredCam, cam_record
from cam_pipeline.store.hdf5 import artefact_attributes, records_digest
from cam_pipeline.store.parts import PartWriter
from cam_pipeline.store.scores import ScoreStore, StoredScores

SIZE = (24, 36)


@pytest.fixture
def sample(tmp_path):
    """An image whose left half is red."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:, : SIZE[1] // 2, 0] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return Sample("a", tmp_path / "a.png", "train", (2, 1))


def stored(cam, class_ids):
    return StoredCam("a", torch.tensor(cam), class_ids, SIZE)


@pytest.fixture
def stage(tmp_path, inputs):
    """Runs the stage on the given maps of class 1; gives its output."""

    def run(*names, run=None, clicks=(), earlier=None, **settings):
        (tmp_path / "data.csv").write_text("image,labels\n" + "".join(f"{name}.png,cat\n" for name in names))
        (tmp_path / "clicks.csv").write_text("\n".join(["image,x,y,class", *clicks]))
        writer = PartWriter(tmp_path / "cams.h5", "cams", artefact_attributes(("cat",), "f", ""), [names])
        maps = torch.tensor([[[1.0, 0.0]]])
        writer.write(0, [cam_record(StoredCam(name, maps, (1,), SIZE)) for name in names])
        writer.join(names)
        config = Config.model_validate(
            {
                "data": {"root": tmp_path, "clicks": "clicks.csv" if clicks else ""},
                "run": {"device": "cpu", "workers": 1, **(run or {})},
                "refine": settings,
            }
        )
        output = Output(tmp_path / "out" / "scores.h5", tmp_path / "logs", "f", earlier=earlier)
        module.refine_cams(config, inputs(config, extract_cams=tmp_path / "cams.h5"), output)
        return output

    return run


def test_the_stage_works_in_this_process_and_leaves_ctrl_c_alone(sample, stage):
    """With a single worker joblib starts no process: signals must still reach the command."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        output = stage("a")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    with ScoreStore.open(output.path) as store:
        record = store.read("a")
    assert record.class_ids == (1,) and record.scores.shape == (2, *SIZE)
    assert (record.scores[1, :, :12] > 0.9).all() and (record.scores[0, :, -12:] > 0.9).all()


@pytest.mark.parametrize("background", [0.35, "auto"])
def test_a_device_of_its_own_refines_whole_batches_in_this_process(sample, stage, monkeypatch, caplog, background):
    """What a GPU does, on a CPU that is taken for one."""
    caplog.set_level(logging.INFO)
    plain = stage("a", background=background, crf_backend="torch")
    with ScoreStore.open(plain.path) as store:
        expected, score = store.read("a"), store.background
    plain.path.unlink()
    for left in plain.path.parent.iterdir():
        left.unlink()
    monkeypatch.setattr(in_parts, "CPU", torch.device("cuda"))
    monkeypatch.setattr(in_parts, "refined_records", None)
    output = stage("a", background=background, crf_backend="torch")
    with ScoreStore.open(output.path) as store:
        assert store.background == score
        assert np.array_equal(store.read("a").scores, expected.scores)


@pytest.mark.gpu
@pytest.mark.parametrize("background", [0.35, "auto"])
def test_a_gpu_gives_what_the_cpu_gives(sample, stage, background):
    found = []
    for device in ("cpu", "cuda"):
        output = stage("a", background=background, kernel="par", crf_backend="torch", run={"device": device})
        with ScoreStore.open(output.path) as store:
            found.append(store.read("a").scores)
        for left in output.path.parent.iterdir():
            left.unlink()
    np.testing.assert_allclose(*found, atol=2 / 255)


@pytest.mark.parametrize("missing", [True, False])
def test_the_crf_in_use_is_told_and_noted(sample, stage, monkeypatch, caplog, missing):
    caplog.set_level(logging.INFO)
    if missing:
        monkeypatch.setitem(sys.modules, "pydensecrf", None)
    wanted = "auto" if missing else "torch"
    assert stage("a", crf_backend=wanted).notes == {"crf_backend": "torch"}
    why = "pydensecrf is not installed" if missing else "refine.crf_backend = 'torch'"
    assert f"the CRF is computed by torch ({why})" in caplog.text
    assert stage("a", crf=False).notes == {}


@pytest.mark.parametrize(("stopped_at", "expected"), [("a", "torch"), ("b", "pydensecrf, torch"), (None, "pydensecrf")])
def test_a_run_that_goes_on_with_another_backend_notes_both(sample, stage, monkeypatch, stopped_at, expected):
    """Nothing was made, one part of two, or both."""
    pytest.importorskip("pydensecrf")
    shutil.copy(sample.image, sample.image.with_name("b.png"))

    def stopped(workers, cams, *rest):
        if cams[0].name == stopped_at:
            raise Interrupted("stopped")
        yield from in_workers.refined_records(workers, cams, *rest)

    monkeypatch.setattr(module, "IMAGES_PER_PART", 1)
    with monkeypatch.context() as patch:
        patch.setattr(in_parts, "refined_records", stopped)
        with pytest.raises(Interrupted) if stopped_at else nullcontext():
            stage("a", "b", crf_backend="pydensecrf")
    if not stopped_at:
        (sample.image.parent / "out" / "scores.h5").unlink()
    assert stage("a", "b", crf_backend="torch").notes == {"crf_backend": expected}


@pytest.fixture
def again(sample, stage, monkeypatch, tmp_path):
    """Runs the stage on images a, b and c beside its earlier result; gives the output, and the images refined anew."""
    for name in "bc":
        shutil.copy(sample.image, sample.image.with_name(f"{name}.png"))

    def run(first, second, change=lambda path: None, notes=None):
        output = stage("a", "b", "c", crf_backend="torch", **first)
        earlier = Earlier(output.path.rename(tmp_path / "earlier.h5"), output.notes if notes is None else notes)
        shutil.rmtree(output.folder)
        change(earlier.path)
        anew = []
        with monkeypatch.context() as patch:
            plain = in_workers.refine_image
            patch.setattr(in_workers, "refine_image", lambda cam, *given: anew.append(cam.name) or plain(cam, *given))
            output = stage("a", "b", "c", crf_backend="torch", earlier=earlier, **second)
        return output, anew

    return run


CLICKS = ("a,3,3,background", "b,30,12,cat")


@pytest.mark.parametrize("background", [0.35, "auto"])
def test_new_clicks_cost_the_refinement_of_their_images_alone(again, stage, monkeypatch, background):
    """The result is that of a run without an earlier one. A chosen background score is not chosen again."""
    settings = {"background": background}
    monkeypatch.setattr(module, "IMAGES_PER_PART", 2)
    expected = stage("a", "b", "c", crf_backend="torch", clicks=CLICKS, **settings)
    digest = records_digest(expected.path)
    with ScoreStore.open(expected.path) as store:
        assert store.read("b").scores[1, 12, 30] == 1
    shutil.rmtree(expected.folder)
    with monkeypatch.context() as patch:
        chosen = background_module.choose_background
        calls = []
        patch.setattr(background_module, "choose_background", lambda *given: calls.append(1) or chosen(*given))
        output, anew = again({"clicks": CLICKS[:1], **settings}, {"clicks": CLICKS, **settings})
    assert anew == ["b"] and len(calls) == (background == "auto")
    assert records_digest(output.path) == digest


def test_everything_is_refined_anew_from_what_does_not_hold(again):
    def without_digests(path):
        with h5py.File(path, "a") as file:
            del file["made_of"]

    more = {"clicks": CLICKS}
    assert again({}, more, without_digests)[1] == ["a", "b", "c"]  # an earlier version's
    assert again({}, more, lambda path: path.write_bytes(b"?"))[1] == ["a", "b", "c"]
    assert again({}, more, notes={"crf_backend": "pydensecrf"})[1] == ["a", "b", "c"]
    assert again({"background": 0.3}, {"background": 0.4, **more})[1] == ["a", "b", "c"]
    assert again({}, {})[1] == []


def test_another_image_is_refined_anew(again, sample):
    change = lambda path: Image.new("RGB", SIZE[::-1]).save(sample.image)  # noqa: E731
    assert again({}, {}, change)[1] == ["a"]


def test_parts_of_an_earlier_version_do_not_say_what_made_them(sample, stage):
    output = stage("a", crf_backend="torch")
    for name in ("scores.h5", "crf_backend.json"):
        (output.folder / name).unlink()
    assert stage("a", crf_backend="torch").notes == {"crf_backend": "torch"}


def test_a_missing_pydensecrf_that_is_asked_for_stops_before_other_stages_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    config = Config.model_validate({"data": {"root": "x"}, "refine": {"crf_backend": "pydensecrf"}})
    with pytest.raises(LibraryMissing, match="pip install pydensecrf2"):
        module.check(config)


def abort_at_three(cam, sample, settings):
    """What pydensecrf does with an image for which memory does not suffice."""
    if cam.name == "c":
        os.abort()
    scores = np.full((2, *cam.size), 0.5, np.float32)
    return StoredScores(cam.name, scores, cam.class_ids, {"unrefined": np.zeros(cam.size, np.uint8)})


def measured_but_three(measure, cam, sample):
    """The same while the background score is searched; no map is refined for what is known without."""
    if cam.name == "c" and measure.func is not explained_by_map:
        os.abort()
    return measure(cam, sample)


@pytest.fixture
def warm_workers():
    """Worker processes of joblib that are forked from a process which has imported everything, not started anew.

    Each death of one ends all of them, and importing torch would take seconds each time.
    """
    multiprocessing.set_forkserver_preload([module.__name__, __name__])
    loky.set_start_method("forkserver", force=True)
    yield
    loky.set_start_method(None, force=True)


@pytest.mark.parametrize("background", [0.35, "auto"])
@pytest.mark.usefixtures("warm_workers")
def test_an_image_at_which_the_crf_aborts_is_named_and_the_rest_survives(
    tmp_path, monkeypatch, caplog, stage, background
):
    names = ["a", "b", "c", "d"]
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:, : SIZE[1] // 2, 0] = 200
    for name in names:
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(in_workers, "refine_image", abort_at_three)
    monkeypatch.setattr(background_module, "measured", measured_but_three)
    monkeypatch.setattr(module, "IMAGES_PER_PART", 3)
    output = stage(*names, run={"workers": 2}, kernel="par", background=background)
    killed = "image c: a worker process was killed, for lack of memory or by a crash of the CRF; it"
    assert f"{killed} is refined at 216 pixels" in caplog.text
    assert f"{killed} stays unrefined" in caplog.text
    assert ("chosen without the images that cause this" in caplog.text) == (background == "auto")
    with ScoreStore.open(output.path) as store:
        assert list(store.names) == names
        assert [bool((store.read(name).scores == store.read("a").scores).all()) for name in names] == [
            True,
            True,
            False,
            True,
        ]
        alone = 1 / (1 + store.background)  # its map, which is 1 there, and the background, as they are
        assert store.read("c").scores[1, :, 0] == pytest.approx(alone, abs=1 / 255)


def abort_by_pydensecrf(cam, sample, settings):
    if settings.crf_backend == "pydensecrf":
        os.abort()
    return refined(cam, lambda: np.array(sample_image(sample)), settings)


@pytest.mark.usefixtures("warm_workers")
def test_an_image_at_which_pydensecrf_aborts_is_refined_by_torch(sample, stage, monkeypatch, caplog):
    pytest.importorskip("pydensecrf")
    monkeypatch.setattr(in_workers, "refine_image", abort_by_pydensecrf)
    output = stage("a", run={"workers": 2}, crf_backend="pydensecrf")
    assert "it is refined at 216 pixels" in caplog.text and "unrefined" not in caplog.text
    with ScoreStore.open(output.path) as store:
        scores = store.read("a").scores
    assert (scores[1, :, :12] > 0.9).all() and (scores[0, :, -12:] > 0.9).all()

import json
import logging
import math
import sys

import pytest

from cam_pipeline.config import RunSettings
from cam_pipeline.errors import LibraryMissing
from cam_pipeline.machine import crf_backend as module
from cam_pipeline.machine.crf_backend import CrfBackend, crf_backend, threads_per_image
from cam_pipeline.ops import crf


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A user's cache folder of its own, an installed pydensecrf, and times; gives the thread counts measured with."""
    calls = []

    def seconds(threads):
        calls.append(threads)
        return {"pydensecrf": 0.3 if threads > 1 else 0.1, "torch": 0.15}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(crf, "import_densecrf", lambda: None)
    monkeypatch.setattr(crf, "seconds_per_image", seconds)
    module._measured.cache_clear()
    yield calls
    module._measured.cache_clear()


def test_the_faster_one_is_taken_and_the_reason_given(measured):
    assert crf_backend("auto", "cpu") == CrfBackend("pydensecrf", "torch takes 1.50 times as long on this machine")
    assert crf_backend("auto", "cpu", 2) == CrfBackend("torch", "pydensecrf takes 2.00 times as long on this machine")


def test_it_is_measured_once_and_kept_for_later_processes(measured, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(2):
        crf_backend("auto", "cpu")
        module._measured.cache_clear()  # as in another process
    assert measured == [1]
    assert caplog.text.count("CRF: pydensecrf takes 0.100 s an image, torch takes 0.150 s an image") == 1


@pytest.mark.parametrize("notes", ["no JSON", "[]", '{"x": 1}', "?", 0.0, -1.0, math.nan, math.inf])
def test_unreadable_notes_are_measured_anew(measured, notes):
    crf_backend("auto", "cpu")
    file = module.note_file()
    wrong = {key: {"torch": notes, "pydensecrf": 0.1} for key in json.loads(file.read_text())}
    file.write_text(notes if notes in ("no JSON", "[]", '{"x": 1}') else json.dumps(wrong))
    module._measured.cache_clear()
    assert crf_backend("auto", "cpu").name == "pydensecrf"
    assert measured == [1, 1]


def test_without_a_place_for_notes_each_process_measures(measured, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    for _ in range(2):
        assert crf_backend("auto", "cpu").name == "pydensecrf"
    module._measured.cache_clear()
    monkeypatch.setattr(module, "note_file", lambda: None)
    assert crf_backend("auto", "cpu").name == "pydensecrf"
    assert measured == [1, 1]


def test_on_a_gpu_it_is_torch_and_nothing_is_measured(measured):
    assert crf_backend("auto", "cuda").name == "torch"
    assert measured == []


def test_what_is_asked_for_is_taken(measured):
    assert crf_backend("torch", "cpu") == CrfBackend("torch", "refine.crf_backend = 'torch'")
    assert measured == []


@pytest.mark.parametrize(("workers", "threads", "expected"), [(2, 3, 1), (1, 3, 3), (1, 1, 1)])
def test_threads_that_an_image_has(workers, threads, expected):
    """A single worker is no process of its own, so torch computes there with all its threads."""
    assert threads_per_image(RunSettings(workers=workers, threads=threads)) == expected


def test_a_missing_pydensecrf(measured, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    assert crf_backend("auto", "cpu") == CrfBackend("torch", "pydensecrf is not installed")
    with pytest.raises(LibraryMissing, match="pip install pydensecrf2"):
        crf_backend("pydensecrf", "cpu")


@pytest.mark.parametrize("error", ["ValueError", "ImportError", "SystemError"])
def test_a_broken_pydensecrf(measured, monkeypatch, tmp_path, error):
    """One that was compiled for another numpy, or without a library that it needs."""
    monkeypatch.undo()
    (tmp_path / "pydensecrf.py").write_text(f"raise {error}('numpy.dtype size changed')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "pydensecrf"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    assert crf_backend("auto", "cpu") == CrfBackend("torch", "pydensecrf cannot be imported")
    with pytest.raises(
        LibraryMissing, match=r"cannot be imported \(numpy.dtype size changed\): pip install pydensecrf2"
    ):
        crf_backend("pydensecrf", "cpu")

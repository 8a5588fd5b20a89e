"""Results of earlier versions, whose manifests state other settings than today's: current, or stale for a reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cam_pipeline.config import load_config
from cam_pipeline.pipeline import Stage
from cam_pipeline.pipeline.state import Results, State, explain_change, fingerprint_of

Facts = dict[str, Any]


def fails(*arguments: object) -> None:
    raise AssertionError("no stage runs here")


class Folder:
    """A run folder with one result, of a stage that reads [refine] and the seed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stages = {"mill": Stage("mill", "flour.bin", "mill", fails, ("refine", "run.seed"), ("refine.band",))}

    def state(self, *overrides: str) -> State:
        config = load_config("demo", [f"output.dir={json.dumps(str(self.path))}", *overrides])
        return Results(config, self.stages).states(["mill"])["mill"]

    def made_with(self, *overrides: str, change: Callable[[Facts], Any] = lambda facts: None) -> str:
        """Put a result there, with manifest, whose facts were changed as those of an earlier version; its run id."""
        facts = json.loads(json.dumps(self.state(*overrides).facts))
        change(facts)
        fingerprint = fingerprint_of(facts)
        manifest = {"fingerprint": fingerprint, "run_id": fingerprint, "facts": facts, "bytes": 0, "made": "once"}
        self.path.mkdir(exist_ok=True)
        (self.path / "flour.bin").touch()
        (self.path / "flour.bin.manifest.json").write_text(json.dumps(manifest))
        return fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "run")


def as_before_conditions(facts: Facts) -> None:
    """All of the CRF's settings, though it is off: as manifests stated them before settings had conditions."""
    facts["params"]["refine"] |= {"crf_iterations": 7, "gaussian_sxy": 3.0, "bilateral_weight": 4.0}


def test_result_is_current_though_its_manifest_states_settings_without_effect(folder: Folder) -> None:
    run_id = folder.made_with("refine.crf=false", change=as_before_conditions)
    state = folder.state("refine.crf=false", "refine.gaussian_sxy=9.0")
    assert state.kind == "current"
    assert state.run_id == run_id != state.fingerprint  # what was made from it stays current, too


def test_setting_without_effect_is_no_reason(folder: Folder) -> None:
    folder.made_with("refine.crf=false", change=as_before_conditions)
    assert folder.state("refine.crf=false", "run.seed=3").reason == "run.seed was 0, is 3"
    assert folder.state("refine.crf=true").reason == "refine.crf was False, is True"


def test_the_same_settings_are_a_reason_where_they_have_an_effect(folder: Folder) -> None:
    folder.made_with(change=as_before_conditions)  # with the CRF on they were read
    state = folder.state()
    assert (state.kind, state.reason) == ("stale", "refine.crf_iterations was 7, is 10")


def test_reason_is_the_setting_that_changed_not_one_that_matters_since(folder: Folder) -> None:
    folder.made_with("refine.kernel=none", "refine.crf=false")
    assert folder.state("refine.kernel=none", "refine.crf=true").reason == "refine.crf was False, is True"
    folder.made_with("refine.background=0.3")
    assert folder.state("refine.background=auto").reason == "refine.background was 0.3, is auto"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda facts: facts["params"]["refine"].update(erosion=2), "with the setting refine.erosion"),
        (lambda facts: facts["params"].pop("run.seed"), "without the setting run.seed"),
        (lambda facts: facts["params"].update({"run.speed": 3}), "with the setting run.speed"),
        (lambda facts: facts["params"].pop("refine"), "without the setting refine.normalize"),
        (lambda facts: facts.pop("params"), "without the setting refine.normalize"),
    ],
)
def test_reason_names_a_setting_that_came_or_went(folder: Folder, change: Callable[[Facts], Any], reason: str) -> None:
    folder.made_with(change=change)
    state = folder.state()
    assert (state.kind, state.reason) == ("stale", f"an earlier version made it, {reason}")


def test_what_differs_in_settings_data_and_needs_comes_before_what_came_or_went() -> None:
    now = {"version": 1, "params": {"refine": {"crf": True}}, "data": "a", "needs": {"grow": "1"}}
    before = now | {"params": {"refine": {"crf": True, "erosion": 2}}}
    assert explain_change(before, now) == "an earlier version made it, with the setting refine.erosion"
    assert explain_change(before | {"needs": {"grow": "2"}}, now) == "made from an earlier grow"
    assert explain_change(before | {"data": "b"}, now) == "the data changed"
    before["params"] = {"refine": {"erosion": 2, "crf": False}}
    assert explain_change(before, now) == "refine.crf was False, is True"
    assert explain_change(now | {"stage": "mill"}, now) == "its inputs have changed"


# Settings that came later


@pytest.fixture
def before(folder: Folder) -> Folder:
    """A folder with the segmenter of a version that did not have two of the settings."""

    def without_new(facts: Facts) -> None:
        assert facts["params"]["train_seg"].pop("clip_losses") is False
        assert facts["params"]["train_seg"].pop("potts") == 0

    ignored = ("train_seg.checkpoint_seconds",)
    folder.stages = {"mill": Stage("mill", "flour.bin", "mill", fails, ("train_seg", "run.seed"), ignores=ignored)}
    folder.made_with(change=without_new)
    return folder


def test_result_of_a_version_without_a_setting_is_as_if_it_was_off(before: Folder) -> None:
    assert before.state().kind == "current"
    assert before.state("train_seg.checkpoint_seconds=5").kind == "current"
    state = before.state("train_seg.clip_losses=true")
    assert (state.kind, state.reason) == ("stale", "train_seg.clip_losses was False, is True")
    assert before.state("run.seed=3").reason == "run.seed was 0, is 3"


def test_config_of_such_a_result_has_the_setting_off(before: Folder) -> None:
    config = load_config("demo", [f"output.dir={json.dumps(str(before.path))}", "train_seg.clip_losses=true"])
    assert config.train_seg.clip_losses
    assert not Results(config, before.stages).made_with().train_seg.clip_losses


def test_what_no_result_depends_on_is_that_of_the_present_config(before: Folder) -> None:
    config = load_config("demo", [f"output.dir={json.dumps(str(before.path))}", "train_seg.checkpoint_seconds=5"])
    assert Results(config, before.stages).made_with().train_seg.checkpoint_seconds == 5

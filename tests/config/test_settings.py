"""What of the settings goes into a fingerprint."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cam_pipeline.config import ClassifierSettings, Config, RefineSettings, SegmenterSettings, TrainSegSettings


def test_pick_gives_sections_and_single_keys_as_plain_data() -> None:
    picked = Config().pick(["labels", "run.seed"])
    assert picked == {"labels": {"undecided": "scores", "low": 0.35, "high": 0.55}, "run.seed": 0}
    assert json.loads(json.dumps(Config().pick(Config.model_fields))) == Config().pick(Config.model_fields)


@pytest.mark.parametrize("section", ["classifier", "segmenter"])
def test_pick_hides_where_a_weights_file_lies(section: str) -> None:
    first = Config(classifier=ClassifierSettings(weights="/a/w.pth"), segmenter=SegmenterSettings(weights="/a/w.pth"))
    other = Config(classifier=ClassifierSettings(weights="b.pth"), segmenter=SegmenterSettings(weights="b.pth"))
    assert first.pick([section]) == other.pick([section])
    assert "w.pth" not in json.dumps(first.pick([section]))


@pytest.mark.parametrize("section", ["classifier", "segmenter"])
def test_pick_tells_pretrained_none_and_a_file_apart(section: str) -> None:
    picked = [
        json.dumps(
            Config(classifier=ClassifierSettings(weights=weights), segmenter=SegmenterSettings(weights=weights)).pick(
                [section]
            )
        )
        for weights in ("pretrained", "none", "file.pth")
    ]
    assert len(set(picked)) == 3


def test_pick_leaves_the_config_as_it_is() -> None:
    config = Config(classifier=ClassifierSettings(weights="/a/w.pth"))
    config.pick(["classifier"])
    assert config.classifier.weights == "/a/w.pth"


def test_pick_of_an_unknown_key_is_an_error() -> None:
    with pytest.raises(KeyError):
        Config().pick(["run.speed"])


def test_pick_states_files_to_merge_with_by_their_number_and_not_at_all_without() -> None:
    assert "merge_with" not in Config().pick(["refine"])["refine"]
    config = Config(refine=RefineSettings(merge_with=(Path("a.h5"), Path("b.h5"))))
    assert config.pick(["refine"])["refine"]["merge_with"] == 2
    assert config.pick(["refine.merge_with"]) == {"refine.merge_with": 2}


def test_pick_leaves_out_what_has_no_effect_and_what_is_asked_to_be() -> None:
    assert Config().pick(["cam.walk_steps", "cam.flip", "cam.batch_size"], ["cam.batch_size"]) == {"cam.flip": True}
    assert Config().pick(["acr"]) == {}


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({"balance": True}, "balance"),
        ({"clip_losses": True, "confidence_power": 1.0}, "clip_losses and confidence_power"),
    ],
)
def test_scores_in_place_of_labels_do_not_go_with_what_is_about_labels(others: dict[str, Any], named: str) -> None:
    line = f"soft_labels cannot be combined with {named}; switch one of them off"
    with pytest.raises(ValidationError, match=line):
        TrainSegSettings(soft_labels=True, **others)
    assert not TrainSegSettings(soft_labels=True, supervision="masks", **others).soft  # the reference
    assert TrainSegSettings(soft_labels=True, supervision="mixed").soft
    assert TrainSegSettings(soft_labels=True, potts=1.0).soft

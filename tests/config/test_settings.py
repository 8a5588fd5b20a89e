"""What of the settings goes into a fingerprint."""

import json

import pytest

from cam_pipeline.config import ClassifierSettings, Config, SegmenterSettings


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
